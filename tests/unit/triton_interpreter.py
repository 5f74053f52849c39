"""Runs Triton kernels where there is no GPU: in Triton's own interpreter, on CPU tensors.

TRITON_INTERPRET=1 must be set before anything imports triton, which transformers does, and would
then hold for the whole process. Here what `triton.jit` made is replaced for a while instead.
"""

from __future__ import annotations

import importlib
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from model.runner import (
    triton_attention,
    triton_kernels,
    triton_launch,
    triton_products,
    triton_row_attention,
    triton_vision,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

KERNELS = (
    triton_launch,
    triton_kernels,
    triton_attention,
    triton_row_attention,
    triton_products,
    triton_vision,
)
# The same tests run the compiled kernels where there is a device for them.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def interpreted() -> Iterator[None]:
    """Interpret the kernels, and the parts of Triton's library that are kernels themselves."""
    if DEVICE.type == "cuda":
        yield
        return
    with suppress(ImportError):
        # Would be imported at the first launch, and refuses a library that is interpreted already.
        importlib.import_module("triton.experimental.gluon")
    made: dict[int, Any] = {}
    with _restored(), pytest.MonkeyPatch.context() as patch:
        for module in (tl, tl.standard, *KERNELS):
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    twin = made.setdefault(id(value), InterpretedFunction(value.fn))
                    patch.setattr(module, name, twin)
        _skip_unless_loops_work()
        yield


@contextmanager
def _restored() -> Iterator[None]:
    """Undo what the interpreter does to Triton's library; it forgets to where kernels call others.

    Without it nothing could be compiled in this process any more.
    """
    owners = (tl, tl.core, tl.math, tl.tensor, tl.dtype, tl.core.tensor_descriptor_base)
    before = [(owner, dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes in before:
            for name, value in list(vars(owner).items()):
                if name not in attributes:
                    delattr(owner, name)
                elif value is not attributes[name]:
                    setattr(owner, name, attributes[name])


def _skip_unless_loops_work() -> None:
    """Skip where the interpreter and NumPy do not fit: Triton 3.6's fails with NumPy 2.4."""
    count = torch.ones(1, dtype=torch.int32)
    try:
        InterpretedFunction(_count_up)[(1,)](count)
    except InterpreterError:
        pytest.skip(f"the interpreter of triton {triton.__version__} cannot loop here")
    assert count.item() == 2


def _count_up(count: tl.tensor) -> None:
    for _ in range(tl.load(count)):
        tl.store(count, 2)
