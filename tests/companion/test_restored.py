"""Restored and moved images: draws of equal length, a search that finds what the renderer drew, records with tiles."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from companion import restored
from companion.restored import Drawn, Search, apart, draws
from semaug.core.moments import ClassMoments
from semaug.data import shapes
from semaug.data.sets import Data, load
from semaug.data.split import Split
from semaug.training.recipe import Recipe


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def moments_of(classes=3, features=4):
    mixing = torch.randn(classes, features, features, generator=seeded(1))
    target = torch.arange(600) % classes
    rows = torch.randn(600, 1, features, generator=seeded(2)) @ mixing[target]
    moments = ClassMoments(classes, features)
    moments.update(rows[:, 0] + 3 * torch.eye(classes, features)[target], target)
    return moments


@pytest.mark.parametrize("kind", restored.KINDS)
def test_draws_have_their_covariance_and_equal_length(kind):
    moments, target = moments_of(), torch.arange(3).repeat(40_000)
    found = draws(moments, target, kind, seeded())
    for label in range(3):
        covariance = torch.cov(found[target == label].T)
        trace = moments.covariance[label].trace()
        means = moments.mean - moments.mean.mean(0)
        wanted = {"class": moments.covariance[label], "random": torch.eye(4), "between": means.T @ means}[kind]
        torch.testing.assert_close(covariance, trace * wanted / wanted.trace(), atol=0.03 * float(trace), rtol=0)


def test_factors_as_parts_of_their_ranges_give_the_images_back():
    split = shapes.draw(20, 3)
    again = Drawn.of(split).render()
    assert (again.images.int() - split.images.int()).abs().max() <= 1
    assert torch.equal(again.target, split.target)


def test_hues_and_angles_go_round():
    low, high = torch.full((7,), 0.1), torch.full((7,), 0.9)
    rounds = {"hue": 0.2, "angle": 0.2, "background_hue": 0.2}
    wanted = torch.tensor([rounds.get(name, 0.8) for name in shapes.RANGES])
    torch.testing.assert_close(apart(low, high), wanted)
    torch.testing.assert_close(apart(high, low), wanted)


def pooled(images):
    """Features that show what an image shows: 4 x 4 patches by colour."""
    return F.avg_pool2d(images, 4).flatten(1)


def mean_colour(images):
    """Features that hold hardly anything."""
    return images.mean((2, 3))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(restored, "BANK", 2000)
    monkeypatch.setattr(restored, "ROUNDS", 15)


def test_the_search_comes_nearer_than_all_of_its_bank(small):
    search, few = Search(pooled), shapes.draw(20, 5)
    goal = pooled(few.floats())
    found = search(goal, seeded())
    reached = (pooled(found.render().floats()) - goal).square().sum(1)
    bank = pooled(shapes.draw(2000, 77).floats())
    nearest = torch.stack([(bank - one).square().sum(1).min() for one in goal])
    assert (reached <= nearest + 1e-5).all()
    assert reached.mean() < 0.5 * nearest.mean()


def test_pixels_bring_back_what_features_do_not_hold(small):
    search, few = Search(mean_colour), shapes.draw(20, 5)
    goal = mean_colour(few.floats())
    alone, both = search(goal, seeded()), search(goal, seeded(), like=few.images)
    error = [(found.render().floats() - few.floats()).square().mean() for found in (alone, both)]
    assert error[1] < 0.2 * error[0]


def test_the_search_stays_where_nothing_has_to_move(small):
    search, few = Search(mean_colour), shapes.draw(20, 5)
    origin = Drawn.of(few)
    found = search(mean_colour(few.floats()), seeded(), near=origin)
    assert torch.equal(found.target, origin.target)
    torch.testing.assert_close(found.units, origin.units)
    far = search(mean_colour(few.floats()) + 0.1, seeded(), near=origin)
    assert apart(far.units, origin.units).sum(1).min() > 0.01


def test_shapes_leave_a_record_with_tiles(small, monkeypatch):
    monkeypatch.setattr(restored, "IMAGES", 20)
    monkeypatch.setattr(restored, "ROUNDS", 1)
    study = SimpleNamespace(data={"name": "shapes", "train_size": 200, "test_size": 20}, network="small")
    recipe = Recipe(epochs=1, batch_size=50)
    run = SimpleNamespace(study=study, seed=0, recipe=recipe, plan={"objective": "Restored"})
    record, arrays = restored.shapes_moved(run)
    again, _ = restored.shapes_moved(run)
    assert record.metrics == again.metrics
    assert arrays["tiles"].shape == (10, 2 + sum(restored.COLUMNS.values()), 3, 64, 64)
    assert arrays["classes"][:, 0].tolist() == list(range(10)), "a row a class"
    assert record.metrics["moved, restored, hue"] < record.metrics["moved, features alone, hue"]
    assert record.config["classes"] == list(shapes.CLASSES)


def test_shapes_are_measured_against_where_they_come_from(monkeypatch):
    """A search that gives restored images as they are, and moved ones with another hue, the first in another class."""
    data, hue = {"name": "shapes", "train_size": 200, "test_size": 20}, restored.FACTORS.index("hue")
    initial = Drawn.of(load(**data).test)

    class Shifted:
        def __init__(self, sees):
            pass

        def __call__(self, goal, generator, near=None, like=None, effort=1):
            if near is None:
                return initial
            target, units = near.target.clone(), near.units.clone()
            target[0], units[:, hue] = (target[0] + 1) % 10, (units[:, hue] + 0.1) % 1
            return Drawn(target, units)

    monkeypatch.setattr(restored, "IMAGES", 20)
    monkeypatch.setattr(restored, "Search", Shifted)
    run = SimpleNamespace(study=SimpleNamespace(data=data, network="small"), seed=0, recipe=Recipe(epochs=1), plan={})
    record, arrays = restored.shapes_moved(run)
    assert record.metrics["kept, restored"] == 1
    assert record.metrics["moved, restored"] == 0
    for name in (f"{strength}, {kind}" for strength in ("0.5", "2") for kind in restored.KINDS):
        assert record.metrics[f"kept, {name}"] == pytest.approx(0.95)
        assert record.metrics[f"moved, {name}, hue"] == pytest.approx(0.1 * 12**0.5, rel=1e-4)
        assert record.metrics[f"moved, {name}, size"] == 0
        assert record.metrics[f"moved, {name}"] == pytest.approx(0.1 * 12**0.5 / 6, rel=1e-4)
    lost = arrays["classes"] != np.arange(10)[:, None]
    assert lost.sum() == sum(restored.COLUMNS.values()), "the moved ones of one image"
    assert not lost[:, :2].any()


def faces(count, seed):
    """Images of 64 pixels in a space of three dimensions, mirrored in themselves: the class is the first coordinate."""
    line = torch.linspace(-1, 1, 64)
    patterns = torch.stack([line[:, None].expand(64, 64), line.abs().expand(64, 64), (line**2)[:, None] * line.abs()])
    target = torch.arange(count) % 4
    codes = torch.cat([target[:, None] / 3 - 0.5, 0.3 * torch.rand(count, 2, generator=seeded(seed))], 1)
    images = 0.5 + 0.5 * torch.einsum("nk,khw->nhw", codes, patterns)[:, None].expand(-1, 3, -1, -1)
    return Split((255 * images).round().clamp(0, 255).byte(), target)


def by_slope(images):
    """Logits of the true class of such an image: by the difference of its lowest and highest row."""
    slope = (images[:, 0, -1] - images[:, 0, 0]).mean(1)
    return -(slope[:, None] - (torch.arange(4) / 3 - 0.5)).square()


def test_faces_leave_a_record_with_tiles(monkeypatch):
    dataset = Data("made", faces(200, 0), faces(80, 1), classes=tuple("abcd"))
    monkeypatch.setattr(restored, "load", lambda **settings: dataset)
    monkeypatch.setattr(restored, "judge", lambda data: SimpleNamespace(eval=lambda: by_slope))
    monkeypatch.setattr(restored, "AXES", 3)
    monkeypatch.setattr(restored, "PLACES", (0, 1, 2, 3))
    run = SimpleNamespace(study=SimpleNamespace(data={}), seed=0, plan={"objective": "Restored"})
    record, arrays = restored.faces_moved(run)
    assert record.metrics["error"] < 1e-4, "three axes hold all"
    assert record.metrics["kept, initial"] == record.metrics["kept, restored"] == 1
    assert record.metrics["kept, class"] > 0.9, "within a class the slope stays"
    assert record.metrics["kept, between"] < record.metrics["kept, class"]
    tiles = arrays["tiles"]
    assert tiles.shape == (4, 2 + sum(restored.COLUMNS.values()), 3, 64, 64)
    initial = torch.stack([dataset.test.images[dataset.test.target == label][label] for label in range(4)])
    assert (tiles[:, 0] == initial.numpy()).all()
