"""Runs for pictures: masks that are kept while AutoMix trains, and photographs pasted into larger canvases."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from companion import masks
from semaug import Data, Recipe, Split, fit, networks
from semaug.methods.automix import AutoMix

PAIRS = ((3, 1), (0, 6))


@pytest.fixture
def photographs():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=generator).byte()
    split = Split(images, torch.arange(40) % 4)
    return Data("photographs", split, split, split)


def model():
    torch.manual_seed(0)
    return AutoMix(networks.small(4, 3, width=4), stage=2, std=0.5)


def test_partners_exchange_the_pairs_and_turn_the_others():
    partners = masks.partners_of(PAIRS, 8)
    assert sorted(partners.tolist()) == [*range(8)]
    assert partners[[3, 1, 0, 6]].tolist() == [1, 3, 6, 0]
    assert partners[[2, 4, 5, 7]].tolist() == [7, 2, 4, 5]


def test_masks_are_those_of_the_block_in_a_step(photographs):
    made, images = model().train(), photographs.test.floats()
    partners = masks.partners_of(PAIRS, len(images))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = masks.masks_at(made, images, partners)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items()), "looking changes nothing"
    assert found.shape == (11, 40, 8, 8)
    expected = made.masks(images, masks.LAMS[3], partners)[:, 0, ::4, ::4]
    torch.testing.assert_close(found[3], expected)


def test_a_training_that_is_watched_is_the_same_and_keeps_its_masks(photographs, tmp_path):
    recipe = Recipe(epochs=2, batch_size=10)
    plain, watched = model(), model()
    alone = fit(plain, photographs, recipe, progress=False)
    masks.keep_masks(watched, photographs, PAIRS, 2, 4)
    record = fit(watched, photographs, recipe, resume=tmp_path / "state.pt", progress=False)
    assert record.metrics == alone.metrics
    partners = masks.partners_of(PAIRS, 40)
    last = masks.masks_at(watched, photographs.test.floats(), partners)
    kept = watched.get_buffer("kept_masks")
    assert kept.shape == (2, 2, 11, 8, 8)
    assert torch.equal(kept[1], (255 * last[:, [3, 0]]).round().byte().transpose(0, 1))
    torch.testing.assert_close(watched.get_buffer("kept_means")[1], last.mean((1, 2, 3)))
    assert not torch.equal(kept[0], kept[1])
    again = model()
    masks.keep_masks(again, photographs, PAIRS, 2, 4)
    fit(again, photographs, recipe, resume=tmp_path / "state.pt", progress=False)
    assert torch.equal(again.get_buffer("kept_masks"), kept), "a checkpoint holds them"


def test_a_watched_run_has_its_curves_and_arrays(photographs, monkeypatch):
    monkeypatch.setattr(masks, "load", lambda **_: photographs)
    study = SimpleNamespace(data={})
    run = SimpleNamespace(study=study, build=lambda _: model(), recipe=Recipe(epochs=1, batch_size=20), seed=0)
    record, arrays = masks.watch(SimpleNamespace(**vars(run), checkpoint=None), None, PAIRS)
    assert len(record.curves["mask_mean_0.3"]) == len(record.curves["mask_spread_1"]) == 1
    assert arrays["masks"].shape == (1, 2, 11, 8, 8)
    assert arrays["pairs"].shape == (2, 2, 3, 32, 32)
    assert arrays["puzzles"].shape == (2, 5, 3, 32, 32)
    assert arrays["names"].tolist() == [["3", "1"], ["0", "2"]]
    np.testing.assert_array_equal(arrays["pairs"][0, 0], photographs.test.images[3])


def test_a_photograph_lies_in_its_box(photographs):
    split = replace(photographs.test, images=torch.full((40, 3, 32, 32), 200).byte())
    split.images[20:] = 90
    found = masks.pasted(split, 40, 0)
    assert found.images.shape == (40, 3, 40, 40)
    top, left, bottom, right = found.boxes.T
    assert ((bottom - top == right - left) & (bottom - top >= masks.SMALLEST) & (bottom - top <= masks.LARGEST)).all()
    assert ((top >= 0) & (left >= 0) & (bottom <= 40) & (right <= 40)).all()
    assert (found.masks.sum((1, 2)) == (bottom - top) * (right - left)).all()
    inside = found.images.amax(1)[found.masks]
    assert set(inside.tolist()) == {200, 90}, "its own colours alone"
    assert torch.equal(masks.pasted(split, 40, 0).images, found.images)
    assert not torch.equal(masks.pasted(split, 40, 1).images, found.images)


def test_a_guess_is_one_box_in_the_middle():
    def split(*boxes):
        count = len(boxes)
        return Split(torch.zeros(count, 1, 40, 40).byte(), torch.zeros(count).long(), boxes=torch.tensor(boxes))

    middle, corner = [10, 10, 30, 30], [0, 0, 10, 10]
    assert masks.guess(split(middle), split(middle, corner, corner, corner), 40) == 0.25


def test_a_run_that_localises_has_its_measures(photographs, monkeypatch):
    monkeypatch.setattr(masks, "load", lambda **_: photographs)
    study = SimpleNamespace(data={"name": "photographs", "pasted on": 40})
    build = lambda data: AutoMix(networks.small(4, 3, width=4), stage=2)  # noqa: E731
    run = SimpleNamespace(study=study, build=build, recipe=Recipe(epochs=1, batch_size=20), seed=0, checkpoint=None)
    record, arrays = masks.localise(run, None, shown=3)
    assert {"box", "pointing", "overlap", "threshold", "box_guess"} <= record.metrics.keys()
    assert record.config["data"]["pasted on"] == 40
    assert arrays["canvases"].shape == (3, 3, 40, 40)
    assert arrays["maps"].shape == (3, 40, 40)
    assert arrays["boxes"].shape == (3, 2, 4)
