"""From the end of the step that chose a stream's first token to its first byte at the client.

That is what the server adds to the time to first token of many that come together, whichever step
their prefill's turn comes in: the median of TTFT itself moves by a step's time with who falls into
which. Server and client read the one clock of the machine. Run as a program, this is the server,
which also writes down when its steps chose first tokens.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from model.engine.stats import TTFT_BUCKETS, Histogram
from tests.bench.servers import our_server, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Seq

    from tests.bench.servers import RunningServer


class FirstTokens:
    """When a server chose first tokens, on time.monotonic; each is told once."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._num_told = 0

    def take(self) -> list[float]:
        """Those since the last time."""
        moments = [float(line) for line in self._file.read_text().split()]
        new, self._num_told = moments[self._num_told :], len(moments)
        return new


def delays(chosen: Seq[float], first_bytes: Seq[float]) -> list[float]:
    """Seconds between the two of each stream: streams come in the order of their tokens.

    Where two of one step change places, their delays change with them; the sum is the same.
    """
    return [
        arrived - told for told, arrived in zip(sorted(chosen), sorted(first_bytes), strict=True)
    ]


@contextmanager
def stamped_server(
    model: Path, dtype: str, *options: str
) -> Iterator[tuple[RunningServer, FirstTokens]]:
    """`our_server`, and what it writes down."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "first-tokens"
        launch = our_server(model, dtype, *options)
        command = [*launch.command]
        command[command.index("-m") + 1] = "tests.bench.first_bytes"
        command.insert(command.index("-m") + 2, str(file))
        with running(replace(launch, command=tuple(command))) as server:
            yield server, FirstTokens(file)


class _Stamps(Histogram):
    """The engine's TTFT, which it observes at the end of the step that chose a first token."""

    def __init__(self, file: TextIO) -> None:
        super().__init__(TTFT_BUCKETS)
        self._file = file

    def observe(self, value: float, count: int = 1) -> None:
        """Count it, and write down when."""
        self._file.write(f"{time.monotonic()}\n")
        super().observe(value, count)


def _serve(file: Path, arguments: list[str]) -> int:
    from model.__main__ import main
    from model.serving import kserve_model

    with file.open("w", buffering=1) as stamps:

        class Stamped(kserve_model.Qwen3VLModel):
            async def start_engine(self) -> None:
                self.pipeline.engine.stats.ttft = _Stamps(stamps)
                await super().start_engine()

        kserve_model.Qwen3VLModel = Stamped  # type: ignore[misc]
        return main(arguments)


if __name__ == "__main__":
    sys.exit(_serve(Path(sys.argv[1]), sys.argv[2:]))
