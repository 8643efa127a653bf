"""The figures of mixing, on records whose accuracies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import t

from companion import masks, records
from companion.records import Index
from companion.studies import NothingToDraw, automix
from companion.studies.automix import CIFAR, FASHION, VIT
from semaug.measures.robustness import CORRUPTIONS
from semaug.training.record import Record

NOISE = [0.0, 0.02, -0.01]
EPSILONS = [0.003921569, 0.01568627]  # 1 and 4 of 255 as a record has them
METHODS = {"cross-entropy": 0.8, "Cutout": 0.81, "mixup": 0.82, "PuzzleMix": 0.83, "AutoMix": 0.84}


def record(arm, seed, accuracy, study=FASHION):
    """A run that is right as often as said, plus what the seed adds; its other measures follow from that."""
    reached = accuracy + NOISE[seed]
    epochs = study.recipe_of(study.arm(arm)).epochs
    config = {"objective": study.arm(arm).objective, "study": study.name, "arm": arm, "recipe": {"epochs": epochs}}
    metrics = {
        "test_accuracy": reached,
        "validation_accuracy": reached - 0.1,
        "ece": (1 - reached) / 2,
        "mean_confidence": reached + 0.01 * (seed + 1),
    }
    metrics |= {f"{of}_accuracy": reached - 0.01 * k for k, of in enumerate(CORRUPTIONS)}
    curves = {"fgsm_epsilon": EPSILONS, "fgsm_accuracy": [reached - 0.2, reached - 0.5]}
    curves |= {"reliability_low": [0.6, 0.8], "reliability_high": [0.8, 1.0], "reliability_count": [10 + 10 * seed, 70]}
    curves |= {"reliability_accuracy": [0.5, reached], "reliability_confidence": [0.7, 0.9]}
    curves["validation_accuracy"] = [reached - 0.3, reached - 0.1]
    if config["objective"] == "AutoMix":
        curves["mask_spread"] = [0.1, 0.4, 0.2, 0.19 - 0.01 * seed]
    where = {"profile": study.profile, "study": study.name, "arm": arm, "environment": {"device": "a CPU"}}
    return Record(config, seed, metrics, curves, [10] * 6, **where)


@pytest.fixture
def found():
    runs = [record(name, seed, value) for name, value in METHODS.items() for seed in (2, 0, 1)]
    runs = [run for run in runs if (run.arm, run.seed) != ("Cutout", 0)]
    runs += [record("cross-entropy, 3× epochs", seed, 0.81 + 0.001 * seed) for seed in range(3)]
    runs += [record("mixup, 3× epochs", seed, 0.85) for seed in range(3)]
    runs += [record("AutoMix, no attention", seed, 0.83 - 0.002 * seed) for seed in range(3)]
    runs += [record("AutoMix, block every 4 steps", seed, 0.8) for seed in range(3)]
    runs += [record("AutoMix, mixup as policy", seed, 0.82) for seed in (0, 1)]
    runs += [record("AutoMix, α = 1", seed, 0.81) for seed in range(3)]
    runs += [record("AutoMix, stage 2", seed, 0.86) for seed in (1, 2)]
    return [*runs, *(record(name, seed, 0.7, VIT) for name in ("cross-entropy", "mixup") for seed in range(3))]


def drawn(name, found):
    return automix.FIGURES[name](Index(records=found))


ROWS = ["Cutout", "mixup", "PuzzleMix", "AutoMix"]
GAINS = [1, 2, 3, 4]


def without(found, *arms):
    return [run for run in found if run.arm not in arms]


def labels(axes):
    return [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]


def means(axes):
    return [container[0].get_xdata()[0] for container in axes.containers]


def half_widths(axes):
    ends = [container[2][0].get_segments()[0][:, 0] for container in axes.containers]
    return [(high - low) / 2 for low, high in ends]


def student(values):
    """Half of a 95% interval."""
    return t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))


def title(axes):
    return axes.get_title("left").replace("\n", " ")


def test_passes_are_as_many_as_its_settings_say():
    """AutoMix: the images, the mixtures, and every k-th step those that the block learns from."""
    for study in automix.STUDIES:
        for arm in (arm for arm in study.arms if arm.objective == "AutoMix"):
            settings = arm.settings
            learns = settings.get("policy", "block") == "block" and settings.get("pipeline", True)
            expected = 1 + settings.get("one_hot", True) + learns / settings.get("every", 1)
            assert arm.passes == expected, arm.name


def test_an_arm_that_is_said_to_change_one_setting_does():
    usual = {
        "policy": "block",
        "pipeline": True,
        "one_hot": True,
        "lambda_channel": True,
        "attention": True,
        "every": 1,
    }
    usual |= {"alpha": 2.0, "stage": 3, **automix.CHOSEN}
    for arm in FASHION.arms:
        if arm.variant:
            changed = {name for name, value in arm.settings.items() if usual[name] != value}
            assert len(changed) == (2 if arm is automix.RELEASED_RATE else 1), arm.name
    assert [arm.settings.get("alpha", 2.0) for arm in automix.ALPHAS.values()] == list(automix.ALPHAS)
    assert [arm.settings.get("stage", 3) for arm in automix.STAGES.values()] == list(automix.STAGES)


def test_the_kinds_are_of_all_corruptions():
    assert sorted(name for names in automix.KINDS.values() for name in names) == sorted(CORRUPTIONS)


def test_accuracy_is_paired_with_cross_entropy_by_seed(found):
    figure = drawn("accuracy", [*found, record("cross-entropy", 0, 0.6, CIFAR), record("AutoMix", 0, 0.5, CIFAR)])
    fashion, cifar = figure.axes
    assert labels(fashion) == ROWS, "no variant, and nobody with more epochs"
    np.testing.assert_allclose(means(fashion), GAINS, atol=1e-9)
    np.testing.assert_allclose(means(cifar), [-10], atol=1e-9)
    assert title(fashion) == f"fashion-mini, 2,000 images: {80 + 100 * np.mean(NOISE):.1f}% n = 2 to 3"
    dots = [line.get_xdata() for line in fashion.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate(dots), np.repeat(GAINS, [2, 3, 3, 3]), atol=1e-9)
    assert fashion.get_xlim() == cifar.get_xlim()


def test_a_headline_counts_the_intervals_above_zero(found):
    for run in found:
        if run.arm == "mixup":
            run.metrics["test_accuracy"] += 0.1 * (-1) ** run.seed  # an interval about zero
    assert drawn("accuracy", found).get_suptitle() == "Significant gains over cross-entropy: 2 of 4 on fashion-mini"


def test_equal_passes_sets_automix_against_longer_training(found):
    figure = drawn("equal_passes", found)
    (axes,) = figure.axes
    expected = {
        "cross-entropy: 3× epochs − 1×": [1, 1.1, 1.2],
        "AutoMix − cross-entropy of 3× epochs": [3, 2.9, 2.8],
        "mixup: 3× epochs − 1×": [3, 3, 3],
        "AutoMix − mixup of equal epochs": [2, 2, 2],
        "AutoMix − mixup of 3× epochs": [-1, -1, -1],
    }
    assert labels(axes) == list(expected)
    np.testing.assert_allclose(means(axes), [np.mean(values) for values in expected.values()], atol=1e-9)
    np.testing.assert_allclose(half_widths(axes), [student(values) for values in expected.values()], atol=1e-9)
    message = "AutoMix − mixup: −1.0 ± 0.0 points at equal passes, +2.0 ± 0.0 at equal epochs"
    assert figure.get_suptitle().replace("\n", " ") == message
    few = drawn("equal_passes", without(found, "mixup, 3× epochs"))
    assert few.get_suptitle() == "AutoMix against longer training"
    assert labels(few.axes[0]) == [list(expected)[row] for row in (0, 1, 3)]
    with pytest.raises(NothingToDraw):
        drawn("equal_passes", [run for run in found if run.study != FASHION.name or "3×" not in run.arm])


def test_networks_show_what_ran_on_both(found):
    figure = drawn("networks", found)
    small, vit = figure.axes
    np.testing.assert_allclose([*means(small)[:1], *means(vit)], [2, 0], atol=1e-9)
    assert title(small).startswith("small network, 40 epochs: 80.3%")
    assert figure.get_suptitle() == "Significant gains: 2 of 2 with the small network, 0 of 1 with the ViT"
    with pytest.raises(NothingToDraw):
        drawn("networks", [run for run in found if run.study != VIT.name])


def test_bins_hold_the_predictions_of_all_seeds(found):
    runs = [run for run in found if run.arm == "PuzzleMix"]
    runs[0].curves["reliability_low"] = [0.6, 0.8000001]  # the same edge with seven digits
    predictions = [(run.seed, 0, 0.7, 0.5) for run in runs for _ in range(10 + 10 * run.seed)]
    predictions += [(run.seed, 1, 0.9, 0.83 + NOISE[run.seed]) for run in runs for _ in range(70)]
    rows = np.array(predictions)
    expected = [[(rows[:, 1] == k).mean(), *rows[rows[:, 1] == k, 2:].mean(0)] for k in (0, 1)]
    np.testing.assert_allclose(automix.bins(runs), expected)
    assert sum(row[0] for row in expected) == pytest.approx(1)


def test_reliability_has_the_error_and_the_gap_over_common_seeds(found):
    panels = drawn("reliability", found).axes
    seeds = (1, 2)  # of Cutout
    error = np.mean([100 * (1 - 0.84 - NOISE[seed]) / 2 for seed in seeds])
    gap = np.mean([seed + 1 for seed in seeds])
    assert panels[-1].get_title("left") == f"AutoMix, n = 2\nECE {error:.1f}, gap +{gap:.1f}"
    _, line = panels[-1].lines
    np.testing.assert_allclose(line.get_xdata(), [0.7, 0.9])
    np.testing.assert_allclose(line.get_ydata(), [0.5, 0.84 + np.mean([NOISE[seed] for seed in seeds])])
    last = drawn("reliability", without(found, "Cutout")).axes[-1]
    errors = [100 * (1 - 0.84 - noise) / 2 for noise in NOISE]
    words = f"ECE {np.mean(errors):.1f} ± {student(errors):.1f}, gap +2.0 ± {student([1, 2, 3]):.1f}"
    assert last.get_title("left") == f"AutoMix, n = 3\n{words}"


def test_calibration_has_the_sign_of_every_method(found):
    found = without(found, "Cutout")
    for run in found:
        run.metrics["mean_confidence"] -= 0.1 * (run.arm == "AutoMix")
    figure = drawn("calibration", found)
    (axes,) = figure.axes
    assert labels(axes) == ["cross-entropy", *ROWS[1:]]
    np.testing.assert_allclose(means(axes), [2, 2, 2, -8])
    np.testing.assert_allclose(half_widths(axes), [student([1, 2, 3])] * 4)
    assert figure.get_suptitle() == "Significantly less sure than right: 1 of 4 on fashion-mini"


def test_a_perfectly_calibrated_network_has_an_error_above_zero(found):
    run = next(run for run in found if run.arm == "PuzzleMix")
    count, confidence = (np.array(run.curves[f"reliability_{name}"]) for name in ("count", "confidence"))
    hits = np.random.default_rng(0).binomial(count.astype(int), confidence, (20_000, 2))
    errors = (np.abs(hits / count - confidence) * count / count.sum()).sum(1)
    assert abs(automix.floor(run) - errors.mean()) < 4 * errors.std() / 20_000**0.5


def test_fgsm_is_of_4_over_255(found):
    for run in found:
        run.curves["fgsm_accuracy"][1] += 0.07 * (run.arm == "mixup")
    (axes,) = drawn("fgsm", found).axes
    assert labels(axes) == ROWS
    np.testing.assert_allclose(means(axes), [1, 9, 3, 4], atol=1e-9)
    assert title(axes).startswith("fashion-mini, 2,000 images: 30.3%")
    for run in found:
        run.curves["fgsm_epsilon"] = [1 / 255, 2 / 255]
    for draw in (automix.fgsm, automix.table):
        with pytest.raises(NothingToDraw, match="FGSM of 4/255"):
            draw(Index(records=found))


def test_corruption_is_by_kind(found):
    for run in found:
        run.metrics["contrast_accuracy"] -= 0.09 * (run.arm == "mixup")
    rest, light = drawn("corruption", found).axes
    assert labels(rest) == ROWS
    np.testing.assert_allclose(means(rest), GAINS, atol=1e-9)
    np.testing.assert_allclose(means(light), [1, 2 - 4.5, 3, 4], atol=1e-9)
    places = [list(CORRUPTIONS).index(name) for name in ("brightness", "contrast")]
    assert title(light).startswith(f"fashion-mini, 2,000 images: {80 + 100 * np.mean(NOISE) - np.mean(places):.1f}%")


def test_ablation_is_over_automix_with_passes_in_its_rows(found):
    figure = drawn("ablation", found)
    (axes,) = figure.axes
    assert labels(axes) == ["mixup as policy (2)", "no attention (3)", "block every 4 steps (2.25)"]
    np.testing.assert_allclose(means(axes), [-2, -1.2, -4], atol=1e-9)
    assert title(axes).endswith(f"AutoMix, 3 passes: {84 + 100 * np.mean(NOISE):.1f}% n = 2 to 3")
    assert figure.get_suptitle().endswith("significantly worse: 2 of 3; better: 0 of 3"), "two seeds decide nothing"


def test_spread_of_the_masks_has_a_line_a_seed(found):
    figure = drawn("mask_spread", found)
    panels = {title(axes): axes for axes in figure.axes}
    assert list(panels) == ["AutoMix n = 3", "stage 2 n = 2", "no attention n = 3"]
    ends = [line.get_ydata()[-1] for axes in panels.values() for line in axes.lines]
    np.testing.assert_allclose(sorted(ends), [0.17, 0.17, 0.17, 0.18, 0.18, 0.18, 0.19, 0.19])
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [1, 2, 3, 4])
    alone = [record("AutoMix, no pipeline", seed, 0.8) for seed in range(2)]
    said = []
    for last in (0.39, 0.1):
        for run in alone:
            run.curves["mask_spread"][-1] = last
        said.append(drawn("mask_spread", [*found, *alone]).get_suptitle())
    assert said == [
        "AutoMix's masks fade during training; without the pipeline they do not",
        "Spread of the masks during training",
    ]


def test_alpha_and_stage_are_on_the_seeds_of_all_their_values(found):
    alpha, stage = drawn("alpha_and_stage", found).axes
    noise = 100 * np.mean(NOISE)
    over = [axes.lines[-2].get_ydata() for axes in (alpha, stage)]
    np.testing.assert_allclose(over[0], [71 + noise, 74 + noise])
    np.testing.assert_allclose(over[1], [76.5, 74.5])
    assert [label.get_text() for label in stage.get_xticklabels()] == ["2", "3"]
    assert alpha.lines[-1].get_ydata()[0] == pytest.approx(70 + noise)
    only = drawn("alpha_and_stage", without(found, "AutoMix, stage 2")).axes
    assert [axes.get_xlabel() for axes in only] == [alpha.get_xlabel()]


def test_table_has_means_and_intervals(found):
    whole = [run for run in without(found, "Cutout") if run.study == FASHION.name]
    lines = automix.table(Index(records=whole)).splitlines()
    assert lines[0] == "**fashion-mini, 2,000 images**: mean ± 95% interval, n = 3; profile cpu, a CPU."
    cells = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[1:] for line in lines[4:]}
    names = ["cross-entropy", "mixup", "PuzzleMix", "AutoMix", "cross-entropy, 3× epochs", "mixup, 3× epochs"]
    assert list(cells) == names
    reached, half = 84 + 100 * np.mean(NOISE), student(100 * np.array(NOISE))
    expected = [f"{reached:.1f} ± {half:.1f}", f"{(100 - reached) / 2:.1f} ± {half / 2:.1f}"]
    lost = {name: k for k, name in enumerate(CORRUPTIONS)}  # points, see record
    light = (lost.pop("brightness") + lost.pop("contrast")) / 2
    expected += [f"{reached - off:.1f} ± {half:.1f}" for off in (50, sum(lost.values()) / 7, light)] + ["3"]
    assert cells["AutoMix"] == expected
    assert [cells[name][-1] for name in names] == ["1", "1", "2", "3", "3", "3"]
    fewer = automix.table(Index(records=found)).splitlines()
    assert fewer[0] == "**fashion-mini, 2,000 images**: mean, n = 2; profile cpu, a CPU."
    assert "±" not in "".join(fewer[4 : 4 + len(METHODS)])


@pytest.mark.parametrize("metric", ["ece", "jpeg_accuracy"])
def test_a_study_without_a_measure_is_not_in_the_table(found, metric):
    del found[0].metrics[metric]
    assert "ViT" in automix.table(Index(records=found)).splitlines()[0]
    with pytest.raises(NothingToDraw, match=metric):
        automix.table(Index(records=[run for run in found if run.study == FASHION.name]))


@pytest.mark.parametrize("name", automix.FIGURES)
def test_what_is_missing_is_said(found, name):
    for few in ([], [run for run in found if run.arm == "cross-entropy"], without(found, "cross-entropy")):
        with pytest.raises(NothingToDraw):
            drawn(name, few)


@pytest.fixture
def watched(monkeypatch):
    """Runs of one seed whose masks follow the ratio, or only half, and arrays beside them."""
    generator, runs, beside = np.random.default_rng(0), [], {}
    for arm, share in ((automix.PICTURED, 1.0), (automix.PICTURED_ONE, 0.5)):
        curves = {}
        for lam in masks.LAMS:
            curves[f"mask_mean_{lam:g}"] = [0.5, 0.5 + share * (lam - 0.5)]
            curves[f"mask_spread_{lam:g}"] = [0.3, 0.2 * share]
        recipe = {"epochs": 2}
        config = {"objective": "AutoMix", "recipe": recipe, "arm": arm.name}
        where = {"profile": "cpu", "study": automix.MASKS.name, "arm": arm.name, "environment": {"device": "a CPU"}}
        runs.append(Record(config, 0, {}, curves, **where))
        beside[arm.name] = {
            "masks": np.tile((255 * np.array(masks.LAMS)).astype(np.uint8)[None, None, :, None, None], (2, 3, 1, 8, 8)),
            "pairs": generator.integers(0, 256, (3, 2, 3, 32, 32)).astype(np.uint8),
            "puzzles": generator.integers(0, 256, (3, 5, 3, 32, 32)).astype(np.uint8),
            "puzzle_lams": np.tile([0.0, 0.25, 0.5, 0.75, 1.0], (3, 1)),
            "names": np.array([["dog", "automobile"]] * 3),
        }
    monkeypatch.setattr(records, "pictures", lambda notebook, run: beside[run.arm])
    return runs, beside[automix.PICTURED.name]


def test_the_zoo_mixes_one_pair_by_every_method(watched):
    runs, arrays = watched
    image, partner = arrays["pairs"][0] / 255
    for lam in masks.PUZZLES:
        for name in ("mixup", "AutoMix"):  # whose masks are flat here
            mixed, ratio = automix.mixture(name, arrays, 0, lam)
            assert ratio == pytest.approx(lam)
            np.testing.assert_allclose(mixed, lam * image + (1 - lam) * partner, atol=1 / 255)
    mixed, ratio = automix.mixture("CutMix", arrays, 0, 0.5)
    own = np.isclose(mixed, image, atol=1e-6).all(0)
    assert ratio == pytest.approx(own.mean(), abs=0.01)
    assert automix.mixture("PuzzleMix", arrays, 0, 0.3)[1] == 0.25
    figure = drawn("zoo", runs)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == list(automix.ZOO)
    shares = [text.get_text() for text in figure.axes[0].texts if text.get_text().endswith("%")]
    assert shares[:3] == ["30%", "50%", "70%"]
    assert shares[-3:] == ["30%", "50%", "70%"]
    assert figure.get_suptitle().startswith("Six ways to mix one pair: at λ = 0.5 the label gives the dog 50% to ")


def test_figures_of_masks_say_how_far_they_follow_the_ratio(watched):
    runs, arrays = watched
    message = "In the end a mask's mean rises by 1.00 over λ with the pipeline, by 0.50 through one network"
    learn = "Masks learn to show more of the image at larger λ, with the pipeline and through one network"
    for name, words in (("masks_follow", message), ("masks_over_epochs", learn)):
        assert drawn(name, runs).get_suptitle().replace("\n", " ") == words
        assert drawn(name, runs[:1]).get_suptitle() == "Masks of AutoMix over ratio and training"
    one, other = (line.get_ydata() for line in drawn("masks_follow", runs).axes[1].lines)
    np.testing.assert_allclose(one, [0, 1], atol=1e-9)
    np.testing.assert_allclose(other, [0, 0.5], atol=1e-9)
    frames = [figure.axes[0].get_title("left") for figure in automix.over_lambda(automix.kept(Index(records=runs)))]
    first = "With the pipeline the mean of a mask rises with λ, but a single mask can miss it by {}\n"
    assert frames == [first.format("0.00"), *(f"λ = {lam}\n" for lam in ("0.1", "0.3", "0.5", "0.7", "0.9"))]
    arrays["masks"][-1, 1, 1] = 255  # λ = 0.1
    figure = next(automix.over_lambda(automix.kept(Index(records=runs))))
    assert figure.axes[0].get_title("left") == first.format("0.90")


def test_class_activation_maps_are_drawn_with_both_boxes(monkeypatch):
    runs, shape = [], (2, 40, 40)
    arrays = {"canvases": np.zeros((2, 3, 40, 40), np.uint8), "maps": np.zeros(shape, np.uint8)}
    arrays["boxes"] = np.array([[[0, 0, 20, 20], [5, 5, 25, 30]]] * 2)
    monkeypatch.setattr(records, "pictures", lambda notebook, run: arrays)
    for arm, box in zip(automix.LOOKING.arms[:2], (0.6, 0.7), strict=True):
        where = {"profile": "cpu", "study": automix.LOOKING.name, "arm": arm.name, "environment": {"device": "a CPU"}}
        runs.append(Record({"objective": arm.objective}, 0, {"box": box, "box_guess": 0.2}, {}, **where))
    figure = drawn("cams", runs)
    assert figure.get_suptitle().replace("\n", " ") == (
        "Maps of classes find 60% to 70% of the boxes, more than the 20% of a fixed box"
    )
    true, ours = figure.axes[0].patches
    assert true.get_bbox().bounds == (-0.5, -0.5, 20, 20)
    assert ours.get_bbox().bounds == (4.5, 4.5, 25, 20)


@pytest.mark.parametrize("name", ["loops", "block", "pipeline"])
def test_diagrams_can_be_drawn(name):
    assert getattr(automix, f"{name}_diagram")().get_suptitle()
