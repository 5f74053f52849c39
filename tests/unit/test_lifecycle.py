"""Phases of the server, and requests that are still owed an answer."""

from __future__ import annotations

import asyncio

import pytest

from model.errors import NotReady
from model.serving.lifecycle import Lifecycle, Phase


@pytest.mark.parametrize(
    ("phase", "serves", "ready", "live"),
    [
        pytest.param(Phase.LOADING, False, False, True, id="loading: alive, refuses"),
        pytest.param(Phase.READY, True, True, True, id="ready: serves"),
        pytest.param(Phase.UNREADY, True, False, True, id="unready: serves those still sent here"),
        pytest.param(Phase.DRAINING, False, False, True, id="draining: refuses"),
        pytest.param(Phase.STOPPED, False, False, True, id="stopped: refuses"),
        pytest.param(Phase.FAILED, False, False, False, id="failed: not worth keeping"),
    ],
)
async def test_phase(phase: Phase, serves: bool, ready: bool, live: bool) -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(phase)
    assert (lifecycle.ready, lifecycle.live) == (ready, live)
    if serves:
        with lifecycle.request():
            assert lifecycle.num_open == 1
    else:
        with pytest.raises(NotReady), lifecycle.request():
            raise AssertionError("a request was let in")
    assert lifecycle.num_open == 0


async def test_a_stalled_engine_is_not_live() -> None:
    lifecycle = Lifecycle(stalled=lambda: True)
    lifecycle.enter(Phase.READY)
    assert not lifecycle.live


async def test_waiting_for_idle_ends_with_the_last_request() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    with lifecycle.request():
        with lifecycle.request():
            assert not await lifecycle.wait_idle(0.01)
        waiting = asyncio.create_task(lifecycle.wait_idle(5))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def test_a_request_that_fails_is_closed_too() -> None:
    lifecycle = Lifecycle()
    lifecycle.enter(Phase.READY)
    with pytest.raises(ZeroDivisionError), lifecycle.request():
        raise ZeroDivisionError
    assert lifecycle.num_open == 0


async def test_listeners_hear_every_phase() -> None:
    heard: list[Phase] = []
    lifecycle = Lifecycle()
    lifecycle.listen(heard.append)
    for phase in (Phase.READY, Phase.UNREADY, Phase.DRAINING):
        lifecycle.enter(phase)
    assert heard == [Phase.READY, Phase.UNREADY, Phase.DRAINING]
