"""The companion as its readers meet it: the lessons in JupyterLab and the web pages, in a browser.

`make test` opens one lesson, where playwright and a browser are installed; `make test-browser` opens all and runs one
whole. What the browser showed is kept in build/browser. Nothing here writes into the checkout's notebooks: JupyterLab
works on a copy.
"""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import nbformat
import pytest

from companion import site
from companion.notebooks import discover, root

ROOT = root()
CHROME = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WHOLE = os.environ.get("SEMAUG_BROWSER") == "all"
SOURCES = {path.stem: path.relative_to(ROOT) for path in discover()}
NAMES = [*SOURCES] if WHOLE else ["1_isda"]
RUN = "1_isda"
"""The lesson that is run whole: it has sliders, and a training cell that says how far it is."""
PICTURES = ROOT / "build" / "browser"
PATIENCE = 120_000
"""Milliseconds for what takes three seconds on a quiet machine."""

pytestmark = [
    pytest.mark.skipif(
        find_spec("playwright") is None or CHROME is None, reason="needs the extra 'browser' and Chromium or Chrome"
    ),
    pytest.mark.timeout(1200),
]

READY = """() => {
    const context = jupyterapp.shell.currentWidget?.context;
    const kernel = context?.sessionContext.session?.kernel;
    return document.querySelector('.jp-Dialog') || (context?.isReady && kernel?.status === 'idle');
}"""
STATE = """() => {
    const widget = jupyterapp.shell.currentWidget;
    return {
        path: widget.context.path,
        dirty: widget.context.model.dirty || widget.title.className.includes('jp-mod-dirty'),
        dialogs: [...document.querySelectorAll('.jp-Dialog')].map(one => one.innerText),
    };
}"""
RENDERED = """() => {  // every cell is drawn, also those that are not in sight yet
    const cells = jupyterapp.shell.currentWidget.content.widgets;
    const markdown = cells.filter(one => one.model.type === 'markdown');
    return cells.every(one => !one.isPlaceholder())
        && markdown.every(one => one.node.querySelector('.jp-RenderedMarkdown')?.innerText.trim())
        && document.querySelector('mjx-container');
}"""
FAULTS = r"""() => {
    const page = document.querySelector('.jp-Notebook') ?? document.querySelector('article') ?? document.body;
    const found = [...page.querySelectorAll('mjx-merror, [data-mjx-error]')].map(one => 'maths: ' + one.innerText);
    if (page.innerText.includes('Math input error')) found.push('Math input error');
    const walk = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const { data, parentElement } = walk.currentNode;
        const plain = 'code, pre, mjx-container, script, style, .cm-editor, .jp-RenderedText, .jp-InputArea-editor';
        const tex = /\$[^$\n]*\\[a-z]|\$\$|\\(frac|tag|Sigma|mathbb|begin|bigl)\b/;
        if (tex.test(data) && !parentElement.closest(plain)) found.push('TeX: ' + data.trim().slice(0, 80));
    }
    for (const one of page.querySelectorAll('details[open]')) found.push('open: ' + one.innerText.slice(0, 40));
    for (const one of page.querySelectorAll('img'))
        if (one.complete && one.naturalWidth < 2) found.push('empty picture: ' + one.src.slice(0, 80));
    for (const one of page.querySelectorAll('iframe, .jp-OutputArea-output:not(.lm-mod-hidden)'))
        if (!one.innerText?.trim() && !one.querySelector('img, svg, canvas, .jupyter-widgets') && one.offsetParent)
            found.push('empty frame: ' + one.className);
    return found;
}"""
OPEN_SOLUTIONS = """() => jupyterapp.shell.currentWidget.content.widgets
    .filter(one => (one.model.getMetadata('tags') ?? []).includes('solution'))
    .filter(one => !one.inputHidden || !one.outputHidden || one.node.querySelector('.cm-content')?.offsetParent)
    .map(one => one.model.sharedModel.getSource().slice(0, 40))"""
BEGIN = """index => {
    const notebook = jupyterapp.shell.currentWidget.content;
    notebook.activeCellIndex = index;
    window.done = false;
    jupyterapp.commands.execute('notebook:run-cell').finally(() => { window.done = true; });
}"""
CELL = "jupyterapp.shell.currentWidget.content.widgets[index]"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=CHROME, args=["--no-sandbox"] * (os.getuid() == 0))
        yield chrome
        chrome.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What JupyterLab opens: the notebooks as they are here, and the pictures they show."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("notebooks", "figures"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("records", ".ipynb_checkpoints"))
    return folder


@pytest.fixture(scope="module")
def lab(browser, folder, tmp_path_factory):
    """A page with JupyterLab as `make lab` starts it, and nothing of this user's settings."""
    from playwright.sync_api import Error

    home = tmp_path_factory.mktemp("jupyter")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    variables |= {"JUPYTER_CONFIG_PATH": str(ROOT / "tools" / "lab"), "JUPYTER_CONFIG_DIR": str(home)}
    variables |= {"JUPYTER_RUNTIME_DIR": str(home / "runtime"), "SEMAUG_OUTPUT": str(home / "output")}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--ServerApp.root_dir={folder}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    command += ["--LabApp.expose_app_in_browser=True", *["--allow-root"] * (os.getuid() == 0)]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=subprocess.STDOUT)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    try:
        for _ in range(PATIENCE // 500):
            try:
                page.goto(f"http://127.0.0.1:{port}/lab?reset")
                break
            except Error:  # it does not listen yet
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.5)
        page.wait_for_function("() => window.jupyterapp")
        page.evaluate("() => jupyterapp.restored.then(() => null)")
        page.add_style_tag(content=".jp-Cell { content-visibility: visible !important }")  # what is out of sight, too
        yield page
    finally:
        page.close()
        server.terminate()
        server.wait()


def opened(lab, path):
    """Open a notebook, or a .py as one, by what a double click in the file browser does; its state once it is there."""
    lab.evaluate("path => { jupyterapp.commands.execute('docmanager:open', { path }); }", path)
    lab.wait_for_function(READY)
    state = lab.evaluate(STATE)
    assert state["dialogs"] == []
    assert state["path"] == path
    return state


def closed(lab):
    lab.evaluate("""async () => {
        const widget = jupyterapp.shell.currentWidget;
        await widget.context.sessionContext.shutdown();
        widget.context.model.dirty = false;  // or it would ask
        widget.close();
    }""")
    lab.wait_for_function("() => !jupyterapp.shell.currentWidget?.context")


@pytest.mark.parametrize("later", [".ipynb", ".py"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pair_opens_and_is_saved_as_it_was(lab, folder, name, later):
    """Whichever of the two was written last, and whichever is opened."""
    pair = [folder / SOURCES[name].with_suffix(end) for end in (".ipynb", ".py")]
    now = time.time()
    for path in pair:
        os.utime(path, (now, now - 1000 * (path.suffix != later)))
    before = [path.read_bytes() for path in pair]
    for path in pair:
        assert not opened(lab, path.relative_to(folder).as_posix())["dirty"]
        lab.evaluate("() => jupyterapp.shell.currentWidget.context.save()")
        assert lab.evaluate(STATE)["dialogs"] == []
        assert [one.read_bytes() for one in pair] == before
        closed(lab)


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_is_shown_whole(lab, name):
    """Formulas are set, pictures are there, solutions are closed."""
    opened(lab, SOURCES[name].with_suffix(".ipynb").as_posix())
    lab.wait_for_function(RENDERED)
    lab.wait_for_timeout(1000)  # MathJax sets a cell at a time
    lab.screenshot(path=PICTURES / f"lab_{name}.png")
    assert lab.evaluate(FAULTS) == []
    assert lab.evaluate(OPEN_SOLUTIONS) == []
    closed(lab)


@pytest.mark.skipif(not WHOLE, reason="make test-browser runs a lesson whole")
def test_a_lesson_runs_whole(lab, folder):
    """A training cell says within two seconds how far it is; a slider moves its picture; nothing fails."""
    path = SOURCES[RUN].with_suffix(".ipynb")
    opened(lab, path.as_posix())
    lab.evaluate("() => jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    seen = set()
    for index, cell in enumerate(nbformat.read(folder / path, 4).cells):
        if cell.cell_type != "code":
            continue
        start = time.monotonic()
        lab.evaluate(BEGIN, index)
        if "lesson.counted(" in cell.source:
            lab.wait_for_function(f"index => /\\d of \\d+ runs/.test({CELL}.node.innerText)", arg=index)
            assert time.monotonic() - start < 2
            seen.add("progress")
            lab.evaluate(f"index => {CELL}.node.scrollIntoView(false)", index)
            lab.screenshot(path=PICTURES / "lab_training.png")
        lab.wait_for_function("() => window.done", timeout=600_000)
        errors = f"index => {CELL}.model.outputs.toJSON().filter(one => one.output_type === 'error')"
        assert lab.evaluate(errors, index) == []
        if "plots.slider(" in cell.source:
            picture = f"index => {CELL}.node.querySelector('.jp-OutputArea img')?.src"
            handle = lab.evaluate_handle(f"index => {CELL}.node.querySelector('.noUi-handle')", index).as_element()
            before = lab.evaluate(picture, index)
            handle.press("ArrowRight")
            lab.wait_for_function(f"([index, before]) => ({picture})(index) !== before", arg=[index, before])
            seen.add("slider")
            lab.screenshot(path=PICTURES / "lab_slider.png")
    assert seen == {"progress", "slider"}
    assert lab.evaluate(FAULTS) == []
    closed(lab)


# The web pages


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def web():
    """The address of the site, built where that is possible, else as it lies there."""
    html = site.BUILD / "html"
    if find_spec("myst_nb") is not None and shutil.which("npm") is not None:
        assert site.build() == 0
    if not (html / "index.html").exists():
        pytest.skip("the web pages need npm and the extra 'site'")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=html)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def paths():
    chosen = [path.with_suffix(".html").as_posix() for name, path in SOURCES.items() if name in NAMES]
    made = ["figures/leaderboard/leaderboard.html", "glossary.html", "errata.html", "api/semaug.methods.isda.html"]
    return ["index.html", *chosen, *(made if WHOLE else made[:1])]


@pytest.mark.parametrize("path", paths())
def test_a_page_fits_a_phone_and_asks_no_other_server(browser, web, path):
    page, asked = browser.new_page(viewport={"width": 390, "height": 844}), []
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{web}/{path}")
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    page.screenshot(path=PICTURES / f"phone_{path.replace('/', '_').removesuffix('.html')}.png")
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
    assert page.evaluate(FAULTS) == []
    assert [url for url in asked if not url.startswith((web, "data:", "blob:"))] == []
    page.close()


CLIPPED = """() => {
    const article = document.querySelector('article'), edge = article.getBoundingClientRect().right + 1;
    return [...article.querySelectorAll('pre, mjx-container[display="true"], img, table')]
        .filter(one => one.offsetParent)
        .filter(one => one.scrollWidth > one.clientWidth + 1 || one.getBoundingClientRect().right > edge)
        .map(one => one.tagName + ' ' + one.textContent.trim().slice(0, 60));
}"""


@pytest.mark.parametrize("name", NAMES)
def test_a_lesson_is_printed_whole(browser, web, name):
    """On A4 nothing is cut off."""
    page = browser.new_page(viewport={"width": 680, "height": 1000})  # A4 less 15 mm on each side
    page.set_default_timeout(PATIENCE)
    page.goto(f"{web}/{SOURCES[name].with_suffix('.html').as_posix()}")
    page.evaluate("() => window.MathJax?.startup?.promise.then(() => null)")
    page.emulate_media(media="print")
    assert page.evaluate(CLIPPED) == []
    margin = dict.fromkeys(("top", "right", "bottom", "left"), "15mm")
    page.pdf(path=PICTURES / f"{name}.pdf", format="A4", margin=margin)
    page.close()
