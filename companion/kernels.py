"""One notebook's run in a kernel of its own, watched from outside: progress, memory, time-outs, what went wrong where.

Papermill runs the cells and has no time-out unless told, no memory of what a run took, and names a failing cell by its
execution count. Here a thread looks at the notebook that papermill fills, and at the kernel's process, five times a
second; a kernel that takes too long is ended. Module ``notebooks`` says what is run.
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
    from jupyter_client.manager import KernelManager
    from nbformat import NotebookNode

Value = int | float | str | bool

Limits = tuple[float, float]


@dataclasses.dataclass
class Execution:
    """What running one notebook took.

    cells: finished of all; peak_memory: bytes of the kernel; error: '' for none.
    """

    notebook: str
    parameters: dict[str, Value]
    cells: tuple[int, int]
    seconds: float
    peak_memory: int
    error: str = ""


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
    """Follows a run from outside its kernel: where it is, its memory, its time; ends a kernel that takes too long."""

    def __init__(self, progress: StatusLine, limits: Limits) -> None:
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
            self.sample()
            spent = {"cell": now - since, "notebook": now - started}
            for (what, seconds), limit in zip(spent.items(), self.limits, strict=True):
                if seconds > limit and not self.expired:
                    self.expired = f"time-out: the {what} took more than {limit:g} s"
                    self.kill()
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
    name: str,
    notebook: NotebookNode,
    values: Mapping[str, Value],
    written: Path,
    folder: Path,
    limits: Limits,
) -> tuple[Execution, NotebookNode]:
    """Execution one notebook by papermill and return what it took, and the notebook as far as it came.

    values: parameters that differ from the defaults. written: where the notebook's own files go (``SEMAUG_OUTPUT``).
    folder: its working folder, made if missing. limits: seconds for a cell and for all of them.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    progress = StatusLine(name)
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
            where = "the kernel did not start" if watch.notebook is None else watch.where()
            error = f"{where}: {type(failure).__name__}: {failure}"
        finally:
            watch.finished.set()
            if watch.is_alive():
                watch.join()
        break
    seconds = time.monotonic() - start
    current, total = watch.place()
    done = Execution(name, dict(values), (current if error else total, total), seconds, watch.peak_memory, error)
    progress.close(f"{'FAILED' if error else 'ok':<6} {name}  {seconds:.1f} s" + (f"  {error}" if error else ""))
    if trace:
        plain = trace if progress.terminal else re.sub(r"\x1b\[[0-9;]*m", "", trace)
        print(*("    " + line for line in plain.splitlines()[-25:]), sep="\n", file=progress.stream)
    return done, watch.notebook if watch.notebook is not None else notebook
