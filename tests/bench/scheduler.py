"""What the scheduler itself costs a step, with no runner under it: decode steps, queue, cancels.

Thread time, and the best of several rounds: other work on the machine is not the scheduler's.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.engine.batch import SampledToken
from model.engine.blocks import BlockPool
from model.engine.scheduler import Scheduler, SchedulerLimits
from model.request import GenerateRequest, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_STEPS = 64
NUM_ROUNDS = 5
NUM_PROMPT_TOKENS = 300
CASES = ((1, 0), (64, 0), (256, 0), (256, 10_000))


@dataclass(frozen=True, slots=True)
class SchedulerCost:
    """Milliseconds of thread time, p50 of the best round; microseconds of one add and one abort."""

    num_running: int
    num_queued: int
    schedule_ms: float
    commit_ms: float
    add_us: float
    abort_us: float


def measure_scheduler() -> list[SchedulerCost]:
    """Measure every case and print a markdown table."""
    costs = [_measure(num_running, num_queued) for num_running, num_queued in CASES]
    print("| running | queued | schedule p50 | commit p50 | add | abort |")
    print("|---|---|---|---|---|---|")
    for cost in costs:
        print(
            f"| {cost.num_running} | {cost.num_queued} | {cost.schedule_ms:.2f} ms "
            f"| {cost.commit_ms:.2f} ms | {cost.add_us:.1f} µs | {cost.abort_us:.1f} µs |"
        )
    return costs


def _measure(num_running: int, num_queued: int) -> SchedulerCost:
    scheduler = _decoding(num_running)
    for number in range(num_queued):
        scheduler.add(_request(f"queued {number}", number))
    rounds = [_round(scheduler) for _ in range(NUM_ROUNDS)]
    add_us, abort_us = _queue_cost(scheduler)
    return SchedulerCost(
        num_running,
        num_queued,
        schedule_ms=min(schedule for schedule, _ in rounds),
        commit_ms=min(commit for _, commit in rounds),
        add_us=add_us,
        abort_us=abort_us,
    )


def _decoding(num_running: int) -> Scheduler:
    """A scheduler whose places are all taken by decoding sequences of different lengths."""
    limits = SchedulerLimits(
        max_batched_tokens=2048,
        max_encoder_tokens=4096,
        max_sequences=num_running,
        max_model_len=4096,
    )
    scheduler = Scheduler(limits, BlockPool(num_running * 64, 16))
    for number in range(num_running):
        scheduler.add(_request(f"running {number}", number))
    while scheduler.num_waiting or scheduler.stats.completion_tokens < num_running:
        _step(scheduler)
    return scheduler


def _request(name: str, number: int) -> GenerateRequest:
    prompt = tuple(range(number, number + NUM_PROMPT_TOKENS + number % 16))
    return GenerateRequest(name, prompt, SamplingParams(max_tokens=100_000), seed=0)


def _step(scheduler: Scheduler) -> tuple[float, float]:
    """Milliseconds of one schedule() and its commit()."""
    started = time.thread_time()
    batch = scheduler.schedule()
    scheduled = time.thread_time()
    tokens = [SampledToken(1)] * sum(share.samples for share in batch.sequences)
    sampled = time.thread_time()
    scheduler.commit(batch, tokens)
    ended = time.thread_time()
    return (scheduled - started) * 1e3, (ended - sampled) * 1e3


def _round(scheduler: Scheduler) -> tuple[float, float]:
    schedules, commits = zip(*(_step(scheduler) for _ in range(NUM_STEPS)), strict=True)
    return statistics.median(schedules), statistics.median(commits)


def _queue_cost(scheduler: Scheduler) -> tuple[float, float]:
    """Microseconds of an add to the queue's end and of a cancel there."""
    requests = [_request(f"late {number}", number) for number in range(1000)]
    add = _microseconds(lambda one: scheduler.add(one), requests)
    abort = _microseconds(lambda one: scheduler.abort(one.request_id), requests)
    return add, abort


def _microseconds(
    call: Callable[[GenerateRequest], object], requests: list[GenerateRequest]
) -> float:
    started = time.thread_time()
    for request in requests:
        call(request)
    return (time.thread_time() - started) * 1e6 / len(requests)


if __name__ == "__main__":
    measure_scheduler()
