"""`/tokenize` and `/detokenize`, as vLLM has them: what a prompt is to the model.

A prompt is tokenised as completions do it, messages as chat does: with the template, tools, and the
placeholders of every picture.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from model.errors import InvalidRequest
from model.request import SamplingParams
from model.serving.images import most_pixels
from model.serving.json_body import get_list, kind
from model.serving.openai_fields import parse_bounds
from model.serving.openai_messages import parse_messages
from model.serving.openai_tools import parse_tools
from model.serving.parameters import boolean, integer
from model.serving.prompt import Prompt

if TYPE_CHECKING:
    from model.serving.kserve_model import Qwen3VLModel

# Nothing is sampled here; the least that a prompt can ask for.
ONE_TOKEN: Final = SamplingParams(max_tokens=1)


async def tokenize(document: dict[str, Any], model: Qwen3VLModel) -> dict[str, Any]:
    """Tokens of a prompt or of messages; raises ServingError."""
    if (document.get("prompt") is None) == (document.get("messages") is None):
        raise InvalidRequest("prompt or messages must be given, and not both")
    pipeline = model.pipeline
    if document.get("prompt") is not None:
        prompt = _raw(document["prompt"], document)
        options = {"add_special_tokens": _flag(document, "add_special_tokens", True)}
    else:
        prompt = _conversation(document, model)
        options = {"add_generation_prompt": _flag(document, "add_generation_prompt", True)}
    with_texts = _flag(document, "return_token_strs", False)
    token_ids = (await pipeline.tokenise(prompt, **options)).token_ids
    token_bytes = pipeline.encoder.token_bytes
    return {
        "count": len(token_ids),
        "max_model_len": pipeline.engine.max_sequence_tokens,
        "tokens": token_ids,
        "token_strs": [token_bytes[one].decode(errors="replace") for one in token_ids]
        if with_texts
        else None,
    }


async def detokenize(document: dict[str, Any], model: Qwen3VLModel) -> dict[str, Any]:
    """The text of tokens, special ones as they are written; raises InvalidRequest."""
    if document.get("tokens") is None:
        raise InvalidRequest("tokens is missing; it must be a list of token ids")
    given = get_list(document, "tokens", "the request")
    token_ids = [integer(f"tokens[{i}]", token_id) for i, token_id in enumerate(given)]
    vocab_size = model.pipeline.checkpoint.vocab_size
    for i, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"tokens[{i}] is {token_id}; this model's ids are from 0 to {vocab_size - 1}"
            )
    return {"prompt": await asyncio.to_thread(model.pipeline.encoder.decode, token_ids)}


def _raw(value: object, document: dict[str, Any]) -> Prompt:
    if not isinstance(value, str):
        raise InvalidRequest(f"prompt is {kind(value)}; it must be a string")
    return Prompt(turns=(), sampling=ONE_TOKEN, bounds=parse_bounds(document), raw=value)


def _conversation(document: dict[str, Any], model: Qwen3VLModel) -> Prompt:
    bounds = parse_bounds(document)
    most = most_pixels(model.pipeline.checkpoint, model.settings.image)
    return Prompt(
        turns=parse_messages(document["messages"], bounds, most),
        sampling=ONE_TOKEN,
        bounds=bounds,
        tools=parse_tools(document, None, model.pipeline.encoder.tool_call_marks).tools,
    )


def _flag(document: dict[str, Any], name: str, default: bool) -> bool:
    value = document.get(name)
    return default if value is None else boolean(name, value)
