"""The commands ``runs`` and ``run``: what is planned, what is there, and the next runs that fit into some minutes."""

from __future__ import annotations

import math
import sys

import torch

from companion.records import committed
from companion.runs import Run, planned, run_for
from companion.studies import modules
from semaug.training.loop import MOST_TOGETHER, resolve_device


def _chosen(profile: str, notebook: str | None) -> list[Run] | None:
    """The planned runs, None with a message where there is no such notebook."""
    if notebook is not None and notebook not in modules():
        print(f"error: notebook: got {notebook!r}; takes one of {', '.join(modules())}", file=sys.stderr)
        return None
    return planned(profile, notebook)


def _problems(runs: list[Run]) -> int:
    """Name the files among the records that are none; their number."""
    notebooks = dict.fromkeys(run.study.notebook for run in runs)
    problems = [line for notebook in notebooks for line in committed(notebook).problems]
    for line in problems:
        print(f"skipped  {line}", file=sys.stderr)
    return len(problems)


def show(profile: str, notebook: str | None = None) -> int:
    """List the runs of a profile: saved or missing, their estimate, their name."""
    runs = _chosen(profile, notebook)
    if runs is None:
        return 2
    missing = 0.0
    for run in runs:
        saved = run.done()
        missing += 0 if saved else run.seconds
        print(f"{'saved  ' if saved else 'missing'} {run.seconds:6.0f} s  {run.name}")
    print(f"missing: about {missing / 3600:.1f} hours")
    return int(_problems(runs) > 0)


def run(profile: str, notebook: str | None, minutes: float, together: int, device: str | None, root: str | None) -> int:
    """Train the next missing runs of a profile for so many minutes."""
    runs = _chosen(profile, notebook)
    if runs is None:
        return 2
    if not (minutes > 0 and math.isfinite(minutes)):
        print(f"error: --minutes: got {minutes}; takes a finite number above 0", file=sys.stderr)
        return 2
    if not 1 <= together <= MOST_TOGETHER:
        print(f"error: --together: got {together}; takes a whole number from 1 to {MOST_TOGETHER}", file=sys.stderr)
        return 2
    if profile == "paper" and device is None and resolve_device().type == "cpu":
        weeks = "torch sees no GPU; with --device cpu it runs all the same, for weeks"
        print(f"error: --profile: got paper; {weeks}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    failed = run_for(minutes, runs, device or ("cpu" if profile == "cpu" else "auto"), root, together)
    return int(failed + _problems(runs) > 0)
