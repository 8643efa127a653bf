"""What a committed notebook has to be: the pair of its source, executed, checked by nbval, and a text that teaches.

Each check takes a pair and returns its complaints; the second half breaks a good pair, once for each check.
"""

import ast
import asyncio
import base64
import io
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jupytext
import nbformat
import pytest
from ipykernel.kernelspec import get_kernel_dict
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager
from jupytext.async_contentsmanager import build_async_jupytext_contents_manager_class
from PIL import Image

from companion import notebooks as rerun

NAMES = ["1_isda", "1_metasaug", "2_gvae", "3_automix", "4_diffaugment", "5_sla"]
APPENDICES = [f"{name}_more" for name in NAMES]
FOLDER = rerun.root() / "notebooks"
SOURCES = {path.stem: path for path in rerun.discover()}
HOUSE_WORDS = (
    r"\b(told from|(?:is|are|not) told|roo[m]s?|ledger|class kept|strips?|dearer|verdict|referee|witness|twins?"
    r"|half mended)\b"
)
SANITIZE = Path(__file__).parents[1] / "sanitize.cfg"
GUARD = """\
# For a page outside its repository: fetches it on Colab, says elsewhere how to get it.
import subprocess
import sys
from importlib.util import find_spec

if find_spec("companion") is None:
    if "google.colab" not in sys.modules:
        raise ModuleNotFoundError("companion: got no checkout; takes git clone https://github.com/OWNER/semaug && cd semaug && make lab")  # fmt: skip
    subprocess.run("git clone -q --depth 1 https://github.com/OWNER/semaug /content/semaug; pip install -q jaxtyping jupytext && pip install -q --no-deps -e /content/semaug", shell=True, check=True)  # fmt: skip
    sys.path.insert(0, "/content/semaug")"""  # noqa: E501
"""The first code cell of every notebook, folded; of no weight in the budgets."""
MARKERS = ("NBVAL_IGNORE_OUTPUT", "NBVAL_SKIP", "PYTEST_VALIDATE_IGNORE_OUTPUT")


def is_code(cell):
    return cell.cell_type == "code" and bool(cell.source.strip())


def text_outputs(cell):
    """What nbval compares and a reader can read: printed text and values, not the '<Figure ...>' of a picture."""
    texts = [output.get("text", "") for output in cell.outputs if output.output_type == "stream"]
    bundles = [output.data for output in cell.outputs if output.output_type in ("execute_result", "display_data")]
    texts += [bundle.get("text/plain", "") for bundle in bundles if not any(key.startswith("image/") for key in bundle)]
    return [text for text in texts if text.strip()]


def is_checked(cell):
    """Whether nbval would fail for a wrong result: it ran, is not excepted, and shows text or asserts."""
    ignored = {"nbval-ignore-output", "nbval-skip"} & set(cell.metadata.get("tags", []))
    ignored = ignored or any(marker in cell.source for marker in MARKERS)
    if ignored or cell.execution_count is None:
        return False
    plain = "\n".join(line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!")))
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(plain)))
    return asserts or bool(text_outputs(cell))


def pair_agrees(source, notebook):
    """The .ipynb has the cells of the .py, in order, with their tags."""
    wanted, there = ([(c.cell_type, c.source, c.metadata.get("tags", [])) for c in n.cells] for n in (source, notebook))
    for number, (one, two) in enumerate(zip(wanted, there, strict=False), start=1):
        if one != two:
            return [f"cell {number} differs: {one[1][:60]!r} in the .py, {two[1][:60]!r} in the .ipynb"]
    return [] if len(wanted) == len(there) else [f"{len(wanted)} cells in the .py, {len(there)} in the .ipynb"]


def executed_in_order(source, notebook):
    """Every code cell ran, from top to bottom, in one go."""
    counts = [cell.execution_count for cell in notebook.cells if is_code(cell)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def no_error_nor_warning(source, notebook):
    outputs = [output for cell in notebook.cells if is_code(cell) for output in cell.outputs]
    errors = [f"error: {output.ename}: {output.evalue}" for output in outputs if output.output_type == "error"]
    return errors + [f"on stderr: {output.text[:80]!r}" for output in outputs if output.get("name") == "stderr"]


def enough_checked_cells(source, notebook):
    number = sum(is_checked(cell) for cell in notebook.cells if is_code(cell))
    return [] if number >= 15 else [f"nbval checks {number} cells, at least 15 are wanted"]


def quick_by_default(source, notebook):
    profile = rerun.declared(source).get("profile")
    return [] if profile == "quick" else [f"profile is {profile!r} by default, not 'quick'"]


def no_trace_of_the_machine(source, notebook):
    """No widget state (a page without its scripts shows 'Invalid Notebook'), times of cells or folders of someone."""
    found = [key for key in ("widgets", "papermill") if key in notebook.metadata]
    found += [key for cell in notebook.cells for key in ("papermill", "execution") if key in cell.metadata]
    texts = [cell.source for cell in notebook.cells] + [
        t for c in notebook.cells if is_code(c) for t in text_outputs(c)
    ]
    folders = [match[0] for text in texts for match in re.finditer(r"(?<!\w)/(home|root|Users|tmp|work)/\w\S*", text)]
    return [f"metadata.{key}" for key in found] + [f"a folder of this machine: {folder}" for folder in folders]


def plain_kernel(source, notebook):
    name = notebook.metadata.get("kernelspec", {}).get("name")
    return [] if name == "python3" else [f"the kernel is {name!r}, not 'python3'"]


def solutions_are_closed(source, notebook):
    """Code and output of a solution are folded until a reader opens them."""
    solutions = [cell for cell in notebook.cells if is_code(cell) and "solution" in cell.metadata.get("tags", [])]
    closed = {"source_hidden": True, "outputs_hidden": True}
    return [f"an open solution: {one.source[:40]!r}" for one in solutions if one.metadata.get("jupyter") != closed]


def small(source, notebook):
    size = len(nbformat.writes(notebook).encode()) / 2**20
    return [] if size <= 2 else [f"{size:.1f} MiB, at most 2 are allowed"]


def cells_are_short(source, notebook):
    lines = [len(cell.source.splitlines()) for cell in notebook.cells if is_code(cell)]
    return [f"a code cell has {n} lines, at most 40 are allowed" for n in lines if n > 40]


def prose_before_code(source, notebook):
    """At least 3 words a line of code in all, and never more than two code cells without a word between them."""
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    cells = [cell for cell in notebook.cells if cell.source != GUARD]
    lines = sum(len(cell.source.splitlines()) for cell in cells if is_code(cell))
    kinds = "".join("c" if is_code(cell) else "m" for cell in cells)
    found = [] if words >= 3 * lines else [f"{words} words on {lines} lines of code, at least 3 a line are wanted"]
    return found + ["three code cells in a row"] * ("ccc" in kinds)


def cells_are_very_short(source, notebook):
    lines = [len(cell.source.splitlines()) for cell in notebook.cells if is_code(cell)]
    return [f"a code cell has {n} lines, at most 25 are allowed" for n in lines if n > 25]


def equations_in_order(source, notebook):
    """Numbered from 1, without a gap."""
    tags = [int(tag) for cell in notebook.cells for tag in re.findall(r"\\tag\{(\d+)\}", cell.source)]
    return [] if tags == [*range(1, len(tags) + 1)] else [f"equations are numbered {tags}"]


def no_house_words(source, notebook):
    found = {match[0] for cell in notebook.cells for match in re.finditer(HOUSE_WORDS, cell.source)}
    return [f"a house word: {word}" for word in sorted(found)]


def within_budget(source, notebook):
    words = sum(len(cell.source.split()) for cell in notebook.cells if cell.cell_type == "markdown")
    code = sum(is_code(cell) for cell in notebook.cells)
    amounts = ((words, 4500, "words"), (len(notebook.cells), 80, "cells"), (code, 45, "code cells"))
    return [f"{amount} {what}, at most {most} are allowed" for amount, most, what in amounts if amount > most]


def enough_pictures(source, notebook):
    """At least ten; at least one moves, and none that moves is above 500 KiB."""
    bundles = [output.get("data", {}) for cell in notebook.cells if is_code(cell) for output in cell.outputs]
    images = [base64.b64decode(bundle["image/png"]) for bundle in bundles if "image/png" in bundle]
    moving = [len(image) for image in images if getattr(Image.open(io.BytesIO(image)), "is_animated", False)]
    found = [] if len(images) >= 10 else [f"{len(images)} pictures, at least 10 are wanted"]
    found += [] if moving else ["no picture moves"]
    return found + [f"a moving picture of {size} bytes" for size in moving if size > 500 * 1024]


def pictures_have_words(source, notebook):
    """What a screen reader says in place of each picture."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            words = [output.metadata.get(kind, {}).get("alt") for kind in output.get("data", {}) if "image/" in kind]
            found += [f"cell {number}: a picture without words"] * (not all(words))
    return found


CHECKS = [
    pair_agrees,
    executed_in_order,
    no_error_nor_warning,
    enough_checked_cells,
    quick_by_default,
    no_trace_of_the_machine,
    plain_kernel,
    solutions_are_closed,
    small,
    cells_are_short,
    prose_before_code,
    cells_are_very_short,
    equations_in_order,
    no_house_words,
    pictures_have_words,
]
OF_LESSONS = [within_budget, enough_pictures]


def checks(name):
    return CHECKS + OF_LESSONS * (name in NAMES)


def test_discovery_finds_every_notebook_and_its_pair():
    """Lessons first, then appendices; stems are unique, since a stem names what a run writes."""
    for folder, names in ((FOLDER, NAMES), (FOLDER / "appendix", APPENDICES)):
        assert [path.stem for path in sorted(folder.glob("*.py"))] == names
        assert [path.stem for path in sorted(folder.glob("*.ipynb"))] == names
    assert [path.stem for path in rerun.discover()] == [*NAMES, *APPENDICES]
    assert len({*NAMES, *APPENDICES}) == len(NAMES) + len(APPENDICES)
    assert rerun.discover(["1_isda_more"]) == [FOLDER / "appendix" / "1_isda_more.py"]


@pytest.mark.parametrize(("name", "check"), [(n, c) for n in SOURCES for c in checks(n)], ids=lambda each: getattr(each, "__name__", each))  # fmt: skip  # noqa: E501
def test_notebook(name, check):
    source, notebook = SOURCES[name], nbformat.read(SOURCES[name].with_suffix(".ipynb"), as_version=4)
    assert check(rerun.read(source), notebook) == []


@pytest.mark.parametrize("later", [".py", ".ipynb"])
@pytest.mark.parametrize("name", SOURCES)
def test_opened_and_saved_in_jupyterlab_a_pair_stays_as_it_is(tmp_path, name, later):
    """Whichever of the two was written last; through the class by which JupyterLab reads and writes."""
    shutil.copy(FOLDER / "jupytext.toml", tmp_path)
    (tmp_path / "appendix").mkdir()
    source = tmp_path / SOURCES[name].relative_to(FOLDER)
    pair = [source, source.with_suffix(".ipynb")]
    for path in pair:
        shutil.copyfile(SOURCES[name].with_suffix(path.suffix), path)
        os.utime(path, (2e9, 2e9 + 100 * (path.suffix == later)))
    before = [path.read_text("utf-8") for path in pair]
    manager = build_async_jupytext_contents_manager_class(AsyncLargeFileManager)(root_dir=str(tmp_path))
    for path in pair:
        opened = asyncio.run(manager.get(str(path.relative_to(tmp_path)), content=True, type="notebook"))
        opened["content"]["metadata"]["kernelspec"] = dict(rerun.KERNEL)  # as the started kernel says it
        for cell in opened["content"]["cells"]:
            hidden = cell["metadata"].get("collapsed"), cell["metadata"].get("jupyter", {}).get("outputs_hidden")
            if any(hidden):  # JupyterLab takes either for both
                cell["metadata"]["collapsed"] = True
                cell["metadata"].setdefault("jupyter", {})["outputs_hidden"] = True
        asyncio.run(manager.save(opened, str(path.relative_to(tmp_path))))
        assert [path.read_text("utf-8") for path in pair] == before


# A page that was copied away from its repository


def first_code(name):
    return next(cell for cell in rerun.read(SOURCES[name]).cells if is_code(cell))


@pytest.mark.parametrize("name", SOURCES)
def test_the_first_cell_gets_the_repository(name):
    first = first_code(name)
    assert (first.source, first.metadata["jupyter"]) == (GUARD, {"source_hidden": True})
    assert first.metadata["tags"] == ["remove-cell", "skip-slide"]  # on the web pages the rocket does its work
    opened = re.findall(r"\]\((https://(?:colab|mybinder)\S+)\)", rerun.read(SOURCES[name]).cells[0].source)
    path = SOURCES[name].with_suffix(".ipynb").relative_to(rerun.root()).as_posix()
    assert len(opened) == 2
    assert all(link.endswith(path) and "OWNER/semaug/" in link for link in opened)


def test_the_first_cell_does_nothing_in_a_checkout(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be fetched"))
    before = sys.path.copy()
    exec(GUARD, {})
    assert sys.path == before
    assert len(GUARD.splitlines()) <= 10


def test_the_first_cell_fetches_the_repository_on_colab(tmp_path, monkeypatch):
    """With the commands run by a shell whose git and pip say what they were asked for."""
    for name in ("git", "pip"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/said"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setitem(sys.modules, "google.colab", object())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    exec(GUARD, {})
    assert sys.path[0] == "/content/semaug"
    assert (tmp_path / "said").read_text().splitlines() == [
        "git clone -q --depth 1 https://github.com/OWNER/semaug /content/semaug",
        "pip install -q jaxtyping jupytext",
        "pip install -q --no-deps -e /content/semaug",  # Colab's torch stays
    ]
    (tmp_path / "git").write_text("#!/bin/sh\nexit 1\n")  # it is there already
    exec(GUARD, {})
    (tmp_path / "pip").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError):
        exec(GUARD, {})


def test_the_first_cell_says_elsewhere_what_to_do(tmp_path):
    """In a Python without the companion."""
    (tmp_path / "page.py").write_text(GUARD)
    run = subprocess.run([sys.executable, "-I", "-S", "page.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert "companion: got no checkout; takes git clone" in run.stderr.splitlines()[-1]


def test_the_kernel_is_called_as_ipykernel_calls_it():
    assert get_kernel_dict() | rerun.KERNEL == get_kernel_dict() | {"name": "python3"}


@pytest.mark.parametrize("name", SOURCES)
def test_reduced_runs_are_small(name):
    """``make test`` runs every notebook with one seed and few epochs, so it has to have these parameters."""
    reduced = rerun.reduced(SOURCES[name])
    assert reduced["seeds"] == 1
    assert reduced["first_seed"] == 1, "another than the notebook's own"
    assert "range(seeds)" not in SOURCES[name].read_text(), "SEEDS begins at first_seed"
    assert reduced["epochs"] <= 2
    assert reduced["profile"] == "quick"
    assert {"dataset", "device"} <= set(rerun.parameters(SOURCES[name]))


# The checks, checked


@pytest.fixture
def pair():
    """A good pair: notebook 0 of no paper."""
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Title"),
        new.new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]}),
    ]
    for number in range(15):
        cells.append(new.new_markdown_cell("Three words for every line of the code that follows."))
        cells.append(new.new_code_cell(f"print({number})" if number % 2 else f"x = {number}\nassert x == {number}"))
    for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        if cell.source.startswith("print"):
            cell.outputs = [new.new_output("stream", name="stdout", text=cell.source[6:-1] + "\n")]
    cells[1].outputs = [shown(moves=number == 0) for number in range(10)]
    notebook = new.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": ""}})
    source = jupytext.reads(jupytext.writes(notebook, "py:percent"), "py:percent")
    return source, notebook


def shown(moves=False, noise=1):
    """A picture, of two frames if it moves."""
    frames = [Image.effect_noise((noise, noise), sigma) for sigma in (0, 99)]
    file = io.BytesIO()
    frames[0].save(file, "png", save_all=moves, append_images=frames[1:])
    data, words = {"image/png": base64.b64encode(file.getvalue()).decode()}, {"image/png": {"alt": "noise"}}
    return nbformat.v4.new_output("display_data", data=data, metadata=words)


def last(notebook):
    return notebook.cells[-1]


def add_output(kind, **content):
    return lambda source, notebook: last(notebook).outputs.append(nbformat.v4.new_output(kind, **content))


def add_cells(*cells):
    def change(source, notebook):
        for number, text in enumerate(cells, start=len([c for c in notebook.cells if c.cell_type == "code"]) + 1):
            for one in (source, notebook):
                one.cells.append(nbformat.v4.new_code_cell(text, execution_count=number))

    return change


def tag_last(source, notebook):
    for one in (source, notebook):
        last(one).metadata["tags"] = ["nbval-ignore-output"]


def set_outputs(*outputs):
    return lambda source, notebook: notebook.cells[1].update(outputs=list(outputs))


def set_source(index, text):
    return lambda source, notebook: [one.cells[index].update(source=text) for one in (source, notebook)]


BREAKS = [
    (lambda source, notebook: last(notebook).update(source="x = 15"), pair_agrees, "cell 32 differs"),
    (lambda source, notebook: last(notebook).metadata.update(tags=["nbval-skip"]), pair_agrees, "cell 32 differs"),
    (lambda source, notebook: notebook.cells.pop(), pair_agrees, "32 cells in the .py, 31 in the .ipynb"),
    (lambda source, notebook: last(notebook).update(execution_count=None), executed_in_order, "execution counts are"),
    (lambda source, notebook: last(notebook).update(execution_count=3), executed_in_order, "execution counts are"),
    (add_output("error", ename="ValueError", evalue="no", traceback=[]), no_error_nor_warning, "error: ValueError: no"),
    (add_output("stream", name="stderr", text="Warning"), no_error_nor_warning, "on stderr: 'Warning'"),
    (tag_last, enough_checked_cells, "nbval checks 14 cells"),
    (set_source(-1, "# NBVAL_IGNORE_OUTPUT\nx = 14\nassert x == 14"), enough_checked_cells, "nbval checks 14 cells"),
    (set_source(-1, "%matplotlib inline\nx = 14"), enough_checked_cells, "nbval checks 14 cells"),
    (lambda source, notebook: last(notebook).update(execution_count=None), enough_checked_cells, "nbval checks 14"),
    (set_source(1, "profile = 'paper'"), quick_by_default, "profile is 'paper'"),
    (set_source(1, "seeds = 3"), quick_by_default, "profile is None"),
    (lambda source, notebook: notebook.metadata.update(widgets={}), no_trace_of_the_machine, "metadata.widgets"),
    (lambda source, notebook: last(notebook).metadata.update(execution={}), no_trace_of_the_machine, "execution"),
    (add_output("stream", name="stdout", text="saved to /home/me/x"), no_trace_of_the_machine, "machine: /home/me/x"),
    (lambda source, notebook: notebook.metadata.kernelspec.update(name="mine"), plain_kernel, "the kernel is 'mine'"),
    (lambda source, notebook: last(notebook).metadata.update(tags=["solution"]), solutions_are_closed, "'x = "),
    (add_output("stream", name="stdout", text="x" * 2**21), small, "2.0 MiB"),
    (set_source(-1, "x = 14\n" * 41), cells_are_short, "a code cell has 41 lines"),
    (set_source(-1, "x = 14\n" * 40), prose_before_code, "words on 62 lines"),
    (add_cells("a = 1", "b = 1"), prose_before_code, "three code cells in a row"),
    (set_source(-1, "x = 14\n" * 26), cells_are_very_short, "a code cell has 26 lines"),
    (set_source(0, r"$$a \tag{1}$$ $$b \tag{3}$$"), equations_in_order, "numbered [1, 3]"),
    (set_source(0, "There is a ledger for one."), no_house_words, "ledger"),
    (lambda source, notebook: notebook.cells[1].outputs[0].metadata.clear(), pictures_have_words, "cell 1: a picture"),
    (set_source(0, "word " * 4400), within_budget, "4550 words"),
    (add_cells(*("x = 1",) * 30), within_budget, "46 code cells"),
    (set_outputs(*[shown(moves=True)] * 9), enough_pictures, "9 pictures"),
    (set_outputs(*[shown()] * 10), enough_pictures, "no picture moves"),
    (set_outputs(shown(moves=True, noise=800), *[shown()] * 9), enough_pictures, "a moving picture of"),
]


EVERY_CHECK = [*CHECKS, *OF_LESSONS]


@pytest.mark.parametrize("check", EVERY_CHECK, ids=lambda check: check.__name__)
def test_a_good_pair_passes(pair, check):
    assert check(*pair) == []


def test_every_check_is_broken_once():
    assert {check for _, check, _ in BREAKS} == set(EVERY_CHECK)


@pytest.mark.parametrize(("change", "check", "complaint"), BREAKS, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_pair_does_not(pair, change, check, complaint):
    change(*pair)
    (found,) = check(*pair)
    assert complaint in found


def test_figures_alone_check_nothing():
    figure = nbformat.v4.new_output("display_data", data={"image/png": "AAAA", "text/plain": "<Figure size 10x10>"})
    cell = nbformat.v4.new_code_cell("draw()", execution_count=1, outputs=[figure])
    assert not is_checked(cell)
    cell.outputs[0].data.pop("image/png")
    assert is_checked(cell)


def test_nbval_tells_wrong_outputs_from_right_ones(tmp_path):
    """The whole way: nbval with our options and sanitize.cfg, on a notebook with known answers."""
    cells = [
        ("print(6 * 7)", "42", True),
        ("print(6 * 9)", "42", False),
        ("assert 6 * 9 == 42", "", False),
        ("print('took 1.25 s, 12 MiB, at', object())", "took 99 s, 4.5 GiB, at <object object at 0xdeadbeef01>", True),
        ("print('in /some/where/build/nbval/1_isda/a.png')", "in /else/build/refresh/1_isda/a.png", True),
        ("print('from figures/records/1_isda', 'a.json')", "from figures/records/1_isda b.json", False),
        ("print('from /some/where/figures/records')", "from /else/figures/records", True),
        ("print('2026-01-02T03:04:05+00:00')", "2025-11-12T13:14:15+00:00", True),
        ("print('accuracy 0.812')", "accuracy 0.811", False),
    ]
    notebook = nbformat.v4.new_notebook()
    for count, (code, text, _) in enumerate(cells, start=1):
        outputs = [nbformat.v4.new_output("stream", name="stdout", text=text + "\n")] if text else []
        notebook.cells.append(nbformat.v4.new_code_cell(code, execution_count=count, outputs=outputs))
    nbformat.write(notebook, tmp_path / "scratch.ipynb")
    report = tmp_path / "report.xml"
    options = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(SANITIZE), "--junitxml", str(report)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "scratch.ipynb", "-q", "-p", "no:cacheprovider", *options]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    verdicts = [not len(case) for case in ElementTree.parse(report).iter("testcase")]
    assert verdicts == [right for *_, right in cells], run.stdout
