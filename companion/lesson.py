"""What the notebooks do alike: draw by seed, round for print, keep and show pictures, say what differences allow."""

from __future__ import annotations

import ast
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from companion import leaderboard, notebooks
from companion.plots import STYLE, Picture, alternative, save
from companion.records import Index, committed
from companion.stats import Summary, summary
from companion.studies import NothingToDraw, modules
from semaug.training.record import Record

T = TypeVar("T")


def parameters(notebook: str) -> None:
    """Check the parameters of the session that runs a notebook, however they came there (papermill alone, by hand).

    Raises ValueError for one that papermill put in and the notebook lacks, and for a value that it does not take.
    """
    import jupytext
    from IPython import get_ipython

    session = get_ipython()
    (source,) = notebooks.discover([notebook])
    there = notebooks.declared(jupytext.read(source, fmt="py:percent"), source.name)
    cells = session.user_ns.get("In", [])
    given = [ast.parse(cell) for cell in cells if cell.startswith("# Parameters\n")]  # papermill's
    targets = [target for tree in given for node in tree.body for target in getattr(node, "targets", [])]
    for name in [target.id for target in targets if isinstance(target, ast.Name)]:
        notebooks.default_of(name, there, notebook)
    for name, default in there.items():
        notebooks.parse(name, str(session.user_ns[name]), default)


def seeded(seed: int) -> torch.Generator:
    """A random generator that makes the same draws every time; on the CPU."""
    return torch.Generator().manual_seed(seed)


def rounded(values: Tensor, digits: int = 2) -> list[Any] | float:
    """Numbers for printing, as plain lists of the shape of ``values``; adding 0 turns -0.0 into 0.0."""
    result: list[Any] | float = (torch.round(values.detach(), decimals=digits) + 0).tolist()
    return result


def least(loss: Callable[..., Tensor], *shapes: tuple[int, ...] | int, steps: int = 300) -> list[Tensor]:
    """Parameters of these shapes, float64, that minimise ``loss(*parameters)``, by L-BFGS from zero."""
    parameters = [torch.zeros(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    search = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(*parameters)
        value.backward()
        return value

    search.step(closure)
    return [parameter.detach() for parameter in parameters]


def effect(differences: Iterable[float] | Summary, words: tuple[str, str] = ("better", "worse")) -> str:
    """Paired differences in words: their mean, half of its 95% interval, and the side of zero on which that lies.

    Args:
        differences: the numbers, or their summary.
        words: for an interval above zero and for one below.

    Returns:
        Such as "+1.2 ± 0.3, better (n = 5)"; of fewer than three pairs, that nothing can be said.
    """
    result = differences if isinstance(differences, Summary) else summary(differences)
    if result.n < 3:
        return f"{result.mean:+.1f} (n = {result.n}: nothing can be said)"
    side = words[result.mean < 0] if abs(result.mean) > result.half_width else "not significantly different"
    return f"{result.mean:+.1f} ± {result.half_width:.1f}, {side} (n = {result.n})"


def keep(notebook: str, records: Iterable[Record]) -> None:
    """Keep the records of a notebook's live runs among its results, in place of those of before."""
    folder = notebooks.output(notebook) / "records"
    for old in folder.glob("*.json"):
        old.unlink()
    for record in records:
        record.save(folder)


def counted(items: Iterable[T], what: str = "runs") -> Iterator[T]:
    """Each of the items, while one line says how many are done and about how long the rest takes; then how many."""
    from IPython.display import Pretty, display

    chosen, start = list(items), time.monotonic()
    line = display(Pretty(f"1 of {len(chosen)} {what}"), display_id=True)
    for number, item in enumerate(chosen):
        if number and line is not None:
            left = (time.monotonic() - start) / number * (len(chosen) - number)
            line.update(Pretty(f"{number + 1} of {len(chosen)} {what}, about {left:.0f} s left"))
        yield item
    if line is not None:
        line.update(Pretty(f"{len(chosen)} {what}"))


def show(notebook: str, picture: Picture, name: str) -> Picture:
    """Keep a picture among the results of this run of a notebook, and give it to the cell to show."""
    save(picture, notebooks.output(notebook), name)
    return picture


def animation(notebook: str, frames: Iterable[Picture], name: str) -> None:
    """Show a moving picture, an animated PNG of half a second a frame, and keep it among the results of this run.

    frames: of one size, or one picture that changes from each to the next. Print shows the first.
    """
    import matplotlib.style
    from IPython.display import Image, display
    from matplotlib.animation import PillowWriter

    path, writer = notebooks.output(notebook) / f"{name}.png", PillowWriter(fps=2)
    with matplotlib.style.context(STYLE):
        for number, picture in enumerate(frames):
            if number == 0:
                writer.setup(picture, path)
                words = f"Moving picture: {alternative(picture)}"
            writer.fig = picture
            writer.grab_frame()
        writer.finish()
    width, height = writer.frame_size
    display(Image(path.read_bytes(), width=width, height=height, alt=words))


def reading(say: Callable[[Index], object], notebook: str, what: str = "number") -> None:
    """Let ``say`` print or show what it makes of a notebook's committed records, or say what is missing for it."""
    try:
        say(committed(notebook))
    except NothingToDraw as missing:
        print(f"no {what} yet: it needs {missing} (python -m companion runs {notebook})")


def figure(notebook: str, name: str) -> None:
    """Show a figure of a notebook's study, drawn from the committed records, or say what is missing for it."""
    draw = modules()[notebook].FIGURES[name]
    reading(lambda index: show(notebook, draw(index), name)._ipython_display_(), notebook, "figure")


def table(notebook: str, make: Callable[[Index], str] | None = None) -> None:
    """Show the table in Markdown that ``make`` (by default the study's own) makes of the records."""
    from IPython.display import Markdown, display

    chosen = make or modules()[notebook].table
    reading(lambda index: display(Markdown(chosen(index))), notebook, "table")


def ranked(notebook: str) -> None:
    """Show a notebook's part of the leaderboard, and below it what the paper reports."""
    table(notebook, lambda index: f"{leaderboard.table(notebook)}\n{leaderboard.papers(notebook)}")
