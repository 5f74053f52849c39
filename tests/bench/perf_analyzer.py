"""perf_analyzer, Triton's own load generator, as a command: where it is, and what it is given.

`make perf-analyzer` installs it in an environment of its own, on an older glibc with the libraries
of the next Debian beside it.
"""

from __future__ import annotations

import base64
import csv
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

ENVIRONMENT: Final = Path(__file__).parents[2] / ".venv-perf-analyzer"
PROGRAM: Final = ENVIRONMENT / "perf_analyzer/bin/perf_analyzer"
LIBRARIES: Final = ENVIRONMENT / "libraries"
NOT_INSTALLED: Final = "perf_analyzer is not installed: `make perf-analyzer`"
LENGTH_PREFIX_BYTES: Final = 4


class Failed(Exception):
    """It ended with an error; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Load:
    """A line of its report: latencies in microseconds."""

    concurrency: int
    per_second: float
    p50: float
    p99: float


def is_installed() -> bool:
    """Whether `run` can be called."""
    return PROGRAM.exists()


def run(*arguments: str, timeout: float = 300) -> str:
    """Run it; what it printed. Raises Failed."""
    loader = [str(LIBRARIES / "ld-linux-x86-64.so.2"), "--library-path", str(LIBRARIES)]
    command = [*(loader if LIBRARIES.exists() else []), str(PROGRAM), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode != 0 or "failed" in done.stdout.lower():
        raise Failed(done.stdout + done.stderr)
    return done.stdout


def measure(*arguments: str, timeout: float = 300) -> tuple[Load, ...]:
    """Run it; its report, a line for each concurrency. Raises Failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        run(*arguments, "-f", str(report), timeout=timeout)
        with report.open(newline="") as file:
            rows = list(csv.DictReader(file))
    return tuple(
        Load(
            concurrency=int(row["Concurrency"]),
            per_second=float(row["Inferences/Second"]),
            p50=float(row["p50 latency"]),
            p99=float(row["p99 latency"]),
        )
        for row in rows
    )


def write_inputs(file: Path, questions: Seq[tuple[bytes, str]]) -> Path:
    """Its file of (picture, prompt): bytes that are no text go in as the tensor's own bytes."""
    data = [
        {
            "image": {"content": {"b64": _tensor(picture)}, "shape": [1]},
            "prompt": {"content": [prompt], "shape": [1]},
        }
        for picture, prompt in questions
    ]
    file.write_text(json.dumps({"data": data}))
    return file


def _tensor(element: bytes) -> str:
    prefix = len(element).to_bytes(LENGTH_PREFIX_BYTES, "little")
    return base64.b64encode(prefix + element).decode()
