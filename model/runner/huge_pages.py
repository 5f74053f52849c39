"""Host memory in pages of two megabytes.

Weights are read from end to end at every step, and each page costs the processor a look-up in
memory too: in the usual 4 KiB that halves what a core reads. torch's own allocator can ask for huge
pages but does not begin its tensors on one, so that most weights would have none.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

PAGE_BYTES: Final = 2 << 20
# What small copies share: a page of its own for each would waste half of it.
SHARED_BYTES: Final = 32 * PAGE_BYTES
ALIGNMENT: Final = 64


def empty(shape: Seq[int], dtype: torch.dtype) -> Tensor:
    """As torch.empty on the CPU; where the system has no huge pages, in usual ones.

    As there, memory is taken when it is first written, here by whole pages, and given back with the
    tensor.
    """
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    return _shaped(_map(num_bytes)[:num_bytes], shape, dtype)


def copy(tensor: Tensor) -> Tensor:
    """The same on the CPU, contiguous, in huge pages; for what stays as long as its neighbours.

    Small ones share pages, which are given back with the last of them.
    """
    piece = _shaped(_arena.take(tensor.nbytes), tensor.shape, tensor.dtype)
    return piece.copy_(tensor)


class _Arena:
    """Hands out pieces of one mapping until it is used up, then of the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free = torch.empty(0, dtype=torch.uint8)

    def take(self, num_bytes: int) -> Tensor:
        """So many bytes, their address a multiple of ALIGNMENT."""
        if num_bytes > SHARED_BYTES // 4:
            return _map(num_bytes)[:num_bytes]
        with self._lock:
            if len(self._free) < num_bytes:
                self._free = _map(SHARED_BYTES)
            piece = self._free[:num_bytes]
            self._free = self._free[-(-num_bytes // ALIGNMENT) * ALIGNMENT :]
            return piece


_arena: Final = _Arena()


def _shaped(piece: Tensor, shape: Seq[int], dtype: torch.dtype) -> Tensor:
    return piece.view(dtype).view(torch.Size(shape))


def _map(num_bytes: int) -> Tensor:
    """Fresh memory that begins on a huge page; [at least num_bytes] uint8."""
    whole = -(-num_bytes // PAGE_BYTES) * PAGE_BYTES
    mapping = mmap.mmap(-1, whole + PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    bytes_of = torch.frombuffer(mapping, dtype=torch.uint8)
    first = -bytes_of.data_ptr() % PAGE_BYTES
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a system without them
            mapping.madvise(mmap.MADV_HUGEPAGE, first, whole)
    return bytes_of[first : first + whole]
