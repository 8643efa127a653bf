r"""Robustness: accuracy on images changed by attacks along the gradient of the loss, and by common corruptions.

In the box of the side $2 \epsilon$ around an image, FGSM goes once, as far as it may, along the sign of the gradient,
which is the best step for a loss that is linear; PGD goes in smaller steps of $\alpha$ and back into the box each time:

$$x^* = x + \epsilon\, \mathrm{sign}\, \nabla_x \mathrm{CE}(f(x), y), \qquad
  x_{t+1} = \Pi_\epsilon \bigl( x_t + \alpha\, \mathrm{sign}\, \nabla_x \mathrm{CE}(f(x_t), y) \bigr). \tag{38}$$

Only signs are used, and the slope of the loss at the logits $z$ of one image, of class y, is

$$\nabla_z \mathrm{CE} = (1 - p_y) (q - e_y), \qquad q = \mathrm{softmax}(z_j : j \ne y). \tag{38a}$$

Its factor $1 - p_y$ underflows where the network is sure, which would look like robustness; it is left out.

Corruptions are those of CIFAR-10-C that need no further files, at five severities.

Goodfellow, Shlens, Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015,
https://arxiv.org/abs/1412.6572; Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards Deep Learning Models Resistant to
Adversarial Attacks", ICLR 2018, https://arxiv.org/abs/1706.06083; Hendrycks, Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", ICLR 2019, https://arxiv.org/abs/1903.12261.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from semaug._checks import check_choice, check_classes, check_count, check_number, check_within, require
from semaug.core.metrics import Predict, accuracy, check_logits, evaluating, predictions
from semaug.data.split import Split
from semaug.measures.calibration import calibration

FloatImages = Float[Tensor, "N channels H W"]

Labels = Int64[Tensor, " N"] | Float[Tensor, "N C"]


def fgsm(
    predict: Predict, images: FloatImages, target: Labels, epsilon: float, clip: tuple[float, float] = (0, 1)
) -> FloatImages:
    """The images after one step (38).

    Args:
        predict: images to logits (N, C), differentiable. A module, or the module whose method it is, runs in evaluation
            mode and gets back the mode it had. Its parameters get no gradient.
        images: (N, channels, H, W), floats.
        target: class numbers, or (N, C) shares of the classes.
        epsilon: in the unit of the images.
        clip: the range of the images, before and after.

    Returns:
        The images, in their dtype.

    Raises:
        TypeError: for images that are no floats.
        ValueError: for an epsilon that is negative or not finite, a clip that is not low < high, images outside of
            clip, classes outside [0, C), shares that are negative or do not add up to 1, and logits that are NaN.
    """
    return pgd(predict, images, target, epsilon, 1, epsilon, clip=clip)


def pgd(
    predict: Predict,
    images: FloatImages,
    target: Labels,
    epsilon: float,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
    clip: tuple[float, float] = (0, 1),
) -> FloatImages:
    """The images after several steps (38), none further from where it was than ``epsilon``.

    Args:
        predict, images, target, epsilon, clip: as of :func:`fgsm`, whose errors these are.
        steps: their number.
        step_size: of each, in the unit of the images.
        generator: with one, on the images' device, the first step starts anywhere in the box; without at the image.
    """
    epsilon, step_size = check_number("epsilon", epsilon, 0), check_number("step_size", step_size, 0)
    low, high = clip
    require(low < high, "clip", clip, "(low, high), low < high")
    takes = f"floats from {low} to {high} (clip)"
    require(images.is_floating_point(), "images", images.dtype, takes, TypeError)
    images = check_within("images", images.detach(), low, high)
    least, most = (images - epsilon).clamp_min(low), (images + epsilon).clamp_max(high)
    attacked = images
    if generator is not None:
        uniform = torch.rand(images.shape, generator=generator, device=images.device).to(images.dtype)
        attacked = least + (most - least) * uniform
    with evaluating(predict), torch.enable_grad():
        for _ in range(check_count("steps", steps)):
            attacked = attacked.detach().requires_grad_()
            logits = check_logits(predict(attacked), "predict")
            (slope,) = torch.autograd.grad(logits, attacked, _loss_slope(logits.detach(), target))
            attacked = (attacked + step_size * slope.sign()).clamp(least, most)
    return attacked.detach()


def _loss_slope(logits: Float[Tensor, "N C"], target: Labels) -> Float[Tensor, "N C"]:
    """(38a) without its factor; with shares of several classes the slope of the cross-entropy as it is."""
    N, C = logits.shape
    if target.dtype == torch.int64 and target.shape == (N,):
        check_classes(target, C)
        target = F.one_hot(target, C)
    elif not (target.is_floating_point() and target.shape == (N, C)):
        raise ValueError(f"target: got {target.dtype} {tuple(target.shape)}; takes int64 ({N},) or shares ({N}, {C})")
    shares = target.double()
    if not bool(((shares >= 0).all(1) & ((shares.sum(1) - 1).abs() < 1e-3)).all()):
        raise ValueError("target: got shares that are negative or do not add up to 1; takes shares of the classes")
    others = logits.double().masked_fill(shares == 1, -torch.inf).softmax(1)
    return (others - shares).to(logits.dtype)


def attacked_accuracy(
    predict: Predict, split: Split, attack: Callable[[Tensor, Tensor], Tensor], batch_size: int = 500
) -> float:
    """Accuracy on a split whose images go through ``attack(images, target)`` first, a batch at a time.

    Raises:
        ValueError: for an empty split, and logits that are NaN.
    """
    right = 0
    for batch in split.batches(batch_size):
        images = attack(batch.floats(), batch.target)
        with torch.no_grad(), evaluating(predict):
            right += int((check_logits(predict(images), "predict").argmax(1) == batch.target).sum())
    return right / len(split)


Corruption = Callable[[Tensor, float, torch.Generator], Tensor]

EPSILONS = tuple(n / 255 for n in (1, 2, 4, 8, 16))


def _impulse_noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper, as much of each, in every channel by itself."""
    drawn, salt = (torch.rand(x.shape, generator=generator) for _ in range(2))
    return torch.where(drawn < level, (salt < 0.5).to(x.dtype), x)


def _gaussian_blur(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    from scipy.ndimage import gaussian_filter

    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0, level, level), mode="nearest"))


def _brightness(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Value in HSV raised, hue and saturation kept: all channels by one factor; black becomes gray."""
    value = x.amax(1, keepdim=True)
    raised = (value + level).clamp_max(1)
    return torch.where(value > 0, x * (raised / value.clamp_min(1e-12)), raised)


def _contrast(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * level + mean


def _pixelate(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    from PIL import Image

    height, width = x.shape[2:]
    small, box = (int(width * level), int(height * level)), Image.Resampling.BOX
    require(min(small) >= 1, "images", (height, width), "sides of at least 2 pixels for pixelate")
    return _by_pillow(x, lambda image: image.resize(small, box).resize((width, height), box))


def _jpeg(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    from PIL import Image

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(level))
        return Image.open(file)

    return _by_pillow(x, change)


def _by_pillow(x: Tensor, change: Callable) -> Tensor:
    """A function of Pillow's image for every image of a batch, of one or three channels."""
    from PIL import Image

    changed = []
    for image in (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        result = np.asarray(change(Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)))
        changed.append(result.reshape(image.shape))
    return torch.from_numpy(np.stack(changed)).permute(0, 3, 1, 2).to(x.dtype) / 255


CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (lambda x, std, g: x + std * torch.randn(x.shape, generator=g), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (lambda x, photons, g: torch.poisson(x * photons, g) / photons, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (lambda x, std, g: x + x * std * torch.randn(x.shape, generator=g), (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
}

"""Each with what its severities 1 to 5 are: the numbers of CIFAR-10-C."""


def corrupt(
    images: UInt8[Tensor, "N channels H W"], name: str, severity: int, generator: torch.Generator
) -> UInt8[Tensor, "N channels H W"]:
    """Images under one of ``CORRUPTIONS``, as bytes again, rounded down as CIFAR-10-C's.

    Args:
        images: (N, channels, H, W) bytes, one or three channels.
        name: of the corruption.
        severity: 1 to 5.
        generator: of the CPU, where all this is computed.

    Raises:
        TypeError: for images that are no bytes.
        ValueError: for another name or severity, no images, other channels, and images too small for the corruption.
    """
    check_choice("name", name, CORRUPTIONS)
    check_choice("severity", severity, range(1, 6))
    if images.dtype != torch.uint8:
        raise TypeError(f"images: got {images.dtype}; takes torch.uint8 (Split.from_float rounds floats in [0, 1])")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images: got shape {tuple(images.shape)}; takes (N, 1 or 3 channels, H, W), N at least 1")
    function, levels = CORRUPTIONS[name]
    changed = function(images.cpu().float() / 255, levels[severity - 1], generator)
    # 255 * (k / 255) can fall short of k by a rounding
    return (changed.clamp(0, 1) * 255 + 1e-3).to(torch.uint8).to(images.device)


def corruption_accuracy(
    predict: Predict,
    split: Split,
    names: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
) -> dict[str, list[float]]:
    """Accuracy under every corruption, at every severity in order; the same noise for everything of one seed."""
    accuracies = {}
    for name in names:
        generator = torch.Generator().manual_seed(seed)
        changed = (corrupt(split.images, name, severity, generator) for severity in severities)
        accuracies[name] = [accuracy(predict, Split(images, split.target)) for images in changed]
    return accuracies


def measures(predict: Predict, split: Split) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics and curves for a record: calibration, FGSM and corruption on a split.

    Metrics: ``ece`` and ``mce`` of 15 bins, ``nll`` in nats, ``mean_confidence``, ``corruption_accuracy`` and that of
    every corruption, mean over the severities. Curves: ``fgsm_epsilon`` and ``fgsm_accuracy``, and the columns of the
    reliability diagram, ``reliability_low``, ``_high``, ``_count``, ``_accuracy`` and ``_confidence``.
    """
    logits = predictions(predict, split).double()
    confidence, label = logits.softmax(1).max(1)
    calibrated = calibration(confidence.clamp_max(1), label == split.target)
    nll, mean = float(F.cross_entropy(logits, split.target)), float(confidence.mean())
    metrics = {"ece": calibrated.ece, "mce": calibrated.mce, "nll": nll, "mean_confidence": mean}
    by_name = {name: sum(each) / len(each) for name, each in corruption_accuracy(predict, split).items()}
    metrics["corruption_accuracy"] = sum(by_name.values()) / len(by_name)
    metrics |= {f"{name}_accuracy": value for name, value in by_name.items()}
    curves: dict[str, list[float]] = {"fgsm_epsilon": list(EPSILONS)}
    attacks = (partial(fgsm, predict, epsilon=epsilon) for epsilon in EPSILONS)
    curves["fgsm_accuracy"] = [attacked_accuracy(predict, split, attack) for attack in attacks]
    columns = ("low", "high", "count", "accuracy", "confidence")
    rows = zip(columns, calibrated.table.T.tolist(), strict=True)
    return metrics, curves | {f"reliability_{column}": values for column, values in rows}
