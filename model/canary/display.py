"""What people and scripts read of a canary: a picture that is drawn anew, lines, or JSON."""

from __future__ import annotations

import json
import re
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Final

from model.canary.frozen import to_text
from model.canary.state import Phase

if TYPE_CHECKING:
    from model.canary.gates import Measured
    from model.canary.state import Announcement, State

PROGRAM: Final = "kubectl-qwen3vl"
BAR_CELLS: Final = 20
COLORS: Final = {
    Phase.PROMOTED: "\x1b[32m",
    Phase.ROLLED_BACK: "\x1b[31m",
    Phase.ABORTED: "\x1b[31m",
}
PLAIN: Final = "\x1b[0m"
UP_AND_CLEAR: Final = "\x1b[{lines}A\x1b[J"
# What the canary answered is shown: it must not steer the terminal.
CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Lines:
    """One line for every change, and for every new reason to wait."""

    def __init__(self, file: IO[str] | None = None) -> None:
        self._file = file or sys.stdout
        self._last = ""

    def announced(self, state: State, announcement: Announcement) -> None:
        """A change."""
        self._last = ""
        self._write(f"{head(state)}  {announcement.text}")

    def waiting(self, state: State, text: str) -> None:
        """A reason to wait, once."""
        if text != self._last:
            self._last = text
            self._write(f"{head(state)}  {text}")

    def trouble(self, text: str) -> None:
        """What could not be done."""
        print(f"{PROGRAM}: {printable(text)}", file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        print(f"{clock_text()}  {printable(text)}", file=self._file, flush=True)


class Picture(Lines):
    """Changes as lines, and below them the canary as it is, drawn over itself. For a terminal."""

    def __init__(self, file: IO[str] | None = None) -> None:
        super().__init__(file)
        self._num_drawn = 0

    def announced(self, state: State, announcement: Announcement) -> None:
        """A change."""
        self._erase()
        super().announced(state, announcement)
        self._draw(state)

    def waiting(self, state: State, text: str) -> None:
        """The picture says why."""
        self._erase()
        self._draw(state)

    def trouble(self, text: str) -> None:
        """What could not be done."""
        self._erase()
        super().trouble(text)

    def _draw(self, state: State) -> None:
        lines = picture(state, colored=True)
        self._num_drawn = len(lines)
        print("\n".join(lines), file=self._file, flush=True)

    def _erase(self) -> None:
        if self._num_drawn:
            self._file.write(UP_AND_CLEAR.format(lines=self._num_drawn))
            self._num_drawn = 0


class JsonLines:
    """One JSON object a line, for every change and every evaluation."""

    def announced(self, state: State, announcement: Announcement) -> None:
        """A change."""
        self._write(announcement.reason, state, announcement.text)

    def waiting(self, state: State, text: str) -> None:
        """An evaluation that changed nothing."""
        self._write("CanaryWaiting", state, text)

    def trouble(self, text: str) -> None:
        """What could not be done: for people, beside the objects."""
        print(f"{PROGRAM}: {printable(text)}", file=sys.stderr, flush=True)

    def _write(self, event: str, state: State, text: str) -> None:
        value = {"at": to_text(time.time()), "event": event, "text": text, **as_json(state)}
        print(json.dumps(value, ensure_ascii=False), flush=True)


def as_json(state: State) -> dict[str, Any]:
    """The state as scripts read it: the annotation's members, and the weight that follows."""
    members = json.loads(state.dump())
    return {"weight_percent": state.weight_percent, **members}


def picture(state: State, *, colored: bool = False) -> list[str]:
    """The canary as it is, in a few lines."""
    steps, step = state.plan.steps, state.progress.step
    paused = ", paused" if state.progress.paused and not state.phase.over else ""
    color = COLORS.get(state.phase, "") if colored else ""
    phase = f"{color}{state.phase}{PLAIN if color else ''}"
    where = "" if state.phase.over else f", step {step + 1} of {len(steps)}"
    cells = round(BAR_CELLS * state.weight_percent / 100)
    bar = "█" * cells + "░" * (BAR_CELLS - cells)
    way = " → ".join(
        f"[{percent}]" if index == step and state.weight_percent else f"{percent}"
        for index, percent in enumerate(steps)
    )
    header = (
        f", all with {state.header.name}: {state.header.value}"
        if state.routes_header and state.header
        else ""
    )
    lines = [
        f"{state.title}: {phase}{where}{paused}",
        f"  {bar} {state.weight_percent} %{header}   {way}",
        *_table(state),
    ]
    note = state.reason if state.phase.over else state.note
    return [*lines, *([f"  {printable(note)}"] if note else [])]


def _table(state: State) -> list[str]:
    rows = [("stable", state.progress.baseline), ("canary", state.seen)]
    if not any(measured for _, measured in rows):
        return []
    head_line = f"  {'':<8}{'requests':>9}{'errors':>10}{'TTFT p95':>12}{'ITL p95':>12}"
    return [head_line, *(_row(name, measured) for name, measured in rows)]


def _row(name: str, measured: Measured | None) -> str:
    if measured is None:
        return f"  {name:<8}{'–':>9}{'–':>10}{'–':>12}{'–':>12}"
    return (
        f"  {name:<8}{measured.num_requests:>9}"
        f"{_unit(measured.error_ratio, 100, '%', 2):>10}"
        f"{_unit(measured.ttft_p95_seconds, 1000, 'ms', 0):>12}"
        f"{_unit(measured.itl_p95_seconds, 1000, 'ms', 1):>12}"
    )


def _unit(value: float | None, factor: float, unit: str, digits: int) -> str:
    return "–" if value is None else f"{factor * value:.{digits}f} {unit}"


def head(state: State) -> str:
    """Phase and weight, at a fixed width."""
    return f"{state.phase:<11}  {state.weight_percent:>3} %"


def clock_text() -> str:
    """The time of day, as people here have it."""
    return time.strftime("%H:%M:%S")


def printable(text: str) -> str:
    """Text without control characters."""
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)
