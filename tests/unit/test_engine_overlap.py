"""Steps launched before the last one is read: same texts, nothing of a discarded token left.

The engine's steps are driven without its thread, so that a test decides what happens between a
launch and its reading.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from model.engine.batch import OutOfDeviceMemory, ScheduledBatch
from model.engine.prefix import extend_digests
from model.engine.sequence import Sequence, State
from model.engine.steps import Steps
from model.request import FinishReason, GenerateRequest, TokenEvent
from tests.unit.fake_runner import FakeRunner, reference
from tests.unit.test_scheduler import request, scheduler

if TYPE_CHECKING:
    import random

    from model.engine.scheduler import Scheduler

BOTH = pytest.mark.parametrize(
    "overlaps", [pytest.param(False, id="in turn"), pytest.param(True, id="overlapped")]
)


class Bench:
    """The engine's steps without its thread; notes what every request was told."""

    def __init__(self, *, overlaps: bool, num_blocks: int = 64, **limits: Any) -> None:
        self.scheduler: Scheduler = scheduler(num_blocks, **limits)
        self.runner = FakeRunner(num_blocks, 4, overlaps=overlaps)
        self.steps = Steps(self.scheduler, self.runner)
        self.texts: dict[str, list[int]] = {}
        self.ends: dict[str, TokenEvent] = {}
        self.expected: dict[bytes, tuple[int, ...]] = {}
        self.requests: dict[str, GenerateRequest] = {}

    def add(self, one: GenerateRequest) -> None:
        self.scheduler.add(one)
        self.requests[one.request_id] = one
        sequence = Sequence(one)
        sequence.token_ids += self.expected_text(one)
        extend_digests(sequence, 4)
        for index, digest in enumerate(sequence.block_digests):
            self.expected[digest] = tuple(sequence.token_ids[index * 4 : index * 4 + 4])

    def expected_text(self, one: GenerateRequest) -> list[int]:
        """What the request generates alone, as far as its limits let it."""
        room = self.scheduler.max_sequence_tokens - len(one.prompt_token_ids)
        text = reference(one.prompt_token_ids, min(one.sampling.max_tokens, room))
        ends = [index for index, token in enumerate(text) if token in one.end_token_ids]
        return text[: ends[0] + 1] if ends else text

    def step(self) -> None:
        self._note(self.steps.step())

    def cancel(self, name: str) -> None:
        self._note(self.steps.abort(name, FinishReason.CANCELLED))

    def run(self, max_steps: int = 500) -> None:
        for _ in range(max_steps):
            if not self.steps.has_work:
                return
            self.step()
        raise AssertionError("the engine did not finish")

    def sequence(self, name: str) -> Sequence:
        return self.scheduler._by_id[name]

    def _note(self, events: list[TokenEvent]) -> None:
        for event in events:
            assert event.request_id not in self.ends, "something came after the end"
            text = self.texts.setdefault(event.request_id, [])
            if event.token_id is not None:
                text.append(event.token_id)
            assert event.num_completion_tokens == len(text)
            if event.finish_reason is not None:
                self.ends[event.request_id] = event

    def check(self) -> None:
        """Everything that must hold between two rounds."""
        pool = self.scheduler.pool
        held = Counter(block for one in self.scheduler._running for block in one.block_table)
        assert [held[block] for block in range(pool.num_blocks)] == pool._ref_counts
        assert len(held) + pool.num_free == pool.num_blocks
        flights = self.scheduler._flights
        for follower, leader in flights._leader_of.items():
            assert follower.state is State.WAITING
            assert leader.is_running
            assert flights._next_digest[leader]
        for digest, block in pool._known.items():
            content = tuple(self.runner.slots[block * 4 : block * 4 + 4])
            assert content == self.expected[digest], "a cached block holds something else"
        for name, text in self.texts.items():
            expected = self.expected_text(self.requests[name])
            whole = self.ends.get(name)
            if whole and whole.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert text == expected
            else:
                assert text == expected[: len(text)]

    def check_over(self) -> None:
        """Everything that must hold when nothing runs any more."""
        self.check()
        assert self.ends.keys() == self.requests.keys()
        assert self.scheduler.pool.num_free == self.scheduler.pool.num_blocks
        assert not self.runner.embeddings
        assert not self.runner.held
        assert not self.runner.unread
        assert not self.scheduler._flights
        assert not self.scheduler._flights._followers
        assert self.scheduler.stats.queued_image_tokens == 0
        assert self.scheduler.stats.completion_tokens == sum(map(len, self.texts.values()))


@BOTH
def test_the_text_is_that_of_each_request_alone(overlaps: bool) -> None:
    bench = Bench(overlaps=overlaps)
    for number in range(12):
        images = ((3, 10),) if number % 3 == 0 else ()
        bench.add(request(f"r{number}", 15 + 7 * number, 3 + number, images))
    bench.run()
    bench.check_over()
    assert {end.finish_reason for end in bench.ends.values()} == {FinishReason.LENGTH}


def test_a_step_is_launched_before_the_last_one_is_read() -> None:
    bench = Bench(overlaps=True)
    bench.add(request("one", 5, max_tokens=6))
    bench.step()
    assert (len(bench.runner.batches), bench.texts) == (1, {})
    bench.step()
    assert (len(bench.runner.batches), len(bench.texts["one"])) == (2, 1)
    bench.run()
    # As many steps as tokens: the overlap costs none.
    assert len(bench.runner.batches) == 6


@pytest.mark.parametrize("num_prompt_tokens", [4, 5, 6, 7])
def test_what_was_computed_past_the_end_is_not_told_billed_or_cached(
    num_prompt_tokens: int,
) -> None:
    bench = Bench(overlaps=True)
    probe = request("one", num_prompt_tokens, max_tokens=20)
    end = reference(probe.prompt_token_ids, 20)[7]
    one = request("one", num_prompt_tokens, max_tokens=20, stop_token_ids=frozenset({end}))
    num_tokens = len(bench.expected_text(one))
    bench.add(one)
    bench.run()
    bench.check_over()
    stats = bench.scheduler.stats
    assert bench.ends["one"].finish_reason is FinishReason.STOP
    assert (stats.completion_tokens, stats.discarded_tokens) == (num_tokens, 1)
    # The last token's own KV was written by the overrun alone.
    assert bench.scheduler.pool.num_known == (num_prompt_tokens + num_tokens - 1) // 4


@pytest.mark.parametrize("max_tokens", [1, 2, 5])
def test_nothing_is_launched_past_a_limit_that_is_known_ahead(max_tokens: int) -> None:
    bench = Bench(overlaps=True)
    bench.add(request("one", 6, max_tokens=max_tokens))
    bench.run()
    assert sum(batch.num_tokens for batch in bench.runner.batches) == 6 + max_tokens - 1
    assert bench.scheduler.stats.discarded_tokens == 0


def test_nothing_is_launched_past_the_context() -> None:
    bench = Bench(overlaps=True, max_model_len=20)
    bench.add(request("one", 15, max_tokens=100))
    bench.run()
    assert sum(batch.num_tokens for batch in bench.runner.batches) == 19


def test_a_request_that_needs_its_history_waits_for_each_token() -> None:
    bench = Bench(overlaps=True)
    bench.add(request("penalised", 6, max_tokens=5, repetition_penalty=1.1))
    bench.add(request("plain", 6, max_tokens=5))
    bench.run()
    bench.check_over()
    names = [[share.sequence.request_id for share in one.sequences] for one in bench.runner.batches]
    both, plain, penalised = ["penalised", "plain"], ["plain"], ["penalised"]
    assert names == [both, plain, both, plain, both, penalised, penalised]


def test_a_sequence_preempted_in_flight_says_the_same_afterwards() -> None:
    bench = Bench(overlaps=True, num_blocks=10)
    for number in range(4):
        bench.add(request(f"r{number}", 8, max_tokens=16))
    bench.run()
    bench.check_over()
    assert bench.scheduler.stats.preemptions > 0
    assert bench.scheduler.stats.discarded_tokens > 0


def stages(name: str) -> dict[str, Any]:
    """Rounds after which a request of 60 tokens with two pictures is where the name says."""
    return {
        "queued": (0, State.WAITING),
        "between two pictures": (1, State.PREFILL),
        "in the middle of a picture": (2, State.PREFILL),
        "decode": (8, State.DECODE),
    }[name]


@BOTH
@pytest.mark.parametrize(
    "stage", ["queued", "between two pictures", "in the middle of a picture", "decode"]
)
def test_a_request_can_be_cancelled_at_every_stage(stage: str, overlaps: bool) -> None:
    bench = Bench(overlaps=overlaps, max_batched_tokens=12)
    num_rounds, state = stages(stage)
    bench.add(request("other", 5, max_tokens=20))
    bench.add(request("one", 60, max_tokens=20, images=((2, 10), (14, 12))))
    for _ in range(num_rounds):
        bench.step()
    assert bench.sequence("one").state is state
    assert (bench.steps._launched is not None) is (overlaps and num_rounds > 0)
    bench.cancel("one")
    bench.check()
    bench.run()
    bench.check_over()
    assert bench.ends["one"].finish_reason is FinishReason.CANCELLED
    assert len(bench.texts["other"]) == 20


@BOTH
def test_out_of_memory_ends_only_the_request_that_never_fits(overlaps: bool) -> None:
    bench = Bench(overlaps=overlaps)
    for number in range(7):
        bench.add(request(f"r{number}", 4 + number, max_tokens=8))
    bench.step()
    bench.step()
    bench.runner.out_of_memory = lambda batch: any(
        share.sequence.request_id == "r3" for share in batch.sequences
    )
    bench.run()
    bench.check_over()
    assert bench.runner.num_freed == bench.scheduler.stats.num_oom > 0
    failed = {name for name, end in bench.ends.items() if end.finish_reason is FinishReason.ERROR}
    assert failed == {"r3"}
    assert str(bench.ends["r3"].error) == (
        "out of device memory: 1 tokens and 0 pictures of this request do not fit; "
        "send fewer or smaller ones"
    )


@BOTH
def test_a_step_that_fits_in_parts_fails_nobody(overlaps: bool) -> None:
    bench = Bench(overlaps=overlaps)
    for number in range(8):
        bench.add(request(f"r{number}", 8, max_tokens=6, images=((1, 5),)))
    bench.runner.out_of_memory = lambda batch: len(batch.sequences) > 2
    bench.run()
    bench.check_over()
    assert {end.finish_reason for end in bench.ends.values()} == {FinishReason.LENGTH}
    assert bench.scheduler.stats.num_oom > 0


@BOTH
def test_out_of_memory_at_launch_is_told_after_the_step_before(overlaps: bool) -> None:
    bench = Bench(overlaps=overlaps)
    bench.add(request("one", 6, max_tokens=6))
    bench.step()
    bench.runner.fail_next = OutOfDeviceMemory("injected")
    bench.run()
    bench.check_over()
    assert bench.ends["one"].finish_reason is FinishReason.LENGTH


def test_nothing_is_launched_on_top_of_a_failed_launch() -> None:
    bench = Bench(overlaps=True)
    bench.add(request("one", 6, max_tokens=6))
    bench.step()
    bench.runner.fail_next = RuntimeError("injected")
    bench.step()
    bench.step()
    assert len(bench.runner.batches) == 1
    bench.check_over()


def test_steps_are_smaller_for_a_while_after_running_out_of_memory() -> None:
    bench = Bench(overlaps=False)
    bench.add(request("one", 127, max_tokens=1))
    bench.runner.fail_next = OutOfDeviceMemory("injected")
    bench.run()
    assert [batch.num_tokens for batch in bench.runner.batches] == [32, 17, 18, 19, 20, 21]


@BOTH
@pytest.mark.parametrize("where", ["fail_next", "fail_tokens"])
def test_another_error_ends_the_requests_of_its_step_only(overlaps: bool, where: str) -> None:
    bench = Bench(overlaps=overlaps, max_sequences=4)
    for number in range(6):
        bench.add(request(f"r{number}", 5, max_tokens=6))
    bench.step()
    setattr(bench.runner, where, RuntimeError("injected"))
    bench.run()
    bench.check_over()
    reasons = Counter(end.finish_reason for end in bench.ends.values())
    assert reasons == {FinishReason.ERROR: 4, FinishReason.LENGTH: 2}


class OverlapMachine(RuleBasedStateMachine):
    """Random submits, steps, cancels, preemptions and failures over a small cache."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(overlaps=False)
        self.count = 0

    @initialize(overlaps=st.booleans(), num_blocks=st.sampled_from([12, 16]))
    def start(self, overlaps: bool, num_blocks: int) -> None:
        self.bench = Bench(overlaps=overlaps, num_blocks=num_blocks, max_sequences=5)

    @rule(
        num_prompt_tokens=st.integers(1, 40),
        max_tokens=st.integers(1, 12),
        image=st.none() | st.tuples(st.integers(0, 10), st.integers(1, 20)),
        prompt_seed=st.sampled_from(["a", "b", "c"]),
        priority=st.integers(0, 2),
        stop=st.integers(0, 49),
        penalty=st.sampled_from([1.0, 1.0, 1.1]),
    )
    def submit(
        self,
        num_prompt_tokens: int,
        max_tokens: int,
        image: tuple[int, int] | None,
        prompt_seed: str,
        priority: int,
        stop: int,
        penalty: float,
    ) -> None:
        images = (image,) if image and sum(image) <= num_prompt_tokens else ()
        one = request(
            f"r{self.count}",
            num_prompt_tokens,
            max_tokens,
            images,
            prompt_seed=prompt_seed,
            stop_token_ids=frozenset({stop, (stop + 7) % 50, (stop + 23) % 50}),
            repetition_penalty=penalty,
        )
        self.count += 1
        self.bench.add(dataclasses.replace(one, priority=priority))

    @precondition(lambda self: self.bench.steps.has_work)
    @rule()
    def step(self) -> None:
        self.bench.step()

    @precondition(lambda self: self.bench.scheduler.has_work)
    @rule(draw=st.randoms(use_true_random=False))
    def cancel(self, draw: random.Random) -> None:
        self.bench.cancel(draw.choice(sorted(self.bench.scheduler.request_ids())))

    @precondition(lambda self: len(self.bench.scheduler._running) > 0)
    @rule()
    def preempt(self) -> None:
        victim = self.bench.scheduler._running.last
        assert victim is not None
        self.bench.scheduler._preempt(victim)
        self.bench.steps._release()

    @precondition(lambda self: self.bench.scheduler.has_work)
    @rule(where=st.sampled_from(["fail_next", "fail_tokens"]), oom=st.booleans())
    def fail(self, where: str, oom: bool) -> None:
        error = OutOfDeviceMemory("injected") if oom else RuntimeError("injected")
        setattr(self.bench.runner, where, error)
        self.bench.step()

    @precondition(lambda self: self.bench.scheduler.has_work)
    @rule(draw=st.randoms(use_true_random=False), most=st.integers(1, 4))
    def run_out_of_memory(self, draw: random.Random, most: int) -> None:
        poor = draw.choice(sorted(self.bench.scheduler.request_ids()))

        def too_large(batch: ScheduledBatch) -> bool:
            names = [share.sequence.request_id for share in batch.sequences]
            return len(names) > most or poor in names

        self.bench.runner.out_of_memory = too_large
        self.bench.step()
        self.bench.runner.out_of_memory = lambda batch: False

    @invariant()
    def everything_holds(self) -> None:
        self.bench.check()

    def teardown(self) -> None:
        self.bench.run()
        self.bench.check_over()


OverlapMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestOverlapMachine = OverlapMachine.TestCase
