r"""DiffAugment: one random, differentiable transformation of all that a discriminator sees, real and generated.

A discriminator that sees the same few images at every step learns them by heart. Augmenting the real images alone moves
the target: the generator then learns to draw augmented images. DiffAugment puts the same random $T$ on both sides, and
the generator learns through it, by $\partial T(x) / \partial x$:

$$L_D = \mathbb E\, f(-D(T(x))) + \mathbb E\, f(D(T(G(z)))), \qquad L_G = \mathbb E\, g(-D(T(G(z)))). \tag{1}$$

Nothing in $T$ is learned. Each image has its own draws. Colour: brightness $b \sim U[-.5, .5]$ is added, saturation
$s \sim U[0, 2]$ scales around the pixel's mean $m$ over channels, contrast $c \sim U[.5, 1.5]$ around the mean $M$ over
channels and pixels. Brightness changes both means by $b$, saturation neither, so the three passes are one:

$$y = c\,s\,x + c\,(1 - s)\,m + (1 - c)\,M + b. \tag{2}$$

But for $b$ this is linear in $x$, and symmetric: identity and averages are. So the gradient is (2) of the gradient.

Translation: whole pixels up to an eighth of the side, zeros outside; cutout: a window of half the sides, set to 0:

$$y_{ij} = w_{ij}\, x_{i + d_y,\, j + d_x}. \tag{3}$$

Every pixel comes from one place or from none: a gather, and its transpose is the gather of the way back. The policy
string gives the order of the operations, as in the released code: colour after cutout fills the window.

ADA (:func:`ada_step`) applies each transformation with a probability that follows how sure the discriminator is of the
images it is trained on.

* Zhao, Liu, Lin, Zhu, Han, "Differentiable Augmentation for Data-Efficient GAN Training", NeurIPS 2020,
  https://arxiv.org/abs/2006.10738; ranges as in the released code (mit-han-lab/data-efficient-gans)
* Karras, Aittala, Hellsten, Laine, Lehtinen, Aila, "Training Generative Adversarial Networks with Limited Data",
  NeurIPS 2020, https://arxiv.org/abs/2006.06676
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semaug._checks import (
    NotFiniteError,
    check_count,
    check_finite,
    check_floats,
    check_images,
    check_number,
    check_one_each,
    require,
)
from semaug.core.pixels import cutout
from semaug.core.tensors import at_least_float32, tracing

OPERATIONS = ("color", "translation", "cutout")

FAR = 10.0

"""Images are in [0, 1] or [-1, 1], augmented ones a little outside; a value beyond this is a byte that was not scaled.
"""

Images = Float[Tensor, "N channels H W"]


def color(
    images: Images, brightness: Float[Tensor, " N"], saturation: Float[Tensor, " N"], contrast: Float[Tensor, " N"]
) -> Images:
    """Brightness, saturation and contrast of each image by (2), computed in float32 at least.

    The gradient of the sum over an image is 1 everywhere.

    Args:
        images: (N, channels, H, W), floats; any number of channels.
        brightness: $b$, added, in the unit of the pixels; 0 changes nothing.
        saturation: $s$, a factor; 1 changes nothing.
        contrast: $c$, a factor; 1 changes nothing.

    Returns:
        The images in their dtype, differentiable in all arguments, twice and more.

    Raises:
        TypeError: for images that are no floats.
        ValueError: for images that are not (N, channels, H, W), and draws that are not floats (N,).
    """
    _check(images, brightness=brightness, saturation=saturation, contrast=contrast)
    wide = at_least_float32(images)
    b, s, c = (draw.to(wide.dtype)[:, None, None, None] for draw in (brightness, saturation, contrast))
    changed = _Color.forward if any(draw.requires_grad for draw in (b, s, c)) else _Color.apply
    return changed(wide, b, s, c).to(images.dtype)


def translation(images: Images, dy: Int64[Tensor, " N"], dx: Int64[Tensor, " N"]) -> Images:
    r"""(3) without a window: $y_{ij} = x_{i + d_y, j + d_x}$, zero outside.

    Args:
        images: (N, channels, H, W), floats.
        dy: pixels, one number an image; above 0 the image moves up.
        dx: likewise; above 0 it moves left.

    Returns:
        The images, differentiable twice and more.

    Raises:
        TypeError: for images that are no floats.
        ValueError: for images that are not (N, channels, H, W), shifts that are not int64 (N,), and one by the whole
            side or more, which leaves nothing, or values that are not finite (where values may be looked at).
    """
    _check(images, dy=dy, dx=dx)
    check_finite("images", images)
    for name, shift, side in (("dy", dy, images.shape[2]), ("dx", dx, images.shape[3])):
        if len(shift) and not tracing(images):
            require((largest := int(shift.abs().max())) < side, name, largest, f"pixels below the side, {side}")
    rows, columns = _window(None, 0, dy, images.shape[2]), _window(None, 0, dx, images.shape[3])
    return _Gather.apply(images, dy, dx, rows, columns)


class Draws(NamedTuple):
    """What one call of :class:`DiffAugment` draws, one an image; None where the policy does not ask for it."""

    brightness: Float[Tensor, " N"] | None = None
    saturation: Float[Tensor, " N"] | None = None
    contrast: Float[Tensor, " N"] | None = None
    dy: Int64[Tensor, " N"] | None = None
    dx: Int64[Tensor, " N"] | None = None
    cy: Int64[Tensor, " N"] | None = None
    cx: Int64[Tensor, " N"] | None = None


class DiffAugment(nn.Module):
    r"""The transformation $T$ of (1): draws for every image, and applies them. It has no parameters.

    The defaults are the released ones, for images in [-1, 1].

    Args:
        policy: any of "color", "translation" and "cutout", joined by commas; drawn and applied in this order.
        brightness: $h$ of $b \sim U[-h, h]$.
        saturation: $h$ of $s \sim U[1 - h, 1 + h]$.
        contrast: $h$ of $c \sim U[1 - h, 1 + h]$.
        translation: the largest shift in sides of the image, rounded.
        cutout: the window in sides of the image, rounded; its middle is anywhere in the image.
        probability: with which each operation is applied to an image: a buffer, which ADA moves. None: always; then
            there is no buffer that could be moved.

    Raises:
        ValueError: for a policy that is empty, unknown or names one twice, and a magnitude that erases the image.
    """

    probability: Tensor | None

    def __init__(
        self,
        policy: str = "color,translation,cutout",
        *,
        brightness: float = 0.5,
        saturation: float = 1.0,
        contrast: float = 0.5,
        translation: float = 0.125,
        cutout: float = 0.5,
        probability: float | None = None,
    ) -> None:
        super().__init__()
        self.names = tuple(name.strip() for name in policy.split(",")) if isinstance(policy, str) else ()
        known = 0 < len(self.names) == len(set(self.names) & set(OPERATIONS))
        require(known, "policy", policy, f"one or more of {', '.join(OPERATIONS)}, each once, joined by commas")
        self.policy = ",".join(self.names)
        self.brightness = check_number("brightness", brightness, 0, 1)
        self.saturation = check_number("saturation", saturation, 0, 1)
        self.contrast = check_number("contrast", contrast, 0, 1, without=(1,))
        self.translation = check_number("translation", translation, 0, 1, without=(0, 1))
        self.cutout = check_number("cutout", cutout, 0, 1, without=(0, 1))
        rate = None if probability is None else check_number("probability", probability, 0, 1)
        self.register_buffer("probability", None if rate is None else torch.tensor(rate, dtype=torch.float64))
        self._looked = False

    def forward(self, images: Images, generator: torch.Generator) -> Images:
        """Every image under draws of its own.

        Args:
            images: (N, channels, H, W), floats in [0, 1] or [-1, 1].
            generator: on the images' device.

        Raises:
            TypeError: for images that are no floats.
            ValueError: for images of another shape, or with values far outside [-1, 1]. On a GPU no batch is looked at
                after the first good one, because a look waits for the device.
        """
        return self.apply_draws(images, self.draw(images, generator))

    def draw(self, images: Images, generator: torch.Generator) -> Draws:
        """Draws for a batch of this shape, to be applied to more than one: an image and its pair move alike.

        For a pair whose colours stay, as a mask: ``draws._replace(brightness=None)``.
        """
        _check(images)
        (n, _, height, width), device, draws = images.shape, generator.device, Draws()

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=generator, device=device)

        def whole(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (n,), generator=generator, device=device)

        for name in self.names:
            if name == "color":
                draws = draws._replace(
                    brightness=uniform(-self.brightness, self.brightness),
                    saturation=uniform(1 - self.saturation, 1 + self.saturation),
                    contrast=uniform(1 - self.contrast, 1 + self.contrast),
                )
            elif name == "translation":
                down, right = (_pixels(name, self.translation, side) for side in (height, width))
                draws = draws._replace(dy=whole(-down, down), dx=whole(-right, right))
            else:  # the middle of an even window may lie on the far edge, so that it is cut alike
                tall, wide = (_pixels(name, self.cutout, side) for side in (height, width))
                draws = draws._replace(cy=whole(0, height - tall % 2), cx=whole(0, width - wide % 2))
        return draws if self.probability is None else self._thinned(draws, self.probability, images, generator)

    def apply_draws(self, images: Images, draws: Draws) -> Images:
        """The operations of the policy in its order; one that lacks a draw is left out. Raises what a call raises."""
        _check(images, **{name: draw for name, draw in draws._asdict().items() if draw is not None})
        self._look(images)
        fields = {"color": draws[:3], "translation": draws[3:5], "cutout": draws[5:]}
        given = {name: [draw for draw in fields[name] if draw is not None] for name in self.names}
        steps = [name for name in self.names if len(given[name]) == len(fields[name])]
        height, width = images.shape[2:]
        tall, wide = (_pixels("cutout", self.cutout, side) if "cutout" in steps else 0 for side in (height, width))
        fused = "translation,cutout" in ",".join(steps)  # (3) in one gather
        for name in steps:
            if name == "color":
                images = color(images, *given[name])
            elif name == "translation":
                (dy, dx), (cy, cx) = given[name], given["cutout"] if fused else (None, None)
                rows, columns = _window(cy, tall, dy, height), _window(cx, wide, dx, width)
                images = _Gather.apply(images, dy, dx, rows, columns)
            elif not fused:
                cy, cx = given[name]
                images = cutout(images, cy, cx, (tall, wide))
        return images

    def _look(self, images: Tensor) -> None:
        if images.numel() and not tracing(images) and not (self._looked and images.is_cuda):
            low, high = (float(end) for end in images.detach().aminmax())
            largest = max(-low, high)
            if not largest <= FAR:  # NaN compares false
                error = ValueError if math.isfinite(largest) else NotFiniteError
                raise error(f"images: got values up to {largest:.4g} in size; takes [0, 1] or [-1, 1]")
            self._looked = True

    @staticmethod
    def _thinned(draws: Draws, probability: Tensor, images: Tensor, generator: torch.Generator) -> Draws:
        """Draws that change nothing where an operation is not applied: an image's operations independently."""
        height, width = images.shape[2:]
        nothing = {"brightness": 0.0, "saturation": 1.0, "contrast": 1.0, "dy": 0, "dx": 0, "cy": -height, "cx": -width}
        thinned: dict[str, Tensor] = {}
        for operation in (("brightness",), ("saturation",), ("contrast",), ("dy", "dx"), ("cy", "cx")):
            if (first := getattr(draws, operation[0])) is not None:
                chosen = torch.rand(len(first), generator=generator, device=first.device) < probability
                thinned |= {name: torch.where(chosen, getattr(draws, name), nothing[name]) for name in operation}
        return draws._replace(**thinned)

    def extra_repr(self) -> str:
        """The policy."""
        return self.policy


def ada_step(
    probability: float | Float[Tensor, ""],
    real_logits: Float[Tensor, " N"],
    images: int,
    target: float = 0.6,
    span: float = 500_000,
) -> Float[Tensor, ""]:
    r"""ADA's next probability: $p \leftarrow p + \mathrm{sign}(\mathbb E\,\mathrm{sign}\,D(x) - t)\, n / S$, in [0, 1].

    The released code does not stop at 1: a probability of 1.3 acts like 1, and takes as long again to come down.

    Args:
        probability: $p$, in [0, 1].
        real_logits: of the training images since the last step, (N,).
        images: $n$, shown since then (the batch times 4 in the paper's training).
        target: $t$; the mean sign is 1 where the discriminator accepts every training image, 0 where half of them.
        span: $S$, images in which $p$ can go from 0 to 1.

    Returns:
        The probability, float64.

    Raises:
        ValueError: for a probability outside [0, 1], no logits or ones that are NaN, a target that is not finite, and
            numbers of images below 1.
    """
    p = torch.as_tensor(probability, dtype=torch.float64)
    check_number("probability", float(p), 0, 1)
    require(real_logits.numel() > 0, "real_logits", tuple(real_logits.shape), "one at least")
    require(not bool(real_logits.isnan().any()), "real_logits", math.nan, "numbers", NotFiniteError)
    images, target, span = check_count("images", images), check_number("target", target), check_number("span", span, 1)
    sure = real_logits.detach().sign().double().mean()
    return (p + (sure - target).sign().to(p.device) * images / span).clamp(0, 1)


class _Color(torch.autograd.Function):
    """(2), whose gradient is (2) without $b$: saves two numbers an image, where autograd would add up three images."""

    @staticmethod
    def forward(images: Tensor, b: Tensor, s: Tensor, c: Tensor) -> Tensor:
        m = images.mean(1, keepdim=True)
        M = m.mean((2, 3), keepdim=True)
        return torch.addcmul(c * (1 - s) * m + ((1 - c) * M + b), c * s, images)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        b, s, c = ctx.saved_tensors
        return _Color.apply(gradient, torch.zeros_like(b), s, c), None, None, None


class _Gather(torch.autograd.Function):
    """(3) and its transpose, the way back. Autograd's scatters: slow on a CPU, and on a GPU in no fixed order."""

    @staticmethod
    def forward(images: Tensor, dy: Tensor, dx: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """One gather; rows (N, H), columns (N, W): True in the window, where both are.

        What depends on one axis is computed of it alone: the pixels' numbers and $w$ are sums of two products, and a
        factor $w$ is three times as fast on a CPU as filling by a mask.
        """
        channels, height, width = images.shape[1:]
        (y, below), (x, beside) = _sources(dy, height), _sources(dx, width)
        index = (width * y)[:, :, None] + x[:, None, :]
        down, right = below.to(images.dtype)[:, :, None], beside.to(images.dtype)[:, None, :]
        w = torch.addcmul(down * right, down * rows[:, :, None], right * columns[:, None, :], value=-1)
        taken = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, channels, -1))
        return taken.view_as(images).mul_(w[:, None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        dy, dx, rows, columns = ctx.saved_tensors
        back = _moved_window(rows, -dy), _moved_window(columns, -dx)
        return _Gather.apply(gradient, -dy, -dx, *back), None, None, None, None


def _sources(shift: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(N, side): the place on an axis that each shows, and whether it lies inside (else of one inside)."""
    place = torch.arange(side, device=shift.device) + shift[:, None]
    return place.clamp(0, side - 1), (place >= 0) & (place < side)


def _window(centre: Tensor | None, length: int, shift: Tensor, side: int) -> Tensor:
    """(N, side): the places of cutout's window on an axis, as ``core.pixels.cutout`` has it; without a centre none."""
    if centre is None:
        return torch.zeros(len(shift), side, dtype=torch.bool, device=shift.device)
    place, first = torch.arange(side, device=shift.device), (centre - length // 2)[:, None]
    return (place >= first) & (place < first + length)


def _moved_window(window: Tensor, shift: Tensor) -> Tensor:
    """The window's places on an axis (N, side) as seen from the image that was moved."""
    place, inside = _sources(shift, window.shape[1])
    return window.gather(1, place) & inside


def _pixels(name: str, fraction: float, side: int) -> int:
    """A fraction of a side in whole pixels, as released; raises ValueError for the whole of it."""
    pixels = int(side * fraction + 0.5)
    require(pixels < side, name, fraction, f"less than all of the {side} pixels, which would erase the image")
    return pixels


def _check(images: Tensor, **draws: Tensor) -> None:
    """Shapes and dtypes alone; raises TypeError and ValueError naming the argument."""
    check_floats(images)
    check_images(images)
    for name, draw in draws.items():
        check_one_each(images, torch.int64 if name in ("dy", "dx", "cy", "cx") else None, **{name: draw})
