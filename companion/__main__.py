"""The command line of the companion: ``python -m companion --help``."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

EPILOG = """examples:
  python -m companion reproduce 1_isda -p seeds=5        one notebook with another parameter
  python -m companion figures 3_automix accuracy         one figure, drawn anew from the committed records
  python -m companion runs 1_isda                        which training runs its figures stand on, and which are there
  python -m companion run --minutes 60                   train the next missing ones; a stopped run goes on
"""


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(
        prog="python -m companion",
        description="Run the notebooks, draw their figures, train what the figures stand on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, about: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about + more)

    for name, about in {
        "reproduce": "run notebooks; executed copies, figures, times in build/reproduce",
        "check": "the same with small parameters, several notebooks at a time, in build/check",
        "refresh": "run notebooks and replace the committed .ipynb beside each .py",
    }.items():
        command = add(name, about)
        command.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 1_isda; all if none is named")
        if name != "refresh":  # the committed notebooks show their defaults
            command.add_argument("-p", action="append", default=[], metavar="NAME=VALUE", help="a parameter's value")
        command.add_argument("--limits", nargs=2, type=float, metavar=("CELL", "NOTEBOOK"), help="time-outs, seconds")
        command.add_argument("--folder", type=Path, help="where the notebooks are (default: notebooks/)")
        command.add_argument("--output", type=Path, help=f"where results go (default: build/{name})")
    command = add("figures", "draw figures anew from the committed records")
    command.add_argument("notebook", nargs="?", metavar="NOTEBOOK", help="such as 1_isda, or leaderboard; else all")
    command.add_argument("figure", nargs="?", metavar="FIGURE", help="one figure of it")
    command.add_argument("--folder", type=Path, help="where the pictures go (default: figures/)")
    for name, about in {
        "runs": "list the planned training runs, and which of them are saved",
        "run": "train the next missing runs, as many as fit; a stopped run goes on from its last epoch",
    }.items():
        command = add(name, about)
        command.add_argument("notebook", nargs="?", metavar="NOTEBOOK", help="only this one's runs")
        command.add_argument("--profile", choices=("cpu", "paper"), default="cpu", help="default: cpu")
    command.add_argument("--minutes", type=float, default=30.0, help="about how long (default: 30)")
    together = "runs of one study at a time, which a GPU holds where networks are small (default: 1)"
    command.add_argument("--together", type=int, default=1, help=together)
    command.add_argument("--device", help="default: cpu for the profile cpu, whose runs are paired, else the GPU")
    command.add_argument("--root", help="folder of the data sets (default: $SEMAUG_DATA or the user's cache)")
    command = add(
        "sweep", "run a notebook over a grid of parameters, by Snakemake", "; further options go to Snakemake"
    )
    command.add_argument("config", type=Path, help="such as companion/workflow/strength.yaml")
    command.add_argument("--on", default="local", help="a profile of companion/workflow/profiles (default: local)")
    add("site", "write the lessons as web pages to build/site/html", ' (pip install -e ".[site]")')
    add("slides", "write the lessons as slides to build/slides")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 if something failed, 2 for arguments that cannot be, 130 if interrupted."""
    options, rest = parser().parse_known_args(arguments)
    if rest and options.command != "sweep":
        parser().error(f"unknown arguments: {' '.join(rest)}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # an end from outside as one from the keyboard
    try:
        try:
            command = _prepared(options, rest)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return command()
    except KeyboardInterrupt:
        print("\ninterrupted; what was done is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # python -m companion runs | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepared(options: argparse.Namespace, rest: list[str]) -> Callable[[], int]:
    """What is to be done, once the arguments are checked. Each command imports what it needs: the help loads nothing.

    Raises ValueError or OSError for arguments that cannot be.
    """
    if options.command == "sweep":
        from companion import sweep

        return sweep.prepared(options.config, options.on, rest)
    if options.command in ("reproduce", "check", "refresh"):
        from companion import notebooks

        texts = getattr(options, "p", [])
        if unclear := [text for text in texts if "=" not in text]:
            raise ValueError(f"-p: got {unclear[0]!r}; takes name=value")
        given = dict(text.split("=", 1) for text in texts)
        if not all(0 < limit < math.inf for limit in options.limits or ()):
            raise ValueError(f"--limits: got {options.limits}; takes seconds above 0")
        sources = notebooks.discover(options.notebooks, options.folder)
        jobs = [notebooks.job(source, given, options.limits, options.command) for source in sources]
        return partial(notebooks.execute, options.command, jobs, options.output)
    if options.command == "slides":
        from companion.site import slides

        return slides.build
    if options.command == "site":
        from importlib.util import find_spec

        if find_spec("myst_nb") is None:
            raise ValueError('site: got no myst_nb; takes an environment with pip install -e ".[site]" (make site)')
        from companion import site

        return site.build
    from companion import studies
    from semaug._checks import check_choice, check_number, require

    known = studies.modules()
    if options.command == "figures":
        takes = f"leaderboard, {', '.join(known)}"
        require(options.notebook in (None, "leaderboard", *known), "notebook", options.notebook, takes)
        names = [figure for name, module in known.items() if name == options.notebook for figure in module.FIGURES]
        if options.figure not in (None, *names):
            raise ValueError(f"figure: got {options.figure!r}; {options.notebook} has {', '.join(names) or 'none'}")
        return partial(_draw, options.notebook, options.figure, options.folder)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from companion import runs
    from semaug.training.loop import MOST_TOGETHER, resolve_device

    if options.notebook is not None:
        check_choice("notebook", options.notebook, known)
    planned = runs.planned(options.profile, options.notebook)
    if options.command == "runs":
        return partial(runs.show, planned)
    check_number("--minutes", options.minutes, low=0, without=(0,))
    takes = f"a whole number from 1 to {MOST_TOGETHER}"
    require(1 <= options.together <= MOST_TOGETHER, "--together", options.together, takes)
    device = options.device or ("cpu" if options.profile == "cpu" else "auto")
    if options.profile == "paper" and device == "auto" and resolve_device().type == "cpu":
        raise ValueError("--profile: got paper; torch sees no GPU; with --device cpu it runs all the same, for weeks")
    return partial(runs.run_for, options.minutes, planned, device, options.root, options.together)


def _draw(notebook: str | None, figure: str | None, folder: Path | None) -> int:
    """Draw one figure, those of a notebook, or all and the leaderboard, from the committed records; the exit status.

    The same records give the same bytes. What has no records is skipped and said; one that fails leaves the others.
    """
    from companion import leaderboard, plots, records, studies

    folder = folder or records.FIGURES
    failed = False
    chosen = {name: module for name, module in studies.modules().items() if notebook in (None, name)}
    for name, module in chosen.items():
        index = records.committed(name)
        for title, make in module.FIGURES.items():
            if figure in (None, title):
                try:
                    plots.save(make(index), folder / name, title)
                    print(f"drew     {name}/{title} from {len(index)} records")
                except studies.NothingToDraw as missing:
                    print(f"skipped  {name}/{title}: needs {missing}; {len(index)} records there do not hold them")
                except Exception as error:  # a record without what this figure shows, say
                    failed = True
                    print(f"FAILED   {name}/{title}: {type(error).__name__}: {error}")
    if notebook in (None, "leaderboard"):
        try:
            paths = leaderboard.write(folder)
            print(f"wrote    {', '.join(str(path.relative_to(folder)) for path in paths)}")
        except studies.NothingToDraw as missing:
            print(f"skipped  leaderboard: needs {missing}")
        except Exception as error:
            failed = True
            print(f"FAILED   leaderboard: {type(error).__name__}: {error}")
    return int(records.problems(chosen) or failed)


if __name__ == "__main__":
    sys.exit(main())
