"""Whether a canary's figures are good enough beside the stable one's. Pure.

A figure that is not there passes nothing and fails nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field

from model.canary.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Gates(Frozen):
    """Limits of the canary's figures; None asks nothing.

    `max_…_growth` is times the stable one's figure, `max_error_increase` what may be added to its
    error ratio: a multiple of a ratio that is nearly always zero would mean nothing.
    """

    max_error_ratio: float | None = Field(0.05, ge=0, le=1)
    max_error_increase: float | None = Field(0.01, ge=0, le=1)
    max_ttft_seconds: float | None = Field(None, gt=0)
    max_ttft_growth: float | None = Field(1.5, ge=1)
    max_itl_seconds: float | None = Field(None, gt=0)
    max_itl_growth: float | None = Field(1.5, ge=1)


class Measured(Frozen):
    """One InferenceService's figures over a window of time.

    num_requests: ended in the window, but for those that their clients cancelled
    error_ratio: 0 to 1; the p95 figures in seconds; None where nothing was measured
    """

    num_requests: int = Field(ge=0)
    error_ratio: float | None = Field(None, ge=0, le=1)
    ttft_p95_seconds: float | None = Field(None, ge=0)
    itl_p95_seconds: float | None = Field(None, ge=0)


@dataclass(frozen=True, slots=True)
class Unknown:
    """No figures, and why: Prometheus is away, or holds nothing of this InferenceService."""

    reason: str


Figures: TypeAlias = Measured | Unknown


class Outcome(Enum):
    """What one gate says."""

    PASSED = "passed"
    FAILED = "failed"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one gate says, in words that hold figure and limit."""

    gate: str
    outcome: Outcome
    text: str


def judge(gates: Gates, canary: Measured, stable: Measured | None) -> list[Verdict]:
    """Every gate's verdict, in the order of `Gates`.

    stable: the figures to compare with; None where there are none
    """
    stable = stable or Measured(num_requests=0)
    return [
        *_judge_errors(gates, canary.error_ratio, stable.error_ratio),
        *_judge_latency(
            "TTFT p95",
            canary.ttft_p95_seconds,
            stable.ttft_p95_seconds,
            gates.max_ttft_seconds,
            gates.max_ttft_growth,
        ),
        *_judge_latency(
            "ITL p95",
            canary.itl_p95_seconds,
            stable.itl_p95_seconds,
            gates.max_itl_seconds,
            gates.max_itl_growth,
        ),
    ]


def _judge_errors(gates: Gates, canary: float | None, stable: float | None) -> Iterator[Verdict]:
    if gates.max_error_ratio is not None:
        yield _limit("error ratio", canary, gates.max_error_ratio, _percent, "at most")
    if gates.max_error_increase is not None:
        name = "error ratio beside stable"
        limit = None if stable is None else stable + gates.max_error_increase
        yield _limit(name, canary, limit, _percent, f"stable's {_percent(stable)} allows")


def _judge_latency(
    name: str,
    canary: float | None,
    stable: float | None,
    max_seconds: float | None,
    max_growth: float | None,
) -> Iterator[Verdict]:
    if max_seconds is not None:
        yield _limit(name, canary, max_seconds, _seconds, "at most")
    if max_growth is not None:
        limit = None if stable is None else stable * max_growth
        yield _limit(
            f"{name} beside stable", canary, limit, _seconds, f"stable's {_seconds(stable)} allows"
        )


def _limit(
    gate: str,
    value: float | None,
    limit: float | None,
    written: Callable[[float | None], str],
    words: str,
) -> Verdict:
    if value is None or limit is None:
        missing = "the canary" if value is None else "the stable one"
        return Verdict(gate, Outcome.UNDECIDED, f"{gate}: nothing measured of {missing}")
    outcome = Outcome.PASSED if value <= limit else Outcome.FAILED
    return Verdict(gate, outcome, f"{gate} is {written(value)} ({words} {written(limit)})")


def _percent(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"{100 * ratio:.2f} %"


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{1000 * value:.1f} ms"
