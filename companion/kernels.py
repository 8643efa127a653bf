"""One notebook's run in a kernel of its own, watched from outside: progress, memory, time-outs, what went wrong where.

Papermill runs the cells; it has no memory of what a run took, and names a failing cell by its execution count. Here a
thread looks at the kernel's process five times a second and says how far it is; nbclient ends a kernel that takes too
long. Module ``notebooks`` says what is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from nbformat import NotebookNode

Value = int | float | str | bool

Limits = tuple[float, float]


@dataclasses.dataclass
class Execution:
    """What running one notebook took.

    cells: finished of all; peak_memory: bytes of the kernel; error: '' for none; interrupted: by whoever started it.
    """

    notebook: str
    parameters: dict[str, Value]
    cells: tuple[int, int]
    seconds: float
    peak_memory: int
    error: str = ""
    interrupted: bool = False


class StatusLine:
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

    def close(self, result: str) -> None:
        """Replace the line by the result."""
        self.stream.write(("\r\033[K" if self.terminal else "") + result + "\n")
        self.stream.flush()


class _Watch(threading.Thread):
    """Follows a run from outside its kernel: the cell that runs, how long it may still take, the kernel's memory."""

    def __init__(self, progress: StatusLine, limits: Limits) -> None:
        super().__init__(daemon=True)
        self.progress, self.limits = progress, limits
        self.notebook: NotebookNode | None = None
        self.cell, self.total, self.line = 0, 0, ""  # counted from 1 and of the source: papermill puts in others
        self.started = self.since = time.monotonic()
        self.peak_memory = 0
        self.finished = threading.Event()

    def follow(self, notebook: NotebookNode, pid: int) -> None:
        """Begin, once the kernel is up."""
        self.notebook, self.kernel = notebook, psutil.Process(pid)
        self.total = sum(_own(cell) for cell in notebook.cells)
        self.started = time.monotonic()
        self.start()

    def begin(self, cell: NotebookNode) -> None:
        """Note the cell that is now run."""
        self.cell, self.since = self.cell + _own(cell), time.monotonic()
        self.line = next((line for line in cell.source.splitlines() if line.strip()), "")

    def seconds_left(self) -> float:
        """How long the cell may still take, above zero; called by nbclient."""
        return max(min(self.since + self.limits[0], self.started + self.limits[1]) - time.monotonic(), 1e-3)

    def expired(self) -> str:
        """What has taken too long; '' for nothing."""
        for what, since, limit in zip(("cell", "notebook"), (self.since, self.started), self.limits, strict=True):
            if time.monotonic() - since > limit:
                return f"time-out: the {what} took more than {limit:g} s"
        return ""

    def run(self) -> None:
        while not self.finished.wait(0.2):
            self.sample()
            self.progress.show(max(self.cell - 1, 0), self.total, self.line)

    def sample(self) -> None:
        """Bring the memory up to date: the system's own count of its peak where it keeps one, else what it is now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            status = Path(f"/proc/{self.kernel.pid}/status")
            peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
            now = 1024 * int(peak[1]) if peak else self.kernel.memory_info().rss
            self.peak_memory = max(self.peak_memory, now)

    def where(self) -> str:
        """'cell 7 of 31 (`loss = ...`)': the cell that ran last, and its first line."""
        if self.notebook is None:
            return "the kernel did not start"
        return f"cell {self.cell} of {self.total} (`{self.line[:80]}`)"


def _own(cell: NotebookNode) -> bool:
    return "injected-parameters" not in cell.metadata.get("tags", [])


def _outputs(notebook: NotebookNode | None) -> list[NotebookNode]:
    return [output for cell in (notebook.cells if notebook else []) for output in cell.get("outputs", [])]


def _engine(watch: _Watch, folder: Path, written: Path) -> type:
    """A papermill engine whose kernel works in ``folder``, writes below ``written`` and is watched."""
    from ipykernel.kernelspec import make_ipkernel_cmd
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine

    class Own(AsyncKernelManager):
        """Of this interpreter, whatever a kernel called python3 elsewhere on Jupyter's path is."""

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(argv=make_ipkernel_cmd(), display_name="Python 3", language="python")

    class Watched(Engine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
            # A backend named in the shell would keep figures out of the notebook.
            variables = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
            variables |= {"SEMAUG_OUTPUT": str(written), "SEMAUG_STATIC": "1"}  # nobody is there to turn a slider
            # One thread: on cores that others use too, torch's waiting threads cost a small network up to six times
            # its time (measured), and a fixed number keeps results equal; a number set outside wins.
            variables.setdefault("OMP_NUM_THREADS", "1")
            client: Any = PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                kernel_manager_class=Own,
                log=logging.getLogger("papermill"),
                startup_timeout=120,
                timeout=int(watch.limits[1]),  # of what is no cell
                timeout_func=lambda cell: watch.seconds_left(),
                on_notebook_start=lambda notebook: watch.follow(notebook, client.km.provisioner.pid),
                on_cell_start=lambda cell, cell_index: watch.begin(cell),
                on_cell_executed=lambda **_: watch.sample(),
            )
            # Not "running over TCP without encryption", nor the traceback of a kernel that is interrupted.
            client.extra_arguments = ["--log-level=CRITICAL"]
            client.execute(env=variables, cwd=str(folder))

    return Watched


def run(
    name: str, notebook: NotebookNode, values: Mapping[str, Value], written: Path, folder: Path, limits: Limits
) -> tuple[Execution, NotebookNode]:
    """Execute one notebook by papermill and return what it took, and the notebook as far as it came.

    An interruption ends it and is noted in what it took.

    values: parameters that differ from the defaults. written: where the notebook's own files go (``SEMAUG_OUTPUT``).
    folder: its working folder, made if missing. limits: seconds for a cell and for all of them.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # errors are reported here
    folder.mkdir(parents=True, exist_ok=True)
    progress = StatusLine(name)
    start, error, trace, interrupted = time.monotonic(), "", "", False
    for attempt in range(3):
        watch = _Watch(progress, limits)
        papermill_engines.register("watched", _engine(watch, folder, written))
        try:
            papermill.execute_notebook(
                notebook, None, dict(values), engine_name="watched", kernel_name="python3", progress_bar=False
            )
            if any(output.get("ename") == "SystemExit" for output in _outputs(watch.notebook)):
                error = f"{watch.where()}: SystemExit: an exit is no success"  # papermill takes one of status 0 for it
        except PapermillExecutionError as failure:
            error = f"{watch.where()}: {failure.ename}: {failure.evalue}"
            trace = "\n".join(failure.traceback)
        except Exception as failure:  # before the first cell: two kernels that start at once can take the same port
            if watch.notebook is None and attempt < 2:
                continue
            dead = isinstance(failure, DeadKernelError)
            what = "the kernel died (out of memory?)" if dead else f"{type(failure).__name__}: {failure}"
            error = f"{watch.where()}: {watch.expired() or what}"
        except KeyboardInterrupt:
            logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # nor of the cell whose kernel is then gone
            error, interrupted = f"{watch.where()}: interrupted", True
        finally:
            watch.finished.set()
            if watch.is_alive():
                watch.join()
        break
    seconds = time.monotonic() - start
    cells = max(watch.cell - 1, 0) if error else watch.total, watch.total
    done = Execution(name, dict(values), cells, seconds, watch.peak_memory, error, interrupted)
    progress.close(f"{'FAILED' if error else 'ok':<6} {name}  {seconds:.1f} s" + (f"  {error}" if error else ""))
    if trace:
        plain = trace if progress.terminal else re.sub(r"\x1b\[[0-9;]*m", "", trace)
        print(*("    " + line for line in plain.splitlines()[-25:]), sep="\n", file=progress.stream)
    return done, watch.notebook if watch.notebook is not None else notebook
