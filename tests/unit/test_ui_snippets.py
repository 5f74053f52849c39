"""The lines that people copy from the page, pasted into a shell and into Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.ui import snippets
from model.ui.ask import OPTIONS, Ask, Picture
from tests.browser.strange_server import KEY, Asked, StrangeServer, start_strange_server

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = [
    "photo.jpg",
    "my photo, at sea;type=text.jpg",
    'a "quoted" \\ name.jpg',
    "$(touch owned) `x` it's.jpg",
    "-o.jpg",
    "größer 漢字.jpg",
]
PROMPTS = [
    "",
    "How many?",
    "@/etc/hostname",
    "</etc/hostname",
    'it\'s $HOME; `id` "quoted"\nand a second line',
    "x;type=text/html",
]


@pytest.fixture(scope="module")
def strange() -> Iterator[StrangeServer]:
    with start_strange_server() as running:
        yield running


@pytest.mark.parametrize("language", ["curl", "python"])
@pytest.mark.parametrize(
    ("names", "prompt"),
    [*((NAMES[:1], prompt) for prompt in PROMPTS), (NAMES, "How many?")],
)
def test_pasted_lines_send_what_the_page_sent(
    strange: StrangeServer, tmp_path: Path, language: str, names: list[str], prompt: str
) -> None:
    asked = ask(names, prompt, each=False)
    [sent] = run(strange, tmp_path, language, asked)
    assert sent.files == names
    expected = {"prompt": prompt, "style": "brief", "seed": "7", "temperature": "-0.5"}
    assert sent.fields == {name: text for name, text in expected.items() if text}
    assert sent.authorization == f"Bearer {KEY}"
    assert sorted(os.listdir(tmp_path)) == sorted(names), "a name or prompt was run"


@pytest.mark.parametrize("language", ["curl", "python"])
def test_an_answer_for_each_is_a_request_for_each(
    strange: StrangeServer, tmp_path: Path, language: str
) -> None:
    sent = run(strange, tmp_path, language, ask(NAMES[:3], "How many?", each=True))
    assert [request.files for request in sent] == [[name] for name in NAMES[:3]]


@pytest.mark.parametrize("with_key", [True, False])
def test_the_key_itself_is_never_in_them(with_key: bool) -> None:
    calls = ask(["a.jpg"], "x", each=False).calls()
    for code in (
        snippets.curl("http://x", calls, with_key=with_key),
        snippets.python("http://x", calls, with_key=with_key),
    ):
        assert ("API_KEY" in code) is with_key


def ask(names: list[str], prompt: str, *, each: bool) -> Ask:
    options = dict.fromkeys((option.name for option in OPTIONS), "")
    return Ask(
        pictures=tuple(Picture(Path("kept"), name) for name in names),
        prompt=prompt,
        style="brief",
        language="",
        each=each,
        options={**options, "seed": "7", "temperature": "-0.5"},
    )


def run(strange: StrangeServer, folder: Path, language: str, asked: Ask) -> list[Asked]:
    """Paste the lines where the pictures are, each holding its name; what arrived at the server."""
    for picture in asked.pictures:
        (folder / picture.name).write_text(picture.name)
    before = len(strange.asked)
    if language == "curl":
        command = ["bash", "-euc", snippets.curl(strange.url, asked.calls(), with_key=True)]
    else:
        script = snippets.python(strange.url, asked.calls(), with_key=True)
        command = [sys.executable, "-c", script]
    subprocess.run(
        command, cwd=folder, env={**os.environ, "API_KEY": KEY}, check=True, capture_output=True
    )
    return strange.asked[before:]
