r"""Robustness: accuracy on corrupted images, and all that the records of the mixing methods say beside accuracy.

The corruptions are those of CIFAR-10-C that operations of torch, SciPy and Pillow make, at its five severities: noise
(Gaussian, shot, impulse, speckle), Gaussian blur, brightness, contrast, pixelate, JPEG. That is 7 of its 15
and 2 of its 4 spare ones; defocus, glass, motion and zoom blur, snow, frost, fog and elastic are not here, which want
OpenCV, ImageMagick or pictures of frost. So a mean over these is no mCE of the benchmark.

D. Hendrycks, T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
2019, https://arxiv.org/abs/1903.12261.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semaug.adversarial import attacked_accuracy, fgsm
from semaug.data import Split
from semaug.evaluation import Predict, accuracy, calibration, predictions

Images = Float[Tensor, "N channels H W"]
Corruption = Callable[[Tensor, float, torch.Generator], Tensor]

EPSILONS = tuple(n / 255 for n in (1, 2, 4, 8, 16))


def _gaussian_noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return x + level * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(x * level, generator) / level


def _impulse_noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    """Salt and pepper, as much of each, in every channel by itself."""
    drawn, salt = (torch.rand(x.shape, generator=generator) for _ in range(2))
    return torch.where(drawn < level, (salt < 0.5).to(x.dtype), x)


def _speckle_noise(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return x + x * level * torch.randn(x.shape, generator=generator)


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

    def change(image: Image.Image) -> Image.Image:
        small = image.resize((int(width * level), int(height * level)), Image.Resampling.BOX)
        return small.resize((width, height), Image.Resampling.BOX)

    return _by_pillow(x, change)


def _jpeg(x: Tensor, level: float, generator: torch.Generator) -> Tensor:
    import io

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
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (_speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2)),
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
    """Images under one of ``CORRUPTIONS``, at a severity of 1 to 5, as bytes again, rounded down as CIFAR-10-C's.

    generator: of the CPU, where all this is computed. Raises ValueError for a name or severity there is not, and for
    images that have neither one nor three channels.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"name: got {name!r}; takes one of {', '.join(CORRUPTIONS)}")
    if severity not in range(1, 6):
        raise ValueError(f"severity: got {severity!r}; takes 1 to 5")
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images: got {images.shape[1]} channels; takes 1 or 3")
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
    found = {}
    for name in names:
        generator = torch.Generator().manual_seed(seed)
        changed = (corrupt(split.images, name, severity, generator) for severity in severities)
        found[name] = [accuracy(predict, Split(images, split.target)) for images in changed]
    return found


def measures(predict: Predict, split: Split) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Metrics and curves for a record: calibration, FGSM and corruption on a split.

    Metrics: ``ece`` and ``mce`` of 15 bins, ``nll`` in nats, ``mean_confidence``, ``corruption_accuracy`` and that of
    every corruption, mean over the severities. Curves: ``fgsm_epsilon`` and ``fgsm_accuracy``, and the columns of the
    reliability diagram, ``reliability_low``, ``_high``, ``_count``, ``_accuracy`` and ``_confidence``.
    """
    logits = predictions(predict, split).double()
    confidence, called = logits.softmax(1).max(1)
    found = calibration(confidence.clamp_max(1), called == split.target)
    nll = torch.nn.functional.cross_entropy(logits, split.target)
    metrics = {"ece": found.ece, "mce": found.mce, "nll": float(nll), "mean_confidence": float(confidence.mean())}
    by_name = {name: sum(each) / len(each) for name, each in corruption_accuracy(predict, split).items()}
    metrics["corruption_accuracy"] = sum(by_name.values()) / len(by_name)
    metrics |= {f"{name}_accuracy": value for name, value in by_name.items()}
    curves: dict[str, list[float]] = {"fgsm_epsilon": list(EPSILONS)}
    attacks = (partial(fgsm, predict, epsilon=epsilon) for epsilon in EPSILONS)
    curves["fgsm_accuracy"] = [attacked_accuracy(predict, split, attack) for attack in attacks]
    columns = ("low", "high", "count", "accuracy", "confidence")
    rows = zip(columns, found.table.T.tolist(), strict=True)
    return metrics, curves | {f"reliability_{column}": values for column, values in rows}
