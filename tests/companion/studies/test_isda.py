"""ISDA's study: strengths chosen on validation data, differences over the right seeds, what is missing is said."""

from __future__ import annotations

import numpy as np
import pytest

from companion.records import Index, committed
from companion.studies import NothingToDraw, isda
from semaug.data import shapes
from semaug.training.record import Record

PLAIN, FULL, DIAGONAL = (arm.name for arm in isda.FORMS)
STRONG = "ISDA full, λ₀ = 1"
MINUS = "\N{MINUS SIGN}"


def record(study, arm, seed, gain=0.0, **metrics):
    """A run whose accuracy is 80% and a point more with every seed, plus a gain in points."""
    accuracy = 0.8 + 0.01 * seed + 0.01 * gain
    metrics = {"test_accuracy": accuracy, "validation_accuracy": accuracy - 0.01, "train_loss": 0.5} | metrics
    curves = {"train_loss": [1.0, 0.5], "validation_accuracy": [0.5, accuracy]}
    where = {"profile": study.profile, "environment": {"device": "test CPU"}}
    return Record({"recipe": {"epochs": 2}}, seed, metrics, curves, study=study.name, arm=arm, **where)


def runs(study, gains, seeds=range(3)):
    return [record(study, arm, seed, gain) for arm, gain in gains.items() for seed in seeds]


def rows(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def differences(axes):
    return [text.get_text().split(" ")[0] for text in axes.texts]


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_strength_is_chosen_on_validation_data():
    found = runs(isda.SMALL, {PLAIN: 0, FULL: 2, STRONG: 1, DIAGONAL: 1})
    for run in found:
        if run.arm == STRONG:
            run.metrics["test_accuracy"] = 0.99  # better on the test set, and not chosen for it
    assert list(isda.chosen(Index(records=found), isda.SMALL)) == [PLAIN, FULL, DIAGONAL]
    for run in found:
        if run.arm == STRONG:
            run.metrics["validation_accuracy"] = 0.99
    assert list(isda.chosen(Index(records=found), isda.SMALL)) == [PLAIN, STRONG, DIAGONAL]


def test_results_are_of_the_published_forms():
    study = isda.PIXELS[0]
    control = isda.CONTROLS[0].name
    index = Index(records=[*runs(study, {PLAIN: 0, FULL: 1, control: 9}), *runs(isda.WHOLE, {PLAIN: 0})])
    assert {name: list(by_arm) for name, (_, by_arm) in isda.results(index).items()} == {study.title: [PLAIN, FULL]}


def test_gains_over_the_strength_are_paired():
    found = [*runs(isda.SMALL, {PLAIN: 0, FULL: 2}), *runs(isda.SMALL, {STRONG: 1, DIAGONAL: 3}, range(2))]
    found[-1].metrics["test_accuracy"] += 0.001
    gained = isda.over_strength(Index(records=found), isda.SMALL)
    assert list(gained) == ["full"], "one strength of the diagonal form is no line"
    strengths, values = gained["full"]
    assert strengths == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(values, [[0, 2, 1], [0, 2, 1]], atol=1e-9)
    figure = isda.strength(Index(records=found))
    axes = figure.axes
    assert title(figure) == "ISDA over its strength", "nothing is said of a set without records"
    assert [panel.get_title("left") for panel in axes] == ["fashion-mini"]
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), [0, 2, 1], atol=1e-9)


def test_isda_beside_augmentations_of_pixels():
    plain, cutout, *_ = isda.PIXELS
    found = [*runs(plain, {PLAIN: 0, FULL: 2}), *runs(cutout, {PLAIN: -5, FULL: -3})]
    left, right = isda.augmentation(Index(records=found)).axes
    names = [f"{policy}: {arm}" for policy in ("no policy", "Cutout") for arm in (PLAIN, FULL)]
    assert rows(left) == [f"{name} (n = 3)" for name in names]
    assert differences(right) == ["+2.00", f"{MINUS}5.00", f"{MINUS}3.00"]


def test_controls_stand_beside_the_published_form():
    study, random, decay = isda.PIXELS[0], isda.CONTROLS[2].name, isda.CONTROLS[4].name
    found = [*runs(study, {PLAIN: 0, FULL: 2}), *runs(study, {random: -3, decay: -4}, range(2))]
    left, right = isda.controls(Index(records=found)).axes
    assert rows(left) == [f"{name} (n = 2)" for name in (PLAIN, FULL, "control random", "decay 0.99")]
    assert differences(right) == ["+2.00", f"{MINUS}3.00", f"{MINUS}4.00"]


def test_differences_of_heads_by_the_number_of_images():
    """Every pair is A - B on the same subsets, with an interval for each number of images."""
    found = []
    for k, arm in enumerate(isda.HEADS):
        for seed in range(3):
            curves = {"test_accuracy": [0.5 + 0.01 * k * size + 0.1 * seed for size in range(5)]}
            where = {"study": isda.FROZEN[0].name, "profile": isda.FROZEN[0].profile}
            found.append(Record({}, seed, {}, curves, arm=arm.name, **where))
    gains = isda.head_gains(Index(records=found))
    assert [round(each.mean, 6) for each in gains["ISDA shared", "tuned weight decay"]] == [0, 3, 6, 9, 12]
    assert all(each.n == 3 and each.half_width < 1e-9 for row in gains.values() for each in row)
    head, _, first, *_ = isda.head_table(gains).splitlines()
    assert head.startswith("| A − B \\ training images | 200 | 500 |")
    assert first.startswith("| tuned weight decay − cross-entropy | +0.00 ± 0.00 | +1.00 ± 0.00 |")
    with pytest.raises(NothingToDraw):
        isda.head_gains(Index(records=found[:3]))


def restored_record(study, metrics, classes):
    where = {"study": study.name, "profile": study.profile}
    return Record({"classes": list(classes)}, 0, metrics, arm=study.baseline.name, **where)


def restored_tiles(monkeypatch, classes):
    """A tile of column c in row r is all of value 20 r + c."""
    tiles = np.add.outer(20 * np.arange(classes), np.arange(9)).astype(np.uint8)
    tiles = np.broadcast_to(tiles[:, :, None, None, None], (classes, 9, 3, 64, 64))
    seen = np.repeat(np.arange(classes)[:, None], 9, 1)
    seen[:, 5] += 1  # the first of random noise is found in another class
    monkeypatch.setattr(isda, "pictures", lambda notebook, record: {"tiles": tiles, "classes": seen})


def values(axes):
    """What the tiles of a block show, from left to right."""
    (image,) = axes.images
    row = np.asarray(image.get_array())[32, :, 0]
    return row[34::68].tolist()


def test_restored_shapes_and_their_kinds_of_draws(monkeypatch):
    shares = {"class": 0.95, "random": 0.98, "between": 0.85}
    metrics = {f"kept, 2, {kind}": share for kind, share in shares.items()} | {"kept, restored": 0.97}
    metrics |= {"matched, 2, class": 0.6, "matched, 2, random": 0.08, "matched, 2, between": 0.5}
    metrics |= {"moved, 2, class": 0.5, "moved, 2, random": 0.2, "moved, 2, between": 0.4}
    classes = shapes.CLASSES
    restored_tiles(monkeypatch, len(classes))
    figure = isda.restored_shapes(Index(records=[restored_record(isda.RESTORED[0], metrics, classes)]))
    grid = np.array(figure.axes).reshape(len(isda.SHAPES), 5)
    for name, row in zip(isda.SHAPES, grid, strict=True):
        first = 20 * classes.index(name)
        found = [values(axes) for axes in row]
        assert found == [
            [first],
            [first + 1],
            [first + 2, first + 3, first + 4],
            *[[first + k, first + k + 1] for k in (5, 7)],
        ]
        assert row[0].get_ylabel() == name
        for axes, wrong in zip(row, (0, 0, 0, 1, 0), strict=True):
            assert (np.asarray(axes.images[0].get_array())[2, 8] == (220, 0, 0)).all() == wrong, "a red frame"
    titles = " ".join(axes.get_title("left") for axes in grid[0])
    assert [f"{100 * share:.0f}%, " in titles for share in shares.values()] == [True] * 3
    assert "2.5 times as much" in title(figure)
    metrics["moved, 2, random"] = 0.5
    record = restored_record(isda.RESTORED[0], metrics, classes)
    assert "times as much" not in title(isda.restored_shapes(Index(records=[record]))), (
        "nothing is claimed that is not so"
    )


def test_restored_faces_say_what_a_judge_sees(monkeypatch):
    metrics = {
        "kept, initial": 0.8,
        "kept, restored": 0.78,
        "kept, class": 0.7,
        "kept, random": 0.4,
        "kept, between": 0.3,
    }
    restored_tiles(monkeypatch, 4)
    record = restored_record(
        isda.RESTORED[1], metrics, ("a, not smiling", "a, smiling", "b, not smiling", "b, smiling")
    )
    figure = isda.restored_faces(Index(records=[record]))
    assert [axes.get_ylabel() for axes in figure.axes[::5]] == [
        f"{one},\n{two}" for one in "ab" for two in ("not smiling", "smiling")
    ]
    assert "70%" in title(figure)
    metrics["kept, random"] = 0.75
    assert "70%" not in title(isda.restored_faces(Index(records=[record]))), "nothing is claimed that is not so"


@pytest.mark.parametrize("name", isda.FIGURES)
def test_what_is_missing_is_said(name):
    few = [run for study in isda.STUDIES for run in runs(study, {PLAIN: 0})]
    for found in ([], few, [*few, *runs(isda.SIZES[500], {FULL: 1})]):
        with pytest.raises(NothingToDraw):
            isda.FIGURES[name](Index(records=found))


@pytest.mark.parametrize("name", isda.FIGURES)
def test_figures_of_the_committed_records_fit_a_page(name):
    figure = isda.FIGURES[name](committed("1_isda"))
    width, height = figure.get_size_inches()
    panels = [axes for axes in figure.axes if not axes.images]
    assert (width, height <= 6.6, len(panels) <= 6) == (7.5, True, True)
