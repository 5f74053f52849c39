"""The page in headless Chromium, against the bundled server and against one that misbehaves.

Both need what the server's environment lacks: Debian's chromium and .venv-ui (`make ui-install`).
Where one is missing the tests are skipped, but never in CI.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx
import pytest
from playwright.sync_api import sync_playwright

from tests.browser.strange_server import StrangeServer, start_strange_server
from tests.browser.visit import Visit
from tests.serving import ROOT, free_ports, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from tests.serving import RunningServer

UI_PYTHON: Final = ROOT / ".venv-ui" / "bin" / "python"
START_SECONDS: Final = 120.0
# A browser in a sandbox without a network: what it would fetch by itself only costs time.
CHROMIUM_FLAGS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True)
class RunningPage:
    """A page process, where it listens and what it logs."""

    process: subprocess.Popen[bytes]
    url: str
    log_file: Path

    def log(self) -> str:
        """What it has written so far."""
        return self.log_file.read_text()


@contextmanager
def start_page(api: str, *arguments: str) -> Iterator[RunningPage]:
    """A page process; SIGTERM must end it with 0 and without a traceback in its log."""
    [port] = free_ports(1)
    command = [UI_PYTHON, "-m", "model.ui", "--api", api, "--host", "127.0.0.1"]
    command += ["--port", str(port), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        log_file = Path(folder) / "page.log"
        with log_file.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        page = RunningPage(process, f"http://127.0.0.1:{port}", log_file)
        try:
            wait_for(lambda: _answers(page), "the page answers", seconds=START_SECONDS)
            yield page
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(30)
            log = page.log()
        assert status == 0, log
        # A traceback is an error nobody foresaw, but for Gradio's way to refuse a stranger's path.
        assert log.count("Traceback") == log.count("gradio.exceptions.InvalidPathError"), log


def _answers(page: RunningPage) -> bool:
    assert page.process.poll() is None, f"the page exited:\n{page.log()}"
    try:
        return httpx.get(f"{page.url}/health").is_success
    except httpx.TransportError:
        return False


def _chromium() -> str:
    found = shutil.which("chromium")
    if found and UI_PYTHON.exists():
        return found
    missing = "make ui-install" if found else "apt-get install chromium"
    if os.environ.get("CI"):
        pytest.fail(f"the page's tests cannot run: {missing}")
    pytest.skip(f"needs {missing}")


# Playwright's own loop runs as long as this lives: it must be over before other folders' tests.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """One browser; each test gets a profile of its own from it."""
    executable = _chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def page(browser: Browser, server: RunningServer) -> Iterator[RunningPage]:
    """The page against the bundled server."""
    with start_page(server.http_url) as running:
        yield running


@pytest.fixture(scope="package")
def strange() -> Iterator[StrangeServer]:
    """The server that misbehaves as the prompt says."""
    with start_strange_server() as running:
        yield running


@pytest.fixture(scope="package")
def strange_page(browser: Browser, strange: StrangeServer) -> Iterator[RunningPage]:
    """The page against it."""
    with start_page(strange.url, "--public-api", "https://api.example.org") as running:
        yield running


@pytest.fixture
def visit(browser: Browser, page: RunningPage) -> Iterator[Visit]:
    """Somebody at a desk, on the page of the bundled server."""
    with Visit.at(browser, page.url) as visit:
        yield visit


@pytest.fixture
def strange_visit(browser: Browser, strange_page: RunningPage) -> Iterator[Visit]:
    """Somebody at a desk, on the page of the server that misbehaves."""
    with Visit.at(browser, strange_page.url) as visit:
        yield visit
