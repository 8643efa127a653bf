"""The figures of mixing, on records whose accuracies are known."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from scipy.stats import t

from companion import figures, ledger, mixing_figures, redraw
from semaug.measures.robustness import CORRUPTIONS
from semaug.training.record import Record

NOISE = [0.0, 0.02, -0.01]
EPSILONS = [0.003921569, 0.01568627]  # 1 and 4 of 255 as a record has them
AUTOMIX = {"alpha": 2.0, "momentum": 0.9, "policy": "block", "one_hot": True, "pipeline": True, "inference": "mixed"}
AUTOMIX |= {"stage": 3, "lambda_channel": True, "attention": True, "std": 0.3, "mask_weight": 1.0, "margin": 0.1}
AUTOMIX |= {"every": 1, "block_rate": 0.3}
RELEASED = {"momentum": 0.999, "std": 0.01, "block_rate": 1.0, "mask_weight": 0.1}
FIXED = {"alpha": 2.0, "momentum": 0.9, "one_hot": True, "pipeline": True, "inference": "mixed"}
SETTINGS = {"Mixup": {"alpha": 1.0, "probability": 1.0}, "Cutout": {"size": 8}, "AutoMix": AUTOMIX}
METHODS = {"CrossEntropy": 0.8, "Cutout": 0.81, "Mixup": 0.82, "PuzzleMix": 0.83, "AutoMix": 0.84}


def record(objective, seed, accuracy, name="embedded", network="small", epochs=4, profile="cpu", **settings):
    """A run that is right as often as said, plus what the seed adds; its other measures follow from that."""
    reached = accuracy + NOISE[seed]
    settings = settings or SETTINGS.get(objective, {})
    recipe = {"epochs": epochs, "evaluate_every": epochs // 2}
    data = {"name": name, "validation": 0.1, "train_size": 60, "imbalance": None}
    config = {"objective": objective, "network": network, "data": data, "recipe": recipe, "settings": settings}
    metrics = {
        "test_accuracy": reached,
        "validation_accuracy": reached - 0.1,
        "ece": (1 - reached) / 2,
        "mean_confidence": reached + 0.01 * (seed + 1),
    }
    metrics |= {f"{of}_accuracy": reached - 0.01 * k for k, of in enumerate(CORRUPTIONS)}
    metrics["corruption_accuracy"] = reached - 0.04
    curves = {"fgsm_epsilon": EPSILONS, "fgsm_accuracy": [reached - 0.2, reached - 0.5]}
    curves |= {"reliability_low": [0.6, 0.8], "reliability_high": [0.8, 1.0], "reliability_count": [10 + 10 * seed, 70]}
    curves |= {"reliability_accuracy": [0.5, reached], "reliability_confidence": [0.7, 0.9]}
    curves["validation_accuracy"] = [reached - 0.3, reached - 0.1]
    if objective == "AutoMix":
        curves["mask_spread"] = [0.1, 0.1, 0.1, 0.3 - 0.01 * seed]

    return Record(config, seed, metrics, curves, [10] * 6, [], 1.0, 0, profile, {"device": "a CPU"})


@pytest.fixture
def found():
    runs = [record(name, seed, value) for name, value in METHODS.items() for seed in (2, 0, 1)]
    runs = [run for run in runs if run.config["objective"] != "Cutout" or run.seed != 0]
    runs += [record("CrossEntropy", seed, 0.81 + 0.001 * seed, epochs=12) for seed in range(3)]
    runs += [record("Mixup", seed, 0.85, epochs=12) for seed in range(3)]
    runs += [record("AutoMix", seed, 0.83 - 0.002 * seed, **AUTOMIX | {"attention": False}) for seed in range(3)]
    runs += [record("AutoMix", seed, 0.8, **AUTOMIX | {"every": 4}) for seed in range(3)]
    runs += [record("AutoMix", seed, 0.82, **FIXED, policy="mixup") for seed in (0, 1)]
    runs += [record("AutoMix", seed, 0.81, **AUTOMIX | {"alpha": 1.0}) for seed in range(3)]
    runs += [record("AutoMix", seed, 0.86, **AUTOMIX | {"stage": 2}) for seed in (1, 2)]
    runs += [record(name, seed, 0.7, network="vit") for name in ("CrossEntropy", "Mixup") for seed in range(3)]
    runs += [record("ISDA", 0, 0.9)]  # no method of this notebook
    return runs


ROWS = ["Cutout", "mixup", "PuzzleMix", "AutoMix"]
GAINS = [1, 2, 3, 4]


def labels(axes):
    return [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]


def points(axes):
    return [container[0].get_xdata()[0] for container in axes.containers]


def half_widths(axes):
    ends = [container[2][0].get_segments()[0][:, 0] for container in axes.containers]
    return [(high - low) / 2 for low, high in ends]


def student(values):
    """Half of a 95% interval."""
    return t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("objective", "settings", "profile", "name"),
    [
        ("CrossEntropy", {}, "cpu", "cross-entropy"),
        ("Cutout", {"size": 8}, "cpu", "Cutout"),
        ("Mixup", {"alpha": 0.2, "probability": 1.0}, "cpu", "mixup, alpha 0.2"),
        ("AutoMix", AUTOMIX, "cpu", "AutoMix"),
        ("AutoMix", AUTOMIX | {"stage": 2}, "cpu", "AutoMix, stage 2"),
        ("AutoMix", AUTOMIX | {"block_rate": 1.0, "mask_weight": 0.1}, "cpu", mixing_figures.DRIVEN),
        ("AutoMix", AUTOMIX | RELEASED, "paper", "AutoMix"),
        ("AutoMix", AUTOMIX | RELEASED | {"std": 0.3, "momentum": 0.9}, "paper", "AutoMix, momentum 0.9, std 0.3"),
        ("AutoMix", {"policy": "cutmix", "momentum": 0.9}, "cpu", "AutoMix, CutMix as policy"),
        ("AutoMix", AUTOMIX | {"momentum": 0.0}, "cpu", "AutoMix, momentum 0"),
        ("AutoMix", AUTOMIX | {"std": 0.01}, "cpu", "AutoMix, std 0.01"),
        ("AutoMix", AUTOMIX | {"one_hot": False, "alpha": 4.0}, "cpu", "AutoMix, alpha 4.0, no one-hot pass"),
    ],
)
def test_a_run_is_called_by_what_is_not_as_usual(objective, settings, profile, name):
    assert set(mixing_figures.method(record(objective, 0, 0.5, profile=profile, **settings)).split(", ")) == set(
        name.split(", ")
    )


def test_the_ledger_has_every_method_as_usual_and_every_change_by_a_name(found):
    made = {"cpu": set(), "paper": set()}
    for run in ledger.mixing_runs():
        config = {"objective": run.objective, "settings": dict(run.settings)}
        made[run.profile].add(mixing_figures.method(Record(config, run.seed, profile=run.profile)))
    names = set(mixing_figures.NAMES.values()) - {"Co-Mixup"}
    assert names <= made["cpu"]
    assert names <= made["paper"]
    words = {f"AutoMix, {word}" for word in mixing_figures.WORDS.values()}
    assert made["cpu"] - names - words == {
        mixing_figures.DRIVEN,
        "AutoMix, alpha 1.0",
        "AutoMix, alpha 4.0",
        "AutoMix, stage 1",
        "AutoMix, stage 2",
    }
    assert words <= made["cpu"]
    assert made["paper"] - names <= words


def test_the_kinds_are_of_all_corruptions():
    assert sorted(name for names in mixing_figures.KINDS.values() for name in names) == sorted(CORRUPTIONS)


def test_a_study_is_of_one_network_and_in_order(found):
    small, vit = mixing_figures.studies(found).items()
    assert small[0] == "embedded, 60 images, small"
    longer = [
        "cross-entropy",
        "cross-entropy, 3x epochs",
        "Cutout",
        "mixup",
        "mixup, 3x epochs",
        "PuzzleMix",
        "AutoMix",
    ]
    changed = ["mixup as policy", "no attention", "block every 4 steps", "alpha 1.0", "stage 2"]
    assert list(small[1]) == [*longer, *(f"AutoMix, {word}" for word in changed)]
    assert vit[0] == "embedded, 60 images, vit"
    assert list(vit[1]) == ["cross-entropy", "mixup"]
    assert [run.seed for run in small[1]["mixup"]] == [0, 1, 2]
    assert list(mixing_figures.plain(small[1])) == ["cross-entropy", *ROWS]


def test_a_short_run_does_not_set_the_length_nor_does_a_method_without_the_seeds_of_cross_entropy_stand_there(found):
    short = record("Mixup", 0, 0.5, epochs=2)
    found = [run for run in found if run.config["objective"] != "Cutout" or run.seed == 1]
    found = [run for run in found if run.config["objective"] != "CrossEntropy" or run.seed != 1]
    study = mixing_figures.studies([*found, short])["embedded, 60 images, small"]
    assert [run.config["recipe"]["epochs"] for run in study["mixup"]] == [4, 4, 4]
    assert "Cutout" not in study
    with pytest.raises(ValueError, match=r"'mixup': got seeds \[0, 0, 1, 2\]; takes each seed once"):
        mixing_figures.studies([*found, record("Mixup", 0, 0.5)])


def test_quick_runs_give_way_to_longer_ones_and_devices_are_not_mixed(found):
    quick, paper = (
        [record("CrossEntropy", 0, 0.9, profile=profile), record("Mixup", 0, 0.95, profile=profile)]
        for profile in ("quick", "paper")
    )
    ours = mixing_figures.studies(found)
    assert mixing_figures.studies([*found, *quick]) == ours
    assert len(mixing_figures.studies([*found, *paper])) == len(ours) + 1, "another profile is another study"
    assert mixing_figures.studies([*found, paper[0]]) == ours, "cross-entropy alone is none"
    paper[1].environment["device"] = "a GPU"
    assert mixing_figures.studies([*found, *paper]) == ours, "nor is what ran elsewhere"
    (study,) = mixing_figures.studies(quick).values()
    assert list(study) == ["cross-entropy", "mixup"], "there is nothing else"


def test_accuracy_is_paired_with_cross_entropy_by_seed(found):
    small, vit = mixing_figures.accuracy(found).axes
    assert labels(small) == ROWS
    np.testing.assert_allclose(points(small), GAINS, atol=1e-9)
    np.testing.assert_allclose(points(vit), [0], atol=1e-9)
    title = small.get_title("left").replace("\n", " ")
    assert title == f"embedded, 60 images, small: {80 + 100 * np.mean(NOISE):.1f}% n = 2 to 3"
    dots = [line.get_xdata() for line in small.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate(dots), np.repeat(GAINS, [2, 3, 3, 3]), atol=1e-9)


def test_equal_passes_sets_the_dear_methods_against_longer_training(found):
    left, right = mixing_figures.equal_passes(found).axes
    expected = {
        "cross-entropy: 3x less 1x": [1, 1.1, 1.2],
        "PuzzleMix less 3x cross-entropy": [2, 1.9, 1.8],
        "AutoMix less 3x cross-entropy": [3, 2.9, 2.8],
        "mixup: 3x less 1x": [3, 3, 3],
        "PuzzleMix less 3x mixup": [-2, -2, -2],
        "AutoMix less 3x mixup": [-1, -1, -1],
    }
    assert labels(left) == list(expected)
    np.testing.assert_allclose(points(left), [np.mean(values) for values in expected.values()], atol=1e-9)
    np.testing.assert_allclose(half_widths(left), [student(values) for values in expected.values()], atol=1e-9)
    lines = {line.get_label(): line for line in right.lines}
    assert set(lines) == {
        "cross-entropy",
        "mixup",
        "PuzzleMix",
        "AutoMix",
        "cross-entropy, 3x epochs",
        "mixup, 3x epochs",
    }
    noise = 100 * np.mean(NOISE)
    for name, passes, reached in (
        ("AutoMix", [6, 12], 84),
        ("PuzzleMix", [4, 8], 83),
        ("mixup, 3x epochs", [6, 12], 85),
    ):
        np.testing.assert_allclose(lines[name].get_xdata(), passes)
        np.testing.assert_allclose(lines[name].get_ydata(), [reached - 30 + noise, reached - 10 + noise])
    assert right.get_ylabel() == "validation accuracy (%)"


def test_networks_show_what_ran_on_all_of_them(found):
    small, vit = mixing_figures.networks(found).axes
    assert labels(small) == ["mixup"]
    np.testing.assert_allclose([*points(small), *points(vit)], [2, 0], atol=1e-9)
    assert small.get_title("left").startswith("small, sgd, 4 epochs: 80.3%")
    there = copy.deepcopy(found)
    for run in there:
        run.environment = {"device": "a GPU"}
    assert len(mixing_figures.networks([*found, *there]).axes) == 4, "a pair of networks on each device"


def test_bins_hold_the_predictions_of_all_seeds(found):
    runs = [run for run in found if run.config["objective"] == "PuzzleMix"]
    runs[0].curves["reliability_low"] = [0.6, 0.8000001]  # the same edge with seven digits
    predictions = [(run.seed, 0, 0.7, 0.5) for run in runs for _ in range(10 + 10 * run.seed)]
    predictions += [(run.seed, 1, 0.9, 0.83 + NOISE[run.seed]) for run in runs for _ in range(70)]
    table = np.array(predictions)
    expected = [[(table[:, 1] == k).mean(), *table[table[:, 1] == k, 2:].mean(0)] for k in (0, 1)]
    np.testing.assert_allclose(mixing_figures.bins(runs), expected)
    assert sum(row[0] for row in expected) == pytest.approx(1)


def test_reliability_has_the_error_and_the_gap_over_common_seeds(found):
    panels = mixing_figures.reliability(found).axes
    assert [axes.get_title("left").split("\n")[0] for axes in panels] == ["cross-entropy", *ROWS]
    seeds = (1, 2)  # of Cutout
    error = np.mean([100 * (1 - 0.84 - NOISE[seed]) / 2 for seed in seeds])
    gap = np.mean([seed + 1 for seed in seeds])
    assert panels[-1].get_title("left") == f"AutoMix\nECE {error:.1f}\ngap +{gap:.1f}"
    _, line = panels[-1].lines
    np.testing.assert_allclose(line.get_xdata(), [0.7, 0.9])
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.84 + np.mean([NOISE[seed] for seed in seeds])])
    whole = [run for run in found if run.config["objective"] != "Cutout"]
    title = mixing_figures.reliability(whole).axes[-1].get_title("left")
    errors = [100 * (1 - 0.84 - noise) / 2 for noise in NOISE]
    assert title == f"AutoMix\nECE {np.mean(errors):.1f} ± {student(errors):.1f}\ngap +2.0 ± {student([1, 2, 3]):.1f}"


def test_fgsm_starts_with_the_images_as_they_are(found):
    found = [run for run in found if run.config["objective"] != "Cutout"]
    panels = mixing_figures.fgsm(found).axes
    assert [axes.get_title("left") for axes in panels] == ["cross-entropy", *ROWS[1:]]
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["0", "1", "4"]
    named = {line.get_label(): line for line in panels[-1].lines}
    reached = 100 * np.array([[0.84 + noise, 0.64 + noise, 0.34 + noise] for noise in NOISE])
    np.testing.assert_allclose(named["AutoMix (n = 3)"].get_ydata(), reached.mean(0))
    (band,) = panels[-1].collections
    top = band.get_paths()[0].vertices[:, 1].max()
    assert top == pytest.approx(reached[:, 0].mean() + student(reached[:, 0]))


def test_corruption_is_by_kind(found):
    for run in found:
        if run.config["objective"] == "Mixup":
            run.metrics["contrast_accuracy"] -= 0.09
    panels = mixing_figures.corruption(found).axes
    titles = [axes.get_title("left").replace("\n", " ") for axes in panels]
    assert [title.split(":")[0] for title in titles] == list(mixing_figures.KINDS)
    assert labels(panels[0]) == ROWS
    for axes, title in zip(panels, titles, strict=True):
        lost = 9 * title.startswith("contrast")
        np.testing.assert_allclose(points(axes), [1, 2 - lost, 3, 4], atol=1e-9)
    places = [list(CORRUPTIONS).index(name) for name in mixing_figures.KINDS["noise (4)"]]
    assert titles[0].startswith(f"noise (4): {80 + 100 * np.mean(NOISE) - np.mean(places):.0f}%")


def test_ablation_is_over_automix_with_passes_in_its_rows(found):
    (axes,) = mixing_figures.ablation(found).axes
    assert labels(axes) == ["mixup as policy (2)", "no attention (3)", "block every 4 steps (2.25)"]
    np.testing.assert_allclose(points(axes), [-2, -1.2, -4], atol=1e-9)
    title = axes.get_title("left").replace("\n", " ")
    assert title == f"AutoMix: {84 + 100 * np.mean(NOISE):.1f}%, 3 passes n = 2 to 3"


def test_spread_of_the_masks_has_a_line_a_seed(found):
    (axes,) = mixing_figures.mask_spread(found).axes
    ends = {line.get_label(): line.get_ydata()[-1] for line in axes.lines}
    named = ["AutoMix (n = 3)", "AutoMix, stage 2 (n = 2)", "AutoMix, no attention (n = 3)"]
    assert [name for name in ends if not name.startswith("_")] == named
    np.testing.assert_allclose(sorted(ends.values()), [0.28, 0.28, 0.28, 0.29, 0.29, 0.29, 0.3, 0.3])
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [1, 2, 3, 4])


def test_a_perfectly_calibrated_network_has_an_error_above_zero(found):
    run = next(run for run in found if run.config["objective"] == "PuzzleMix")
    count, confidence = (np.array(run.curves[f"reliability_{name}"]) for name in ("count", "confidence"))
    hits = np.random.default_rng(0).binomial(count.astype(int), confidence, (20_000, 2))
    errors = (np.abs(hits / count - confidence) * count / count.sum()).sum(1)
    assert abs(mixing_figures.floor(run) - errors.mean()) < 4 * errors.std() / 20_000**0.5


def test_alpha_and_stage_are_on_the_seeds_of_all_their_values(found):
    alpha, stage = mixing_figures.alpha_and_stage(found).axes
    noise = 100 * np.mean(NOISE)
    means = [axes.lines[-2].get_ydata() for axes in (alpha, stage)]
    np.testing.assert_allclose(means[0], [71 + noise, 74 + noise])
    np.testing.assert_allclose(means[1], [76.5, 74.5])
    assert [label.get_text() for label in stage.get_xticklabels()] == ["2", "3"]
    assert alpha.lines[-1].get_ydata()[0] == pytest.approx(70 + noise)
    only = mixing_figures.alpha_and_stage([run for run in found if run.config["settings"].get("stage") != 2]).axes
    assert [axes.get_xlabel() for axes in only] == [alpha.get_xlabel()]


def test_table_has_means_and_intervals(found):
    whole = [run for run in found if run.config["objective"] != "Cutout"]
    lines = mixing_figures.table(whole).splitlines()
    assert lines[0] == "**embedded, 60 images, small**: mean ± 95% interval, n = 3; profile cpu, a CPU."
    cells = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:] for line in lines[4:]}
    names = ["cross-entropy", "mixup", "PuzzleMix", "AutoMix", "cross-entropy, 3x epochs", "mixup, 3x epochs"]
    assert list(cells) == names
    reached, half = 84 + 100 * np.mean(NOISE), student(100 * np.array(NOISE))
    expected = [f"{reached:.1f} ± {half:.1f}", f"{(100 - reached) / 2:.1f} ± {half / 2:.1f}"]
    lost = {name: k for k, name in enumerate(CORRUPTIONS)}  # points, see record
    light = (lost.pop("brightness") + lost.pop("contrast")) / 2
    expected += [f"{reached - off:.1f} ± {half:.1f}" for off in (50, sum(lost.values()) / 7, light)] + ["3"]
    assert cells["AutoMix"] == expected
    assert [cells[name][-1] for name in names] == ["1", "1", "2", "3", "3", "3"]
    fewer = mixing_figures.table(found).splitlines()
    assert fewer[0] == "**embedded, 60 images, small**: mean, n = 2; profile cpu, a CPU."
    assert "±" not in "".join(fewer[4:])
    for run in found:
        run.curves["fgsm_epsilon"] = [1 / 255, 2 / 255]
    with pytest.raises(figures.NothingToDraw, match="FGSM of 4/255"):
        mixing_figures.table(found)


@pytest.mark.parametrize("metric", ["ece", "jpeg_accuracy"])
def test_a_record_without_a_measure_is_not_in_the_table(found, metric):
    del found[0].metrics[metric]
    with pytest.raises(figures.NothingToDraw, match=metric):
        mixing_figures.table([run for run in found if run.config["network"] == "small"])


@pytest.mark.parametrize("name", mixing_figures.FIGURES["3_automix"])
def test_what_is_missing_is_said(found, name):
    draw = mixing_figures.FIGURES["3_automix"][name]
    alone = [run for run in found if run.config["objective"] in ("CrossEntropy", "ISDA")]
    for few in ([], alone, found[-1:], [run for run in found if run.config["objective"] != "CrossEntropy"]):
        with pytest.raises(figures.NothingToDraw):
            draw(few)


def test_the_command_draws_them_too(found, tmp_path, capsys):
    for run in found:
        run.save(tmp_path / "records" / "3_automix")
    assert redraw.main(["--folder", str(tmp_path)]) == 0
    expected = {f"{name}.{kind}" for name in mixing_figures.FIGURES["3_automix"] for kind in ("png", "svg")}
    assert {path.name for path in (tmp_path / "3_automix").iterdir()} == expected
    assert f"drew     3_automix/ablation from {len(found)} records" in capsys.readouterr().out
