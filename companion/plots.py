r"""Plots: every figure of the notebooks, in one style, and the sliders that a live notebook adds to them.

A plot is a function from data or records to a :class:`Picture`, a matplotlib Figure that is not pyplot's: drawing one
has no effect but the picture, and a notebook shows it once. Bands and bars are 95% Student intervals of the mean over
seeds, and the legend or the row says over how many.
"""

from __future__ import annotations

import functools
import inspect
import io
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Literal, ParamSpec

import matplotlib.style
import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from PIL import Image
from torch import Tensor

from companion.stats import Summary, gains, points, summary
from semaug.core.files import write_whole
from semaug.training.record import Record

STYLE = Path(__file__).with_name("semaug.mplstyle")

BLUE, RED, GREEN, YELLOW, CYAN, PURPLE = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")

COLOURS = (BLUE, RED, GREEN, YELLOW, CYAN, PURPLE)

GREY = "#777777"

P = ParamSpec("P")


# ---------------------------------------------------------------------------------------------------------------------
# Style, pictures and files


class Picture(Figure):
    """A figure that shows itself in a notebook, whatever the session's style and backend."""

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(_image(self))


def styled(draw: Callable[P, Picture]) -> Callable[P, Picture]:
    """Draw in the house style and leave the session's own untouched."""

    @functools.wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> Picture:
        with matplotlib.style.context(STYLE):
            return draw(*args, **kwargs)

    return inner


def png(figure: Figure) -> bytes:
    """The figure as a PNG file: the same bytes for the same figure (and versions of matplotlib and Pillow).

    A drawing is stored in 64 or 256 colours, a third of the size, where all that it loses is the smoothing of edges.
    Where a patch's colour would change, as bands that lie over each other do, or a line's, it keeps all of its colours,
    and so do images.
    """
    stored = whole = Image.open(io.BytesIO(_render(figure))).convert("RGB")
    for colours in (256, 64) if not any(axes.images for axes in figure.axes) else ():
        few = whole.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        stored = stored if _patches_differ(few, whole) or _lines_differ(few, whole) else few
    buffer = io.BytesIO()
    stored.save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _patches_differ(one: Image.Image, other: Image.Image, most: int = 8, size: int = 6) -> bool:
    """Whether two pictures differ by more than ``most`` of 255 all over some square of so many pixels a side."""
    arrays = (np.asarray(picture.convert("RGB"), np.int16) for picture in (one, other))
    off = np.abs(next(arrays) - next(arrays)).max(2) > most
    squares = np.lib.stride_tricks.sliding_window_view(off, (size, size))
    return bool(squares.all((2, 3)).any())


def _lines_differ(one: Image.Image, other: Image.Image, most: int = 8, least: int = 200) -> bool:
    """Whether a colour that so many pixels of ``other`` have differs in ``one`` by more than ``most`` of 255."""
    pixels = np.asarray(other).reshape(-1, 3)
    _, first, counts = np.unique(pixels, axis=0, return_index=True, return_counts=True)
    often = first[counts >= least]
    off = np.abs(np.asarray(one.convert("RGB")).reshape(-1, 3)[often].astype(int) - pixels[often])
    return bool((off > most).any())


def _render(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.style.context(STYLE):  # fonts and dpi are looked up when it is drawn
        if figure.get_layout_engine() is not None:
            for _ in range(2):  # after one drawing a sheet's row titles are still cut off
                figure.draw_without_rendering()
            # the layout would move a little at every further drawing: never again
            figure.set_layout_engine("none")
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def save(figure: Figure, folder: str | Path, name: str) -> Path:
    """Write ``folder/name.png``; a file there is replaced by a whole one or stays."""
    return write_whole(Path(folder) / f"{name}.png", png(figure))


# ---------------------------------------------------------------------------------------------------------------------
# Lines and bands


def band(
    axes: Axes, x: Sequence[float] | np.ndarray, values: Float[np.ndarray, "n x"], label: str, **style: Any
) -> Line2D:
    """One line into axes: the mean of the rows of ``values`` (n, len(x)) with its 95% interval, n in the legend.

    One row or two are a line without band: at n = 2 the interval is thirteen times as wide as the standard deviation,
    and hides all else.
    """
    each = [summary(column) for column in values.T.tolist()]
    mean, half = np.array([point.mean for point in each]), np.array([point.half_width for point in each])
    (line,) = axes.plot(x, mean, label=f"{label} (n = {len(values)})", **style)
    if len(values) > 2:
        axes.fill_between(x, mean - half, mean + half, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


@styled
def curves(groups: Mapping[str, Sequence[Record]], *names: str, colours: Mapping[str, str] | None = None) -> Picture:
    """Curves of training by epoch, a panel for each name (``train_loss``, ``validation_accuracy``), mean and 95% band.

    colours: of groups; else one after the other.

    Raises ValueError where a record has no such curve, or the seeds of a group have curves of different length.
    """
    if not names:
        raise ValueError("names: got none; takes names of curves, as 'train_loss'")
    figure = Picture(figsize=(7.5, 3.2))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        (scale, label), drawn = _unit(name), list[Line2D]()
        for group, found in groups.items():
            lengths = {len(record.curves.get(name, [])) for record in found}
            if len(lengths) != 1 or 0 in lengths:
                got = f"groups[{group!r}]: got curves {name!r} of lengths {sorted(lengths)}"
                raise ValueError(f"{got}; takes one length above 0 for all seeds")
            length = lengths.pop()
            epochs = found[0].config.get("recipe", {}).get("epochs", length)  # a value may stand for several epochs
            x = np.arange(1, length + 1) * (epochs / length)
            values = scale * np.array([record.curves[name] for record in found])
            drawn.append(band(axes, x, values, group, color=(colours or {}).get(group)))
        axes.set(xlabel="epoch", ylabel=label)
        if axes is panels[0]:  # by their labels: one that begins with an underscore would be left out
            axes.legend(drawn, [str(line.get_label()) for line in drawn])
    caption(figure, [record for group in groups.values() for record in group], "Bands: 95% intervals of the mean.")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons over paired seeds


@styled
def comparison(
    panels: Mapping[str, Mapping[str, Sequence[Record]]], colours: Mapping[str, str] | None = None
) -> Picture:
    """Test accuracy over paired seeds, one block a data set, one row a method; the first of a block is its baseline.

    Left: a dot a seed, the mean and its 95% interval. Right: the difference from the baseline seed by seed, on the
    seeds that both have. colours: of methods; else one after the other, by row.

    Raises ValueError where a method has no record, or two of one seed.
    """
    rows = [len(methods) for methods in panels.values()]
    if not rows or 0 in rows:
        raise ValueError(f"panels: got {len(rows)} panels with {rows} methods; takes at least one method in each")
    titles = [textwrap.fill(title, 52) for title in panels]  # wider ones would push the two columns apart
    heights = [0.62 + 0.34 * n + 0.17 * title.count("\n") for n, title in zip(rows, titles, strict=True)]
    figure = Picture(figsize=(7.5, 0.55 + sum(heights)))
    blocks = figure.subplots(len(rows), 2, squeeze=False, width_ratios=(1.15, 1), height_ratios=[n + 0.6 for n in rows])
    baselines = {next(iter(methods)) for methods in panels.values()}
    for (left, right), title, methods in zip(blocks, titles, panels.values(), strict=True):
        if right is not blocks[0][1]:
            right.sharex(blocks[0][1])
        first = next(iter(methods.values()))
        for row, (name, runs) in enumerate(methods.items()):
            colour = (colours or {}).get(name, COLOURS[row % len(COLOURS)])
            _row(left, row, [*map(points, runs)], colour, capsize=3, linewidth=1.6)
            try:
                gained = gains(runs, first)
            except ValueError as error:
                raise ValueError(f"{name!r}: {error}") from None
            if row and gained:
                result = _row(right, row, gained, colour, capsize=3, linewidth=1.6)
                half = f" ± {result.half_width:.2f}" if result.n > 2 else ""
                where = ("axes fraction", "data")
                text = f"{round(result.mean, 2) + 0:+.2f}{half}".replace("-", "\N{MINUS SIGN}")  # + 0: no minus zero
                right.annotate(text, (1.03, row), xycoords=where, va="center", fontsize=9)
        left.set_yticks(range(len(methods)), [f"{name} (n = {len(runs)})" for name, runs in methods.items()])
        right.set_yticks(range(len(methods)), [])
        right.axvline(0, color=GREY, linewidth=1)
        left.set_title(title)
        for axes in (left, right):
            axes.set_ylim(len(methods) - 0.5, -0.5)
            axes.grid(visible=False, axis="y")
    blocks[-1][0].set_xlabel("test accuracy (%)")
    only = baselines.pop() if len(baselines) == 1 else ""
    against = only if 0 < len(only) < 20 else "the first row"
    blocks[-1][1].set_xlabel(f"gain over {against} (points)")
    found = [record for methods in panels.values() for group in methods.values() for record in group]
    caption(figure, found, "Dots: seeds. Bars: 95% intervals of the mean.")
    return figure


@styled
def forest(
    lines: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    xlabel: str,
    shown: Iterable[Record],
    text: str = "",
    colour: Callable[[str, str], str] = lambda name, title: BLUE,
    filled: Callable[[str, str], bool] = lambda name, title: True,
    shared: bool = False,
) -> Picture:
    """Differences over paired seeds, a row a method: a dot a seed, the mean and its 95% interval.

    lines: by line of panels and panel, the differences of every method; a line's panels share their rows. xlabel: what
    is measured. shown: the records behind it, for the caption, with ``text``. colour, filled: of a mark, by its method
    and the title of its panel. shared: whether the panels of a line have one scale.
    """
    rows = {
        line: list(dict.fromkeys(n for values in columns.values() for n in values)) for line, columns in lines.items()
    }
    figure = Picture(figsize=(7.5, 0.5 + sum(0.75 + 0.27 * len(names) for names in rows.values())))
    across = max(len(columns) for columns in lines.values())
    heights = [len(names) + 1.5 for names in rows.values()]
    sharex: Literal["row", "none"] = "row" if shared else "none"
    grid = figure.subplots(len(lines), across, squeeze=False, sharex=sharex, sharey="row", height_ratios=heights)
    for axes_of, (line, columns) in zip(grid, lines.items(), strict=True):
        for unused in axes_of[len(columns) :]:
            unused.remove()
        for axes, (title, values) in zip(axes_of, columns.items(), strict=False):
            of_panel = {name: (colour(name, title), filled(name, title)) for name in rows[line]}
            differences(axes, values, of_panel)
            axes.set_title("\n".join([*textwrap.wrap(title, 80 // across), counts(values)]), fontsize=8.5)
            axes.set_xlabel(xlabel, fontsize=9)
        axes_of[0].set_yticks(range(len(rows[line])), rows[line])
        axes_of[0].set_ylabel("\n".join(textwrap.wrap(line, 24)), fontsize=8)
    caption(figure, shown, f"Dots: seeds. Bars: 95% intervals of the mean difference. {text}".strip())
    return figure


def differences(axes: Axes, values: Mapping[str, Sequence[float]], rows: Mapping[str, tuple[str, bool]]) -> None:
    """One panel of a :func:`forest`; up to two seeds have no interval.

    rows: by method, from the top, the colour of its mark and whether it is filled; one without values stays empty.
    """
    for row, (name, (colour, filled)) in enumerate(rows.items()):
        seeds = values.get(name)
        if seeds:
            _row(axes, row, seeds, colour, (0.3, 3), mfc=colour if filled else "white", capsize=2.5)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def counts(values: Mapping[str, Sized]) -> str:
    """Over how many seeds the rows of a panel are: 'n = 3', 'n = 2 to 3'."""
    found = sorted({len(each) for each in values.values()})
    return f"n = {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "")


def _row(
    axes: Axes, row: int, values: Sequence[float], colour: str, dots: tuple[float, float] = (0.24, 4), **style: Any
) -> Summary:
    """The mean of values with its interval, and below it a dot each; dots: how far below, and their size."""
    result, (below, size) = summary(values), dots
    axes.plot(values, [row + below] * len(values), "o", color=colour, alpha=0.35, markersize=size, markeredgewidth=0)
    half = result.half_width if result.n > 2 else 0.0
    axes.errorbar(result.mean, row, xerr=half, fmt="D", color=colour, markersize=5, **style)
    return result


def _unit(name: str) -> tuple[float, str]:
    """What a curve is drawn times, and its label: accuracies in percent, losses in nats, others as they are."""
    words = name.replace("_", " ")
    if "accuracy" in name:
        return 100.0, f"{words} (%)"
    return 1.0, f"{words} (nats)" if "loss" in name else words


def headline(figure: Figure, text: str, labels: Mapping[str, Artist] | None = None) -> None:
    """What a figure shows, in a sentence above it; below that a legend, in rows, where ``labels`` has artists."""
    lines = textwrap.wrap(text, int(11 * figure.get_figwidth()))
    names = list(labels or ())
    columns = max(1, min(len(names), int(12 * figure.get_figwidth() / max(map(len, names), default=1))))
    figure.suptitle("\n".join([*lines, *[" "] * -(-len(names) // columns)]), x=0.01, ha="left", fontsize=11.5)
    if labels:
        below = (0.005, 1 - (0.04 + 0.19 * len(lines)) / figure.get_figheight())
        style: dict[str, Any] = {"fontsize": 9, "frameon": False, "borderaxespad": 0, "borderpad": 0.2}
        figure.legend(labels.values(), names, loc="upper left", bbox_to_anchor=below, ncols=columns, **style)


def caption(figure: Figure, found: Iterable[Record], text: str) -> None:
    """What a reader has to know, under a figure, in lines of its width; of runs not by the profile cpu, where from."""
    kinds = {(record.profile, record.environment.get("device", "unknown device")) for record in found}
    if {profile for profile, _ in kinds} != {"cpu"}:
        text += f" Records: {'; '.join(sorted(f'profile {profile}, {device}' for profile, device in kinds))}."
    lines = textwrap.wrap(text, int(15.5 * figure.get_figwidth()))
    figure.supxlabel("\n".join(lines), fontsize=8, color=GREY, x=0.01, ha="left")


# ---------------------------------------------------------------------------------------------------------------------
# Images, covariances, and the picture of where a method acts


@styled
def sheet(
    images: Float[Tensor, "rows columns channels H W"] | UInt8[Tensor, "rows columns channels H W"],
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    title: str = "",
    size: float | None = None,
) -> Picture:
    """A contact sheet of grey or colour images, uint8 or float in [0, 1].

    size: of a tile in inches; by default as large as the width of a notebook allows, and at most 0.75.

    Raises ValueError for another shape, values outside [0, 1], or titles that are not one for each row or column.
    """
    if images.ndim != 5 or images.shape[2] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images: got shape {tuple(images.shape)}; takes (rows, columns, 1 or 3, H, W)")
    tiles = images.detach().cpu().float() / (255 if images.dtype == torch.uint8 else 1)
    low, high = tiles.aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images: got values from {low:.3g} to {high:.3g}; takes floats in [0, 1], or uint8")
    rows, columns, channels, height, width = tiles.shape
    for name, titles, count in (("row_titles", row_titles, rows), ("column_titles", column_titles, columns)):
        if len(titles) not in (0, count):
            raise ValueError(f"{name}: got {len(titles)}; takes none or {count}")
    gap = max(1, width // 14)
    mosaic = torch.ones(rows, columns, channels, height + gap, width + gap)  # white between the tiles
    mosaic[..., :height, :width] = tiles
    mosaic = mosaic.permute(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), channels)
    mosaic = mosaic[:-gap, :-gap].expand(-1, -1, 3)

    margins = 0.15 + 0.3 * bool(column_titles) + 0.3 * bool(title)
    labels = 0.15 + 0.08 * max([len(text) for text in row_titles], default=0)
    size = size or min(0.75, (7.5 - labels) / columns)
    figure = Picture(figsize=(columns * size + labels, rows * size * height / width + margins))
    axes = figure.add_subplot(title=title)
    axes.imshow(mosaic.numpy(), vmin=0, vmax=1)
    axes.set_xticks([i * (width + gap) + width / 2 - 0.5 for i in range(len(column_titles))], column_titles)
    axes.set_yticks([i * (height + gap) + height / 2 - 0.5 for i in range(len(row_titles))], row_titles)
    bare(axes)
    return figure


def bare(axes: Axes) -> None:
    """Axes of images: words above and beside them, without ticks, frame and grid."""
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)


PLACES = {
    "pixels": "images are cut, mixed,\nor moved",
    "features": "maps or features are\nmixed or sampled",
    "labels": "targets are mixed\nor joined",
    "loss": "the loss stands for\nendless augmentation",
    "generator": "a network trained\nbeside it makes images",
}

"""The five places of supervised training that the papers change, in the order of their numbers."""


def canvas(height: float, units: float, label: str = "", top: float = 1.0) -> tuple[Picture, Axes]:
    """An empty page for a diagram, 75 by ``units`` large, up to a part ``top`` of the figure; label: of the figure."""
    figure = Picture(figsize=(7.5, height))
    figure.set_label(label)
    figure.set_layout_engine("none")  # not by Picture(layout="none"): savefig would put the style's layout back
    axes = figure.add_axes((0, 0, 1, top), xlim=(0, 75), ylim=(0, units))
    axes.axis("off")
    return figure, axes


def draw_box(
    axes: Axes, centre: tuple[float, float], size: tuple[float, float], text: str, edge: str, face: str
) -> None:
    """A rounded box of a diagram, with text in its middle; in units of the axes."""
    (x, y), (width, height) = centre, size
    shape = FancyBboxPatch((x - width / 2, y - height / 2), width, height, "round,pad=0,rounding_size=0.7")
    shape.set(facecolor=face, edgecolor=edge, linewidth=1.3)
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", linespacing=1.3)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, style: str = "-") -> None:
    """An arrow of a diagram, from start to end; style: of its line."""
    shape = FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, shrinkA=0, shrinkB=0, linestyle=style)
    shape.set(color=colour, linewidth=1.3)
    axes.add_patch(shape)


@styled
def where_it_acts(*places: str) -> Picture:
    """Supervised training in one picture, with the places where a method acts in colour: some of ``PLACES``.

    Raises ValueError for an unknown place.
    """
    if unknown := [place for place in places if place not in PLACES]:
        raise ValueError(f"places: got {', '.join(map(repr, unknown))}; takes some of {', '.join(PLACES)}")
    figure, axes = canvas(3.0, 30, f"Diagram of supervised training; the method acts on: {', '.join(places)}")

    def colours(place: str) -> tuple[str, str]:
        return (RED, "#FDECEE") if place in places else ("#555555", "#F6F6F6")

    def box(x: float, y: float, width: float, height: float, text: str, place: str = "") -> None:
        draw_box(axes, (x, y), (width, height), text, *colours(place))

    def arrow(start: tuple[float, float], end: tuple[float, float], place: str = "") -> None:
        draw_arrow(axes, start, end, colours(place)[0])

    def mark(place: str, x: float, y: float, words: tuple[float, float], align: str = "center") -> None:
        strong, soft = (RED, "#AA3344") if place in places else ("#AAAAAA", GREY)
        weight = "bold" if place in places else "normal"
        axes.add_patch(Circle((x, y), 1.25, facecolor=strong, edgecolor="white", linewidth=1.2, zorder=3))
        number = str(list(PLACES).index(place) + 1)
        axes.text(x, y - 0.05, number, ha="center", va="center_baseline", color="white", weight="bold", zorder=4)
        axes.text(*words, place, ha=align, va="top", weight=weight, color=soft)
        axes.text(words[0], words[1] - 2, PLACES[place], ha=align, va="top", fontsize=8.5, color=soft)

    line = 18.0
    box(6, line, 9, 6, "images\n$x$", "pixels")
    for x, height in ((18.2, 8.0), (21.7, 6.6), (25.2, 5.2)):
        box(x, line, 2.6, height, "")
    axes.text(21.7, line + 5.6, "stages", ha="center", va="center")
    box(39, line, 9, 6, "features\n$a$", "features")
    box(53, line, 9, 6, "head\n$Wa + b$")
    box(68, line, 9, 6, "loss\n$L$", "loss")
    box(68, line + 9.2, 9, 4, "labels  $y$", "labels")
    box(6, 4, 9, 4, "generator", "generator")
    arrow((10.5, line), (16.9, line), "pixels")
    arrow((26.5, line), (34.5, line), "features")
    arrow((43.5, line), (48.5, line))
    arrow((57.5, line), (63.5, line))
    arrow((68, line + 7.2), (68, line + 3), "labels")
    arrow((6, 6), (6, line - 3), "generator")
    mark("pixels", 13.5, line, (14.6, line - 4.6))
    mark("features", 30.3, line, (31, line - 4.6))
    mark("labels", 68, line + 5.3, (62.5, line + 11), "right")
    mark("loss", 63.5, line - 3, (66.5, line - 4.6))
    mark("generator", 6, 10, (12, 6), "left")
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Sliders


def live() -> bool:
    """Whether somebody can turn a slider: the kernel was started by a notebook server, VS Code or Colab for a person.

    JupyterLab and Notebook say so in the kernel's environment (``JPY_SESSION_NAME``); papermill, nbclient and nbval
    start kernels of their own, without it. ``SEMAUG_STATIC=1`` says no all the same, for a run started from within a
    live notebook; ``SEMAUG_STATIC=0`` says yes, for a front end that is not recognised here.
    """
    shell = _shell()
    if getattr(shell, "kernel", None) is None:
        return False
    said = os.environ.get("SEMAUG_STATIC")
    if said in ("0", "1"):
        return said == "0"
    if "PYTEST_VERSION" in os.environ:  # nbval, also where its terminal belongs to a notebook server
        return False
    return "JPY_SESSION_NAME" in os.environ or "__vsc_ipynb_file__" in shell.user_ns or "google.colab" in sys.modules


def slider(function: Callable[..., Figure], **options: Any) -> None:
    """Draw ``function(**values)`` in the cell, once and static; in a live session with a slider for each option.

    options: by argument of the function, a sequence of values, or a tuple (min, max, step). Each starts at the
        function's own default where that is among its values, at the first of them otherwise.

    The sliders redraw the picture in its place, at its size: nothing flickers, a notebook saved at any time holds a
    picture, and a run without a person leaves no widget behind. Raises ValueError for a range without a value,
    TypeError for an argument that the function has not or a function that returns no figure.
    """
    parameters = inspect.signature(function).parameters
    choices = {name: _choices(name, option) for name, option in options.items()}
    for name in choices:
        if name not in parameters:
            raise TypeError(f"options: got {name!r}; the function takes {', '.join(parameters)}")
    defaults = {name: parameters[name].default for name in choices}
    start = {name: defaults[name] if defaults[name] in values else values[0] for name, values in choices.items()}
    figure = function(**start)
    if not isinstance(figure, Figure):
        raise TypeError(f"function: got a result of type {type(figure).__name__}; takes a function returning a Figure")
    if _shell() is None:
        return
    from IPython.display import display

    handle = display(_image(figure), display_id=True)
    if not live():
        return
    import ipywidgets

    controls = {
        name: ipywidgets.SelectionSlider(
            options=[(f"{value:g}" if isinstance(value, float) else str(value), value) for value in values],
            value=start[name],
            description=name.replace("_", " "),
            continuous_update=False,
        )
        for name, values in choices.items()
    }

    def redraw(change: Any) -> None:
        handle.update(_image(function(**{name: control.value for name, control in controls.items()})))

    for control in controls.values():
        control.observe(redraw, names="value")
    display(ipywidgets.HBox(list(controls.values())))


def _shell() -> Any:
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None


def _choices(name: str, option: Any) -> list[Any]:
    values = list(option)
    if isinstance(option, tuple):
        if len(option) != 3 or not all(isinstance(number, int | float) for number in option) or not option[2] > 0:
            raise ValueError(f"{name}: got {option}; takes a sequence of values, or (min, max, step) with step above 0")
        low, high, step = option
        count = math.floor((high - low) / step + 1e-9) + 1  # 1e-9: (0, 0.3, 0.1) has four values
        values = [round(low + i * step, 12) for i in range(count)]
    if not values:
        raise ValueError(f"{name}: got {option}; takes at least one value")
    return values


def _image(figure: Figure) -> Any:
    """The figure as IPython's Image of known size; closed if it is pyplot's, which would show it once more."""
    from IPython.display import Image as Shown

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)
    content = png(figure)
    width, height = Image.open(io.BytesIO(content)).size
    return Shown(content, width=width, height=height, alt=alternative(figure))


def alternative(figure: Figure) -> str:
    """What a screen reader says in place of a figure.

    That is its label, or its headline, or the titles (axes) of panels; of pictures without, what their rows and columns
    are called.
    """
    titles, marks = list[str](), list[str]()
    for axes in figure.axes:
        title = "".join(axes.get_title(place) for place in ("left", "center", "right"))
        titles.append(title or f"{axes.get_ylabel()} over {axes.get_xlabel()}".strip())
        for name, ticks in (("rows", axes.get_yticklabels()), ("columns", axes.get_xticklabels())):
            words = [tick.get_text() for tick in ticks if tick.get_text()]
            marks += [f"{name} {', '.join(words)}"] if words else []
    named = "; ".join(dict.fromkeys(title for title in titles if title != "over"))
    text = str(figure.get_label()) or figure.get_suptitle() or named or "; ".join(dict.fromkeys(marks))
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------------------------------------
# What the figures of the studies share


def panels(height: float, rows: int, columns: int, **options: Any) -> tuple[Picture, np.ndarray]:
    """A figure as wide as a page, and its panels, (rows, columns); options: of ``Figure.subplots``."""
    figure = Picture(figsize=(7.5, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def titled(figure: Picture, text: str, height: float | None = None) -> Picture:
    """The figure with its :func:`headline`, and as high as said, in inches."""
    if height is not None:
        figure.set_figheight(height)
    headline(figure, text)
    return figure


def finish(
    figure: Picture, message: str, shown: Iterable[Record], text: str, labels: Mapping[str, Artist] | None = None
) -> Picture:
    """The figure with its :func:`headline` and its :func:`caption`."""
    headline(figure, message, labels)
    caption(figure, shown, text)
    return figure
