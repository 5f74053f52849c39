"""What each sequence's grammar allows next, as a bit for each id of the vocabulary.

A matcher is made at a sequence's first sampled token and follows its tokens; after a preemption it
is made again and reads them anew. Knows llguidance, which is an extra: without it no request comes
here with a grammar.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from model.errors import EngineFailure, InvalidRequest, Unsupported
from model.request import GRAMMAR_LIMITS

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq
    from concurrent.futures import Future
    from pathlib import Path

    from llguidance import LLExecutor, LLMatcher, LLTokenizer
    from numpy.typing import NDArray

    from model.checkpoint import Checkpoint
    from model.engine.batch import ScheduledSequence
    from model.engine.sequence import Sequence
    from model.errors import ServingError

logger = logging.getLogger(__name__)

# Clients repeat their schemas; one that is known costs a copy instead of a compilation.
MAX_TEMPLATES = 32
WORD_BITS = 32
# How llguidance begins when a token was chosen against its mask.
TOKEN_REFUSED = "Parser Error: token"


@dataclass(slots=True)
class _Matching:
    """A sequence's matcher and how much of its completion it has read; ended: with an end token."""

    matcher: LLMatcher
    num_consumed: int = 0
    ended: bool = False
    fault: ServingError | None = None


@dataclass(frozen=True, slots=True)
class _Tools:
    """What is made once for a checkpoint."""

    tokenizer: LLTokenizer
    executor: LLExecutor


class Grammars:
    """The matchers of running sequences. For the engine thread."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._matchings: dict[Sequence, _Matching] = {}
        self._templates: OrderedDict[str, LLMatcher] = OrderedDict()
        self._tools = _start_tools(checkpoint)

    def masks(
        self, wanted: Seq[tuple[ScheduledSequence, frozenset[int]]]
    ) -> dict[Sequence, NDArray[np.int32]]:
        """What each share's sequence may say next by its grammar, without the banned ids.

        Masks are [num_words], with the bits of ids beyond the tokenizer off. Where a ban would
        leave nothing, as of the end of a complete text, it gives way. A matcher that fails allows
        the end alone; `fault` says why.
        """
        if not wanted:
            return {}
        if (tools := self._built()) is None:
            return {share.sequence: self._end_alone() for share, _ in wanted}
        matchings = [self._follow(share, tools) for share, _ in wanted]
        open_ones = [matching.matcher for matching in matchings if not matching.ended]
        filled = iter(_fill(open_ones, tools) if open_ones else ())
        masks: dict[Sequence, NDArray[np.int32]] = {}
        for (share, banned), matching in zip(wanted, matchings, strict=True):
            # After its end a text that ignores ends only has more of them.
            mask = self._end_alone() if matching.ended else next(filled)
            masks[share.sequence] = without(mask, banned)
            _report(share.sequence, matching)
        return masks

    def fault(self, sequence: Sequence) -> ServingError | None:
        """Why a sequence's grammar can no longer be followed, if so."""
        if self._built() is None:
            return Unsupported("structured answers are not possible with this model's tokenizer")
        return self._matchings[sequence].fault

    def forget(self, sequence: Sequence) -> None:
        """Let go of a sequence's matcher; an unknown one is fine."""
        self._matchings.pop(sequence, None)

    @property
    def num_kept(self) -> int:
        """Sequences that have a matcher."""
        return len(self._matchings)

    def _follow(self, share: ScheduledSequence, tools: _Tools) -> _Matching:
        """A sequence's matcher, after all of its tokens."""
        sequence = share.sequence
        assert share.end == len(sequence.token_ids), "a grammar needs every token before"
        matching = self._matchings.get(sequence)
        if matching is None:
            assert sequence.request.grammar is not None
            template = self._template(sequence.request.grammar, tools)
            matching = self._matchings[sequence] = _Matching(template.deep_copy())
        new = sequence.token_ids[sequence.num_prompt_tokens + matching.num_consumed :]
        matching.num_consumed += len(new)
        if new and not matching.ended:
            first_end = next(
                (i for i, t in enumerate(new) if t in self._checkpoint.eos_token_ids), None
            )
            matching.ended = first_end is not None
            matching.matcher.consume_tokens(new[:first_end])
        return matching

    def _template(self, grammar: str, tools: _Tools) -> LLMatcher:
        """A matcher at the beginning of a grammar, to be copied."""
        from llguidance import LLMatcher, LLParserLimits

        template = self._templates.get(grammar)
        if template is None:
            limits = LLParserLimits(**GRAMMAR_LIMITS._asdict())
            template = LLMatcher(tools.tokenizer, grammar, log_level=0, limits=limits)
            self._templates[grammar] = template
            if len(self._templates) > MAX_TEMPLATES:
                self._templates.popitem(last=False)
        self._templates.move_to_end(grammar)
        return template

    def _built(self) -> _Tools | None:
        """What a thread made meanwhile; None where it could not."""
        assert self._tools is not None, "no request has a grammar where llguidance is missing"
        return None if self._tools.exception() else self._tools.result()

    def _end_alone(self) -> NDArray[np.int32]:
        """A mask of nothing but the model's ends: an answer that follows no grammar is none."""
        words = np.zeros(-(-self._checkpoint.vocab_size // WORD_BITS), dtype=np.uint32)
        for token_id in self._checkpoint.eos_token_ids:
            words[token_id // WORD_BITS] |= np.uint32(1 << token_id % WORD_BITS)
        return words.view(np.int32)


def _fill(matchers: Seq[LLMatcher], tools: _Tools) -> NDArray[np.int32]:
    """The masks of all matchers, [num_matchers, num_words]."""
    num_words = -(-tools.tokenizer.vocab_size // WORD_BITS)
    masks = np.zeros((len(matchers), num_words), dtype=np.int32)
    tools.executor.unsafe_compute_mask_ptr(
        [(matcher, i) for i, matcher in enumerate(matchers)],
        masks.ctypes.data,
        masks.itemsize * num_words,
        len(matchers),
    )
    return masks


def without(mask: NDArray[np.int32], banned: frozenset[int]) -> NDArray[np.int32]:
    """A mask with some ids' bits off, unless no bit would be left."""
    if not banned:
        return mask
    rest = mask.copy()
    words = rest.view(np.uint32)
    for token_id in banned:
        if token_id < len(words) * WORD_BITS:
            words[token_id // WORD_BITS] &= ~np.uint32(1 << token_id % WORD_BITS)
    return rest if rest.any() else mask


def _report(sequence: Sequence, matching: _Matching) -> None:
    """Note and log, once, that a matcher failed; the mask it filled has only the end in it."""
    if matching.fault is None and matching.matcher.is_error():
        reason = " ".join(matching.matcher.get_error().partition("<")[0].split())
        if reason.startswith(TOKEN_REFUSED):
            matching.fault = EngineFailure(f"the answer's grammar failed: {reason}")
        else:
            # Its sender can mend that: what a grammar costs shows only when it meets the tokens.
            matching.fault = InvalidRequest(f"the answer's form is too complex to follow: {reason}")
        logger.warning("request %s: %s", sequence.request_id, matching.fault)


def _start_tools(checkpoint: Checkpoint) -> Future[_Tools] | None:
    """Begin to build them, or None without llguidance.

    On a thread: a large vocabulary takes a second, in which running sequences would stand still.
    """
    if importlib.util.find_spec("llguidance") is None:
        return None
    thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
    ends = sorted(checkpoint.eos_token_ids)
    tools = thread.submit(partial(_build_tools, checkpoint.path, checkpoint.vocab_size, ends))
    tools.add_done_callback(_report_tools)
    thread.shutdown(wait=False)
    return tools


def _report_tools(tools: Future[_Tools]) -> None:
    if (error := tools.exception()) is not None:
        logger.error("structured answers end at once: llguidance cannot use this model: %s", error)


def _build_tools(path: Path, vocab_size: int, eos_token_ids: list[int]) -> _Tools:
    from llguidance import LLExecutor, LLTokenizer
    from tokenizers import Tokenizer

    text = (path / "tokenizer.json").read_text(encoding="utf-8")
    # Models pad their vocabulary; where a tokenizer has more than the model, its rest is cut off.
    num_ids = max(vocab_size, Tokenizer.from_str(text).get_vocab_size())
    return _Tools(LLTokenizer(text, n_vocab=num_ids, eos_token=eos_token_ids or None), LLExecutor())
