"""What an answer tells of its prompt's tokens: with the text that `echo` repeats, or in a list.

Nothing is known of a prompt's first token: nothing comes before it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

from model.serving.openai_logprobs import finite, name_of, num_letters, top_logprobs

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.request import TokenLogprobs
    from model.serving.detokenizer import TokenBytes


def echoed_logprobs(
    token_ids: Seq[int], told: Seq[TokenLogprobs], num_top: int, token_bytes: TokenBytes
) -> dict[str, Any]:
    """As completions have them, of a prompt whose special tokens are in the text.

    told: of all tokens but the first
    """
    known = list(zip(token_ids[1:], told, strict=True))
    widths = [num_letters(token_bytes[token_id]) for token_id in token_ids]
    return {
        "text_offset": list(accumulate(widths[:-1], initial=0)),
        "token_logprobs": [None, *(finite(one.logprob) for _, one in known)],
        "tokens": [name_of(token_bytes[token_id]) for token_id in token_ids],
        "top_logprobs": [
            None,
            *(top_logprobs(token_id, one, num_top, token_bytes) for token_id, one in known),
        ],
    }


def joined(echoed: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """A prompt's logprobs and its answer's in one."""
    return {name: [*echoed[name], *said[name]] for name in echoed}


def listed_logprobs(
    token_ids: Seq[int], told: Seq[TokenLogprobs], num_top: int, token_bytes: TokenBytes
) -> list[dict[str, Any] | None]:
    """As vLLM's `prompt_logprobs` has them: by id the token itself, and the most probable ones."""
    return [
        None,
        *(
            _ranked(token_id, one, num_top, token_bytes)
            for token_id, one in zip(token_ids[1:], told, strict=True)
        ),
    ]


def _ranked(
    token_id: int, told: TokenLogprobs, num_top: int, token_bytes: TokenBytes
) -> dict[str, Any]:
    top = ((one, logprob, rank) for rank, (one, logprob) in enumerate(told.top[:num_top], 1))
    return {
        str(one): {
            "logprob": finite(logprob),
            "rank": rank,
            "decoded_token": token_bytes[one].decode(errors="replace"),
        }
        for one, logprob, rank in ((token_id, told.logprob, told.rank), *top)
    }
