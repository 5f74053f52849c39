"""The scheduler against a runner without tensors: order, budgets, blocks, and nothing ever lost."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.engine.batch import SampledToken
from model.engine.blocks import BlockPool
from model.engine.scheduler import Scheduler, SchedulerLimits
from model.engine.sequence import TRANSITIONS, IllegalTransition, Sequence, State, Transition
from model.errors import EngineFailure, PromptTooLong, QueueTimeout
from model.request import FinishReason, GenerateRequest, ImageInput, SamplingParams, TokenEvent
from tests.unit.fake_runner import FakeRunner, reference

if TYPE_CHECKING:
    from model.engine.batch import ScheduledBatch


def request(
    name: str,
    num_prompt_tokens: int,
    max_tokens: int = 4,
    images: tuple[tuple[int, int], ...] = (),
    *,
    prompt_seed: str | None = None,
    cache_salt: bytes = b"",
    **sampling: object,
) -> GenerateRequest:
    """A request whose prompt depends on its seed, by default its name.

    images: (offset, num_tokens); their pictures depend on the seed too
    """
    prompt_seed = prompt_seed or name
    draw = random.Random(prompt_seed)
    return GenerateRequest(
        request_id=name,
        prompt_token_ids=tuple(draw.randrange(50) for _ in range(num_prompt_tokens)),
        sampling=SamplingParams(max_tokens=max_tokens, **sampling),  # type: ignore[arg-type]
        seed=0,
        images=tuple(
            ImageInput(
                np.zeros((1, 1, 3), np.uint8), 1, 1, offset, size, prompt_seed.encode(), 1, 1
            )
            for offset, size in images
        ),
        cache_salt=cache_salt,
    )


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def scheduler(
    num_blocks: int = 64, block_size: int = 4, clock: Clock | None = None, **limits: Any
) -> Scheduler:
    defaults = {
        "max_batched_tokens": 32,
        "max_encoder_tokens": 16,
        "max_sequences": 8,
        "max_model_len": 128,
    }
    return Scheduler(
        SchedulerLimits(**(defaults | limits)),
        BlockPool(num_blocks, block_size),
        clock=clock or time.monotonic,
    )


def step(engine: Scheduler, runner: FakeRunner) -> list[TokenEvent]:
    batch = engine.schedule()
    runner.release(engine.take_released())
    events = engine.commit(batch, runner.execute(batch).tokens())
    runner.release(engine.take_released())
    return events


def run(engine: Scheduler, runner: FakeRunner, max_steps: int = 500) -> dict[str, list[int]]:
    texts: dict[str, list[int]] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return texts
        for event in step(engine, runner):
            assert event.token_id is not None
            texts.setdefault(event.request_id, []).append(event.token_id)
    raise AssertionError("the scheduler did not finish")


@pytest.mark.parametrize("num_prompt_tokens", [1, 3, 4, 5, 31, 32, 33, 100])
def test_a_prompt_of_any_length_is_cut_into_chunks_and_answered(num_prompt_tokens: int) -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    one = request("one", num_prompt_tokens)
    engine.add(one)
    assert run(engine, runner) == {"one": reference(one.prompt_token_ids, 4)}
    assert max(batch.num_tokens for batch in runner.batches) <= 32
    assert engine.pool.num_free == 64


def test_decodes_go_on_while_a_long_prompt_is_prefilled() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("short", 2, max_tokens=10))
    step(engine, runner)
    engine.add(request("long", 100))
    names = [{event.request_id for event in step(engine, runner)} for _ in range(3)]
    assert names == [{"short"}, {"short"}, {"short"}]
    assert [batch.num_tokens for batch in runner.batches[1:]] == [32, 32, 32]


def test_several_requests_share_a_step() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    requests = [request(f"r{index}", 5) for index in range(6)]
    for one in requests:
        engine.add(one)
    texts = run(engine, runner)
    assert texts == {one.request_id: reference(one.prompt_token_ids, 4) for one in requests}
    assert len(runner.batches) == 4


def test_the_newest_is_preempted_and_says_the_same_afterwards() -> None:
    engine, runner = scheduler(num_blocks=10), FakeRunner(10, 4)
    requests = [request(f"r{index}", 8, max_tokens=16) for index in range(4)]
    for one in requests:
        engine.add(one)
    texts = run(engine, runner)
    assert engine.stats.preemptions > 0
    assert texts == {one.request_id: reference(one.prompt_token_ids, 16) for one in requests}
    assert engine.pool.num_free == 10


def names_of(batch: ScheduledBatch) -> list[str]:
    return [share.sequence.request_id for share in batch.sequences]


def with_priority(priority: int, one: GenerateRequest) -> GenerateRequest:
    return dataclasses.replace(one, priority=priority)


def test_a_lower_priority_number_goes_first_and_equals_go_in_order() -> None:
    engine, runner = scheduler(max_sequences=1), FakeRunner(64, 4)
    for name, priority in (("late", 5), ("a", 0), ("urgent", -1), ("b", 0)):
        engine.add(with_priority(priority, request(name, 5, max_tokens=1)))
    assert list(run(engine, runner)) == ["urgent", "a", "b", "late"]


def test_the_newest_of_the_least_urgent_class_is_preempted_and_returns_first() -> None:
    engine, runner = scheduler(num_blocks=8), FakeRunner(8, 4)
    for name, priority in (("low", 1), ("low too", 1), ("high", 0)):
        engine.add(with_priority(priority, request(name, 7, max_tokens=20)))
    engine.add(with_priority(1, request("queued", 20)))
    while not engine.stats.preemptions:
        step(engine, runner)
    assert [one.request_id for one in engine._running] == ["high", "low"]
    assert [one.request_id for one in engine._waiting] == ["low too", "queued"]
    assert set(run(engine, runner)) == {"low", "low too", "high", "queued"}


def test_short_prompts_start_while_a_long_one_is_prefilled() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("long", 120))
    for index in range(3):
        engine.add(request(f"short {index}", 8, max_tokens=1))
    for _ in range(4):
        step(engine, runner)
    assert [
        [(share.sequence.request_id, share.num_tokens) for share in batch.sequences]
        for batch in runner.batches
    ] == [
        [("long", 24), ("short 0", 8)],
        [("long", 24), ("short 1", 8)],
        [("long", 24), ("short 2", 8)],
        [("long", 32)],
    ]


def test_a_long_prompt_alone_takes_the_whole_step() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("long", 100))
    step(engine, runner)
    assert runner.batches[0].num_tokens == 32


def test_two_long_prompts_and_a_short_one_all_go_on() -> None:
    engine, runner = scheduler(), FakeRunner(96, 4)
    for name, num_tokens in (("one", 120), ("two", 120), ("short", 4)):
        engine.add(request(name, num_tokens, max_tokens=1))
    step(engine, runner)
    assert names_of(runner.batches[0]) == ["one", "two", "short"]


def test_a_waiting_request_of_a_more_urgent_class_is_not_held_up_by_a_prefill() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(with_priority(1, request("low", 100)))
    step(engine, runner)
    engine.add(request("high", 30))
    for _ in range(2):
        step(engine, runner)
    counts = [[share.num_tokens for share in batch.sequences] for batch in runner.batches[1:]]
    assert [names_of(batch) for batch in runner.batches[1:]] == [["low", "high"], ["high", "low"]]
    assert counts == [[8, 24], [6, 26]]


def test_as_many_sequences_run_as_a_step_has_tokens() -> None:
    engine, runner = scheduler(max_batched_tokens=4), FakeRunner(64, 4)
    for index in range(6):
        engine.add(request(f"r{index}", 6))
    assert len(run(engine, runner)) == 6
    assert max(batch.num_tokens for batch in runner.batches) <= 4


def test_a_request_that_waited_too_long_is_told_and_never_computed() -> None:
    clock = Clock()
    engine = scheduler(clock=clock, max_sequences=1, max_queue_seconds=9.0)
    runner = FakeRunner(64, 4)
    engine.add(request("runs", 5, max_tokens=50))
    step(engine, runner)
    engine.add(dataclasses.replace(request("brief", 5), max_queue_seconds=2.5))
    engine.add(request("patient", 5))
    clock.now += 2.5
    [event] = engine.expire()
    assert (event.request_id, event.finish_reason) == ("brief", FinishReason.ERROR)
    assert isinstance(event.error, QueueTimeout)
    assert str(event.error) == "request waited 2.5 s in the queue; the limit is 2.5 s"
    clock.now += 7
    assert [event.request_id for event in engine.expire()] == ["patient"]
    assert (engine.stats.expired, engine.num_waiting) == (2, 0)
    assert set(run(engine, runner)) == {"runs"}


def test_a_preempted_request_does_not_expire() -> None:
    clock = Clock()
    engine, runner = scheduler(clock=clock, max_queue_seconds=1.0), FakeRunner(64, 4)
    engine.add(request("one", 5))
    step(engine, runner)
    engine._preempt(engine._running.last)
    clock.now += 5
    assert engine.expire() == []
    assert set(run(engine, runner)) == {"one"}


def test_deadlines_of_cancelled_requests_are_forgotten() -> None:
    engine = scheduler(max_queue_seconds=1e6)
    for index in range(1000):
        engine.add(request(f"r{index}", 5))
        engine.abort(f"r{index}")
    assert len(engine._deadlines) <= engine._deadlines.MIN_COMPACT


def test_queued_image_tokens_are_those_of_waiting_sequences() -> None:
    engine, runner = scheduler(max_sequences=1), FakeRunner(64, 4)
    for index in range(3):
        engine.add(request(f"r{index}", 20, max_tokens=1, images=((2, 10),)))
    counts = [engine.stats.queued_image_tokens]
    step(engine, runner)
    counts.append(engine.stats.queued_image_tokens)
    engine.abort("r2")
    counts.append(engine.stats.queued_image_tokens)
    assert counts == [30, 20, 10]


def test_a_chunk_ends_before_an_image_that_this_step_cannot_encode() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("two", 30, images=((2, 10), (14, 12))))
    step(engine, runner)
    first = runner.batches[0]
    assert [image.image_index for image in first.images] == [0]
    assert first.num_tokens == 14
    step(engine, runner)
    assert [image.image_index for image in runner.batches[1].images] == [1]


def test_a_prefill_that_preempts_itself_leaves_no_image_to_encode() -> None:
    engine, runner = scheduler(num_blocks=10, max_batched_tokens=4), FakeRunner(10, 4)
    engine.add(request("grows", 6, max_tokens=20))
    engine.add(request("picture", 30, images=((24, 6),)))
    while not engine.stats.preemptions:
        step(engine, runner)
    assert [image.sequence for image in runner.batches[-1].images] == []
    assert set(run(engine, runner)) == {"grows", "picture"}


def test_an_image_over_the_encoder_budget_goes_alone() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("huge", 25, images=((0, 20),)))
    engine.add(request("next", 25, images=((0, 20),)))
    step(engine, runner)
    assert [image.sequence.request_id for image in runner.batches[0].images] == ["huge"]
    assert set(run(engine, runner)) == {"huge", "next"}


def test_a_prompt_that_can_never_fit_is_refused_with_both_numbers() -> None:
    engine = scheduler(num_blocks=4)
    with pytest.raises(PromptTooLong, match="16 tokens; this model takes at most 15"):
        engine.add(request("long", 16))


def test_the_answer_ends_where_the_context_does() -> None:
    engine, runner = scheduler(max_model_len=20), FakeRunner(64, 4)
    engine.add(request("one", 15, max_tokens=100))
    assert len(run(engine, runner)["one"]) == 5
    assert engine.stats.finished == {"length": 1}


def test_an_end_token_stops_and_is_reported() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    probe = request("one", 5, max_tokens=9)
    expected = reference(probe.prompt_token_ids, 9)
    engine.add(request("one", 5, max_tokens=9, stop_token_ids=frozenset({expected[3]})))
    stop = expected.index(expected[3])
    assert run(engine, runner)["one"] == expected[: stop + 1]
    assert engine.stats.finished == {"stop": 1}


def test_a_failed_step_fails_its_requests_and_frees_their_blocks() -> None:
    engine = scheduler()
    engine.add(request("one", 5))
    batch = engine.schedule()
    events = engine.fail(batch.sequences, "broken")
    assert [(event.finish_reason, event.error) for event in events] == [
        (FinishReason.ERROR, "broken")
    ]
    assert not engine.has_work
    assert engine.pool.num_free == 64


def test_an_equal_beginning_is_computed_once() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    one, two = (request(name, 30, prompt_seed="same") for name in ("one", "two"))
    engine.add(one)
    first = run(engine, runner)["one"]
    engine.add(two)
    [event] = step(engine, runner)
    assert event.num_cached_tokens == 28
    assert [event.token_id, *run(engine, runner)["two"]] == first
    # 30 tokens are 7 full blocks of 4 and 2 more; the answer of the first filled the eighth.
    assert engine.stats.prefix_hit_tokens == 28
    assert runner.batches[4].num_tokens == 2
    assert engine.pool.num_free == 64


def test_equal_beginnings_that_come_together_are_computed_once() -> None:
    engine, runner = scheduler(max_batched_tokens=64), FakeRunner(64, 4)
    for name in ("a", "b", "c"):
        engine.add(request(name, 30, images=((2, 10),), prompt_seed="same"))
    engine.add(request("other", 20))
    texts = run(engine, runner)
    assert [names_of(batch) for batch in runner.batches[:2]] == [
        ["a", "other"],
        ["a", "other", "b", "c"],
    ]
    assert texts["a"] == texts["b"] == texts["c"]
    assert sum(len(batch.images) for batch in runner.batches) == 1
    assert engine.stats.prefix_hit_tokens == 56


def test_a_prompt_that_is_told_is_computed_whole() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("one", 30, prompt_seed="same"))
    first = run(engine, runner)["one"]
    engine.add(request("told", 30, prompt_seed="same", prompt_logprobs=0))
    [event] = step(engine, runner)
    assert (event.num_cached_tokens, runner.batches[-1].num_tokens) == (0, 30)
    assert [event.token_id, *run(engine, runner)["told"]] == first


def test_a_prompt_that_is_told_waits_for_nobody_who_computes_it() -> None:
    engine, runner = scheduler(max_batched_tokens=64), FakeRunner(64, 4)
    engine.add(request("leader", 30, prompt_seed="same"))
    engine.add(request("told", 30, prompt_seed="same", prompt_logprobs=0))
    step(engine, runner)
    assert [share.num_tokens for share in runner.batches[0].sequences] == [30, 30]


def test_a_follower_waits_for_the_common_part_only() -> None:
    engine, runner = scheduler(max_batched_tokens=16), FakeRunner(64, 4)
    long = request("long", 100)
    engine.add(long)
    prompt = (*long.prompt_token_ids[:13], 49, 49, 49, 49)
    engine.add(dataclasses.replace(request("short", 17), prompt_token_ids=prompt))
    for _ in range(2):
        step(engine, runner)
    assert [names_of(batch) for batch in runner.batches] == [["long"], ["long", "short"]]
    assert set(run(engine, runner)) == {"long", "short"}


def test_nobody_waits_for_a_last_block_that_it_computes_anyway() -> None:
    engine, runner = scheduler(max_batched_tokens=28), FakeRunner(64, 4)
    for name in ("a", "b"):
        engine.add(request(name, 32, prompt_seed="same"))
        step(engine, runner)
    assert [names_of(batch) for batch in runner.batches] == [["a"], ["a", "b"]]


def test_a_follower_takes_over_when_its_leader_is_cancelled() -> None:
    engine, runner = scheduler(max_batched_tokens=16), FakeRunner(64, 4)
    for name in ("a", "b", "c"):
        engine.add(request(name, 60, prompt_seed="same"))
    step(engine, runner)
    engine.abort("b")
    engine.abort("a")
    texts = run(engine, runner)
    assert texts == {"c": reference(request("c", 60, prompt_seed="same").prompt_token_ids, 4)}


def test_an_urgent_request_follows_no_less_urgent_one() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(with_priority(1, request("low", 60, prompt_seed="same")))
    step(engine, runner)
    engine.add(request("high", 60, prompt_seed="same"))
    step(engine, runner)
    assert "high" in names_of(runner.batches[1])


def test_the_last_token_is_computed_even_if_all_is_known() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    for name in ("one", "two"):
        engine.add(request(name, 32, prompt_seed="same"))
        run(engine, runner)
    assert engine.stats.prefix_hit_tokens == 28


@pytest.mark.parametrize(
    ("change", "hit"),
    [
        pytest.param({}, 28, id="the same"),
        pytest.param({"images": ((3, 5),)}, 0, id="a picture in the first block"),
        pytest.param({"images": ((9, 5),)}, 8, id="a picture from the third block on"),
        pytest.param({"cache_salt": b"other"}, 0, id="another salt"),
        pytest.param({"prompt_seed": "other"}, 0, id="other tokens"),
    ],
)
def test_what_a_beginning_is_equal_to(change: dict[str, Any], hit: int) -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("one", 30, prompt_seed="same"))
    run(engine, runner)
    engine.add(request("two", 30, **{"prompt_seed": "same", **change}))
    run(engine, runner)
    assert engine.stats.prefix_hit_tokens == hit


def test_two_pictures_of_one_size_share_only_what_stands_before_them() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    prompt = request("text", 30).prompt_token_ids
    for name in ("one", "two"):
        picture = request(name, 30, images=((8, 12),))
        engine.add(dataclasses.replace(picture, prompt_token_ids=prompt))
        run(engine, runner)
    assert engine.stats.prefix_hit_tokens == 8


def test_a_hit_in_the_middle_of_a_picture_encodes_it_again() -> None:
    engine, runner = scheduler(max_batched_tokens=16), FakeRunner(64, 4)
    one, two = (request(name, 40, images=((10, 20),), prompt_seed="same") for name in "ab")
    engine.add(one)
    step(engine, runner)
    engine.abort("a")
    runner.release(engine.take_released())
    engine.add(two)
    run(engine, runner)
    assert engine.stats.prefix_hit_tokens == 16
    assert [len(batch.images) for batch in runner.batches[:2]] == [1, 1]


def test_a_picture_that_is_found_whole_is_not_encoded() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    for name in ("one", "two"):
        engine.add(request(name, 30, images=((2, 10),), prompt_seed="same"))
        run(engine, runner)
    assert sum(len(batch.images) for batch in runner.batches) == 1


def test_the_longest_unused_is_forgotten_first() -> None:
    engine, runner = scheduler(num_blocks=16), FakeRunner(16, 4)
    for name in ("old", "new"):
        engine.add(request(name, 24, max_tokens=1))
        run(engine, runner)
    engine.add(request("large", 32, max_tokens=1))
    run(engine, runner)
    # "large" took the 4 unused blocks and 4 of old's 6, "new again" one more: of a prefix the end
    # goes before the beginning, without which it could not be found.
    for name, hit in (("new", 20), ("old", 4)):
        before = engine.stats.prefix_hit_tokens
        engine.add(request(f"{name} again", 24, max_tokens=1, prompt_seed=name))
        run(engine, runner)
        assert engine.stats.prefix_hit_tokens - before == hit


def test_without_the_cache_everything_is_computed() -> None:
    engine, runner = scheduler(prefix_cache=False), FakeRunner(64, 4)
    for name in ("one", "two"):
        engine.add(request(name, 30, prompt_seed="same"))
        run(engine, runner)
    assert (engine.stats.prefix_hit_tokens, engine.pool.num_known) == (0, 0)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("transition", list(Transition))
def test_only_transitions_of_the_table_are_possible(state: State, transition: Transition) -> None:
    sequence = Sequence(request("one", 3), state=state)
    if (state, transition) in TRANSITIONS:
        sequence.apply(transition)
        assert sequence.state is TRANSITIONS[state, transition]
    else:
        with pytest.raises(IllegalTransition, match=f"{transition.value} of a {state.value}"):
            sequence.apply(transition)


class SchedulerMachine(RuleBasedStateMachine):
    """Random submits, steps, cancels and failures over a small cache."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = scheduler(num_blocks=12, max_sequences=5)
        self.runner = FakeRunner(12, 4)
        self.requests: dict[str, GenerateRequest] = {}
        self.texts: dict[str, list[int]] = {}
        self.count = 0

    @rule(
        num_prompt_tokens=st.integers(1, 40),
        max_tokens=st.integers(1, 12),
        image=st.none() | st.tuples(st.integers(0, 10), st.integers(1, 20)),
        prompt_seed=st.sampled_from(["a", "b", "c"]),
    )
    def submit(
        self,
        num_prompt_tokens: int,
        max_tokens: int,
        image: tuple[int, int] | None,
        prompt_seed: str,
    ) -> None:
        images = (image,) if image and sum(image) <= num_prompt_tokens else ()
        one = request(
            f"r{self.count}", num_prompt_tokens, max_tokens, images, prompt_seed=prompt_seed
        )
        self.count += 1
        self.engine.add(one)
        self.requests[one.request_id] = one

    @precondition(lambda self: self.engine.has_work)
    @rule()
    def step(self) -> None:
        for event in step(self.engine, self.runner):
            assert event.token_id is not None
            self.texts.setdefault(event.request_id, []).append(event.token_id)
            if event.finish_reason is not None:
                self.check_text(event.request_id)

    def check_text(self, name: str) -> None:
        one = self.requests.pop(name)
        room = self.engine.max_sequence_tokens - len(one.prompt_token_ids)
        expected = reference(one.prompt_token_ids, min(one.sampling.max_tokens, room))
        assert self.texts[name] == expected

    @precondition(lambda self: self.requests)
    @rule(draw=st.randoms(use_true_random=False))
    def cancel(self, draw: random.Random) -> None:
        name = draw.choice(sorted(self.requests))
        assert self.engine.abort(name)
        assert not self.engine.abort(name)
        del self.requests[name]
        self.runner.release(self.engine.take_released())

    @precondition(lambda self: self.engine.has_work)
    @rule()
    def fail(self) -> None:
        batch = self.engine.schedule()
        for event in self.engine.fail(batch.sequences, "broken"):
            del self.requests[event.request_id]
        self.runner.release(self.engine.take_released())

    @invariant()
    def a_block_has_as_many_references_as_holders(self) -> None:
        held = Counter(block for one in self.engine._running for block in one.block_table)
        assert [held[block] for block in range(12)] == self.engine.pool._ref_counts
        assert len(held) + self.engine.pool.num_free == 12
        assert all(not one.block_table for one in self.engine._waiting)

    @invariant()
    def a_sequence_is_in_exactly_one_place(self) -> None:
        places = [*self.engine._running, *self.engine._waiting, *self.engine._flights._leader_of]
        assert len(places) == len(set(places))
        assert {one.request_id for one in places} == set(self.engine.request_ids())

    def teardown(self) -> None:
        while self.engine.has_work:
            self.step()
        assert not self.requests
        assert self.engine.pool.num_free == 12
        assert not self.runner.embeddings


SchedulerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None
)
TestSchedulerMachine = SchedulerMachine.TestCase


def test_a_token_with_a_fault_ends_its_request_and_is_not_counted() -> None:
    engine, runner = scheduler(), FakeRunner(64, 4)
    engine.add(request("bad", 3))
    engine.add(request("good", 3))
    batch = engine.schedule()
    tokens = list(runner.execute(batch).tokens())
    fault = EngineFailure("its grammar failed")
    tokens[0] = SampledToken(tokens[0].token_id, fault=fault)
    bad, good = engine.commit(batch, tokens)
    assert (bad.token_id, bad.finish_reason, bad.error) == (None, FinishReason.ERROR, fault)
    assert good.token_id is not None
    assert engine.stats.completion_tokens == 1
    assert engine.pool.num_free == 63
