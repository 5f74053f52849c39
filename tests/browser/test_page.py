"""What people do on the page: show pictures, ask, watch, stop, go back, copy."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import start_page
from tests.browser.visit import PHONE, Visit, captions
from tests.serving import SAMPLES

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

    from tests.browser.conftest import RunningPage
    from tests.serving import RunningServer

DESCRIPTIONS = captions("Describe this image.")
# Half a minute and more, whatever the model would say.
ENDLESS = {"shortest_answer": "3900", "longest_answer": "3900"}


def test_a_dropped_picture_is_described(visit: Visit) -> None:
    name, description = DESCRIPTIONS[0]
    visit.put_down("drop", SAMPLES / name)
    expect(visit.thumbs).to_have_count(1)
    visit.describe()
    expect(visit.answer).to_have_text(description)
    figures = visit.tab.locator("#answer .figures")
    expect(figures).to_contain_text("642 × 630, seen as 192 × 192")
    for figure in ("Prompt", "Answer", "Speed", "Queue", "First text", "Total"):
        expect(figures.get_by_text(figure, exact=True)).to_be_visible()
    visit.open("The same request from your code")
    visit.screenshot("desktop")


def test_the_text_is_shown_while_it_is_written(visit: Visit) -> None:
    visit.add("scene-00000.jpg")
    visit.watch_text()
    visit.describe(shortest_answer="300", longest_answer="300")
    texts = [text.strip() for text in visit.texts()]
    assert len(texts) > 3, "the text came at once"
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


def test_on_a_phone_the_answer_comes_into_view(browser: Browser, page: RunningPage) -> None:
    with Visit.at(browser, page.url, **PHONE) as visit:
        visit.add("scene-00000.jpg")
        visit.describe()
        expect(visit.answer).to_be_in_viewport(ratio=1)
        visit.screenshot("phone", whole=False)


def test_stopping_keeps_the_text_and_cancels_at_the_server(
    visit: Visit, server: RunningServer
) -> None:
    visit.add("scene-00000.jpg")
    visit.ask(**ENDLESS)
    expect(visit.answer).to_contain_text(" ")
    server.wait_until_running(1)
    visit.stop_button.click()
    visit.wait_ended()
    server.wait_until_idle()
    expect(visit.tab.locator("#answer .status")).to_have_text("Stopped")
    assert len(visit.answer.inner_text()) > 1
    expect(visit.describe_button).to_be_focused()


def test_closing_the_tab_cancels_at_the_server(
    browser: Browser, page: RunningPage, server: RunningServer
) -> None:
    with Visit.at(browser, page.url) as visit:
        visit.add("scene-00000.jpg")
        visit.ask(**ENDLESS)
        server.wait_until_running(1)
    server.wait_until_idle()


def test_an_earlier_request_comes_back_whole(visit: Visit) -> None:
    visit.add("scene-00004.jpg")
    visit.describe("How many cyan objects are there?", seed="7")
    expect(visit.answer).to_have_text("One.")
    visit.tab.get_by_role("button", name="Remove scene-00004.jpg").click()
    visit.add("scene-00001.jpg", "scene-00003.jpg")
    visit.describe("Describe this image.", seed="")
    expect(visit.entries).to_have_count(2)
    visit.entries.nth(1).click()
    expect(visit.answer).to_have_text("One.")
    expect(visit.thumbs).to_have_count(1)
    expect(visit.thumbs.get_by_role("img")).to_have_attribute("alt", "scene-00004.jpg")
    expect(visit.tab.get_by_label("Prompt", exact=True)).to_have_value(
        "How many cyan objects are there?"
    )
    expect(visit.tab.get_by_label("Seed")).to_have_value("7")
    visit.describe_button.click()
    expect(visit.entries).to_have_count(3)
    expect(visit.answer).to_have_text("One.")
    visit.tab.get_by_role("button", name="Clear").click()
    expect(visit.entries).to_have_count(0)


@pytest.mark.parametrize("each", [False, True], ids=["about all", "each by itself"])
def test_the_copied_lines_give_what_the_page_showed(
    browser: Browser, page: RunningPage, each: bool
) -> None:
    rights = ["clipboard-read", "clipboard-write"]
    with Visit.at(browser, page.url, permissions=rights) as visit:
        visit.add("scene-00001.jpg", "scene-00005.jpg")
        if each:
            visit.tab.get_by_label("An answer for each").check()
        visit.describe("Describe this image.", temperature="0.4", seed="3")
        shown = visit.tab.locator("#answer .text").all_inner_texts()
        curl, python = visit.code("curl"), visit.code("Python")
    assert len(shown) == (2 if each else 1)
    printed = run("bash", "-euc", curl.replace("curl ", "curl --silent --show-error "))
    answers = [json.loads(line) for line in printed.replace("}{", "}\n{").splitlines()]
    assert [answer["description"] for answer in answers] == shown
    assert run(sys.executable, "-c", python).splitlines() == shown


def test_each_picture_gets_an_answer_of_its_own(visit: Visit, tmp_path: Path) -> None:
    expect(visit.tab.get_by_label("An answer for each")).to_be_hidden()
    visit.add(*(name for name, _ in DESCRIPTIONS))
    visit.tab.get_by_label("An answer for each").check()
    visit.describe()
    expect(visit.tab.locator("#answer .status")).to_have_text("6 of 6 pictures described")
    rows = visit.tab.locator("#answer tbody tr")
    for row, (name, description) in zip(rows.all(), DESCRIPTIONS, strict=True):
        expect(row.get_by_role("rowheader")).to_have_text(name)
        expect(row.get_by_role("cell").first).to_have_text(description)
    visit.screenshot("table")
    visit.check_accessibility()
    with visit.tab.expect_download() as download:
        visit.tab.get_by_role("button", name="Save as CSV").click()
    saved = tmp_path / "answers.csv"
    download.value.save_as(saved)
    lines = saved.read_text(encoding="utf-8-sig").splitlines()
    assert lines[0] == '"Picture","Answer","Tokens","Time"'
    assert lines[1].startswith('"{}","{}",'.format(*DESCRIPTIONS[0]))


def test_pictures_are_pasted_tried_and_removed_one_by_one(visit: Visit) -> None:
    visit.put_down("paste", SAMPLES / "scene-00001.jpg")
    expect(visit.thumbs).to_have_count(1)
    expect(visit.tab.locator("#pictures .samples")).to_be_hidden()
    visit.add("scene-00002.jpg", "scene-00003.jpg")
    expect(visit.tab.locator("#pictures [role=status]")).to_have_text("3 pictures.")
    visit.tab.get_by_role("button", name="Remove scene-00002.jpg").press("Enter")
    images = visit.thumbs.get_by_role("img")
    assert [image.get_attribute("alt") for image in images.all()] == [
        "scene-00001.jpg",
        "scene-00003.jpg",
    ]
    expect(visit.tab.get_by_role("button", name="Remove scene-00003.jpg")).to_be_focused()
    for _ in range(2):
        visit.tab.keyboard.press("Enter")
    expect(visit.thumbs).to_have_count(0)
    expect(visit.tab.get_by_role("button", name="Add pictures")).to_be_focused()
    visit.tab.get_by_role("button", name="Example 1").click()
    expect(visit.thumbs.get_by_role("img")).to_have_attribute("alt", "scene-00000.jpg")


def test_what_is_no_picture_is_named(visit: Visit, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("some text")
    visit.put_down("drop", notes, SAMPLES / "scene-00001.jpg", media_type="text/plain")
    expect(visit.tab.locator("#pictures [role=status]")).to_have_text("notes.txt is not a picture.")
    visit.put_down("drop", notes)
    expect(visit.thumbs).to_have_count(1)
    visit.describe()
    alert = visit.tab.locator("#answer [role=alert]")
    expect(alert).to_contain_text("not a JPEG, PNG, WebP or GIF")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": "-1"}, "seed is -1"),
        ({"temperature": "warm"}, "temperature is 'warm'; it must be a number"),
        ({"longest_answer": "1000000"}, "max_tokens is 1000000; this model's context has 4096"),
        ({"most_pixels": "0"}, "max_pixels is 0; it must be"),
    ],
)
def test_a_refusal_is_shown_in_the_servers_words(
    visit: Visit, fields: dict[str, str], message: str
) -> None:
    visit.add("scene-00000.jpg")
    visit.describe(**fields)
    expect(visit.tab.locator("#answer [role=alert]")).to_contain_text(message)
    expect(visit.describe_button).to_be_enabled()


def test_nothing_is_asked_without_a_picture(visit: Visit) -> None:
    visit.describe_button.click()
    expect(visit.tab.locator("#answer")).to_contain_text("Add a picture first.")
    expect(visit.stop_button).to_be_hidden()


def test_style_and_language_go_along(visit: Visit) -> None:
    visit.add("scene-00000.jpg")
    visit.tab.get_by_label("Brief").check()
    visit.tab.get_by_label("Language").fill("Latin")
    visit.describe()
    visit.open("The same request from your code")
    code = visit.tab.get_by_role("region", name="curl")
    expect(code).to_contain_text("-F style=brief")
    expect(code).to_contain_text("-F language=Latin")


def test_the_servers_name_and_state_are_in_the_head(visit: Visit) -> None:
    expect(visit.tab.locator("#health [role=status]")).to_contain_text("ready")


def test_without_a_server_the_page_says_so(browser: Browser) -> None:
    with start_page("http://127.0.0.1:9") as alone, Visit.at(browser, alone.url) as visit:
        expect(visit.tab.locator("#health [role=status]")).to_contain_text("not reachable")
        visit.add("scene-00000.jpg")
        visit.describe()
        alert = visit.tab.locator("#answer [role=alert]")
        expect(alert).to_have_text("no server answers at http://127.0.0.1:9: is it running?")


def run(*command: str) -> str:
    """Run pasted lines where the pictures are; what they print."""
    ended = subprocess.run(command, cwd=SAMPLES, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
