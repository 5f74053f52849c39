"""How a Triton kernel is made and started: with little of the host's time, and before the kernel in
front of it has ended where the device can.

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
from triton.runtime.jit import JITFunction  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable

# Triton is untyped: what it makes of a function.
Kernel: TypeAlias = Any

# Programmatic dependent launch came with Hopper.
OVERLAPPING_CAPABILITY = (9, 0)
# Triton compiles a kernel anew for a pointer that is no multiple of this.
POINTER_ALIGNMENT = 16

_compiled: dict[tuple[object, ...], Any] = {}


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
    kernel: Kernel,
    grid: tuple[int, int, int],
    *arguments: Tensor | float,
    num_warps: int,
    num_stages: int = 3,
) -> None:
    """Start a kernel on the current stream with all its arguments but OVERLAPS.

    Triton's own way looks at every argument anew each time, which takes a host longer than most of
    these kernels take a device: what it compiled for the same kinds of arguments is started here.
    """
    if not isinstance(kernel, JITFunction):
        kernel[grid](*arguments, False, num_warps=num_warps, num_stages=num_stages)
        return
    pointers = 0
    kinds: list[object] = []
    device: torch.device | None = None
    counts = kernel.do_not_specialize
    for name, argument in zip(kernel.arg_names, arguments, strict=False):
        if isinstance(argument, Tensor):
            pointers |= argument.data_ptr()
            kinds.append(argument.dtype)
            device = argument.device
        elif name not in counts:
            kinds.append(argument)
    assert device is not None, "a kernel works on tensors"
    overlaps = _overlaps(device)
    key = (kernel, device, num_warps, num_stages, *kinds)
    compiled = _compiled.get(key)
    if compiled is not None and pointers % POINTER_ALIGNMENT == 0:
        compiled[grid](*arguments, overlaps)
        return
    options = {"launch_pdl": True} if overlaps else {}
    made = kernel[grid](*arguments, overlaps, num_warps=num_warps, num_stages=num_stages, **options)
    if pointers % POINTER_ALIGNMENT == 0:
        _compiled[key] = made


@cache
def _overlaps(device: torch.device) -> bool:
    return (
        torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= OVERLAPPING_CAPABILITY
    )
