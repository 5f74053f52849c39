"""How a Triton kernel is made, and started before the one in front of it has ended.

Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor
from triton.language.extra.cuda import (  # type: ignore[import-untyped]
    gdc_launch_dependents,
    gdc_wait,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# Triton is untyped: what it makes of a function.
Kernel: TypeAlias = Any

# Programmatic dependent launch came with Hopper.
OVERLAPPING_CAPABILITY = (9, 0)


def kernel(function: Callable[..., object]) -> Kernel:
    """Compile a function; its int arguments are counts, whose values must not compile it anew.

    What `launch` starts takes OVERLAPS last, and calls `follow` with it before it reads what an
    earlier kernel wrote, or writes.
    """
    parameters = inspect.signature(function).parameters.values()
    counts = [parameter.name for parameter in parameters if parameter.annotation == "int"]
    return triton.jit(function, do_not_specialize=counts)


@kernel
def follow(OVERLAPS: tl.constexpr) -> None:
    """Let the next kernel start, and wait until the one before has ended.

    Source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization".
    """
    if OVERLAPS:
        gdc_launch_dependents()
        gdc_wait()


def launch(
    kernel: Kernel, grid: tuple[int, ...], *arguments: Tensor | float, **options: int
) -> None:
    """Start a kernel on the current stream with all its arguments, tensors first, but OVERLAPS."""
    first = arguments[0]
    assert isinstance(first, Tensor), "a kernel works on tensors"
    overlaps = _overlaps(first.device)
    if overlaps:
        options["launch_pdl"] = True
    kernel[grid](*arguments, overlaps, **options)


@cache
def _overlaps(device: torch.device) -> bool:
    """Whether kernels may start there before the one in front of them has ended."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= OVERLAPPING_CAPABILITY
    )
