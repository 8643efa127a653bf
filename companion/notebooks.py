"""Run the notebooks: checked parameters, time-outs, progress, and what each run took.

A notebook's source is its py:percent ``.py``; papermill runs it in a kernel of its own. A notebook that fails is
reported with its cell and error, the others still run, and the exit status is 1. Parameters are checked against the
notebook's ``parameters`` cell before anything runs; a bad one ends with exit status 2.

A notebook takes all its paths from here: ``root()`` and ``output()`` are the same folders whether it runs by papermill,
under nbval or in JupyterLab.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import math
import multiprocessing
import os
import signal
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.kernels import Execution, Limits, Value, run
from semaug.core.files import listed, write_whole
from semaug.training.record import PROFILES, environment

if TYPE_CHECKING:
    from nbformat import NotebookNode

LIMITS: dict[str, Limits] = {"quick": (600, 1800), "cpu": (24 * 3600, 48 * 3600), "paper": (7 * 86400, 7 * 86400)}

"""Seconds that one cell and one notebook may take, by profile."""

REDUCED: dict[str, Value] = {"profile": "quick", "device": "cpu", "seeds": 1, "epochs": 2, "first_seed": 1}

"""What ``make test`` runs a notebook with; of sizes, the smaller of this and the notebook's own. Another seed than the
notebook's, which no cell may take for granted."""


KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}

"""What JupyterLab writes into every notebook that it saves."""


def root() -> Path:
    """The checkout, where notebooks/ and figures/ are: the companion is never installed elsewhere."""
    return Path(__file__).resolve().parents[1]


def output(notebook: str) -> Path:
    """The folder for what a notebook writes, made if missing: never a tracked one.

    Below the run's own folder (build/reproduce, build/check, ...), or build/live in a session opened by hand.
    """
    folder = Path(os.environ.get("SEMAUG_OUTPUT") or root() / "build" / "live") / notebook
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# What is there to run, and with which parameters


def discover(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """Sources of the named notebooks ('1_isda' or a path to its .py or .ipynb), or of all, lessons before appendices.

    Raises ValueError for an unknown name and a path to elsewhere, FileNotFoundError where there is no notebook at all.
    """
    folder = folder or root() / "notebooks"
    places = [place.resolve() for place in (folder, folder / "appendix") if place.is_dir()]
    there = {path.stem: path for place in places for path in listed(place)[1] if path.suffix == ".py"}
    if not there:
        raise FileNotFoundError(f"{folder}: no notebook (*.py) here")
    for name in names:
        path = Path(name)
        if path.stem not in there or path.suffix not in ("", ".py", ".ipynb"):
            raise ValueError(f"notebook: got {name!r}, takes one of {', '.join(there)}")
        if (path.is_absolute() or path.exists()) and path.suffix and path.resolve().parent not in places:
            raise ValueError(f"notebook: got {name!r}, takes one in {folder}; --folder names another")
    return [there[Path(name).stem] for name in names] or list(there.values())


def read(source: Path) -> NotebookNode:
    """The notebook of a py:percent source, without jupytext's metadata.

    With it, opening an executed copy would start to pair that copy with a .py of its own.

    Raises ValueError where the cells of the .ipynb beside it differ and are the later ones: edits nobody may lose.
    """
    import jupytext

    notebook, pair = jupytext.read(source, fmt="py:percent"), source.with_suffix(".ipynb")
    if pair.exists() and pair.stat().st_mtime_ns >= source.stat().st_mtime_ns:
        mine, theirs = (
            [(cell.cell_type, cell.source) for cell in one.cells] for one in (notebook, jupytext.read(pair))
        )
        if mine != theirs:
            remedy = f"jupytext --sync {pair} takes its edits over, touch {source.name} drops them"
            raise ValueError(f"{pair}: got other cells than {source.name}, and later ones; {remedy}")
    notebook.metadata.pop("jupytext", None)
    notebook.metadata["kernelspec"] = dict(KERNEL)
    return notebook


def paired(notebook: NotebookNode) -> tuple[str, str]:
    """The texts of a notebook's .py and .ipynb as JupyterLab saves them, so that opening and saving changes neither."""
    import jupytext
    import nbformat
    from jupytext.config import load_jupytext_config

    config = load_jupytext_config(str(root() / "notebooks" / "any.ipynb"))  # notebooks/jupytext.toml
    filters = ("notebook_metadata_filter", "cell_metadata_filter")
    notebook.metadata["kernelspec"] = dict(KERNEL)
    notebook.metadata["jupytext"] = {name: getattr(config, name) for name in filters}
    for cell in notebook.cells:
        cell.metadata.pop("collapsed", None)  # left by an output that was hidden once, it would hide the next
        if cell.metadata.get("jupyter", {}).get("outputs_hidden"):
            cell.metadata["collapsed"] = True
    whole = nbformat.writes(notebook) + "\n"
    return jupytext.writes(nbformat.reads(whole, 4), "py:percent", config=config), whole  # in the order of its keys


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
            case (
                ast.Assign(targets=[ast.Name(id=parameter)], value=expression)
                | ast.AnnAssign(target=ast.Name(id=parameter), value=ast.expr() as expression)
            ):
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
        text.encode()  # what the shell gave as other bytes could not be written down
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
        kind = {bool: "true or false", int: "a whole number", float: "a finite number", str: "UTF-8 text"}[
            type(default)
        ]
        raise ValueError(f"parameter {name}: got {text!r}, takes {kind} (it is {default!r} by default)") from None
    if name == "profile" and text not in PROFILES:
        raise ValueError(f"parameter profile: got {text!r}, takes one of {', '.join(PROFILES)}")
    if name == "dataset" and text != default:
        from semaug.data.sources import READERS  # here: it loads torch

        if text not in READERS:
            raise ValueError(f"parameter dataset: got {text!r}, takes one of {', '.join(READERS)}")
    return text


def override(source: Path, texts: Mapping[str, str]) -> dict[str, Value]:
    """Parsed values for parameters of a notebook; ValueError names one that it lacks or of the wrong type."""
    there = parameters(source)
    return {name: parse(name, text, default_of(name, there, source.stem)) for name, text in texts.items()}


def default_of(name: str, there: Mapping[str, Value], notebook: str) -> Value:
    """The default of a parameter; ValueError where there is none of this name."""
    if name not in there:
        raise ValueError(f"{notebook} has no parameter {name!r}; it has {', '.join(there) or 'none'}")
    return there[name]


def reduced(source: Path) -> dict[str, Value]:
    """The parameters ``make test`` runs a notebook with: one seed, few epochs (``REDUCED``), as far as it has them."""
    own = parameters(source)
    sizes = {name: min(REDUCED[name], own[name]) for name in ("seeds", "epochs") if name in own}
    return {name: value for name, value in REDUCED.items() if name in own} | sizes


Job = tuple[Path, Mapping[str, Value], Limits]

"""A notebook's source, its parameters and its limits."""


def job(source: Path, texts: Mapping[str, str], limits: Limits | None = None, command: str = "reproduce") -> Job:
    """What one command runs of a notebook; ValueError for parameters that it lacks or of the wrong type."""
    values = (reduced(source) if command == "check" else {}) | override(source, texts)
    profile = str((parameters(source) | values).get("profile", "quick"))
    return source, values, limits or LIMITS[profile]


# All of them


def reproduce(jobs: Sequence[Job], written: Path, at_once: int = 1) -> list[Execution]:
    """Execute notebooks; executed copies, what they write and a table of what it took go to ``written``.

    at_once: how many run at the same time, each on one thread. A failed run leaves
    ``<notebook>.failed.ipynb`` and the whole copy of an earlier run. After one that was interrupted no other begins.
    """
    done = _one_by_one(jobs, written) if at_once == 1 else _beside_each_other(jobs, written, at_once)
    from semaug.training.loop import resolve_device  # here: it loads torch, which a notebook's paths need not

    write_whole(written / "table.txt", table(done))
    entries = [{**dataclasses.asdict(one), "seconds": round(one.seconds, 2)} for one in done]
    content = {"runs": entries, "environment": environment(str(resolve_device()))}
    write_whole(written / "table.json", json.dumps(content, indent=1) + "\n")
    return done


def _one_by_one(jobs: Sequence[Job], written: Path) -> list[Execution]:
    done: list[Execution] = []
    for job in jobs:
        done.append(_one(job, written))
        if done[-1].interrupted:
            break
    return done


def _beside_each_other(jobs: Sequence[Job], written: Path, at_once: int) -> list[Execution]:
    """Each in a process of its own, which this one interrupts where it is interrupted itself."""
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), _deaf) as pool:
        waiting = [pool.submit(_hearing, job, written) for job in jobs]
        try:
            return [one.result() for one in waiting]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            return [one.result() for one in waiting if not one.cancelled() and one.exception() is None]


def _deaf() -> None:
    """Before and between the runs of a process of its own: it is told by the one that began it, during a run."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal tells all processes, idle ones too
        signal.signal(number, signal.SIG_IGN)


_told = False


def _hearing(job: Job, written: Path) -> Execution:
    global _told
    if _told:  # a pool hands out one job more than it has processes
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        done = _one(job, written)
        _told = done.interrupted
        return done
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _one(job: Job, written: Path) -> Execution:
    import nbformat

    source, values, limits = job
    result, notebook = run(source.stem, read(source), values, written, written / source.stem, limits)
    failed, whole = (written / f"{source.stem}{end}.ipynb" for end in (".failed", ""))
    if not result.error:
        failed.unlink(missing_ok=True)
    write_whole(failed if result.error else whole, nbformat.writes(notebook) + "\n")
    return result


def table(runs: Sequence[Execution]) -> str:
    """Time and memory of the runs, as text."""
    width = max(len("notebook"), *(len(one.notebook) for one in runs))
    lines = [f"{'notebook':<{width}}  result    cells   seconds  peak MiB  parameters"]
    for one in runs:
        result, cells = "FAILED" if one.error else "ok", "{}/{}".format(*one.cells)
        took = f"{one.seconds:8.1f}  {one.peak_memory / 2**20:8.0f}"
        given = " ".join(f"{name}={value}" for name, value in one.parameters.items()) or "defaults"
        lines.append(f"{one.notebook:<{width}}  {result:<6} {cells:>8}  {took}  {given}")
    return "\n".join(lines) + "\n"


def refresh(sources: Sequence[Path], written: Path, limits: Limits = LIMITS["quick"]) -> list[Execution]:
    """Execute notebooks with their defaults and replace the .ipynb beside each source, whole or not at all.

    The source is written anew where its form is not the one that JupyterLab saves.

    written: where ``output()`` leads. Cells that are still there keep their ids; times and widget states are left
    out, so that a diff shows what changed.
    """
    import nbformat
    from jupytext.combine import combine_inputs_with_outputs

    done = []
    for source in sources:
        path, before, notebook = source.with_suffix(".ipynb"), source.read_bytes(), read(source)
        if path.exists():
            notebook = combine_inputs_with_outputs(notebook, nbformat.read(path, as_version=4), fmt="ipynb")
        result, notebook = run(source.stem, notebook, {}, written, source.parent, limits)
        if not result.error and source.read_bytes() != before:
            result.error = f"{source.name} was changed while it ran: run it again"
            print(f"FAILED {source.stem}: {result.error}", flush=True)
        done.append(result)
        if result.interrupted:
            break
        if not result.error:
            text, whole = paired(bare(notebook))
            if text.encode() != before:
                write_whole(source, text)
            write_whole(path, whole)
    return done


def bare(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what differs from run to run: papermill's times, widget states, empty lists of tags, and
    where a slow machine cut what one cell printed into pieces.
    """
    for key in ("papermill", "widgets", "jupytext"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        whole: list[Any] = []
        for output in cell.get("outputs", []):
            if whole and output.output_type == whole[-1].output_type == "stream" and output.name == whole[-1].name:
                whole[-1].text += output.text
            else:
                whole.append(output)
        if "outputs" in cell:
            cell.outputs = whole
    return notebook


def execute(command: str, jobs: Sequence[Job], written: Path | None = None) -> int:
    """One of the commands ``reproduce``, ``check`` and ``refresh``; the exit status, 1 if a notebook failed.

    Raises KeyboardInterrupt after what was done is written, where a run was interrupted.
    """
    written = (written or root() / "build" / command).absolute()
    print(f"==> {len(jobs)} notebook{'s' * (len(jobs) > 1)}; results go to {written}", flush=True)
    if command == "refresh":
        done = refresh([source for source, *_ in jobs], written, jobs[0][2])
    else:
        done = reproduce(jobs, written, min(os.cpu_count() or 1, 4, len(jobs)))
    print("\n" + table(done), end="", flush=True)
    if command == "reproduce" and any(not one.error for one in done):
        print(f"\nExecuted copies and their pictures: {written}; make lab opens the lessons to run by hand.")
    if any(one.interrupted for one in done):
        raise KeyboardInterrupt
    return int(any(one.error for one in done))
