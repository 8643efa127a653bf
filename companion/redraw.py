"""``python -m companion.redraw``: the committed figures and the leaderboard, drawn anew.

``figures/<notebook>/*.png`` and ``*.svg`` come from the records in ``figures/records/<notebook>/``, with the pictures
beside the committed ones, and from nothing else: the same records give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from companion import (
    figures,
    gan_figures,
    gvae_figures,
    leaderboard,
    longtail_figures,
    mixing_figures,
    records,
    sla_figures,
)
from companion.plots import save

ROOMS = (figures, longtail_figures, gvae_figures, sla_figures, mixing_figures, gan_figures)

"""Rooms with a table of drawings by notebook."""


def main(arguments: list[str] | None = None) -> int:
    """Redraw the committed figures and the leaderboard, saying what has no records."""
    about = "Redraw figures/ from figures/records/."
    parser = argparse.ArgumentParser(prog="python -m companion.redraw", description=about)
    parser.add_argument(
        "--folder", type=Path, default=Path(__file__).parents[1] / "figures", help="default: %(default)s"
    )
    folder = parser.parse_args(arguments).folder
    for notebook, drawings in (item for room in ROOMS for item in room.FIGURES.items()):
        found = records.load(folder / "records" / notebook)
        for name, draw in drawings.items():
            try:
                save(draw(found), folder / notebook, name)
                print(f"drew     {notebook}/{name} from {len(found)} records")
            except figures.NothingToDraw as missing:
                print(f"skipped  {notebook}/{name}: needs {missing}; {len(found)} records there do not hold them")
    try:
        paths = leaderboard.write(folder)
        print(f"wrote    {', '.join(str(path.relative_to(folder)) for path in paths)}")
    except figures.NothingToDraw as missing:
        print(f"skipped  leaderboard: needs {missing}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
