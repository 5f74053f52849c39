"""What somebody asks on the page, and the requests that it becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# In one form; a prompt about all of them takes fewer, which is the server's to say.
MAX_PICTURES: Final = 32


class Option(NamedTuple):
    """One field of the sampling panel; the server judges what is typed into it."""

    name: str
    label: str
    info: str


# Left empty, a field is not sent, and the model's own generation_config.json decides.
OPTIONS: Final = (
    Option("max_tokens", "Longest answer", "tokens"),
    Option("min_tokens", "Shortest answer", "tokens"),
    Option("temperature", "Temperature", "0 always takes the likeliest word"),
    Option("top_p", "Top p", "share of likely words to choose from"),
    Option("top_k", "Top k", "number of likely words to choose from"),
    Option("min_p", "Min p", "least share of the likeliest word's chance"),
    Option("seed", "Seed", "the same seed gives the same answer"),
    Option("repetition_penalty", "Repetition penalty", "1 is none"),
    Option("presence_penalty", "Presence penalty", "−2 to 2, 0 is none"),
    Option("frequency_penalty", "Frequency penalty", "−2 to 2, 0 is none"),
    Option("min_pixels", "Fewest pixels", "smaller pictures are enlarged"),
    Option("max_pixels", "Most pixels", "larger pictures are shrunk"),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """An uploaded file.

    path: where this process keeps it
    name: what its owner calls it
    """

    path: Path
    name: str

    @property
    def url(self) -> str:
        """Where the browser finds it, relative to the page."""
        return f"gradio_api/file={quote(str(self.path))}"


@dataclass(frozen=True, slots=True)
class Call:
    """One request to describe: its pictures, and its form fields as text."""

    pictures: tuple[Picture, ...]
    fields: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """The filled form.

    options: the sampling panel by name; empty text where nothing is asked
    each: every picture gets an answer of its own
    """

    pictures: tuple[Picture, ...]
    prompt: str
    style: str
    language: str
    each: bool
    options: Mapping[str, str]

    def calls(self) -> tuple[Call, ...]:
        """One request about all pictures, or one for each."""
        fields = self._fields()
        if self.each:
            return tuple(Call((picture,), fields) for picture in self.pictures)
        return (Call(self.pictures, fields),)

    def _fields(self) -> tuple[tuple[str, str], ...]:
        texts = {"prompt": self.prompt, "style": self.style, "language": self.language}
        return tuple(
            (name, text.strip()) for name, text in {**texts, **self.options}.items() if text.strip()
        )
