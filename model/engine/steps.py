"""One step after the other: schedule, launch, read, account; in parts when memory runs out.

Called on the engine's thread only. Where the runner overlaps, a step is launched before the tokens
of the one before it are read; otherwise it is read at once.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from model.engine.batch import DeviceFailure, FailedStep, OutOfDeviceMemory
from model.errors import EngineFailure
from model.request import TokenEvent

if TYPE_CHECKING:
    from model.engine.batch import LaunchedStep, Runner, ScheduledBatch
    from model.engine.scheduler import Scheduler
    from model.request import FinishReason

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Launched:
    batch: ScheduledBatch
    step: LaunchedStep


class Steps:
    """A scheduler's steps on a runner; at most one of them launched and not read.

    started_seconds: when what the device does now began, None between steps
    """

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._launched: _Launched | None = None
        self.started_seconds: float | None = None

    @property
    def has_work(self) -> bool:
        """Whether step() would do anything."""
        return self._scheduler.has_work or self._launched is not None

    def abort(self, request_id: str, reason: FinishReason) -> list[TokenEvent]:
        """End a request wherever it is; nothing when it is over."""
        num_tokens = self._scheduler.num_completion_tokens(request_id)
        if not self._scheduler.abort(request_id, reason):
            return []
        self._release()
        return [TokenEvent(request_id, None, num_tokens, reason)]

    def step(self) -> list[TokenEvent]:
        """Launch the next step, and read the one before it; without overlap, this one.

        Raises DeviceFailure.
        """
        started = self.started_seconds = time.monotonic()
        try:
            events = self._scheduler.expire()
            launched = self._launch()
            if self._runner.overlaps:
                launched, self._launched = self._launched, launched
            if launched is not None:
                events += self._land(launched)
            return events
        finally:
            self._scheduler.stats.step_seconds += time.monotonic() - started
            self.started_seconds = None
            self._release()

    def finish(self) -> list[TokenEvent]:
        """Read the step in flight, if there is one, and launch no other."""
        launched, self._launched = self._launched, None
        events = [] if launched is None else self._land(launched)
        self._release()
        return events

    def _launch(self) -> _Launched | None:
        """Schedule and launch a step; None when nothing can go on before the last one is read."""
        if self._launched is not None and isinstance(self._launched.step, FailedStep):
            return None
        batch = self._scheduler.schedule()
        self._release()
        if not batch.sequences:
            assert self._launched or not self._scheduler.has_work, "nothing could be scheduled"
            return None
        try:
            return _Launched(batch, self._runner.execute(batch))
        except Exception as error:
            # Told by tokens(), once the step before this one has been read.
            return _Launched(batch, FailedStep(error))

    def _land(self, launched: _Launched) -> list[TokenEvent]:
        """Wait for a step and account for it. Raises DeviceFailure."""
        try:
            tokens = launched.step.tokens()
        except DeviceFailure:
            raise
        except OutOfDeviceMemory:
            return self._recover(launched.batch)
        except Exception:
            return self._fail(launched.batch)
        return self._scheduler.commit(launched.batch, tokens)

    def _fail(self, batch: ScheduledBatch) -> list[TokenEvent]:
        """In an except clause: end the sequences of a step that raised."""
        logger.exception("a step of %d tokens failed", batch.num_tokens)
        return self._scheduler.fail(
            batch.sequences, EngineFailure("the engine failed on this request")
        )

    def _recover(self, batch: ScheduledBatch) -> list[TokenEvent]:
        """Do a step that did not fit the memory in parts, then what was launched on top of it."""
        self._shed(batch)
        following, self._launched = self._launched, None
        if following is not None:
            # It read what the failed step should have written: its tokens mean nothing.
            _wait_for(following.step)
        parts = batch.halves() if len(batch.sequences) > 1 else (batch,)
        events = [event for part in parts for event in self._redo(part)]
        return events if following is None else events + self._redo(following.batch)

    def _redo(self, batch: ScheduledBatch) -> list[TokenEvent]:
        """Execute and commit a batch with nothing else in flight; out of memory, in ever smaller
        parts. A share that does not fit alone ends its own sequence only.
        """
        batch = self._scheduler.without_void(batch)
        if not batch.sequences:
            return []
        self.started_seconds = time.monotonic()
        try:
            tokens = self._runner.execute(batch).tokens()
        except DeviceFailure:
            raise
        except OutOfDeviceMemory:
            self._shed(batch)
            if len(batch.sequences) == 1:
                return self._scheduler.fail(batch.sequences, _out_of_memory(batch))
            return [event for half in batch.halves() for event in self._redo(half)]
        except Exception:
            return self._fail(batch)
        return self._scheduler.commit(batch, tokens)

    def _shed(self, batch: ScheduledBatch) -> None:
        """After running out of memory: let go of what can be; take smaller steps for a while."""
        logger.warning(
            "out of device memory: a step of %d tokens and %d images of %d sequences",
            batch.num_tokens,
            len(batch.images),
            len(batch.sequences),
        )
        self._scheduler.stats.num_oom += 1
        self._runner.free_memory()
        self._scheduler.shrink()

    def _release(self) -> None:
        released = self._scheduler.take_released()
        if released:
            self._runner.release(released)


def _wait_for(step: LaunchedStep) -> None:
    """Wait until a step whose tokens mean nothing is over. Raises DeviceFailure."""
    try:
        step.tokens()
    except DeviceFailure:
        raise
    except Exception as error:
        logger.debug("a step that is done again failed too: %s", error)


def _out_of_memory(batch: ScheduledBatch) -> EngineFailure:
    [share] = batch.sequences
    return EngineFailure(
        f"out of device memory: {share.num_tokens} tokens and {len(batch.images)} pictures of this "
        "request do not fit; send fewer or smaller ones"
    )
