"""What travels between the floors: the one request that every protocol makes, the one stream it
reads.

Knows no protocol, no tensor library and no model: pictures are uint8 arrays, prompts are token ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from model.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from model.errors import ServingError

MAX_TOKENS_LIMIT = 1 << 20
MAX_SEED = (1 << 63) - 1
MAX_PENALTY = 2.0
MAX_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_STOP_TOKENS = 1024
MAX_LOGPROBS = 20
# (token, logprob) pairs that one answer tells of its prompts: some 8 MB of JSON.
MAX_PROMPT_LOGPROBS = 1 << 17

# What each sampling parameter may be, both ends included.
RANGES: Final = {
    "max_tokens": (1, MAX_TOKENS_LIMIT),
    "min_tokens": (0, MAX_TOKENS_LIMIT),
    "temperature": (0.0, 10.0),
    "top_k": (0, MAX_TOKENS_LIMIT),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-MAX_PENALTY, MAX_PENALTY),
    "frequency_penalty": (-MAX_PENALTY, MAX_PENALTY),
    "seed": (0, MAX_SEED),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
# And those that must be above 0: at most.
MOST_ABOVE_ZERO: Final = {"top_p": 1.0, "repetition_penalty": 10.0}


class GrammarLimits(NamedTuple):
    """What llguidance may spend on one grammar, by its own names (LLParserLimits).

    Judged twice: where a grammar is taken from the client, and where sequences follow it.
    """

    max_items_in_row: int = 10_000
    initial_lexer_fuel: int = 1_000_000
    step_lexer_fuel: int = 100_000
    step_max_items: int = 50_000
    max_lexer_states: int = 20_000
    max_grammar_size: int = 200_000
    # A grammar is the client's: it is not told to the log.
    verbose_errors: bool = False


GRAMMAR_LIMITS = GrammarLimits()


@dataclass(frozen=True, slots=True, eq=False)
class ImageInput:
    """One picture as the vision tower takes it: decoded, turned upright, resized, not yet
    normalised.

    pixels: [height, width, 3] uint8 RGB, both sides multiples of patch_size * merge_size
    grid_height, grid_width: sides in patches (before the merge)
    offset: index of its first placeholder among the prompt's tokens
    num_tokens: placeholders, grid_height * grid_width / merge_size ** 2
    digest: of the file and the size it was resized to, what caches know the picture by
    source_width, source_height: pixels as sent, after EXIF orientation
    """

    pixels: NDArray[np.uint8]
    grid_height: int
    grid_width: int
    offset: int
    num_tokens: int
    digest: bytes
    source_width: int
    source_height: int

    @property
    def end(self) -> int:
        """Index just past its last placeholder."""
        return self.offset + self.num_tokens


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop; names as in vLLM's SamplingParams.

    temperature: 0 is greedy; top_k: 0 considers all; seed: None draws one for the request
    stop: strings that end the text and are not part of it; stop_token_ids: ids that end it
    presence_penalty, frequency_penalty: taken from the logit of what the completion already holds,
    once and for each time, as OpenAI defines them; repetition_penalty: over the prompt as well
    logit_bias: (token id, what is added to its logit)
    logprobs: how many of the most probable tokens are told with each token; None: no logprobs
    prompt_logprobs: the same of the prompt's own tokens

    Raises InvalidRequest with the name, the value and the limit.
    """

    max_tokens: int = 256
    min_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_token_ids()
        if any(not text for text in self.stop):
            raise InvalidRequest("stop holds an empty string; it must hold at least one character")

    def _check_ranges(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if name == "min_tokens":
                high = self.max_tokens
            if value is not None and not low <= value <= high:  # also false for NaN
                raise InvalidRequest(f"{name} is {value}; it must be from {low} to {high}")
        for name, high in MOST_ABOVE_ZERO.items():
            value = getattr(self, name)
            if not (0.0 < value <= high and math.isfinite(value)):
                raise InvalidRequest(f"{name} is {value}; it must be above 0 and at most {high}")

    def _check_token_ids(self) -> None:
        for name, ids, most in (
            ("logit_bias", [token_id for token_id, _ in self.logit_bias], MAX_BIASED_TOKENS),
            ("stop_token_ids", list(self.stop_token_ids), MAX_STOP_TOKENS),
        ):
            if len(ids) > most:
                raise InvalidRequest(f"{name} has {len(ids)} token ids; the limit is {most}")
            if len(set(ids)) < len(ids):
                raise InvalidRequest(f"{name} has a token id twice")
            if ids and min(ids) < 0:
                raise InvalidRequest(f"{name} has token id {min(ids)}; ids begin at 0")
        for token_id, bias in self.logit_bias:
            if not -MAX_BIAS <= bias <= MAX_BIAS:  # also for NaN
                raise InvalidRequest(
                    f"logit_bias of token id {token_id} is {bias}; "
                    f"it must be from {-MAX_BIAS} to {MAX_BIAS}"
                )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise InvalidRequest for a token id that the model does not have."""
        for name, ids in (
            ("logit_bias", (token_id for token_id, _ in self.logit_bias)),
            ("stop_token_ids", iter(self.stop_token_ids)),
        ):
            largest = max(ids, default=0)
            if largest >= vocab_size:
                raise InvalidRequest(
                    f"{name} has token id {largest}; this model's vocabulary has {vocab_size} ids"
                )

    @property
    def needs_history(self) -> bool:
        """Whether the next token's logits depend on which tokens came before, by a penalty."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True, eq=False)
class GenerateRequest:
    """One sequence to generate; a batch of N pictures is N of these.

    request_id: unique within the process
    prompt_token_ids: every token, each image's placeholders included
    images: in the order of their offsets
    seed: drawn when the client gave none, so that a preempted sequence repeats itself
    eos_token_ids: the model's end-of-text ids
    cache_salt: requests share cached work only with those of the same salt
    priority: lower goes first, 0 is the middle; requests of one priority go in the order they came
    max_queue_seconds: waiting longer than this for the first step ends the request; None: never
    grammar: what the text must match, as llguidance takes it; None: anything
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int
    images: tuple[ImageInput, ...] = ()
    eos_token_ids: frozenset[int] = frozenset()
    cache_salt: bytes = b""
    priority: int = 0
    max_queue_seconds: float | None = None
    grammar: str | None = None

    @property
    def needs_history(self) -> bool:
        """Whether a token can be chosen only once all before it are known to the host."""
        return self.grammar is not None or self.sampling.needs_history

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Ids that end this sequence: the client's, and the model's own unless it ignores them."""
        stop = self.sampling.stop_token_ids
        return stop if self.sampling.ignore_eos else stop | self.eos_token_ids


def check_prompt_logprobs(requests: Iterable[GenerateRequest]) -> None:
    """Raise InvalidRequest for more logprobs of prompts than one answer should hold."""
    asking = [
        (len(request.prompt_token_ids), 1 + request.sampling.prompt_logprobs)
        for request in requests
        if request.sampling.prompt_logprobs is not None
    ]
    num_told = sum(num_tokens * num_each for num_tokens, num_each in asking)
    if num_told > MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"{sum(num_tokens for num_tokens, _ in asking)} tokens of prompts have {num_told} "
            f"logprobs to tell; the limit is {MAX_PROMPT_LOGPROBS}"
        )


class FinishReason(Enum):
    """Why a sequence ended, as clients read it."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class TokenLogprobs(NamedTuple):
    """Natural logarithms of the model's own probabilities, before any filter or temperature.

    top: (token id, logprob) of the most probable tokens, the first of them first
    rank: the token's own place among all, from 1; told of a prompt's tokens only
    """

    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int | None = None


class TokenEvent(NamedTuple):
    """What one engine step did for one request. A named tuple: one is made for every token.

    token_id: the new token, None where the event only says how it ended
    num_completion_tokens: tokens generated so far, this one included
    finish_reason: set on the last event; error: what the client is told when the reason is ERROR
    queue_seconds: how long the sequence waited before its first step
    num_cached_tokens: of its prompt, whose KV was found in the prefix cache
    prompt_logprobs: of the prompt's tokens but the first, with the first token, where asked for
    """

    request_id: str
    token_id: int | None
    num_completion_tokens: int
    finish_reason: FinishReason | None = None
    error: ServingError | None = None
    queue_seconds: float = 0.0
    logprobs: TokenLogprobs | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
