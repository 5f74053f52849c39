"""One line about the machine, printed above every table, and what its processes have used."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import torch
import transformers

from model.runner.device import cpu_multiplies_bfloat16

TICKS: Final = os.sysconf("SC_CLK_TCK")
# Where they stand in /proc/PID/stat after the name; see proc_pid_stat(5).
SESSION, UTIME, STIME = 3, 11, 12


def describe_machine() -> str:
    """Processor, cores, what it multiplies, library versions."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    name = next(
        (line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in text]
    return (
        f"{name}, {os.cpu_count()} cores, {' '.join(flags)}; torch {torch.__version__} with "
        f"{torch.get_num_threads()} threads, transformers {transformers.__version__}"
    )


def dtypes() -> tuple[str, ...]:
    """The number formats worth measuring: bfloat16 only where the processor has it."""
    return ("float32", "bfloat16") if cpu_multiplies_bfloat16() else ("float32",)


def cpu_seconds(session: int) -> float:
    """Processor time that the living processes of a session have used so far."""
    return sum(_session_ticks(stat, session) for stat in Path("/proc").glob("[0-9]*/stat")) / TICKS


def _session_ticks(stat: Path, session: int) -> int:
    try:
        # The name before the parenthesis may hold spaces.
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return 0  # it ended meanwhile
    return int(fields[UTIME]) + int(fields[STIME]) if int(fields[SESSION]) == session else 0
