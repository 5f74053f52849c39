"""`make bench`: the server and its engine beside their peers in one run, as ratios.

Both sides do the whole job, from PNG bytes to text, on the same cores with the same weights. Rounds
alternate, so that a machine that slows down slows both. The last thing printed is a block of
Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from transformers.utils.logging import disable_progress_bar

from tests.bench.against_vllm import measure_against_vllm
from tests.bench.caches import measure_caches
from tests.bench.engine import measure_over_generate
from tests.bench.http import measure_http
from tests.bench.machine import describe_machine
from tests.bench.parity import measure_parity
from tests.bench.rounds import Plan, progress
from tests.bench.scheduler import measure_scheduler
from tests.bench.startup import measure_startup
from tests.bench.tables import Section, markdown
from tests.bench.work import write_bench_model

if TYPE_CHECKING:
    from collections.abc import Callable


def measure_scheduler_alone(_: Plan) -> Section:
    """What a step costs before any model runs: the table that scheduler.py prints."""
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        measure_scheduler()
    return Section(notes=(table.getvalue().strip(),))


MEASUREMENTS: Final[dict[str, Callable[[Plan], Section]]] = {
    "vllm": measure_against_vllm,
    "generate": measure_over_generate,
    "caches": measure_caches,
    "http": measure_http,
    "scheduler": measure_scheduler_alone,
    "startup": measure_startup,
    "parity": measure_parity,
}


def main() -> None:
    """Run everything, or what the flags leave of it."""
    given = _parse()
    machine = describe_machine()
    progress(machine)
    sections = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(write_bench_model(Path(folder)), given.rounds, given.concurrency)
        for name in given.only:
            started = time.monotonic()
            progress(f"\n{name}")
            sections.append(MEASUREMENTS[name](plan))
            progress(f"  {time.monotonic() - started:.0f} s")
    progress("\n" + markdown(machine, datetime.date.today().isoformat(), sections))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only",
        type=_names,
        default=list(MEASUREMENTS),
        metavar="NAME[,NAME]",
        help=f"some of {', '.join(MEASUREMENTS)} (default: all)",
    )
    parser.add_argument("--rounds", type=_count, default=3, help="counted ones (default: 3)")
    parser.add_argument("--concurrency", type=_count, default=16, help="requests (default: 16)")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in MEASUREMENTS:
            known = ", ".join(MEASUREMENTS)
            raise argparse.ArgumentTypeError(f"{name!r} is no measurement; known: {known}")
    return names


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{count} is too few; the least is 1")
    return count


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    disable_progress_bar()
    main()
