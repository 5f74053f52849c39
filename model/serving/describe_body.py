"""The bodies of describe, batch and jobs: a form or JSON, the same fields by the same names.

Both become one dict of fields first, so that every rule is written once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from model.errors import InvalidImage, InvalidRequest, UnsupportedMediaType
from model.serving.body import Body, read_body
from model.serving.images import decode_base64, is_url
from model.serving.json_body import get_string, kind, parse_object
from model.serving.parameters import MODEL_PARAMETERS, boolean, shown
from model.serving.styles import check_language, check_style

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable
    from collections.abc import Sequence as Seq

    from starlette.datastructures import FormData
    from starlette.requests import Request

    from model.settings import Settings

T = TypeVar("T")

# What every one of the three routes takes beside its pictures and prompts.
PARAMETER_FIELDS: Final = (*MODEL_PARAMETERS, "priority", "timeout_seconds")
OPTION_FIELDS: Final = ("style", "language", "stream", *PARAMETER_FIELDS)
PICTURE_FIELDS: Final = ("image", "images")
# In a form these are what they are, even where they spell a number.
TEXT_FIELDS: Final = ("prompt", "prompts", "style", "language", "regex", "stop")
REPEATED_FIELDS: Final = ("prompts", "stop")
# Of each kind, in one form; far above what the limits of a prompt allow.
MAX_PARTS: Final = 100
# Forms are parsed in pieces, so that others have a turn; below, JSON is parsed where it is.
PIECE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of every picture alike.

    parameters: by name, as the client gave them; stream: None where the client did not say
    """

    parameters: dict[str, object]
    style: str | None = None
    language: str | None = None
    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt: its pictures, as files or URLs, and the client's words, None for none."""

    images: tuple[bytes, ...]
    prompt: str | None
    options: Options


@dataclass(frozen=True, slots=True)
class Batch:
    """One question for each picture; or, in its place, what is wrong with that picture."""

    entries: tuple[Question | InvalidImage, ...]
    options: Options


async def read_question(request: Request, settings: Settings) -> Question:
    """The body of a describe request; raises ServingError."""
    limits = settings.request
    body = await read_body(request, limits.max_body_bytes, limits.body_idle_seconds)
    document = await _document(request, body, ("image", "prompt"), MAX_PARTS)
    return await _off_loop(len(body), _question, document, settings.image.max_bytes)


async def read_batch(
    request: Request, settings: Settings, *, max_pictures: int, max_body_bytes: int
) -> Batch:
    """The body of a batch; raises ServingError for anything but a picture's own fault."""
    body = await read_body(request, max_body_bytes, settings.request.body_idle_seconds)
    # One picture too many is told by the limit's own name, hundreds by the form's.
    max_parts = MAX_PARTS + max_pictures
    document = await _document(request, body, ("images", "prompts"), max_parts)
    return await _off_loop(len(body), _batch, document, max_pictures, settings.image.max_bytes)


async def _off_loop(num_bytes: int, function: Callable[..., T], *arguments: Any) -> T:
    """The function's result, on a thread where so many bytes would hold up the event loop."""
    if num_bytes > PIECE_BYTES:
        return await asyncio.to_thread(function, *arguments)
    return function(*arguments)


async def _document(
    request: Request, body: Body, own_fields: tuple[str, ...], max_parts: int
) -> dict[str, Any]:
    """The body's fields by name: files as bytes, everything else as JSON has it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    known = (*own_fields, *OPTION_FIELDS)
    match media_type:
        case "multipart/form-data":
            form = await _form(request, body, max_parts)
            _check_names(form, known)
            return {name: await _form_field(name, form.getlist(name)) for name in form}
        case "application/json" | "":
            document = await _off_loop(len(body), parse_object, body)
            _check_names(document, known)
            return document
        case _:
            raise UnsupportedMediaType(
                f"Content-Type is {shown(media_type)}; it must be multipart/form-data or "
                "application/json"
            )


def _check_names(names: Iterable[str], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise InvalidRequest(f"unknown field {shown(name)}; known: {', '.join(known)}")


# Forms


async def _form(request: Request, body: Body, max_parts: int) -> FormData:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), PIECE_BYTES):
            yield bytes(body[start : start + PIECE_BYTES])
            await asyncio.sleep(0)

    # The body is in memory and within its limit: how much of it is a prompt or a picture is judged
    # later, by the limit's own name.
    parser = _FormParser(
        request.headers,
        pieces(),
        max_files=max_parts,
        max_fields=max_parts,
        max_part_size=len(body),
    )
    # Nor does any part of it go to a disk, which may be read-only.
    parser.spool_max_size = len(body)
    try:
        form = await parser.parse()
    except MultiPartException as e:
        raise InvalidRequest(f"the form cannot be read: {e.message}") from e
    if not parser.ended:
        raise InvalidRequest("the form cannot be read: it is cut short")
    return form


class _FormParser(MultiPartParser):
    """Starlette's, which would leave out a part cut short, and take any text for Latin-1 that is
    not UTF-8.
    """

    ended = False

    def on_end(self) -> None:
        """Called by the parser at the form's last boundary."""
        self.ended = True

    def on_part_end(self) -> None:
        """Called by the parser at the end of each part."""
        part = self._current_part
        if part.file is not None:
            super().on_part_end()
            return
        try:
            self.items.append((part.field_name, part.data.decode()))
        except UnicodeDecodeError as e:
            raise MultiPartException(f"{part.field_name} is not UTF-8 (byte {e.start})") from e


async def _form_field(name: str, values: Seq[UploadFile | str]) -> object:
    if name in PICTURE_FIELDS:
        return [await _form_picture(name, value) for value in values]
    texts = [_form_text(name, value) for value in values]
    if name in REPEATED_FIELDS:
        return texts
    if len(texts) > 1:
        raise InvalidRequest(f"{name} is given {len(texts)} times; the limit is 1")
    return texts[0] if name in TEXT_FIELDS else _typed(texts[0])


async def _form_picture(name: str, value: UploadFile | str) -> bytes | str:
    if isinstance(value, UploadFile):
        return await value.read()
    if not is_url(value):
        raise InvalidRequest(
            f"{name} is a text field; it must be a file, as -F {name}=@photo.jpg with the @, or a "
            "URL"
        )
    return value


def _form_text(name: str, value: UploadFile | str) -> str:
    if isinstance(value, UploadFile):
        raise InvalidRequest(f"{name} is a file; it must be a text field")
    return value


def _typed(text: str) -> object:
    """A form's text as the number or truth value it spells, else as it is."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text


# Fields


def _question(document: dict[str, Any], max_image_bytes: int) -> Question:
    options = _options(document)
    prompt = get_string(document, "prompt", "the request")
    pictures = _pictures(document, "image")
    images = tuple(_picture(picture, max_image_bytes) for picture in pictures)
    return Question(images, prompt, options)


def _batch(document: dict[str, Any], max_pictures: int, max_image_bytes: int) -> Batch:
    options = _options(document)
    pictures = _pictures(document, "images")
    if len(pictures) > max_pictures:
        raise InvalidRequest(f"images has {len(pictures)} pictures; the limit is {max_pictures}")
    prompts = _prompts(document, len(pictures))
    entries: list[Question | InvalidImage] = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        try:
            entries.append(Question((_picture(picture, max_image_bytes),), prompt, options))
        except InvalidImage as e:
            entries.append(e)
    return Batch(tuple(entries), options)


def _options(document: dict[str, Any]) -> Options:
    stream = document.get("stream")
    return Options(
        parameters={name: document[name] for name in PARAMETER_FIELDS if name in document},
        style=check_style(document.get("style")),
        language=check_language(document.get("language")),
        stream=None if stream is None else boolean("stream", stream),
    )


def _pictures(document: dict[str, Any], field: str) -> list[bytes | str]:
    """Files, base64 or URLs; a single one need not be a list."""
    given = document.get(field)
    pictures = given if isinstance(given, list) else [] if given is None else [given]
    for picture in pictures:
        if not isinstance(picture, bytes | str):
            raise InvalidRequest(
                f"{field} is {kind(picture)}; it must be a base64 string, a data: URL or a URL"
            )
    if not pictures:
        raise InvalidRequest(f"{field} is missing: send at least one, as -F {field}=@photo.jpg")
    return pictures


def _prompts(document: dict[str, Any], num_pictures: int) -> list[str | None]:
    given = document.get("prompts")
    if given in ("", []):
        given = None
    prompts = given if isinstance(given, list) else [given]
    for prompt in prompts:
        if prompt is not None and not isinstance(prompt, str):
            raise InvalidRequest(f"prompts holds {kind(prompt)}; it must be a string")
    if len(prompts) not in (1, num_pictures):
        raise InvalidRequest(
            f"prompts has {len(prompts)} texts; for {num_pictures} images it must have 1, "
            f"{num_pictures} or none"
        )
    return prompts * num_pictures if len(prompts) == 1 else prompts


def _picture(given: bytes | str, max_bytes: int) -> bytes:
    if isinstance(given, bytes):
        return given
    # A URL goes on as it is: whether it may be fetched is decided where pictures are read.
    if is_url(given):
        return given.encode()
    return decode_base64(given, max_bytes)
