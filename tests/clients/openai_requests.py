"""What the tests of OpenAI's clients ask: pictures, questions, functions, schemas."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from model.demo import SAMPLES_DIR

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

MODEL: Final = "qwen3-vl"
CAPTIONS: Final = [
    json.loads(line) for line in (SAMPLES_DIR / "captions.jsonl").read_text().splitlines()
]
PAINT: Final = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paint a wall",
        "parameters": {
            "type": "object",
            "properties": {
                "color": {"type": "string", "enum": ["red", "blue"]},
                "layers": {"type": "integer", "minimum": 1, "maximum": 3},
            },
            "required": ["color", "layers"],
            "additionalProperties": False,
        },
    },
}


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    color: Literal["red", "green", "blue"]
    sides: Literal[3, 4]


class Scene(BaseModel):
    shapes: list[Shape]
    certain: bool


def data_url(picture: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"


def about(picture: bytes, prompt: str = "Describe this image.") -> list[Any]:
    content = [
        {"type": "image_url", "image_url": {"url": data_url(picture)}},
        {"type": "text", "text": prompt},
    ]
    return [{"role": "user", "content": content}]


def text_of(answer: ChatCompletion) -> str:
    text = answer.choices[0].message.content
    assert text is not None
    return text
