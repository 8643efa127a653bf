"""Sweeps: a notebook over a grid of parameters, each run a file target of Snakemake.

    make sweep CONFIG=companion/workflow/strength.yaml                     one run after another, on this machine
    make sweep CONFIG=companion/workflow/strength.yaml ARGS=--dry-run      plan and cost; nothing is run
    make sweep CONFIG=companion/workflow/strength.yaml SWEEP=slurm         every run a job of Slurm

The configuration, in YAML: ``notebook``, its name; ``grid``, for each parameter a value or a list of them, of which all
combinations are run; ``minutes``, about what one run takes (for the plan, until a run of the sweep has told);
``limit``, the minutes after which a run is stopped as failed (by default those of its profile). ``folder``: where the
notebook is, if not in the checkout's; a relative one starts at the checkout.

Every seed is a job of its own where the grid says ``first_seed: [0, 1, 2]`` and ``seeds: 1``. At the end stands a
table of what the finished runs trained (``build/sweep/<notebook>/results.md``), for each combination the mean over its
seeds and the gain over cross-entropy of the same seeds; the mathematics of a notebook, and what it draws, are in the
executed copies.

A run's target is its executed notebook, ``build/sweep/<notebook>/<run>/<notebook>.ipynb``, which is written whole and
only when all cells ran. So a run that was killed or failed is run again by the next ``make sweep``, and a finished one
never, whatever other combinations the grid gains; to run it again, delete its folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from companion import notebooks
from companion.kernels import Limits, Value
from companion.stats import gains, summary
from semaug.core.files import write_whole
from semaug.training.record import Record, config_hash

WORKFLOW = Path(__file__).parent / "workflow"
KEYS = ("notebook", "grid", "minutes", "limit", "folder")


@dataclass(frozen=True)
class Job:
    """One run of a sweep: the notebook's source, its parameters, seconds that a cell and the notebook may take."""

    source: Path
    values: Mapping[str, Value]
    limits: Limits

    @property
    def name(self) -> str:
        """Its folder: the parameters as far as they are short, and a hash of all of them."""
        digest = hashlib.sha256(json.dumps(dict(self.values), sort_keys=True).encode()).hexdigest()[:8]
        words = "_".join(f"{key}={value}" for key, value in sorted(self.values.items()))
        return f"{re.sub(r'[^A-Za-z0-9.=_+-]', '-', words)[:80]}_{digest}"

    @property
    def target(self) -> Path:
        """The executed notebook, there when the run is finished."""
        return written(self.source.stem) / self.name / f"{self.source.stem}.ipynb"

    @property
    def arguments(self) -> list[str]:
        """Arguments of ``python -m companion`` for this run."""
        given = [part for key, value in self.values.items() for part in ("-p", f"{key}={value}")]
        places = ["--folder", str(self.source.parent), "--output", str(self.target.parent)]
        return ["reproduce", self.source.stem, *given, "--limits", *map(str, self.limits), *places]


def written(notebook: str) -> Path:
    """Where the runs of a notebook's sweeps are."""
    return notebooks.root() / "build" / "sweep" / notebook


def plan(config: Mapping[str, Any]) -> list[Job]:
    """All combinations of a configuration's grid, checked against the notebook's parameters.

    Raises ValueError that names what is missing, unknown, empty or of the wrong type.
    """
    for key in config.keys() - set(KEYS):
        raise ValueError(f"config: got {key!r}; takes {', '.join(KEYS)}")
    notebook, grid = config.get("notebook"), config.get("grid")
    if not isinstance(notebook, str):
        raise ValueError(f"notebook: got {notebook!r}; takes the name of one, such as 1_isda")
    if not isinstance(grid, Mapping) or not grid:
        raise ValueError(f"grid: got {grid!r}; takes for each parameter a value or a list of them")
    _, limit = (_minutes(config, key) for key in ("minutes", "limit"))
    if not isinstance(config.get("folder", ""), str):
        raise ValueError(f"folder: got {config['folder']!r}; takes the path of one")
    folder = notebooks.root() / config["folder"] if "folder" in config else None  # Snakemake has another working folder
    (source,) = notebooks.discover([notebook], folder)
    columns = {str(name): values if isinstance(values, list) else [values] for name, values in grid.items()}
    for name, values in columns.items():
        if not values:
            raise ValueError(f"grid.{name}: got an empty list; takes a value or a list of them")
        if nested := [value for value in values if isinstance(value, list | Mapping)]:
            raise ValueError(f"grid.{name}: got {nested[0]!r}; takes a value or a list of them")
    limits = None if limit is None else (60 * limit, 60 * limit)
    jobs: dict[str, Job] = {}
    for combination in product(*columns.values()):
        texts = {name: str(value) for name, value in zip(columns, combination, strict=True)}
        job = Job(*notebooks.job(source, texts, limits))
        jobs.setdefault(job.name, job)  # two spellings of one value are one run
    return list(jobs.values())


def _minutes(config: Mapping[str, Any], key: str) -> float | None:
    """The number that stands there, None where none does; raises ValueError for what is none above 0."""
    if key not in config:
        return None
    with suppress(ValueError):
        if 0 < (number := float(str(config[key]))) < math.inf:
            return number
    raise ValueError(f"{key}: got {config[key]!r}; takes a number of minutes above 0")


def read(path: Path) -> Mapping[str, Any]:
    """A configuration from its file, its values as the text that stands there: ``010`` is no 8, and ``no`` no False.

    Raises ValueError for what is none, OSError for a file that cannot be read.
    """
    import yaml

    try:
        config = yaml.load(path.read_bytes(), yaml.BaseLoader)  # it looks for byte order marks
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{path}: got {type(config).__name__}; takes notebook, grid, ... in YAML")
    return config


def costs(jobs: Sequence[Job], minutes: float | None) -> str:
    """The plan in words: every run, whether it is there, and what the missing ones will take.

    minutes: of one run, where none of these has finished yet; else their mean decides.
    """
    there = [job for job in jobs if job.target.exists()]
    missing = [job for job in jobs if job not in there]
    tables = [job.target.parent / "table.json" for job in there]  # written after the target: a kill may come between
    took = list[float]()
    for path in tables:
        with suppress(OSError, ValueError, LookupError, TypeError):
            took.append(float(json.loads(path.read_text())["runs"][0]["seconds"]))
    one = sum(took) / len(took) / 60 if took else minutes
    lines = [f"{'missing' if job in missing else 'there':8s} {job.source.stem} {dict(job.values)}" for job in jobs]
    total = f"about {one * len(missing):.1f} minutes, one after another" if one else "of unknown length (minutes: none)"
    source = "the mean of those there" if took else "the configuration"
    lines.append(f"{len(jobs)} runs, {len(missing)} missing: {total}" + (f", by {source}" if one else ""))
    return "\n".join(lines)


MEASURES = {"test_accuracy": (100.0, ".1f", "accuracy (%)"), "fid": (1.0, ".2f", "FID"), "auc": (1.0, ".2f", "D's AUC")}

"""What the table of results shows of a run: the first of these that its record has; its unit, digits and name."""


def _score(record: Record, name: str) -> float:
    return MEASURES[name][0] * record.metrics[name]


def results(jobs: Sequence[Job]) -> str:
    """What the finished runs trained, in Markdown: a row for each combination of parameters but the seed, and each
    method in it; means over seeds with 95% intervals, and the gain over cross-entropy of the same recipe, in pairs.
    """
    runs: dict[tuple[str, str], dict[int, Record]] = {}
    unread, missing = [], sum(not job.target.exists() for job in jobs)
    for job in (job for job in jobs if job.target.exists()):
        varied = ", ".join(f"{key}={value}" for key, value in job.values.items() if key not in ("first_seed", "seeds"))
        try:
            folder = job.target.parent / job.source.stem / "records"
            found = [Record.read(path) for path in sorted(folder.glob("[!.]*.json"))]
        except (ValueError, OSError) as error:
            unread.append(f"\nNot read: {error}; to have it again, delete {job.target.parent}\n")
            continue
        for record in found:
            runs.setdefault((varied, record.hash), {})[record.seed] = record
    rows = ["| parameters | method | n | measure | value | gain |", "|---|---|---|---|---|---|"]
    for (varied, _), seeds in runs.items():
        config = {"objective": "", "settings": {}, "recipe": {}} | next(iter(seeds.values())).config
        shown = next((name for name in MEASURES if all(name in record.metrics for record in seeds.values())), None)
        if shown is None:
            continue
        _, form, label = MEASURES[shown]
        plain = config | {"objective": "CrossEntropy", "settings": {}}
        base = runs.get((varied, config_hash(plain)), {}) if config != plain else {}
        score = partial(_score, name=shown)
        gained = summary(map(score, seeds.values()))
        pairs = gains(seeds.values(), [record for record in base.values() if shown in record.metrics], score)
        method = " ".join([config["objective"], *(f"{key}={value}" for key, value in config["settings"].items())])
        method += f", {config['recipe'].get('epochs', '?')} epochs"
        cells = [varied, method, str(gained.n), label, gained.text(form)]
        rows.append(f"| {' | '.join([*cells, summary(pairs).text('+.1f') if pairs else ''])} |")
    table = "\n".join(rows) + "\n" if len(rows) > 2 else "no finished run has trained anything\n"
    left = f"\n{missing} of {len(jobs)} runs are not finished, and not in the table.\n" if missing else ""
    return table + left + "".join(unread)


def report(jobs: Sequence[Job]) -> None:
    """Print the results and keep them beside the runs; the engine's last word, also when some runs failed."""
    found = results(jobs)
    path = write_whole(written(jobs[0].source.stem) / "results.md", found)
    print(f"\n{found}\n{path}", flush=True)


def prepared(path: Path, on: str = "local", options: Sequence[str] = ()) -> Callable[[], int]:
    """The plan of a sweep, ready to be run by Snakemake.

    path: the configuration. on: the name of a folder in ``companion/workflow/profiles``. options: for Snakemake.
    Raises ValueError or OSError for a configuration that cannot be.
    """
    config = read(path)
    minutes = _minutes(config, "minutes")
    profiles = sorted(folder.name for folder in (WORKFLOW / "profiles").iterdir())
    if on not in profiles:
        raise ValueError(f"on: got {on!r}; takes one of {', '.join(profiles)}")
    jobs = plan(config)
    if importlib.util.find_spec("snakemake") is None:
        raise ValueError("sweeps need Snakemake 9 or later: pip install -e '.[workflow]'")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(WORKFLOW / "Snakefile")]
    command += ["--workflow-profile", str(WORKFLOW / "profiles" / on), "--directory", str(written(jobs[0].source.stem))]
    command += ["--configfile", str(path.resolve()), *options]
    return partial(_start, jobs, minutes, command)


def _start(jobs: Sequence[Job], minutes: float | None, command: list[str]) -> int:
    """Print the plan, then let Snakemake run it in the place of this process."""
    try:
        import fcntl
    except ImportError:
        print("error: sweeps need the file locks of Linux or macOS", file=sys.stderr)
        return 2
    print(costs(jobs, minutes), flush=True)
    if all(job.target.exists() for job in jobs):  # where nothing is to be done, Snakemake calls no hook
        report(jobs)
        return 0
    folder = written(jobs[0].source.stem)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:  # it ends with the process, however that ends; Snakemake's own lock outlives a kill
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: another sweep of {jobs[0].source.stem} is running", file=sys.stderr)
        return 2
    os.set_inheritable(lock, True)
    os.execv(sys.executable, command)
