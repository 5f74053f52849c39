"""OpenAI's `messages` to turns: roles, text and pictures in any order, calls of earlier turns.

Knows the JSON of messages. Decodes and fetches nothing: pictures go on as the URLs they are.

`detail` of a picture is an area after resizing: `low` at most 512 x 512 pixels, `high` and `auto`
(as without) what the request's own bounds, else the server's, allow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from model.errors import InvalidRequest
from model.serving.chat import ToolCall
from model.serving.images import PixelBounds
from model.serving.json_body import check_depth, kind
from model.serving.parameters import shown
from model.serving.prompt import EncodedImage, Turn

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES: Final = ("system", "developer", "user", "assistant", "tool")
ROLES_WITH_PICTURES: Final = ("user", "tool")
DETAILS: Final = ("auto", "low", "high", "original")
LOW_DETAIL_PIXELS: Final = 512 * 512
URL_SCHEMES: Final = ("data:", "https://", "http://")
OTHER_MEDIA: Final = ("input_audio", "audio_url", "video_url", "video", "file")
# Each is a few tokens at least: far more than a prompt can hold.
MAX_MESSAGES: Final = 4096
MAX_PARTS: Final = 4096


def parse_messages(value: object, bounds: PixelBounds, max_pixels: int) -> tuple[Turn, ...]:
    """The turns of a conversation.

    bounds: of the request; max_pixels: what the server allows a picture at most
    Raises InvalidRequest, whose text begins with the member at fault, as `messages[0].content`.
    """
    if not isinstance(value, list):
        what = "missing" if value is None else f"{kind(value)}"
        raise InvalidRequest(f"messages is {what}; it must be a list of messages")
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise InvalidRequest(
            f"messages has {len(value)} messages; it must have from 1 to {MAX_MESSAGES}"
        )
    most = min(LOW_DETAIL_PIXELS, max_pixels)
    low = PixelBounds(max_pixels=min(bounds.max_pixels or most, most))
    return tuple(_turn(message, f"messages[{i}]", low) for i, message in enumerate(value))


def _turn(message: object, where: str, low: PixelBounds) -> Turn:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} is {kind(message)}; it must be an object")
    role = message.get("role")
    if role == "function":
        raise InvalidRequest(f"{where}.role is 'function', which tools replaced: use 'tool'")
    if role not in ROLES:
        raise InvalidRequest(f"{where}.role is {shown(role)}; it must be one of {', '.join(ROLES)}")
    for legacy in ("function_call", "audio"):
        if message.get(legacy) is not None:
            raise InvalidRequest(f"{where}.{legacy} is not supported by this server")
    parts = tuple(_parts(message.get("content"), f"{where}.content", role, low))
    calls = _tool_calls(message.get("tool_calls"), f"{where}.tool_calls", role)
    return Turn("system" if role == "developer" else role, parts, calls)


def _parts(
    content: object, where: str, role: str, low: PixelBounds
) -> Iterator[str | EncodedImage]:
    match content:
        case str():
            yield content
        case None if role == "assistant":
            return
        case None:
            raise InvalidRequest(f"{where} is missing; it must be a string or a list of parts")
        case list():
            least = 0 if role == "assistant" else 1
            if not least <= len(content) <= MAX_PARTS:
                raise InvalidRequest(
                    f"{where} has {len(content)} parts; it must have from {least} to {MAX_PARTS}"
                )
            for i, part in enumerate(content):
                yield _part(part, f"{where}[{i}]", role, low)
        case _:
            raise InvalidRequest(f"{where} is {kind(content)}; it must be a string or a list")


def _part(part: object, where: str, role: str, low: PixelBounds) -> str | EncodedImage:
    match part:
        case str():
            return part
        case {"type": "text" | "refusal" as name, **rest}:
            return _string(rest.get(name), f"{where}.{name}")
        case {"type": "image_url", **rest} if role in ROLES_WITH_PICTURES:
            return _picture(rest.get("image_url"), f"{where}.image_url", low)
        case {"type": "image_url"}:
            raise InvalidRequest(
                f"{where} is a picture in a message of role {role!r}; pictures belong in messages "
                f"of {' or '.join(ROLES_WITH_PICTURES)}"
            )
        case {"type": str(name)} if name in OTHER_MEDIA:
            raise InvalidRequest(
                f"{where}.type is {name!r}; this model reads text and pictures (image_url) only"
            )
        case {"type": name}:
            raise InvalidRequest(f"{where}.type is {shown(name)}; it must be text or image_url")
        case dict():
            raise InvalidRequest(f"{where}.type is missing; it must be text or image_url")
        case _:
            raise InvalidRequest(f"{where} is {kind(part)}; it must be an object with a type")


def _picture(image_url: object, where: str, low: PixelBounds) -> EncodedImage:
    """A picture as its URL; {"url": …, "detail": …}, or the URL alone."""
    detail = None
    if isinstance(image_url, dict):
        detail = image_url.get("detail")
        image_url, where = image_url.get("url"), f"{where}.url"
    url = _string(image_url, where)
    if not url[:8].lower().startswith(URL_SCHEMES):
        raise InvalidRequest(
            f"{where} is {shown(url, 40)}; it must be a data: URL with base64, or an https URL"
        )
    if detail not in (None, *DETAILS):
        raise InvalidRequest(
            f"{where.removesuffix('.url')}.detail is {shown(detail)}; "
            f"it must be one of {', '.join(DETAILS)}"
        )
    return EncodedImage(url.encode(), low if detail == "low" else None)


def _tool_calls(value: object, where: str, role: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidRequest(f"{where} is {kind(value)}; it must be a list of calls")
    if value and role != "assistant":
        raise InvalidRequest(f"{where} is in a message of role {role!r}; only the assistant calls")
    return tuple(_tool_call(call, f"{where}[{i}]") for i, call in enumerate(value))


def _tool_call(call: object, where: str) -> ToolCall:
    match call:
        case {"function": {"name": str(name), **rest}}:
            return ToolCall(name, _arguments(rest.get("arguments"), f"{where}.function.arguments"))
        case _:
            raise InvalidRequest(
                f'{where} must be {{"type": "function", "function": {{"name": …, "arguments": …}}}}'
            )


def _arguments(value: object, where: str) -> dict[str, Any]:
    """A call's arguments: a JSON object, as OpenAI has it written out in a string."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}  # as some clients have it of a function without parameters
    if isinstance(value, str):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError as e:
            raise InvalidRequest(f"{where} is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} is {kind(value)}; it must be a JSON object")
    check_depth(value)
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        what = "missing" if value is None else kind(value)
        raise InvalidRequest(f"{where} is {what}; it must be a string")
    return value
