r"""Augmentations that are learned: of features by reversed gradients, of images against a student and for a teacher.

Reversing a gradient turns one descent into a min-max: forward the identity, backward $-\alpha$ times the gradient,

$$R_\alpha(x) = x, \qquad \partial R_\alpha / \partial x = -\alpha I. \tag{1}$$

(Domain-adversarial networks, Ganin et al., JMLR 2016, https://arxiv.org/abs/1505.07818.)

Form A, after LeMDA (Liu et al., ICLR 2023, https://arxiv.org/abs/2212.14453), here of image features $z = f(x)$: a
residual variational autoencoder $G(z) = z + d(\mu + \sigma\varepsilon)$, whose last layer starts at zero, makes of
detached features others. The classifier minimises, and G, through $R_\alpha$, maximises, the cross-entropy of both;
G is held to features of which the frozen head says the same:

$$L = \mathrm{CE}(z) + \mathrm{CE}(R_\alpha(G(z))) + w_1\,\mathrm{KL}(p_G\,\|\,p_z)\,[\max p_z > \tfrac12]
  + w_2\,|G(z) - z|^2 + w_3\,\mathrm{KL}(\mathcal N(\mu, \sigma^2)\,\|\,\mathcal N(0, I)). \tag{2}$$

Form B, TeachAugment (Suzuki, CVPR 2022, https://arxiv.org/abs/2202.12513), from its formulas alone: a network draws of
noise the parameters of a change of geometry and of colour, to fool the student while the teacher, the average of the
student over the steps, still knows the class:

$$L_a = -\log\bigl(1 - p_y(\text{student}) \bigr) + \mathrm{CE}(\text{teacher}). \tag{3}$$

Pixels that leave [0, 1] come back by the triangle wave $\arccos(\cos \pi v) / \pi$. The paper's colour regulariser is
left out.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from semaug._checks import check_count, check_finite, check_number, require
from semaug.core.gaussian import kl_standard_normal
from semaug.core.metrics import evaluating
from semaug.core.tensors import at_least_float32, follow
from semaug.data.sets import Data
from semaug.methods.diffaugment import DiffAugment, Draws
from semaug.networks import Network
from semaug.training.objective import Objective, Setting, Step, cross_entropy, grouped, linear_head
from semaug.training.recipe import Recipe


def reverse_gradient(x: Float[Tensor, "*axes"], scale: float = 1.0) -> Float[Tensor, "*axes"]:
    r"""(1), $\alpha$ the ``scale``; raises ValueError for one that is not a finite number from 0."""
    return x.detach() - check_number("scale", scale, 0) * (x - x.detach())


def triangle_wave(values: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    r"""Any number reflected into [0, 1], $\arccos(\cos \pi v) / \pi$: $|v|$ up to 1, then back; slopes are +-1.

    By remainders: the cosine's slope is 0 / 0 at whole numbers, where images have most of their pixels.
    """
    return 1 - (values.remainder(2) - 1).abs()


class FeatureGenerator(nn.Module):
    """G of (2): features (N, A) to features and the Gaussian of their codes; the identity at first."""

    def __init__(self, width: int, latent: int = 8, hidden: int = 64) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, width))
        for parameter in self.decoder[2].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, features: Float[Tensor, "N A"], noise: Float[Tensor, "N K"]
    ) -> tuple[Float[Tensor, "N A"], Float[Tensor, "N K"], Float[Tensor, "N K"]]:
        """G(z), and mean and log variance of the code.

        Args:
            features: z, (N, A).
            noise: standard normal, (N, K), K = ``latent``.
        """
        mean, log_variance = self.encoder(features).chunk(2, 1)
        log_variance = log_variance.clamp(-12, 12)
        return features + self.decoder(mean + (0.5 * log_variance).exp() * noise), mean, log_variance


class FeatureAugmentation(Objective):
    r"""The loss (2) of a network and a generator of features beside it.

    Features go to G detached: the body of the network learns from CE(z) alone, the head from both. In the consistency
    term the head is constant (the released code trains it there too). Logs ``augmented_loss`` and ``moved``, the root
    mean square of G(z) - z over that of z: 0 for the identity.

    Args:
        network: gives ``features(images)`` (N, A) and has ``head``, a Linear from A to C.
        scale: $\alpha$; 1e-4 in the paper's code, at which G hardly moves.
        consistency: $w_1$, of a divergence in nats.
        distance: $w_2$; $|G(z) - z|^2$ is a mean over features.
        kl: $w_3$, of a divergence in nats.
        latent: of :class:`FeatureGenerator`.
        hidden: likewise.
        generator_lr: the generator's learning rate; None: the recipe's.

    Raises:
        TypeError: for another network.
        ValueError: for settings outside their ranges.
    """

    static = True
    network: Network

    def __init__(
        self,
        network: nn.Module,
        scale: float = 1.0,
        consistency: float = 0.01,
        distance: float = 0.1,
        kl: float = 0.1,
        latent: int = 8,
        hidden: int = 64,
        generator_lr: float | None = None,
    ) -> None:
        given = {"scale": scale, "consistency": consistency, "distance": distance, "kl": kl}
        weights = {name: check_number(name, weight, 0) for name, weight in given.items()}
        latent, hidden = check_count("latent", latent), check_count("hidden", hidden)
        lr = _checked_lr("generator_lr", generator_lr)
        super().__init__(network, **weights, latent=latent, hidden=hidden, generator_lr=lr)
        self.scale, self.consistency, self.distance, self.kl = weights.values()
        self.generator_lr = lr
        self.generator = FeatureGenerator(linear_head(network).in_features, latent, hidden)

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch in nats."""
        head, features = self.network.head, self.network.features(images)
        z = features.detach()

        def draw(n: int) -> Tensor:
            return torch.randn(n, self.generator.latent, generator=step.generator, device=z.device)

        moved, mean, log_variance = self.generator(z, step.share(len(z), draw).to(z.dtype))
        logits = at_least_float32(head(features))
        augmented = cross_entropy(head(reverse_gradient(moved, self.scale)), target)
        constant = None if head.bias is None else head.bias.detach()
        said = at_least_float32(F.linear(moved, head.weight.detach(), constant)).log_softmax(1)
        known = logits.detach().log_softmax(1)
        sure = (known.amax(1) > math.log(0.5)).to(known.dtype)
        divergence = (sure * (said.exp() * (said - known)).sum(1)).mean()
        offset = at_least_float32(moved - z)
        loss = F.cross_entropy(logits, target) + augmented + self.consistency * divergence
        loss = loss + self.distance * offset.square().mean() + self.kl * kl_standard_normal(mean, log_variance).mean()
        size = (offset.detach().square().mean() / at_least_float32(z).square().mean().clamp_min(1e-12)).sqrt()
        return loss, {"augmented_loss": augmented.detach(), "moved": size}

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """The network, and the generator of features."""
        return grouped((self.network, None), (self.generator, self.generator_lr))


def _checked_lr(name: str, lr: float | None) -> float | None:
    return None if lr is None else check_number(name, lr, 0, without=(0,))


class FixedAugmentation(Objective):
    """What the learned ones are compared with: cross-entropy of images under DiffAugment's $T$, which learns nothing.

    What leaves [0, 1] is cut, as a camera does. Cutout's windows are grey, as where $T$ comes from. Only in training;
    predict leaves images alone.

    Args:
        network: images to logits.
        policy: of :class:`DiffAugment`, at its defaults.

    Raises:
        ValueError: for another policy.
    """

    def __init__(self, network: nn.Module, policy: str = "color,translation,cutout") -> None:
        augment = DiffAugment(policy)
        super().__init__(network, policy=augment.policy)
        self.augment = augment

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy, mean over the batch, in nats."""
        whole = images[:1].expand(len(images) * step.world, -1, -1, -1)  # draws are those of the global batch
        own = slice(step.rank * len(images), (step.rank + 1) * len(images))
        drawn = self.augment.draw(whole, step.generator)
        draws = Draws(*(None if each is None else each[own] for each in drawn))
        changed = (self.augment.apply_draws(2 * images - 1, draws) + 1) / 2
        return cross_entropy(self.network(changed.clamp(0, 1)), target), {}


class ImageAugmentation(nn.Module):
    r"""The network of (3): of noise, an affine map and a colour change of every image; the identity at first.

    Pixels are looked up at $(I + \mathrm{reach}\tanh A)(v, u, 1)^\top$; by channel $x$ becomes the triangle wave of
    $(1 + \mathrm{reach} \tanh a) x + \mathrm{reach} \tanh b$. No parameter depends on the image.
    """

    def __init__(self, channels: int, noise: int = 16, hidden: int = 64, reach: float = 0.5) -> None:
        super().__init__()
        self.channels, self.noise, self.reach = channels, noise, reach
        self.layers = nn.Sequential(nn.Linear(noise, hidden), nn.ReLU(), nn.Linear(hidden, 6 + 2 * channels))
        for parameter in self.layers[2].parameters():
            nn.init.zeros_(parameter)

    def forward(
        self, images: Float[Tensor, "N channels H W"], noise: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N channels H W"]:
        """Images in [0, 1], changed, in [0, 1]; zeros outside."""
        affine, factor, offset = (self.reach * self.layers(noise).tanh()).split((6, self.channels, self.channels), 1)
        identity = torch.eye(2, 3, dtype=images.dtype, device=images.device)
        grid = F.affine_grid(identity + affine.view(-1, 2, 3), list(images.shape), align_corners=False)
        moved = F.grid_sample(images, grid, align_corners=False)
        return triangle_wave((1 + factor[:, :, None, None]) * moved + offset[:, :, None, None])


class TeachAugment(Objective):
    r"""Student, teacher and the network of augmentation of (3), in one loop.

    The student learns at every step from augmented images, through which no gradient passes. At every so many-th step
    the augmentation learns by (3): student and teacher are constant there, in evaluation mode, so that their BatchNorm
    is neither of the batch nor moved by it. Both learn from the same batch, by the optimiser of the recipe. Logs
    ``augmentation_loss`` (0 where it was not trained) and ``moved``, the root mean square change of a pixel: 0 for the
    identity.

    Args:
        network: the student, images to logits.
        image_shape: (channels, H, W).
        every: steps of the student for one of the augmentation; 5 in the paper.
        ema: the teacher's momentum; its BatchNorm has the student's running statistics.
        noise: numbers that the augmentation of an image is drawn from.
        hidden: width of :class:`ImageAugmentation`.
        reach: how far it can go, in (0, 1).
        augmentation_lr: its learning rate, 1e-3 in the paper, by Adam; None: the recipe's.

    Raises:
        ValueError: for settings outside their ranges.
    """

    steps: Tensor

    def __init__(
        self,
        network: nn.Module,
        image_shape: tuple[int, int, int],
        every: int = 5,
        ema: float = 0.999,
        noise: int = 16,
        hidden: int = 64,
        reach: float = 0.5,
        augmentation_lr: float | None = None,
    ) -> None:
        every, noise, hidden = check_count("every", every), check_count("noise", noise), check_count("hidden", hidden)
        ema, reach = check_number("ema", ema, 0, 1, without=(1,)), check_number("reach", reach, 0, 1, without=(0, 1))
        lr = _checked_lr("augmentation_lr", augmentation_lr)
        super().__init__(network, every=every, ema=ema, noise=noise, hidden=hidden, reach=reach, augmentation_lr=lr)
        self.every, self.ema, self.augmentation_lr = every, ema, lr
        self.teacher = copy.deepcopy(network).requires_grad_(False)
        self.augmentation = ImageAugmentation(image_shape[0], noise, hidden, reach)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @classmethod
    def build(cls, network: nn.Module, dataset: Data, **settings: Setting) -> TeachAugment:
        """The objective for the image shape of a data set."""
        return cls(network, dataset.image_shape, **settings)  # type: ignore[arg-type]  # checked at construction

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The student's loss and, where it is its turn, the augmentation's, in nats; target: class numbers.

        Raises:
            ValueError: for soft targets, and in a data-parallel run with ``every`` above 1: all parameters have to take
                part in every step.
        """
        require(target.ndim == 1, "target", tuple(target.shape), "class numbers (N,)")
        require(self.every == 1 or step.world == 1, "every", self.every, "1 in a data-parallel run")

        def draw(n: int) -> Tensor:
            return torch.randn(n, self.augmentation.noise, generator=step.generator, device=images.device)

        images = images.to(next(self.augmentation.parameters()).dtype)
        noise = step.share(len(images), draw).to(images.dtype)
        turn = int(self.steps) % self.every == self.every - 1
        with torch.set_grad_enabled(turn and torch.is_grad_enabled()):
            changed = self.augmentation(images, noise)
        loss = cross_entropy(self.network(changed.detach()), target)
        fooling = self.against(changed, target) if turn else torch.zeros_like(loss)
        moved = (changed.detach() - images).square().mean().sqrt()
        return loss + fooling, {"augmentation_loss": fooling.detach(), "moved": moved}

    def against(self, changed: Tensor, target: Tensor) -> Float[Tensor, ""]:
        """(3) of changed images: to them alone its gradient goes."""
        student = {name: value.detach() for name, value in self.network.state_dict(keep_vars=True).items()}
        with evaluating(self.network), evaluating(self.teacher):
            logits = at_least_float32(functional_call(self.network, student, (changed,)))
            teacher = cross_entropy(self.teacher(changed), target)
        return nonsaturating(logits, target) + teacher

    def after_step(self, step: Step) -> None:
        """The teacher moves on."""
        self.steps.add_(1)
        follow(self.teacher, self.network, 1 - self.ema)

    def parameter_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """The student, and the network of augmentation."""
        return grouped((self.network, None), (self.augmentation, self.augmentation_lr))


def nonsaturating(logits: Float[Tensor, "N C"], target: Int64[Tensor, " N"]) -> Float[Tensor, ""]:
    r"""$-\log(1 - p_y + 10^{-12})$, mean: the student's part of (3), with a slope also where $p_y$ is near 1.

    Args:
        logits: (N, C), finite.
        target: class numbers, (N,) int64.

    Raises:
        ValueError: for logits that are not finite.
    """
    check_finite("logits", logits)
    others = logits.scatter(1, target[:, None], -math.inf).logsumexp(1) - logits.logsumexp(1)  # log(1 - p_y)
    return -torch.logaddexp(others, torch.full_like(others, math.log(1e-12))).mean()
