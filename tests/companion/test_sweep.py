"""Sweeps: the plan by itself, and Snakemake running, killed, and running what is missing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest

from companion import notebooks as rerun, sweep
from companion.__main__ import main as command_line
from semaug.training.record import Record

NOTEBOOK = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["parameters"]
profile = "quick"
a = 1
fast = False
seconds = 0.0

# %%
import time
from pathlib import Path

from companion import lesson
from semaug.training.record import Record

assert a != 13, "an unlucky number"
counter = Path("COUNTER")
with counter.open("a") as file:
    file.write(f"{a}\\n")
time.sleep(seconds)
trained = Record({"objective": "CrossEntropy", "settings": {}, "recipe": {"epochs": 2}}, a, {"test_accuracy": a / 10})
lesson.keep("NAME", [trained])
"""


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook that notes every one of its runs in a file; sweeps are written below tmp_path."""
    (tmp_path / "9_sleeps.py").write_text(NOTEBOOK)
    monkeypatch.setattr(sweep, "written", lambda name: tmp_path / "sweep" / name)
    return {"notebook": "9_sleeps", "folder": str(tmp_path)}


def test_the_plan_is_every_combination_with_a_place_of_its_own(notebook):
    jobs = sweep.plan({**notebook, "grid": {"a": [1, 2, 2], "fast": ["true", False], "seconds": 1}})
    values = [tuple(job.values.values()) for job in jobs]
    assert values == [(1, True, 1.0), (1, False, 1.0), (2, True, 1.0), (2, False, 1.0)]
    assert len({job.target for job in jobs}) == 4
    assert jobs[0].limits == rerun.LIMITS["quick"]
    again = sweep.plan({**notebook, "grid": {"seconds": [1.0], "fast": True, "a": [1, 7]}, "limit": 2})
    assert again[0].target == jobs[0].target, "the same run, whatever else the grid holds and in which order"
    assert again[0].limits == (120, 120)
    arguments = rerun.override(jobs[0].source, {"a": "1", "fast": "True", "seconds": "1.0"})
    assert arguments == jobs[0].values


def test_a_target_without_its_table_counts_without_its_time(notebook):
    """A kill may come between the two."""
    first, second, _ = jobs = sweep.plan({**notebook, "grid": {"a": [1, 2, 3]}})
    for job in (first, second):
        job.target.parent.mkdir(parents=True)
        job.target.touch()
    (second.target.parent / "table.json").write_text('{"runs": [{"seconds": 120}]}')
    assert "3 runs, 1 missing: about 2.0 minutes" in sweep.costs(jobs, 9.0)
    (second.target.parent / "table.json").unlink()
    assert "3 runs, 1 missing: about 9.0 minutes" in sweep.costs(jobs, 9.0)


def test_results_are_means_over_seeds_and_gains_in_pairs(notebook):
    """Three seeds of a combination are three jobs; one of another is not finished, and one of a seed counts once."""
    path = Path(notebook["folder"]) / "9_sleeps.py"
    path.write_text(NOTEBOOK.replace("a = 1\n", "first_seed = 0\nseeds = 1\nstrength = 0.5\n"))
    jobs = sweep.plan({**notebook, "grid": {"first_seed": [0, 1, 2], "seeds": [1, 2], "strength": [0.1, 2.5]}})
    assert len(jobs) == 12
    accuracies = {"CrossEntropy": (0.80, 0.82, 0.81), "ISDA": (0.81, 0.82, 0.83)}
    for job in jobs:
        first, strength = job.values["first_seed"], job.values["strength"]
        if (first, strength) != (2, 2.5):
            job.target.parent.mkdir(parents=True)
            job.target.touch()
        for seed, (name, values) in product(range(first, first + job.values["seeds"]), accuracies.items()):
            if seed < 3:
                settings = {"strength": strength} if name == "ISDA" else {}
                config = {"objective": name, "settings": settings, "recipe": {"epochs": 4}}
                record = Record(config, seed, {"test_accuracy": values[seed] + (strength == 2.5) * (seed == 2)})
                record.save(job.target.parent / "9_sleeps" / "records")
    for job in jobs:
        if job.values["strength"] == 2.5 and job.values["seeds"] == 2:
            job.target.unlink(missing_ok=True)
    t = 4.302652729749464  # the 97.5% quantile of Student's t of two degrees of freedom
    half = t * 1 / 3**0.5  # of three numbers one apart
    found = sweep.results(jobs)
    assert found.splitlines()[2:6] == [
        f"| strength=0.1 | CrossEntropy, 4 epochs | 3 | accuracy (%) | 81.0 ± {half:.1f} |  |",
        f"| strength=0.1 | ISDA strength=0.1, 4 epochs | 3 | accuracy (%) | 82.0 ± {half:.1f} | +1.0 ± {half:.1f} |",
        "| strength=2.5 | CrossEntropy, 4 epochs | 2 | accuracy (%) | 81.0 |  |",
        "| strength=2.5 | ISDA strength=2.5, 4 epochs | 2 | accuracy (%) | 81.5 | +0.5 |",
    ]
    assert found.endswith("\n4 of 12 runs are not finished, and not in the table.\n")
    assert sweep.results(jobs[-1:]).startswith("no finished run has trained anything\n")

    damaged = next((jobs[0].target.parent / "9_sleeps" / "records").glob("ISDA*"))
    damaged.write_text(damaged.read_text()[:100])
    assert f"Not read: {damaged}: not a whole record" in sweep.results(jobs)
    assert f"to have it again, delete {jobs[0].target.parent}\n" in sweep.results(jobs)
    for job in jobs:
        for kept in (job.target.parent / "9_sleeps" / "records").glob("*.json"):
            kept.unlink()
    Record({"network": "mine"}, 0, {"auc": 0.75}).save(jobs[2].target.parent / "9_sleeps" / "records")
    assert "| strength=0.1 | , ? epochs | 1 | D's AUC | 0.75 |  |\n" in sweep.results(jobs), "of another shape"


def test_a_relative_folder_starts_at_the_checkout_wherever_the_plan_is_made(notebook, tmp_path, monkeypatch):
    relative = os.path.relpath(tmp_path, rerun.root())
    monkeypatch.chdir("/")
    (job,) = sweep.plan({**notebook, "folder": relative, "grid": {"a": 1}})
    assert job.source.samefile(tmp_path / "9_sleeps.py")


def test_names_of_folders_are_short_and_plain_and_tell_values_apart(notebook):
    (Path(notebook["folder"]) / "9_sleeps.py").write_text(
        NOTEBOOK.replace("a = 1", 'a = "x"').replace('assert a != 13, "an unlucky number"', "")
    )
    jobs = sweep.plan({**notebook, "grid": {"a": ["../b c", "../b/c", "y" * 300]}})
    names = [job.name for job in jobs]
    assert len(set(names)) == 3
    assert all("/" not in name and " " not in name and len(name) < 100 for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notebook": None}, "notebook: got None"),
        ({"notebook": "9_other"}, "notebook: got '9_other', takes one of 9_sleeps"),
        ({"grid": None}, "grid: got None"),
        ({"grid": {}}, "grid: got {}"),
        ({"grid": {"a": []}}, "grid.a: got an empty list"),
        ({"grid": {"b": 1}}, "no parameter 'b'"),
        ({"grid": {"a": [1, 1.5]}}, "a: got '1.5', takes a whole number"),
        ({"minutes": 0}, "minutes: got 0"),
        ({"limit": "long"}, "limit: got 'long'"),
        ({"seeds": 3}, "config: got 'seeds'"),
        ({"folder": 5}, "folder: got 5; takes the path of one"),
        ({"folder": ["a"]}, r"folder: got \['a'\]"),
        ({"limit": True}, "limit: got True; takes a number"),
        ({"limit": "nan"}, "limit: got 'nan'; takes a number"),
        ({"minutes": [1]}, r"minutes: got \[1\]"),
        ({"grid": {"a": [[1, 2]]}}, r"grid.a: got \[1, 2\]"),
        ({"grid": {"a": [{"b": 1}]}}, "grid.a: got {'b': 1}"),
    ],
)
def test_bad_configurations_are_named(notebook, change, message):
    with pytest.raises(ValueError, match=message):
        sweep.plan({**notebook, "grid": {"a": [1]}, **change})


def test_the_command_line_says_what_is_wrong_before_anything_runs(notebook, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    for text, message in (("- 1", "got list"), ("a: [", "while parsing"), ("notebook: 1_isda\ngrid: {z: 1}", "'z'")):
        config.write_text(text)
        assert command_line(["sweep", str(config)]) == 2
        assert message in capsys.readouterr().err
    config.write_text("notebook: 1_isda\ngrid: {seeds: 1}")
    assert command_line(["sweep", str(config), "--on", "nowhere"]) == 2
    assert "takes one of local, slurm" in capsys.readouterr().err
    assert command_line(["sweep", str(tmp_path / "none.yaml")]) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_values_are_the_text_that_stands_there(notebook, tmp_path, encoding):
    """YAML 1.1 would read 8, False, 10:30 as 630, a day, a list; a leading sign is no option."""
    source = Path(notebook["folder"]) / "9_sleeps.py"
    source.write_text(NOTEBOOK.replace("a = 1\n", 'a = 1\ntag = ""\nlr = 0.5\n'))
    tags = ["no", "010", "10:30", "2024-01-01", "1e3", "~", "0x10", "1_000", "my work"]
    lines = [f"notebook: 9_sleeps\nfolder: {tmp_path}\nminutes: 010\nlimit: 1_0", "grid:", "  a: 010", "  lr: -1e-3"]
    config = tmp_path / "config.yaml"
    config.write_text("\n".join([*lines, f"  tag: [{', '.join(tags)}]", ""]), encoding=encoding)
    jobs = sweep.plan(sweep.read(config))
    assert [job.values for job in jobs] == [{"a": 10, "lr": -0.001, "tag": tag} for tag in tags]
    assert jobs[0].limits == (600, 600)
    given = [text.split("=", 1) for text in jobs[0].arguments if text.split("=")[0].isidentifier() and "=" in text]
    assert rerun.override(jobs[0].source, dict(given)) == jobs[0].values


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b'{"runs": []}', b'{"runs": null}', b"[]"])
def test_a_damaged_table_counts_without_its_time(notebook, content):
    first, _ = jobs = sweep.plan({**notebook, "grid": {"a": [1, 2]}})
    first.target.parent.mkdir(parents=True)
    first.target.touch()
    (first.target.parent / "table.json").write_bytes(content)
    assert "2 runs, 1 missing: about 9.0 minutes" in sweep.costs(jobs, 9.0)


def test_the_committed_example_is_a_plan():
    examples = sorted((rerun.root() / "companion" / "workflow").glob("*.yaml"))
    assert examples
    for path in examples:
        assert sweep.plan(sweep.read(path))


@pytest.mark.slow
def test_killed_and_failed_runs_are_redone_and_finished_ones_never(tmp_path):
    """Two runs, killed with SIGKILL in the first; then to their end, where one fails; then another in its place."""
    tmp_path /= "my work"
    tmp_path.mkdir()
    counter, config = tmp_path / "counter", tmp_path / "config.yaml"
    name = f"9_sleeps{os.getpid()}"  # its folder is below the checkout's build
    (tmp_path / f"{name}.py").write_text(NOTEBOOK.replace("COUNTER", str(counter)).replace("NAME", name))
    config.write_text(f"notebook: {name}\nfolder: {tmp_path}\nminutes: 0.1\ngrid:\n  a: [1, 13]\n  seconds: 1.5\n")
    command = [sys.executable, "-m", "companion", "sweep", str(config), "--quiet"]

    def runs():
        return counter.read_text().split() if counter.exists() else []

    def finish(*more):
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=200)

    folder = sweep.written(name)
    try:
        dry = finish("--dry-run")
        assert dry.returncode == 0, dry.stderr
        assert "2 runs, 2 missing: about 0.2 minutes, one after another, by the configuration" in dry.stdout
        assert runs() == []

        first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 150
        while not (runs() or list(folder.glob("*/*.failed.ipynb"))) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert list(folder.glob(f"*/{name}.ipynb")) == [], "none is finished"
        before = runs()

        second = finish()
        assert second.returncode != 0, "one of them cannot succeed"
        assert "2 runs, 2 missing" in second.stdout
        row = "| a={0}, seconds=1.5 | CrossEntropy, 2 epochs | 1 | accuracy (%) | {0}0.0 |  |"
        assert second.stdout.count(row.format(1)) == 1, "what the finished one trained"
        assert runs() == [*before, "1"]
        (done,) = folder.glob(f"*/{name}.ipynb")
        assert done.parent.name.startswith("a=1_")
        assert list(folder.glob(f"a=13*/{name}.failed.ipynb")), "what the other came to is there to be read"
        stamp = done.stat().st_mtime_ns

        config.write_text(config.read_text().replace("a: [1, 13]", "a: [1, 3]"))
        third = finish()
        fourth = finish()
        assert third.returncode == 0, third.stdout + third.stderr
        assert "2 runs, 1 missing: about" in third.stdout
        assert "by the mean of those there" in third.stdout
        assert runs() == [*before, "1", "3"], "only what was missing"
        assert done.stat().st_mtime_ns == stamp
        found = (folder / "results.md").read_text()
        assert row.format(1) in found
        assert row.format(3) in found
        assert found in third.stdout
        assert found in fourth.stdout, "nothing was to be done"
        assert fourth.returncode == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
