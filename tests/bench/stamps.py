"""The server, which also writes down when its steps chose first tokens; see first_bytes.

Imports torch no sooner than the server does: how its threads wait is settled before.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from model import __main__ as program
from model.engine.stats import TTFT_BUCKETS, Histogram

if TYPE_CHECKING:
    from model.serving.kserve_model import Loaded
    from model.settings import Settings


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
    assert "torch" not in sys.modules, "this would be another server than the one that is served"
    load = program._load_and_collect
    with file.open("w", buffering=1) as stamps:

        def load_and_stamp(settings: Settings) -> Loaded:
            from model.serving import kserve_model

            build = kserve_model._build_pipeline

            def build_and_stamp(*given: Any) -> Any:
                pipeline = build(*given)
                pipeline.engine.stats.ttft = _Stamps(stamps)
                return pipeline

            kserve_model._build_pipeline = build_and_stamp  # type: ignore[assignment]
            return load(settings)

        program._load_and_collect = load_and_stamp
        return program.main(arguments)


if __name__ == "__main__":
    sys.exit(_serve(Path(sys.argv[1]), sys.argv[2:]))
