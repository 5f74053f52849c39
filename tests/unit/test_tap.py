"""The short way of a stream's pieces: nothing is lost, doubled or turned round by it."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from model.engine.loop import TokenStream
from model.errors import QueueTimeout
from model.request import FinishReason, GenerateRequest, SamplingParams, TokenEvent
from model.serving.detokenizer import IncrementalDetokenizer
from model.serving.generation import Generation, TextDelta
from model.serving.sse import EVENTS, EventStream, Outlet
from model.serving.tap import Tap
from tests.unit.channel import Channel, Sent
from tests.unit.test_detokenizer import TOKEN_BYTES, cut, ids_of

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

ENGINE: Any = SimpleNamespace(abort=lambda request_id, reason: None)


def events(ids: Seq[int]) -> list[TokenEvent]:
    last = len(ids) - 1
    return [
        TokenEvent("r", token_id, i + 1, FinishReason.LENGTH if i == last else None)
        for i, token_id in enumerate(ids)
    ]


def generation(stop: tuple[str, ...] = ()) -> tuple[Generation, TokenStream]:
    stream = TokenStream(ENGINE, "r")
    request = GenerateRequest("r", (1, 2), SamplingParams(stop=stop), seed=0)
    return Generation(request, stream, IncrementalDetokenizer(TOKEN_BYTES, stop)), stream


def event_of(delta: TextDelta) -> bytes:
    return b"data: %b\n\n" % delta.text.encode()


async def told_of(
    ids: Seq[int], chance: random.Random, stop: tuple[str, ...] = ()
) -> tuple[list[TextDelta], int]:
    """All deltas, in the order they were handled in, and how many came by the tap.

    Events come at any moment, the tap is ready or not, the reader takes its time.
    """
    answer, stream = generation(stop)
    told: list[TextDelta] = []
    tapped = 0

    def put(delta: TextDelta) -> None:
        nonlocal tapped
        tapped += 1
        told.append(delta)

    async def read() -> None:
        async for delta in answer:
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            told.append(delta)

    answer.tap(Tap(lambda: chance.random() < 0.7, put))
    reading = asyncio.create_task(read())
    for event in events(ids):
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        stream._deliver(event)
    await asyncio.wait_for(reading, 5)
    return told, tapped


@pytest.mark.parametrize("seed", range(40))
async def test_whoever_takes_a_piece_all_come_once_and_in_order(seed: int) -> None:
    text = "naïve café, 红色的圆形, 👩‍👩‍👧‍👦" * 3
    told, tapped = await told_of(ids_of(text), random.Random(seed))
    assert "".join(delta.text for delta in told) == text
    counts = [delta.num_completion_tokens for delta in told]
    assert counts == sorted(set(counts))
    assert [delta.finish_reason for delta in told[:-1]] == [None] * (len(told) - 1)
    assert told[-1].finish_reason is FinishReason.LENGTH
    assert 0 < tapped < len(told)


@pytest.mark.parametrize("seed", range(20))
async def test_a_stop_string_ends_the_text_once(seed: int) -> None:
    text, stop = "a cat, a dog and a bird", ("dog", " and a fish")
    told, _ = await told_of(ids_of(text), random.Random(seed), stop)
    assert "".join(delta.text for delta in told) == cut(text, stop) == "a cat, a "
    assert told[-1].finish_reason is FinishReason.STOP
    assert [delta for delta in told[:-1] if delta.finish_reason is not None] == []


async def test_the_end_and_an_error_are_for_the_reader_alone() -> None:
    for last in (
        TokenEvent("r", None, 1, FinishReason.CANCELLED),
        TokenEvent("r", None, 1, FinishReason.ERROR, QueueTimeout(2, 1)),
    ):
        answer, stream = generation()
        put: list[TextDelta] = []
        answer.tap(Tap(lambda: True, put.append))
        deltas = aiter(answer)
        reading = asyncio.ensure_future(anext(deltas))
        await asyncio.sleep(0)
        stream._deliver(TokenEvent("r", ids_of("a")[0], 1))
        assert [delta.text for delta in put] == ["a"]
        stream._deliver(last)
        if last.error is None:
            assert (await reading).finish_reason is FinishReason.CANCELLED
        else:
            with pytest.raises(QueueTimeout):
                await reading
        assert len(put) == 1


async def test_what_goes_wrong_in_a_tap_the_reader_gets() -> None:
    answer, stream = generation()

    def put(delta: TextDelta) -> None:
        raise ValueError("on purpose")

    answer.tap(Tap(lambda: True, put))
    reading = asyncio.ensure_future(anext(aiter(answer)))
    await asyncio.sleep(0)
    stream._deliver(TokenEvent("r", ids_of("a")[0], 1))
    with pytest.raises(ValueError, match="on purpose"):
        await reading


def test_a_tap_is_made_for_what_comes_before() -> None:
    put: list[str] = []
    tap = Tap(lambda: True, put.append).after(str).after(lambda number: number + 1)
    assert tap.ready()
    tap.put(1)
    assert put == ["2"]


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_a_tapped_answer_held_is_free_without_the_garbage_collector(
    cancelled: bool,
) -> None:
    gc.collect()
    gc.disable()
    try:
        answer, stream = generation()
        sent = Sent()
        outlet = Outlet({}, EVENTS)
        answer.tap(outlet.tap.after(event_of))
        for event in events(ids_of("ab")):
            stream._deliver(event)
        if cancelled:
            answer.close()
        else:
            pieces = (event_of(delta) async for delta in answer)
            await EventStream(pieces, outlet, nullcontext())({}, Channel(b""), sent)
            assert sent.body == b"data: a\n\ndata: b\n\n"
            del pieces
        held = [weakref.ref(answer), weakref.ref(outlet)]
        del answer, stream, outlet
        await asyncio.sleep(0)
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()
