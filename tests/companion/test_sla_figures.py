"""The figures of joint labels, on records whose accuracies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from companion import figures, redraw, sla_figures
from semaug.training.record import Record

COUNTS = [400, 200, 50, 25, 10, 5]
TAIL = np.array([0.9, 0.8, 0.6, 0.5, 0.3, 0.1])
NOISE = [0.0, 0.02, -0.01]
LOSSES = {"ce": {"loss": "ce", "beta": 0.9999, "defer": 0.8}, "ldam": {"loss": "ldam", "beta": 0.9999, "defer": 0.8}}


def record(objective, seed, single, aggregated=None, name="embedded", epochs=4, profile="cpu", **settings):
    """A run whose inferences are right as often as said, plus what the seed adds to both."""
    data = {"name": name, "validation": 0.1, "train_size": 60, "imbalance": None}
    metrics, recipe = {}, {"epochs": epochs, "evaluate_every": epochs // 2}
    curves = {"train_loss": [2.0, 1.0, 0.5, 0.2], "validation_accuracy": [0.5, 0.6]}
    if objective != "CrossEntropy":
        settings = {"transforms": "rotation", "inference": "single"} | settings
        for inference, value in (("single", single), ("aggregated", aggregated)):
            metrics[f"{inference}_test_accuracy"] = value + NOISE[seed]
        curves["class_loss"] = [1.0, 0.5, 0.2, 0.1]
    if "temperature" in settings:
        curves["distillation"] = [0.1, 0.2, 0.1, 0.05]
    metrics["test_accuracy"] = metrics.get(f"{settings.get('inference')}_test_accuracy", single + NOISE[seed])
    config = {"objective": objective, "network": "small", "data": data, "recipe": recipe, "settings": settings}
    where = {"profile": profile, "environment": {"device": "a CPU"}}
    return Record(config, seed, metrics, curves, [10] * 6, [metrics["test_accuracy"]] * 6, **where)


def tail(objective, seed, gain, **settings):
    """A run on a long tail whose classes gain so much, in pairs of many, medium and few, all a little with the seed."""
    run = record(objective, seed, 0.5, 0.5, **settings)
    run.config["data"] = {"name": "embedded", "validation": 0.1, "imbalance": 80}
    run.class_accuracy = (TAIL + NOISE[seed] + np.repeat(np.array(gain) + 0.001 * seed, 2)).tolist()
    run.metrics["test_accuracy"] = float(np.mean(run.class_accuracy))
    run.train_counts = COUNTS
    return run


@pytest.fixture
def found():
    runs = [record("CrossEntropy", seed, 0.8) for seed in range(3)]
    runs += [record("CrossEntropy", seed, 0.81, epochs=16) for seed in range(3)]
    runs += [record("DataAugmentation", seed, 0.75 + 0.001 * seed, 0.79) for seed in (2, 0, 1)]
    runs += [record("MultiTask", seed, 0.76, 0.80 + 0.01 * seed) for seed in (0, 1)]
    runs += [record("SLA", seed, 0.78, 0.83, inference="aggregated") for seed in range(3)]
    runs += [record("SLA", seed, 0.82, 0.84, temperature=1.0) for seed in range(3)]
    runs += [record("DataAugmentation", seed, 0.7, 0.72, transforms="rotation2") for seed in range(3)]
    runs += [tail("CrossEntropy", seed, (0, 0, 0)) for seed in range(3)]
    runs += [tail("SLA", seed, (0.01, 0, 0.02), inference="aggregated") for seed in range(3)]
    runs += [tail("SLA", seed, (0, 0.01, 0), temperature=1.0) for seed in range(3)]
    runs += [tail("LongTailed", seed, (0, 0, 0.03), normalised=False, **LOSSES["ldam"]) for seed in range(2)]
    runs += [tail("LongTailedSLA", seed, (0, 0, 0.05), inference="aggregated", **LOSSES["ce"]) for seed in range(2)]
    runs += [record("ISDA", 0, 0.9, 0.9)]  # no method of this notebook
    return runs


ROWS = ["cross-entropy, 4x epochs", "DA", "MT", "SLA, single", "SLA+SD", "DA, averaged", "MT, averaged", "SLA+AG"]
ROWS += ["SLA+SD+AG"]


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def points(axes):
    return [container[0].get_xdata()[0] for container in axes.containers]


@pytest.mark.parametrize(
    ("objective", "settings", "names"),
    [
        ("CrossEntropy", {}, ["cross-entropy"]),
        ("DataAugmentation", {}, ["DA", "DA, averaged"]),
        ("MultiTask", {"inference": "aggregated"}, ["MT", "MT, averaged"]),
        ("SLA", {}, ["SLA, single", "SLA+AG"]),
        ("SLA", {"temperature": 1.0}, ["SLA+SD", "SLA+SD+AG"]),
        ("SLA", {"temperature": 2.0}, ["SLA+SD, T = 2", "SLA+SD+AG, T = 2"]),
        ("SLA", {"temperature": 1.0, "distillation": 0.0}, ["SLA+SD, no KL", "SLA+SD+AG, no KL"]),
        ("LongTailed", {"normalised": False, **LOSSES["ce"]}, ["CE-DRW"]),
        ("LongTailedSLA", {"inference": "aggregated", **LOSSES["ce"]}, ["SLA, single, CE-DRW", "SLA+AG, CE-DRW"]),
        ("LongTailedSLA", LOSSES["ldam"], ["SLA, single, LDAM-DRW", "SLA+AG, LDAM-DRW"]),
    ],
)
def test_a_run_stands_for_each_of_its_inferences(objective, settings, names):
    assert list(sla_figures.inferences(record(objective, 0, 0.5, 0.6, **settings))) == names


def test_each_inference_has_its_own_accuracy():
    run = record("SLA", 1, 0.5, 0.6, inference="aggregated")
    one, many = sla_figures.inferences(run).values()
    assert (one.metrics["test_accuracy"], many.metrics["test_accuracy"]) == (0.52, 0.62)
    assert one.class_accuracy == []
    assert many.class_accuracy == run.class_accuracy
    assert (one.seed, one.hash) == (run.seed, run.hash)


def test_a_study_holds_one_set_of_transformations_and_longer_cross_entropy(found):
    ((title, study),) = sla_figures.studies(found).items()
    assert title == "embedded, 60 images"
    assert list(study) == ["cross-entropy", *ROWS]
    assert [record.seed for record in study["DA"]] == [0, 1, 2]
    ((_, other),) = sla_figures.studies(found, "rotation2").items()
    assert list(other) == ["cross-entropy", "DA", "DA, averaged"], "four times the epochs are too many for two views"
    assert sla_figures.studies(found, "color_perm") == {}, "cross-entropy alone is no study"
    names = ["cross-entropy", "LDAM-DRW", "SLA, single", "SLA+SD", "SLA+AG", "SLA+SD+AG"]
    names += ["SLA+AG, CE-DRW", "SLA, single, CE-DRW"]
    ((_, on_tail),) = sla_figures.studies(found, long_tail=True).items()
    assert list(on_tail) == names


def test_a_short_run_on_views_does_not_set_the_length_and_two_of_one_seed_are_an_error(found):
    short = record("CrossEntropy", 0, 0.5, epochs=2)
    ((_, study),) = sla_figures.studies([*found, short]).items()
    assert [run.config["recipe"]["epochs"] for run in study["cross-entropy"]] == [4, 4, 4]
    assert list(study) == ["cross-entropy", *ROWS]
    with pytest.raises(ValueError, match=r"'DA': got seeds \[0, 0, 1, 2\]; takes each seed once"):
        sla_figures.studies([*found, record("DataAugmentation", 0, 0.7, 0.7, accumulate=True)])


def test_two_sets_of_as_many_views_are_both_in_the_cost(found):
    other = [
        record("DataAugmentation", 0, 0.55, 0.65, transforms=name) for name in ("color_perm", "rotation2+color_perm3")
    ]
    (axes,) = sla_figures.cost([*found, *other]).axes
    of_six = [c for c in axes.containers if round(c[0].get_xdata()[0]) == 6]
    assert len(of_six) == 4


def test_two_profiles_are_two_panels_of_the_cost(found):
    other = [record("CrossEntropy", 0, 0.9, profile="paper")]
    other.append(record("SLA", 0, 0.9, 0.95, profile="paper", transforms="color_perm"))  # the cpu profile has none
    first, second = sla_figures.cost([*found, *other]).axes
    names = ["embedded, 60 images, cpu", "embedded, 60 images, paper"]
    assert [axes.get_title("left") or axes.get_title() for axes in (first, second)] == names
    assert [len(axes.containers) > 3 for axes in (first, second)] == [True, False]


def test_quick_runs_give_way_to_longer_ones(found):
    quick, paper = (
        [record("CrossEntropy", 0, 0.9, profile=profile), record("SLA", 0, 0.9, 0.95, profile=profile)]
        for profile in ("quick", "paper")
    )
    (study,) = sla_figures.studies(quick).values()
    assert list(study) == ["cross-entropy", "SLA, single", "SLA+AG"]
    ours = sla_figures.studies(found)
    assert sla_figures.studies([*found, *quick]) == ours
    assert len(sla_figures.studies([*found, *paper])) == len(ours) + 1, "another profile is another study"
    assert sla_figures.studies([*found, paper[0]]) == ours, "a baseline alone is none"
    elsewhere = [record("CrossEntropy", 0, 0.9, name="mnist"), record("SLA", 0, 0.9, 0.95, name="mnist")]
    assert list(sla_figures.studies([*found, *elsewhere])) == ["embedded, 60 images", "mnist, 60 images"]


def test_studies_of_one_name_are_both_there(found):
    other = [record("CrossEntropy", 0, 0.9), record("SLA", 0, 0.9, 0.95)]
    for run in other:
        run.config["data"]["train_size"] = 61  # counted by train_counts, which say 60
    first, second = sla_figures.studies([*found, *other])
    ours = next(run for run in found if run.config["objective"] == "CrossEntropy")
    assert {first, second} == {f"embedded, 60 images, {run.hash}" for run in (ours, other[0])}


def test_gains_are_by_seed(found):
    study = sla_figures.studies(found)["embedded, 60 images"]
    base = study["cross-entropy"]
    assert sla_figures.gains(study["DA"], base) == pytest.approx([-5, -4.9, -4.8])
    assert sla_figures.gains(study["MT, averaged"], base) == pytest.approx([0, 1]), "of the seeds that both have"
    losses = sla_figures.gains(study["DA"], base, lambda record: record.curves["train_loss"][-1])
    assert losses == [0, 0, 0]
    with pytest.raises(ValueError, match=r"baseline: got seeds \[0, 1, 2, 0\]; takes each seed once"):
        sla_figures.gains(study["DA"], [*base, base[0]])


def test_accuracy_shows_every_method_and_inference_against_cross_entropy(found):
    (axes,) = sla_figures.accuracy(found).axes
    assert labels(axes) == ROWS
    np.testing.assert_allclose(points(axes), [1, -4.9, -4, -2, 2, -1, 0.5, 3, 4], atol=1e-9)
    assert "n = 2 to 3" in axes.get_title("left")
    assert "80.3%" in axes.get_title("left").replace("\n", " ")
    low, high = axes.containers[1][2][0].get_segments()[0]  # of DA
    assert (high[0] - low[0]) / 2 == pytest.approx(t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    filled = [container[0].get_markerfacecolor() != "white" for container in axes.containers]
    assert filled == [False] * 5 + [True] * 4


def test_inference_pairs_each_network_with_itself(found):
    (axes,) = sla_figures.inference(found).axes
    assert labels(axes) == ["DA, averaged", "MT, averaged", "SLA+AG", "SLA+SD+AG"]
    np.testing.assert_allclose(points(axes), [3.9, 4.5, 5, 2], atol=1e-9)


def test_cost_counts_passes_in_training_by_views_and_epochs(found):
    (axes,) = sla_figures.cost(found).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    where = sorted((round(c[0].get_xdata()[0]), round(float(c[0].get_ydata()[0]), 6)) for c in axes.containers)
    assert where.count((2, round(70 + 100 * np.mean(NOISE), 6))) == 1
    assert [passes for passes, _ in where].count(1) == 2, "cross-entropy, once for each set of transformations"
    assert len(where) == 10 + 3


def test_training_shows_the_joint_and_the_class_loss(found):
    joint, of_class = sla_figures.training(found).axes
    assert [line.get_label() for line in joint.lines] == ["MT (n = 2)", "SLA+AG (n = 3)"]
    assert [line.get_label() for line in of_class.lines] == ["DA (n = 3)", "MT (n = 2)", "SLA+AG (n = 3)"]
    np.testing.assert_allclose(joint.lines[0].get_ydata(), [2.0, 1.0, 0.5, 0.2])
    np.testing.assert_allclose(of_class.lines[0].get_xdata(), [1, 2, 3, 4])
    assert joint.get_title("left") == "embedded, 60 images"
    with pytest.raises(figures.NothingToDraw, match="MT and SLA"):
        sla_figures.training(found, "rotation2")


def test_distilled_shows_the_head_and_its_divergence(found):
    accuracy, divergence = sla_figures.distilled(found).axes
    names = [line.get_label().split(" (")[0] for line in accuracy.lines]
    assert names == ["cross-entropy", "SLA+AG", "SLA+SD"]
    np.testing.assert_allclose(accuracy.lines[0].get_xdata(), [2, 4])
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 60])
    np.testing.assert_allclose(divergence.lines[0].get_ydata(), [0.1, 0.2, 0.1, 0.05])


def test_transforms_are_compared_on_one_set_of_images(found):
    axes = sla_figures.transforms(found).axes
    assert [panel.get_title("left").split("\n")[0] for panel in axes] == ["DA", "DA, averaged", "SLA, single", "SLA+AG"]
    assert labels(axes[0]) == ["rotation, M = 4", "rotation2, M = 2"]
    np.testing.assert_allclose(points(axes[0]), [-4.9, -10], atol=1e-9)
    assert len(axes[2].containers) == 1


def test_imbalance_shows_groups_of_the_inference_that_classes_are_known_of(found):
    axes = sla_figures.imbalance(found).axes
    assert [panel.get_title("left").split("\n")[0] for panel in axes] == ["all", "many", "medium", "few"]
    assert labels(axes[0]) == ["LDAM-DRW", "SLA+SD", "SLA+AG", "SLA+AG, CE-DRW"]
    expected = {"all": [1.0, 1 / 3, 1, 5 / 3], "many": [0, 0, 1, 0], "medium": [0, 1, 0, 0], "few": [3, 0, 2, 5]}
    for panel in axes:
        np.testing.assert_allclose(points(panel), expected[panel.get_title("left").split("\n")[0]], atol=1e-9)


@pytest.mark.parametrize("name", sla_figures.FIGURES["5_sla"])
def test_what_is_missing_is_said(found, name):
    draw = sla_figures.FIGURES["5_sla"][name]
    for few in ([], found[:6], found[-1:]):
        with pytest.raises(figures.NothingToDraw):
            draw(few)


def test_the_command_draws_them_too(found, tmp_path, capsys):
    for run in found:
        run.save(tmp_path / "records" / "5_sla")
    assert redraw.main(["--folder", str(tmp_path)]) == 0
    expected = {f"{name}.{kind}" for name in sla_figures.FIGURES["5_sla"] for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "5_sla").iterdir()} == expected
    assert f"drew     5_sla/imbalance from {len(found)} records" in capsys.readouterr().out
