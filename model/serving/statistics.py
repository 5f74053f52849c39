"""Counts and times of a model's requests, after Triton's statistics extension.

Knows no protocol: the model records, the protocols read a snapshot.
Source: Triton Inference Server, extension_statistics.md.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and the nanoseconds it took in all."""

    count: int = 0
    ns: int = 0

    def plus(self, ns: int, count: int = 1) -> Duration:
        """This duration with `count` more events of `ns` nanoseconds in all."""
        return Duration(self.count + count, self.ns + ns)


@dataclass(frozen=True, slots=True)
class InferTimes:
    """One request's nanoseconds by stage.

    queue: submitted until its first step; compute_input: bytes to tokens and pixels
    compute_infer: first step until the last token; compute_output: text and tensors
    total: all of it, as the client would measure it at the server
    """

    queue: int = 0
    compute_input: int = 0
    compute_infer: int = 0
    compute_output: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """A snapshot.

    success, fail: requests and their whole time; a cancelled request is a failed one
    queue, compute_input, compute_infer, compute_output: as in InferTimes, of answered requests
    inference_count: sequences answered (a batch of N counts N)
    execution_count: engine steps, each of which serves many sequences
    last_inference_ms: when the last request was answered, since the epoch; 0 before the first
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    inference_count: int = 0
    execution_count: int = 0
    last_inference_ms: int = 0

    def durations(self) -> dict[str, Duration]:
        """The stages by name, in Triton's order."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Duration)}


class StatisticsRecorder:
    """Adds up requests; safe to use from any thread.

    clock: seconds since the epoch
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._now = ModelStatistics()

    def record_success(self, times: InferTimes, num_sequences: int = 1) -> None:
        """Count one answered request."""
        with self._lock:
            now = self._now
            self._now = replace(
                now,
                success=now.success.plus(times.total),
                queue=now.queue.plus(times.queue),
                compute_input=now.compute_input.plus(times.compute_input),
                compute_infer=now.compute_infer.plus(times.compute_infer),
                compute_output=now.compute_output.plus(times.compute_output),
                inference_count=now.inference_count + num_sequences,
                last_inference_ms=int(self._clock() * 1000),
            )

    def record_failure(self, total_ns: int) -> None:
        """Count one request that ended in an error or was cancelled."""
        with self._lock:
            self._now = replace(self._now, fail=self._now.fail.plus(total_ns))

    def snapshot(self, execution_count: int | None = None) -> ModelStatistics:
        """The numbers so far; `execution_count` comes from whoever counts the engine's steps."""
        with self._lock:
            now = self._now
        return now if execution_count is None else replace(now, execution_count=execution_count)
