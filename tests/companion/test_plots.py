"""Figures: what they say about given records, the same bytes each time, and sliders that need no live session."""

from __future__ import annotations

import io
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from companion import plots
from semaug.training.record import Record

SCORES = {("CrossEntropy", None): 0.80, ("ISDA", 0.5): 0.82, ("ISDA", 1.0): 0.81}


def record(
    objective="CrossEntropy",
    seed=0,
    strength=None,
    form="full",
    name="embedded",
    profile="cpu",
    network="small",
    **data,
):
    settings = {} if strength is None else {"strength": strength, "covariance": form, "decay": None}
    config = {
        "objective": objective,
        "settings": settings,
        "network": network,
        "data": {"name": name, "validation": 0.1, "train_size": None} | data,
        "recipe": {"epochs": 8},
    }
    accuracy = SCORES.get((objective, strength), 0.5) + 0.01 * seed + 0.0012 * seed * (strength or 0)
    metrics = {"test_accuracy": accuracy, "validation_accuracy": accuracy - 0.01}
    curves = {"train_loss": [1 / (1 + e + 0.1 * seed) for e in range(8)], "validation_accuracy": [0.5, accuracy - 0.01]}
    return Record(config, seed, metrics, curves, profile=profile, environment={"device": "test CPU"})


@pytest.fixture
def found():
    runs = [("CrossEntropy", None), ("ISDA", 0.5), ("ISDA", 1.0)]
    return [record(objective, seed, strength) for objective, strength in runs for seed in range(3)]


def methods(found):
    """Records by method, as a comparison takes them."""
    groups = {}
    for run in found:
        strength = run.config["settings"].get("strength")
        groups.setdefault("cross-entropy" if strength is None else f"ISDA, λ₀ = {strength:g}", []).append(run)
    return groups


@plots.styled
def lines(x, groups):
    """Bands of the rows of values (n, len(x)), by name."""
    figure = plots.Picture()
    axes = figure.add_subplot(xlabel="x", ylabel="y")
    for label, values in groups.items():
        plots.band(axes, x, np.array(values, float), label)
    axes.legend()
    return figure


def words(figure):
    """Every text of a figure, as it is drawn."""
    plots.png(figure)
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def drawings(found):
    return {
        "lines": lambda: lines(np.linspace(0, 1, 5), {"a": np.random.default_rng(0).random((3, 5))}),
        "curves": lambda: plots.curves(methods(found), "train_loss", "validation_accuracy"),
        "comparison": lambda: plots.comparison({"embedded": methods(found)}),
        "sheet": lambda: plots.sheet(torch.linspace(0, 1, 384).view(2, 1, 3, 8, 8), ["a", "b"], ["c"], "title"),
        "where": lambda: plots.where_it_acts("loss"),
        "forest": lambda: plots.forest({"": {"a set": {"a method": [1.0, 2.0, 4.0]}}}, "gain (points)", found),
    }


NAMES = sorted(drawings([]))
ROOT = str(Path(plots.__file__).parents[1])


class TestFiles:
    @pytest.mark.parametrize("name", NAMES)
    def test_same_bytes_small_and_without_a_date(self, found, name):
        draw = drawings(found)[name]
        first, second = draw(), draw()
        picture = plots.png(first)
        assert plots.png(second) == picture
        opened = Image.open(io.BytesIO(picture))
        assert not opened.info.keys() & {"Software", "Creation Time"}
        assert opened.width <= 7.5 * 110
        assert len(picture) < 40_000

    def test_same_bytes_when_drawn_again(self):
        figure = lines([0, 1], {"a": [[0, 1]]})
        assert plots.png(figure) == plots.png(figure)

    def test_same_bytes_in_another_process_and_another_style(self, tmp_path):
        """Another hash seed, another time zone, the session's style turned upside down."""
        script = (
            "import sys, matplotlib, matplotlib.pyplot as plt; from companion import plots; "
            "matplotlib.rcParams.update({'font.size': 20, 'savefig.dpi': 50}); "
            "plots.save(plots.where_it_acts('loss'), sys.argv[1], 'it')"
        )
        variables = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "PYTHONPATH": ROOT}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "there")], check=True, env=variables, timeout=120)
        plots.save(plots.where_it_acts("loss"), tmp_path / "here", "it")
        one, two = ((tmp_path / side / "it.png").read_bytes() for side in ("here", "there"))
        assert one == two

    def test_save_leaves_whole_files_or_none(self, tmp_path, monkeypatch):
        figure = lines([0, 1], {"a": [[0, 1]]})
        path = plots.save(figure, tmp_path / "new", "it")
        assert path == tmp_path / "new" / "it.png"
        before = path.read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="No space"):
            plots.save(lines([0, 1], {"b": [[1, 0]]}), tmp_path / "new", "it")
        assert {path: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {path: before}

    def test_a_failing_drawing_writes_nothing(self, tmp_path):
        figure = lines([0, 1], {"a": [[0, 1]]})
        figure.axes[0].set_title("$\\broken$")
        with pytest.raises(ValueError, match="broken"):
            plots.save(figure, tmp_path, "it")
        assert list(tmp_path.iterdir()) == []

    def test_64_colours_are_enough(self, found):
        """What the smaller file costs: no pixel is off by more than a tenth of the scale, white by one level."""
        for name in ("comparison", "curves"):
            figure = drawings(found)[name]()
            stored = np.asarray(Image.open(io.BytesIO(plots.png(figure))).convert("RGB"), float)
            original = np.asarray(Image.open(io.BytesIO(plots._render(figure))).convert("RGB"), float)
            assert np.abs(original - stored).max() <= 0.1 * 255
            assert np.abs(original - stored)[0, 0].max() <= 1

    def test_patches_of_another_colour_are_seen_and_smoothed_edges_are_not(self):
        """Where 64 colours would change a band, the picture keeps all of its colours."""
        original = Image.new("RGB", (40, 40), (200, 100, 50))
        edge, patch = original.copy(), original.copy()
        edge.paste((0, 0, 0), (0, 20, 40, 25))  # a line five pixels wide
        patch.paste((180, 100, 50), (10, 10, 20, 20))
        assert not plots._patches_differ(original, edge)
        assert plots._patches_differ(original, patch)

    def test_a_thin_line_of_another_colour_is_seen_and_few_pixels_are_not(self):
        original = Image.new("RGB", (400, 40), "white")
        original.paste((40, 40, 40), (0, 20, 400, 21))
        line, few = original.copy(), original.copy()
        line.paste((120, 40, 40), (0, 20, 400, 21))
        few.paste((120, 40, 40), (0, 30, 100, 31))
        assert plots._lines_differ(line, original)
        assert not plots._patches_differ(line, original)
        assert not plots._lines_differ(original, few)

    def test_images_keep_all_their_colours(self):
        draws = torch.Generator().manual_seed(0)
        colours = {
            name: len(Image.open(io.BytesIO(plots.png(plots.sheet(images)))).convert("RGB").getcolors(2**24))
            for name, images in (
                ("colour", torch.rand(2, 3, 3, 16, 16, generator=draws)),
                ("grey", torch.rand(2, 3, 1, 16, 16, generator=draws)),
            )
        }
        assert colours["grey"] <= 256 < 1000 < colours["colour"]

    def test_style(self):
        before = dict(matplotlib.rcParams)
        plots.where_it_acts("loss")
        assert dict(matplotlib.rcParams) == before


class TestLines:
    def test_band_is_the_student_interval(self):
        values = np.random.default_rng(1).normal(size=(6, 4))
        axes = lines(range(4), {"a": values}).axes[0]
        np.testing.assert_allclose(axes.lines[0].get_ydata(), values.mean(0))
        low, high = stats.t.interval(0.95, 5, values.mean(0), stats.sem(values))
        corners = axes.collections[0].get_paths()[0].vertices
        for i in range(4):
            at = corners[corners[:, 0] == i][:, 1]
            np.testing.assert_allclose([at.min(), at.max()], [low[i], high[i]])

    def test_legend_says_n(self):
        figure = lines([0, 1], {"many": [[0, 1], [1, 2], [1, 1]], "two": [[0, 1], [1, 2]], "one": [[0, 1]]})
        assert {"many (n = 3)", "two (n = 2)", "one (n = 1)"} <= set(words(figure))
        assert len(figure.axes[0].collections) == 1  # one line and two are drawn without a band


class TestForest:
    def test_rows_are_shared_and_paired_differences_have_student_intervals(self, found):
        lines = {"set": {"one": {"a": [1.0, 2.0, 6.0], "b": [1.0, 2.0]}, "two": {"c": [-1.0, 0.0, 1.0]}}}
        figure = plots.forest(
            lines,
            "gain",
            found,
            colour=lambda name, title: plots.RED if (name, title) == ("b", "one") else plots.BLUE,
            filled=lambda name, title: title == "two",
        )
        one, two = figure.axes
        assert [label.get_text() for label in one.get_yticklabels()] == ["a", "b", "c"]
        assert one.get_ylim() == (2.5, -0.5), "from the top"
        assert [axes.get_title("left") for axes in (one, two)] == ["one\nn = 2 to 3", "two\nn = 3"]
        marks = [mark[0] for axes in (one, two) for mark in axes.containers]
        assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == [(3, 0), (1.5, 1), (0, 2)]
        assert [mark.get_color() for mark in marks] == [plots.BLUE, plots.RED, plots.BLUE]
        assert [mark.get_markerfacecolor() for mark in marks] == ["white", "white", plots.BLUE]
        ends = [mark[2][0].get_segments()[0][:, 0] for axes in (one, two) for mark in axes.containers]
        expected = stats.t.interval(0.95, 2, loc=3, scale=stats.sem([1, 2, 6]))
        np.testing.assert_allclose(ends[0], expected)
        np.testing.assert_allclose(ends[1], [1.5, 1.5], err_msg="two seeds have no interval")


class TestCurves:
    def test_epochs_and_percent(self, found):
        figure = plots.curves(
            {"ISDA": [r for r in found if r.config["settings"].get("strength") == 0.5]},
            "train_loss",
            "validation_accuracy",
        )
        loss, accuracy = figure.axes
        assert loss.lines[0].get_xdata().tolist() == list(range(1, 9))
        assert accuracy.lines[0].get_xdata().tolist() == [4, 8]  # two values in eight epochs
        assert accuracy.lines[0].get_ydata()[-1] == pytest.approx(100 * (0.82 - 0.01 + 0.01 + 0.0006))
        texts = words(figure)
        assert {"epoch", "train loss (nats)", "validation accuracy (%)", "ISDA (n = 3)"} <= set(texts)
        assert not any("profile" in text for text in texts), "of runs by the profile cpu nothing has to be said"
        found[0].profile = "paper"
        figure = plots.curves({"ISDA": found[:1]}, "train_loss", "validation_accuracy")
        assert any("Records: profile paper, test CPU." in text for text in words(figure))

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, found):
        with pytest.raises(ValueError, match=r"groups\['a'\]: got curves 'f1' of lengths \[0\]"):
            plots.curves({"a": found}, "f1")
        found[0].curves["train_loss"].pop()
        with pytest.raises(ValueError, match=r"lengths \[7, 8\]; takes one length"):
            plots.curves({"a": found}, "train_loss")
        with pytest.raises(ValueError, match="names: got none"):
            plots.curves({"a": found})


class TestComparison:
    def test_means_dots_and_paired_differences(self, found):
        figure = plots.comparison({"embedded": methods(found)})
        left, right = figure.axes
        assert [label.get_text() for label in left.get_yticklabels()][:2] == [
            "cross-entropy (n = 3)",
            "ISDA, λ₀ = 0.5 (n = 3)",
        ]
        dots = [line.get_xdata() for line in left.lines if line.get_marker() == "o"]
        assert np.allclose(sorted(dots[0]), [80, 81, 82])
        # per seed, ISDA at .5 is above cross-entropy by 2 + .06 * (0, 1, 2) points
        gains = np.array([2, 2.06, 2.12])
        half = stats.t.ppf(0.975, 2) * stats.sem(gains)
        assert f"{gains.mean():+.2f} ± {half:.2f}" in words(figure)
        drawn = [line.get_xdata() for line in right.lines if line.get_marker() == "o"]
        assert np.allclose(sorted(drawn[0]), gains)

    def test_differences_take_the_seeds_both_have(self, found):
        apart = [r for r in found if not (r.config["objective"] == "ISDA" and r.seed == 0)]
        apart += [record("ISDA", 3, strength) for strength in (0.5, 1.0)]
        assert "+2.09" in words(plots.comparison({"": methods(apart)})), "two pairs have no interval"
        apart = [r for r in apart if not (r.config["objective"] == "ISDA" and r.seed == 2)]
        assert "+2.06" in words(plots.comparison({"": methods(apart)}))

    def test_a_method_has_its_colour_and_no_minus_zero(self, found):
        chosen = dict(list(methods(found).items())[:2])
        for offset, runs in zip((0.5, 0.4999999), chosen.values(), strict=True):
            for run in runs:
                run.metrics["test_accuracy"] = offset
        first, second = chosen
        _, right = plots.comparison({"": chosen}, colours={second: plots.GREEN}).axes
        assert right.get_xlabel() == f"gain over {first} (points)"
        assert [text.get_text().split()[0] for text in right.texts] == ["+0.00"]
        assert {line.get_color() for line in right.lines if line.get_marker() == "o"} == {plots.GREEN}

    @pytest.mark.usefixtures("unchecked")
    def test_bad_input(self, found):
        with pytest.raises(ValueError, match="takes at least one method in each"):
            plots.comparison({"embedded": {}})
        with pytest.raises(ValueError, match=r"got seeds \[0, 0\]; takes each seed once"):
            plots.comparison({"": {"a": [found[0], found[0]]}})
        with pytest.raises(ValueError, match="values: got none"):
            plots.comparison({"": {"a": []}})


class TestImages:
    def test_every_tile_is_in_its_place(self):
        images = torch.rand(2, 3, 3, 5, 4)
        mosaic = plots.sheet(images, size=0.5).axes[0].images[0].get_array()
        for row in range(2):
            for column in range(3):
                tile = mosaic[row * 6 : row * 6 + 5, column * 5 : column * 5 + 4]
                np.testing.assert_allclose(tile, images[row, column].permute(1, 2, 0), rtol=1e-6)
        assert (mosaic[5] == 1).all()

    def test_grey_and_bytes(self):
        images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(1, 3, 1, 2, 2)
        mosaic = plots.sheet(images).axes[0].images[0].get_array()
        np.testing.assert_allclose(mosaic[0, [0, 3, 6]], np.array([[0] * 3, [0.2] * 3, [1] * 3]))

    def test_a_wide_sheet_fits_a_notebook(self):
        figure = plots.sheet(torch.zeros(1, 30, 1, 8, 8), ["restored"])
        assert figure.get_size_inches()[0] <= 7.5 + 1e-6
        assert "restored" in words(figure)

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (torch.zeros(2, 3, 8, 8), r"images: got shape \(2, 3, 8, 8\); takes \(rows, columns, 1 or 3, H, W\)"),
            (torch.zeros(2, 3, 2, 8, 8), "images: got shape"),
            (torch.zeros(0, 3, 1, 8, 8), "images: got shape"),
            (torch.full((1, 1, 1, 8, 8), 1.5), "images: got values from 1.5 to 1.5; takes floats in"),
            (torch.full((1, 1, 1, 8, 8), math.nan), "images: got values from nan"),
        ],
    )
    def test_bad_images(self, images, message):
        with pytest.raises(ValueError, match=message):
            plots.sheet(images)

    def test_bad_titles(self):
        with pytest.raises(ValueError, match="row_titles: got 1; takes none or 2"):
            plots.sheet(torch.zeros(2, 3, 1, 8, 8), ["a"])

    def test_where_it_acts_says_where(self):
        texts = {
            text.get_text(): text.get_weight()
            for text in plots.where_it_acts("loss", "labels").findobj(matplotlib.text.Text)
        }
        assert [place for place in plots.PLACES if texts[place] == "bold"] == ["labels", "loss"]
        with pytest.raises(
            ValueError, match="places: got 'pixel'; takes some of pixels, features, labels, loss, generator"
        ):
            plots.where_it_acts("pixel")


def wave(frequency=2.0, phase=0):
    x = np.linspace(0, 1, 20)
    return lines(x, {"wave": [np.sin(frequency * x + phase)]})


class TestSlider:
    @pytest.fixture
    def session(self, monkeypatch):
        """A kernel's shell, of which nobody has said yet whether it is live."""
        shell = types.SimpleNamespace(kernel=object(), user_ns={})
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
        for name in ("SEMAUG_STATIC", "PYTEST_VERSION", "JPY_SESSION_NAME"):
            monkeypatch.delenv(name, raising=False)
        return shell

    def test_live_only_where_a_person_sits(self, session, monkeypatch):
        assert not plots.live()  # papermill, nbclient: a kernel of their own
        monkeypatch.setenv("JPY_SESSION_NAME", "/notebooks/1_isda.ipynb")
        assert plots.live()
        monkeypatch.setenv("PYTEST_VERSION", "9")  # nbval started from a live notebook or its terminal
        assert not plots.live()
        monkeypatch.delenv("PYTEST_VERSION")
        monkeypatch.setenv("SEMAUG_STATIC", "1")  # papermill started from a live notebook, by our own runner
        assert not plots.live()
        monkeypatch.setenv("SEMAUG_STATIC", "0")
        monkeypatch.delenv("JPY_SESSION_NAME")
        assert plots.live()
        session.kernel = None  # IPython in a terminal
        assert not plots.live()

    def test_live_in_other_front_ends(self, session, monkeypatch):
        session.user_ns["__vsc_ipynb_file__"] = "1_isda.ipynb"
        assert plots.live()
        session.user_ns.clear()
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
        assert plots.live()

    def test_not_live_outside_ipython(self, monkeypatch):
        monkeypatch.delitem(sys.modules, "IPython", raising=False)
        assert not plots.live()

    def test_draws_once_and_starts_at_the_defaults(self):
        calls = []

        def draw(frequency=2.0, phase=1):
            calls.append((frequency, phase))
            return wave(frequency, phase)

        plots.slider(draw, frequency=(1.0, 3.0, 0.5), phase=[0, 1])
        plots.slider(draw, frequency=(5, 7, 1))
        assert calls == [(2.0, 1), (5, 1)]

    def test_ranges_hold_their_ends(self):
        assert plots._choices("x", (0, 0.3, 0.1)) == [0, 0.1, 0.2, 0.3]
        assert plots._choices("x", (1, 4, 2)) == [1, 3]
        assert plots._choices("x", np.arange(2)) == [0, 1]
        assert plots._choices("x", ["a", "b"]) == ["a", "b"]

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            (
                {"frequency": (1, 2)},
                ValueError,
                r"frequency: got \(1, 2\); takes a sequence of values, or \(min, max, step\)",
            ),
            ({"frequency": (1, 2, 0)}, ValueError, "step above 0"),
            ({"frequency": ("a", "b", "c")}, ValueError, "frequency: got"),
            ({"frequency": (2, 1, 1)}, ValueError, r"frequency: got \(2, 1, 1\); takes at least one value"),
            ({"phase": []}, ValueError, r"phase: got \[\]; takes at least one value"),
            ({"phases": [1]}, TypeError, "options: got 'phases'; the function takes frequency, phase"),
        ],
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            plots.slider(wave, **options)

    def test_a_function_without_a_figure(self):
        with pytest.raises(TypeError, match="function: got a result of type int; takes a function returning a Figure"):
            plots.slider(lambda a: a, a=[1])

    def test_in_a_kernel(self):
        """Static under nbval and papermill; live, the slider's move changes the picture in the cell above it."""
        nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
        cells = [
            "from companion import plots\nimport matplotlib.pyplot as plt",
            "figure = plots.Picture()\nfigure.add_subplot(xlabel='x', ylabel='y').plot([0, 1])\nfigure",
            "def draw(scale=1):\n"
            "    with plt.style.context(plots.STYLE):\n"
            "        figure, axes = plt.subplots()\n"
            "    axes.plot([0, scale, 1])\n"
            "    axes.set_title('a peak')\n"
            "    return figure",
            "plots.slider(draw, scale=[0, 1, 2])",
            "import os\nos.environ['SEMAUG_STATIC'] = '0'",
            "plots.slider(draw, scale=[0, 1, 2])",
            "import gc, ipywidgets\n"
            "sliders = [found for found in gc.get_objects() if type(found) is ipywidgets.SelectionSlider]\n"
            "assert len(sliders) == 1\n"
            "sliders[0].value = 2",
        ]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120)
        client.execute(env={**os.environ, "PYTHONPATH": ROOT}, cwd=ROOT)
        outputs = [cell.outputs for cell in notebook.cells]
        (own,), (static,), (moved, slider) = outputs[1], outputs[3], outputs[5]
        for picture, words in ((own, "y over x"), (static, "a peak"), (moved, "a peak")):
            assert picture.output_type == "display_data"
            assert set(picture.data) == {"image/png", "text/plain"}
            assert set(picture.metadata["image/png"]) == {"width", "height", "alt"}
            assert picture.metadata["image/png"]["alt"] == words
        assert "application/vnd.jupyter.widget-view+json" in slider.data
        assert moved.data["image/png"] != static.data["image/png"]
        assert outputs[2] == outputs[4] == outputs[6] == []  # pyplot shows nothing of its own


def test_a_method_whose_name_begins_with_an_underscore_is_in_the_legend(found):
    figure = plots.curves({"_mine": found[:3], "other": found[3:6]}, "train_loss")
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts == ["_mine (n = 3)", "other (n = 3)"]


@pytest.mark.parametrize("length", [8, 30, 60])
def test_a_legend_below_a_headline_is_inside_the_figure(length):
    @plots.styled
    def draw():
        figure = plots.Picture(figsize=(7.5, 3))
        axes = figure.add_subplot()
        labels = {f"{number} {('tuned weight decay ' * 4)[:length]}": axes.plot([0, 1])[0] for number in range(4)}
        plots.headline(figure, "A message", labels)
        return figure

    figure = draw()
    plots.png(figure)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= figure.axes[0].get_window_extent().y1


def test_a_screen_reader_is_told_the_headline_or_else_the_panels():
    figure = plots.Picture()
    first, second, third = figure.subplots(1, 3)
    first.set_title("accuracy\nof two")
    second.set(xlabel="steps", ylabel="loss")
    assert plots.alternative(figure) == "accuracy of two; loss over steps"
    third.set_title("accuracy\nof two", loc="left")
    assert plots.alternative(figure) == "accuracy of two; loss over steps", "once"
    plots.headline(figure, "A message, " * 20)
    assert plots.alternative(figure) == " ".join(("A message, " * 20).split())


def test_a_screen_reader_is_told_the_rows_and_columns_of_pictures_without_a_title():
    tiles = torch.zeros(2, 3, 3, 8, 8)
    assert plots.alternative(plots.sheet(tiles, ["a", "b"], ["x", "y\nz", ""])) == "rows a, b; columns x, y z"
    assert plots.alternative(plots.sheet(tiles, ["a", "b"], title="A message")) == "A message"
