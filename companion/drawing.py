"""The command ``figures``: the committed figures and the leaderboard, drawn anew.

``figures/<notebook>/*.png`` come from the records in ``figures/records/<notebook>/``, with the arrays beside them, and
from nothing else: the same records give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from companion import leaderboard
from companion.plots import save
from companion.records import FIGURES, committed
from companion.studies import NothingToDraw, modules


def draw(notebook: str | None = None, figure: str | None = None, folder: Path | None = None) -> int:
    """Draw one figure, those of a notebook, or all; says what has no records. The exit status."""
    folder, known = folder or FIGURES, modules()
    if notebook not in (None, "leaderboard", *known):
        print(f"error: notebook: got {notebook!r}; takes leaderboard, {', '.join(known)}", file=sys.stderr)
        return 2
    chosen = {name: module.FIGURES for name, module in known.items() if notebook in (None, name)}
    if figure is not None and figure not in (names := [name for figures in chosen.values() for name in figures]):
        print(f"error: figure: got {figure!r}; {notebook} has {', '.join(names) or 'none'}", file=sys.stderr)
        return 2
    for name, figures in chosen.items():
        index = committed(name)
        for title, make in figures.items():
            if figure in (None, title):
                try:
                    save(make(index), folder / name, title)
                    print(f"drew     {name}/{title} from {len(index)} records")
                except NothingToDraw as missing:
                    print(f"skipped  {name}/{title}: needs {missing}; {len(index)} records there do not hold them")
    if notebook in (None, "leaderboard"):
        try:
            paths = leaderboard.write(folder)
            print(f"wrote    {', '.join(str(path.relative_to(folder)) for path in paths)}")
        except NothingToDraw as missing:
            print(f"skipped  leaderboard: needs {missing}")
    problems = [line for name in chosen for line in committed(name).problems]
    print(*(f"skipped  {line}" for line in problems), sep="\n", end="\n" * bool(problems), file=sys.stderr)
    return int(bool(problems))
