r"""What G-VAE is for: a classifier trained on what a generator, trained beside it, draws of its images.

Each image of a batch is replaced with a probability by

$$m(\mu + \lambda\sigma\varepsilon), \qquad \varepsilon \sim \mathcal N(0, I), \tag{1}$$

decoded from its own posterior $\mathcal N(\mu, \mathrm{diag}\,\sigma^2)$ (module ``gvae``), under its own class: the
sampled form of the class term, taken back to pixels. Baselines: (1) of a VAE and of a conditional VAE, Gaussian noise
on the pixels, and the image itself.

Wu Tianyang, "ML algorithm exploration", 2023, who names the purpose and gives no number for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from semaug._checks import check_choice, check_flag, check_number
from semaug.core.metrics import evaluating
from semaug.data.sets import Data
from semaug.methods.gvae import GVAE, VAE, AutoEncoder, ConditionalVAE
from semaug.training.objective import Objective, Setting, Step, cross_entropy, linear_head

METHODS: dict[str, Callable[[nn.Module, float], GVAE]] = {"vae": VAE, "cvae": ConditionalVAE, "gvae": GVAE}


class Augmented(Objective):
    r"""A classifier trained on augmented images, by the generator that is trained beside it.

    The generator learns from the same batches, real images only, and no gradient passes between the two. All methods
    cost the classifier the same passes.

    Args:
        network: the classifier, images to logits.
        image_shape: (channels, H, W).
        method: what replaces an image: (1) with "vae", "cvae" and "gvae"; $x + \lambda\varepsilon$, cut to [0, 1], with
            "noise"; the image itself with "none".
        strength: $\lambda$.
        probability: with which an image is replaced.
        start: the fraction of training before which none is: the generator has not learned much.
        residual: whether $m(\mu + \lambda\sigma\varepsilon) - m(\mu)$ is added to the image instead, which keeps what
            the generator cannot draw.
        latent: of the generator's :class:`AutoEncoder`.
        width: likewise.
        deviation: of the generator's decoder, see :class:`GVAE`.
        class_weight: of "gvae", see :class:`GVAE`.
        norm: of the generator, "batch" or "group".

    Raises:
        ValueError: for settings outside these.
    """

    generator: GVAE | None

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
        check_choice("method", method, ("none", "noise", *METHODS))
        strength, start = check_number("strength", strength, 0), check_number("start", start, 0, 1)
        probability, residual = check_number("probability", probability, 0, 1), check_flag("residual", residual)
        super().__init__(network, method=method, strength=strength, probability=probability, start=start)
        self.method, self.strength, self.probability, self.start = method, strength, probability, start
        self.residual, self.generator = residual, None
        if method in METHODS:
            channels, *size = image_shape
            classes = linear_head(network).out_features
            inner = AutoEncoder(classes, channels, (size[0], size[1]), latent, width, norm=norm)
            weight = (class_weight,) if method == "gvae" else ()
            self.generator = METHODS[method](inner, deviation, *weight)
            kept = ("class_weight", "deviation") if method == "gvae" else ("deviation",)
            self.settings |= {name: self.generator.settings[name] for name in kept}
            self.settings |= {"residual": residual, "latent": inner.latent, "width": int(width), "norm": norm}

    @classmethod
    def build(cls, network: nn.Module, dataset: Data, **settings: Setting) -> Augmented:
        """The objective for the image shape of a data set."""
        return cls(network, dataset.image_shape, **settings)  # type: ignore[arg-type]  # checked at construction

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the classifier, and the generator's loss, whose terms are logged beside it; in nats."""
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
        classifier = cross_entropy(self.network(mixed), target)
        return classifier + loss, {**terms, "classifier_loss": classifier.detach()}

    @torch.no_grad()
    def moved(
        self, generator: GVAE, images: Tensor, mean: Tensor, log_variance: Tensor, target: Tensor, step: Step
    ) -> Tensor:
        """The augmented images; the decoder's BatchNorm by its running statistics, and they stay."""
        noise = step.share(len(mean), lambda n: self._normal((n, mean.shape[1]), step)).to(mean.dtype)
        with evaluating(generator):
            decoded = generator.decode(mean + self.strength * (0.5 * log_variance).exp() * noise, target)
            if self.residual:
                decoded = (images + decoded - generator.decode(mean, target)).clamp(0, 1)
        return decoded.to(images.dtype)

    def _normal(self, shape: tuple[int, ...], step: Step) -> Tensor:
        return torch.randn(shape, generator=step.generator, device=step.generator.device)
