"""Rerun the notebooks: checked parameters, time-outs, progress, and what each run took.

    python -m semaug.rerun reproduce 1_isda -p seeds 5     executed copies, figures and a table in build/reproduce
    python -m semaug.rerun check                           the same with the parameters of ``reduced``, in build/check
    python -m semaug.rerun refresh                         the committed notebooks/*.ipynb, from their .py

A notebook's source is its py:percent ``.py``; papermill runs it in a kernel of its own, one notebook after another. A
notebook that fails is reported with its cell and error, the others still run, and the exit status is 1. Parameters
are checked against the notebook's ``parameters`` cell before anything runs; a bad one ends with exit status 2.

A notebook takes all its paths from here: ``root()`` and ``output()`` are the same folders whether it runs by papermill,
under nbval or in JupyterLab.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from semaug.records import PROFILES, environment, write_whole

if TYPE_CHECKING:
    from jupyter_client.manager import KernelManager
    from nbformat import NotebookNode

Value = int | float | str | bool
Limits = tuple[float, float]

LIMITS: dict[str, Limits] = {"quick": (600, 1800), "cpu": (24 * 3600, 48 * 3600), "paper": (7 * 86400, 7 * 86400)}
"""Seconds that one cell and one notebook may take, by profile."""

REDUCED: dict[str, Value] = {"profile": "quick", "device": "cpu", "seeds": 1, "epochs": 2}
"""What ``make test`` runs a notebook with; of the numbers, the smaller of this and the notebook's own."""


def root() -> Path:
    """The checkout: where notebooks/ and figures/ are.

    The folder of the package, or, for a package installed elsewhere, the nearest one above the working folder.
    Raises FileNotFoundError if neither has notebooks/.
    """
    for folder in (Path(__file__).resolve().parents[1], Path.cwd(), *Path.cwd().parents):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise FileNotFoundError(f"no checkout of semaug (a folder with notebooks/) at or above {Path.cwd()}")


def output(notebook: str) -> Path:
    """The folder for what a notebook writes, made if missing: never a tracked one.

    Below the run's own folder (build/reproduce, build/check, ...), or build/live in a session opened by hand.
    """
    folder = Path(os.environ.get("SEMAUG_OUTPUT") or root() / "build" / "live") / notebook
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# What is there to run, and with which parameters


def discover(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """Sources of the named notebooks ('1_isda' or a path to its .py or .ipynb), or of all there are, in order.

    Raises ValueError for an unknown name, FileNotFoundError where there is no notebook at all.
    """
    folder = folder or root() / "notebooks"
    there = {path.stem: path for path in sorted(folder.glob("*.py"))}
    if not there:
        raise FileNotFoundError(f"{folder}: no notebook (*.py) here")
    chosen = []
    for name in names:
        if Path(name).stem not in there:
            raise ValueError(f"notebook: got {name!r}, takes one of {', '.join(there)}")
        chosen.append(there[Path(name).stem])
    return chosen or list(there.values())


def read(source: Path) -> NotebookNode:
    """The notebook of a py:percent source, without jupytext's metadata.

    With it, opening an executed copy would start to pair that copy with a .py of its own.
    """
    import jupytext

    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata.pop("jupytext", None)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return notebook


def parameters(source: Path) -> dict[str, Value]:
    """Names and defaults of a notebook's parameters; see :func:`declared`."""
    return declared(read(source), source.name)


def declared(notebook: NotebookNode, name: str = "notebook") -> dict[str, Value]:
    """The assignments ``name = literal`` (int, float, str or bool) of the one cell tagged ``parameters``.

    Raises ValueError for no such cell, more than one, or anything else in it.
    """
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{name}: {len(cells)} cells are tagged 'parameters', there must be one")
    found: dict[str, Value] = {}
    for node in ast.parse(cells[0].source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=parameter)], value=expression):
                pass
            case ast.AnnAssign(target=ast.Name(id=parameter), value=ast.expr() as expression):
                pass
            case _:
                raise ValueError(f"{name}: the parameters cell may hold name = literal, not {ast.unparse(node)!r}")
        try:
            value = ast.literal_eval(expression)
        except ValueError:
            value = None
        if not isinstance(value, int | float | str | bool):
            raise ValueError(f"{name}: parameter {parameter} must be an int, float, str or bool literal")
        found[parameter] = parse(parameter, value, value) if isinstance(value, str) else value
    return found


def parse(name: str, text: str, default: Value) -> Value:
    """The value written as ``text`` for a parameter, of the type of its default; ValueError if it is not one.

    >>> parse("seed", "007", 0), parse("tag", "007", "a"), parse("lr", "1e-2", 0.1), parse("fast", "true", False)
    (7, '007', 0.01, True)
    """
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            number = float(text)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (KeyError, ValueError):
        kind = {bool: "true or false", int: "a whole number", float: "a finite number"}[type(default)]
        raise ValueError(f"parameter {name}: got {text!r}, takes {kind} (it is {default!r} by default)") from None
    if name == "profile" and text not in PROFILES:
        raise ValueError(f"parameter profile: got {text!r}, takes one of {', '.join(PROFILES)}")
    return text


def override(source: Path, texts: Mapping[str, str]) -> dict[str, Value]:
    """Parsed values for parameters of a notebook; ValueError names one that it lacks or of the wrong type."""
    declared = parameters(source)
    values = {}
    for name, text in texts.items():
        if name not in declared:
            raise ValueError(f"{source.stem} has no parameter {name!r}; it has {', '.join(declared) or 'none'}")
        values[name] = parse(name, text, declared[name])
    return values


def reduced(source: Path) -> dict[str, Value]:
    """The parameters ``make test`` runs a notebook with: one seed, few epochs (``REDUCED``), as far as it has them."""
    smaller = {}
    for name, default in parameters(source).items():
        if name in REDUCED:
            value = REDUCED[name]
            smaller[name] = value if isinstance(value, str) or isinstance(default, str) else min(value, default)
    return smaller


# One run, watched


@dataclasses.dataclass
class Run:
    """What one notebook's run took. cells: finished of all; peak_memory: bytes of the kernel; error: '' for none."""

    notebook: str
    parameters: dict[str, Value]
    cells: tuple[int, int]
    seconds: float
    peak_memory: int
    error: str = ""


class Progress:
    """One notebook's progress: a line that is redrawn in a terminal, one line every 15 seconds in a log."""

    def __init__(self, name: str, every: float = 15.0) -> None:
        self.name, self.stream, self.every = name, sys.stdout, every
        self.terminal = self.stream.isatty()
        self.start = self.printed = time.monotonic()

    def show(self, done: int, total: int, doing: str) -> None:
        """Say how far it is; cheap to call often."""
        now = time.monotonic()
        if self.terminal:
            bar = "#" * (20 * done // max(total, 1))
            line = f"{self.name} [{bar:<20}] {done}/{total} cells {now - self.start:4.0f} s  {doing}"
            self.stream.write("\r\033[K" + line[: shutil.get_terminal_size().columns - 1])
        elif now - self.printed >= self.every:
            self.printed = now
            self.stream.write(f"    {self.name}: {done}/{total} cells, {now - self.start:.0f} s: {doing}\n")
        self.stream.flush()

    def close(self, verdict: str) -> None:
        """Replace the line by the verdict."""
        self.stream.write(("\r\033[K" if self.terminal else "") + verdict + "\n")
        self.stream.flush()


class _Watch(threading.Thread):
    """Follows a run from outside its kernel: where it is, its memory, its time; ends a kernel that takes too long."""

    def __init__(self, progress: Progress, limits: Limits) -> None:
        super().__init__(daemon=True)
        self.progress, self.limits = progress, limits
        self.notebook: NotebookNode | None = None
        self.peak_memory = 0
        self.expired = ""
        self.finished = threading.Event()

    def follow(self, notebook: NotebookNode, kernel: KernelManager) -> None:
        """Begin, once the kernel is up."""
        self.notebook, self.kernel = notebook, psutil.Process(kernel.provisioner.pid)
        self.sample()
        self.start()

    def sample(self) -> None:
        """Bring the memory up to date; harmless once the kernel has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.peak_memory = max(self.peak_memory, _resident_peak(self.kernel))

    def run(self) -> None:
        started, index, since = time.monotonic(), -1, 0.0
        while not self.finished.wait(0.2):
            now, (current, total) = time.monotonic(), self.place()
            if current != index:
                index, since = current, now
            try:
                self.peak_memory = max(self.peak_memory, _resident_peak(self.kernel))
                for limit, spent, what in zip(
                    self.limits, (now - since, now - started), ("cell", "notebook"), strict=True
                ):
                    if spent > limit and not self.expired:
                        self.expired = f"time-out: the {what} took more than {limit:g} s"
                        for process in (*self.kernel.children(recursive=True), self.kernel):
                            process.kill()
            except psutil.NoSuchProcess:
                pass  # the kernel has ended; papermill finds out by itself
            self.progress.show(index, total, self.first_line(index))

    def kill(self) -> None:
        """End the kernel and what it started; papermill finds out by itself."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in (*self.kernel.children(recursive=True), self.kernel):
                process.kill()

    def own(self) -> list[NotebookNode]:
        """The cells of the source, without those that papermill puts in (parameters, error markers)."""
        cells = [] if self.notebook is None else self.notebook.cells
        put_in = {"injected-parameters", "papermill-error-cell-tag"}
        return [cell for cell in cells if not put_in & set(cell.metadata.get("tags", []))]

    def place(self) -> tuple[int, int]:
        """Index among the source's cells of the one that runs, or ran last, and how many there are."""
        started = [cell.metadata.papermill["start_time"] is not None for cell in self.own()]
        return max(sum(started) - 1, 0), len(started)

    def first_line(self, index: int) -> str:
        return next((line for line in self.own()[index].source.splitlines() if line.strip()), "")

    def where(self) -> str:
        """'cell 7 of 31 (`loss = ...`)': the cell that ran last, counted from 1, and its first line."""
        index, total = self.place()
        return f"cell {index + 1} of {total} (`{self.first_line(index)[:80]}`)"


def _resident_peak(process: Any) -> int:
    """Peak resident memory in bytes, from the system's own count where it keeps one, otherwise what it is now."""
    try:
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[0])
    except (OSError, IndexError):
        return process.memory_info().rss


def _engine(watch: _Watch, folder: Path, written: Path) -> type:
    """A papermill engine whose kernel works in ``folder``, writes below ``written`` and is watched."""
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine

    class Client(PapermillNotebookClient):
        def papermill_execute_cells(self) -> None:
            watch.follow(self.nb, self.km)
            super().papermill_execute_cells()
            watch.sample()

    class Watched(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
            # A backend named in the shell would keep figures out of the notebook.
            variables = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
            variables |= {"SEMAUG_OUTPUT": str(written), "SEMAUG_STATIC": "1"}  # nobody is there to turn a slider
            # One thread: on cores that others use too, torch's waiting threads cost a small network up to six times
            # its time (measured), and a fixed number keeps results equal; a number set outside wins.
            variables.setdefault("OMP_NUM_THREADS", "1")
            client = Client(nb_man, kernel_name=kernel_name, startup_timeout=120, timeout=None)
            client.extra_arguments = ["--log-level=ERROR"]  # not: "running over TCP without encryption"
            client.execute(env=variables, cwd=str(folder))

    return Watched


def run(
    source: Path,
    values: Mapping[str, Value],
    written: Path,
    folder: Path | None = None,
    limits: Limits = LIMITS["quick"],
    notebook: NotebookNode | None = None,
) -> tuple[Run, NotebookNode]:
    """Run one notebook by papermill and return what it took, and the notebook as far as it came.

    values: parameters that differ from the defaults. written: where ``output()`` leads. folder: the working folder,
    ``written`` if not given. limits: seconds for a cell and for all. notebook: to be run in place of the source's.
    """
    import logging

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    notebook = read(source) if notebook is None else notebook
    folder = folder or written
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(source.stem)
    start, error, trace = time.monotonic(), "", ""
    for attempt in range(3):
        watch = _Watch(progress, limits)
        papermill_engines.register("watched", _engine(watch, folder, written))
        try:
            papermill.execute_notebook(
                notebook, None, dict(values), engine_name="watched", kernel_name="python3", progress_bar=False
            )
        except PapermillExecutionError as failure:
            error = f"{watch.where()}: {failure.ename}: {failure.evalue}"
            trace = "\n".join(failure.traceback)
        except DeadKernelError:
            error = f"{watch.where()}: {watch.expired or 'the kernel died (out of memory?)'}"
        except Exception as failure:  # before the first cell: two kernels that start at once can take the same port
            if watch.notebook is None and attempt < 2:
                continue
            error = f"the kernel did not start: {type(failure).__name__}: {failure}"
        finally:
            watch.finished.set()
            if watch.is_alive():
                watch.join()
        break
    seconds = time.monotonic() - start
    current, total = watch.place()
    done = Run(source.stem, dict(values), (current if error else total, total), seconds, watch.peak_memory, error)
    progress.close(f"{'FAILED' if error else 'ok':<6} {source.stem}  {seconds:.1f} s" + (f"  {error}" if error else ""))
    if trace:
        plain = trace if progress.terminal else re.sub(r"\x1b\[[0-9;]*m", "", trace)
        print(*("    " + line for line in plain.splitlines()[-25:]), sep="\n", file=progress.stream)
    return done, watch.notebook if watch.notebook is not None else notebook


# All of them


def reproduce(jobs: Sequence[tuple[Path, Mapping[str, Value], Limits]], written: Path) -> list[Run]:
    """Run notebooks one after another; executed copies, figures and the table of what it took go to ``written``.

    jobs: source, parameters and limits of each. A failed run leaves ``<notebook>.failed.ipynb`` and the whole copy of
    an earlier run.
    """
    import nbformat

    done = []
    for source, values, limits in jobs:
        result, notebook = run(source, values, written, written / source.stem, limits)
        failed, whole = (written / f"{source.stem}{end}.ipynb" for end in (".failed", ""))
        if not result.error:
            failed.unlink(missing_ok=True)
        write_whole(failed if result.error else whole, nbformat.writes(notebook) + "\n")
        done.append(result)
    write_whole(written / "table.txt", table(done))
    entries = [{**dataclasses.asdict(run), "seconds": round(run.seconds, 2)} for run in done]
    write_whole(written / "table.json", json.dumps({"runs": entries, "environment": _environment()}, indent=1) + "\n")
    return done


def _environment() -> dict[str, Any]:
    import torch

    return environment("cuda" if torch.cuda.is_available() else "cpu")


def table(runs: Sequence[Run]) -> str:
    """Time and memory of the runs, as text."""
    width = max(len("notebook"), *(len(run.notebook) for run in runs))
    lines = [f"{'notebook':<{width}}  result    cells   seconds  peak MiB  parameters"]
    for run in runs:
        given = " ".join(f"{name}={value}" for name, value in run.parameters.items()) or "defaults"
        cells = f"{run.cells[0]}/{run.cells[1]}"
        verdict = "FAILED" if run.error else "ok"
        took = f"{run.seconds:8.1f}  {run.peak_memory / 2**20:8.0f}"
        lines.append(f"{run.notebook:<{width}}  {verdict:<6} {cells:>8}  {took}  {given}")
    return "\n".join(lines) + "\n"


def refresh(sources: Sequence[Path], written: Path, limits: Limits = LIMITS["quick"]) -> list[Run]:
    """Run notebooks with their defaults and replace the .ipynb beside each source, whole or not at all.

    written: where ``output()`` leads. Cells that are still there keep their ids; times and widget states are left
    out, so that a diff shows what changed.
    """
    import nbformat
    from jupytext.combine import combine_inputs_with_outputs

    done = []
    for source in sources:
        path, notebook = source.with_suffix(".ipynb"), read(source)
        if path.exists():
            notebook = combine_inputs_with_outputs(notebook, nbformat.read(path, as_version=4), fmt="ipynb")
        result, notebook = run(source, {}, written, source.parent, limits, notebook)
        done.append(result)
        if not result.error:
            write_whole(path, nbformat.writes(bare(notebook)) + "\n")
    return done


def bare(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs from run to run: papermill's times, widget states, empty lists of tags."""
    for key in ("papermill", "widgets", "jupytext"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    return notebook


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, 1 if a notebook failed, 2 for arguments that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m semaug.rerun", description="Rerun the notebooks.")
    parser.add_argument("command", choices=("reproduce", "check", "refresh"))
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 1_isda; all of them if none is named")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter's value"
    )
    parser.add_argument("--limits", nargs=2, type=float, metavar=("CELL", "NOTEBOOK"), help="time-outs, in seconds")
    parser.add_argument("--folder", type=Path, help="where the notebooks are (default: notebooks/ of the checkout)")
    parser.add_argument("--output", type=Path, help="where results go (default: build/<command> of the checkout)")
    options = parser.parse_args(arguments)
    given = None if options.limits is None else (options.limits[0], options.limits[1])
    try:
        sources = discover(options.notebooks, options.folder)
        if options.command == "refresh" and options.p:
            raise ValueError("refresh takes no -p: the committed notebooks show their defaults")
        jobs = []
        for source in sources:
            values = (reduced(source) if options.command == "check" else {}) | override(source, dict(options.p))
            profile = str((parameters(source) | values).get("profile", "quick"))
            jobs.append((source, values, given or LIMITS[profile]))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    written = (options.output or root() / "build" / options.command).absolute()
    print(f"==> {len(jobs)} notebook{'s' * (len(jobs) > 1)}; results go to {written}", flush=True)
    try:
        if options.command == "refresh":
            done = refresh(sources, written, given or LIMITS["quick"])
        else:
            done = reproduce(jobs, written)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    print("\n" + table(done), end="", flush=True)
    return int(any(run.error for run in done))


if __name__ == "__main__":
    sys.exit(main())
