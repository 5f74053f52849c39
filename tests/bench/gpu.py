"""`make bench-gpu`: how near the CUDA path comes to what one GPU can do, in a few minutes.

Copy bandwidth and matrix products are measured first, in the same run: they are the denominators.
Every part runs in a process of its own, so that one that fails costs its own figures alone. Weights
are random and made on the device; nothing is downloaded. Where $OUT is set, gpu.json is written
there beside the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tests.bench.gpu_attention import KERNELS, measure_decode_attention
from tests.bench.gpu_correctness import CORRECTNESS, check_answers
from tests.bench.gpu_parts import (
    PEAKS,
    SHAPES,
    Figure,
    measure_model,
    measure_peaks,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Seq

# The most telling first, should time run out.
PARTS = (PEAKS, CORRECTNESS, "8B", "2B", "4B", KERNELS)
RESULT = "figure: "
# Copies move bytes a second, products are operations a second.
PEAK_NAMES = {"byte/s": "copy", "FLOP/s": "matmul"}
LARGE = {"byte/s": (1e12, "TB/s"), "FLOP/s": (1e12, "TFLOP/s")}


def main() -> int:
    """Run the parts that fit the time; 1 when one failed."""
    parser = argparse.ArgumentParser(prog="make bench-gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=450.0, help="time for all parts together")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        for figure in run_part(given.child):
            print(RESULT + json.dumps(asdict(figure)), flush=True)
        return 0
    if not torch.cuda.is_available():
        print("make bench-gpu needs a CUDA device; none is here", file=sys.stderr)
        return 1
    return _run_all(given.parts, time.monotonic() + given.seconds)


def run_part(name: str) -> Iterator[Figure]:
    """Measure one part on this process's GPU."""
    torch.set_grad_enabled(False)
    if name in SHAPES:
        return measure_model(name)
    return {
        PEAKS: measure_peaks,
        CORRECTNESS: check_answers,
        KERNELS: measure_decode_attention,
    }[name]()


def _run_all(parts: Seq[str], deadline: float) -> int:
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    for part in parts:
        seconds = deadline - time.monotonic()
        print(f"{part} …", file=sys.stderr, flush=True)
        found, failure = _run_child(part, seconds)
        figures += found
        if failure:
            failures[part] = failure
        # After every part: whoever stops the run early keeps what there is.
        _write_json(figures, failures)
    print(render(figures, failures, datetime.now(UTC).strftime("%Y-%m-%d")))
    return 1 if failures else 0


def _run_child(part: str, seconds: float) -> tuple[list[Figure], str]:
    """A part's figures, those from before a failure included, and why it failed or ""."""
    if seconds <= 0:
        return [], "no time was left"
    command = [sys.executable, "-m", "tests.bench.gpu", "--child", part]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            output, errors = child.communicate(timeout=seconds)
            failure = "" if child.returncode == 0 else _last_line(errors)
        except subprocess.TimeoutExpired:
            child.kill()
            output, errors = child.communicate()
            failure = f"stopped after {seconds:.0f} s"
    if failure:
        print(errors, file=sys.stderr, flush=True)
    lines = [line.removeprefix(RESULT) for line in output.splitlines() if line.startswith(RESULT)]
    return [Figure(**json.loads(line)) for line in lines], failure


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:300] if lines else "no message"


def render(figures: Seq[Figure], failures: dict[str, str], date: str) -> str:
    """The page: machine and date, the table, what failed."""
    machine = next((figure.note for figure in figures if figure.part == PEAKS), "unknown machine")
    peaks = {f.unit: f.value for f in figures if f.part == PEAKS}
    lines = [f"{machine}; {date}", "", "| what | measured | of the peak | |", "|---|---|---|---|"]
    for figure in figures:
        share = ""
        if figure.part != PEAKS and figure.unit in peaks:
            peak = PEAK_NAMES[figure.unit]
            share = f"{figure.value / peaks[figure.unit]:.0%} of {peak}"
        note = "" if figure.part == PEAKS else figure.note
        value = format_value(figure.value, figure.unit)
        lines.append(f"| {figure.part}: {figure.name} | {value} | {share} | {note} |")
    lines += [f"| {part} | failed | | {why.replace('|', '/')} |" for part, why in failures.items()]
    if CORRECTNESS in failures:
        lines += ["", "The answers are not right on this machine: no figure above counts."]
    return "\n".join(lines)


def format_value(value: float, unit: str) -> str:
    """A figure for people."""
    scale, name = LARGE.get(unit, (1.0, unit))
    return f"{value / scale:.4g} {name}".strip()


def _write_json(figures: Seq[Figure], failures: dict[str, str]) -> None:
    folder = os.environ.get("OUT")
    if folder:
        content = {"figures": [asdict(figure) for figure in figures], "failures": failures}
        Path(folder, "gpu.json").write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
