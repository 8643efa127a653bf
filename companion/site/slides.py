"""Every lesson as a deck of slides, from the cells of its committed notebook.

The rules: a section of the lesson (``## ``) is a column of slides. Of its text stay the headings, the equations with
the sentence before them, lists, tables, and the first sentence of a paragraph that begins in bold. Every picture stays.
Code stays in the section that writes the method out in so many lines, up to the first check; what is folded, printed or
quoted does not.
A cell tagged ``skip-slide`` is left out, one tagged ``slide`` is kept whole.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from companion import site
from companion.notebooks import root
from semaug.core.files import write_whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

HIGH = 590
"""Pixels for what stands on a slide of 1280 x 720 below its heading."""

DECK = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="reveal.js/dist/reveal.css"><link rel="stylesheet" href="reveal.js/dist/theme/white.css">
<style>
.reveal {{ font-size: 26px; font-family: sans-serif; }}
.reveal .slides {{ text-align: left; }}
.reveal h1, .reveal h2 {{ font-family: sans-serif; text-transform: none; font-size: 38px; margin: 0 0 22px; }}
.reveal h3 {{ font-family: sans-serif; text-transform: none; font-size: 28px; margin: 6px 0 10px; }}
.reveal .anchor-link {{ display: none; }}
.reveal mjx-container[display="true"] {{ font-size: 88% !important; margin: 12px 0; }}
.reveal p, .reveal ul, .reveal ol {{ margin: 0 0 14px; line-height: 1.35; }}
.reveal ul, .reveal ol {{ display: block; margin-left: 1.2em; }}
.reveal table {{ font-size: 20px; margin: 0 0 14px; }}
.reveal table td, .reveal table th {{ padding: 4px 12px; }}
.reveal pre {{ font-size: 17px; line-height: 1.3; width: 100%; margin: 0 0 14px; box-shadow: none; }}
.reveal section img {{ display: block; margin: 0 auto 10px; max-height: 380px; max-width: 1200px; width: auto; }}
.reveal section.picture img {{ max-height: none; width: 1200px; height: 590px; object-fit: contain; }}
</style>
<script>window.MathJax = {{ tex: {{ inlineMath: [["$", "$"]], displayMath: [["$$", "$$"]] }} }};</script>
<script defer src="mathjax/es5/tex-chtml.js"></script>
</head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script src="reveal.js/dist/reveal.js"></script>
<script>
Reveal.initialize({{ width: 1280, height: 720, margin: 0.04, center: false, hash: true, slideNumber: "c/t",
  transition: "none" }});
</script>
</body></html>
"""


class Block(NamedTuple):
    """What stays together on a slide: its HTML, about how many pixels it is high, the heading it stands under."""

    html: str
    high: int
    heading: str = ""
    column: bool = False  # whether a column of slides begins here


def build() -> int:
    """Write build/slides/<lesson>.html, and beside them what they load; the exit status."""
    import nbformat

    folder = root() / "build" / "slides"
    for name in site.PACKAGES:
        shutil.copytree(site.vendored(name), folder / name, dirs_exist_ok=True)
    for path in (path for path in site.pairs() if path.parent.name == "notebooks"):
        notebook = nbformat.read(path, 4)
        columns = deck(notebook)
        slides = "\n".join(f"<section>{''.join(column)}</section>" for column in columns)
        write_whole(folder / f"{path.stem}.html", DECK.format(title=escape(site.title(notebook)), slides=slides))
        print(f"wrote    {folder / path.stem}.html, {sum(map(len, columns))} slides", flush=True)
    return 0


def deck(notebook: NotebookNode) -> list[list[str]]:
    """The slides, column by column: blocks in their order, as many on a slide as fit."""
    columns: list[list[list[Block]]] = []
    for block in blocks(notebook):
        if block.column or not columns:
            columns.append([[]])
        slide = columns[-1][-1]
        if slide and sum(one.high for one in slide) + block.high + 50 * (slide[-1].heading != block.heading) > HIGH:
            columns[-1].append(slide := [])
        slide.append(block)
    return [[html(slide) for slide in column] for column in columns]


def html(slide: list[Block]) -> str:
    """One slide: the heading above it, further ones where they begin."""
    above = [None, *(block.heading for block in slide)]
    parts = [
        marked(f"{'##' if before is None else '###'} {block.heading}") * (before != block.heading) + block.html
        for before, block in zip(above, slide, strict=False)
    ]
    alone = len(slide) == 1 and slide[0].html.startswith("<img")
    return f"<section{' class=picture' if alone else ''}>{''.join(parts)}</section>"


def blocks(notebook: NotebookNode) -> Iterator[Block]:
    """What of a notebook stands on slides."""
    heading, method, begins = "", False, True
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "skip-slide" in tags or "solution" in tags:
            continue
        if cell.cell_type == "markdown":
            for part, after in pairwise([*parts(cell.source), ""]):
                if match := re.match(r"(#+) (.+)", part):
                    heading, level = re.sub(r" \([\d.–-]+ min\)", "", match[2]), len(match[1])
                    begins = begins or level == 2
                    method = "lines" in heading if level == 2 else method
                elif shown := part if "slide" in tags else kept(part, after):
                    yield Block(marked(shown), height(shown), heading, begins)
                    begins = False
            continue
        method = method and not re.search(r"^ *assert ", cell.source, re.MULTILINE)  # a check follows the method
        if "slide" in tags or (method and not cell.metadata.get("jupyter", {}).get("source_hidden")):
            for lines in halves(cell.source.splitlines()):
                yield Block(code("\n".join(lines)), 23 * len(lines) + 20, heading, begins)
                begins = False
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                about, source = output.metadata.get("image/png", {}), output.data["image/png"].replace("\n", "")
                size = f'alt="{escape(about.get("alt", ""))}" width="{about.get("width", 800)}"'
                high = 20 + min(380, about.get("height", 380))  # smaller beside text, and as large as it can be alone
                yield Block(f'<img {size} src="data:image/png;base64,{source}">', high, heading, begins)
                begins = False


def parts(text: str) -> list[str]:
    """The paragraphs, lists, tables and equations of Markdown, without details."""
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    text = re.sub(r"(^\$\$.+?\$\$[.,]?)", r"\n\n\1\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(#+ .+)$", r"\1\n", text, flags=re.MULTILINE)
    text = re.sub(r"(?<!\n)\n(\$\$)", r"\n\n\1", text)
    return [part for part in map(str.strip, re.split(r"\n\s*\n", text)) if part]


SHOWN = ("$$", "- ", "1. ", "| ")


def kept(part: str, after: str) -> str:
    """What of a paragraph a slide keeps, "" for nothing; after: the next one."""
    if part.startswith(SHOWN):
        return part if not part.startswith("| ") else "\n".join(part.splitlines()[:9]) * ("minutes" not in part[:12])
    if part.startswith("**"):
        first, *rest = re.split(r"(?<=[.?!*])\s+(?=[A-Z])", " ".join(part.split()))
        return first if len(first) > 40 else " ".join([first, *rest[:2]])
    return (
        re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(part.split()))[-1]
        if part.endswith(":") and after.startswith(SHOWN)
        else ""
    )


def height(text: str) -> int:
    """About how many pixels Markdown takes."""
    if text.startswith("$$"):
        return 120 + 60 * text.count(r"\\")
    if text.startswith("| "):
        return 14 + sum(34 * (1 + len(line) // 130) for line in text.splitlines())
    return 14 + sum(36 * (1 + len(item) // 90) for item in re.split(r"\n(?=- |\d\. )", text))


def halves(lines: list[str]) -> list[list[str]]:
    """Lines of code, divided at an empty line where they are more than a slide holds."""
    if len(lines) <= 23:
        return [lines]
    cuts = [at for at, line in enumerate(lines) if not line.strip()] or [len(lines) // 2]
    cut = min(cuts, key=lambda at: abs(at - len(lines) // 2))
    return [lines[:cut], lines[cut:]]


def marked(text: str) -> str:
    """Markdown as HTML, with mathematics left to MathJax; links to other notebooks are their words."""
    from nbconvert.filters import markdown2html

    return str(markdown2html(re.sub(r"\[([^\]]+)\]\((?!http)[^)]+\)", r"\1", text)))


def code(text: str) -> str:
    """Python in colours."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return str(highlight(text, PythonLexer(), HtmlFormatter(noclasses=True)))
