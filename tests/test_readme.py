"""README says what is there: its code runs, its links lead somewhere, its commands exist."""

import re
from pathlib import Path

import pytest

from semaug import rerun

ROOT = rerun.root()
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_code_runs(capsys):
    """In one namespace, in order, as a reader would paste it."""
    assert len(BLOCKS) == 2
    names = {"__name__": "__main__"}
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    out = capsys.readouterr().out
    assert re.search(r"Smoothed \{.*'test_accuracy': 0\.\d", out)
    assert re.search(r"ISDA \{.*'test_accuracy': 0\.\d", out)
    assert names["loss"].item() > 0
    assert names["network"].head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_commands_exist():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split())
    named = set(re.findall(r"\bmake ([a-z]+)", TEXT))
    assert {"reproduce", "test", "lab", "help", "figures"} <= named <= targets
    for room in re.findall(r"python -m semaug\.(\w+)", TEXT):
        assert (Path(rerun.__file__).parent / f"{room}.py").exists()


def test_the_table_is_of_the_notebooks_there_are():
    rows = re.findall(r"^\| \[(\w+)\]\(notebooks/\1\.ipynb\) \|", TEXT, re.MULTILINE)
    assert rows == [path.stem for path in rerun.discover()]
