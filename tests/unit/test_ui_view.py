"""What stands on the page: everything that was said, and nothing that runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from model.ui import view
from model.ui.answers import Answer, Phase
from model.ui.api import Health
from model.ui.ask import OPTIONS, Ask, Picture

HOSTILE = "<img src=x onerror=alert(1)> ${alert(1)} {{x}} \"'"
DONE = Answer(
    Phase.DONE,
    "A **red** square.",
    finish_reason="stop",
    images=({"width": 642, "height": 630, "seen_width": 192, "seen_height": 192, "tokens": 36},),
    usage={"prompt_tokens": 53, "image_tokens": 36, "completion_tokens": 31},
    timings={"queue_ms": 0.159, "first_text_ms": 47.8, "generate_ms": 305.7, "total_ms": 1320.03},
)


def ask(*names: str, prompt: str = "", each: bool = False) -> Ask:
    return Ask(
        pictures=tuple(Picture(Path("kept"), name) for name in names),
        prompt=prompt,
        style="",
        language="",
        each=each,
        options=dict.fromkeys((option.name for option in OPTIONS), ""),
    )


def test_an_answer_shows_its_text_tokens_times_and_sizes() -> None:
    html = view.answers_html(ask("a.jpg"), [DONE])
    for shown in (
        "A <strong>red</strong> square.",
        "31 tokens",
        "116 tokens/s",
        "0.2 ms",
        "48 ms",
        "1.3 s",
        "642 × 630, seen as 192 × 192",
    ):
        assert shown in html


def test_a_text_cut_short_says_so() -> None:
    html = view.answers_html(ask("a.jpg"), [replace(DONE, finish_reason="length")])
    assert "Done, cut at the longest answer" in html


@pytest.mark.parametrize(
    "html",
    [
        view.answers_html(ask("a.jpg"), [replace(DONE, text=HOSTILE)]),
        view.answers_html(ask("a.jpg"), [Answer().failed(HOSTILE)]),
        view.answers_html(ask(HOSTILE, "b", each=True), [replace(DONE, text=HOSTILE)] * 2),
        view.history_html([(ask(HOSTILE, prompt=HOSTILE), [replace(DONE, text=HOSTILE)])]),
        view.health_html(Health(HOSTILE, HOSTILE)),
        view.code_html(HOSTILE, "curl"),
    ],
)
def test_what_others_wrote_is_text(html: str) -> None:
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


@pytest.mark.parametrize(
    "text", ["[click](https://x.org)", "![p](https://x.org/p.png)", "<https://x.org>"]
)
def test_a_model_can_neither_link_nor_load(text: str) -> None:
    html = view.answers_html(ask("a.jpg"), [replace(DONE, text=text)])
    assert "href" not in html
    assert "<img" not in html


def test_a_screen_reader_hears_the_text_once_it_is_whole() -> None:
    writing = view.answers_html(ask("a.jpg"), [Answer(Phase.WRITING, "A red")])
    assert 'aria-live="polite" aria-busy="true"' in writing
    assert 'aria-busy="false"' in view.answers_html(ask("a.jpg"), [DONE])
    assert 'role="alert"' in view.answers_html(ask("a.jpg"), [Answer().failed("no")])


def test_a_table_counts_what_is_described() -> None:
    html = view.answers_html(ask("a.jpg", "b.jpg", each=True), [DONE, Answer(Phase.WAITING)])
    assert "1 of 2 pictures described" in html
    assert "data-save-table" not in html
    assert "data-save-table" in view.answers_html(ask("a.jpg", "b.jpg", each=True), [DONE] * 2)


def test_the_newest_request_is_first_in_the_history() -> None:
    html = view.history_html([(ask("old.jpg"), [DONE]), (ask("new.jpg", "x"), [DONE])])
    assert html.index("new.jpg and 1 more") < html.index("old.jpg")
    assert html.index('data-restore="1"') < html.index('data-restore="0"')
    assert "A red square." in html


@pytest.mark.parametrize(
    ("milliseconds", "expected"), [(0.159, "0.2 ms"), (47.8, "48 ms"), (1320.0, "1.3 s")]
)
def test_a_duration_is_short(milliseconds: float, expected: str) -> None:
    assert view.duration(milliseconds) == expected
