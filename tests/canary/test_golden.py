"""Known pictures: asked of a real server, and what counts as wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from model.canary.errors import UsageError
from model.canary.golden import Case, Golden, Unanswered, load_cases, overlap, wrong_answers
from tests.serving import SAMPLES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serving import RunningServer

CASE = Case("a.jpg", b"picture", None, "A red square.")


def ask(answer: Callable[[httpx.Request], httpx.Response], **golden: Any) -> str:
    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://canary")
    return wrong_answers(client, [CASE], Golden(path="", **golden), lambda: None)


def described(text: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(200, json={"description": text})


def test_a_real_server_is_right_about_what_it_said_and_wrong_about_what_it_did_not(
    server: RunningServer, tmp_path: Path
) -> None:
    picture = (SAMPLES / "scene-00000.jpg").read_bytes()
    (tmp_path / "scene.jpg").write_bytes(picture)
    request = {"image": ("scene.jpg", picture)}
    said = httpx.post(
        f"{server.http_url}/api/v1/describe", files=request, data={"temperature": "0"}, timeout=60
    ).json()["description"]
    golden = Golden(path=str(tmp_path / "golden.jsonl"))

    def write(answer: str) -> list[Case]:
        case = {"image": "scene.jpg", "prompt": "Describe this image.", "answer": answer}
        (tmp_path / "golden.jsonl").write_text(json.dumps(case) + "\n\n")
        return load_cases(golden)

    asked: list[int] = []
    with httpx.Client(base_url=f"{server.http_url}/") as client:
        assert wrong_answers(client, write(said), golden, lambda: asked.append(1)) == ""
        fault = wrong_answers(client, write("A whale."), golden, lambda: asked.append(1))
    assert "golden set: 1 of 1 are wrong: scene.jpg: expected 'A whale.', got " in fault
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("expected", "answer", "share"),
    [
        ("A red square.", "A red square.", 1.0),
        ("A red square.", "a  Red\nsquare.", 1.0),
        ("one two", "two one", 0.999),
        ("a b c d", "a b c x", 0.75),
        ("a a a b", "a b b b", 0.5),
        ("a", "b", 0.0),
        ("a", "", 0.0),
    ],
)
def test_overlap_counts_words(expected: str, answer: str, share: float) -> None:
    assert overlap(expected, answer) == pytest.approx(share)


@pytest.mark.parametrize(
    ("min_overlap", "answer", "wrong"),
    [(1.0, "A red square!", True), (0.6, "A red square!", False), (0.9, "A red circle.", True)],
)
def test_how_close_an_answer_must_be(min_overlap: float, answer: str, wrong: bool) -> None:
    assert bool(ask(described(answer), min_overlap=min_overlap)) is wrong


def test_some_may_be_wrong() -> None:
    assert ask(described("no"), max_wrong=0)
    assert not ask(described("no"), max_wrong=1)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_an_error_is_a_wrong_answer(status: int) -> None:
    fault = ask(lambda request: httpx.Response(status))
    assert fault.endswith(f"expected 'A red square.', got status {status}")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}"])
def test_an_answer_without_a_description_is_wrong(body: bytes) -> None:
    assert "got no description" in ask(lambda request: httpx.Response(200, content=body))


def refuse(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Connection refused", request=request)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda request: httpx.Response(429), id="busy"),
        pytest.param(lambda request: httpx.Response(503), id="starting"),
        pytest.param(refuse, id="not there"),
    ],
)
def test_not_being_answered_says_nothing(
    answer: Callable[[httpx.Request], httpx.Response],
) -> None:
    with pytest.raises(Unanswered, match=r"^a\.jpg: "):
        ask(answer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("{}", "line 1 has no image and answer"),
        ('\n["a"]', "line 2 has no image and answer"),
        ("not json", "line 1 has no image and answer"),
        ('{"image": "absent.jpg", "answer": "a"}', "absent.jpg: No such file"),
    ],
)
def test_a_golden_set_that_cannot_be_read_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "golden.jsonl").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_cases(Golden(path=str(tmp_path / "golden.jsonl")))


def test_the_bundled_samples_are_a_golden_set() -> None:
    cases = load_cases(Golden(path=str(SAMPLES / "captions.jsonl")))
    assert len(cases) > 10
    assert all(case.image and case.answer for case in cases)
