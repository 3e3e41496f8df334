"""JupyterLab as a person meets it: a server started here, headless Chromium, notebooks 00 and A2
run by the menu's command.

Everything runs, a slider is moved, a text is typed, and tokens are seen lit; screenshots stay in
artefacts/screenshots. Errors on the browser's console fail the test. Skipped only where no Chromium
is installed (Debian: apt-get install chromium); playwright drives that one and downloads none.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
SHOTS = ROOT / "artefacts" / "screenshots"
# what JupyterLab itself says on a machine without network or language servers, and why it is no
# fault of a notebook
HARMLESS = {
    "favicon": "the icon of a kernel's state is asked for under a name that some versions lack",
    "ERR_INTERNET_DISCONNECTED": "no network: JupyterLab looks for news and extension updates",
    "jupyterlab/api/news": "the same, through the server",
    "lsp/status": "no language server is installed",
}
# every cell stays in the page, also outside the window; nothing is asked of the network
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
}
PATIENCE = 180_000  # ms; a loaded machine takes a minute to open JupyterLab
LIT = "span[style*='background']"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed; on Debian: apt-get install -y chromium"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab over a copy of the notebooks without outputs, with folders of its
    own; ended with the module.
    """
    home = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    for path in (home / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        for cell in (c for c in notebook.cells if c.cell_type == "code"):
            cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {
        f"JUPYTER_{what}_DIR": str(home / what.lower()) for what in ("RUNTIME", "CONFIG", "DATA")
    }
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    for extension, setting in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{extension}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting))
    environment = (
        os.environ | own | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    )
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        f"--ServerApp.port={port}",
        "--ServerApp.ip=127.0.0.1",
        "--IdentityProvider.token=",
        "--allow-root",
        f"--ServerApp.root_dir={home / 'notebooks'}",
    ]
    with (home / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{address}/api/status", server, home / "server.log")
        yield address
    finally:
        server.terminate()
        server.wait(timeout=30)


def _wait_for(
    address: str, server: subprocess.Popen, log: Path, seconds: float = PATIENCE / 1000
) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, f"JupyterLab ended by itself: {log.read_text()[-2000:]}"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"JupyterLab did not answer in {seconds} s: {log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # --no-sandbox: the test may run as root in a container, and it opens its own server alone
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-dev-shm-usage"]}
        chromium = playwright.chromium.launch(headless=True, **options)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A fresh page; at the end of the test its console must hold no error that HARMLESS does not
    explain.
    """
    page, errors = browser.new_page(viewport={"width": 1500, "height": 1000}), []
    page.on(
        "console",
        lambda said: (
            errors.append(f"{said.text} {said.location.get('url')}")
            if said.type == "error"
            else None
        ),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert [error for error in errors if not any(known in error for known in HARMLESS)] == []


def run_all(page, lab: str, name: str, minutes: float = 15) -> None:
    """Open a notebook, run every cell through the menu and wait until every one has run; no cell
    may end in an error.
    """
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=PATIENCE)
    # JupyterLab shows "idle" before there is a kernel, so the server is asked
    page.wait_for_function(CONNECTED, arg=f"{name}.ipynb", timeout=PATIENCE, polling=500)
    start_all(page)
    try:
        page.wait_for_function(FINISHED, timeout=60_000 * minutes, polling=500)
    finally:
        shot(page, name)
    numbers = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt").all_inner_texts()
    # a folded cell shows no number: the first one, which installs
    expected = [f"[{i + 1}]:" for i in range(len(numbers))]
    assert numbers[1:] == expected[1:] and numbers[0] in ("", expected[0]) and len(numbers) > 10
    errors = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert errors.count() == 0, errors.first.inner_text()


def start_all(page, tries: int = 6) -> None:
    """Run > Run All Cells, again where nothing started: on a busy machine a click may come before
    the page listens.
    """
    from playwright.sync_api import TimeoutError

    for _ in range(tries):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator("li[data-command='runmenu:run-all']").click()
        try:
            page.wait_for_function(STARTED, timeout=PATIENCE / tries, polling=200)
            return
        except TimeoutError:
            page.keyboard.press("Escape")
    pytest.fail(f"no cell started after {tries} times Run All Cells: {page.url}")


CONNECTED = """async path => (await (await fetch('/api/sessions')).json()).some(
    s => s.path === path && s.kernel.connections > 0 && s.kernel.execution_state === 'idle')"""
STARTED = (
    "() => [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].some(e =>"
    " /[*0-9]/.test(e.textContent))"
)
# every cell has run, or one has ended in an error and the others wait no longer; a blank prompt may
# be one that JupyterLab has not yet queued
FINISHED = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    const failed = document.querySelector("[data-mime-type='application/vnd.jupyter.error']");
    const waits = failed ? /[*]/ : /[*]|\\[ *\\]/;
    return !prompts.some(e => waits.test(e.textContent));
}"""


def shot(page, name: str) -> None:
    """Keep a picture of the page as an artefact of the test."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=str(SHOTS / f"{name}.png"))


def controls(page, description: str):
    """The box of widgets that has a control of this description, scrolled into view."""
    label = page.locator(".widget-label", has_text=description)
    box = page.locator(".widget-vbox", has=label).first
    box.scroll_into_view_if_needed()
    return box


def weights(box) -> list[str]:
    """Title (attention) of every lit token of a box."""
    return box.locator(LIT).evaluate_all("spans => spans.map(span => span.title)")


def test_00_runs_and_lights_up_the_words_of_a_label(lab, page):
    run_all(page, lab, "00_start_here")
    why = page.locator(".jp-OutputArea-output", has=page.locator(LIT)).last
    why.scroll_into_view_if_needed()
    shades = why.locator(LIT).evaluate_all(
        "spans => spans.map(span => getComputedStyle(span).backgroundColor)"
    )
    assert len(set(shades)) > 1 and any(shade.startswith("rgb(230, 159, 0") for shade in shades), (
        shades[:5]
    )
    shot(page, "00-explanation")


def test_a2_answers_sliders_and_typed_text(lab, page):
    run_all(page, lab, "A2_explain")
    for title in (
        "random, before training",
        "planted, before training",
        "after training",
        "gold evidence",
    ):
        assert page.locator("th", has_text=title).count() >= 1, title

    box = controls(page, "gain")
    before = weights(box)
    handle = box.locator(".widget-slider", has_text="gain").locator(".noUi-handle")
    handle.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    readout = float(
        box.locator(".widget-slider", has_text="gain").locator(".widget-readout").inner_text()
    )
    box.get_by_text(f"planted gain {readout:.2f}").wait_for(timeout=PATIENCE)
    assert weights(box) != before and readout >= 7
    shot(page, "A2-gain-moved")
    box.locator(".widget-slider", has_text="K").last.locator(".noUi-handle").focus()
    page.keyboard.press("Home")
    box.get_by_text(", K 1").first.wait_for(timeout=PATIENCE)
    assert sorted(weights(box))[-2:] == ["0.000", "1.000"], (
        "K = 1 leaves all attention on one token"
    )
    shot(page, "A2-one-token")

    own = controls(page, "text")
    own.locator("textarea").fill("The nephropathy is stable; gingivitis <b>again</b>.")
    own.locator("textarea").press("Tab")
    own.locator(LIT, has_text="gin").first.wait_for(timeout=PATIENCE)
    assert "<b>again</b>" in own.locator(".widget-html-content").inner_text(), (
        "typed markup is text"
    )
    assert max(map(float, weights(own))) > 0.1
    shot(page, "A2-own-text")
