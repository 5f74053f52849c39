"""Where the page may stand, and what stays with it: keys, uploads, nothing from elsewhere."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import start_page
from tests.browser.gateway import start_gateway
from tests.browser.strange_server import KEY
from tests.browser.visit import Visit
from tests.serving import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

    from tests.browser.conftest import RunningPage
    from tests.browser.strange_server import StrangeServer


@pytest.fixture(scope="module")
def placed_page(browser: Browser, strange: StrangeServer) -> Iterator[RunningPage]:
    """A page that knows that people see it at /some/ui."""
    with start_page(strange.url, "--root-path", "/some/ui") as running:
        yield running


@pytest.mark.parametrize("strips", [True, False], ids=["path taken off", "path left on"])
@pytest.mark.parametrize("end", ["", "/"], ids=["no slash", "slash"])
def test_it_works_under_a_path(
    browser: Browser, placed_page: RunningPage, strips: bool, end: str
) -> None:
    with (
        start_gateway(placed_page.url, "/some/ui", strips=strips) as gateway,
        Visit.at(browser, f"{gateway}/some/ui{end}") as visit,
    ):
        visit.tab.get_by_role("button", name="Example 1").click()
        expect(visit.thumbs).to_have_count(1)
        visit.describe()
        expect(visit.answer).to_contain_text("photograph")
        missing = "() => [...document.images].filter((one) => one.complete && !one.naturalWidth)"
        assert visit.tab.evaluate(f"{missing}.map((one) => one.src)") == []


def test_a_key_goes_with_the_request_and_nowhere_else(
    browser: Browser, strange: StrangeServer, strange_page: RunningPage
) -> None:
    rights = ["clipboard-read", "clipboard-write"]
    with Visit.at(browser, strange_page.url, permissions=rights) as visit:
        visit.add("scene-00000.jpg")
        visit.describe("only with a key")
        expect(visit.tab.get_by_role("alert")).to_have_text("this server wants an API key")
        assert strange.asked[-1].authorization == ""
        visit.open("API key")
        visit.tab.get_by_role("textbox", name="API key").fill(KEY)
        visit.describe("only with a key")
        expect(visit.answer).to_contain_text("photograph")
        assert strange.asked[-1].authorization == f"Bearer {KEY}"
        for language in ("curl", "Python"):
            code = visit.code(language)
            assert "API_KEY" in code
            assert KEY not in code
            assert "https://api.example.org/api/v1/describe" in code
        assert KEY not in visit.tab.evaluate("() => JSON.stringify(localStorage)")
        visit.reload()
        visit.open("API key")
        expect(visit.tab.get_by_role("textbox", name="API key")).to_have_value(KEY)
        other = visit.tab.context.new_page()
        other.goto(strange_page.url)
        expect(other.get_by_role("button", name="Describe", exact=True)).to_be_visible()
        assert KEY not in other.evaluate("() => JSON.stringify(sessionStorage)")
    assert KEY not in strange_page.log()


def test_the_document_names_nobody_else(strange_page: RunningPage) -> None:
    answer = httpx.get(strange_page.url)
    assert answer.headers["content-security-policy"].startswith("default-src 'self';")
    assert answer.headers["x-content-type-options"] == "nosniff"
    head = answer.text.partition("</head>")[0]
    for name in ("gradio.app", "github", "googleapis", "cdnjs", "huggingface.co"):
        assert name not in head.partition("window.gradio_config")[0]


def test_the_policy_stops_what_would_load_from_elsewhere(
    browser: Browser, strange_page: RunningPage
) -> None:
    tab = browser.new_page()
    tab.goto(strange_page.url)
    stopped = tab.evaluate(
        """() => new Promise((resolve) => {
            addEventListener("securitypolicyviolation", (one) => resolve(one.violatedDirective));
            new Image().src = "http://127.0.0.2:1/picture.png";
        })"""
    )
    assert stopped == "img-src"
    tab.close()


@pytest.mark.parametrize("claims", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["", "file"])
@pytest.mark.parametrize(
    "path", ["/etc/hostname", str(SAMPLES / "scene-00000.jpg"), "{uploads}/../../etc/hostname"]
)
def test_a_file_that_was_not_uploaded_is_not_sent_on(
    strange: StrangeServer, strange_page: RunningPage, path: str, claims: dict[str, Any]
) -> None:
    before = len(strange.asked)
    picture = {"path": path.format(uploads=uploads()[0]), "name": "a.jpg", **claims}
    ended = describe_by_hand(strange_page.url, picture)
    assert ended["success"] is False, ended
    assert len(strange.asked) == before


def test_what_is_no_picture_at_all_is_no_error_of_the_page(strange_page: RunningPage) -> None:
    for wrong in (1, "x", [1], {"path": 1}):
        assert describe_by_hand(strange_page.url, wrong)["success"] is False


def test_what_was_uploaded_goes_when_the_page_ends(strange: StrangeServer) -> None:
    known = {*uploads()}
    with start_page(strange.url) as page:
        [folder] = {*uploads()} - known
        picture = SAMPLES / "scene-00000.jpg"
        answer = httpx.post(f"{page.url}/gradio_api/upload", files={"files": picture.read_bytes()})
        kept = Path(answer.json()[0])
        assert kept.is_relative_to(folder)
        assert kept.read_bytes() == picture.read_bytes()
        assert folder.stat().st_mode & 0o077 == 0, "others may read it"
    assert not folder.exists()


def test_too_large_a_file_is_refused(strange_page: RunningPage) -> None:
    large = b"\xff\xd8" + os.urandom(33 << 20)
    answer = httpx.post(f"{strange_page.url}/gradio_api/upload", files={"files": large}, timeout=60)
    assert answer.status_code == 413


def uploads() -> list[Path]:
    """The folders of the pages that run now."""
    return list(Path(tempfile.gettempdir()).glob("qwen3-vl-page-*"))


def describe_by_hand(url: str, picture: object) -> dict[str, Any]:
    """Ask as the page's own script does, with a picture of one's own making; how it ended."""
    config = httpx.get(f"{url}/config").json()
    [asking] = [one for one in config["dependencies"] if len(one["inputs"]) > 10][:1]
    pictures = next(
        one["id"] for one in config["components"] if one["props"].get("elem_id") == "pictures"
    )
    data = [[picture] if one == pictures else None for one in asking["inputs"]]
    body = {"data": data, "fn_index": asking["id"], "session_hash": "byhand", "event_data": None}
    httpx.post(f"{url}/gradio_api/queue/join", json=body).raise_for_status()
    with httpx.stream(
        "GET", f"{url}/gradio_api/queue/data?session_hash=byhand", timeout=20
    ) as answer:
        for line in answer.iter_lines():
            message = json.loads(line.removeprefix("data: ") or "{}")
            if message.get("msg") == "process_completed":
                return dict(message)
    raise AssertionError("it never ended")
