"""The figures of joint labels, on records whose accuracies are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import t

from companion.records import Index
from companion.studies import NothingToDraw, sla
from semaug import networks
from semaug.data.sets import Data
from semaug.data.split import Split
from semaug.methods.sla import SLA
from semaug.training.record import Record

COUNTS = [400, 200, 50, 25, 10, 5]
TAIL = np.array([0.9, 0.8, 0.6, 0.5, 0.3, 0.1])
NOISE = [0.0, 0.02, -0.01]
FASHION, MNIST, TAILED = sla.CLOTHING, sla.MNIST, sla.TAILS[0]


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
    recipe = {"epochs": 4 * study.recipe_of(chosen).epochs // study.recipe.epochs, "batch_size": 20}
    config = {"data": study.data, "objective": chosen.objective, "settings": settings, "recipe": recipe}
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


def test_accuracy_is_over_cross_entropy_of_as_many_passes_a_row_a_study(index):
    (axes,) = sla.accuracy(index).axes
    assert labels(axes) == ["clothing, 60 images\n12 steps (48)"], "epochs of 3 batches of 20: 4 of SLA"
    np.testing.assert_allclose(points(axes), [-5.9, -3, 1, 2], atol=1e-9, err_msg="of MT are two seeds")
    assert [container[0].get_marker() for container in axes.containers] == ["o", "o", "o", "D"]
    low, high = axes.containers[0][2][0].get_segments()[0]  # of DA
    assert (high[0] - low[0]) / 2 == pytest.approx(t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    (legend,) = sla.accuracy(index).legends
    assert [text.get_text() for text in legend.get_texts()] == ["DA", "SLA, one view", "SLA+SD", "SLA+AG"]


def test_the_title_names_the_sets_where_sla_is_ahead_and_behind_at_equal_passes(found):
    def title(accuracy, draw=sla.accuracy_all):
        others = [record(arm, seed, 0.9, 0.9, MNIST) for arm in ("cross-entropy", "SLA") for seed in range(3)]
        longer = [record("cross-entropy, 4x epochs", seed, accuracy, study=MNIST) for seed in range(3)]
        return " ".join(draw(Index(records=[*found, *others, *longer])).get_suptitle().split())

    ahead = "At equal passes SLA+AG is ahead on clothing"
    assert title(0.95) == f"{ahead}, behind on digits"
    assert title(0.85) == f"{ahead} and digits"
    assert title(0.95, sla.accuracy) == ahead, "of the lesson's data sets"


def test_sets_of_one_name_are_named_by_images_and_steps_and_those_not_drawn_stand_in_the_caption(found):
    def compared(study, images, epochs):
        runs = [record("SLA", seed, 0.8, 0.8, study) for seed in range(3)]
        runs += [record(arm, seed, 0.9, study=study) for arm in ("cross-entropy", sla.EQUAL) for seed in range(3)]
        for run in runs:
            run.train_counts = [images // 6] * 6
            run.config["recipe"]["epochs"] = epochs
        return runs

    sets = compared(MNIST, 600, 2), compared(sla.FEW, 300, 2), compared(sla.MANY_STEPS, 300, 4)
    figure = sla.accuracy(Index(records=[*found, *(run for runs in sets for run in runs)]))
    title, caption = (" ".join(text.split()) for text in (figure.get_suptitle(), figure.get_supxlabel()))
    digits = "300 digits after 30 steps and 300 digits after 60 steps"
    assert title == f"At equal passes SLA+AG is ahead on clothing, behind on {digits}"
    assert caption.endswith("Not drawn, behind as well: 600 digits.")


def test_differences_are_of_three_seeds_or_more(index):
    pairs = [("SLA+AG", sla.EQUAL), ("SLA, single", "DA"), ("MT", "DA")]
    found = sla.differences(index, pairs)
    column = "clothing, 60 images, 12 steps"
    assert list(found) == pairs
    assert found["SLA+AG", sla.EQUAL][column].text("+.1f") == "+2.0 ± 0.0"
    assert found["SLA, single", "DA"][column].n == 3
    assert found["MT", "DA"] == {}
    head, _, first, second, third = sla.compared(found).splitlines()
    assert head == f"| A − B (points) | {column} |"
    assert first == "| SLA+AG − cross-entropy, equal passes | +2.0 ± 0.0 |"
    assert second.startswith("| SLA, one view − DA, one view | +2.9 ± ")
    assert third == "| MT, one view − DA, one view |  |"


def test_what_the_paper_reports_stands_in_the_table_and_in_the_leaderboard(index):
    head, _, *rows = sla.reported(index).splitlines()
    assert head.count("|") == 8
    assert "SLA, one view" in head
    assert [row.split(" | ")[3] for row in rows] == ["90.79", "66.10"]
    assert "SLA, single 92.50, SLA+SD 93.26" in sla.PAPER[0][1]


def test_sixes_and_nines_are_halved_by_seed(monkeypatch):
    one, other = sla.sixes_and_nines(0), sla.sixes_and_nines(1)
    for dataset in (one, other):
        assert [split.target.bincount().tolist() for split in (dataset.train, dataset.test)] == [[20, 20]] * 2
        both = torch.cat([dataset.train.images, dataset.test.images]).flatten(1)
        assert len(both.unique(dim=0)) == 80
    assert one.image_shape == (1, 28, 28)
    assert one.digest == sla.sixes_and_nines(0).digest != other.digest
    monkeypatch.setattr(sla, "committed", lambda notebook: Index())
    with pytest.raises(NothingToDraw, match="pictures of a network of SLA on MNIST"):
        sla.sixes_and_nines(0)


def test_digits_show_the_accuracy_on_sixes_and_nines(monkeypatch):
    def run(arm, six, nine):
        made = record(arm, 0, 0.5, 0.6, MNIST)
        made.class_accuracy = [0.1] * 6 + [six] + [0.1] * 2 + [nine]
        return made

    sixes = {sla.EQUAL: 0.9, "DA": 0.3, "MT": 0.4, "SLA+SD": 0.8, "SLA": 0.9}
    index = Index(records=[run(arm, six, 0.5) for arm, six in sixes.items()])
    with pytest.raises(NothingToDraw, match="the answers of a network"):
        sla.digits(index)
    said = {"DA": [[6] * 4, [9, 9, 6, 6], [6, 6, 9, 9]], "SLA": [[6] * 4, [6] * 4, [9] * 4]}
    shared = {"views": np.zeros((3, 4, 1, 28, 28), np.uint8), "target": np.array([6, 6, 9])}
    answers = {name: {**shared, "each": np.eye(10)[np.array(value)]} for name, value in said.items()}
    monkeypatch.setattr(sla, "pictures", lambda notebook, record: answers[record.arm])
    figure = sla.digits(index)
    left, right = figure.axes
    below = [f"DA: {said['DA'][k][j]}\nSLA: {said['SLA'][k][j]}" for k in (1, 2) for j in range(4)]
    assert [text.get_text() for text in left.texts] == below, "digits that DA takes for each other"
    assert [patch.get_width() for patch in right.patches] == pytest.approx([70, 40, 45, 65, 70])
    title = " ".join(figure.get_suptitle().split())
    assert title == "On sixes and nines DA loses 30 points; SLA+AG loses none"
    with pytest.raises(NothingToDraw, match=r"cross-entropy, 4x epochs.* on MNIST"):
        sla.digits(Index(records=[run("DA", 0.3, 0.5), run("SLA", 0.3, 0.5)]))


def test_the_answers_beside_a_record_are_of_the_chosen_classes():
    generator = torch.Generator().manual_seed(0)
    images, target = torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 3
    dataset = Data("mine", Split.from_float(images, target), Split.from_float(images, target))
    torch.manual_seed(0)
    model = SLA(networks.small(3))
    found = sla._answers(2, 0)(model.train(), dataset)
    assert found["target"].tolist() == [2] * 20 + [0] * 20
    assert found["views"].shape == (40, 4, 1, 8, 8)
    np.testing.assert_array_equal(found["views"][0, 1], np.rot90(found["views"][0, 0], axes=(1, 2)))
    mean = np.exp(np.log(found["each"]).mean(1))
    np.testing.assert_allclose(found["together"], mean / mean.sum(1, keepdims=True), rtol=1e-4)
    assert not model.training


def test_longer_training_shows_a_short_and_a_long_study_over_passes():
    long = [record(arm, seed, 0.8, 0.9, sla.MANY_STEPS) for arm in sla_arms(sla.MANY_STEPS) for seed in range(3)]
    short = [record(arm, seed, 0.8, 0.75, sla.FEW) for arm in sla_arms(sla.MANY_STEPS) for seed in range(3)]
    figure = sla.longer_training(Index(records=[*long, *short]))
    one, other = figure.axes
    words = ["cross-entropy: 12 steps", "cross-entropy, 4x epochs: 48 steps", "SLA+AG: 12 steps"]
    assert [text.get_text() for text in one.texts] == [text.get_text() for text in other.texts] == words
    np.testing.assert_allclose(one.lines[0].get_xdata(), [2, 4], err_msg="cross-entropy of 4 epochs")
    np.testing.assert_allclose(one.lines[2].get_xdata(), [8, 16], err_msg="SLA of 4 epochs, four views")
    title = " ".join(figure.get_suptitle().split())
    assert title.endswith("equal passes: \N{MINUS SIGN}5.0 ± 0.0 after 12 steps and +10.0 ± 0.0 after 12 steps")
    with pytest.raises(NothingToDraw, match="the short and in the long study"):
        sla.longer_training(Index(records=short))


def sla_arms(study):
    return [arm.name for arm in study.arms if arm.name != "SLA+SD"]


def test_inference_pairs_each_network_with_itself(index):
    figure = sla.inference(index)
    (axes,) = figure.axes
    assert labels(axes) == ["DA, four views", "MT, four views", "SLA+AG", "SLA+SD+AG"]
    np.testing.assert_allclose(points(axes), [3.9, 4.5, 5, 2], atol=1e-9)
    assert figure.get_suptitle() == "What M passes gain over one", "significantly more by SLA than by DA"


def test_transforms_are_compared_on_one_set_of_images(index, found):
    axes = sla.transforms(index).axes
    assert [panel.get_title("left").split("\n")[0] for panel in axes] == [
        "DA, one view",
        "DA, M views",
        "SLA, one view",
        "SLA+AG",
    ]
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


@pytest.mark.parametrize("name", [name for name in sla.FIGURES if name not in ("digits", "longer_training")])
def test_figures_fit_a_page(index, name):
    figure = sla.FIGURES[name](index)
    width, height = figure.get_size_inches()
    assert width <= 7.5
    assert height <= 6.6


def test_the_diagram_of_the_method_has_three_panels_and_says_what_they_are():
    figure = sla.method_diagram()
    assert [axes.get_title("left")[0] for axes in figure.axes] == ["1", "2", "3"]
    assert "four answers averaged" in figure.get_label()
