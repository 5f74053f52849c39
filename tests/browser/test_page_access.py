"""The page for everybody: by keyboard, with a screen reader, in the dark, on a phone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from tests.browser.strange_server import TEXT
from tests.browser.visit import PHONE, Visit
from tests.serving import SAMPLES

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.browser.conftest import RunningPage
    from tests.browser.strange_server import StrangeServer

FOLDED = ("Sampling", "API key", "The same request from your code")


@pytest.mark.parametrize(
    ("name", "context"),
    [("light", {}), ("dark", {"color_scheme": "dark"}), ("phone", PHONE)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_axe_finds_nothing_serious_in_any_state(
    browser: Browser, strange_page: RunningPage, name: str, context: dict[str, Any]
) -> None:
    with Visit.at(browser, strange_page.url, **context) as visit:
        expect(visit.tab.locator("#pictures .samples")).to_be_visible()
        visit.check_accessibility()
        # All of a phone's page is taken as if by a mouse, without the camera's button.
        visit.screenshot(f"{name}-empty", whole=name != "phone")
        visit.add("scene-00000.jpg", "scene-00003.jpg")
        visit.ask()
        expect(visit.answer).to_contain_text("photograph")
        visit.check_accessibility()
        visit.wait_ended()
        for title in FOLDED:
            visit.open(title)
        visit.check_accessibility()
        visit.screenshot(f"{name}-done")
        visit.describe("break")
        visit.check_accessibility()


def test_a_phone_shows_everything_in_its_width(browser: Browser, strange_page: RunningPage) -> None:
    with Visit.at(browser, strange_page.url, **PHONE) as visit:
        expect(visit.tab.get_by_role("button", name="Take a photo")).to_be_visible()
        visit.put_down("paste", *([SAMPLES / "scene-00001.jpg"] * 5))
        expect(visit.thumbs).to_have_count(5)
        visit.describe("a" * 300)
        for title in FOLDED:
            visit.open(title)
        assert visit.tab.evaluate("() => document.documentElement.scrollWidth") == 390
        visit.tab.get_by_label("An answer for each").check()
        visit.describe()
        assert visit.tab.evaluate("() => document.documentElement.scrollWidth") == 390


def test_a_photo_is_taken_with_the_camera_of_the_phone(
    browser: Browser, strange_page: RunningPage
) -> None:
    with Visit.at(browser, strange_page.url, **PHONE) as visit:
        with visit.tab.expect_file_chooser() as chooser:
            visit.tab.get_by_role("button", name="Take a photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files(SAMPLES / "scene-00002.jpg")
        expect(visit.thumbs).to_have_count(1)


def test_the_keyboard_goes_through_the_page_in_the_order_of_its_use(strange_visit: Visit) -> None:
    strange_visit.add("scene-00000.jpg", "scene-00001.jpg")
    stops = [press(strange_visit, "Tab") for _ in range(13)]
    assert stops == [
        "Dark or light",
        "Remove scene-00000.jpg",
        "Remove scene-00001.jpg",
        "Add pictures",
        "Paste",
        "Several pictures: One answer about all of them",
        "Prompt",
        "Style: Plain",
        "Language",
        "Describe",
        "Sampling",
        "API key",
        "The same request from your code",
    ]


def test_a_request_by_keyboard_alone(strange_visit: Visit) -> None:
    strange_visit.add("scene-00000.jpg", "scene-00001.jpg")
    strange_visit.tab.get_by_label("One answer about all of them").focus()
    assert press(strange_visit, "ArrowRight") == "Several pictures: An answer for each"
    press(strange_visit, "ArrowLeft")
    press(strange_visit, "Tab")
    strange_visit.tab.keyboard.type("What is it?")
    press(strange_visit, "Control+Enter")
    expect(strange_visit.stop_button).to_be_visible()
    assert press(strange_visit, "Escape") == "Prompt"
    strange_visit.wait_ended()
    expect(strange_visit.tab.locator("#answer .status")).to_have_text("Stopped")
    strange_visit.describe_button.press("Enter")
    expect(strange_visit.stop_button).to_be_focused()
    strange_visit.wait_ended()
    expect(strange_visit.describe_button).to_be_focused()
    expect(strange_visit.answer).to_contain_text("nobody")


def test_a_screen_reader_is_told_the_progress_and_then_the_text(strange_visit: Visit) -> None:
    strange_visit.add("scene-00000.jpg")
    strange_visit.ask()
    status = strange_visit.tab.locator("#answer [role=status]")
    expect(strange_visit.answer).to_have_attribute("aria-busy", "true")
    expect(status).to_have_text("Writing")
    # Only what stays in the document can be a live region.
    strange_visit.tab.evaluate("() => (document.querySelector('#answer .text').kept = true)")
    strange_visit.wait_ended()
    expect(strange_visit.answer).to_have_attribute("aria-busy", "false")
    expect(status).to_have_text("Done")
    assert strange_visit.tab.evaluate("() => document.querySelector('#answer .text').kept")


def test_dark_follows_the_system_until_it_is_chosen_and_is_kept(
    browser: Browser, strange_page: RunningPage
) -> None:
    def is_dark(visit: Visit) -> bool:
        dark: bool = visit.tab.evaluate("() => document.body.classList.contains('dark')")
        return dark

    with Visit.at(browser, strange_page.url, color_scheme="dark") as visit:
        assert is_dark(visit)
        visit.tab.get_by_role("button", name="Dark or light").click()
        assert not is_dark(visit)
        visit.reload()
        visit.tab.wait_for_function("() => !document.body.classList.contains('dark')")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("too many", "512 requests wait; try again in 7 s"),
        ("a gateway's page", "the server answered 502 Bad Gateway"),
        ("break", "the device is lost"),
    ],
)
def test_what_went_wrong_is_announced(strange_visit: Visit, prompt: str, message: str) -> None:
    strange_visit.add("scene-00000.jpg")
    strange_visit.describe(prompt)
    expect(strange_visit.tab.get_by_role("alert")).to_contain_text(message)
    if prompt == "break":
        assert TEXT.replace("*", "").startswith(strange_visit.answer.inner_text().strip())


def test_the_text_is_shown_with_its_marks_and_without_its_html(strange_visit: Visit) -> None:
    strange_visit.add("scene-00000.jpg")
    strange_visit.describe()
    expect(strange_visit.answer.locator("strong")).to_have_text("photograph")
    expect(strange_visit.answer.locator("li")).to_have_count(2)
    expect(strange_visit.answer).to_contain_text("<b>nobody</b>")


def test_cancelling_reaches_any_server(strange: StrangeServer, strange_visit: Visit) -> None:
    before = strange.num_cancelled
    strange_visit.add("scene-00000.jpg", "scene-00001.jpg", "scene-00002.jpg")
    strange_visit.tab.get_by_label("An answer for each").check()
    strange_visit.ask()
    expect(strange_visit.answer.first).to_contain_text("photograph")
    strange_visit.stop_button.click()
    strange_visit.wait_ended()
    strange_visit.tab.wait_for_timeout(300)
    assert strange.num_cancelled == before + 3
    expect(strange_visit.tab.locator("#answer .status")).to_have_text("0 of 3 pictures described")


def press(visit: Visit, key: str) -> str:
    """Press a key; the name of what has the focus then, with its group's."""
    visit.tab.keyboard.press(key)
    name: str = visit.tab.evaluate(
        """() => {
            const focused = document.activeElement;
            const group = focused.closest("[role=radiogroup]")?.getAttribute("aria-label");
            const label = focused.closest("label") ?? focused.labels?.[0];
            const text = label?.querySelector("span") ?? label ?? focused;
            const name = focused.getAttribute("aria-label") ?? text.innerText.split("\\n")[0];
            return group ? `${group}: ${name.trim()}` : name.trim();
        }"""
    )
    return name
