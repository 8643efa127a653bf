"""README says what is there: its code runs, its links lead somewhere, its commands exist, its numbers are records'."""

import re
import statistics

import pytest

from companion import leaderboard
from companion.notebooks import discover, root
from companion.records import committed
from companion.stats import points, summary
from companion.studies import modules

ROOT = root()
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
RESULTS = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([\d.]+ ± [\d.]+) \| ([+−][\d.]+ ± [\d.]+) \| (\d+) \| ([\d.]+) \|$", TEXT, re.M)  # fmt: skip  # noqa: E501


def test_code_runs(capsys):
    """In one namespace, in order, as a reader would paste it."""
    assert len(BLOCKS) == 3
    names = {"__name__": "__main__"}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    out = capsys.readouterr().out
    assert re.search(r"Smoothed \{.*'test_accuracy': 0\.\d", out)
    assert re.search(r"ISDA \{.*'test_accuracy': 0\.\d", out)
    assert names["loss"].item() > 0
    assert names["network"].head.weight.grad.abs().sum() > 0
    assert names["mixed"].shape == (50, 3, 16, 16)
    assert names["labels"].sum(1).tolist() == pytest.approx([1.0] * 50)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(target):
    """Also those to this repository's notebooks by way of Colab and Binder."""
    path = re.sub(r"^https://\S+/OWNER/semaug/(blob/main|main\?urlpath=lab/tree)/", "", target)
    assert path == "https://OWNER.github.io/semaug/" or (ROOT / path).exists()


def test_commands_exist():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", TEXT))
    assert {"reproduce", "test", "lab", "help", "run"} <= named <= targets


def test_the_table_is_of_the_notebooks_there_are():
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\) \|", TEXT, re.MULTILINE)
    assert rows == [path.stem for path in discover() if path.parent.name == "notebooks"]


def test_there_are_few_results():
    lines = TEXT.split("## Results\n")[1].split("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("| ")][1:]
    assert 8 <= len(RESULTS) <= len(table) <= 12


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: f"{result[0]} on {result[1]}")
def test_results_are_those_of_the_records(result):
    method, title, accuracy, gain, seeds, passes = result
    rows = [row for notebook in modules() for row in leaderboard.rows(notebook)]
    (row,) = [row for row in rows if (row.method, row.study.title) == (method, title) and row.gain is not None]
    assert (row.accuracy.text(), row.gain.text("+.1f"), str(row.gain.n)) == (accuracy, gain, seeds)
    assert f"{row.passes:.3g}" == passes


def test_what_it_says_of_the_fast_recipe_is_what_its_runs_left():
    study = modules()["fast"].STUDIES[0]
    for epochs in (20, 16):
        runs = [run for run in committed("fast") if run.config["recipe"]["epochs"] == epochs]
        score, seconds = summary(map(points, runs)), statistics.median(run.seconds for run in runs)
        sentence = (
            rf"{seconds:.1f}\s+s\s+for\s+{score.mean:.1f}\s+±\s+{score.half_width:.1f}%[^.]*\(n\s+=\s+{score.n}\)"
        )
        assert re.search(sentence, TEXT), (study.name, sentence)
