"""The engine's figures as plain numbers, cheap to read at any time from any thread.

Written by the engine thread alone; a reader sees each number whole, and a set of them at most one
step apart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

# Seconds. TTFT holds queueing and prefill; ITL one decode step; both from a fast GPU to a busy CPU.
TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITL_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56)
REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Histogram:
    """Counts per inclusive upper bound (Prometheus' `le`), and the sum of what was observed."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count one value, `count` times."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.sum += value * count

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, int]]:
        """(le, count of values at most le), ending with +Inf."""
        rows: list[tuple[str, int]] = []
        total = 0
        for bound, count in zip((*map(repr, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, total))
        return rows


@dataclass(slots=True)
class EngineStats:
    """Gauges of now, totals since start.

    queued_image_tokens: image tokens of waiting sequences
    prefix_query_tokens: known tokens of admitted sequences; prefix_hit_tokens: those found computed
    kv_used_ratio: 0 to 1; finished: sequences by finish reason; all histograms in seconds
    discarded_tokens: chosen for sequences that had ended or been preempted, never told or billed
    expired: sequences that waited too long; num_oom: steps that did not fit the device's memory
    """

    num_waiting: int = 0
    num_running: int = 0
    queued_image_tokens: int = 0
    kv_used_ratio: float = 0.0
    num_blocks: int = 0
    block_size: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    preemptions: int = 0
    discarded_tokens: int = 0
    expired: int = 0
    num_oom: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    step_seconds: float = 0.0
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS))
    itl: Histogram = field(default_factory=lambda: Histogram(ITL_BUCKETS))
    queue: Histogram = field(default_factory=lambda: Histogram(TTFT_BUCKETS))
    request: Histogram = field(default_factory=lambda: Histogram(REQUEST_BUCKETS))
