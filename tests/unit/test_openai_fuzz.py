"""Whatever JSON comes: a request is read, encoded and its grammar compiled, or refused as wrong."""

from __future__ import annotations

import json
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from model.checkpoint import read_checkpoint
from model.demo import CHECKPOINT_DIR
from model.errors import ServingError
from model.request import SamplingParams
from model.serving.chat import Message, PromptEncoder, TextPart
from model.serving.openai_chat import Chat
from model.serving.openai_completions import Completions
from model.serving.openai_errors import envelope
from model.serving.openai_fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    REFUSED_FIELDS,
    ignored_header,
)
from model.serving.parameters import parse_sampling
from model.serving.structure import compile_structure
from model.settings import Settings
from tests.mutations import changed, places

SETTINGS = Settings()
CHECKPOINT = read_checkpoint(CHECKPOINT_DIR)
ENCODER = PromptEncoder.load(CHECKPOINT, SETTINGS.request, SETTINGS.image)
# What reading a request needs of a model.
MODEL: Any = SimpleNamespace(
    names=("m",),
    settings=SETTINGS,
    pipeline=SimpleNamespace(checkpoint=CHECKPOINT, encoder=ENCODER),
    sampling=lambda parameters: parse_sampling(parameters, SamplingParams(), max_stop=4),
)
IMAGE = {"type": "image_url", "image_url": {"url": "data:,", "detail": "low"}}
CALL = {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS, "strict": True}}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, IMAGE]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ],
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PARAMETERS}},
    "structured_outputs": {"json": None},
    "mm_processor_kwargs": {"size": {"longest_edge": 9}},
    "stream": True,
    "stream_options": {"include_usage": True},
    "logit_bias": {"5": 1.0},
    "logprobs": True,
    "top_logprobs": 2,
    "stop": ["a"],
}
COMPLETION = {"prompt": ["a", [1, 2]], "n": 2, "best_of": 3, "echo": False, "logprobs": 1}

WORDS = ("text", "image_url", "auto", "required", "f", "", "a" * 99, "\x7f", "🙂", "-1", "{", "[]")
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from(WORDS)
    | st.sampled_from([0, 1, -1, 2**63 - 1, -(2**63), 1e308, -0.0, 0.5, 21, 1 << 31])
)
VALUES = st.recursive(
    SCALARS,
    lambda values: (
        st.lists(values, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "function", "name", "url", "schema", "json", "text", "x", "5"]
            ),
            values,
            max_size=3,
        )
    ),
    max_leaves=6,
)
NAMES = st.sampled_from([*CHAT_FIELDS, *COMPLETION_FIELDS, *REFUSED_FIELDS, "x\n"])


def take(read: Any, document: dict[str, Any]) -> None:
    """All that happens to a request before the engine; only a client's own fault may come of it."""
    try:
        asked = read(document, MODEL, "m")
        ignored_header(asked.fields.ignored)
        for prompt in asked.prompts:
            if prompt.structure is not None:
                compile_structure(prompt.structure)
            if prompt.raw is not None:
                ENCODER.encode_raw(prompt.raw, limit=4096)
                continue
            messages = [
                Message(
                    turn.role,
                    tuple(TextPart(part) for part in turn.parts if isinstance(part, str)),
                    turn.tool_calls,
                )
                for turn in prompt.turns
            ]
            ENCODER.encode(messages, limit=4096, tools=prompt.tools or None)
    except ServingError as error:
        check_told(error)


def check_told(error: ServingError) -> None:
    assert error.status < HTTPStatus.INTERNAL_SERVER_ERROR, error
    assert len(str(error)) < 1000, error
    assert json.dumps(envelope(str(error), error.status, error))


quick = hypothesis_settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@quick
@given(path=st.sampled_from(places(CHAT)), value=VALUES)
def test_a_chat_with_any_value_anywhere(path: tuple[Any, ...], value: Any) -> None:
    take(Chat.read, changed(CHAT, path, value))


@quick
@given(path=st.sampled_from(places(COMPLETION)), value=VALUES)
def test_completions_with_any_value_anywhere(path: tuple[Any, ...], value: Any) -> None:
    take(Completions.read, changed(COMPLETION, path, value))


@quick
@given(fields=st.dictionaries(NAMES, VALUES, max_size=4))
def test_any_fields_beside_a_good_request(fields: dict[str, Any]) -> None:
    take(Chat.read, {"messages": [{"role": "user", "content": "Hi"}], **fields})
    take(Completions.read, {"prompt": "Hi", **fields})
