"""The leaderboard, on records whose accuracies are known, and the committed one."""

import math
import re
from types import SimpleNamespace

import pytest

from companion import leaderboard
from companion.records import FIGURES, Index
from companion.studies import Arm, NothingToDraw, Study, modules
from semaug.training.recipe import Recipe
from semaug.training.record import Record

STUDY = Study(
    "1_isda", "tiny", "CIFAR-10, 200 images", {"name": "cifar10"}, "small", Recipe(epochs=10),
    (Arm("cross-entropy", "CrossEntropy"), Arm("ISDA", "ISDA"), Arm("views", "SLA", passes=4.0),
     Arm("longer", "CrossEntropy", recipe={"times": 3}), Arm("ISDA, shared", "ISDA", variant=True)), 3, 1.0,
)  # fmt: skip


def record(arm, seed, accuracy, seconds=10.0):
    recipe = vars(STUDY.recipe_of(STUDY.arm(arm)))
    return Record(
        {"recipe": recipe}, seed, {"test_accuracy": accuracy}, seconds=seconds, profile="cpu",
        environment={"device": "a CPU"}, study="tiny", arm=arm,
    )  # fmt: skip


@pytest.fixture
def records(monkeypatch):
    """Cross-entropy at .50, .52, .57 and ISDA at a gain of 1, 2 and 6 points, in 1.5, 1 and 30 times the seconds."""
    base = [record("cross-entropy", seed, accuracy) for seed, accuracy in enumerate((0.50, 0.52, 0.57))]
    ours = [
        record("ISDA", seed, accuracy, took) for seed, accuracy, took in ((0, 0.51, 15), (1, 0.54, 10), (2, 0.63, 300))
    ]
    found = base + ours
    module = SimpleNamespace(NOTEBOOK="1_isda", STUDIES=(STUDY,), PAPER=[("CIFAR-10", "CE 92.61", "TPAMI")], FIGURES={})
    monkeypatch.setattr(leaderboard, "modules", lambda: {"1_isda": module})
    monkeypatch.setattr(leaderboard, "committed", lambda notebook: Index(records=found))
    return found


def test_rows_are_gains_over_the_same_seeds_and_cost(records):
    records.append(record("ISDA", 7, 0.9, 1.0))  # a seed that one method alone has
    first, second = leaderboard.rows()
    assert (first.method, first.gain, first.passes, first.seconds) == ("cross-entropy", None, 1, 1)
    assert second.gain.mean == pytest.approx(3)
    assert second.gain.half_width == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-6), "Student, two degrees"
    assert second.accuracy.mean == pytest.approx(56)
    assert second.accuracy.n == 3
    assert second.seconds == 1.5, "a median: the third run had to share its core"
    for run in records:
        run.environment["together"] = 5
    assert math.isnan(leaderboard.rows()[1].seconds), "shares of a time of several runs"


def test_passes_are_of_the_arm_and_its_epochs_and_variants_are_left_out(records):
    records += [record(arm, 0, 0.6) for arm in ("views", "longer", "ISDA, shared")]
    passes = {row.method: row.passes for row in leaderboard.rows()}
    assert passes == {"cross-entropy": 1, "ISDA": 1, "views": 4, "longer": 3}


def test_the_table_says_gain_interval_and_cost(records):
    text = leaderboard.table()
    assert "| cross-entropy | 3 | 53.0 ± 9.0 |  | 1 | 1.00 |" in text
    assert "| ISDA | 3 | 56.0 ± 15.5 | +3.0 ± 6.6 | 1 | 1.50 |" in text
    assert "a CPU" in text
    assert leaderboard.table("1_isda") == text
    assert "| 1_isda | CIFAR-10 | CE 92.61 | TPAMI |" in leaderboard.papers()
    records.clear()
    with pytest.raises(NothingToDraw):
        leaderboard.table()


def test_no_interval_of_two_seeds(records):
    del records[2], records[-1]
    assert "| ISDA | 2 | 52.5 | +1.5 | 1 | 1.25 |" in leaderboard.table()


def test_the_figure_shows_every_gain(records):
    (axes,) = leaderboard.drawn("1_isda").axes
    assert [bar.lines[0].get_xdata()[0] for bar in axes.containers] == pytest.approx([3])
    assert axes.get_xlabel()
    del records[3:]
    with pytest.raises(NothingToDraw):
        leaderboard.drawn("1_isda")


def test_the_figure_shows_the_methods_of_most_data_sets(records, monkeypatch):
    records += [record(arm, 0, 0.6) for arm in ("views", "longer")]
    monkeypatch.setattr(leaderboard, "MOST", 2)
    figure = leaderboard.drawn("1_isda")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["ISDA", "views"]
    assert "all 3 are in leaderboard.md" in " ".join(figure.get_supxlabel().split())
    monkeypatch.setattr(leaderboard, "MOST", 3)
    assert "leaderboard.md" not in leaderboard.drawn("1_isda").get_supxlabel()


def test_it_is_written_whole_beside_the_figures(records, tmp_path):
    paths = leaderboard.write(tmp_path)
    assert [path.suffix for path in paths] == [".png", ".md"]
    assert leaderboard.table() in paths[-1].read_text()


def test_the_committed_page_is_of_the_committed_records():
    assert (FIGURES / "leaderboard" / "leaderboard.md").read_text() == leaderboard.text()


@pytest.mark.parametrize("notebook", sorted(modules()))
def test_papers_numbers_have_a_setting_and_a_source(notebook):
    for setting, numbers, source in modules()[notebook].PAPER:
        assert re.search(r"\d\d\.\d", numbers)
        assert re.search(r"epoch|n =", setting), setting
        assert source
