"""What is in a folder: the one place that lists them, so that all of the package takes the same files for data."""

from __future__ import annotations

import re
from pathlib import Path

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
