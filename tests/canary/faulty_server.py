"""The server with a fault: a canary that must not pass.

`python -m tests.canary.faulty_server FAULT …` is `python -m model …`, but that every third prompt
ends in an error, that every step takes longer, or that other tokens are chosen than the model says.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import TYPE_CHECKING, Final

from model.__main__ import main
from model.engine.batch import FinishedStep
from model.runner.runner import TorchRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.engine.batch import LaunchedStep, ScheduledBatch

SLOW_SECONDS: Final = 0.15
# One that errs is ready at first: a warm-up that failed would not let it become so.
NUM_GOOD_PROMPTS: Final = 5
EVERY: Final = 3

execute: Callable[[TorchRunner, ScheduledBatch], LaunchedStep] = TorchRunner.execute
prompts = itertools.count(1)


def erring(runner: TorchRunner, batch: ScheduledBatch) -> LaunchedStep:
    """A step that fails for every third prompt that begins."""
    for share in batch.sequences:
        # A prompt's last tokens: the others may have been found in the prefix cache.
        if share.start < share.sequence.num_prompt_tokens <= share.end:
            number = next(prompts)
            if number > NUM_GOOD_PROMPTS and number % EVERY == 0:
                raise RuntimeError("this server was asked to fail")
    return execute(runner, batch)


def slow(runner: TorchRunner, batch: ScheduledBatch) -> LaunchedStep:
    """A step that takes longer."""
    time.sleep(SLOW_SECONDS)
    return execute(runner, batch)


def wrong(runner: TorchRunner, batch: ScheduledBatch) -> LaunchedStep:
    """A step whose tokens are the neighbours of those that the model chose."""
    sampled = execute(runner, batch).tokens()
    return FinishedStep([token._replace(token_id=token.token_id ^ 1) for token in sampled])


FAULTS: Final = {"errors": erring, "slow": slow, "wrong": wrong}

if __name__ == "__main__":
    TorchRunner.execute = FAULTS[sys.argv[1]]  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
