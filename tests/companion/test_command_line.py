"""``python -m companion``: one command line, whose help a newcomer understands and whose errors say what it takes."""

import re
import subprocess
import sys

import pytest

from companion import __main__ as command_line, records
from companion.records import FIGURES, committed
from companion.studies import NothingToDraw, modules

COMMANDS = ("reproduce", "check", "refresh", "figures", "runs", "run", "sweep", "site", "slides")


def test_the_help_names_every_command_and_loads_nothing_heavy():
    code = "import sys, companion.__main__ as m\ntry: m.main(['--help'])\nfinally: print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=FIGURES.parent)
    text, loaded = run.stdout.rsplit("\n", 2)[0], set(run.stdout.split())
    assert run.returncode == 0
    assert all(re.search(rf"^    {command}\b", text, re.MULTILINE) for command in COMMANDS)
    assert not loaded & {"torch", "numpy", "matplotlib", "papermill"}


@pytest.mark.parametrize(
    "arguments", [["reproduced"], [], ["run", "--minute"], ["refresh", "-p", "seeds=1"], ["runs", "1", "2"]]
)
def test_a_wrong_word_says_what_it_takes(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: python -m companion")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "-p", "seeds"], "-p: got 'seeds'; takes name=value"),
        (["reproduce", "9_z"], "notebook: got '9_z', takes one of 1_isda"),
        (["figures", "9_z"], "notebook: got '9_z'; takes leaderboard, 1_isda"),
        (["figures", "3_automix", "acuracy"], "figure: got 'acuracy'; 3_automix has "),
        (["runs", "9_z"], "notebook: got '9_z'; takes one of 1_isda"),
        (["run", "--minutes", "-1"], "--minutes: got -1.0; takes a finite number above 0"),
        (["sweep", "nothing.yaml"], "nothing.yaml"),
        (["sweep", "companion/workflow/strength.yaml", "--on", "moon"], "on: got 'moon'; takes one of local, slurm"),
    ],
)
def test_what_cannot_be_ends_with_status_2(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(FIGURES.parent)
    assert command_line.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_interruption_ends_with_one_line(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "_prepared", interrupted)
    assert command_line.main(["runs"]) == 130
    assert capsys.readouterr().err == "\ninterrupted; what was done is kept\n"


def test_one_figure_is_drawn_alone_and_always_the_same(tmp_path, capsys):
    assert command_line.main(["figures", "1_isda", "strength", "--folder", str(tmp_path)]) == 0
    (path,) = tmp_path.rglob("*.png")
    assert path.name == "strength.png"
    assert path.read_bytes() == (FIGURES / "1_isda" / "strength.png").read_bytes()
    assert "drew     1_isda/strength from" in capsys.readouterr().out


def test_every_figure_that_has_records_is_committed():
    for notebook, module in modules().items():
        there = {path.stem for path in (FIGURES / notebook).glob("*.png")}
        assert there <= set(module.FIGURES), notebook
        for name in set(module.FIGURES) - there:
            with pytest.raises(NothingToDraw):
                module.FIGURES[name](committed(notebook))


def test_a_figure_that_fails_leaves_the_others(tmp_path, monkeypatch, capsys):
    def fails(index):
        raise KeyError("test_accuracy")

    figures = modules()["1_isda"].FIGURES
    monkeypatch.setattr(modules()["1_isda"], "FIGURES", {"broken": fails, "strength": figures["strength"]})
    assert command_line.main(["figures", "1_isda", "--folder", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "FAILED   1_isda/broken: KeyError: 'test_accuracy'" in output
    assert "drew     1_isda/strength from" in output


def test_what_has_no_records_is_skipped_and_said(tmp_path, monkeypatch, capsys):
    committed.cache_clear()
    monkeypatch.setattr(records, "FIGURES", tmp_path)
    folder = tmp_path / "records" / "1_isda"
    folder.mkdir(parents=True)
    (folder / "half.json").write_text("{")
    assert command_line.main(["figures", "1_isda", "--folder", str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert "skipped  1_isda/strength: needs " in output.out
    assert "half.json: not a whole record" in output.err
    committed.cache_clear()
