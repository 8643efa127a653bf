r"""What G-VAE is for: a classifier trained on what a generator, trained beside it, draws of its images.

Each image of a batch is replaced with a probability by

$$m(\mu + \lambda\sigma\varepsilon), \qquad \varepsilon \sim \mathcal N(0, I), \tag{1}$$

decoded from its own posterior $\mathcal N(\mu, \mathrm{diag}\,\sigma^2)$ (room ``gvae``), under its own class: the
sampled form of the class term, taken back to pixels. Baselines: (1) of a VAE and of a conditional VAE, Gaussian noise
on the pixels, and the image itself.

Wu Tianyang, "ML algorithm exploration", 2023, who names the purpose and gives no number for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from semaug.core.tensors import at_least_float32
from semaug.methods.gvae import GVAE, VAE, AutoEncoder, ConditionalVAE
from semaug.training.objective import Objective, Step, linear_head

METHODS: dict[str, Callable[[nn.Module, float], GVAE]] = {"vae": VAE, "cvae": ConditionalVAE, "gvae": GVAE}


class Augmented(Objective):
    r"""A classifier trained on augmented images, by the generator that is trained beside it.

    Each image of a batch is replaced with ``probability`` by an augmented one: with "vae", "cvae" and "gvae" by (1),
    $\lambda$ the ``strength``; with "noise" by $x + \lambda\varepsilon$, cut to
    [0, 1]; with "none" by itself. All cost the classifier the same passes. From the fraction ``start`` of training on:
    before it the generator has not learned much.

    residual: add $m(\mu + \lambda\sigma\varepsilon) - m(\mu)$ to the image instead, which keeps what the generator
        cannot draw. The generator learns from the same batches, real images only, and no gradient passes between
        the two.
    image_shape: (channels, H, W). latent, width, norm, deviation, class_weight: of the generator.
    """

    generator: GVAE | None
    network: Any

    def __init__(
        self,
        network: nn.Module,
        image_shape: tuple[int, int, int],
        method: Literal["none", "noise", "vae", "cvae", "gvae"] = "gvae",
        strength: float = 1.0,
        probability: float = 0.5,
        start: float = 0.3,
        residual: bool = False,
        latent: int = 16,
        width: int = 8,
        deviation: float = 0.5,
        class_weight: float = 10.0,
        norm: str = "batch",
    ) -> None:
        if method not in ("none", "noise", *METHODS):
            raise ValueError(f"method: got {method!r}; takes none, noise, {', '.join(METHODS)}")
        for name, value in {"probability": probability, "start": start}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: got {value}; takes a fraction in [0, 1]")
        if not (math.isfinite(strength) and strength >= 0):
            raise ValueError(f"strength: got {strength}; takes a finite number from 0")
        super().__init__(network, method=method, strength=strength, probability=probability, start=start)
        self.method, self.strength, self.probability, self.start = method, strength, probability, start
        self.residual, self.generator = residual, None
        if method in METHODS:
            channels, *size = image_shape
            classes = linear_head(network).out_features
            inner = AutoEncoder(classes, channels, (size[0], size[1]), latent, width, norm=norm)
            self.generator = (
                GVAE(inner, deviation, class_weight) if method == "gvae" else METHODS[method](inner, deviation)
            )
            self.settings |= {"class_weight": class_weight} if method == "gvae" else {}
            self.settings |= {"residual": residual, "latent": latent, "width": width, "deviation": deviation}
            self.settings |= {"norm": norm}

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the classifier, and the generator's loss, whose terms are logged beside it."""
        loss, changed = torch.zeros((), device=images.device), images
        terms: dict[str, Tensor] = {}
        if self.generator is not None:
            codes = self.generator.encode(images)
            loss, terms = self.generator.losses(images, target, *codes, step)
            mean, log_variance = (each.detach() for each in codes)
            changed = self.moved(self.generator, images, mean, log_variance, target, step)
        elif self.method == "noise":
            noise = step.share(len(images), lambda n: self._normal((n, *images.shape[1:]), step))
            changed = (images + self.strength * noise).clamp(0, 1)
        u = step.share(len(images), lambda n: torch.rand(n, generator=step.generator, device=images.device))
        replace = (u < self.probability) & (step.progress >= self.start)
        mixed = torch.where(replace[:, None, None, None], changed, images)
        classifier = F.cross_entropy(at_least_float32(self.network(mixed)), target)
        return classifier + loss, {**terms, "classifier_loss": classifier.detach()}

    @torch.no_grad()
    def moved(
        self, generator: GVAE, images: Tensor, mean: Tensor, log_variance: Tensor, target: Tensor, step: Step
    ) -> Tensor:
        """The augmented images; the decoder's BatchNorm by its running statistics, and they stay."""
        noise = step.share(len(mean), lambda n: self._normal((n, mean.shape[1]), step)).to(mean.dtype)
        generator.eval()
        images_of = generator.decode(mean + self.strength * (0.5 * log_variance).exp() * noise, target)
        if self.residual:
            images_of = (images + images_of - generator.decode(mean, target)).clamp(0, 1)
        generator.train(self.training)
        return images_of.to(images.dtype)

    def _normal(self, shape: tuple[int, ...], step: Step) -> Tensor:
        return torch.randn(shape, generator=step.generator, device=step.generator.device)
