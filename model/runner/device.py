"""Which device and number format a model runs in, and how a device's errors are told."""

from __future__ import annotations

import platform
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.engine.batch import DeviceFailure, OutOfDeviceMemory
from model.settings import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU_INFO = Path("/proc/cpuinfo")
# x86 has AVX512_BF16 or AMX tiles; Arm lists the same ability as plain "bf16".
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


# What torch, CUDA and its libraries say when memory is all that is missing.
OUT_OF_MEMORY = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "can't allocate memory",
)
DEVICE_ERRORS = ("CUDA error", "Triton Error [CUDA]", "cuDNN error", "cudaError")


class UnusableSetting(Exception):
    """A setting this machine cannot honour; its text is one sentence for the operator."""


@contextmanager
def device_errors() -> Iterator[None]:
    """Tell a device's errors as the engine knows them; others pass."""
    try:
        yield
    except RuntimeError as e:
        text = str(e)
        if any(words in text for words in OUT_OF_MEMORY) or isinstance(e, torch.OutOfMemoryError):
            raise OutOfDeviceMemory(text) from e
        if isinstance(e, torch.AcceleratorError) or any(words in text for words in DEVICE_ERRORS):
            raise DeviceFailure(text) from e
        raise


def resolve_device(name: str) -> torch.device:
    """The torch device a setting names; `auto` takes CUDA where there is one.

    Raises UnusableSetting: no such device, or CUDA that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise UnusableSetting(
            f"model.device is {name!r}; it must be auto, cpu, cuda or cuda:N"
        ) from e
    if device.type not in ("cpu", "cuda"):
        raise UnusableSetting(f"model.device is {name!r}; it must be auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UnusableSetting(f"model.device is {name!r}; this machine offers {count} CUDA devices")
    return device


def resolve_dtype(setting: Dtype, saved: str, device: torch.device) -> torch.dtype:
    """The number format of weights and KV cache; `saved` is the checkpoint's own."""
    if setting is not Dtype.AUTO:
        return torch_dtype(setting.value)
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    dtype = torch_dtype(saved)
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return dtype


def torch_dtype(name: str) -> torch.dtype:
    """A floating dtype by its name, with or without the `torch.` prefix."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UnusableSetting(f"{name!r} is no floating-point format that torch knows")
    return dtype


def cpu_multiplies_bfloat16(cpu_info: Path = CPU_INFO) -> bool:
    """Whether the processor has bfloat16 instructions; emulated, it is slower than float32."""
    if platform.system() != "Linux":
        return False
    try:
        lines = cpu_info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    for line in lines:
        key, _, flags = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            return not BFLOAT16_FLAGS.isdisjoint(flags.split())
    return False
