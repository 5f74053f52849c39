"""From the end of the step that chose a stream's first token to its first byte at the client.

That is what the server adds to the time to first token of many that come together, whichever step
their prefill's turn comes in: the median of TTFT itself moves by a step's time with who falls into
which. Server and client read the one clock of the machine; `stamps` is the server that writes down
when its steps chose first tokens.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

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
        command[command.index("-m") + 1] = "tests.bench.stamps"
        command.insert(command.index("-m") + 2, str(file))
        with running(replace(launch, command=tuple(command))) as server:
            yield server, FirstTokens(file)
