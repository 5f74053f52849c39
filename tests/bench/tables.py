"""What was measured, as rows of one table: two sides, their ratio, the target.

A ratio is taken within a round, where both sides saw the same machine; then the median over rounds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

HEAD: Final = (
    "| work | figure | ours | peer | ratio (min–max) | target | met |",
    "|---|---|---:|---:|---:|---:|---|",
)


@dataclass(frozen=True, slots=True)
class Target:
    """What a ratio must reach; at_least: else it must not exceed it."""

    ratio: float
    at_least: bool

    def met_by(self, ratio: float) -> bool:
        """Whether the median ratio does."""
        return ratio >= self.ratio if self.at_least else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.ratio:g}"


def at_least(ratio: float) -> Target:
    """Larger is better."""
    return Target(ratio, at_least=True)


def at_most(ratio: float) -> Target:
    """Smaller is better."""
    return Target(ratio, at_least=False)


@dataclass(frozen=True, slots=True)
class Pair:
    """One round: the same figure of both sides, in the row's unit."""

    ours: float
    peer: float

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of one work on both sides. pairs: one a round."""

    work: str
    figure: str
    unit: str
    pairs: tuple[Pair, ...]
    target: Target

    @property
    def ratio(self) -> float:
        """The median over rounds."""
        return statistics.median(pair.ratio for pair in self.pairs)

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.target.met_by(self.ratio)

    def __str__(self) -> str:
        ratios = [pair.ratio for pair in self.pairs]
        cells = (
            self.work,
            self.figure,
            _amount(statistics.median(pair.ours for pair in self.pairs), self.unit),
            _amount(statistics.median(pair.peer for pair in self.pairs), self.unit),
            f"{self.ratio:.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
            str(self.target),
            "yes" if self.met else "**no**",
        )
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True, slots=True)
class Section:
    """What one measurement gives: rows of the common table, and lines to stand below it."""

    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()


def markdown(machine: str, date: str, sections: Seq[Section]) -> str:
    """One block to paste: the machine, the table, the notes."""
    rows = [str(row) for section in sections for row in section.rows]
    # Two measurements may have the same to say, such as that the peer is not installed.
    notes = dict.fromkeys(note for section in sections for note in section.notes)
    parts = [f"{machine}; {date}."]
    if rows:
        parts.append("\n".join((*HEAD, *rows)))
    return "\n\n".join((*parts, *notes))


def _amount(value: float, unit: str) -> str:
    """Three digits, or all before the point."""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"
