"""The leaderboard, on records whose accuracies are known, and the committed one."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch

from companion import figures, leaderboard, ledger
from semaug import networks
from semaug.methods.automix import AutoMix
from semaug.training import objective
from semaug.training import record as rec

ROOT = Path(__file__).resolve().parents[1]


def record(run, seed, accuracy, seconds):
    """A record of a run of the ledger."""
    config = run._wanted() | {"recipe": vars(run.recipe)}
    return rec.Record(
        config, seed, {"test_accuracy": accuracy, "validation_accuracy": accuracy}, train_counts=[20] * 10,
        class_accuracy=[accuracy] * 10, seconds=seconds, profile="cpu", environment={"device": "a CPU"},
    )  # fmt: skip


@pytest.fixture
def found():
    """Cross-entropy at .50, .52, .57 and ISDA at a gain of 1, 2 and 6 points, in 1.5, 1 and 30 times the seconds."""
    runs = [run for run in ledger.isda_runs() if run.profile == "cpu" and run.seed == 0 and "train_size" not in run.of]
    plain = next(run for run in runs if run.objective == "CrossEntropy")
    isda = next(run for run in runs if run.settings.get("strength") == 0.5)
    base = [record(plain, seed, accuracy, 10.0) for seed, accuracy in enumerate((0.50, 0.52, 0.57))]
    ours = [
        record(isda, seed, accuracy, took) for seed, accuracy, took in ((0, 0.51, 15), (1, 0.54, 10), (2, 0.63, 300))
    ]
    return {"1_isda": base + ours}


def test_rows_are_gains_over_the_same_seeds_and_cost(found):
    found["1_isda"].append(record(next(iter(ledger.isda_runs())), 7, 0.9, 1.0))  # a seed that one method alone has
    first, second = leaderboard.rows(found)
    assert (first.method, first.gain, first.passes, first.seconds) == ("cross-entropy", None, 1, 1)
    assert second.gain.mean == pytest.approx(3)
    assert second.gain.half_width == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6), "Student, two degrees"
    assert second.accuracy.mean == pytest.approx(56)
    assert second.seconds == 1.5, "a median: the third run had to share its core"
    for run in found["1_isda"]:
        run.environment["together"] = 5
    assert math.isnan(leaderboard.rows(found)[1].seconds), "shares of a time of several runs"
    assert second.accuracy.n == 3


@pytest.mark.parametrize(
    ("objective", "settings", "expected"),
    [
        ("CrossEntropy", {}, 1),
        ("SLA", {"transforms": "rotation"}, 4),
        ("DataAugmentation", {"transforms": "color_perm3"}, 3),
        ("AutoMix", {}, 3),
        ("AutoMix", {"every": 4}, 2.25),
        ("AutoMix", {"one_hot": False}, 2),
        ("AutoMix", {"policy": "mixup"}, 2),
        ("AutoMix", {"pipeline": False}, 2),
        ("PuzzleMix", {}, 2),
        ("TeachAugment", {}, 1.4),
        ("TeachAugment", {"every": 1}, 3),
        ("MetaSAug", {"stage": 0.8, "meta_steps": 1}, 0.8 + 0.2 * 11 / 3),
        ("MetaSAug", {"stage": 0.8, "meta_steps": 0}, 1),
    ],
)
def test_passes(objective, settings, expected):
    run = rec.Record({"objective": objective, "settings": settings}, 0)
    assert leaderboard.passes(run) == pytest.approx(expected)


def test_passes_of_automix_are_those_that_run(monkeypatch):
    """Counted: calls of the last stage of either network in one step, each followed by a backward pass."""
    for settings in ({}, {"one_hot": False}, {"policy": "mixup"}, {"pipeline": False}):
        made, calls = AutoMix(networks.small(3, 1), stage=1, **settings), []
        for network in (made.network, made.momentum_network):
            if network is not None:
                network.stages[-1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        step = objective.Step(torch.tensor(0.5), 0.1, torch.Generator().manual_seed(0))
        made(torch.rand(6, 1, 16, 16), torch.arange(6) % 3, step)
        assert len(calls) == leaderboard.passes(rec.Record({"objective": "AutoMix", "settings": settings}, 0))


def test_classifiers_beside_the_gans_are_against_no_augmentation():
    runs = [run for run in ledger.gan_runs() if run.profile == "cpu" and run.seed == 0 and run.objective != "GAN"]
    of = {"embedded": 0.8, "hues": 0.4}
    found = [
        record(run, seed, of[run.of["name"]] + (0.0 if run.objective == "CrossEntropy" else 0.1), 1.0)
        for run in runs for seed in range(3)
    ]  # fmt: skip
    rows = leaderboard.rows({"4_diffaugment": found})
    assert {row.title for row in rows} == {"embedded, 200 images", "hues, 200 images"}
    assert [row.method for row in rows if row.gain is None] == ["cross-entropy"] * 2, "no augmentation, of either set"
    gains = {row.method: row.gain.mean for row in rows if row.gain is not None}
    assert gains["crop"] == pytest.approx(0)
    assert gains["MixStyle, stage 1"] == gains["TeachAugment, reach 0.2"] == pytest.approx(10)


def test_the_table_says_gain_interval_and_cost(found):
    text = leaderboard.table(found)
    assert "| cross-entropy | 3 | 53.0 ± 9.0 |  | 1 | 1.00 |" in text
    assert "| 3 | 56.0 ± 15.5 | +3.0 ± 6.6 | 1 | 1.50 |" in text
    assert "a CPU" in text
    assert leaderboard.table(found, "1_isda") == text
    with pytest.raises(figures.NothingToDraw):
        leaderboard.table(found, "5_sla")
    assert leaderboard.papers("5_sla") == ""
    assert leaderboard.papers("1_isda").count("ISDA, TPAMI 2021") == 2


def test_the_figure_shows_every_gain(found):
    figure = leaderboard.drawn(found)
    (axes,) = figure.axes
    assert [bar.lines[0].get_xdata()[0] for bar in axes.containers] == pytest.approx([3])
    assert axes.get_xlabel()
    with pytest.raises(figures.NothingToDraw):
        leaderboard.drawn({"1_isda": found["1_isda"][:3]})


def test_every_profile_has_its_rows(found):
    """A first pair of a better profile does not hide what is there of another."""
    better = [dataclasses.replace(run, profile="paper", seed=0) for run in found["1_isda"][::3]]
    rows = leaderboard.rows({"1_isda": found["1_isda"] + better})
    (usual, other) = dict.fromkeys(row.title for row in rows)
    assert (usual, other) == ("embedded, small, 40 epochs, cpu", "embedded, small, 40 epochs, paper")
    assert [row.accuracy.n for row in rows] == [3, 3, 1, 1]


def test_it_is_written_whole_beside_the_figures(found, tmp_path):
    for run in found["1_isda"]:
        run.save(tmp_path / "records" / "1_isda")
    paths = leaderboard.write(tmp_path)
    assert [path.name for path in paths] == ["leaderboard.png", "leaderboard.svg", "leaderboard.md"]
    text = paths[-1].read_text()
    assert leaderboard.table(found) in text
    assert "80.12" in text


def test_papers_numbers_are_those_of_the_notebooks():
    """Of every number that is printed as a paper's, the notebook shows the same, or its error."""
    for notebook in ("1_isda", "1_metasaug"):
        text = (ROOT / "notebooks" / f"{notebook}.py").read_text()
        for _, numbers, _ in leaderboard.PAPERS[notebook]:
            for value in re.findall(r"\d\d\.\d\d", numbers):
                assert value in text or f"{100 - float(value):.2f}" in text
