"""Classifiers in parts, for images of any size: stages, pool and head, so that methods can act between them.

    images in [0, 1] --> Normalise --> stages --> pool --> features (N, A) --> head --> logits (N, C)

Every function takes ``num_classes``, C, and ``channels`` of the images; most take ``norm``, "batch" or "group", and
``mean`` and ``std`` of the pixels, one number or one a channel.

* ResNet: He, Zhang, Ren, Sun, CVPR 2016, https://arxiv.org/abs/1512.03385; for CIFAR its section 4.2
* Wide ResNet: Zagoruyko, Komodakis, BMVC 2016, https://arxiv.org/abs/1605.07146
* ResNeXt: Xie, Girshick, Dollar, Tu, He, CVPR 2017, https://arxiv.org/abs/1611.05431
* Vision Transformer: Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929
* ResNet-9: Page, "How to train your ResNet", 2018-2019, https://myrtle.ai/learn/how-to-train-your-resnet/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from semaug._checks import check_choice, check_count, check_number, require

Levels = float | Sequence[float]


NORMS = ("batch", "group")

SHORTCUTS = ("pad", "pad both", "project")

# Of options; one that has another value stands in the network's name.
DEFAULTS = {"width": 16, "shortcut": "pad", "dropout": 0.0, "norm": "batch", "mean": 0.5, "std": 0.25}


class Network(nn.Module):
    """A classifier in parts: ``stages`` (a ModuleList, the stem first), ``pool``, ``head`` (a Linear).

    Args:
        stages: maps to maps, the first from images in [0, 1].
        num_features: A, channels of the last stage's maps.
        num_classes: C, rows of ``head.weight``.
        name: how records and figures call it; it has to change with anything that changes what is computed.
        static: whether its Python does the same at every call and looks at no value, as that of the networks here. A
            training step through it can then be captured as a CUDA graph (module ``training.capture``).
    """

    def __init__(
        self, stages: Iterable[nn.Module], num_features: int, num_classes: int, name: str, static: bool = False
    ) -> None:
        super().__init__()
        num_classes = check_count("num_classes", num_classes)
        self.stages = nn.ModuleList(stages)
        self.pool: nn.Module = GlobalMean()
        self.head = nn.Linear(num_features, num_classes)
        self.num_features, self.num_classes = num_features, num_classes
        self.name, self.static = name, static

    def features(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N A"]:
        """What the head sees: images in [0, 1] through all stages and the pooling."""
        maps = images
        for stage in self.stages:
            maps = stage(maps)
        return self.pool(maps)

    def forward(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N C"]:
        """Logits; raises TypeError or ValueError on images that :class:`Normalise` does not take."""
        return self.head(self.features(images))


class Normalise(nn.Module):
    """(images - mean) / std by channel, in the dtype of the network, on images that are checked first.

    The checks read shape, dtype and device alone, never a value: they cost nothing at every step and do not wait for
    a GPU. That the values are in [0, 1] is for whoever makes the images to see to.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Levels = 0.5, std: Levels = 0.25) -> None:
        super().__init__()
        channels = check_count("channels", channels)
        for name, value, low, without in (("mean", mean, -math.inf, ()), ("std", std, 0, (0,))):
            given = value if isinstance(value, Sequence) else [value] * channels
            require(len(given) == channels, name, value, f"one number, or one for each of {channels} channels")
            values = [check_number(name, number, low, without=without) for number in given]
            self.register_buffer(name, torch.tensor(values).reshape(channels, 1, 1))

    def forward(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N channels H W"]:
        """Raises TypeError for images that are no floats; ValueError for a wrong rank, channel count or device."""
        channels = len(self.mean)
        if not images.is_floating_point():
            raise TypeError(f"images: got {images.dtype}; takes floats in [0, 1] (divide uint8 by 255)")
        if images.ndim != 4 or images.shape[1] != channels:
            raise ValueError(f"images: got shape {tuple(images.shape)}; takes (N, {channels}, H, W)")
        if images.device != self.mean.device:
            raise ValueError(f"images: got device {images.device}; takes {self.mean.device}, where the network is")
        return (images.to(self.mean.dtype) - self.mean) / self.std


class GlobalMean(nn.Module):
    """Mean over the pixels. Unlike AdaptiveAvgPool2d its gradient is deterministic on CUDA."""

    def forward(self, maps: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A"]:
        """Maps to features."""
        return maps.mean((2, 3))


class PadShortcut(nn.Module):
    """Option A of He et al.: every ``stride``-th pixel, and zeros for the channels that are new. No parameters.

    The zeros come after the channels that were there, or, where ``both``, half of them before.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, both: bool = False) -> None:
        super().__init__()
        self.stride, extra = stride, outputs - inputs
        self.before = extra // 2 if both else 0
        self.after = extra - self.before

    def forward(self, maps: Float[Tensor, "N inputs H W"]) -> Float[Tensor, "N outputs h w"]:
        """Maps of the block's input to the shape of its output."""
        return F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: option A ("pad", "pad both") or B ("project") where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str, norm: str) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.norm1 = normalisation(outputs, norm)
        self.conv2 = convolution(outputs, outputs, 3)
        self.norm2 = normalisation(outputs, norm)
        self.shortcut = _shortcut(inputs, outputs, stride, shortcut, norm)

    def forward(self, maps: Float[Tensor, "N inputs H W"]) -> Float[Tensor, "N outputs h w"]:
        """relu(s(x) + F(x))."""
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(maps)))))
        return F.relu(residual + self.shortcut(maps))


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions, the stride at the second, and a shortcut of option B."""

    def __init__(self, inputs: int, middle: int, outputs: int, stride: int, groups: int, norm: str) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, middle, 1)
        self.norm1 = normalisation(middle, norm)
        self.conv2 = convolution(middle, middle, 3, stride, groups)
        self.norm2 = normalisation(middle, norm)
        self.conv3 = convolution(middle, outputs, 1)
        self.norm3 = normalisation(outputs, norm)
        self.shortcut = _shortcut(inputs, outputs, stride, "project", norm)

    def forward(self, maps: Float[Tensor, "N inputs H W"]) -> Float[Tensor, "N outputs h w"]:
        """relu(s(x) + F(x))."""
        residual = F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(maps))))))
        return F.relu(self.norm3(self.conv3(residual)) + self.shortcut(maps))


class Positions(nn.Module):
    """Adds to maps the sines and cosines of their rows and columns, at frequencies from 1 down to 1/10000."""

    def forward(self, maps: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A H W"]:
        """A quarter of the channels each: sine and cosine of the row, sine and cosine of the column."""
        quarter, (height, width) = maps.shape[1] // 4, maps.shape[2:]
        number, y, x = (torch.arange(n, device=maps.device, dtype=torch.float32) for n in (quarter, height, width))
        rate = 10000 ** -(number / max(1, quarter - 1))[:, None]
        row, column = y * rate, x * rate
        row, column = row[:, :, None].expand(-1, -1, width), column[:, None, :].expand(-1, height, -1)
        return maps + torch.cat([row.sin(), row.cos(), column.sin(), column.cos()]).to(maps.dtype)


class Patches(nn.Conv2d):
    """Patches of ``kernel_size`` pixels, each to one place of the maps."""

    def forward(self, images: Float[Tensor, "N channels H W"]) -> Float[Tensor, "N A h w"]:
        """Raises ValueError for sides that are no multiples of the patch: a convolution leaves out what is over."""
        side, (height, width) = self.kernel_size[0], images.shape[2:]
        if height % side or width % side:
            raise ValueError(f"images: got {height} x {width} pixels; takes multiples of the patch, {side}")
        return super().forward(images)


class Encoder(nn.Module):
    """Transformer layers of torch (norm first) on the places of maps: each attends to all of them."""

    def __init__(self, width: int, depth: int, heads: int, last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm: nn.Module = nn.LayerNorm(width) if last else nn.Identity()

    def forward(self, maps: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A H W"]:
        """Maps to maps."""
        places = maps.flatten(2).mT
        for layer in self.layers:
            places = layer(places)
        return self.norm(places).mT.reshape(maps.shape)


class PreActivationBlock(nn.Module):
    """The block of wide residual networks: norm and relu first, dropout between the convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.norm1 = normalisation(inputs, norm)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.norm2 = normalisation(outputs, norm)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(outputs, outputs, 3)
        self.project = convolution(inputs, outputs, 1, stride) if inputs != outputs or stride != 1 else None

    def forward(self, maps: Float[Tensor, "N inputs H W"]) -> Float[Tensor, "N outputs h w"]:
        """s(x) + F(x); a projection takes the activated input, an identity the raw one."""
        active = F.relu(self.norm1(maps))
        residual = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(active)))))
        return residual + (maps if self.project is None else self.project(active))


def small(
    num_classes: int, channels: int = 1, *, width: int = 16, norm: str = "batch", mean: Levels = 0.5, std: Levels = 0.25
) -> Network:
    """The quick network: a stem of stride 2, then one residual block at each of the widths 16, 32, 64.

    78 thousand parameters, A = 64: trains on 2,000 images of 28x28 in seconds on one CPU core. ``width`` is the stem's,
    and scales the rest.
    """
    width = check_count("width", width)
    stem, block = _stem(channels, width, 2, norm, mean, std), partial(BasicBlock, shortcut="project", norm=norm)
    blocks = [stage[0] for stage in _stages(block, width, (width, 2 * width, 4 * width), (1, 1, 1))]
    return _network([stem, *blocks], 4 * width, num_classes, "small", width=width, norm=norm, mean=mean, std=std)


def resnet(
    num_classes: int,
    depth: int = 32,
    channels: int = 3,
    *,
    shortcut: str = "pad",
    norm: str = "batch",
    mean: Levels = 0.5,
    std: Levels = 0.25,
) -> Network:
    """The CIFAR ResNet of He et al., section 4.2: depth 6n + 2 (20, 32, 44, 56, 110), widths 16, 32, 64, A = 64.

    0.27, 0.46, 0.66, 0.85 and 1.7 million parameters.

    Args:
        depth: layers with weights, 6n + 2.
        shortcut: "pad", option A, as in the paper; "pad both", with the new channels on both sides, as in the releases
            of MetaSAug and LDAM-DRW; "project", option B, as in that of ISDA. Their weights fit that option alone.
    """
    check_choice("shortcut", shortcut, SHORTCUTS)
    require(depth >= 8 and depth % 6 == 2, "depth", depth, "6n + 2, as 20, 32, 44, 56 or 110")
    stem, block = _stem(channels, 16, 1, norm, mean, std), partial(BasicBlock, shortcut=shortcut, norm=norm)
    stages = _stages(block, 16, (16, 32, 64), [(depth - 2) // 6] * 3)
    options = {"shortcut": shortcut, "norm": norm, "mean": mean, "std": std}
    return _network([stem, *stages], 64, num_classes, f"resnet{depth}", **options)


def resnet18(
    num_classes: int, channels: int = 3, *, norm: str = "batch", mean: Levels = 0.5, std: Levels = 0.25
) -> Network:
    """ResNet-18 of He et al., table 1, for images of 32 pixels: a 3x3 stem of stride 1 and no max-pooling.

    Widths 64, 128, 256, 512, two blocks each, shortcuts option B; A = 512; 11.17 million parameters at 10 classes.
    """
    stem, block = _stem(channels, 64, 1, norm, mean, std), partial(BasicBlock, shortcut="project", norm=norm)
    stages = _stages(block, 64, (64, 128, 256, 512), (2, 2, 2, 2))
    return _network([stem, *stages], 512, num_classes, "resnet18", norm=norm, mean=mean, std=std)


def resnext(
    num_classes: int,
    channels: int = 3,
    *,
    blocks: Sequence[int] = (3, 4, 6, 3),
    groups: int = 32,
    group_width: int = 4,
    norm: str = "batch",
    mean: Levels = 0.5,
    std: Levels = 0.25,
) -> Network:
    """ResNeXt of Xie et al., by default ResNeXt-50 (32x4d), with the stem of :func:`resnet18` for images of 32 pixels.

    23.0 million parameters at 10 classes; A = 2048. For a quick one ``resnext(10, blocks=(1, 1, 1), groups=8)``.

    Args:
        blocks: of each stage; the outputs are 256, 512, ... channels.
        groups: of the middle convolutions.
        group_width: channels of a group in the first stage, twice as many in each that follows.
    """
    for name, values in (("blocks", [*blocks]), ("groups", [groups]), ("group_width", [group_width])):
        for value in values or [0]:
            check_count(name, value)

    def block(inputs: int, outputs: int, stride: int) -> Bottleneck:
        return Bottleneck(inputs, outputs // 256 * groups * group_width, outputs, stride, groups, norm)

    widths = [256 * 2**number for number in range(len(blocks))]
    stem, stages = _stem(channels, 64, 1, norm, mean, std), _stages(block, 64, widths, blocks)
    shape = "" if tuple(blocks) == (3, 4, 6, 3) else f"-{'.'.join(map(str, blocks))}"
    base = f"resnext{2 + 3 * sum(blocks)}{shape}-{groups}x{group_width}d"
    return _network([stem, *stages], widths[-1], num_classes, base, norm=norm, mean=mean, std=std)


def vit(
    num_classes: int,
    channels: int = 3,
    *,
    patch: int = 4,
    width: int = 64,
    depth: int = 6,
    heads: int = 4,
    mean: Levels = 0.5,
    std: Levels = 0.25,
) -> Network:
    """A small Vision Transformer: patches of ``patch`` pixels, then ``depth`` layers in three stages; A = width.

    0.3 million parameters. It has no BatchNorm, and trains by Adam.

    Args:
        patch: side of a patch in pixels; the images' sides are multiples of it.
        width: of the places, a multiple of 4 and of ``heads``.
        depth: layers, a multiple of 3.
        heads: of the attention.
    """
    for option, value in (("patch", patch), ("width", width), ("depth", depth), ("heads", heads)):
        check_count(option, value)
    require(width % 4 == width % heads == 0, "width", width, f"a multiple of 4 and of heads, {heads}")
    require(depth % 3 == 0, "depth", depth, "a multiple of 3, the stages")
    stem = nn.Sequential(Normalise(channels, mean, std), Patches(channels, width, patch, patch), Positions())
    stages = [Encoder(width, depth // 3, heads, last=number == 2) for number in range(3)]
    base = f"vit-{patch}-{width}-{depth}-{heads}"
    return _network([stem, *stages], width, num_classes, base, mean=mean, std=std)


def wide_resnet(
    num_classes: int,
    depth: int = 28,
    width: int = 10,
    dropout: float = 0.0,
    channels: int = 3,
    *,
    norm: str = "batch",
    mean: Levels = 0.5,
    std: Levels = 0.25,
) -> Network:
    """WRN-depth-width of Zagoruyko and Komodakis; A = 64 width. WRN-28-10: 36.5 million parameters.

    The last norm and relu belong to the last stage.

    Args:
        depth: 6n + 4.
        width: of the stages, 16, 32 and 64 times this.
        dropout: the share dropped between the convolutions of a block, 0.3 in the paper.
    """
    require(depth >= 10 and depth % 6 == 4, "depth", depth, "6n + 4, as 16, 28 or 40")
    width, dropout = check_count("width", width), check_number("dropout", dropout, 0, 1, without=(1,))
    stem = nn.Sequential(Normalise(channels, mean, std), convolution(channels, 16, 3))
    block = partial(PreActivationBlock, dropout=dropout, norm=norm)
    stages = _stages(block, 16, (16 * width, 32 * width, 64 * width), [(depth - 4) // 6] * 3)
    stages[-1].extend([normalisation(64 * width, norm), nn.ReLU()])
    options = {"dropout": dropout, "norm": norm, "mean": mean, "std": std}
    return _network([stem, *stages], 64 * width, num_classes, f"wrn-{depth}-{width}", **options)


class Residual(nn.Module):
    """x + F(x), F two convolutions, each followed by norm and relu."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _layer(width, width, pool=False), _layer(width, width, pool=False)

    def forward(self, maps: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A H W"]:
        """Maps to maps."""
        return maps + self.second(self.first(maps))


class ScaledMax(nn.Module):
    """An eighth of the maximum over the pixels: the scale that Page gives the logits, in front of the head."""

    def forward(self, maps: Float[Tensor, "N A H W"]) -> Float[Tensor, "N A"]:
        """Maps to features."""
        return 0.125 * maps.amax((2, 3))


def resnet9(num_classes: int, channels: int = 3) -> Network:
    """Page's ResNet-9 for images of 32 pixels, built to reach 94% on CIFAR-10 in the shortest time.

        images --> 64 --> 128, residual --> 256 --> 512, residual --> maximum / 8 --> head

    The widths are of 3x3 convolutions; an arrow between two of them halves the sides by a maximum. 6.57 million
    parameters at 10 classes, A = 512. The preset ``"fast/resnet9"`` of ``Recipe`` trains it, with the objective
    ``Smoothed``.
    """
    stages: list[nn.Module] = [
        nn.Sequential(Normalise(channels), *_layer(channels, 64, pool=False)),
        nn.Sequential(_layer(64, 128, pool=True), Residual(128)),
        _layer(128, 256, pool=True),
        nn.Sequential(_layer(256, 512, pool=True), Residual(512)),
    ]
    network = _network(stages, 512, num_classes, "resnet9")
    network.pool = ScaledMax()
    return network


def _layer(inputs: int, outputs: int, pool: bool) -> nn.Sequential:
    """Convolution, perhaps the maximum of every 2 x 2 pixels, norm, relu."""
    halve = [nn.MaxPool2d(2)] if pool else []
    return nn.Sequential(convolution(inputs, outputs, 3), *halve, normalisation(outputs, "batch"), nn.ReLU())


def _stem(channels: int, width: int, stride: int, norm: str, mean: Levels, std: Levels) -> nn.Sequential:
    normalise = Normalise(channels, mean, std)
    return nn.Sequential(normalise, convolution(channels, width, 3, stride), normalisation(width, norm), nn.ReLU())


def _stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, widths: Sequence[int], counts: Sequence[int]
) -> list[nn.Sequential]:
    """Stages of blocks (inputs, outputs, stride), as many as ``counts`` says; all but the first halve the sides."""
    stages = []
    for number, (outputs, count) in enumerate(zip(widths, counts, strict=True)):
        shapes = [(inputs, 2 if number else 1)] + [(outputs, 1)] * (count - 1)
        stages.append(nn.Sequential(*(block(channels, outputs, stride) for channels, stride in shapes)))
        inputs = outputs
    return stages


def convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Without a bias, which a normalisation after it would take away, as He et al. start it."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def normalisation(channels: int, norm: str) -> nn.Module:
    """BatchNorm ("batch") or GroupNorm ("group") of 8 channels a group; raises ValueError for another."""
    if check_choice("norm", norm, NORMS) == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


def _shortcut(inputs: int, outputs: int, stride: int, kind: str, norm: str) -> nn.Module:
    if inputs == outputs and stride == 1:
        return nn.Identity()
    if kind == "project":
        return nn.Sequential(convolution(inputs, outputs, 1, stride), normalisation(outputs, norm))
    return PadShortcut(inputs, outputs, stride, both=kind == "pad both")


def _network(stages: Sequence[nn.Module], num_features: int, num_classes: int, base: str, **options: object) -> Network:
    """By the base name with every option that is not at its default: one name, one computation."""
    changed = [f"{option}={value}" for option, value in options.items() if value != DEFAULTS[option]]
    name = f"{base}({', '.join(changed)})" if changed else base
    return Network(stages, num_features, num_classes, name, static=True)
