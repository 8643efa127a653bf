"""MetaSAug's study, on records whose class accuracies are known: gains by group and class, over the right seeds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from companion.records import Index, by_frequency, committed
from companion.runs import Run
from companion.studies import NothingToDraw, metasaug
from companion.studies.metasaug import SMALL, STEEP
from semaug.data.sets import load
from semaug.training.record import Record

COUNTS = [400, 200, 50, 25, 10, 5]
BASE = np.array([0.9, 0.8, 0.6, 0.5, 0.3, 0.1])
NOISE = [0.0, 0.02, -0.01]


def record(arm, seed, *groups, study=SMALL, order=slice(None)):
    """Classes right as often as the base, plus what the seed adds to all, plus gains of the groups of two classes.

    The gains are in points, and a tenth more with every seed.
    """
    gains = np.repeat(np.array(groups or (0, 0, 0)) + 0.1 * seed * bool(groups), 2) / 100
    accuracy = (BASE + NOISE[seed] + gains)[order]
    metrics, counts = {"test_accuracy": float(accuracy.mean())}, np.array(COUNTS)[order].tolist()
    where = {"profile": study.profile, "environment": {"device": "a CPU"}, "study": study.name, "arm": arm}
    return Record({}, seed, metrics, {}, counts, accuracy.tolist(), **where)


@pytest.fixture
def found():
    records = [record("cross-entropy", seed) for seed in range(3)]
    records += [record("ISDA", seed, 2, 0, -4) for seed in (2, 0, 1)]
    records += [record("CE-DRW", seed, 0, 0, 6) for seed in (0, 1)]
    records += [record("MetaSAug", seed, 1, 1, 2) for seed in range(3)]
    return [*records, *(record("MetaSAug, no meta step", seed, 1, 1, 2) for seed in range(3))]


def rows(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def means(axes):
    return [container[0].get_xdata()[0] for container in axes.containers]


def title(figure):
    return figure.get_suptitle().replace("\n", " ")


def test_gains_are_paired_and_by_group(found):
    index = Index(records=found)
    two = {"first": index.of(SMALL, "cross-entropy"), "second": index.of(SMALL, "ISDA")}
    gained = {group: values["second"] for group, values in by_frequency(two).items()}
    expected = {"all": -2 / 3, "many": 2.0, "medium": 0.0, "few": -4.0}
    assert gained.keys() == expected.keys()
    for group, values in gained.items():
        np.testing.assert_allclose(values, expected[group] + np.array([0, 0.1, 0.2]), atol=1e-9)
    frequent = [record("cross-entropy", 0), record("ISDA", 0, 1, 1, 1)]
    for run in frequent:
        run.train_counts = [200] * 6
    assert list(by_frequency({run.arm: [run] for run in frequent})) == ["all", "many"]
    assert math.isnan(metasaug.scores(frequent[0])["few"])


def test_accuracy_shows_methods_that_share_a_seed_and_no_variants(found):
    lonely = record("LDAM", 0)
    lonely.seed = 7
    figure = metasaug.accuracy(Index(records=[*found, lonely]))
    (axes,) = figure.axes
    assert rows(axes) == ["CE-DRW", "ISDA", "MetaSAug"]
    np.testing.assert_allclose(means(axes), [2.05, -2 / 3 + 0.1, 4 / 3 + 0.1], atol=1e-9)
    assert axes.get_title("left").split("\n")[-1] == "n = 2 to 3"
    assert title(figure) == "Gains over cross-entropy"


@pytest.mark.parametrize(
    ("gain", "said"), [(3, "Gains over"), (-3, "MetaSAug is significantly better than LDAM-DRW on")]
)
def test_a_title_follows_the_records(found, gain, said):
    records = [record("LDAM-DRW", seed) for seed in range(3)]
    found = [run for run in found if run.arm != "MetaSAug"]
    figure = metasaug.accuracy(
        Index(records=[*found, *records, *(record("MetaSAug", s, gain, gain, gain) for s in range(3))])
    )
    assert title(figure).startswith(said)


def test_groups_show_the_gain_of_each(found):
    figure = metasaug.groups(Index(records=found))
    titles = ["many (2 classes)", "medium (2 classes)", "few (2 classes)"]
    assert [axes.get_title("left").split("\n")[0] for axes in figure.axes] == titles
    for axes, expected in zip(figure.axes, ([0.05, 2.1, 1.1], [0.05, 0.1, 1.1], [6.05, -3.9, 2.1]), strict=True):
        np.testing.assert_allclose(means(axes), expected, atol=1e-9)
    assert title(figure).startswith("Gains over cross-entropy"), "nothing was moved"


def test_groups_say_where_accuracy_moves_and_each_set_has_one_scale(found):
    other = [record("cross-entropy", seed, study=STEEP) for seed in range(3)]
    other += [record("class weights", seed, -30, 20, 10, study=STEEP) for seed in range(3)]
    figure = metasaug.groups(Index(records=[*found, *other]))
    limits = [axes.get_xlim() for axes in figure.axes]
    assert len(set(limits[:3])) == len(set(limits[3:])) == 1
    assert limits[0] != limits[3]
    assert title(figure) == f"{STEEP.title}: weights move accuracy from frequent to rarer classes"


def test_classes_stand_by_their_number_of_images(found):
    """Wherever they stand in the data set; on the seeds that all methods have."""
    chosen = {name: [run for run in found if run.arm == name] for name in ("cross-entropy", "ISDA", "CE-DRW")}
    left, right = metasaug.by_class({"a set": chosen}).axes
    assert [text.get_text() for text in right.get_legend().texts] == ["ISDA (n = 2): -2.6", "CE-DRW (n = 2): +4.0"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), 100 * (BASE + 0.01))
    np.testing.assert_allclose(right.lines[0].get_ydata(), np.array([2, 2, 0, 0, -4, -4]) + 0.05, atol=1e-9)
    seeds = right.lines[1].get_ydata().reshape(2, 6)  # two seeds, the second 0.1 points better than the first
    np.testing.assert_allclose(seeds, np.array([2, 2, 0, 0, -4, -4]) + np.array([[0.0], [0.1]]), atol=1e-9)
    assert [label.get_text() for label in right.get_xticklabels()] == [str(count) for count in COUNTS]
    turned = [
        record(name, seed, order=slice(None, None, -1)) for name in ("cross-entropy", "ISDA") for seed in range(2)
    ]
    left, _ = (figure := metasaug.classes(Index(records=turned))).axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), 100 * (BASE + 0.01))
    assert title(figure).startswith("Accuracy by class")
    others = [record(name, seed, -1, 0, 2) for name in ("LDAM-DRW", "MetaSAug") for seed in range(2)]
    words = "In the mean over the rarer half of the classes LDAM-DRW and MetaSAug gain everywhere"
    plain = [record(name, seed) for name in ("cross-entropy", "ISDA") for seed in range(2)]
    assert title(metasaug.classes(Index(records=[*plain, *others]))) == words


def test_ablation_is_against_metasaug_as_released(found):
    kept = [record("MetaSAug, Σ′ kept", seed, 2, 2, 3) for seed in (0, 1)]
    apart = [record("MetaSAug, stage 2 from 40%", seed) for seed in range(3)]
    figure = metasaug.ablation(Index(records=[*found, *kept, *apart]))
    (axes,) = figure.axes
    assert rows(axes) == ["no meta step", "Σ′ kept"]
    np.testing.assert_allclose(means(axes), [0, 1], atol=1e-9)
    assert title(figure) == "MetaSAug with other meta steps"
    far = [record("MetaSAug, α = 10,000, Σ′ projected", seed, 4, 4, 4 + seed) for seed in range(3)]
    assert "changes nothing" in title(metasaug.ablation(Index(records=[*found, *far])))


def test_stages_compare_what_shares_a_loss_or_a_stage(found):
    names = "MetaSAug, CE", "MetaSAug, CE, no meta step", "MetaSAug, stage 2 from 40%", "LDAM-DRW, stage 2 from 40%"
    more = [
        record(name, seed, *(3 * [gain])) for name, gain in zip(names, (1, 2, 1, 5), strict=True) for seed in (0, 1)
    ]
    ce, early = (figure := metasaug.stages(Index(records=[*found, *more]))).axes
    assert (rows(ce), rows(early)) == (["CE, no meta step", "CE-DRW"], ["LDAM-DRW, stage 2 from 40%"])
    np.testing.assert_allclose(means(ce), [1, 2 - 1], atol=1e-9)
    np.testing.assert_allclose(means(early), [4], atol=1e-9)
    assert title(figure) == "MetaSAug without its meta step, and without ISDA"
    third = record(names[0], 2, 1, 1, 1)
    better = [record(names[1], seed, *(3 * [2 + seed / 10])) for seed in range(3)]
    rest = [third, *(run for run in more if run.arm != names[1])]
    words = "Without its meta step MetaSAug is significantly better in 1 of 1 cases, in none significantly worse"
    assert title(metasaug.stages(Index(records=[*found, *better, *rest]))) == words
    worse = [record(names[1], seed, *(3 * [-seed / 10])) for seed in range(3)]
    assert (
        title(metasaug.stages(Index(records=[*found, *worse, *rest])))
        == "MetaSAug without its meta step, and without ISDA"
    )


def test_the_tail_shows_counts_accuracies_and_meta_steps():
    records = [record("cross-entropy", seed, study=STEEP) for seed in range(3)]
    records += [record("MetaSAug", seed, study=STEEP) for seed in range(2)]
    for run in records:
        run.curves["covariance_shift"] = [0.0, 2e-5, 1e-5 * (run.seed + 1)]
        run.class_accuracy[-1] = 0.0
    left, middle, right = (figure := metasaug.tail(Index(records=records))).axes
    assert [bar.get_height() for bar in left.patches] == COUNTS
    np.testing.assert_allclose([bar.get_height() for bar in middle.patches], [*(100 * BASE[:-1] + 1 / 3), 0])
    assert [line.get_xydata().tolist() for line in right.lines[:2]] == [
        [[2, 2e-5], [3, shift]] for shift in (1e-5, 2e-5)
    ]
    assert [text.get_position()[0] for text in middle.texts] == [5], "the class below 1%"
    assert title(figure) == f"Cross-entropy recognises less than 1% of a class with {COUNTS[-1]} images or fewer"
    for run in records:
        run.class_accuracy[0] = 0.0
    assert title(metasaug.tail(Index(records=records))).startswith("A long tail"), "a frequent class is missed as well"


def test_bars_are_on_common_seeds_and_the_last_train_on_the_meta_images_too(found):
    far = [record(metasaug.SIX[-1], seed, 3, 3, 3) for seed in range(3)]
    more = [record(name, seed, 4, 4, 4, study=metasaug.JOINED[0]) for name in ("cross-entropy",) for seed in range(3)]
    few = [record("CE-DRW", seed, study=metasaug.JOINED[0]) for seed in range(2)]
    found = [run for run in found if run.arm != "CE-DRW"]
    figure = metasaug.bars(Index(records=[*found, *far, *more, *few]))
    (axes,) = figure.axes
    assert rows(axes) == [
        "cross-entropy",
        "MetaSAug, no meta step",
        "MetaSAug",
        "MetaSAug, α = 10,000",
        metasaug.META_TOO,
    ]
    gained = [text.get_text().partition("(+")[2].split(" ")[0] for text in axes.texts]
    assert gained == ["", "1.43", "1.43", "3.10", "4.10"]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0, *[4 / 3 + 0.1] * 2, 3.1, 4.1], atol=1e-9)
    assert title(figure) == "MetaSAug as released is no better than without its meta step"


def test_trained_on_both_has_the_images_of_both():
    study = replace(metasaug.JOINED[0], recipe=replace(metasaug.JOINED[0].recipe, epochs=1, evaluate_every=1))
    run = Run(study, study.baseline, 0)
    trained, arrays = study.execute(run, None)
    apart = load(**SMALL.data)
    assert trained.train_counts == (apart.counts + 10).tolist()
    assert run.agrees(trained)
    assert arrays == {}


@pytest.mark.parametrize("name", metasaug.FIGURES)
def test_what_is_missing_is_said(found, name):
    for few in ([], found[:3]):
        with pytest.raises(NothingToDraw):
            metasaug.FIGURES[name](Index(records=few))


@pytest.mark.parametrize("name", metasaug.FIGURES)
def test_figures_of_the_committed_records_fit_a_page(name):
    figure = metasaug.FIGURES[name](committed("1_metasaug"))
    width, height = figure.get_size_inches()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert (width, round(height, 6) <= 6.6, len(panels) <= 6) == (7.5, True, True)
