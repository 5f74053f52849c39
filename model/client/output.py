"""What the user reads: answers on standard output or in a file, the rest on standard error."""

from __future__ import annotations

import json
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

    from tqdm import tqdm

PROGRAM: Final = "qwen3-vl"
# All but tab and line feed.
CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one question: an answer, or an error with HTTP's status where there was one.

    names: of the pictures it was about
    """

    names: tuple[str, ...]
    answer: dict[str, Any] | None = None
    error: str = ""
    status: int | None = None


class Screen:
    """Standard error, with a progress bar while many questions are asked."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None
        self._last_notice = ""

    def start(self, total: int) -> None:
        """Show a bar for so many questions, where somebody can see it."""
        if self._quiet or total < 2 or not sys.stderr.isatty():
            return
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="picture", file=sys.stderr, dynamic_ncols=True)

    def advance(self) -> None:
        """One more question has its answer or its error."""
        if self._bar is not None:
            self._bar.update()

    def stop(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def aside(self) -> AbstractContextManager[None]:
        """The bar out of the way, for as long as something else is written to the terminal."""
        return nullcontext() if self._bar is None else self._bar.external_write_mode(sys.stderr)

    def fault(self, text: str) -> None:
        """Say what went wrong."""
        with self.aside():
            print(f"{PROGRAM}: {printable(text)}", file=sys.stderr)

    def notice(self, text: str) -> None:
        """Say why it takes longer; not twice the same."""
        if not self._quiet and text != self._last_notice:
            self._last_notice = text
            self.fault(text)


class Answers:
    """Where answers go: as text, or as one JSON object a line.

    labelled: text behind the names of its pictures, as there are several
    """

    def __init__(self, file: IO[str], screen: Screen, *, as_json: bool, labelled: bool) -> None:
        self._file = file
        self._screen = screen
        self._as_json = as_json
        self._labelled = labelled
        self._streaming = False

    def tell(self, result: Result) -> None:
        """Write a result; without JSON its error goes to the screen."""
        with self._screen.aside():
            if self._as_json:
                self._file.write(json_line(result))
            elif self._streaming:
                self._file.write("\n")
            elif result.answer is not None:
                self.begin(result.names)
                self.text(f"{result.answer['description']}\n")
            self._streaming = False
            self._file.flush()
        if result.answer is None and not self._as_json:
            self._screen.fault(f"{', '.join(result.names)}: {result.error}")

    def begin(self, names: tuple[str, ...]) -> None:
        """Write what comes before a text."""
        if self._labelled:
            self.text(f"{', '.join(names)}: ")

    def piece(self, names: tuple[str, ...], text: str) -> None:
        """Write a piece of an answer that comes in pieces; `tell` is its end."""
        if not self._streaming:
            self._streaming = True
            self.begin(names)
        self.text(text)
        self._file.flush()

    def text(self, text: str) -> None:
        """Write text as it is, but nothing that would steer a terminal."""
        self._file.write(printable(text) if self._file.isatty() else text)


def json_line(result: Result) -> str:
    """A result as a line of JSON: `path` (`paths` where one answer is about several), then the
    answer's own members, or `error` and `status`.
    """
    several = len(result.names) > 1
    head = {"paths": list(result.names)} if several else {"path": result.names[0]}
    status = {} if result.status is None else {"status": result.status}
    tail = result.answer or {"error": result.error, **status}
    return json.dumps({**head, **tail}, ensure_ascii=False) + "\n"


def take_up(file: Path) -> set[tuple[str, ...]]:
    """The pictures that a file of JSON lines has answers for; a line cut short at its end goes.

    Raises ValueError for a file of something else.
    """
    if not file.exists():
        return set()
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    done: set[tuple[str, ...]] = set()
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            result = json.loads(line)
            names = tuple(result["paths"] if "paths" in result else [result["path"]])
        except (ValueError, LookupError, TypeError) as e:
            raise ValueError(f"{file} line {number} is not one of an earlier run") from e
        if "description" in result:
            done.add(names)
    if len(whole) < len(content):
        with file.open("r+b") as output:
            output.truncate(len(whole))
    return done


def printable(text: str) -> str:
    """Text without control characters: what stands in a picture must not steer a terminal."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
