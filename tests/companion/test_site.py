"""The web pages: nothing is missing, every link leads somewhere, no page asks another server for anything."""

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat.v4 as new
import pytest

from companion import site
from companion.notebooks import discover, root
from companion.site import slides

BUILT = pytest.mark.skipif(
    find_spec("myst_nb") is None or shutil.which("npm") is None, reason="the web pages need npm and the extra 'site'"
)


class Page(HTMLParser):
    """The links, pictures, scripts and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors, self.links, self.loaded, self.undescribed = set(), [], [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values.get("id"), values.get("name")}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in ("img", "script", "iframe") and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") in ("stylesheet", "preload"):
            self.loaded.append(values["href"])
        if tag == "img" and not values.get("alt"):
            self.undescribed.append(values["src"])


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    assert site.build() == 0
    return {path: Page(path) for path in (site.BUILD / "html").rglob("*.html") if "_static" not in path.parts}


def dead(pages: dict[Path, Page]) -> Iterator[str]:
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or (link.startswith("#") and link[1:] in ("", "main-content")):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path.name}: {link}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.name}: no anchor {link}"


@BUILT
@pytest.mark.timeout(1200)
def test_every_link_leads_somewhere_and_all_is_served_from_here(pages):
    assert list(dead(pages)) == []
    away = [link for page in pages.values() for link in page.loaded if re.match(r"(https?:)?//", link)]
    assert away == []
    assert [one for page in pages.values() for one in page.undescribed] == []
    for source in discover():
        assert (site.BUILD / "html" / source.relative_to(root()).with_suffix(".html")) in pages


def test_links_to_code_lead_to_the_repository():
    text = "[a](appendix/1_isda_more.ipynb) [b](../companion/workflow/strength.yaml) [c](appendix) [d](https://x.y)"
    blob, tree = f"{site.REPOSITORY}/blob/main", f"{site.REPOSITORY}/tree/main"
    assert site.linked(text, "notebooks/1_isda.ipynb") == (
        f"[a](appendix/1_isda_more.ipynb) [b]({blob}/companion/workflow/strength.yaml) "
        f"[c]({tree}/notebooks/appendix) [d](https://x.y)"
    )


def test_docstrings_mathematics_becomes_directives():
    lines = ["The loss $a_i$ of (1),", "", "$$x", "  = y. \\tag{1}$$", "", "and ``$no$``."]
    site.mathematics(None, "function", "f", None, None, lines)
    assert lines[0] == r"The loss :math:`a_i`\  of (1),"
    assert [line.strip() for line in lines if line.strip()][1:] == [
        ".. math::", ":nowrap:", r"$$x = y. \tag{1}$$", "and ``$no$``."
    ]  # fmt: skip


def test_a_section_is_a_column_of_slides_with_its_pictures_and_equations():
    picture = new.new_output(
        "display_data", {"image/png": "aGk=\n"}, metadata={"image/png": {"alt": "rows", "height": 400}}
    )
    notebook = new.new_notebook(
        cells=[
            new.new_markdown_cell("# Title\n\n**Bold claim.** And why.\n\n<details>no\n\n- no\n\n</details>"),
            new.new_code_cell("folded()", outputs=[picture]),
            new.new_markdown_cell("<details><summary>No</summary>\n\nno\n\n</details>"),
            new.new_markdown_cell(
                "## 1 · Where (3–7 min)\n\nProse stays away. An equation:\n\n$$x = y \\tag{1}$$\n\n> quote"
            ),
            new.new_markdown_cell("## 2 · In thirty lines\n\n- one\n- two"),
            new.new_code_cell("method()"),
            new.new_code_cell("answer()", metadata={"tags": ["solution"]}),
        ]
    )
    first, second, third = ("".join(column) for column in slides.deck(notebook))
    assert "Bold claim." in first
    assert 'alt="rows"' in first
    assert "no" not in re.sub(r"<[^>]+>", "", first)
    assert "An equation:" in second
    assert "x = y" in second
    assert not {"Prose", "quote", "min"} & set(re.findall(r"\w+", second))
    assert "two" in third
    assert "method" in third
    assert "answer" not in third


def test_what_does_not_fit_on_a_slide_begins_another():
    cells = [new.new_markdown_cell("## Many"), *(new.new_markdown_cell(f"- {'word ' * 60}") for _ in range(12))]
    (column,) = slides.deck(new.new_notebook(cells=cells))
    assert 2 <= len(column) <= 4
