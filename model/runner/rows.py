"""What each row of logits needs to become a token, gathered from its sequence.

Keeps, for each sequence whose parameters ask for it, what the next row can reuse: its tokens'
counts, its biases as arrays, its grammar's matcher. All of it can be made anew from the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model.runner.grammar import Grammars

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from model.checkpoint import Checkpoint
    from model.engine.batch import ScheduledSequence
    from model.engine.sequence import Sequence
    from model.errors import ServingError
    from model.request import SamplingParams


class Bias(NamedTuple):
    """What is added to logits: ids, each once, and the amounts, both [num_ids]."""

    ids: NDArray[np.int64]
    amounts: NDArray[np.float32]

    @classmethod
    def of(cls, pairs: Seq[tuple[int, float]]) -> Bias | None:
        """From (token id, amount) pairs; None for none."""
        if not pairs:
            return None
        ids, amounts = zip(*pairs, strict=True)
        return cls(np.array(ids, dtype=np.int64), np.array(amounts, dtype=np.float32))


class History:
    """How often each token came; grows with the sequence, so that a step costs its new tokens only.

    seen: ids that count 0 times in the beginning, those of a prompt
    """

    def __init__(self, seen: Iterable[int] = (), completion: Iterable[int] = ()) -> None:
        self._places: dict[int, int] = {}
        self._ids = np.empty(64, dtype=np.int64)
        self._counts = np.zeros(64, dtype=np.float32)
        self.num_counted = 0
        for token_id in dict.fromkeys(seen):
            self._place(token_id)
        self.count(completion)

    @property
    def ids(self) -> NDArray[np.int64]:
        """Every id that was seen, once."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often the completion holds each of `ids`."""
        return self._counts[: len(self._places)]

    def count(self, token_ids: Iterable[int]) -> None:
        """Take in tokens of the completion."""
        for token_id in token_ids:
            place = self._place(token_id)
            self._counts[place] += 1
            self.num_counted += 1

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
        self._ids[place] = token_id
        return place


class Row(NamedTuple):
    """The parameters of one row of logits. A named tuple: one is made for every token.

    completion_index: completion tokens the sequence has so far
    history: what the penalties are over; None without any
    banned: ids that must not be chosen now, because min_tokens is not reached
    mask: a bit for each id of the vocabulary, 32 to a word, the grammar's; None: all are allowed
    num_top: how many of the most probable tokens are told; None: no logprobs at all
    fault: why whatever is chosen means nothing
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    completion_index: int
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    history: History | None = None
    bias: Bias | None = None
    banned: frozenset[int] = frozenset()
    mask: NDArray[np.int32] | None = None
    num_top: int | None = None
    fault: ServingError | None = None

    @property
    def plain(self) -> bool:
        """Whether the row's logits go to the choice as they are."""
        return self.history is None and self.bias is None and self.mask is None and not self.banned


@dataclass(slots=True)
class _Kept:
    """What one sequence's rows share."""

    history: History | None
    bias: Bias | None


class RowSource:
    """Makes the rows of each step. For the engine thread."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._eos_token_ids = checkpoint.eos_token_ids
        self._grammars = Grammars(checkpoint)
        self._kept: dict[Sequence, _Kept] = {}

    def rows(self, shares: Iterable[ScheduledSequence]) -> list[Row]:
        """One row for each share that samples, in their order."""
        sampled = [share for share in shares if share.samples]
        masks = self._grammars.masks(
            [
                (share, self._banned(share))
                for share in sampled
                if share.sequence.request.grammar is not None
            ]
        )
        return [self._row(share, masks.get(share.sequence)) for share in sampled]

    def release(self, sequences: Iterable[Sequence]) -> None:
        """Forget what is kept for these; unknown ones are fine."""
        for sequence in sequences:
            self._kept.pop(sequence, None)
            self._grammars.forget(sequence)

    @property
    def num_kept(self) -> int:
        """Sequences something is kept for."""
        return len(self._kept) + self._grammars.num_kept

    def _banned(self, share: ScheduledSequence) -> frozenset[int]:
        sampling = share.sequence.request.sampling
        if share.completion_index >= sampling.min_tokens:
            return frozenset()
        return self._eos_token_ids | sampling.stop_token_ids

    def _row(self, share: ScheduledSequence, mask: NDArray[np.int32] | None) -> Row:
        request = share.sequence.request
        sampling = request.sampling
        kept = self._keep(share) if sampling.needs_history or sampling.logit_bias else _NOTHING
        return Row(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            seed=request.seed,
            completion_index=share.completion_index,
            repetition_penalty=sampling.repetition_penalty,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            history=kept.history,
            bias=kept.bias,
            # A mask has the bans in it: which of the two gives way is decided there.
            banned=self._banned(share) if mask is None else frozenset(),
            mask=mask,
            num_top=sampling.logprobs,
            fault=self._grammars.fault(share.sequence) if mask is not None else None,
        )

    def _keep(self, share: ScheduledSequence) -> _Kept:
        """What is kept for a share's sequence, its history brought up to date."""
        sequence = share.sequence
        kept = self._kept.get(sequence)
        if kept is None:
            kept = self._kept[sequence] = _start(sequence)
        if kept.history is not None:
            assert share.end == len(sequence.token_ids), "penalties need every token before"
            first = sequence.num_prompt_tokens + kept.history.num_counted
            kept.history.count(sequence.token_ids[first:])
        return kept


_NOTHING = _Kept(None, None)


def _start(sequence: Sequence) -> _Kept:
    sampling = sequence.request.sampling
    history = History(_seen(sequence, sampling)) if sampling.needs_history else None
    return _Kept(history, Bias.of(sampling.logit_bias))


def _seen(sequence: Sequence, sampling: SamplingParams) -> Iterable[int]:
    """The part of the prompt that a penalty is over."""
    # Without a repetition penalty nothing happens to a prompt's tokens: it need not be read.
    return sequence.request.prompt_token_ids if sampling.repetition_penalty != 1.0 else ()
