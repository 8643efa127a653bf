"""What the notebooks do alike: draw by seed, round for print, keep and show a picture, or say what it waits for, and
say of paired differences what they allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from companion import leaderboard, plots
from companion import notebooks as rerun
from companion.figures import NothingToDraw
from companion.plots import Picture
from companion.stats import Summary, summary
from semaug.training.record import Record


def seeded(seed: int) -> torch.Generator:
    """A random generator that makes the same draws every time; on the CPU."""
    return torch.Generator().manual_seed(seed)


def rounded(values: Tensor, digits: int = 2) -> list[Any] | float:
    """Numbers for printing, as plain lists of the shape of ``values``, any; adding 0 turns -0.0 into 0.0."""
    result: list[Any] | float = (torch.round(values.detach(), decimals=digits) + 0).tolist()
    return result


def keep(notebook: str, trained: Iterable[Record]) -> None:
    """Keep the records of a notebook's live runs among its results, in place of those of before: what a sweep gathers
    (room ``sweep``).
    """
    folder = rerun.output(notebook) / "records"
    for old in folder.glob("*.json"):
        old.unlink()
    for record in trained:
        record.save(folder)


def show(notebook: str, picture: Picture, name: str) -> Picture:
    """Keep a picture among the results of this run of a notebook, and give it to the cell to show."""
    plots.save(picture, rerun.output(notebook), name)
    return picture


def told(say: Callable[[Sequence[Record]], object], found: Sequence[Record], what: str = "number") -> None:
    """Let ``say`` print or show what it makes of the records, or say what is missing for it."""
    try:
        say(found)
    except NothingToDraw as missing:
        print(f"no {what} yet: it needs {missing} (python -m companion.ledger lists the runs)")


def drawn(notebook: str, draw: Callable[[Sequence[Record]], Picture], name: str, found: Sequence[Record]) -> None:
    """Show what ``draw`` makes of the records, or say what is missing for it."""
    told(lambda runs: show(notebook, draw(runs), name)._ipython_display_(), found, "figure")


def table(draw: Callable[[Sequence[Record]], str], found: Sequence[Record]) -> None:
    """Show the table in Markdown that ``draw`` makes of the records, or say what is missing for it."""
    from IPython.display import Markdown, display

    told(lambda runs: display(Markdown(draw(runs))), found, "table")


def ranked(notebook: str, found: Sequence[Record]) -> None:
    """Show a notebook's part of the leaderboard (room ``leaderboard``), below it what the papers report."""
    table(lambda runs: f"{leaderboard.table({notebook: runs}, notebook)}\n{leaderboard.papers(notebook)}", found)


def verdict(differences: Iterable[float] | Summary, words: tuple[str, str] = ("better", "worse")) -> str:
    """What paired differences allow one to say: their mean, half of its 95% interval, on which side of zero that lies.

    differences: or their summary. words: for an interval above zero and one below. Of fewer than three pairs nothing
    can be said.
    """
    effect = differences if isinstance(differences, Summary) else summary(differences)
    if effect.n < 3:
        return f"{effect.mean:+.1f} (n = {effect.n}: nothing can be said)"
    side = words[effect.mean < 0] if abs(effect.mean) > effect.half_width else "within the noise"
    return f"{effect.mean:+.1f} ± {effect.half_width:.1f}, {side} (n = {effect.n})"
