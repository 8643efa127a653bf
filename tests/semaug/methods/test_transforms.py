"""Batch transforms against the objectives whose draws they make, in a DataLoader and after torchvision's transforms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

from semaug.methods.mixup import CutMix, Cutout, ManifoldMixup, MixStyle, Mixup, ResizeMix, SaliencyMix
from semaug.methods.puzzlemix import PuzzleMix
from semaug.methods.transforms import BatchTransform, MixStyleLayer
from semaug.training.objective import Step

SETTINGS = {
    Mixup: {"alpha": 0.4},
    CutMix: {"probability": 0.7},
    ResizeMix: {"low": 0.3, "high": 0.6},
    SaliencyMix: {"alpha": 2.0, "probability": 1.0},
    Cutout: {"size": 5},
}
IMAGES, TARGET = torch.rand(8, 3, 12, 10, generator=torch.Generator().manual_seed(3)), torch.arange(8) % 4


class Recorder(nn.Module):
    """A network that keeps the images it is shown; its logits are zero."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 4)

    def features(self, images):
        self.seen = images
        return images.new_zeros(len(images), 1)

    def forward(self, images):
        return self.head(self.features(images))


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("method", SETTINGS)
@pytest.mark.parametrize("soft", [False, True])
def test_draws_are_the_objectives(method, soft, monkeypatch):
    """Images and labels of ten batches in turn are those that the objective shows its network and its loss."""
    target = TARGET.double()[:, None].expand(8, 4).softmax(1) if soft else TARGET
    labels, cross_entropy = [], F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda logits, y: (labels.append(y), cross_entropy(logits, y))[1])
    network = Recorder()
    objective, at = method(network, **SETTINGS[method]), Step(torch.tensor(0.5), 0.1, generator(7))
    transform = BatchTransform(method, 4, generator=generator(7), **SETTINGS[method])
    changed = 0
    for _ in range(10):
        objective(IMAGES, target, at)
        images, shares = transform(IMAGES, target)
        assert torch.equal(images, network.seen)
        expected = labels[-1] if labels[-1].is_floating_point() else F.one_hot(labels[-1], 4).float()
        assert torch.equal(shares, expected)
        changed += not torch.equal(images, IMAGES)
    assert changed >= 3


@pytest.mark.parametrize("method", SETTINGS)
def test_smoothing_and_plain_draws(method):
    """The same mixture with smoothed labels; torch's global generator decides where there is none of its own."""
    plain, smoothed = (BatchTransform(method, 4, smoothing=s, **SETTINGS[method]) for s in (0.0, 0.2))
    before = torch.random.get_rng_state()
    images, target = plain(IMAGES, TARGET)
    second, _ = plain(IMAGES, TARGET)
    torch.random.set_rng_state(before)
    again, smooth = smoothed(IMAGES, TARGET)
    assert torch.equal(again, images)
    assert not torch.equal(second, images) or method in (CutMix,)
    torch.testing.assert_close(smooth, 0.8 * target + 0.05)
    torch.testing.assert_close(smooth.sum(1), torch.ones(8))


def test_nothing_is_drawn_when_one_is_made():
    before = torch.random.get_rng_state()
    BatchTransform(CutMix, 10)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_collate_of_a_dataloader(workers):
    transform = BatchTransform(Mixup, num_classes=4)
    dataset = TensorDataset(IMAGES[:1].expand(64, -1, -1, -1) * torch.arange(64)[:, None, None, None], TARGET.repeat(8))

    def batches():
        torch.manual_seed(0)
        return list(
            DataLoader(
                dataset,
                batch_size=16,
                shuffle=True,
                num_workers=workers,
                collate_fn=lambda samples: transform(*default_collate(samples)),
            )
        )

    one, two = batches(), batches()
    for (images, target), (same, labels) in zip(one, two, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(target, labels)
        assert (images.shape, target.shape) == ((16, 3, 12, 10), (16, 4))
        torch.testing.assert_close(target.sum(1), torch.ones(16))
    ratios = {round(float(target.max(1).values.min()), 5) for _, target in one}
    assert len(ratios) == len(one), "every batch has a ratio of its own, whichever worker makes it"


def test_a_generator_of_its_own_would_repeat_in_every_worker():
    transform = BatchTransform(Mixup, num_classes=4, generator=generator(0))
    loader = DataLoader(
        TensorDataset(IMAGES, TARGET), 4, num_workers=1, collate_fn=lambda batch: transform(*default_collate(batch))
    )
    with pytest.raises(ValueError, match=r"generator: got .*; takes None in a worker of a DataLoader"):
        next(iter(loader))


def test_after_torchvisions_transforms_and_one_of_two():
    mix = BatchTransform(CutMix, 4, probability=1.0)
    images = (255 * IMAGES).byte()
    before = torch.random.get_rng_state()
    both = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True), mix])(images, TARGET)
    flipped = v2.ToDtype(torch.float32, scale=True)(images.flip(-1))
    torch.random.set_rng_state(before)
    torch.rand(1)  # whether to flip
    assert [torch.equal(*pair) for pair in zip(both, mix(flipped, TARGET), strict=True)] == [True, True]
    choice = v2.RandomChoice([BatchTransform(Mixup, 4), BatchTransform(Cutout, 4, size=6)], p=[0.25, 0.75])
    cut = sum(bool((choice(IMAGES, TARGET)[0] == 0).any()) for _ in range(200)) / 200
    assert abs(cut - 0.75) < 4 * math.sqrt(0.25 * 0.75 / 200)


@pytest.mark.parametrize("method", [CutMix, ResizeMix, SaliencyMix, Cutout])
def test_bytes_stay_bytes(method):
    images, target = BatchTransform(method, 4)((255 * IMAGES).byte(), TARGET)
    assert images.dtype == torch.uint8
    assert target.dtype == torch.float32


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize("method", [ManifoldMixup, MixStyle, PuzzleMix, "CutMix", None])
    def test_methods_that_need_the_network(self, method):
        with pytest.raises(TypeError, match=r"method: got .*; takes Mixup, CutMix, ResizeMix, SaliencyMix, Cutout"):
            BatchTransform(method, 10)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_classes": 0}, "num_classes: got 0; takes a whole number from 1"),
            ({"alpha": -1.0}, "alpha: got -1.0; takes a finite number above 0"),
            ({"smoothing": 1.0}, r"smoothing: got 1.0; takes a finite number in \[0, 1\)"),
        ],
    )
    def test_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            BatchTransform(Mixup, **({"num_classes": 4} | settings))

    @pytest.mark.parametrize("method", SETTINGS)
    def test_batches(self, method):
        transform = BatchTransform(method, 3)
        with pytest.raises(ValueError, match=r"images: got shape \(3, 12, 10\); takes \(N, channels, H, W\)"):
            transform(IMAGES[0], TARGET)
        with pytest.raises(ValueError, match="target: got classes 0 to 3; takes 0 to 2"):
            transform(IMAGES, TARGET)
        with pytest.raises(ValueError, match="target: got 4 labels; takes 8, one an image"):
            transform(IMAGES, TARGET[:3].repeat(2)[:4])
        if method is Mixup:
            with pytest.raises(TypeError, match=r"images: got torch.uint8; takes floats"):
                transform(IMAGES.byte(), TARGET % 3)


# --- MixStyle as a layer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["random", "crossdomain"])
def test_styles_are_mixtures_with_a_partner_of_the_batch(mix):
    """Mean and deviation of each output lie at one ratio between those of its image and of one other."""
    torch.manual_seed(0)
    features = torch.randn(6, 1, 8, 8).double() * torch.tensor([1.0, 3, 2, 9, 5, 14])[:, None, None, None]
    features += torch.tensor([0.0, 2, 7, 20, 31, 50])[:, None, None, None]
    mean, spread = features.mean((1, 2, 3)), (features.var((1, 2, 3)) + 1e-6).sqrt()
    layer, halves = MixStyleLayer(probability=1.0, mix=mix, alpha=1.0), {True: 0, False: 0}
    for _ in range(20):
        mixed = layer(features)
        for i in range(6):
            ratio = [(x[i] - y) / (x[i] - x) for x, y in ((mean, mixed[i].mean()), (spread, mixed[i].std()))]
            if abs(mixed[i].mean() - mean[i]) > 0.1:  # neither its own partner nor in a ratio near 1
                (partner,) = [j for j in range(6) if j != i and abs(ratio[0][j] / ratio[1][j] - 1) < 1e-3]
                halves[(partner < 3) == (i < 3)] += 1
            normal = (mixed[i] - mixed[i].mean()) / mixed[i].std()
            torch.testing.assert_close(normal, (features[i] - mean[i]) / features[i].std())
    assert halves[False] > 20
    assert halves[True] == 0 if mix == "crossdomain" else halves[True] > 20


def test_the_layer_mixes_in_training_mode_alone_by_torchs_seed():
    features = torch.rand(4, 2, 3, 3)
    layer = MixStyleLayer()
    assert layer.eval()(features) is features
    layer.train()

    def outputs(seed):
        torch.manual_seed(seed)
        return torch.stack([layer(features) for _ in range(40)])

    assert torch.equal(outputs(1), outputs(1))
    assert not torch.equal(outputs(1), outputs(2))
    left = sum(torch.equal(each, features) for each in outputs(1))
    assert 8 <= left <= 32, "half of the batches are left alone"
    network = nn.Sequential(nn.Conv2d(2, 3, 1), MixStyleLayer(), nn.Flatten(), nn.Linear(27, 2))
    network(features).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
    assert {name.split(".")[0] for name in network.state_dict()} == {"0", "3"}


@pytest.mark.usefixtures("unchecked")
def test_the_layer_refuses():
    for changes, message in (
        ({"alpha": 0.0}, "alpha: got 0.0; takes a finite number above 0"),
        ({"probability": 2.0}, r"probability: got 2.0; takes a finite number in \[0, 1\]"),
        ({"mix": "Random"}, "mix: got 'Random'; takes one of random, crossdomain"),
    ):
        with pytest.raises(ValueError, match=message):
            MixStyleLayer(**changes)
    with pytest.raises(ValueError, match="the batch: got 3; takes an even number"):
        MixStyleLayer(mix="crossdomain")(torch.rand(3, 1, 2, 2))
    with pytest.raises(ValueError, match="features: got maps of 1 x 1; takes two pixels at least"):
        MixStyleLayer()(torch.rand(2, 1, 1, 1))
