r"""G-VAE: a variational autoencoder that learns from ISDA's loss which directions keep the class.

An encoder gives every image a Gaussian $q(z|x) = \mathcal N(\mu(x), \mathrm{diag}\,\sigma^2(x))$ over K latent
coordinates, a decoder every code $z = \mu + \sigma\varepsilon$, $\varepsilon \sim \mathcal N(0, I)$, the mean image
$m(z)$ of $p(x|z) = \mathcal N(m(z), s^2 I)$. With the prior $p(z) = \mathcal N(0, I)$ the evidence lower bound is

$$\log p(x) = \mathrm{KL}(q(z|x)\,\|\,p(z|x)) + \mathbb E_q \log\frac{p(x, z)}{q(z|x)}
  \ge \mathbb E_q \log p(x|z) - \mathrm{KL}(q(z|x)\,\|\,p(z)), \tag{1}$$
$$-\log p(x|z) = \frac{|x - m(z)|^2}{2 s^2} + \frac D2 \log 2\pi s^2, \tag{2}$$

with D numbers in an image. A loss $c_{KL}\,\mathrm{KL} + c_{img} |x - m|^2$ is $-c_{KL}$ times the bound (1), up to a
constant, with

$$s^2 = \frac{c_{KL}}{2 c_{img}}: \tag{3}$$

the two weights are one number, the standard deviation s of the decoder, in units of the pixels' range [0, 1]. A Laplace
decoder of the same standard deviation has $-\log p(x|z) = |x - m|_1 / b + D \log 2b$, $b = s / \sqrt2$: the L1 loss.

G-VAE adds a linear classifier of codes under the posterior, bounded as in ISDA ($\lambda = 1$, ``core.gaussian``):

$$\mathcal L_{class} = \log\sum_j \exp\Bigl[(w_j - w_y)^\top\mu + b_j - b_y
  + \tfrac12 \bigl((w_j - w_y)^2\bigr)^\top\sigma^2\Bigr], \qquad
  \mathcal L = \mathrm{KL} - \mathbb E_q \log p(x|z) + c\,\mathcal L_{class}. \tag{4}$$

A large $\sigma_k$ then costs little only where all $w_{jk}$ agree: along the directions of large variance the class
stays, and $m(\mu \pm \lambda\sigma)$ is an augmented image. All terms are in nats per image; $c$ has no unit.
With ``balance="learned"`` s and $c = \tau^{-2}$ are trained beside the rest, $c\,\mathcal L_{class}$ being
$\tau^{-2} \mathcal L_{class} + \log\tau$ (A. Kendall, Y. Gal, R. Cipolla, "Multi-task learning using uncertainty to
weigh losses", CVPR 2018, arXiv:1705.07115); for s that is its maximum likelihood.

Wu Tianyang, "ML algorithm exploration", 2023, code: https://github.com/wty-yy/KataCV. VAE: D. P. Kingma, M. Welling,
ICLR 2014, arXiv:1312.6114; conditional VAE: K. Sohn, H. Lee, X. Yan, NeurIPS 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semaug._checks import check_choice, check_count, check_features, check_finite, check_number, check_within
from semaug.core.gaussian import gaussian_cross_entropy, kl_standard_normal
from semaug.core.tensors import at_least_float32, tracing
from semaug.networks import BasicBlock, Normalise, convolution, normalisation
from semaug.training.objective import Objective, Step

BOUND = 12.0  # of |log sigma^2|: sigma from 0.0025 to 403

STRIDE = 0.5  # of a traversal, in standard deviations

Images = Float[Tensor, "N channels H W"]

Codes = Float[Tensor, "N K"]

Labels = Int64[Tensor, " N"]


class AutoEncoder(nn.Module):
    """Encoder, mirrored decoder, and a linear classifier of codes, ``head``.

    After a 3x3 convolution to ``width`` channels each stage halves the sides (4x4 convolution, stride 2), doubles the
    channels and ends in residual blocks; the decoder has the same backwards, and is linear in its last maps. A linear
    layer reads the maps of the last stage whole, and another makes them, without a mean over the pixels: a code keeps
    where things are. (The author's has that mean, Mish for ReLU and bottleneck blocks.)

    Args:
        num_classes: C.
        channels: of the images.
        size: (H, W), in pixels.
        latent: K.
        width: channels before the first stage.
        blocks: residual blocks of each stage, 0 for the convolution alone; None: one each, and as many stages as halve
            both sides and leave at least 4 pixels.
        norm: "batch" or "group".

    Raises:
        ValueError: for counts below 1 (of blocks below 0), another norm, and sides that the stages do not divide.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        latent: int = 16,
        width: int = 8,
        blocks: Sequence[int] | None = None,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        num_classes, channels = check_count("num_classes", num_classes), check_count("channels", channels)
        latent, width = check_count("latent", latent), check_count("width", width)
        chosen = [1] * _halvings(size) if blocks is None else [check_count("blocks", count, 0) for count in blocks]
        factor = 2 ** len(chosen)
        if not chosen:
            raise ValueError(f"size: got {size}; takes (H, W), both even and from 8, for a stage to halve")
        if any(side < factor or side % factor for side in size):
            raise ValueError(f"size: got {size} for {len(chosen)} stages; takes (H, W), both multiples of {factor}")
        self.image_shape, self.latent, self.num_classes = (channels, *size), latent, num_classes
        widths = [width * 2**i for i in range(len(chosen) + 1)]
        last = (widths[-1], size[0] // factor, size[1] // factor)
        down: list[nn.Module] = [convolution(channels, width, 3), normalisation(width, norm), nn.ReLU()]
        up: list[nn.Module] = [nn.Conv2d(width, channels, 3, padding=1)]
        for count, narrow, wide in zip(chosen, widths, widths[1:], strict=False):
            residual = [[BasicBlock(wide, wide, 1, "project", norm) for _ in range(count)] for _ in range(2)]
            fewer = nn.Conv2d(narrow, wide, 4, 2, 1, bias=False)
            more = nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)
            down += [fewer, normalisation(wide, norm), nn.ReLU(), *residual[0]]
            up = [*residual[1], more, normalisation(narrow, norm), nn.ReLU(), *up]
        self.encoder = nn.Sequential(Normalise(channels), *down, nn.Flatten(), nn.Linear(math.prod(last), 2 * latent))
        self.expand = nn.Linear(latent, math.prod(last))
        self.decoder = nn.Sequential(nn.Unflatten(1, last), *up)
        self.head = nn.Linear(latent, num_classes)
        stages = "" if blocks is None else f", blocks={'-'.join(map(str, chosen))}"
        self.name = f"autoencoder(latent={latent}, width={width}{stages}{'' if norm == 'batch' else f', norm={norm}'})"

    def forward(self, images: Images) -> Float[Tensor, "N C"]:
        """Logits of the classifier at the mean code."""
        return self.head(self.encoder(images)[:, : self.latent])


def _halvings(size: tuple[int, int]) -> int:
    """How often both sides can be halved and leave at least 4."""
    count = 0
    while all(side % 2 ** (count + 1) == 0 and side >= 4 * 2 ** (count + 1) for side in size):
        count += 1
    return count


class GVAE(Objective):
    """The loss (4).

    Logs ``reconstruction`` (2), ``kl``, both of (1), and ``class_loss``, in nats an image, and what is learned of the
    balance. The images of a data set that is trained with CrossEntropy go in as they are.

    Args:
        network: an :class:`AutoEncoder`.
        deviation: s of (2), in units of the range [0, 1]; where it starts with ``balance="learned"``.
        class_weight: c of (4), without a unit; likewise.
        reconstruction: "l2" (Gaussian decoder) or "l1" (Laplace).
        balance: "fixed" or "learned".

    Raises:
        TypeError: for another network.
        ValueError: for weights that are not above 0 and unknown choices.
    """

    supervised = True
    """Whether the class term reaches the encoder."""

    network: AutoEncoder

    def __init__(
        self,
        network: nn.Module,
        deviation: float = 0.5,
        class_weight: float = 10.0,
        reconstruction: Literal["l2", "l1"] = "l2",
        balance: Literal["fixed", "learned"] = "fixed",
    ) -> None:
        if not isinstance(network, AutoEncoder):
            raise TypeError(f"network: got a {type(network).__name__}; takes an AutoEncoder")
        deviation = check_number("deviation", deviation, 0, without=(0,))
        class_weight = check_number("class_weight", class_weight, 0, without=(0,))
        check_choice("reconstruction", reconstruction, ("l2", "l1"))
        check_choice("balance", balance, ("fixed", "learned"))
        super().__init__(network, deviation=deviation, reconstruction=reconstruction, balance=balance)
        self.settings |= {"class_weight": class_weight} if self.supervised else {}
        self.reconstruction, self.balance = reconstruction, balance
        log_deviation, log_temperature = torch.tensor(deviation).log(), -0.5 * torch.tensor(class_weight).log()
        if balance == "learned":
            self.log_deviation = nn.Parameter(log_deviation)
            if self.supervised:
                self.log_temperature = nn.Parameter(log_temperature)
        else:
            self.register_buffer("log_deviation", log_deviation, persistent=False)
        if balance == "fixed" or not self.supervised:
            self.register_buffer("log_temperature", log_temperature, persistent=False)

    # -- training ------------------------------------------------------------------------------------------------------

    def forward(self, images: Tensor, target: Tensor, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (4) of a batch in nats an image, one draw of z each; raises what :meth:`encode` raises.

        Raises:
            TypeError: for targets that are not class numbers.
        """
        return self.losses(images, target, *self.encode(images), step)

    def losses(
        self, images: Tensor, target: Tensor, mean: Tensor, log_variance: Tensor, step: Step
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (4) and its terms where the batch is encoded already."""
        codes = mean + (0.5 * log_variance).exp() * self.noise(mean, step)
        reconstruction = self.surprise(images, self.decoded(codes, target)).mean()
        kl = kl_standard_normal(mean, log_variance).mean()
        seen = (mean, log_variance) if self.supervised else (mean.detach(), log_variance.detach())
        class_loss = gaussian_cross_entropy(*seen, target, self.network.head.weight, self.network.head.bias)
        loss = kl + reconstruction + (-2 * self.log_temperature).exp() * class_loss
        terms = {"reconstruction": reconstruction.detach(), "kl": kl.detach(), "class_loss": class_loss.detach()}
        if self.balance == "learned":
            terms["deviation"] = self.log_deviation.detach().exp()
            if self.supervised:
                loss = loss + self.log_temperature
                terms["class_weight"] = (-2 * self.log_temperature.detach()).exp()
        return loss, terms

    def noise(self, mean: Codes, step: Step) -> Codes:
        """The draw of epsilon for this step, for the global batch."""

        def draw(count: int) -> Tensor:
            return torch.randn(count, mean.shape[1], generator=step.generator, device=mean.device)

        return step.share(len(mean), draw).to(mean.dtype)

    def surprise(self, images: Images, decoded: Images) -> Float[Tensor, " N"]:
        r"""$-\log p(x|z)$ of (2) in nats an image, of the Gaussian or the Laplace decoder."""
        difference = (at_least_float32(decoded) - images).flatten(1) * (-self.log_deviation).exp()
        if self.reconstruction == "l2":
            return (0.5 * difference.square() + 0.5 * math.log(2 * math.pi) + self.log_deviation).sum(1)
        return (math.sqrt(2) * difference.abs() + 0.5 * math.log(2) + self.log_deviation).sum(1)

    # -- codes and images ----------------------------------------------------------------------------------------------

    def encode(self, images: Images) -> tuple[Codes, Codes]:
        r"""Mean and log variance of q(z|x), (N, K) each, float32 at least.

        $\log\sigma^2 = r / (1 + |r| / 12)$ of the network's output r: finite for any r, and never without a gradient.

        Raises:
            ValueError: for images of another shape than the network's, or with values outside [0, 1].
        """
        if tuple(images.shape[1:]) != self.network.image_shape:
            raise ValueError(f"images: got shape {tuple(images.shape)}; takes (N, *{self.network.image_shape})")
        if not tracing(images):
            check_within("images", images)
        mean, raw = at_least_float32(self.network.encoder(images)).chunk(2, 1)
        return mean, raw / (1 + raw.abs() / BOUND)

    def decode(self, codes: Codes, target: Labels | None = None) -> Images:
        """The mean images m(z), cut to [0, 1].

        Args:
            codes: (N, K).
            target: the class of each, which only :class:`ConditionalVAE` looks at.

        Raises:
            ValueError: for codes that are not (N, K) or not finite.
        """
        if codes.ndim != 2 or codes.shape[1] != self.network.latent:
            raise ValueError(f"codes: got shape {tuple(codes.shape)}; takes (N, {self.network.latent})")
        check_finite("codes", codes)
        return at_least_float32(self.decoded(codes, target)).clamp(0, 1)

    def decoded(self, codes: Codes, target: Labels | None) -> Images:
        """m(z) as the loss takes it: neither checked nor cut."""
        return self.network.decoder(self.network.expand(codes))

    def traverse(
        self, images: Images, steps: int = 6, clip: float = 1.0, target: Labels | None = None
    ) -> Float[Tensor, "N columns channels H W"]:
        r"""Traversals $m(\mu + \tfrac i2 \sigma)$, i = -steps, ..., steps: all kept coordinates moved at once.

        Args:
            images: (N, channels, H, W) in [0, 1].
            steps: half deviations on each side.
            clip: $\lambda_{clip}$ in (0, 1], the fraction of coordinates kept: of the largest sigma, at least one.
            target: as of :meth:`decode`.
        """
        mean, deviation = self.posterior(images)
        return self.along(mean, deviation * kept(deviation, clip), steps, target)

    def along(
        self, mean: Codes, direction: Codes, steps: int, target: Labels | None = None
    ) -> Float[Tensor, "N columns channels H W"]:
        """Traversals: decoded codes mean + i/2 direction, i = -steps, ..., steps, in 2 steps + 1 columns.

        Raises:
            ValueError: for other steps than a whole number from 0 and for a direction of another shape than mean.
        """
        steps = check_count("steps", steps, 0)
        if direction.shape != mean.shape:
            raise ValueError(f"direction: got {tuple(direction.shape)}; takes one for each code, {tuple(mean.shape)}")
        columns = [self.decode(mean + STRIDE * i * direction, target) for i in range(-steps, steps + 1)]
        return torch.stack(columns, 1)

    def interpolate(
        self, first: Images, second: Images, columns: int = 7, target: Labels | None = None
    ) -> Float[Tensor, "N columns channels H W"]:
        """Decoded codes on the line between the mean codes of two images, both ends included.

        Raises:
            ValueError: for columns below 1 and for images of two shapes.
        """
        columns = check_count("columns", columns)
        if first.shape != second.shape:
            raise ValueError(f"second: got {tuple(second.shape)}; takes the shape of first, {tuple(first.shape)}")
        start, end = self.encode(first)[0], self.encode(second)[0]
        fractions = torch.linspace(0, 1, columns).tolist()
        return torch.stack([self.decode(start.lerp(end, fraction), target) for fraction in fractions], 1)

    def posterior(self, images: Images) -> tuple[Codes, Codes]:
        """Mean and standard deviation of q(z|x)."""
        mean, log_variance = self.encode(images)
        return mean, (0.5 * log_variance).exp()


class VAE(GVAE):
    """The bound (1) alone. The same network, whose classifier learns from codes it cannot change: a linear probe."""

    supervised = False

    def __init__(
        self,
        network: nn.Module,
        deviation: float = 0.5,
        reconstruction: Literal["l2", "l1"] = "l2",
        balance: Literal["fixed", "learned"] = "fixed",
    ) -> None:
        super().__init__(network, deviation, 1.0, reconstruction, balance)


class ConditionalVAE(VAE):
    r"""p(x|z, y): the decoder is given the class, and ``decode`` needs its ``target``.

    The class is joined to the code, $[W, U] [z; \mathrm{onehot}(y)] = W z + U_y$. The encoder stays q(z|x): (1) bounds
    log p(x|y) with any q, with q(z|x, y) perhaps more tightly. So one code can be decoded as any class, and a linear
    probe of codes says how much of the class is left in them.
    """

    def __init__(
        self,
        network: nn.Module,
        deviation: float = 0.5,
        reconstruction: Literal["l2", "l1"] = "l2",
        balance: Literal["fixed", "learned"] = "fixed",
    ) -> None:
        super().__init__(network, deviation, reconstruction, balance)
        self.condition = nn.Embedding(self.network.num_classes, self.network.expand.out_features)
        nn.init.zeros_(self.condition.weight)

    def decoded(self, codes: Codes, target: Labels | None) -> Images:
        """m(z, y); raises ValueError or TypeError without a target of classes, one a code."""
        if target is None:
            raise ValueError("target: got None; takes the class of each code, which ConditionalVAE decodes")
        check_features(codes, target, self.network.num_classes, self.network.latent, "codes")
        return self.network.decoder(self.network.expand(codes) + self.condition(target))


def kept(deviation: Codes, clip: float) -> Float[Tensor, "N K"]:
    """1 at the fraction ``clip`` of coordinates with the largest deviation (rounded, at least one), else 0.

    Raises:
        ValueError: for a clip outside (0, 1] and deviations that are not finite.
    """
    check_finite("deviation", deviation)
    count = max(1, round(check_number("clip", clip, 0, 1, without=(0,)) * deviation.shape[1]))
    largest = deviation.argsort(1, descending=True)[:, :count]
    return torch.zeros_like(deviation).scatter_(1, largest, 1.0)
