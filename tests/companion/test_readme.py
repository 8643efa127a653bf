"""README says what is there: its code runs, its links lead somewhere, its commands exist."""

import re
import statistics
from pathlib import Path

import pytest

from companion import longtail_figures, records, stats
from companion import notebooks as rerun

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


def test_what_it_says_of_runs_on_a_gpu_is_what_they_left():
    fast = records.load(ROOT / "figures" / "records" / "fast", objective="Smoothed", profile="paper")
    sentences = {  # by the recipe's epochs
        20: "takes {:.1f} s of training (the median of five; the first in a process, "
        "which tunes its convolutions, 11.1) for {:.1f} ± {:.1f}% of CIFAR-10's test images (n = {})",
        16: "{:.1f} s for {:.1f} ± {:.1f}% (n = {})",
    }
    for epochs, sentence in sentences.items():
        runs = [record for record in fast if record.config["recipe"]["epochs"] == epochs]
        scores = stats.summary(100 * record.metrics["test_accuracy"] for record in runs)
        seconds = statistics.median(record.seconds for record in runs)
        assert sentence.format(seconds, scores.mean, scores.half_width, scores.n) in TEXT
    tails = longtail_figures.long_tails(records.load(ROOT / "figures" / "records" / "1_metasaug", profile="paper"))
    runs = longtail_figures.methods(tails["cifar10, imbalance 100, resnet32, 200 epochs, crop+flip"])
    reached = {name: {run.seed: 100 * run.metrics["test_accuracy"] for run in runs[name]} for name in runs}
    words = {"cross-entropy": "cross-entropy reaches", "LDAM-DRW": "LDAM with deferred weights", "MetaSAug": "MetaSAug"}
    for name, word in words.items():
        scores = stats.summary(reached[name].values())
        assert scores.n == 3
        assert f"{word} {scores.mean:.1f} ± {scores.half_width:.1f}%" in TEXT
    for word, other in (("less LDAM-DRW is", "LDAM-DRW"), ("less cross-entropy", "cross-entropy")):
        gain = stats.summary(reached["MetaSAug"][seed] - reached[other][seed] for seed in range(3))
        assert f"{word} {gain.mean:+.1f} ± {gain.half_width:.1f}" in TEXT
