"""One notebook's run: time-outs, starts that fail, progress in a terminal and in a log."""

import io
import re
import sys

import nbformat
import papermill
import pytest

from companion import kernels


def notebook(*cells):
    new = nbformat.v4
    made = [new.new_markdown_cell("Prose."), *(new.new_code_cell(cell) for cell in cells)]
    return new.new_notebook(cells=made, metadata={"kernelspec": {"name": "python3", "display_name": ""}})


@pytest.mark.parametrize(("limits", "what"), [((0.5, 60), "cell"), ((60, 0.5), "notebook")])
def test_time_outs_end_the_kernel(tmp_path, limits, what):
    result, _ = kernels.run("1_a", notebook("x = 1", "import time\ntime.sleep(60)"), {}, tmp_path, tmp_path, limits)
    assert result.error == f"cell 3 of 3 (`import time`): time-out: the {what} took more than 0.5 s"
    assert result.cells == (2, 3)
    assert result.seconds < 30


def test_a_start_that_fails_is_tried_again(tmp_path, monkeypatch):
    tries = []
    execute = papermill.execute_notebook

    def collides(*args, **kwargs):
        tries.append(args)
        if len(tries) < 3:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return execute(*args, **kwargs)

    monkeypatch.setattr(papermill, "execute_notebook", collides)
    result, _ = kernels.run("1_a", notebook("x = 1"), {}, tmp_path, tmp_path, (60, 60))
    assert (result.error, len(tries)) == ("", 3)

    monkeypatch.setattr(papermill, "execute_notebook", lambda *args, **kwargs: collides(tries.clear()))
    result, _ = kernels.run("1_a", notebook("x = 1"), {}, tmp_path, tmp_path, (60, 60))
    assert result.error.startswith("the kernel did not start: RuntimeError: Kernel died")
    assert result.cells == (0, 0)


@pytest.mark.parametrize(
    "cell",
    ["import sys\nsys.exit(0)", "raise SystemExit", "import sys\nsys.exit()", "import os\nos._exit(0)"],
)
@pytest.mark.parametrize("after", [["assert False"], []])
def test_an_exit_is_no_success(tmp_path, cell, after):
    result, _ = kernels.run("1_a", notebook("x = 1", cell, *after), {}, tmp_path, tmp_path, (60, 60))
    assert "SystemExit: an exit is no success" in result.error or "the kernel died" in result.error
    assert result.cells[0] < result.cells[1]


def test_the_kernel_is_of_this_interpreter(tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "Python 3", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    asks = notebook(f"import sys\nassert sys.executable == {sys.executable!r}")
    result, _ = kernels.run("1_a", asks, {}, tmp_path, tmp_path, (60, 60))
    assert result.error == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_redraws_one_line_in_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    progress = kernels.StatusLine("1_a")
    for done in range(3):
        progress.show(done, 4, "loss = isda_loss(features, target, weight, bias, covariance)")
    progress.close("ok")
    lines = stream.getvalue().split("\r\033[K")
    assert lines[3].startswith("1_a [##########          ] 2/4 cells")
    assert max(map(len, lines)) < 60
    assert stream.getvalue().count("\n") == 1


def test_progress_writes_few_whole_lines_in_a_log(capsys):
    progress = kernels.StatusLine("1_a", every=15)
    for tick in range(100):
        progress.start, progress.printed = progress.start - 0.2, progress.printed - 0.2
        progress.show(tick // 10, 10, "train()")
    progress.close("ok     1_a")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert re.fullmatch(r"    1_a: 7/10 cells, 15 s: train\(\)", lines[0])
