"""What is to be answered, as every protocol says it, before anything of it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from model.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Sequence as Seq

    from model.request import SamplingParams
    from model.serving.chat import ToolCall
    from model.serving.images import PixelBounds
    from model.serving.structure import Structure

MAX_ANSWERS: Final = 16


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A picture as it came: the bytes of a file, or of a URL; see `images.classify`.

    bounds: its own, instead of the prompt's
    """

    content: bytes
    bounds: PixelBounds | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation, its parts in the order they were given; then its calls."""

    role: str
    parts: tuple[str | EncodedImage, ...]
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be answered, before anything is decoded.

    structure: what the answers must look like; n: how many answers, each a sequence of its own
    tools: JSON schemas of functions that the model may call
    raw: the whole prompt as text or as tokens, without the chat template, instead of turns
    priority, max_queue_seconds, cache_salt: see GenerateRequest

    Raises InvalidRequest for an n out of range.
    """

    turns: tuple[Turn, ...]
    sampling: SamplingParams
    bounds: PixelBounds
    structure: Structure | None = None
    n: int = 1
    tools: tuple[Mapping[str, Any], ...] = ()
    raw: str | tuple[int, ...] | None = None
    priority: int = 0
    max_queue_seconds: float | None = None
    cache_salt: bytes = b""

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MAX_ANSWERS:
            raise InvalidRequest(f"n is {self.n}; it must be from 1 to {MAX_ANSWERS}")

    @property
    def images(self) -> list[EncodedImage]:
        """Its pictures, in order."""
        return [part for turn in self.turns for part in turn.parts if not isinstance(part, str)]

    def with_files(self, files: Mapping[bytes, bytes]) -> Prompt:
        """The prompt with the file of each picture that was the URL of one.

        files: the file by the URL
        """

        def filled(part: str | EncodedImage) -> str | EncodedImage:
            if isinstance(part, str) or part.content not in files:
                return part
            return replace(part, content=files[part.content])

        turns = [replace(turn, parts=tuple(map(filled, turn.parts))) for turn in self.turns]
        return replace(self, turns=tuple(turns))

    @classmethod
    def about(
        cls,
        images: Seq[bytes],
        text: str,
        sampling: SamplingParams,
        bounds: PixelBounds,
        structure: Structure | None = None,
        *,
        priority: int = 0,
        max_queue_seconds: float | None = None,
    ) -> Prompt:
        """One user turn: the pictures, then the question."""
        pictures = tuple(EncodedImage(content) for content in images)
        return cls(
            turns=(Turn("user", (*pictures, text)),),
            sampling=sampling,
            bounds=bounds,
            structure=structure,
            priority=priority,
            max_queue_seconds=max_queue_seconds,
        )
