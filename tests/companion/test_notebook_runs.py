"""The machinery that runs notebooks, on notebooks made for the purpose."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import nbformat
import pytest

from companion import notebooks as rerun
from companion.__main__ import main as command_line

HEADER = """\
# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A notebook

# %% tags=["parameters"]
"""
PARAMETERS = """\
profile = "quick"
seeds = 3
epochs: int = 20
lr = -1e-1
fast = False
tag = "a"  # plain literals, comments allowed
"""


PICTURE = """\
import os
from pathlib import Path

(Path(os.environ["SEMAUG_OUTPUT"]) / "3_works" / "figure.png").write_bytes(b"picture")
"""


def write(folder, name, *cells, parameters=PARAMETERS):
    """A py:percent notebook of the given code cells."""
    path = folder / f"{name}.py"
    cells = "".join(f"\n# %% [markdown]\n# Prose.\n\n# %%\n{textwrap.dedent(cell)}" for cell in cells)
    path.write_text(HEADER + parameters + cells)
    return path


# Parameters


def test_parameters_are_the_literals_of_the_tagged_cell(tmp_path):
    found = rerun.parameters(write(tmp_path, "1_a"))
    assert found == {"profile": "quick", "seeds": 3, "epochs": 20, "lr": -0.1, "fast": False, "tag": "a"}
    assert [type(value) for value in found.values()] == [str, int, int, float, bool, str]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("seeds = None\n", "parameter seeds must be"),
        ("seeds = [1, 2]\n", "parameter seeds must be"),
        ("seeds = 2 * 3\n", "parameter seeds must be"),
        ("lr = f'{1}'\n", "parameter lr must be"),
        ("a = b = 1\n", "not 'a = b = 1'"),
        ("a, b = 1, 2\n", r"not '\(?a, b\)? = "),
        ("a: int\n", "not 'a: int'"),
        ("import os\n", "not 'import os'"),
        ("profile = 'fast'\n", "parameter profile: got 'fast', takes one of quick, cpu, paper"),
        ('a = 1\n\n# %% tags=["parameters"]\nb = 2\n', "2 cells are tagged"),
        ("a = 1\n\n# %%\nb = 2\n", None),
    ],
)
def test_parameters_may_be_nothing_else(tmp_path, cell, message):
    path = write(tmp_path, "1_a", parameters=cell)
    if message is None:
        assert rerun.parameters(path) == {"a": 1}
        return
    with pytest.raises(ValueError, match=message):
        rerun.parameters(path)


def test_a_notebook_without_parameters_cell(tmp_path):
    path = tmp_path / "1_a.py"
    path.write_text("# %%\na = 1\n")
    with pytest.raises(ValueError, match=r"1_a\.py: 0 cells are tagged 'parameters', there must be one"):
        rerun.parameters(path)


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("5", 3, 5),
        ("007", 3, 7),
        ("007", "a", "007"),
        ("-2", 3, -2),
        ("5", 0.1, 5.0),
        ("1e-3", 0.1, 1e-3),
        ("True", False, True),
        ("false", True, False),
        ("true", "a", "true"),
        ("", "a", ""),
    ],
)
def test_a_value_takes_the_type_of_the_default(text, default, value):
    got = rerun.parse("name", text, default)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "default", "takes"),
    [
        ("2.0", 3, "a whole number"),
        ("1e3", 3, "a whole number"),
        ("true", 3, "a whole number"),
        ("", 3, "a whole number"),
        ("fast", 0.1, "a finite number"),
        ("nan", 0.1, "a finite number"),
        ("1", False, "true or false"),
        ("yes", False, "true or false"),
    ],
)
def test_a_value_of_another_type_is_an_error(text, default, takes):
    with pytest.raises(
        ValueError, match=rf"parameter name: got '{text}', takes {takes} \(it is {default} by default\)"
    ):
        rerun.parse("name", text, default)


def test_a_profile_is_one_of_three():
    assert rerun.parse("profile", "paper", "quick") == "paper"
    with pytest.raises(ValueError, match="parameter profile: got 'gpu', takes one of quick, cpu, paper"):
        rerun.parse("profile", "gpu", "quick")


def test_reduced_takes_the_smaller_of_what_the_notebook_has(tmp_path):
    assert rerun.reduced(write(tmp_path, "1_a")) == {"profile": "quick", "seeds": 1, "epochs": 2}
    fewer = write(tmp_path, "1_b", parameters='epochs = 1\ndevice = "auto"\nwidth = 64\n')
    assert rerun.reduced(fewer) == {"epochs": 1, "device": "cpu"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "-p", "epochs=5"], "2_b has no parameter 'epochs'; it has seeds"),
        (["reproduce", "1_a", "-p", "seed=5"], "1_a has no parameter 'seed'; it has profile, seeds, epochs, lr"),
        (["check", "-p", "seeds=2.5"], "parameter seeds: got '2.5', takes a whole number"),
        (["reproduce", "9_z"], "notebook: got '9_z', takes one of 1_a, 2_b"),
    ],
)
def test_bad_arguments_end_before_anything_runs(tmp_path, capsys, arguments, message):
    write(tmp_path, "1_a")
    write(tmp_path, "2_b", parameters="seeds = 2\n")
    assert command_line([*arguments, "--folder", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_discovery_is_in_order_and_never_empty(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no notebook \(\*\.py\) here"):
        rerun.discover(folder=tmp_path / "empty")
    paths = [write(tmp_path, name) for name in ("1_a", "2_b")]
    assert rerun.discover(folder=tmp_path) == paths
    assert rerun.discover(["2_b"], tmp_path) == rerun.discover(["notebooks/2_b.ipynb"], tmp_path) == paths[1:]
    (tmp_path / "appendix").mkdir()
    more = write(tmp_path / "appendix", "1_a_more")
    assert rerun.discover(folder=tmp_path) == [*paths, more], "lessons first"
    assert rerun.discover(["1_a_more"], tmp_path) == [more]


@pytest.mark.parametrize("name", ["1_a.txt", "1_a.yaml", "{elsewhere}/1_a.py", "{elsewhere}/1_a.ipynb"])
def test_a_notebook_of_elsewhere_is_refused(tmp_path, name):
    write(tmp_path, "1_a")
    (tmp_path / "._1_a.py").write_bytes(b"\0\5\x16\7")
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere", "1_a")
    with pytest.raises(ValueError, match=r"notebook: got .*, takes one "):
        rerun.discover([name.format(elsewhere=tmp_path / "elsewhere")], tmp_path)
    assert rerun.discover([str(tmp_path / "1_a.ipynb")], tmp_path) == rerun.discover([], tmp_path)


@pytest.mark.parametrize("limits", [("nan", "1"), ("1", "-1"), ("inf", "1"), ("0", "1")])
def test_limits_are_seconds(tmp_path, capsys, limits):
    write(tmp_path, "1_a")
    assert command_line(["check", "--folder", str(tmp_path), "--limits", *limits]) == 2
    assert "takes seconds above 0" in capsys.readouterr().err


def test_a_parameter_is_text_that_can_be_written():
    with pytest.raises(ValueError, match=r"parameter tag: got .*, takes UTF-8 text"):
        rerun.parse("tag", b"\xff".decode(errors="surrogateescape"), "a")


# Two files of one notebook


@pytest.mark.parametrize("edit", ["source", "new cell", "deleted cell", "kind"])
@pytest.mark.parametrize("command", ["reproduce", "check", "refresh"])
def test_edits_of_the_ipynb_are_not_lost(tmp_path, capsys, edit, command):
    source, pair = write(tmp_path, "1_a", "x = 1\n"), tmp_path / "1_a.ipynb"
    notebook = rerun.read(source)
    match edit:
        case "source":
            notebook.cells[-1].source = "x = 2"
        case "new cell":
            notebook.cells.append(nbformat.v4.new_code_cell("y = 1"))
        case "deleted cell":
            del notebook.cells[-1]
        case _:
            notebook.cells[-1] = nbformat.v4.new_markdown_cell("x = 1")
    nbformat.write(notebook, pair)
    whole = pair.read_bytes()
    assert command_line([command, "--folder", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert re.search(r"1_a\.ipynb: got other cells than 1_a\.py.*jupytext --sync", capsys.readouterr().err)
    assert pair.read_bytes() == whole
    later = pair.stat().st_mtime_ns + 10**9
    os.utime(source, ns=(later, later))
    assert rerun.read(source).cells[-1].source == "x = 1", "the source is the later one"


def test_outputs_are_no_edits(tmp_path):
    source = write(tmp_path, "1_a", "x = 1\nx\n", "\n\n%matplotlib inline\n")
    assert not rerun.refresh([source], tmp_path / "out")[0].error
    assert (tmp_path / "1_a.ipynb").stat().st_mtime_ns > source.stat().st_mtime_ns
    assert len(rerun.read(source).cells) == 6


# Paths


def test_paths_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    checkout = rerun.root()
    assert (checkout / "pyproject.toml").is_file()
    monkeypatch.chdir(tmp_path)
    assert rerun.root() == checkout
    monkeypatch.setenv("SEMAUG_OUTPUT", str(tmp_path / "out"))
    assert rerun.output("1_a") == tmp_path / "out" / "1_a"
    assert (tmp_path / "out" / "1_a").is_dir()


# Runs (each starts a kernel, about a second)


def test_a_failing_notebook_is_named_and_the_others_still_run(tmp_path, capfd):
    write(tmp_path, "1_fails", "before = 1\n", "# a comment\n\nvalue = 1 / 0\n", "after = 1\n")
    write(tmp_path, "2_dies", "import os\nos._exit(9)\n")
    write(tmp_path, "3_works", PICTURE, "print(seeds, lr, fast, tag)\n")
    out = tmp_path / "out"
    arguments = ["-p", "seeds=5", "-p", "tag=007", "--folder", str(tmp_path), "--output", str(out)]
    assert command_line(["reproduce", *arguments]) == 1

    printed = capfd.readouterr().out
    assert re.search(
        r"FAILED 1_fails  \S+ s  cell 6 of 8 \(`# a comment`\): ZeroDivisionError: division by zero", printed
    )
    assert re.search(r"FAILED 2_dies  \S+ s  cell 4 of 4 \(`import os`\): the kernel died", printed)
    assert re.search(r"ok     3_works", printed)
    assert "\x1b" not in printed  # no terminal codes in a log

    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {"1_fails.failed.ipynb", "2_dies.failed.ipynb", "3_works.ipynb", "table.txt", "table.json"}
    assert (out / "3_works" / "figure.png").read_bytes() == b"picture"
    executed = nbformat.read(out / "3_works.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "5 -0.1 False 007\n"
    assert "jupytext" not in executed.metadata

    content = json.loads((out / "table.json").read_text())
    assert [entry["notebook"] for entry in content["runs"]] == ["1_fails", "2_dies", "3_works"]
    assert content["runs"][0]["cells"] == [5, 8]
    assert content["runs"][2]["cells"] == [6, 6]
    assert content["runs"][2]["parameters"] == {"seeds": 5, "tag": "007"}
    assert content["runs"][2]["peak_memory"] > 2**24  # a bare kernel holds 50 MiB
    assert content["environment"]["versions"]["torch"]
    text = (out / "table.txt").read_text()
    assert text in printed
    assert re.search(r"3_works +ok +6/6 +\d+\.\d +\d+  seeds=5 tag=007", text)


SLOW = "import pathlib, time\npathlib.Path(r'{}').touch()\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("command", "number"), [("reproduce", signal.SIGINT), ("check", signal.SIGTERM), ("refresh", signal.SIGTERM)]
)
def test_an_interruption_keeps_what_was_done_and_ends_with_one_line(tmp_path, command, number):
    """One is through, one or two at once are running, the others never begin."""
    started = tmp_path / "started"
    write(tmp_path, "1_a", "print('through')\n")
    write(tmp_path, "2_b", "print('so far')\n", SLOW.format(started))
    write(tmp_path, "3_c", "import time\ntime.sleep(60)\n")
    write(tmp_path, "4_d", "import time\ntime.sleep(60)\n")
    write(tmp_path, "5_e", "import time\ntime.sleep(60)\n")
    whole = [sys.executable, "-m", "companion", command, "--folder", str(tmp_path), "--output", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell starts with & ignores it
    run = subprocess.Popen(whole, cwd=rerun.root(), preexec_fn=heard, **pipes)
    while not started.exists():
        assert run.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    run.send_signal(number)
    output, errors = run.communicate(timeout=100)
    assert (run.returncode, errors.strip()) == (130, "interrupted; what was done is kept")
    assert command != "refresh" or re.search(r"ok +1_a", output)
    assert "ok     3_c" not in output
    assert re.search(r"FAILED +2_b .*cell 6 of 6 \(`import pathlib, time`\): interrupted", output)
    kept = {path.name for path in (tmp_path / "out").glob("*") if path.is_file()}
    if command == "refresh":
        assert (tmp_path / "1_a.ipynb").exists()
        assert not (tmp_path / "2_b.ipynb").exists()
    else:
        assert kept >= {"2_b.failed.ipynb", "table.txt", "table.json"}
        partial = nbformat.read(tmp_path / "out" / "2_b.failed.ipynb", as_version=4)
        printed = [output.text for cell in partial.cells for output in cell.get("outputs", []) if "text" in output]
        assert printed == ["so far\n"]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".lock")]


def test_a_run_repaired_replaces_the_failed_copy(tmp_path):
    for cell, left in (("1 / 0", "1_a.failed.ipynb"), ("1 / 1", "1_a.ipynb")):
        result = rerun.reproduce([(write(tmp_path, "1_a", cell), {}, (60, 60))], tmp_path / "out")
        assert bool(result[0].error) == ("failed" in left)
        assert [path.name for path in (tmp_path / "out").glob("*.ipynb")] == [left]


def test_notebooks_at_the_same_time(tmp_path):
    """Each waits for what the other writes: one after another, the first would wait in vain."""
    jobs = []
    for mine, other in (("1_a", "2_b"), ("2_b", "1_a")):
        wait = f"""import pathlib, time
pathlib.Path(r"{tmp_path}", "{mine}.here").touch()
while not pathlib.Path(r"{tmp_path}", "{other}.here").exists():
    time.sleep(0.1)
print("{mine}")"""
        jobs.append((write(tmp_path, mine, wait), {}, (60.0, 60.0)))
    done = rerun.reproduce(jobs, tmp_path / "out", at_once=2)
    assert [(run.notebook, run.error) for run in done] == [("1_a", ""), ("2_b", "")]
    for name in ("1_a", "2_b"):
        assert nbformat.read(tmp_path / "out" / f"{name}.ipynb", as_version=4).cells[-1].outputs[0].text == f"{name}\n"


def test_refresh_keeps_ids_and_leaves_out_what_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")  # would keep figures out of the notebook
    source = write(tmp_path, "1_a", "import os\nprint(os.path.basename(os.getcwd()), os.environ.get('MPLBACKEND'))\n")
    folder = source.parent.name
    assert not rerun.refresh([source], tmp_path / "out")[0].error
    first = nbformat.read(tmp_path / "1_a.ipynb", as_version=4)
    assert first.cells[-1].outputs[0].text == f"{folder} module://matplotlib_inline.backend_inline\n"
    assert set(first.metadata) == {"jupytext", "kernelspec", "language_info"}
    assert "jupytext:" not in source.read_text(), "in the form that JupyterLab saves"
    assert [dict(cell.metadata) for cell in first.cells] == [{}, {"tags": ["parameters"]}, {}, {}]

    whole = (tmp_path / "1_a.ipynb").read_bytes()
    rerun.refresh([source], tmp_path / "out")
    assert (tmp_path / "1_a.ipynb").read_bytes() == whole

    write(tmp_path, "1_a", "print(1 / 0)\n")
    assert rerun.refresh([source], tmp_path / "out")[0].error
    assert (tmp_path / "1_a.ipynb").read_bytes() == whole


def test_an_edit_during_a_refresh_is_not_lost(tmp_path):
    cell = f"file = Path({str(tmp_path / '1_a.py')!r})\nfile.write_text(file.read_text() + 'edited = 1')\n"
    cell = "from pathlib import Path\n" + cell
    source = write(tmp_path, "1_a", cell)
    (done,) = rerun.refresh([source], tmp_path / "out")
    assert done.error == "1_a.py was changed while it ran: run it again"
    assert source.read_text().endswith("edited = 1")
    assert not (tmp_path / "1_a.ipynb").exists()


def test_what_a_slow_machine_printed_in_pieces_is_one_output():
    new = nbformat.v4.new_output
    pieces = [new("stream", name="stdout", text=text) for text in ("a\n", "b\n")]
    others = [new("stream", name="stderr", text="c\n"), new("display_data", {"text/plain": "d"})]
    cell = nbformat.v4.new_code_cell("pass", outputs=[*pieces, *others, new("stream", name="stdout", text="e\n")])
    found = rerun.bare(nbformat.v4.new_notebook(cells=[cell])).cells[0].outputs
    assert [output.get("text") for output in found] == ["a\nb\n", "c\n", None, "e\n"]
    assert [output.get("name") for output in found] == ["stdout", "stderr", None, "stdout"]


def test_an_output_is_hidden_in_the_ipynb_where_the_source_hides_it():
    """JupyterLab takes ``collapsed`` for ``outputs_hidden``: one that an earlier run left would hide the output."""
    once, still = (nbformat.v4.new_code_cell("x", metadata={"collapsed": True}) for _ in range(2))
    still.metadata["jupyter"] = {"outputs_hidden": True}
    written = nbformat.reads(rerun.paired(nbformat.v4.new_notebook(cells=[once, still]))[1], 4)
    assert [dict(cell.metadata) for cell in written.cells] == [
        {},
        {"collapsed": True, "jupyter": {"outputs_hidden": True}},
    ]
