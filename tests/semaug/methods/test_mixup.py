"""Oracles: scipy's Beta distribution, images of one value each (which tell how they were mixed), stages by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from semaug import data, networks
from semaug.methods import mixing, mixup
from semaug.methods.mixup import CutMix, Cutout, ManifoldMixup, MixStyle, Mixup, ResizeMix, SaliencyMix
from semaug.methods.puzzlemix import SalientMixing
from semaug.training import loop as training
from semaug.training.objective import Step
from semaug.training.recipe import Recipe

PIXELS = {"Mixup": Mixup, "CutMix": CutMix, "ResizeMix": ResizeMix, "SaliencyMix": SaliencyMix}
ALL = PIXELS | {"ManifoldMixup": ManifoldMixup, "Cutout": Cutout, "MixStyle": MixStyle}


def step(seed=0, rank=0, world=1):
    return Step(torch.tensor(0.5), 0.1, torch.Generator().manual_seed(seed), rank=rank, world=world)


class Recorder(nn.Module):
    """A network that keeps what it was shown; its logits depend on every pixel."""

    def __init__(self, classes=3):
        super().__init__()
        self.head = nn.Linear(2, classes)

    def features(self, images):
        self.seen = images
        return torch.stack([images.mean((1, 2, 3)), images.square().mean((1, 2, 3))], 1)

    def forward(self, images):
        return self.head(self.features(images))


def constant_images(n, H=12, W=10):
    """Image i has the value 2^-i everywhere: of a mixture of two it can be told which two, and in which ratio."""
    return (0.5 ** torch.arange(n).double())[:, None, None, None].expand(n, 2, H, W).clone()


# --- draws ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.2, 1.0, 2.0])
def test_ratios_are_beta(alpha):
    drawn = mixup.draw_beta(alpha, (20000,), torch.Generator().manual_seed(0))
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    # In bins: of alpha = 0.1 a tenth lies closer to 1 than float32 can tell from it.
    counts = torch.histc(drawn, 10, 0, 1).numpy()
    assert stats.chisquare(counts, 20000 * np.diff(stats.beta(alpha, alpha).cdf(np.linspace(0, 1, 11)))).pvalue > 1e-3
    assert torch.equal(drawn, mixup.draw_beta(alpha, (20000,), torch.Generator().manual_seed(0)))


def test_partners_are_permutations_inside_the_share_of_a_process():
    images = torch.zeros(6, 1, 2, 2)
    for rank in range(3):
        drawn = mixup.draw_partners(images, step(1, rank, 3))
        assert drawn.sort().values.tolist() == list(range(6))
    partners = torch.stack([mixup.draw_partners(images, step(seed)) for seed in range(3000)])
    counts = F.one_hot(partners, 6).sum(0)
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3, "every partner is as likely"


def test_processes_share_ratio_and_centre():
    steps = [step(3, rank, 2) for rank in range(2)]
    objective = CutMix(Recorder().double(), probability=0.5)
    images = constant_images(4)
    target = torch.tensor([0, 1, 2, 0])
    lams = [objective(images, target, each)[1]["lam"] for each in steps]
    assert lams[0] == lams[1]
    assert torch.equal(steps[0].generator.get_state(), steps[1].generator.get_state())


# --- the loss ------------------------------------------------------------------------------------------------------


def partners_and_ratios(images, seen):
    """Which image each was mixed with and how much is left of it, from the values of constant images."""
    found = []
    for value, mixed in zip(images[:, 0, 0, 0], seen, strict=True):
        values = mixed.unique().tolist()
        if len(values) == 1 and values[0] not in images[:, 0, 0, 0].tolist():  # a mean of two
            lam = next(
                (j, (values[0] - other) / (value - other).item())
                for j, other in enumerate(images[:, 0, 0, 0].tolist())
                if other != value and 0 < (values[0] - other) / (value - other).item() < 1
            )
            found.append(lam)
        else:
            other = next((v for v in values if v != value), value.item())
            found.append((images[:, 0, 0, 0].tolist().index(other), (mixed == value).double().mean().item()))
    return found


@pytest.mark.parametrize("name", PIXELS)
def test_loss_is_the_two_cross_entropies_in_the_ratio_of_the_pixels(name):
    network, n = Recorder().double(), 2
    images, target = constant_images(n), torch.tensor([2, 0])
    for seed in range(20):
        loss, terms = PIXELS[name](network, probability=1.0)(images, target, step(seed))
        logits, expected = network.head(network.features(seen := network.seen)), 0
        for i, (j, lam) in enumerate(partners_and_ratios(images, seen)):
            own, other = (F.cross_entropy(logits[i], target[k]) for k in (i, j))
            expected = expected + (lam * own + (1 - lam) * other) / n
            if j != i:
                assert terms["lam"].item() == pytest.approx(lam, abs=1e-6)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PIXELS)
def test_probability(name):
    network, images, target = Recorder(), torch.rand(8, 1, 12, 12), torch.arange(8) % 3

    def mixed(probability, seed):
        PIXELS[name](network, probability=probability)(images, target, step(seed))
        return not torch.equal(network.seen, images)

    assert not any(mixed(0.0, seed) for seed in range(20))
    share = sum(mixed(0.5, seed) for seed in range(400)) / sum(mixed(1.0, seed) for seed in range(400))
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 400)


def test_resizemix_draws_the_side():
    network, images, target = Recorder(), torch.rand(8, 1, 10, 10), torch.arange(8) % 3
    objective = ResizeMix(network, low=0.8, high=0.8)
    lams = {round(objective(images, target, step(seed))[1]["lam"].item(), 4) for seed in range(300)}
    areas = {a * b for a in range(4, 9) for b in range(4, 9)}  # a side of 8, of which the edge leaves 4 to 8
    assert lams == {round(1 - area / 100, 4) for area in areas}


# --- maps ----------------------------------------------------------------------------------------------------------


def small(**options):
    torch.manual_seed(1)
    return networks.small(3, width=4, norm="group", **options).double()


def test_manifold_mixup_by_hand_at_every_layer(monkeypatch):
    network, images, target = small(), torch.rand(5, 1, 16, 16).double(), torch.tensor([0, 1, 2, 1, 0])
    objective = ManifoldMixup(network)
    for layer in range(3):
        monkeypatch.setattr(mixup, "draw_integers", lambda high, shape, _, layer=layer: torch.tensor(layer))
        loss, terms = objective(images, target, step(4))
        again, lam = step(4), terms["lam"].double()
        objective.ratio(again)
        partners = mixup.draw_partners(images, again)
        maps = images
        for number, stage in enumerate(network.stages):
            if number == layer == 0:
                maps = lam * maps + (1 - lam) * maps[partners]
            maps = stage(maps)
            if number == layer > 0:
                maps = lam * maps + (1 - lam) * maps[partners]
        logits = network.head(maps.mean((2, 3)))
        expected = lam * F.cross_entropy(logits, target) + (1 - lam) * F.cross_entropy(logits, target[partners])
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)  # soft labels are float32


def test_manifold_mixup_draws_every_layer(monkeypatch):
    seen, blend = [], mixing.blend
    objective, images = ManifoldMixup(small(), alpha=5.0), torch.rand(4, 1, 16, 16).double()

    def spy(values, lam, permutation):
        if values.ndim == 4:
            seen.append(float(lam))
        return blend(values, lam, permutation)

    monkeypatch.setattr(mixing, "blend", spy)
    for seed in range(150):
        objective(images, torch.tensor([0, 1, 2, 0]), step(seed))
    mixed = torch.tensor(seen).view(150, 3) != 1
    assert (mixed.sum(1) == 1).all(), "one layer a batch"
    assert stats.chisquare(mixed.sum(0).numpy()).pvalue > 1e-3


def test_mixstyle_by_hand_and_its_probability():
    network, images, target = small(), torch.rand(5, 1, 16, 16).double(), torch.tensor([0, 1, 2, 1, 0])
    plain = F.cross_entropy(network(images), target)
    assert MixStyle(network, probability=0.0)(images, target, step())[0] == plain
    again, maps = step(2), images
    for number, stage in enumerate(network.stages):
        maps = stage(maps)
        if number in (1, 2):
            torch.rand((), generator=again.generator)
            lam = mixup.draw_beta(0.1, (5,), again.generator)
            maps = mixing.mixstyle(maps, lam, mixup.draw_partners(images, again))
    expected = F.cross_entropy(network.head(maps.mean((2, 3))), target)
    found = MixStyle(network, probability=1.0)(images, target, step(2))[0]
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, plain)
    values = [MixStyle(network)(images, target, step(seed))[0] for seed in range(200)]
    untouched = sum(bool(value == plain) for value in values) / 200
    assert abs(untouched - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 200), "at neither of two places"


@pytest.mark.parametrize("N", [2, 8])
def test_crossdomain_partners_are_of_the_other_half(N):
    images, seen = torch.zeros(N, 1, 1, 1), set()
    for seed in range(200):
        partners = mixup.draw_across(images, step(seed))
        assert sorted(partners.tolist()) == list(range(N))
        assert all((i < N // 2) != (j < N // 2) for i, j in enumerate(partners.tolist()))
        seen |= set(enumerate(partners.tolist()))
    assert len(seen) == N * N // 2, "every pair across the halves is drawn"
    for rank in range(2):  # of two processes, each inside its share, by draws of its own
        mine = [mixup.draw_across(images, step(seed, rank, 2)).tolist() for seed in range(20)]
        assert all((i < N // 2) != (j < N // 2) for partners in mine for i, j in enumerate(partners))
        other = [mixup.draw_across(images, step(seed, 1 - rank, 2)).tolist() for seed in range(20)]
        assert mine != other or N == 2


def test_crossdomain_by_hand():
    """Statistics by loops; the draws of each place are: to mix or not, ratios, partners of one half, of the other."""
    network, images, target = small(), torch.rand(6, 1, 16, 16).double(), torch.tensor([0, 1, 2, 1, 0, 2])
    again, maps = step(3), images
    for number, stage in enumerate(network.stages):
        maps = stage(maps)
        if number in (1, 2):
            torch.rand((), generator=again.generator)
            lam = mixup.draw_beta(0.1, (6,), again.generator).double()
            order = [torch.rand(3, generator=again.generator).argsort().tolist() for _ in range(2)]
            partners = [3 + j for j in order[0]] + order[1]
            mixed = torch.empty_like(maps)
            for i, j in enumerate(partners):
                for a in range(maps.shape[1]):
                    own, other = maps[i, a], maps[j, a]
                    spread = [(each.var() + 1e-6).sqrt() for each in (own, other)]
                    mixed[i, a] = (own - own.mean()) / spread[0] * (lam[i] * spread[0] + (1 - lam[i]) * spread[1])
                    mixed[i, a] += lam[i] * own.mean() + (1 - lam[i]) * other.mean()
            maps = mixed
    expected = F.cross_entropy(network.head(maps.mean((2, 3))), target)
    found = MixStyle(network, probability=1.0, mix="crossdomain")(images, target, step(3))[0]
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, MixStyle(network, probability=1.0)(images, target, step(3))[0])


def test_cutout_is_a_window_an_image():
    network, images = Recorder(), torch.rand(50, 1, 12, 12) + 0.1
    Cutout(network, 4)(images, torch.zeros(50, dtype=torch.int64), step())
    black = (network.seen == 0).sum((1, 2, 3))
    assert black.min() >= 4
    assert black.max() == 16
    assert len(black.unique()) > 3, "some hang over the edge"
    assert torch.equal(network.seen[network.seen > 0], images[network.seen > 0])


def test_cutout_of_several_holes_cuts_more_and_says_so():
    images, target = torch.rand(50, 1, 12, 12) + 0.1, torch.zeros(50, dtype=torch.int64)
    network = Recorder()
    several = Cutout(network, 4, holes=3)
    several(images, target, step())
    black = (network.seen == 0).sum((1, 2, 3))
    assert 16 < black.max() <= 48
    assert several.settings == {"size": 4, "holes": 3}
    assert Cutout(network, 4).settings == {"size": 4}, "as records have it"
    with pytest.raises(ValueError, match="holes: got 0; takes a whole number from 1"):
        Cutout(network, 4, holes=0)


# --- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_trains_bitwise_by_seed_and_says_what_it_is(name):
    of = data.load("fashion-mini", train_size=130, test_size=50)

    def run():
        torch.manual_seed(0)
        return training.fit(ALL[name](networks.small(10, width=4)), of, Recipe(epochs=2, batch_size=33), progress=False)

    one, two = run(), run()
    assert one.curves == two.curves
    assert all(math.isfinite(value) for value in one.curves["train_loss"])
    assert one.config["objective"] == name
    assert one.config["settings"].keys() >= ({"size"} if name == "Cutout" else {"probability"})
    assert training.capturable(ALL[name](networks.small(10, width=4)), Recipe())


@pytest.mark.parametrize("name", ALL)
def test_soft_labels_batch_of_one_and_images_that_are_not_square(name):
    torch.manual_seed(0)
    objective = ALL[name](networks.small(3, width=4, norm="group"))
    images, target = torch.rand(5, 1, 16, 24), torch.tensor([0, 2, 1, 1, 0])
    loss, _ = objective(images, target, step())
    soft, _ = objective(images, F.one_hot(target, 3).float(), step())
    torch.testing.assert_close(soft, loss)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters())
    alone, _ = objective(images[:1], target[:1], step())
    if name in ("Mixup", "CutMix", "SaliencyMix", "ManifoldMixup"):
        torch.testing.assert_close(alone, F.cross_entropy(objective.network(images[:1]), target[:1]))
    assert alone.isfinite()


@pytest.mark.parametrize("name", PIXELS)
def test_mixed_batch_under_autocast(name):
    objective = PIXELS[name](networks.small(3, width=4))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective(torch.rand(5, 1, 16, 16), torch.tensor([0, 2, 1, 1, 0]), step())
    assert loss.dtype == torch.float32


@pytest.mark.usefixtures("unchecked")
class TestBadInput:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda net: Mixup(net, alpha=0.0), r"alpha: got 0.0; takes a finite number above 0"),
            (lambda net: Mixup(net, alpha=math.inf), r"alpha: got inf"),
            (lambda net: Mixup(net, alpha="1"), r"alpha: got '1'"),
            (lambda net: CutMix(net, probability=1.5), r"probability: got 1.5; takes a finite number in \[0, 1\]"),
            (lambda net: CutMix(net, probability=True), r"probability: got True"),
            (lambda net: ResizeMix(net, low=0.5, high=0.2), r"high: got 0.2; takes a finite number in \[0.5, 1\]"),
            (lambda net: ResizeMix(net, low=-0.1), r"low: got -0.1; takes a finite number in \[0, 1\]"),
            (lambda net: Cutout(net, -1), r"size: got -1; takes a whole number from 0"),
            (lambda net: ManifoldMixup(net, last=3), r"last: got 3; takes 0 to 2, a stage before the last"),
            (lambda net: ManifoldMixup(net, last=True), r"last: got True; takes a whole number from 0"),
            (lambda net: MixStyle(net, last=0), r"last: got 0; takes a whole number from 1"),
            (lambda net: MixStyle(net, alpha=-1.0), r"alpha: got -1.0"),
            (lambda net: MixStyle(net, probability=math.nan), r"probability: got nan"),
            (lambda net: MixStyle(net, mix="domain"), r"mix: got 'domain'; takes one of random, crossdomain"),
        ],
    )
    def test_settings(self, make, message):
        with pytest.raises(ValueError, match=message):
            make(networks.small(3, width=4))

    def test_settings_are_plain(self):
        network = networks.small(3, width=4)
        for objective, expected in (
            (Mixup(network, np.float64(1)), {"alpha": 1.0, "probability": 1.0}),
            (ResizeMix(network, 0, 1), {"low": 0.0, "high": 1.0, "probability": 1.0}),
            (Cutout(network, np.int64(8)), {"size": 8}),
            (ManifoldMixup(network, 2, np.int64(1)), {"alpha": 2.0, "last": 1, "probability": 1.0}),
            (MixStyle(network, np.float32(0.5), 1), {"alpha": 0.5, "last": 2, "probability": 1.0}),
        ):
            assert objective.settings == expected
            types = {name: type(value) for name, value in objective.settings.items()}
            assert types == {name: int if name in ("size", "last") else float for name in expected}
        assert MixStyle(network, mix="crossdomain").settings["mix"] == "crossdomain"

    def test_crossdomain_takes_two_halves(self):
        with pytest.raises(
            ValueError, match="the batch: got 3; takes an even number of images, each half of one domain"
        ):
            MixStyle(small(), mix="crossdomain")(torch.rand(3, 1, 8, 8).double(), torch.tensor([0, 1, 2]), step())

    @pytest.mark.parametrize(
        ("kind", "arguments"),
        [(mixup.Mixing, "images, target, step"), (SalientMixing, "images, target, step, salient")],
    )
    def test_a_subclass_says_how_images_are_mixed(self, kind, arguments):
        class Undecided(kind):
            pass

        settings = () if kind is mixup.Mixing else (1.0, 1.0, 0.0)
        with pytest.raises(NotImplementedError, match=rf"Undecided has to define mix\({arguments}\)"):
            Undecided(small(), *settings)(torch.rand(2, 1, 8, 8).double(), torch.tensor([0, 1]), step())

    def test_networks_without_parts(self):
        with pytest.raises(TypeError, match="head"):
            Mixup(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
        with pytest.raises(TypeError, match="network: got Recorder; takes one with stages, pool and head"):
            ManifoldMixup(Recorder())

    def test_labels_of_other_classes(self):
        with pytest.raises(ValueError, match="target: got classes 0 to 3; takes 0 to 2"):
            Mixup(Recorder())(torch.rand(2, 1, 4, 4), torch.tensor([0, 3]), step())
        for make in (Mixup, ManifoldMixup):
            network = networks.small(3, width=4)
            with pytest.raises(ValueError, match=r"target: got soft labels of shape \(2, 4\); takes .* with C = 3"):
                make(network)(torch.rand(2, 1, 8, 8), torch.rand(2, 4), step())
            with pytest.raises(ValueError, match=r"target: got shape .1,.; takes .2,., or .N, C. for soft labels"):
                make(network)(torch.rand(2, 1, 8, 8), torch.tensor([0]), step())
