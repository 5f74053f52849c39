"""One request inside the engine: its tokens, its blocks, and the states it may be in."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.request import FinishReason, GenerateRequest


class State(Enum):
    """Where a sequence is. Only PREFILL and DECODE hold KV blocks."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Transition(Enum):
    """What may happen to a sequence."""

    ADMIT = "admit"
    PREFILLED = "prefilled"
    PREEMPT = "preempt"
    FINISH = "finish"


TRANSITIONS: dict[tuple[State, Transition], State] = {
    (State.WAITING, Transition.ADMIT): State.PREFILL,
    (State.WAITING, Transition.FINISH): State.FINISHED,
    (State.PREFILL, Transition.PREFILLED): State.DECODE,
    (State.PREFILL, Transition.PREEMPT): State.WAITING,
    (State.PREFILL, Transition.FINISH): State.FINISHED,
    (State.DECODE, Transition.PREEMPT): State.WAITING,
    (State.DECODE, Transition.FINISH): State.FINISHED,
}


class IllegalTransition(Exception):
    """A step the table does not hold: a bug of the engine, never of a client."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request's progress.

    token_ids: prompt, then what was generated; end_token_ids: those that end it
    max_num_tokens: length of token_ids that ends it
    num_computed_tokens: how many of them have their KV in the cache, or in a launched step
    num_pending_tokens: tokens that launched steps choose and that are not known yet
    num_launched_steps: launched steps that hold a share of it and have not been read
    num_encoded_images: how many images have embeddings held by the runner
    block_table: ids of KV blocks, in token order
    block_digests: of its full blocks, see prefix.py; num_published_blocks: how many others can find
    arrival_seconds, last_token_seconds: on the scheduler's clock; queue_seconds: arrival to
    admission
    num_cached_tokens: of its prompt, found computed when it first started
    priority, needs_history: the request's; num_image_tokens: of all its images
    tells_prompt: whether it asks for its prompt's logprobs
    """

    request: GenerateRequest
    token_ids: list[int] = field(init=False)
    end_token_ids: frozenset[int] = field(init=False)
    state: State = State.WAITING
    max_num_tokens: int = sys.maxsize
    num_computed_tokens: int = 0
    num_pending_tokens: int = 0
    num_launched_steps: int = 0
    num_encoded_images: int = 0
    block_table: list[int] = field(default_factory=list)
    block_digests: list[bytes] = field(default_factory=list)
    num_published_blocks: int = 0
    finish_reason: FinishReason | None = None
    num_preemptions: int = 0
    arrival_seconds: float = field(default_factory=time.monotonic)
    queue_seconds: float = 0.0
    num_cached_tokens: int = 0
    last_token_seconds: float | None = None
    priority: int = field(init=False)
    needs_history: bool = field(init=False)
    num_image_tokens: int = field(init=False)
    tells_prompt: bool = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_token_ids)
        self.end_token_ids = self.request.end_token_ids
        self.priority = self.request.priority
        self.needs_history = self.request.needs_history
        self.tells_prompt = self.request.sampling.prompt_logprobs is not None
        self.num_image_tokens = sum(image.num_tokens for image in self.request.images)

    def apply(self, transition: Transition) -> None:
        """Move to the state the table names; raises IllegalTransition."""
        target = TRANSITIONS.get((self.state, transition))
        if target is None:
            raise IllegalTransition(
                f"{transition.value} of a {self.state.value} sequence ({self.request.request_id})"
            )
        self.state = target

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens the client sent, image placeholders included."""
        return len(self.request.prompt_token_ids)

    @property
    def num_completion_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - len(self.request.prompt_token_ids)

    @property
    def num_uncomputed_tokens(self) -> int:
        """Known and pending tokens whose KV is still to be computed; 1 in steady decode."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether every token of the prompt must be computed, also those whose KV is known."""
        return self.tells_prompt and self.num_completion_tokens == 0

    @property
    def is_running(self) -> bool:
        """Whether it holds blocks."""
        return self.state is State.DECODE or self.state is State.PREFILL
