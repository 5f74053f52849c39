"""Which pictures a command line means, and their content as the request carries it."""

from __future__ import annotations

import base64
import glob
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Sequence as Seq

STDIN: Final = "-"
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".gif")
# No server takes as much; /dev/zero would otherwise fill the memory.
MAX_BYTES: Final = 256 << 20


class NoPictures(ValueError):
    """A command line that names no picture; its text says why."""


class UnreadablePicture(Exception):
    """A file without usable content; its text is for the user."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture under the name its user gave it: a path, a URL, or - for standard input.

    given: its content, where that is no file's
    """

    name: str
    given: str | None = None

    def content(self) -> str:
        """The `image` field for it: a URL, or base64 of the file; raises UnreadablePicture."""
        if self.given is not None:
            return self.given
        try:
            with open(self.name, "rb") as file:
                return _base64(file)
        except OSError as e:
            raise UnreadablePicture(e.strerror or type(e).__name__) from e


def find_pictures(sources: Seq[str], *, recursive: bool) -> list[Picture]:
    """The pictures in the order given, each once; folders and globs in alphabetical order.

    A path that does not exist is a picture too: reading it says what is wrong. Standard input is
    read here, where an interrupt ends the wait for it.
    Raises NoPictures for a folder without `recursive`, when nothing is left, and where standard
    input holds no picture; UnreadablePicture.
    """
    names = dict.fromkeys(name for source in sources for name in _expand(source, recursive))
    if not names:
        raise NoPictures(f"no picture ({', '.join(SUFFIXES)}) in {', '.join(sources)}")
    return [_picture(name) for name in names]


def _picture(name: str) -> Picture:
    if name == STDIN:
        return Picture(name, _standard_input())
    return Picture(name, name if _is_url(name) else None)


def _standard_input() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise NoPictures("- is standard input, and no picture comes there")
    return _base64(sys.stdin.buffer)


def _is_url(name: str) -> bool:
    return name[:8].lower().startswith(("http://", "https://"))


def _expand(source: str, recursive: bool) -> Iterable[str]:
    if os.path.isdir(source):
        if not recursive:
            raise NoPictures(f"{source} is a folder; --recursive describes the pictures in it")
        return _inside(source)
    is_pattern = glob.has_magic(source) and not _is_url(source)
    if not is_pattern or os.path.exists(source):
        return (source,)
    found = sorted(glob.glob(source, recursive=True)) or [source]
    return (
        name
        for one in found
        for name in (_inside(one) if recursive and os.path.isdir(one) else (one,))
        if not os.path.isdir(name)
    )


def _inside(folder: str) -> Iterator[str]:
    """The pictures of a folder and the folders in it; hidden ones are left out."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(parent, name)


def _base64(file: BinaryIO) -> str:
    content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UnreadablePicture(f"it has over {MAX_BYTES} bytes, which is the limit")
    return base64.b64encode(content).decode("ascii")
