"""What the notebooks do alike."""

import numpy as np
import pytest
import torch
from scipy import stats

from companion import lesson, records
from companion import notebooks as rerun
from companion.figures import NothingToDraw
from companion.plots import Picture
from companion.stats import summary
from semaug.training.record import Record


def test_draws_and_numbers():
    assert torch.equal(torch.rand(3, generator=lesson.seeded(1)), torch.rand(3, generator=lesson.seeded(1)))
    assert str(lesson.rounded(torch.tensor([[-0.001, 1.236]], dtype=torch.float64))) == "[[0.0, 1.24]]"
    assert lesson.rounded(torch.tensor(2.0)) == 2.0
    assert lesson.rounded(torch.tensor([0.25], dtype=torch.float64, requires_grad=True), 1) == [0.2], "half to even"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this run's pictures go."""
    monkeypatch.setattr(rerun, "output", lambda notebook: tmp_path / notebook)
    return tmp_path


def test_records_of_live_runs_are_kept_one_a_seed(folder):
    config = {"objective": "ISDA", "settings": {"strength": 0.5}}
    runs = [Record(config, seed, {"test_accuracy": seed / 10}) for seed in range(3)]
    lesson.keep("1_isda", (run for run in runs))
    assert records.load(folder / "1_isda" / "records") == runs
    lesson.keep("1_isda", runs[:1])  # run again with other parameters
    assert records.load(folder / "1_isda" / "records") == runs[:1]


def a_picture(found):
    picture = Picture(figsize=(1, 1))
    picture.subplots().plot([len(found), 2])
    return picture


def nothing(found):
    raise NothingToDraw(f"records, of which there are {len(found)}")


def test_a_picture_is_kept_and_given_back(folder):
    picture = a_picture([])
    assert lesson.show("5_sla", picture, "line") is picture
    assert (folder / "5_sla" / "line.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_or_what_it_waits_for(folder, capsys):
    lesson.drawn("5_sla", nothing, "line", [])
    assert capsys.readouterr().out.startswith("no figure yet: it needs records, of which there are 0 (python -m")
    assert not (folder / "5_sla").exists()
    lesson.drawn("5_sla", a_picture, "line", [Record({}, 0)])
    assert (folder / "5_sla" / "line.png").exists()


def test_a_table_or_what_it_waits_for(capsys):
    lesson.told(nothing, [])
    assert capsys.readouterr().out.startswith("no number yet: it needs records")
    lesson.told(lambda found: print(len(found)), [Record({}, 0)])
    assert capsys.readouterr().out == "1\n"
    lesson.table(nothing, [])
    assert capsys.readouterr().out.startswith("no table yet: it needs records")
    lesson.table(lambda found: f"| {len(found)} |", [Record({}, 0)])
    assert "Markdown object" in capsys.readouterr().out, "outside a notebook its repr is printed"
    lesson.ranked("5_sla", [])
    assert capsys.readouterr().out.startswith("no table yet: it needs cross-entropy and another method")


def test_a_verdict_is_by_students_interval():
    values = np.array([1.0, 2.0, 2.5, 0.5])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert low > 0
    expected = f"+1.5 ± {(high - low) / 2:.1f}, better (n = 4)"
    assert lesson.verdict(values) == lesson.verdict(summary(values)) == expected
    assert lesson.verdict(-values, ("above", "below")).endswith(", below (n = 4)")
    assert lesson.verdict([1.0, -2.0, 2.0]).endswith("within the noise (n = 3)")
    assert lesson.verdict([1.0, 2.0]) == "+1.5 (n = 2: nothing can be said)"
