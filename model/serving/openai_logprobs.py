"""Logprobs in OpenAI's two shapes, and which of them go with which text.

A token is told with the text it begins in. A token that ends the answer and shows none of itself in
it (an end token, the last of a stop string) is not told at all: the tokens told are the text.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from model.request import FinishReason, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Seq

    from model.serving.detokenizer import TokenBytes
    from model.serving.generation import TextDelta

# JSON has no infinity; OpenAI's own stand-in for it.
LEAST_LOGPROB: Final = -9999.0


class Told(NamedTuple):
    """A token and its logprobs; start: where it begins, in bytes of the answer."""

    start: int
    token_id: int
    logprobs: TokenLogprobs


class TokenAligner:
    """Of one answer: the tokens that go with each of its deltas.

    silent: tell also those that show nothing of themselves; whoever reads a prompt's tokens with
    the answer's counts them
    """

    def __init__(self, token_bytes: TokenBytes, *, silent: bool = False) -> None:
        self._token_bytes = token_bytes
        self._silent = silent
        self._waiting: deque[Told] = deque()
        self._num_written = 0
        self._num_said = 0

    def push(self, delta: TextDelta) -> list[Told]:
        """The tokens that begin in the text up to the end of this delta, and were not told yet."""
        for token_id, logprobs in delta.logprobs:
            self._waiting.append(Told(self._num_written, token_id, logprobs))
            self._num_written += self._width(token_id)
        self._num_said += len(delta.text.encode())
        stops = delta.finish_reason is FinishReason.STOP
        if stops and not self._silent:
            self._drop_silent()
        whole = delta.finish_reason is FinishReason.LENGTH or (stops and self._silent)
        told = []
        while self._waiting and (whole or self._waiting[0].start < self._num_said):
            told.append(self._waiting.popleft())
        return told

    def _width(self, token_id: int) -> int:
        special = token_id in self._token_bytes.special_ids
        return 0 if special else len(self._token_bytes[token_id])

    def _drop_silent(self) -> None:
        # By their ids: of bytes that are no UTF-8, the text has more than the tokens.
        while self._waiting and not self._width(self._waiting[-1].token_id):
            self._waiting.pop()


def chat_logprobs(told: Iterable[Told], num_top: int, token_bytes: TokenBytes) -> dict[str, Any]:
    """As chat completions have them; num_top: most probable tokens of each."""
    return {
        "content": [
            _chat_token(one.token_id, one.logprobs.logprob, token_bytes)
            | {
                "top_logprobs": [
                    _chat_token(token_id, logprob, token_bytes)
                    for token_id, logprob in one.logprobs.top[:num_top]
                ]
            }
            for one in told
        ],
        "refusal": None,
    }


def completion_logprobs(
    told: Seq[Told], num_top: int, token_bytes: TokenBytes, text_offset: int
) -> dict[str, Any]:
    """As completions have them.

    text_offset: characters of the choice's text before the first of these tokens
    """
    tokens = [name_of(token_bytes[one.token_id]) for one in told]
    offsets = []
    for one in told:
        offsets.append(text_offset)
        text_offset += num_characters(one.token_id, token_bytes)
    return {
        "text_offset": offsets,
        "token_logprobs": [finite(one.logprobs.logprob) for one in told],
        "tokens": tokens,
        "top_logprobs": [
            top_logprobs(one.token_id, one.logprobs, num_top, token_bytes) for one in told
        ],
    }


def top_logprobs(
    token_id: int, told: TokenLogprobs, num_top: int, token_bytes: TokenBytes
) -> dict[str, float]:
    """By the tokens' text: of the most probable ones and of the one that came."""
    return {
        name_of(token_bytes[one]): finite(logprob)
        for one, logprob in (*told.top[:num_top], (token_id, told.logprob))
    }


def _chat_token(token_id: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    data = token_bytes[token_id]
    return {
        "token": data.decode(errors="replace"),
        "logprob": finite(logprob),
        "bytes": list(data),
    }


def finite(logprob: float) -> float:
    """As JSON can say it."""
    return max(logprob, LEAST_LOGPROB)


def name_of(data: bytes) -> str:
    """A token as completions write it: parts of a character by their bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def num_characters(token_id: int, token_bytes: TokenBytes) -> int:
    """Characters of the answer that begin in a token; special tokens are not in it."""
    return 0 if token_id in token_bytes.special_ids else num_letters(token_bytes[token_id])


def num_letters(data: bytes) -> int:
    """Characters that begin in a piece of UTF-8."""
    return sum(byte & 0xC0 != 0x80 for byte in data)
