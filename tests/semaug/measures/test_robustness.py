"""Oracles: scipy, Pillow and colorsys on single images, moments of the noises."""

from __future__ import annotations

import colorsys
import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

from semaug import data, networks
from semaug.core.metrics import accuracy
from semaug.data.sets import Split
from semaug.measures import robustness
from semaug.measures.robustness import CORRUPTIONS, attacked_accuracy, corrupt, corruption_accuracy, fgsm, measures


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def picture(channels=3, n=1, side=32):
    """Smooth, so that blur, blocks and JPEG change it a little."""
    values = torch.rand(n, channels, 6, 6, generator=generator(1))
    large = torch.nn.functional.interpolate(values, (side, side), mode="bilinear")
    return (255 * large).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_corruption_gets_worse_and_repeats_by_seed(name, channels):
    images = picture(channels, 8)
    found = [corrupt(images, name, severity, generator()) for severity in range(1, 6)]
    distances = [(each.float() - images.float()).square().mean().item() for each in found]
    assert all(each.dtype == torch.uint8 and each.shape == images.shape for each in found)
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert torch.equal(found[2], corrupt(images, name, 3, generator()))
    other = corrupt(images, name, 3, generator(1))
    assert torch.equal(found[2], other) == (not name.endswith("noise"))


def as_array(image):
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_deterministic_corruptions_by_other_means(severity):
    image = picture()[0]
    x = as_array(image) / 255.0
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    blurred = np.stack([ndimage.gaussian_filter(x[..., c], sigma, mode="nearest") for c in range(3)], 2)
    contrast = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    means = x.mean((0, 1))
    shift = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    brighter = np.empty_like(x)
    for y, row in enumerate(x):
        for column, pixel in enumerate(row):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            brighter[y, column] = colorsys.hsv_to_rgb(h, s, min(v + shift, 1))
    expected = {"gaussian_blur": blurred, "contrast": (x - means) * contrast + means, "brightness": brighter}
    for name, values in expected.items():
        found = as_array(corrupt(image[None], name, severity, generator())[0]).astype(int)
        assert np.abs(found - np.floor(255 * values.clip(0, 1))).max() <= 1, name  # float32 may fall to the other side
    scale, quality = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1], (80, 65, 58, 50, 40)[severity - 1]
    pillow = Image.fromarray(as_array(image))
    small = pillow.resize((int(32 * scale),) * 2, Image.Resampling.BOX).resize((32, 32), Image.Resampling.BOX)
    file = io.BytesIO()
    pillow.save(file, "JPEG", quality=quality)
    for name, values in {"pixelate": small, "jpeg": Image.open(file)}.items():
        assert np.array_equal(as_array(corrupt(image[None], name, severity, generator())[0]), np.asarray(values)), name


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_small_images_are_corrupted_too(name):
    for side in (1, 2) if name != "pixelate" else (2,):
        assert corrupt(picture(side=side), name, 5, generator()).shape == (1, 3, side, side)


def test_black_becomes_gray():
    black = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert (corrupt(black, "brightness", 5, generator()) == 76).all()  # 0.3 * 255, down


@pytest.mark.parametrize("value", [0.3, 0.6])
def test_noises_have_their_moments(value):
    """Of a million pixels of one value: mean and standard deviation, to rounding down (half a level on average)."""
    byte = round(255 * value)
    images, x = torch.full((1, 1, 1000, 1000), byte, dtype=torch.uint8), byte / 255
    expected = {
        "gaussian_noise": (x, 0.04),
        "shot_noise": (x, (x / 500) ** 0.5),
        "impulse_noise": (0.99 * x + 0.005, (0.99 * x**2 + 0.005 - (0.99 * x + 0.005) ** 2) ** 0.5),
        "speckle_noise": (x, 0.06 * x),
    }
    for name, (mean, std) in expected.items():
        found = corrupt(images, name, 1, generator()).double() / 255
        assert found.mean().item() == pytest.approx(mean, abs=0.003)
        assert found.std().item() == pytest.approx(std, rel=0.02)


def classifier():
    torch.manual_seed(0)
    return networks.small(10, width=4)


def test_accuracy_under_corruption():
    split, network = data.load("fashion-mini", train_size=100, test_size=40).test, classifier()
    found = corruption_accuracy(network, split, ["contrast", "shot_noise"], [1, 5], seed=3)
    assert found.keys() == {"contrast", "shot_noise"}
    noise = generator(3)
    for severity, value in zip((1, 5), found["shot_noise"], strict=True):
        assert value == accuracy(network, Split(corrupt(split.images, "shot_noise", severity, noise), split.target))
    assert found == corruption_accuracy(network, split, ["contrast", "shot_noise"], [1, 5], seed=3)


def test_measures():
    split, network = data.load("fashion-mini", train_size=100, test_size=40).test, classifier()
    metrics, curves = measures(network, split)
    by_name = [metrics[f"{name}_accuracy"] for name in CORRUPTIONS]
    assert metrics["corruption_accuracy"] == pytest.approx(sum(by_name) / 9)
    assert metrics.keys() == {"ece", "mce", "nll", "mean_confidence", "corruption_accuracy"} | {
        f"{name}_accuracy" for name in CORRUPTIONS
    }
    probabilities = network.eval()(split.floats()).softmax(1)
    assert metrics["nll"] == pytest.approx(
        -probabilities.gather(1, split.target[:, None]).log().mean().item(), rel=1e-5
    )
    assert metrics["mean_confidence"] == pytest.approx(probabilities.max(1).values.mean().item(), rel=1e-5)
    counts, right, sure = (torch.tensor(curves[f"reliability_{name}"]) for name in ("count", "accuracy", "confidence"))
    assert counts.sum() == 40
    assert (counts * right).sum() / 40 == pytest.approx(accuracy(network, split))
    assert metrics["ece"] == pytest.approx(((right - sure).abs() * counts).sum().item() / 40)
    for epsilon, value in zip(curves["fgsm_epsilon"], curves["fgsm_accuracy"], strict=True):
        assert value == attacked_accuracy(network, split, partial(fgsm, network, epsilon=epsilon))


@pytest.mark.usefixtures("unchecked")
def test_bad_input():
    images = picture()
    for arguments, message in (
        ((images, "fog", 1), "name: got 'fog'; takes one of gaussian_noise"),
        ((images, "jpeg", 6), "severity: got 6; takes one of 1, 2, 3, 4, 5"),
        ((images[:, :2], "jpeg", 1), r"images: got shape \(1, 2, 32, 32\); takes \(N, 1 or 3 channels, H, W\)"),
        ((images.permute(0, 2, 3, 1), "jpeg", 1), r"images: got shape \(1, 32, 32, 3\); takes \(N, 1 or 3 channels"),
        ((images[0], "jpeg", 1), r"images: got shape \(3, 32, 32\); takes \(N, 1 or 3 channels"),
        ((images[:0], "contrast", 1), r"images: got shape \(0, 3, 32, 32\); takes .* N at least 1"),
        ((images[..., :1, :1], "pixelate", 1), r"images: got \(1, 1\); takes sides of at least 2 pixels for pixelate"),
    ):
        with pytest.raises(ValueError, match=message):
            corrupt(*arguments, generator())
    for name in CORRUPTIONS:
        with pytest.raises(TypeError, match=r"images: got torch.float32; takes torch.uint8"):
            corrupt(images / 255, name, 1, generator())
    with pytest.raises(ValueError, match="takes logits"):
        measures(nn.Flatten(0), data.load("fashion-mini", train_size=100, test_size=40).test)
    assert len(robustness.EPSILONS) == 5
