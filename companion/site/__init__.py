"""The companion as web pages: lessons as committed, leaderboard, glossary, errata, the package's reference.

Sphinx and MyST-NB build them from a folder of copies that :func:`stage` writes, in which every page has the path that
it has in the repository: links between notebooks, to figures and to Markdown files lead to the same things on the site.
What lists notebooks, errata, symbols or names is made from the notebooks and the package: nothing here names a paper.
"""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from companion.notebooks import discover, root
from semaug.core.files import write_whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).parent
BUILD = root() / "build" / "site"
SOURCE = BUILD / "source"
REPOSITORY = f"https://github.com/{os.environ.get('GITHUB_REPOSITORY', 'OWNER/semaug')}"
"""Where launch buttons and links to code lead. GitHub's own runs know the owner."""

PACKAGES = {
    "mathjax": ("3.2.2", ("es5/tex-chtml.js", "es5/output/chtml/fonts/", "es5/input/tex/extensions/")),
    "reveal.js": ("5.2.1", ("dist/",)),
}
"""What comes from npm and is served from the site: versions, and what of them."""

ERRATA = "| what it says |"
SYMBOLS = "| symbol |"
"""How the tables of errata and of notation begin, in the notebooks."""

Cells = Iterable["NotebookNode"]


def build() -> int:
    """Write the site to build/site/html, every warning an error, one process at a time; the exit status."""
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(HERE)]
    with open(BUILD / "lock", "w") as lock:
        with suppress(ImportError):  # Windows has no such locks
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        stage()
        vendored("mathjax")
        status = subprocess.run([*command, "-d", str(BUILD / "doctrees"), str(SOURCE), str(BUILD / "html")]).returncode
    print(f"wrote    {BUILD / 'html' / 'index.html'}" if status == 0 else "FAILED   the site", flush=True)
    return int(status != 0)


def vendored(name: str) -> Path:
    """The folder with what the site needs of a package of npm, fetched once. CalledProcessError where npm cannot."""
    version, wanted = PACKAGES[name]
    folder = BUILD / "npm" / f"{name}-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"{name}@{version}"], check=True, cwd=folder.parent, stdout=sys.stderr
        )
        with tarfile.open(folder.with_name(f"{folder.name}.tgz")) as packed:
            members = [one for one in packed if one.name.removeprefix("package/").startswith(wanted)]
            packed.extractall(folder.with_name("unpacked"), members, filter="data")
        folder.with_name("unpacked").joinpath("package").rename(folder)  # last, so that it is there whole or not at all
    return folder


# What Sphinx reads


def stage() -> None:
    """Copies of the pages under build/site/source, at their paths in the repository, and the pages made from them."""
    import nbformat

    _written.clear()
    for picture in (root() / "figures").glob("*/*.png"):
        target = SOURCE / picture.relative_to(root())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(picture, target)
        _written.add(target)
    lessons = {path.relative_to(root()).as_posix(): nbformat.read(path, 4) for path in pairs()}
    for name, notebook in lessons.items():
        write(name, nbformat.writes(page(notebook, name)) + "\n")
    board = (root() / "figures/leaderboard/leaderboard.md").read_text("utf-8")
    pictures = sorted((SOURCE / "figures/leaderboard").glob("*.png"))
    shown = "".join(f"![Gains of {one.stem}; the tables below hold the numbers]({one.name})\n\n" for one in pictures)
    first, *rest = board.split("\n**", 1)
    write(
        "figures/leaderboard/leaderboard.md", linked(f"{first}\n{shown}\n**{''.join(rest)}", "figures/leaderboard/l.md")
    )
    for name in ("README.md", "CONTRIBUTING.md"):
        write(name, linked((root() / name).read_text("utf-8"), name))
    filled = {
        "lessons": index(lessons),
        "symbols": symbols(lessons),
        "phrases": phrases(lessons),
        "errata": errata(lessons),
    }
    filled |= {"repository": REPOSITORY} | toctrees(lessons)
    for template in (HERE / "pages").glob("*.md"):
        text = template.read_text("utf-8")
        write(template.name, re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], text))
    reference()
    for path in SOURCE.rglob("*.*"):
        if path not in _written:
            path.unlink()  # of a notebook or module that is no more


def write(name: str, text: str) -> None:
    """A page of the source folder; one that is there already stays as it is, and Sphinx does not read it again."""
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        write_whole(path, text)
    _written.add(path)


_written = set[Path]()


def pairs() -> Iterator[Path]:
    """The committed notebooks, lessons before appendices."""
    return (path for source in discover() if (path := source.with_suffix(".ipynb")).exists())


def page(notebook: NotebookNode, name: str) -> NotebookNode:
    """The notebook with what JupyterLab folds folded, and its links led to where they lead on the site."""
    for cell in notebook.cells:
        tags = cell.metadata.setdefault("tags", [])
        if "solution" in tags:
            tags.append("hide-cell")
            cell.metadata["mystnb"] = {"code_prompt_show": "Show the solution", "code_prompt_hide": "Hide the solution"}
        elif cell.metadata.get("jupyter", {}).get("source_hidden"):
            tags.append("hide-input")
        words = [output.get("metadata", {}).get("image/png", {}).get("alt") for output in cell.get("outputs", [])]
        if any(words):
            cell.metadata.setdefault("mystnb", {})["image"] = {"alt": "; ".join(filter(None, words))}
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, name)
        for bundle in (output.data for output in cell.get("outputs", []) if "data" in output):
            if "text/markdown" in bundle:
                bundle["text/markdown"] = linked(bundle["text/markdown"], name)
    return notebook


def linked(text: str, name: str) -> str:
    """Markdown whose relative links to what is no page of the site lead to the repository."""

    def lead(match: re.Match[str]) -> str:
        place = os.path.normpath(root() / Path(name).parent / match[1])
        path = Path(place).relative_to(root()) if Path(place).is_relative_to(root()) else None
        if (
            path is None
            or path.suffix in (".ipynb", ".png")
            or path.name in ("README.md", "CONTRIBUTING.md", "leaderboard.md")
        ):
            return match[0]
        return f"]({REPOSITORY}/{'tree' if Path(place).is_dir() else 'blob'}/main/{path.as_posix()}"

    return re.sub(r"\]\((?!https?:|mailto:|#)([^)#\s]+)", lead, text)


# The pages made from the notebooks


def title(notebook: NotebookNode) -> str:
    """Its first heading."""
    return next(match[1] for cell in notebook.cells if (match := re.match(r"# (.+)", cell.source)))


def pieces(notebook: NotebookNode) -> Iterator[str]:
    """What a reader sees as Markdown, in order: text and tables, also those that code made."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield cell.source
        yield from (o.data["text/markdown"] for o in cell.get("outputs", []) if "text/markdown" in o.get("data", {}))


def tables(notebook: NotebookNode, begin: str) -> list[list[str]]:
    """The lines of all its tables whose header begins so."""
    found = re.findall(rf"^{re.escape(begin)}.*\n(?:\|.*\n?)+", "\n\n".join(pieces(notebook)), re.MULTILINE)
    return [table.strip().splitlines() for table in found]


def index(lessons: dict[str, NotebookNode]) -> str:
    """The lessons in their order: minutes, what each teaches, its appendix."""
    rows = dict(
        re.findall(r"^\| \[\w+\]\((\S+)\) \| ([^|]+) \|", (root() / "README.md").read_text("utf-8"), re.MULTILINE)
    )
    parts = []
    for name, notebook in lessons.items():
        if "/appendix/" in name:
            continue
        text = "\n\n".join(list(pieces(notebook))[:4])
        minutes = max(map(int, re.findall(r"[\d.]+–(\d+) \|", text)), default=0)
        able = re.search(r"you can\n\n?((?:^- .*\n|^  .*\n)+)", text + "\n", re.MULTILINE)
        more = name.replace("notebooks/", "notebooks/appendix/").replace(".ipynb", "_more.ipynb")
        facts = [f"{minutes} minutes"] * bool(minutes) + [f"[appendix]({more})"] * (more in lessons)
        parts += [f"**[{title(notebook)}]({name})**", " · ".join([f"{rows.get(name, '').strip()}.", *facts])]
        parts += [f"You will be able to\n\n{able[1].strip()}"] if able else []
    return "\n\n".join(parts)


def toctrees(lessons: dict[str, NotebookNode]) -> dict[str, str]:
    """The pages of the menu, lessons and appendices."""
    names = [name.removesuffix(".ipynb") for name in lessons]
    appendices = [name for name in names if "/appendix/" in name]
    return {"menu": "\n".join(name for name in names if name not in appendices), "appendices": "\n".join(appendices)}


def symbols(lessons: dict[str, NotebookNode]) -> str:
    """The tables of notation, those of lessons that say what another has said left out line by line."""
    parts, seen = [], set[str]()
    for name, notebook in sorted(lessons.items(), key=lambda item: "/appendix/" not in item[0]):
        for head, rule, *rows in tables(notebook, SYMBOLS):
            new = [row for row in rows if row.split("|")[1] not in seen]
            seen |= {row.split("|")[1] for row in new}
            if new:
                parts.append("\n".join([f"### Of [{title(notebook)}](/{name})\n", head, rule, *new]))
    return "\n\n".join(parts)


def phrases(lessons: dict[str, NotebookNode]) -> str:
    """What the lessons quote of the sources, in Chinese and in English."""
    parts = []
    for name, notebook in lessons.items():
        quotes = re.findall(r"(?:^>.*\n?)+", "\n\n".join(pieces(notebook)), re.MULTILINE)
        flat = [" ".join(line.lstrip("> ") for line in quote.splitlines()) for quote in quotes]
        pairs = [
            match.groups()
            for one in flat
            if (match := re.match(r"([^*]*[\u4e00-\u9fff][^*]*?)\s*·\s*\*(.+)\*\s*$", one))
        ]
        rows = [f"| {cell(chinese)} | {cell(english)} |" for chinese, english in pairs]
        if rows:
            parts.append(
                "\n".join([f"### In [{title(notebook)}](/{name})\n", "| 中文 | English |", "|---|---|", *rows])
            )
    return "\n\n".join(parts)


def cell(text: str) -> str:
    """Text as a cell of a table."""
    return text.strip().replace("|", r"\|")


def errata(lessons: dict[str, NotebookNode]) -> str:
    """The tables of errata, and where a lesson says its own in the text."""
    parts, listed = [], {Path(name).stem for name, notebook in lessons.items() if tables(notebook, ERRATA)}
    for name, notebook in sorted(lessons.items(), key=lambda item: Path(item[0]).stem):
        found = tables(notebook, ERRATA)
        if found or (f"{Path(name).stem}_more" not in listed and any("rratum" in text for text in pieces(notebook))):
            parts.append(f"## [{title(notebook)}](/{name})")
            parts += ["\n".join(table) for table in found] or [
                "This notebook says them where they come up in its text."
            ]
    return "\n\n".join(parts)


# The reference of the package


def modules() -> list[str]:
    """The public modules of semaug."""
    import semaug

    walked = pkgutil.walk_packages(semaug.__path__, "semaug.")
    return [
        one.name for one in walked if not one.ispkg and not any(part.startswith("_") for part in one.name.split("."))
    ]


def reference() -> None:
    """A page a module, and one that lists them and the names offered at the top."""
    import semaug

    stub = ast.parse((root() / "semaug" / "__init__.pyi").read_text("utf-8"))
    homes = {name.name: part.module for part in stub.body if isinstance(part, ast.ImportFrom) for name in part.names}
    rows = [
        f"| {{py:obj}}`{name} <{homes[name]}.{name}>` | {first(getattr(semaug, name))} |"
        for name in sorted(homes, key=str.lower)
    ]
    told = [f"| [{name}]({name}.md) | {first(importlib.import_module(name))} |" for name in modules()]
    names = "\n".join(
        ["| `from semaug import` | |", "|---|---|", *rows, "", "## Modules", "", "| module | |", "|---|---|", *told]
    )
    menu = "\n".join(["```{toctree}", ":hidden:", *modules(), "```"])
    write("api/index.md", f"# Reference of the package\n\n## Names offered at the top\n\n{names}\n\n{menu}\n")
    for name in modules():
        body = f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members:\n   :show-inheritance:\n```\n"
        write(f"api/{name}.md", body)


def first(thing: object) -> str:
    """The first line of a docstring, as Markdown in a table."""
    line = (getattr(thing, "__doc__", None) or "").strip().split("\n")[0]
    return cell(re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line).replace("``", "`"))


def mathematics(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Docstrings hold TeX between dollars, which reStructuredText wants in roles and directives."""
    text = "\n".join(lines)
    blocks: list[str] = []

    def block(match: re.Match[str]) -> str:
        inner = " ".join(match[2].split())
        blocks.append(f"\n{match[1]}.. math::\n{match[1]}   :nowrap:\n\n{match[1]}   $${inner}$$\n\n{match[1]}")
        return f"\x00{len(blocks) - 1}\x00"

    text = re.sub(r"^([ ]*)\$\$(.+?)\$\$[,.]?", block, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<![\w`$\\])\$([^$`]+?)\$", lambda match: rf":math:`{' '.join(match[1].split())}`\ ", text)
    plain = re.split(r"(``.+?``|:[\w:]+:`.+?`)", text)  # code and roles at odd places
    plain[::2] = [re.sub(r"\||(?<=/)\*|(?<=\w)_(?!\w)", r"\\\g<0>", one) for one in plain[::2]]
    lines[:] = re.sub(r"\x00(\d+)\x00", lambda match: blocks[int(match[1])], "".join(plain)).split("\n")


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", mathematics, priority=400)
