"""One person's browser tab: what they do on the page, and what they see there."""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.serving import ROOT, SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from playwright.sync_api import Browser, ConsoleMessage, Page

SCREENSHOTS: Final = ROOT / "build" / "page"

PHONE: Final = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 1,
}

# A file in the hands of the browser, put down where an event of a kind says.
PUT_DOWN: Final = """
([kind, files]) => {
  const transfer = new DataTransfer();
  for (const { name, type, content } of files) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
  }
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true })
    : new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}
"""
# Every text that the answer had on its way, each once.
WATCH: Final = """
() => {
  globalThis.texts = [];
  const watched = { subtree: true, childList: true, characterData: true };
  new MutationObserver(() => {
    const text = document.querySelector("#answer .text")?.innerText ?? "";
    if (text && text !== texts.at(-1)) texts.push(text);
  }).observe(document.querySelector("#answer"), watched);
}
"""


class Visit:
    """A tab with the page in it."""

    def __init__(self, tab: Page, errors: list[str]) -> None:
        self.tab = tab
        self._errors = errors
        self.answer = tab.locator("#answer .text")
        self.thumbs = tab.locator("#pictures .thumb")
        self.entries = tab.locator("#entries [data-restore]")
        self.describe_button = tab.get_by_role("button", name="Describe", exact=True)
        self.stop_button = tab.get_by_role("button", name="Stop", exact=True)

    @classmethod
    @contextmanager
    def at(cls, browser: Browser, url: str, **context: Any) -> Iterator[Visit]:
        """Open the page in a profile of its own.

        At the end: nothing was fetched from anywhere else, and the browser reported no error.
        """
        context = {"viewport": {"width": 1280, "height": 900}, **context}
        profile = browser.new_context(**context)
        profile.set_default_timeout(20_000)
        expect.set_options(timeout=20_000)
        foreign: list[str] = []
        errors: list[str] = []
        origin = urlsplit(url).netloc

        def check(address: str) -> None:
            parts = urlsplit(address)
            if parts.scheme not in {"data", "blob"} and parts.netloc != origin:
                foreign.append(address)

        profile.on("request", lambda request: check(request.url))

        def listen(message: ConsoleMessage) -> None:
            if message.type == "error":
                errors.append(f"{message.text} {message.location.get('url')}")

        profile.on("console", listen)
        profile.on("weberror", lambda error: errors.append(str(error.error)))
        tab = profile.new_page()
        tab.goto(url)
        visit = cls(tab, errors)
        visit.wait_usable()
        try:
            yield visit
        finally:
            profile.close()
        assert not foreign, f"fetched from elsewhere: {foreign}"
        assert not errors, f"the browser reports: {errors}"

    def wait_usable(self) -> None:
        """Wait until the page knows its pictures, of which there are none yet, and is whole.

        Seen once in many runs: Gradio leaves out a part whose script did not come. A person would
        load the page again.
        """
        expect(self.describe_button).to_be_visible()
        parts = self.tab.get_by_role("button", name="Sampling", exact=True)
        try:
            expect(parts).to_be_visible()
        except AssertionError:
            self.tab.reload()
            expect(parts).to_be_visible()
        expect(self.tab.locator("#pictures [data-count='0']")).to_be_visible()

    def reload(self) -> None:
        """Load the page again; Gradio's lost streams of the page that is left are no errors."""
        before = len(self._errors)
        self.tab.reload()
        self.wait_usable()
        del self._errors[before:]

    def add(self, *names: str) -> None:
        """Choose sample pictures as files."""
        before = self.thumbs.count()
        self.tab.set_input_files("#pictures .chooser", [SAMPLES / name for name in names])
        expect(self.thumbs).to_have_count(before + len(names))

    def put_down(self, kind: str, *paths: Path, media_type: str = "image/jpeg") -> None:
        """Drop files on the page, or paste them."""
        files = [
            {
                "name": path.name,
                "type": media_type,
                "content": base64.b64encode(path.read_bytes()).decode(),
            }
            for path in paths
        ]
        self.tab.evaluate(PUT_DOWN, [kind, files])

    def describe(self, prompt: str = "", **options: str) -> None:
        """Fill prompt and sampling, ask, and wait for the end."""
        self.ask(prompt, **options)
        self.wait_ended()

    def ask(self, prompt: str = "", **options: str) -> None:
        """Fill prompt and sampling, and ask."""
        self.tab.get_by_label("Prompt", exact=True).fill(prompt)
        if options:
            self.open("Sampling")
        for label, value in options.items():
            self.tab.get_by_label(label.replace("_", " ").capitalize()).fill(value)
        self.describe_button.click()

    def wait_ended(self) -> None:
        """Wait until nothing more comes."""
        expect(self.stop_button).to_be_hidden()
        expect(self.tab.locator("#answer .status:is(.done, .stopped, .failed)")).to_be_visible()

    def open(self, title: str) -> None:
        """Open a part that is folded away, if it is.

        Gradio gives its fields the values that it kept for them 10 to 40 ms after they appear, over
        what was typed by then: sooner than a person could, not sooner than a test.
        """
        button = self.tab.get_by_role("button", name=title, exact=True)
        if button.get_attribute("aria-expanded") == "false":
            button.click()
            self.tab.evaluate("() => new Promise((done) => setTimeout(done, 200))")
        expect(button).to_have_attribute("aria-expanded", "true")

    def watch_text(self) -> None:
        """Record each text that the answer has from now on, for `texts`."""
        self.tab.evaluate(WATCH)

    def texts(self) -> list[str]:
        """What was recorded."""
        texts: list[str] = self.tab.evaluate("() => texts")
        return texts

    def code(self, language: str) -> str:
        """Press the copy button of a language; what is in the clipboard then."""
        self.open("The same request from your code")
        self.tab.get_by_role("tab", name=language).click()
        self.tab.get_by_role("button", name=f"Copy {language}").click()
        expect(self.tab.get_by_role("button", name="Copied")).to_be_visible()
        text: str = self.tab.evaluate("() => navigator.clipboard.readText()")
        return text

    def screenshot(self, name: str, *, whole: bool = True) -> None:
        """Keep a picture of the page for people to look at: all of it, or what is in view."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.tab.mouse.move(0, 0)
        self.tab.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=whole)

    def check_accessibility(self) -> None:
        """No violation that axe calls serious or critical."""
        found = Axe().run(self.tab).response["violations"]
        serious = [
            (violation["id"], [node["html"] for node in violation["nodes"]])
            for violation in found
            if violation["impact"] in {"serious", "critical"}
        ]
        assert serious == [], json.dumps(serious, indent=2)


def captions(prompt: str) -> Sequence[tuple[str, str]]:
    """The samples that have a known answer to a prompt, with it."""
    lines = (SAMPLES / "captions.jsonl").read_text().splitlines()
    known = [json.loads(line) for line in lines]
    return [(one["image"], one["answer"]) for one in known if one["prompt"] == prompt]
