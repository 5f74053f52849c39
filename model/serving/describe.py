"""`POST /api/v1/describe` for people with curl: a picture and a question in, a description out.

multipart/form-data with files `image` and a field `prompt`, or JSON with base64; every sampling
parameter of the other protocols under its own name.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from model.errors import InvalidRequest, UnsupportedMediaType
from model.serving.body import read_body, until_disconnect
from model.serving.generation import Prompt
from model.serving.images import decode_base64
from model.serving.json_body import kind, parse_object
from model.serving.parameters import (
    MODEL_PARAMETERS,
    parse_pixel_bounds,
    parse_structure,
    shown,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from collections.abc import Sequence as Seq

    from starlette.datastructures import FormData

    from model.request import GenerateRequest
    from model.serving.generation import Completion
    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.lifecycle import Lifecycle
    from model.settings import Settings

# Of each kind, in one form; far above what the limits of a prompt allow.
MAX_PARTS = 100
FIELDS = ("image", "prompt", *MODEL_PARAMETERS)


@dataclass(frozen=True, slots=True)
class _Question:
    """What the body said, whichever form it had."""

    images: tuple[bytes, ...]
    prompt: str | None
    parameters: dict[str, object]


def describe_router(model: Qwen3VLModel, lifecycle: Lifecycle, settings: Settings) -> APIRouter:
    """The route, for one model."""
    router = APIRouter(tags=["describe"])

    @router.post("/api/v1/describe")
    async def describe(request: Request) -> JSONResponse:
        """Describe one picture, or answer a question about several."""
        with lifecycle.request():
            question = await _read(request, settings)
            answer = _answer(model, question, settings)
            return JSONResponse(await until_disconnect(request.receive, answer))

    return router


async def _answer(model: Qwen3VLModel, question: _Question, settings: Settings) -> dict[str, Any]:
    started = time.monotonic()
    prompt = Prompt.about(
        question.images,
        question.prompt or settings.request.default_prompt,
        model.sampling(question.parameters),
        parse_pixel_bounds(question.parameters),
        parse_structure(question.parameters),
    )
    [prepared] = await model.pipeline.prepare([prompt])
    prepare_seconds = time.monotonic() - started
    [completion] = await model.pipeline.complete([prepared])
    return _body(model.name, prepared, completion, prepare_seconds)


def _body(
    model_name: str, request: GenerateRequest, completion: Completion, prepare_seconds: float
) -> dict[str, Any]:
    timings = completion.timings
    return {
        "id": uuid.uuid4().hex,
        "model": model_name,
        "description": completion.text,
        "finish_reason": completion.finish_reason.value,
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "image_tokens": completion.image_tokens,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        },
        "images": [
            {
                "width": image.source_width,
                "height": image.source_height,
                "seen_width": image.pixels.shape[1],
                "seen_height": image.pixels.shape[0],
                "tokens": image.num_tokens,
            }
            for image in request.images
        ],
        "timings": {
            "prepare_ms": _milliseconds(prepare_seconds),
            "queue_ms": _milliseconds(timings.queue_seconds),
            "first_text_ms": _milliseconds(timings.first_text_seconds),
            "generate_ms": _milliseconds(timings.total_seconds),
            "total_ms": _milliseconds(prepare_seconds + timings.total_seconds),
        },
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


async def _read(request: Request, settings: Settings) -> _Question:
    limits = settings.request
    body = await read_body(request, limits.max_body_bytes, limits.body_idle_seconds)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match media_type:
        case "multipart/form-data":
            question = await _from_form(request, body, settings)
        case "application/json" | "":
            question = _from_json(parse_object(body), settings)
        case _:
            raise UnsupportedMediaType(
                f"Content-Type is {shown(media_type)}; it must be multipart/form-data or "
                "application/json"
            )
    if not question.images:
        raise InvalidRequest("image is missing: send at least one, as -F image=@photo.jpg")
    return question


async def _from_form(request: Request, body: bytearray, settings: Settings) -> _Question:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield bytes(body)

    # The body is in memory and within its limit: how much of it is a prompt or a picture is judged
    # later, by the limit's own name.
    parser = MultiPartParser(
        request.headers,
        chunks(),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=settings.request.max_body_bytes,
    )
    # Nor does any part of it go to a disk, which may be read-only.
    parser.spool_max_size = settings.request.max_body_bytes
    try:
        form = await parser.parse()
    except MultiPartException as e:
        raise InvalidRequest(f"the form cannot be read: {e.message}") from e
    images = [await _file(value) for value in form.getlist("image")]
    return _Question(tuple(images), _one_text(form, "prompt"), _form_parameters(form))


async def _file(value: UploadFile | str) -> bytes:
    if isinstance(value, str):
        raise InvalidRequest(
            "image is a text field; it must be a file, as -F image=@photo.jpg with the @"
        )
    return await value.read()


def _one_text(form: FormData, name: str) -> str | None:
    values = form.getlist(name)
    if not values:
        return None
    if len(values) > 1:
        raise InvalidRequest(f"{name} is given {len(values)} times; the limit is 1")
    if isinstance(values[0], UploadFile):
        raise InvalidRequest(f"{name} is a file; it must be a text field")
    return values[0]


def _form_parameters(form: FormData) -> dict[str, object]:
    _check_names(list(form.keys()))
    parameters: dict[str, object] = {}
    for name in form:
        if name == "stop":
            parameters[name] = [str(value) for value in form.getlist(name)]
        elif name in MODEL_PARAMETERS:
            text = _one_text(form, name) or ""
            # A pattern like 12 is still a pattern.
            parameters[name] = text if name == "regex" else _typed(text)
    return parameters


def _typed(text: str) -> object:
    """A form's text as the number or truth value it spells, else as it is."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


def _from_json(document: dict[str, Any], settings: Settings) -> _Question:
    _check_names(list(document))
    prompt = document.get("prompt")
    if prompt is not None and not isinstance(prompt, str):
        raise InvalidRequest(f"prompt is {kind(prompt)}; it must be a string")
    given = document.get("image")
    pictures = given if isinstance(given, list) else [] if given is None else [given]
    for picture in pictures:
        if not isinstance(picture, str):
            raise InvalidRequest(f"image is {kind(picture)}; it must be a base64 string")
    parameters: dict[str, object] = {
        name: document[name] for name in MODEL_PARAMETERS if name in document
    }
    images = tuple(_picture(picture, settings.image.max_bytes) for picture in pictures)
    return _Question(images, prompt, parameters)


def _picture(text: str, max_bytes: int) -> bytes:
    # A URL goes on as it is: whether it may be fetched is decided where pictures are read.
    if text[:8].lower().startswith(("http://", "https://")):
        return text.encode()
    return decode_base64(text, max_bytes)


def _check_names(names: Seq[str]) -> None:
    for name in names:
        if name not in FIELDS:
            raise InvalidRequest(f"unknown field {shown(name)}; known: {', '.join(FIELDS)}")
