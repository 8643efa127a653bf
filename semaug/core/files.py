"""What is in a folder, the same for all of the package, and files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

SYSTEM = re.compile(
    r"\..*|~.*|.*~|#.*#|__MACOSX|__pycache__|Icon\r|Thumbs\.db|ehthumbs(_vista)?\.db|desktop\.ini|\$RECYCLE\.BIN"
    r"|System Volume Information|lost\+found|@eaDir|#recycle",
    re.IGNORECASE,
)

"""Names of what editors and systems keep beside one's files: hidden ones, their copies, their caches."""


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Folders and files in a folder, in order of name, without those of ``SYSTEM``, pipes, sockets and devices.

    Raises:
        ValueError: naming a link that leads nowhere.
        OSError: for a folder that cannot be read.
    """
    there = sorted(path for path in folder.iterdir() if not SYSTEM.fullmatch(path.name))
    for path in there:
        if not path.exists():
            raise ValueError(f"{path}: got a link that leads nowhere; takes a file, or take it away")
    return [path for path in there if path.is_dir()], [path for path in there if path.is_file()]


def below(folder: Path, seen: dict[Path, Path]) -> list[Path]:
    """The files in a folder and in all folders within it, ordered by folder, then by name.

    Args:
        folder: where to begin.
        seen: folders that were listed, by where they are; this one and those within it are added.

    Raises:
        ValueError: as :func:`listed` does, and naming a link to a folder that was listed before, or holds the link.
    """
    place = folder.resolve()
    if place in seen:
        raise ValueError(f"{folder}: got the folder {seen[place]} again, by a link; takes each folder once")
    seen[place] = folder
    folders, files = listed(folder)
    files += [file for inner in folders for file in below(inner, seen)]
    return sorted(files, key=lambda file: (str(file.parent), file.name))


def write_whole(path: str | Path, content: bytes | str | Callable[[IO[bytes]], object]) -> Path:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    The content goes to a temporary file in the same folder, is flushed to the disk and renamed over ``path``.
    On any error (a full disk, a read-only folder) the temporary file is removed and the old file stays. What a process
    left that was killed while it wrote this file is removed too. ``content`` may write to the open file itself.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in parts_of(path):
        if not _running(part.name.removeprefix(f".{path.name}.").split("-")[0]):
            part.unlink(missing_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def parts_of(path: Path) -> list[Path]:
    """The temporary files of :func:`write_whole` for this path."""
    return [*path.parent.glob(f".{glob.escape(path.name)}.*.part")]


def _running(process: str) -> bool:
    """Whether a process of this number is there, as far as can be asked: on Windows the question would end it."""
    if not process.isdigit() or os.name == "nt":
        return process.isdigit()
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; no number of a process
        pass
    return True
