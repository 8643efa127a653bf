"""Oracles: torch.distributions, scipy's pooled covariance, models whose measures are known beforehand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from semaug.core.metrics import accuracy
from semaug.data import shapes
from semaug.data.sets import Data, Split, load
from semaug.measures.codes import (
    Posterior,
    active_units,
    alignment,
    class_codes,
    consistency,
    judge,
    kl_by_coordinate,
    measures,
    movement,
    plane,
    posterior,
    probe_accuracy,
    reconstruction_error,
    samples,
    separation,
)
from semaug.methods.gvae import GVAE, AutoEncoder, ConditionalVAE, kept


def codes(n=400, latent=3, classes=4):
    """Classes apart along the first coordinate, nothing in the last."""
    torch.manual_seed(1)
    target = torch.arange(n) % classes
    mean = torch.randn(n, latent) + F.one_hot(torch.zeros(n).long(), latent) * 8.0 * target[:, None]
    mean[:, -1] = 0.01 * torch.randn(n)
    return Posterior(mean, torch.rand(n, latent) + 0.2, target)


class Factors:
    """A coder whose K = 7 coordinates are the true factors of the set ``shapes``, in parts of their ranges."""

    def __init__(self, split):
        self.split = split
        low, self.width = (torch.tensor(v) for v in zip(*((a, b - a) for a, b in shapes.RANGES.values()), strict=True))
        values = torch.stack([split.factors[name] for name in shapes.RANGES], 1)
        self.codes, self.low = (values - low) / self.width, low

    def posterior(self, images):
        return self.codes, torch.full_like(self.codes, 0.04)

    def decode(self, codes, target=None):
        values = self.low + self.width * codes
        factors = {name: values[:, i] for i, name in enumerate(shapes.RANGES)}
        for name in ("size", "x", "y", "brightness"):
            factors[name] = factors[name].clamp(*shapes.RANGES[name])
        return shapes.render(target, factors).floats()

    def along(self, mean, direction, steps, target=None):
        return torch.stack([self.decode(mean + 0.5 * i * direction, target) for i in range(-steps, steps + 1)], 1)


def test_kl_by_coordinate_is_that_of_torch_distributions():
    of = codes()
    expected = kl_divergence(Normal(of.mean, of.deviation), Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(kl_by_coordinate(of), expected)


def test_active_units_and_probe():
    of = codes()
    assert active_units(of) == 2
    assert active_units(of, threshold=2.0) == 1
    train, test = (Posterior(*(part[rows] for part in of)) for rows in (slice(0, 300), slice(300, 400)))
    onto = Posterior(torch.cat([F.one_hot(train.target, 4).float(), train.mean], 1), train.deviation, train.target)
    beyond = Posterior(torch.cat([F.one_hot(test.target, 4).float(), test.mean], 1), test.deviation, test.target)
    assert probe_accuracy(onto, beyond, 4) == 1.0
    nothing = Posterior(train.mean[:, 1:], train.deviation, train.target)
    unseen = Posterior(test.mean[:, 1:], test.deviation, test.target)
    assert probe_accuracy(nothing, unseen, 4) < 0.5  # .25 by chance, 100 images: four standard errors below .43


def test_class_codes_are_the_moments_of_draws():
    """The law of total covariance: draws of q(z|x) over the images of a class have these moments."""
    of = codes(n=40)
    found = class_codes(of, 4)
    generator = torch.Generator().manual_seed(0)
    for c in range(4):
        rows = (of.target == c).nonzero()[:, 0].repeat_interleave(40_000)
        draws = of.mean[rows] + of.deviation[rows] * torch.randn(len(rows), 3, generator=generator)
        np.testing.assert_allclose(found.mean[c], draws.mean(0), atol=0.02)  # 5 standard errors at 400,000 draws
        np.testing.assert_allclose(found.covariance[c], np.cov(draws.numpy().T, bias=True), atol=0.03)
        torch.testing.assert_close(found.deviation[c], of.deviation[of.target == c].mean(0))
    with pytest.raises(ValueError, match="no image of class 4"):
        class_codes(of, 5)


def test_samples_of_narrow_posteriors_far_apart():
    """Means a thousand apart on a line and the least deviation there is: singular in float32."""
    torch.manual_seed(0)
    mean = 1000 * torch.randn(60, 1) * torch.randn(8)
    of = class_codes(Posterior(mean, torch.full_like(mean, 0.0025), torch.zeros(60).long()), 1)
    model = GVAE(AutoEncoder(4, 1, (12, 12), 8, 4)).eval()
    assert samples(model, of, torch.zeros(5).long(), torch.Generator().manual_seed(0)).shape == (5, 1, 12, 12)


def test_samples_of_a_covariance_that_is_singular_even_in_float64():
    torch.manual_seed(0)
    mean = 1e12 * torch.randn(60, 1) * torch.randn(8)
    of = class_codes(Posterior(mean, torch.full_like(mean, 0.0025), torch.arange(60) % 2), 2)
    assert torch.linalg.cholesky_ex(of.covariance).info.any()

    class Through:
        def decode(self, codes, target=None):
            return codes[:, :, None, None]

        along = posterior = decode

    drawn = samples(Through(), of, torch.ones(50_000).long(), torch.Generator().manual_seed(0))[:, :, 0, 0].double()
    assert drawn.isfinite().all()
    expected = of.covariance[1]
    assert (torch.cov(drawn.T) - expected).abs().max() < 0.03 * expected.abs().max()


def test_codes_that_are_not_finite_are_refused():
    split = shapes.draw(5, 0, 16)
    model = GVAE(AutoEncoder(10, 3, (16, 16), latent=3, width=4)).eval()
    model.network.encoder[-1].bias.data.fill_(torch.inf)
    with pytest.raises(ValueError, match=r"(codes: got values that are not finite|logits that are NaN)"):
        posterior(model, split)


def test_samples_have_the_moments_of_their_class():
    of = class_codes(codes(n=80), 4)

    class Through(Factors):
        def __init__(self):
            pass

        def decode(self, codes, target=None):
            return codes[:, :, None, None]

    target = torch.full((50_000,), 2)
    drawn = samples(Through(), of, target, torch.Generator().manual_seed(0))[:, :, 0, 0]
    np.testing.assert_allclose(drawn.mean(0), of.mean[2], atol=0.03)
    np.testing.assert_allclose(np.cov(drawn.numpy().T), of.covariance[2], atol=0.06)


def test_kept_are_the_largest():
    deviation = torch.tensor([[0.3, 0.9, 0.1, 0.5], [1.0, 0.2, 0.4, 0.3]])
    assert kept(deviation, 0.5).tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert kept(deviation, 0.01).sum(1).tolist() == [1, 1]
    assert kept(deviation, 1.0).all()


def test_consistency_and_movement_of_known_traversals():
    """A judge that reads the class off the first pixel; columns that keep it, change it, or change half."""
    target = torch.arange(8) % 2
    image = target[:, None, None, None].float().expand(-1, 1, 2, 2)
    half = torch.where((torch.arange(8) < 4)[:, None, None, None], image, 1 - image)
    traversals = torch.stack([image, half, 1 - image], 1)

    def predict(images):
        return F.one_hot(images[:, 0, 0, 0].round().long(), 2).float()

    assert consistency(predict, traversals, target).tolist() == [1.0, 0.5, 0.0]
    assert movement(traversals).tolist() == pytest.approx([0.5**0.5, 0.0, 0.5**0.5])
    # Seven of class 0, one of class 1: traversals that all end in class 0 keep half of the classes, not 7/8 of them.
    most, black = (torch.arange(8) == 7).long(), torch.zeros(8, 1, 1, 2, 2)
    assert consistency(predict, black, most).tolist() == [0.5]


def test_reconstruction_error_is_by_pixel():
    split = shapes.draw(30, 0)
    coder = Factors(split)
    of = posterior_of(coder, split)
    assert reconstruction_error(coder, split, of) == pytest.approx(0.0, abs=1e-4)  # bytes, rounded twice
    shifted = Posterior(torch.roll(of.mean, 1, 0), of.deviation, torch.roll(of.target, 1))
    expected = (torch.roll(split.floats(), 1, 0) - split.floats()).square().mean()
    assert reconstruction_error(coder, split, shifted) == pytest.approx(expected.item(), rel=0.02)


def posterior_of(coder, split):
    return Posterior(*coder.posterior(split.images), split.target)


def test_alignment_finds_the_factor_of_each_coordinate():
    split = shapes.draw(60, 0)
    found = alignment(Factors(split), split)
    assert list(found) == list(shapes.RANGES)
    table = torch.stack(list(found.values()))  # factors by coordinates
    assert table.argmax(0).tolist() == list(range(7))
    assert (table.diagonal() > 0.8).all()
    assert (table - table.diagonal().diag()).max() < 0.75  # brightness and hue of the background share pixels


def test_the_judge_is_trained_once_on_real_images():
    of = load("fashion-mini", train_size=400, test_size=200)
    before = torch.get_rng_state()
    first = judge(of, steps=60)
    assert torch.equal(torch.get_rng_state(), before)
    assert judge(load("fashion-mini", train_size=400, test_size=200), steps=60) is first
    assert judge(load("fashion-mini", train_size=390, test_size=200), steps=1) is not first
    assert accuracy(first, of.test) > 0.6


def test_judges_are_kept_by_content_and_not_without_end(monkeypatch):
    trained, kept_judges = [], {}
    monkeypatch.setattr("semaug.measures.codes.fit", lambda objective, data, recipe, **_: trained.append(data))
    monkeypatch.setattr("semaug.measures.codes._judges", kept_judges)

    def of(seed):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (20, 1, 8, 8), generator=generator, dtype=torch.uint8)
        return Data("one name", *[Split(images, torch.arange(20) % 2)] * 2)

    judges = [judge(of(seed)) for seed in range(6)]
    assert len(trained) == 6
    assert [*kept_judges.values()] == judges[2:]
    assert judge(of(5)) is judges[5]
    assert len(trained) == 6
    assert judge(of(0)) is not judges[0]
    assert judge(of(5), steps=10) is not judges[5]


def test_the_judge_of_a_large_set_passes_it_ten_times(monkeypatch):
    recipes = []
    monkeypatch.setattr("semaug.measures.codes.fit", lambda objective, data, recipe, **_: recipes.append(recipe))
    monkeypatch.setattr("semaug.measures.codes._judges", {})
    judge(load("fashion-mini", train_size=6000, test_size=200))
    judge(load("fashion-mini", train_size=400, test_size=200), steps=60)
    assert [recipe.epochs for recipe in recipes] == [10, 19]


@pytest.mark.parametrize("kind", [GVAE, ConditionalVAE])
def test_measures_are_numbers_of_a_record(kind):
    torch.manual_seed(0)
    train, test = shapes.draw(60, 0, 16), shapes.draw(40, 1, 16)
    of = Data("shapes", train, test)
    model = kind(AutoEncoder(10, 3, (16, 16), latent=3, width=4)).eval()
    found = measures(model, of)
    assert all(isinstance(value, float) and np.isfinite(value) for value in found.values())
    assert {"kl", "probe_accuracy", "judge_accuracy", "consistency_0", "consistency_6", "tenth_consistency_6"} <= set(
        found
    )
    assert {f"alignment_{name}" for name in shapes.RANGES} <= set(found)
    assert found["consistency_0"] == found["tenth_consistency_0"]
    assert found["movement_0"] == 0 < found["movement_3"] < found["movement_6"] > found["tenth_movement_6"]
    again = posterior(model, test)
    assert found["kl"] == pytest.approx(kl_by_coordinate(again).sum().item())
    assert found == measures(model, of)


def test_alignment_needs_the_factors():
    of = load("fashion-mini", train_size=20, test_size=20)
    with pytest.raises(ValueError, match="split: got no factors angle"):
        alignment(Factors(shapes.draw(5, 0)), of.test)


class Grey:
    """Codes of constant images v: v and K - 1 zeros. They are decoded as the first two of K added up."""

    def __init__(self, latent=10):
        self.deviation = torch.tensor([0.1, 0.2] + [0.01] * (latent - 2))

    def posterior(self, images):
        grey = images.mean((1, 2, 3))[:, None]
        return F.pad(grey, (0, len(self.deviation) - 1)), self.deviation.expand(len(images), -1)

    def decode(self, codes, target=None):
        return codes[:, :2].sum(1).clamp(0, 1)[:, None, None, None].expand(-1, 1, 4, 4)

    def along(self, mean, direction, steps, target=None):
        return torch.stack([self.decode(mean + 0.5 * i * direction) for i in range(-steps, steps + 1)], 1)


def grey(train, test):
    """Data of dark (.25) and light (.75) images, each split with targets of its own."""
    splits = [Split((64 + 128 * light)[:, None, None, None].expand(-1, 1, 4, 4).byte(), target)
              for light, target in (train, test)]  # fmt: skip
    return Data("grey", *splits)


def by_light(images):
    return F.one_hot((images.mean((1, 2, 3)) > 0.5).long(), 2).float()


def test_the_plane_is_that_of_scikit_learn_and_separation_that_of_a_loop():
    from sklearn.decomposition import PCA

    generator = torch.Generator().manual_seed(3)
    target = torch.randint(4, (60,), generator=generator)
    mean = torch.randn(60, 5, generator=generator) + 1.5 * torch.eye(5)[target]
    points, share = plane(Posterior(mean, torch.ones(60, 5), target))
    reference = PCA(2).fit(mean.double().numpy())
    expected = torch.as_tensor(reference.transform(mean.double().numpy()))
    torch.testing.assert_close(points.abs(), expected.abs())  # the sign of a component is free
    torch.testing.assert_close(share[:2], torch.as_tensor(reference.explained_variance_ratio_))

    target[0] = 7  # alone in its class
    right: dict[int, list[float]] = {label: [] for label in range(4)}
    for i in range(1, 60):
        away = {}
        for label in range(4):
            others = [j for j in range(60) if j != i and target[j] == label]
            away[label] = float((points[i] - points[others].mean(0)).norm())
        right[int(target[i])].append(float(min(away, key=away.get) == int(target[i])))
    assert separation(points, target) == pytest.approx(np.mean([np.mean(r) for r in right.values()]))


def test_separation_at_its_ends():
    apart = torch.tensor([[0.0], [0.1], [5.0], [5.1], [9.0]])
    assert separation(apart, torch.tensor([0, 0, 3, 3, 1])) == 1
    same = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4000) % 4
    assert separation(same, labels) == pytest.approx(0.25, abs=0.03)  # three standard errors: .02


def test_measures_of_a_model_that_is_known(monkeypatch):
    """All numbers by hand. The classes of the training images are swapped: what is learned of them is always wrong."""
    monkeypatch.setattr("semaug.measures.codes.judge", lambda data, device: by_light)
    light = torch.arange(400) % 2
    found = measures(Grey(), grey((light, 1 - light), (light, light)), images=400)
    assert found["judge_accuracy"] == 1.0
    assert found["probe_accuracy"] == 0.0
    # The grey moves by .15 i, or by .1 i in the second coordinate alone: past .5 on one side of two from then on.
    assert [found[f"consistency_{i}"] for i in range(7)] == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [found[f"tenth_consistency_{i}"] for i in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.5]
    assert [found[f"movement_{i}"] for i in range(2)] == pytest.approx([0, 0.15])
    assert [found[f"tenth_movement_{i}"] for i in range(3)] == pytest.approx([0, 0.1, 0.2])
    assert found["each_consistency_6"] == pytest.approx((2 * 0.5 + 8) / 10)
    # Two unit normals on .25 and .75, cut to [0, 1]: the class stays with P(z < .25 / sqrt 2) = .570. 5 errors of 400.
    assert found["noise_consistency"] == pytest.approx(0.570, abs=0.125)
    assert 0.3 < found["noise_movement"] < 0.6
    # Codes of the other class, of standard deviation sqrt(.1^2 + .2^2): P(z > .25 / .2236) = .132.
    assert found["sample_consistency"] == pytest.approx(0.132, abs=0.085)
    assert found["active_units"] == 1


def test_codes_are_told_apart_by_gender_and_smile_where_these_are_known(monkeypatch):
    """The classes again, and a half of each class drawn at random, which nearest means find as often as chance."""
    monkeypatch.setattr("semaug.measures.codes.judge", lambda data, device: by_light)
    light = torch.arange(400) % 2
    of, drawn = grey((light, light), (light, light)), torch.randint(2, (400,))
    test = dataclasses.replace(of.test, factors={"male": light, "smiling": drawn})
    found = measures(Grey(), dataclasses.replace(of, test=test), images=20)
    assert found["plane_male_separation"] == found["plane_separation"] == 1
    assert found["plane_smiling_separation"] == pytest.approx(0.5, abs=0.15)
    assert not {"plane_male_separation", "plane_smiling_separation"} & measures(Grey(), of, images=20).keys()


def test_the_images_of_the_measures_are_no_first_ones(monkeypatch):
    """A set in order: the judge is right about the first half alone."""
    monkeypatch.setattr("semaug.measures.codes.judge", lambda data, device: by_light)
    light = (torch.arange(40) >= 20).long()
    found = measures(Grey(), grey((light, light), (light, 0 * light)), images=20)
    assert 0.2 < found["consistency_0"] < 0.8
    assert found["judge_accuracy"] == found["consistency_0"], "of the same images, which this model draws as they are"
