"""Logprobs in OpenAI's shapes: the tokens that are told are the text that is told."""

from __future__ import annotations

import math

import pytest
from tokenizers import Tokenizer

from model.demo import CHECKPOINT_DIR
from model.request import FinishReason, TokenLogprobs
from model.serving.detokenizer import IncrementalDetokenizer, TokenBytes
from model.serving.generation import TextDelta
from model.serving.openai_logprobs import (
    TokenAligner,
    Told,
    chat_logprobs,
    completion_logprobs,
)

TOKENIZER = Tokenizer.from_file(str(CHECKPOINT_DIR / "tokenizer.json"))
TOKENS = TokenBytes(TOKENIZER)
END = TOKENIZER.token_to_id("<|im_end|>")


def deltas(
    text: str, reason: FinishReason, stop: tuple[str, ...] = (), *, ends: bool = False
) -> list[TextDelta]:
    """What a generation tells of a text, token by token."""
    detokenizer = IncrementalDetokenizer(TOKENS, stop)
    ids = TOKENIZER.encode(text).ids + [END] * ends
    told: list[tuple[int, TokenLogprobs]] = []
    result = []
    for i, token_id in enumerate(ids):
        added = detokenizer.push(token_id)
        told.append((token_id, TokenLogprobs(-float(i), ())))
        last = i == len(ids) - 1 or detokenizer.stopped
        if last and not detokenizer.stopped:
            added += detokenizer.flush()
        if added or last:
            result.append(TextDelta(added, i + 1, reason if last else None, tuple(told)))
            told.clear()
        if last:
            break
    return result


def told_by(items: list[TextDelta]) -> tuple[str, str, list[int]]:
    """The text, the text of the tokens told, and how much of the latter each delta told."""
    aligner = TokenAligner(TOKENS)
    told = [aligner.push(delta) for delta in items]
    data = b"".join(TOKENS[one.token_id] for some in told for one in some)
    text = "".join(delta.text for delta in items)
    return text, data.decode(errors="replace"), [len(some) for some in told]


@pytest.mark.parametrize("text", ["A small red square.", "naïve 好的 👩‍👩‍👧", ""])
def test_an_answer_that_ends_tells_its_text_and_not_its_end(text: str) -> None:
    said, tokens, _ = told_by(deltas(text, FinishReason.STOP, ends=True))
    assert said == tokens == text


def test_an_answer_that_is_cut_off_tells_everything() -> None:
    ids = TOKENIZER.encode("好").ids[:-1]
    delta = TextDelta(
        "\ufffd", 9, FinishReason.LENGTH, tuple((i, TokenLogprobs(0.0, ())) for i in [*ids, END])
    )
    assert [one.token_id for one in TokenAligner(TOKENS).push(delta)] == [*ids, END]


@pytest.mark.parametrize("stop", ["square", " square", "quare on", "are"])
def test_the_tokens_of_a_stop_string_are_not_told(stop: str) -> None:
    said, tokens, _ = told_by(deltas("A red square on it", FinishReason.STOP, (stop,)))
    assert said == "A red square on it".split(stop)[0]
    # A token in whose middle the stop string begins is told whole.
    assert tokens.startswith(said)
    assert len(tokens) - len(said) <= len("square")


def test_tokens_wait_with_the_text_that_a_stop_string_might_claim() -> None:
    items = deltas("A red squid", FinishReason.LENGTH, ("red square",))
    said, tokens, counts = told_by(items)
    assert said == tokens == "A red squid"
    for delta, count in zip(items[:-1], counts, strict=False):
        assert (count > 0) is bool(delta.text)


def test_bytes_that_are_no_text_do_not_let_the_end_be_told() -> None:
    half = TOKENIZER.encode("好").ids[0]
    delta = TextDelta(
        "\ufffd",
        2,
        FinishReason.STOP,
        ((half, TokenLogprobs(0.0, ())), (END, TokenLogprobs(0.0, ()))),
    )
    assert [one.token_id for one in TokenAligner(TOKENS).push(delta)] == [half]


def test_the_shape_of_chats() -> None:
    [a, b] = (TOKENIZER.encode(text).ids[0] for text in ("A", "é"))
    half = TOKENIZER.encode("好").ids[0]
    told = [Told(0, a, TokenLogprobs(-0.5, ((a, -0.5), (half, -math.inf), (b, -2.0))))]
    assert chat_logprobs(told, 2, TOKENS) == {
        "content": [
            {
                "token": "A",
                "logprob": -0.5,
                "bytes": [65],
                "top_logprobs": [
                    {"token": "A", "logprob": -0.5, "bytes": [65]},
                    {"token": "\ufffd", "logprob": -9999.0, "bytes": list(TOKENS[half])},
                ],
            }
        ],
        "refusal": None,
    }


def test_the_shape_of_completions() -> None:
    ids = TOKENIZER.encode("A好").ids
    told = [Told(0, one, TokenLogprobs(-1.0, ((ids[0], -0.5),))) for one in ids]
    found = completion_logprobs(told, 1, TOKENS, text_offset=10)
    assert found["tokens"][0] == "A"
    assert found["tokens"][1].startswith("bytes:\\x")
    assert found["text_offset"][:2] == [10, 11]
    assert set(found["text_offset"][2:]) <= {12}
    assert found["token_logprobs"] == [-1.0] * len(ids)
    assert found["top_logprobs"][0] == {"A": -1.0}
    assert found["top_logprobs"][1] == {"A": -0.5, found["tokens"][1]: -1.0}
