"""The figures of joint labels, on records whose accuracies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from companion.records import Index
from companion.studies import NothingToDraw, sla
from semaug.training.record import Record

COUNTS = [400, 200, 50, 25, 10, 5]
TAIL = np.array([0.9, 0.8, 0.6, 0.5, 0.3, 0.1])
NOISE = [0.0, 0.02, -0.01]
FASHION, MNIST, TAILED = sla.SETS[0], sla.SETS[1], sla.TAILS[0]


def record(arm, seed, single, aggregated=None, study=FASHION):
    """A run whose inferences are right as often as said, plus what the seed adds to both."""
    chosen, metrics = study.arm(arm), {}
    curves = {"train_loss": [2.0, 1.0, 0.5, 0.2], "validation_accuracy": [0.5, 0.6]}
    settings = dict(chosen.settings)
    if "transforms" in settings:
        settings = {"inference": "aggregated" if "SLA" in chosen.objective else "single"} | settings
        for inference, value in (("single", single), ("aggregated", aggregated)):
            metrics[f"{inference}_test_accuracy"] = value + NOISE[seed]
        curves["class_loss"] = [1.0, 0.5, 0.2, 0.1]
    if "temperature" in settings:
        curves["distillation"] = [0.1, 0.2, 0.1, 0.05]
    metrics["test_accuracy"] = metrics.get(f"{settings.get('inference')}_test_accuracy", single + NOISE[seed])
    recipe = {"epochs": 4 * study.recipe_of(chosen).epochs // study.recipe.epochs}
    config = {"objective": chosen.objective, "settings": settings, "recipe": recipe}
    where = {"profile": study.profile, "study": study.name, "arm": arm, "environment": {"device": "a CPU"}}
    return Record(config, seed, metrics, curves, [10] * 6, [metrics["test_accuracy"]] * 6, **where)


def tail(arm, seed, gain):
    """A run on a long tail whose classes gain so much, in pairs of many, medium and few, all a little with the seed."""
    run = record(arm, seed, 0.5, 0.5, TAILED)
    run.class_accuracy = (TAIL + NOISE[seed] + np.repeat(np.array(gain) + 0.001 * seed, 2)).tolist()
    run.metrics["test_accuracy"] = float(np.mean(run.class_accuracy))
    run.train_counts = COUNTS
    return run


@pytest.fixture
def found():
    runs = [record("cross-entropy", seed, 0.8) for seed in range(3)]
    runs += [record("cross-entropy, 4x epochs", seed, 0.81) for seed in range(3)]
    runs += [record("cross-entropy, 2x epochs", seed, 0.82) for seed in range(2)]
    runs += [record("DA", seed, 0.75 + 0.001 * seed, 0.79) for seed in (2, 0, 1)]
    runs += [record("MT", seed, 0.76, 0.80 + 0.01 * seed) for seed in (0, 1)]
    runs += [record("SLA", seed, 0.78, 0.83) for seed in range(3)]
    runs += [record("SLA+SD", seed, 0.82, 0.84) for seed in range(3)]
    runs += [record("DA, rotation2", seed, 0.7, 0.72) for seed in range(3)]
    runs += [tail("cross-entropy", seed, (0, 0, 0)) for seed in range(3)]
    runs += [tail("SLA", seed, (0.01, 0, 0.02)) for seed in range(3)]
    runs += [tail("SLA+SD", seed, (0, 0.01, 0)) for seed in range(3)]
    runs += [tail("LDAM-DRW", seed, (0, 0, 0.03)) for seed in range(2)]
    return [*runs, *(tail("SLA, CE-DRW", seed, (0, 0, 0.05)) for seed in range(2))]


@pytest.fixture
def index(found):
    return Index(records=found)


ROWS = ["cross-entropy, 4x epochs", "DA", "MT", "SLA, single", "SLA+SD", "DA, averaged", "MT, averaged", "SLA+AG"]
ROWS += ["SLA+SD+AG"]


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def points(axes):
    return [container[0].get_xdata()[0] for container in axes.containers]


@pytest.mark.parametrize(("method", "names"), sla.NAMES.items())
def test_a_run_on_views_stands_for_each_of_its_inferences(method, names):
    study = FASHION if "DRW" not in method else TAILED
    run = record(method, 1, 0.5, 0.6, study)
    rows = sla.by_inference({"cross-entropy": [record("cross-entropy", 0, 0.4)], method: [run]})
    assert list(rows) == ["cross-entropy", *names]
    ((one,), (many,)) = (rows[name] for name in names)
    assert (one.metrics["test_accuracy"], many.metrics["test_accuracy"]) == (0.52, 0.62)
    own, other = (one, many) if run.config["settings"]["inference"] == "single" else (many, one)
    assert own.class_accuracy == run.class_accuracy
    assert other.class_accuracy == [], "of the inference of predict alone"
    assert (one.seed, one.hash, one.arm) == (run.seed, run.hash, method)


def test_every_arm_on_views_has_names_for_its_inferences():
    for study in sla.STUDIES:
        for arm in study.arms:
            if "transforms" in arm.settings:
                assert arm.name.removesuffix(f", {arm.settings['transforms']}") in sla.NAMES


def test_rows_hold_one_set_of_transformations_and_cross_entropy_of_as_many_passes(index):
    rows = sla.rows(index, FASHION)
    assert list(rows) == ["cross-entropy", *ROWS]
    assert [run.seed for run in rows["DA"]] == [0, 1, 2]
    two = sla.rows(index, FASHION, "rotation2")
    assert list(two) == ["cross-entropy", "cross-entropy, 2x epochs", "DA", "DA, averaged"]
    assert sla.rows(index, FASHION, "color_perm") == {}, "cross-entropy alone is no comparison"
    names = ["cross-entropy", "LDAM-DRW", "SLA, single", "SLA+SD", "SLA, single, CE-DRW"]
    assert list(sla.rows(index, TAILED)) == [*names, "SLA+AG", "SLA+SD+AG", "SLA+AG, CE-DRW"]


def test_the_leaderboard_has_every_set_of_transformations(index):
    results = sla.results(index)
    assert list(results) == [
        "fashion-mini, 2,000 images, rotation",
        "fashion-mini, ρ = 100, rotation",
        "fashion-mini, 2,000 images, rotation2",
    ]
    study, rows = results["fashion-mini, 2,000 images, rotation2"]
    assert study.title == "fashion-mini, 2,000 images, rotation2"
    assert {run.arm for run in rows["DA, averaged"]} == {"DA, rotation2"}
    assert study.arm("DA, rotation2").passes == 2


def test_accuracy_shows_every_method_and_inference_against_cross_entropy(index):
    figure = sla.accuracy(index)
    (axes,) = figure.axes
    assert labels(axes) == ROWS
    np.testing.assert_allclose(points(axes), [1, -4.9, -4, -2, 2, -1, 0.5, 3, 4], atol=1e-9)
    assert "n = 2 to 3" in axes.get_title("left")
    assert "80.3%" in axes.get_title("left")
    low, high = axes.containers[1][2][0].get_segments()[0]  # of DA
    assert (high[0] - low[0]) / 2 == pytest.approx(t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    filled = [container[0].get_markerfacecolor() != "white" for container in axes.containers]
    assert filled == [False] * 5 + [True] * 4
    low, high = axes.containers[2][2][0].get_segments()[0]  # of MT, at two seeds
    assert low[0] == high[0]


def test_the_title_names_the_sets_where_sla_is_ahead_at_equal_passes(found):
    def title(accuracy):
        others = [record(arm, seed, 0.9, 0.9, MNIST) for arm in ("cross-entropy", "SLA") for seed in range(3)]
        longer = [record("cross-entropy, 4x epochs", seed, accuracy, study=MNIST) for seed in range(3)]
        return sla.accuracy(Index(records=[*found, *others, *longer])).get_suptitle()

    assert title(0.95).endswith("only on fashion-mini")
    assert title(0.85) == "Gains over cross-entropy, by method and inference"


def test_inference_pairs_each_network_with_itself(index):
    figure = sla.inference(index)
    (axes,) = figure.axes
    assert labels(axes) == ["DA, averaged", "MT, averaged", "SLA+AG", "SLA+SD+AG"]
    np.testing.assert_allclose(points(axes), [3.9, 4.5, 5, 2], atol=1e-9)
    assert figure.get_suptitle() == "What M passes gain over one", "more by SLA than by DA, in every seed"


def test_cost_counts_passes_in_training_by_views_and_epochs(index):
    (axes,) = sla.cost(index).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    where = sorted((round(c[0].get_xdata()[0]), round(float(c[0].get_ydata()[0]), 6)) for c in axes.containers)
    assert where.count((2, round(70 + 100 * np.mean(NOISE), 6))) == 1
    assert [passes for passes, _ in where].count(1) == 2, "cross-entropy, once for each set of transformations"
    assert len(where) == 10 + 4


def test_two_sets_of_as_many_views_are_both_in_the_cost(found):
    shapes = sla.SETS[2]
    arms = ("cross-entropy", "DA, rotation+color_perm3", "DA, color_perm")
    (_, axes) = sla.cost(Index(records=[*found, *(record(arm, 0, 0.5, 0.6, shapes) for arm in arms)])).axes
    assert sorted(round(c[0].get_xdata()[0]) for c in axes.containers) == [1, 1, 6, 6, 12, 12]


def test_training_shows_the_joint_and_the_class_loss(index):
    (joint,), (of_class,) = sla.training(index).axes, sla.class_loss(index).axes
    assert [line.get_label() for line in joint.lines] == ["MT (n = 2)", "SLA+AG (n = 3)"]
    assert [line.get_label() for line in of_class.lines] == ["DA (n = 3)", "MT (n = 2)", "SLA+AG (n = 3)"]
    np.testing.assert_allclose(joint.lines[0].get_ydata(), [2.0, 1.0, 0.5, 0.2])
    np.testing.assert_allclose(of_class.lines[0].get_xdata(), [1, 2, 3, 4])
    assert joint.get_title("left") == "fashion-mini\n2,000 images\nn = 2 to 3"


def test_distilled_shows_the_head_and_its_divergence(index):
    (accuracy,), (divergence,) = sla.distilled(index).axes, sla.divergence(index).axes
    names = [line.get_label().split(" (")[0] for line in accuracy.lines]
    assert names == ["cross-entropy", "SLA+AG", "SLA+SD"]
    np.testing.assert_allclose(accuracy.lines[0].get_xdata(), [2, 4])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 60])
    np.testing.assert_allclose(divergence.lines[0].get_ydata(), [0.1, 0.2, 0.1, 0.05])


def test_transforms_are_compared_on_one_set_of_images(index, found):
    axes = sla.transforms(index).axes
    assert [panel.get_title("left").split("\n")[0] for panel in axes] == ["DA", "DA, averaged", "SLA, single", "SLA+AG"]
    assert labels(axes[0]) == ["fashion-mini: rotation (4)", "fashion-mini: rotation2 (2)"]
    np.testing.assert_allclose(points(axes[0]), [-4.9, -10], atol=1e-9)
    assert len(axes[2].containers) == 1
    with pytest.raises(NothingToDraw, match="two sets of transformations"):
        sla.transforms(Index(records=[run for run in found if "rotation2" not in run.arm]))


def test_imbalance_shows_groups_of_the_inference_that_classes_are_known_of(index):
    axes = sla.imbalance(index).axes
    assert [panel.get_title("left").split("\n")[0] for panel in axes] == ["all", "many", "medium", "few"]
    assert labels(axes[0]) == ["LDAM-DRW", "SLA+SD", "SLA+AG", "SLA+AG, CE-DRW"]
    expected = {"all": [1.0, 1 / 3, 1, 5 / 3], "many": [0, 0, 1, 0], "medium": [0, 1, 0, 0], "few": [3, 0, 2, 5]}
    for panel in axes:
        np.testing.assert_allclose(points(panel), expected[panel.get_title("left").split("\n")[0]], atol=1e-9)


@pytest.mark.parametrize("name", sla.FIGURES)
def test_what_is_missing_is_said(found, name):
    for few in ([], found[:8], found[-1:]):
        with pytest.raises(NothingToDraw):
            sla.FIGURES[name](Index(records=few))


@pytest.mark.parametrize("name", sla.FIGURES)
def test_figures_fit_a_page(index, name):
    figure = sla.FIGURES[name](index)
    width, height = figure.get_size_inches()
    assert width <= 7.5
    assert height <= 6.6
