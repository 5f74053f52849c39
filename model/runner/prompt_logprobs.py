"""Logprobs of prompts: what the model thought of each of a prompt's tokens before it came.

Most steps choose one token of a sequence, and need logits of one row; here every row of a prompt is
asked for the token after it. Logits of a vocabulary are large: there are never more than those of
HEAD_ROWS rows at a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import torch

from model.runner.logprobs import known_logprobs
from model.runner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Sequence as Seq

    from torch import Tensor

    from model.engine.batch import SampledToken, ScheduledSequence
    from model.engine.sequence import Sequence
    from model.request import TokenLogprobs
    from model.runner.fast_text import FastTextModel
    from model.runner.kv_cache import KVCache
    from model.runner.qwen3_vl import TextInputs, TextModel

HEAD_ROWS: Final = 64
# For each token of a step; None where it is not the first of an answer that asked.
Told: TypeAlias = "Seq[tuple[TokenLogprobs, ...] | None]"


def told_rows(share: ScheduledSequence) -> int:
    """How many of a share's rows, the first ones, tell of the prompt's token after them."""
    sequence = share.sequence
    if not sequence.needs_whole_prompt:
        return 0
    # The last row of a prompt chooses the answer's first token.
    return max(0, min(share.end, sequence.num_prompt_tokens - 1) - share.start)


def attach(tokens: Seq[SampledToken], told: Told) -> list[SampledToken]:
    """A step's tokens, the first of each sequence with what was told of its prompt."""
    return [
        token if logprobs is None else token._replace(prompt_logprobs=logprobs)
        for token, logprobs in zip(tokens, told, strict=True)
    ]


def _begins_answer(share: ScheduledSequence) -> bool:
    sequence = share.sequence
    return sequence.needs_whole_prompt and share.end == sequence.num_prompt_tokens


class PromptLogprobs:
    """What is told of prompts that are still being computed, chunk by chunk."""

    def __init__(self) -> None:
        self._told: dict[Sequence, list[TokenLogprobs]] = {}

    def __len__(self) -> int:
        """Sequences something is kept for."""
        return len(self._told)

    def logits(
        self,
        text: TextModel | FastTextModel,
        inputs: TextInputs,
        cache: KVCache,
        shares: Seq[ScheduledSequence],
    ) -> Tensor:
        """Run a step and keep what it tells of prompts; logits of the rows that choose tokens.

        inputs.sample_rows: of each share the rows that tell, then the one that samples
        """
        if not any(map(told_rows, shares)):
            return text.logits(inputs, cache)
        hidden = text.hidden(inputs, cache)
        sampled = []
        first = 0
        for share in shares:
            num_told = told_rows(share)
            if num_told:
                self._tell(share, hidden[first : first + num_told], text.head)
            if share.samples:
                sampled.append(first + num_told)
            first += num_told + share.samples
        rows = on_device(np.array(sampled, dtype=np.int64), hidden.device)
        return text.head(hidden.index_select(0, rows))

    def take(self, shares: Iterable[ScheduledSequence]) -> Told:
        """What was told of each prompt whose answer begins with this step."""
        return [
            tuple(self._told.pop(share.sequence, ())) if _begins_answer(share) else None
            for share in shares
            if share.samples
        ]

    def release(self, sequences: Iterable[Sequence]) -> None:
        """Forget what was told of these; unknown ones are fine."""
        for sequence in sequences:
            self._told.pop(sequence, None)

    def _tell(
        self, share: ScheduledSequence, hidden: Tensor, head: Callable[[Tensor], Tensor]
    ) -> None:
        request = share.sequence.request
        num_top = request.sampling.prompt_logprobs
        assert num_top is not None, "only requests that ask have rows that tell"
        told = self._told.setdefault(share.sequence, [])
        # A step that did not fit the memory comes again, in parts.
        del told[share.start :]
        ids = np.array(request.prompt_token_ids[share.start + 1 :][: len(hidden)])
        token_ids = on_device(ids, hidden.device)
        for rows, known in zip(
            torch.split(hidden, HEAD_ROWS), torch.split(token_ids, HEAD_ROWS), strict=True
        ):
            told += known_logprobs(head(rows), known, num_top)
