"""One line about the machine, printed above every table."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch
import transformers


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
