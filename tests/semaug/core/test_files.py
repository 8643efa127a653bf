"""Files are written whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from semaug.core import files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = files.write_whole(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with pytest.raises(OSError, match="Read-only"):
        files.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path):
    """Of this file alone, and not what a process writes that is still there."""
    killed = """
import os, signal, sys
from semaug.core import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_whole(sys.argv[1], "half")
"""
    path = tmp_path / "run[1].json"
    for name in (path, tmp_path / "run1.json"):
        subprocess.run([sys.executable, "-c", killed, str(name)], check=False, cwd=Path(__file__).parents[3])
    assert len(files.parts_of(path)) == 1
    another = tmp_path / f".run[1].json.{os.getppid()}-abc.part"
    another.write_text("being written")
    files.write_whole(path, "whole")
    left = sorted(each.name for each in tmp_path.iterdir())
    assert len(left) == 3
    assert {another.name, path.name} < set(left)
    assert [each for each in left if each.startswith(".run1.json.")]


def test_parts_of_processes_of_which_nothing_is_known_stay(tmp_path, monkeypatch):
    """Another user's, whom this one may not signal, and a number too large for a process; not those of no process."""
    path = tmp_path / "a.json"

    def left():
        for name in ("77", str(10**30), "copy"):
            (tmp_path / f".a.json.{name}-x.part").write_text("half")
        files.write_whole(path, "whole")
        return {each.name.split(".")[3].split("-")[0] for each in files.parts_of(path)}

    def refused(process, signal):
        raise PermissionError if process == 77 else OverflowError

    monkeypatch.setattr(os, "kill", refused)
    assert left() == {"77", str(10**30)}
    monkeypatch.undo()
    assert str(10**30) in left()


def test_written_files_are_as_readable_as_others(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    assert files.write_whole(tmp_path / "whole", b"").stat().st_mode == plain.stat().st_mode


def test_a_file_may_be_written_by_a_function(tmp_path):
    path = files.write_whole(tmp_path / "folder" / "a", lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"

    def fails(file):
        file.write(b"half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        files.write_whole(path, fails)
    assert path.read_bytes() == b"whole"
    assert [each.name for each in path.parent.iterdir()] == ["a"]
