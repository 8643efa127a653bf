"""What the notebooks do alike."""

import contextlib
from types import SimpleNamespace

import IPython.display
import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image
from scipy import stats

from companion import lesson, notebooks
from companion.plots import Picture
from companion.records import Index
from companion.stats import summary
from companion.studies import NothingToDraw
from semaug.training.record import Record

OWN = notebooks.parameters(notebooks.root() / "notebooks" / "1_isda.py")
INJECTED = "# Parameters\nseeds = 2\n"


@pytest.mark.parametrize(
    ("cell", "values", "complaint"),
    [
        (INJECTED, {"seeds": 2}, None),
        (INJECTED + "sedes = 3\n", {"sedes": 3}, "1_isda has no parameter 'sedes'; it has profile, dataset"),
        (INJECTED, {"seeds": [1, 2]}, r"seeds: got '\[1, 2\]', takes a whole number"),
        (INJECTED, {"seeds": True}, "seeds: got 'True', takes a whole number"),
        (INJECTED, {"strength": "much"}, "strength: got 'much', takes a finite number"),
        (INJECTED, {"profile": "fast"}, "profile: got 'fast', takes one of quick, cpu, paper"),
        (INJECTED, {"dataset": "nosuch"}, "dataset: got 'nosuch', takes one of fashion-mini, shapes"),
        ("sedes = 3\n", {"sedes": 3}, None),  # a variable of the reader's own
    ],
)
def test_parameters_are_checked_by_the_notebook_itself(monkeypatch, cell, values, complaint):
    session = SimpleNamespace(user_ns={"In": ["", cell], **OWN, **values})
    monkeypatch.setattr(IPython, "get_ipython", lambda: session)
    with pytest.raises(ValueError, match=complaint) if complaint else contextlib.nullcontext():
        lesson.parameters("1_isda")


def test_papermill_alone_gives_the_error_too(tmp_path):
    cells = [nbformat.v4.new_code_cell("\n".join(f"{name} = {value!r}" for name, value in OWN.items()))]
    cells[0].metadata["tags"] = ["parameters"]
    cells.append(nbformat.v4.new_code_cell("from companion import lesson\nlesson.parameters('1_isda')"))
    kernel = {"kernelspec": notebooks.KERNEL}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "copy.ipynb")
    with pytest.raises(papermill.PapermillExecutionError, match="1_isda has no parameter 'sedes'"):
        papermill.execute_notebook(
            tmp_path / "copy.ipynb", None, {"sedes": 2}, cwd=notebooks.root(), progress_bar=False
        )


def test_draws_and_numbers():
    assert torch.equal(torch.rand(3, generator=lesson.seeded(1)), torch.rand(3, generator=lesson.seeded(1)))
    assert str(lesson.rounded(torch.tensor([[-0.001, 1.236]], dtype=torch.float64))) == "[[0.0, 1.24]]"
    assert lesson.rounded(torch.tensor(2.0)) == 2.0
    assert lesson.rounded(torch.tensor([0.25], dtype=torch.float64, requires_grad=True), 1) == [0.2], "half to even"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where this run's pictures go."""
    monkeypatch.setattr(notebooks, "output", lambda notebook: tmp_path / notebook)
    return tmp_path


def test_records_of_live_runs_are_kept_one_a_seed(folder):
    config = {"objective": "ISDA", "settings": {"strength": 0.5}}
    runs = [Record(config, seed, {"test_accuracy": seed / 10}) for seed in range(3)]

    def there():
        return [Record.read(path) for path in sorted((folder / "1_isda" / "records").glob("*.json"))]

    lesson.keep("1_isda", (run for run in runs))
    assert there() == runs
    lesson.keep("1_isda", runs[:1])  # run again with other parameters
    assert there() == runs[:1]


def picture(index):
    drawing = Picture(figsize=(1, 1))
    drawing.subplots().plot([len(index), 2])
    return drawing


def nothing(index):
    raise NothingToDraw(f"records, of which there are {len(index)}")


@pytest.fixture
def study(monkeypatch):
    """A study with a figure that can be drawn and one that cannot."""
    module = SimpleNamespace(FIGURES={"line": picture, "missing": nothing}, table=lambda index: f"| {len(index)} |")
    monkeypatch.setattr(lesson, "modules", lambda: {"5_sla": module})
    monkeypatch.setattr(lesson, "committed", lambda notebook: Index(records=[Record({}, 0)]))


def test_a_picture_is_kept_and_given_back(folder):
    drawing = picture([])
    assert lesson.show("5_sla", drawing, "line") is drawing
    assert (folder / "5_sla" / "line.png").read_bytes().startswith(b"\x89PNG")


def test_a_moving_picture_is_an_animated_png(folder, capsys):
    (folder / "5_sla").mkdir()
    drawing = picture([])
    (line,) = drawing.axes[0].lines

    def frames():
        for height in (1, 2, 3):
            line.set_ydata([height, 0])
            yield drawing

    lesson.animation("5_sla", frames(), "moves")
    assert "Image object" in capsys.readouterr().out, "outside a notebook its repr is printed"
    with Image.open(folder / "5_sla" / "moves.png") as kept:
        assert (kept.is_animated, kept.n_frames, kept.info["duration"]) == (True, 3, 500)


def test_a_line_says_how_far_the_runs_are_and_leaves_a_clean_one(monkeypatch):
    shown, clock = [], iter([100.0, 104.0, 108.0])

    class Line:
        def update(self, text):
            shown.append(text.data)

    def display(text, display_id):
        shown.append(text.data)
        return Line()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(lesson.time, "monotonic", lambda: next(clock))
    assert [shown[-1] for _ in lesson.counted("abc")] == [
        "1 of 3 runs",
        "2 of 3 runs, about 8 s left",
        "3 of 3 runs, about 4 s left",
    ]
    assert shown[-1] == "3 runs"


def test_runs_are_counted_outside_a_notebook_too(capsys):
    assert [*lesson.counted(range(3))] == [0, 1, 2]


def test_a_figure_or_what_it_needs(folder, study, capsys):
    lesson.figure("5_sla", "missing")
    assert capsys.readouterr().out.startswith("no figure yet: it needs records, of which there are 1 (python -m")
    assert not (folder / "5_sla").exists()
    lesson.figure("5_sla", "line")
    assert (folder / "5_sla" / "line.png").exists()


def test_a_table_or_what_it_needs(study, capsys):
    lesson.reading(nothing, "5_sla")
    assert capsys.readouterr().out.startswith("no number yet: it needs records")
    lesson.reading(lambda index: print(len(index)), "5_sla")
    assert capsys.readouterr().out == "1\n"
    lesson.table("5_sla", nothing)
    assert capsys.readouterr().out.startswith("no table yet: it needs records")
    lesson.table("5_sla")
    assert "Markdown object" in capsys.readouterr().out, "outside a notebook its repr is printed"


def test_an_effect_is_judged_by_students_interval():
    values = np.array([1.0, 2.0, 2.5, 0.5])
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert low > 0
    expected = f"+1.5 ± {(high - low) / 2:.1f}, better (n = 4)"
    assert lesson.effect(values) == lesson.effect(summary(values)) == expected
    assert lesson.effect(-values, ("above", "below")).endswith(", below (n = 4)")
    assert lesson.effect([1.0, -2.0, 2.0]).endswith("not significantly different (n = 3)")
    assert lesson.effect([1.0, 2.0]) == "+1.5 (n = 2: nothing can be said)"


def test_the_least_of_a_quadratic_is_where_its_gradient_is_zero():
    generator = lesson.seeded(0)
    half = torch.randn(4, 4, dtype=torch.float64, generator=generator)
    matrix, vector = half @ half.T + torch.eye(4), torch.randn(4, dtype=torch.float64, generator=generator)
    x, free = lesson.least(lambda x, y: x @ matrix @ x / 2 - vector @ x + (y - 3).square().sum(), 4, (2, 3))
    assert torch.allclose(x, torch.linalg.solve(matrix, vector), atol=1e-8)
    assert torch.allclose(free, torch.full((2, 3), 3.0, dtype=torch.float64), atol=1e-8)
