"""Known pictures, described by the canary alone and compared with what is expected.

They are asked of the canary's own service, never through the weighted route: there the stable one
would answer for it.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
from pydantic import Field

from model.canary.errors import UsageError
from model.canary.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

# Busy, starting or behind a gateway that gave up: not an answer, right or wrong.
NO_ANSWER: Final = frozenset({408, 429, 502, 503, 504})
ANSWER_SECONDS: Final = 120.0
SHOWN_CHARACTERS: Final = 120
BELOW_ONE: Final = 0.999


class Golden(Frozen):
    """Which pictures are asked about, and how close an answer must be.

    path: JSON lines of image, prompt (optional) and answer, as `python -m model.demo scenes` writes
    them; images beside it
    min_overlap: of the words, 0 to 1; 1 asks for the same text
    max_wrong: so many may be worse than that
    url: where the canary alone answers; None: its service, through the API server
    """

    path: str
    min_overlap: float = Field(1.0, ge=0, le=1)
    max_wrong: int = Field(0, ge=0)
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One picture and what is expected of it."""

    name: str
    image: bytes
    prompt: str | None
    answer: str


class Unanswered(Exception):
    """The golden set could not be asked: that says nothing about the answers."""


def load_cases(golden: Golden) -> list[Case]:
    """The golden set; raises UsageError with file and line."""
    path = Path(golden.path)
    try:
        lines = path.read_text("utf-8").splitlines()
        cases = [_case(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    except OSError as e:
        raise UsageError(f"golden set: {e.filename}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"golden set: {path} is not UTF-8") from e
    if not cases:
        raise UsageError(f"golden set: {path} is empty")
    return cases


def _case(path: Path, number: int, line: str) -> Case:
    try:
        fields = json.loads(line)
        name, answer, prompt = fields["image"], fields["answer"], fields.get("prompt")
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise UsageError(f"golden set: {path} line {number} has no image and answer") from e
    return Case(name, (path.parent / name).read_bytes(), prompt, answer)


def wrong_answers(
    client: httpx.Client, cases: Seq[Case], golden: Golden, between: Callable[[], None]
) -> str:
    """The wrong answers, in words, where they are too many; else empty. Raises Unanswered.

    client: its base URL is the canary's own; between: called after every answer
    """
    wrong: list[str] = []
    for case in cases:
        fault = _fault(client, case, golden.min_overlap)
        between()
        if fault:
            wrong.append(f"{case.name}: {fault}")
    if len(wrong) <= golden.max_wrong:
        return ""
    return f"golden set: {len(wrong)} of {len(cases)} are wrong: {wrong[0]}"


def _fault(client: httpx.Client, case: Case, min_overlap: float) -> str:
    """What is wrong with the canary's answer; empty where nothing is. Raises Unanswered."""
    body: dict[str, Any] = {"image": base64.b64encode(case.image).decode(), "temperature": 0}
    if case.prompt is not None:
        body["prompt"] = case.prompt
    try:
        response = client.post("api/v1/describe", json=body, timeout=ANSWER_SECONDS)
    except httpx.HTTPError as e:
        raise Unanswered(f"{case.name}: {str(e) or type(e).__name__}") from e
    if response.status_code in NO_ANSWER:
        raise Unanswered(f"{case.name}: {response.status_code} {response.reason_phrase}")
    if response.status_code != httpx.codes.OK:
        return f"expected {_shown(case.answer)}, got status {response.status_code}"
    try:
        answer = str(response.json()["description"])
    except (ValueError, LookupError, TypeError):
        return f"expected {_shown(case.answer)}, got no description"
    share = overlap(case.answer, answer)
    if share >= min_overlap:
        return ""
    return (
        f"expected {_shown(case.answer)}, got {_shown(answer)} ({share:.2f} of the words; "
        f"at least {min_overlap:.2f})"
    )


def overlap(expected: str, answer: str) -> float:
    """How much of two texts is the same: 1 for the same words in the same order, else the share of
    words that both have (F1, each as often as it is there), just below 1 for the same words in
    another order.
    """
    words, others = expected.casefold().split(), answer.casefold().split()
    if words == others:
        return 1.0
    common = (Counter(words) & Counter(others)).total()
    return min(2 * common / (len(words) + len(others)), BELOW_ONE)


def _shown(text: str) -> str:
    short = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
    return repr(short)
