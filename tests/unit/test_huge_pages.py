"""Tensors in huge pages: where they begin, that they do not overlap, and that they go again."""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

import pytest
import torch

from model.runner import huge_pages
from model.runner.native.layers import Rooms

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE = 16 * huge_pages.PAGE_BYTES


def mapped_kib(field: str, tensor: torch.Tensor) -> int:
    """A figure of the mapping that a tensor lies in, as the kernel tells it."""
    address = tensor.data_ptr()
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith(f"{field}:"):
            return int(line.split()[1])
    return 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(), (0, 4), (3, 5), (1 << 20, 24)], ids=str)
def test_a_copy_is_contiguous_and_equal(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 200, shape).to(dtype)
    turned = tensor.T if len(shape) == 2 else tensor
    copy = huge_pages.copy(turned)
    assert copy.is_contiguous()
    assert torch.equal(copy, turned)


def test_pieces_do_not_overlap_and_begin_on_cache_lines() -> None:
    contents = [torch.full((n,), i, dtype=torch.uint8) for i, n in enumerate((1, 65, 4096, LARGE))]
    tensors = [huge_pages.copy(content) for content in contents]
    for tensor in tensors:
        assert tensor.data_ptr() % huge_pages.ALIGNMENT == 0
    assert [tensor.unique().tolist() for tensor in tensors] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("size", [1, LARGE])
def test_an_empty_one_begins_on_a_huge_page(size: int) -> None:
    assert huge_pages.empty((size,), torch.uint8).data_ptr() % huge_pages.PAGE_BYTES == 0


@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text(), reason="the kernel gives no huge pages"
)
def test_what_is_written_lies_in_huge_pages() -> None:
    tensor = huge_pages.empty((LARGE,), torch.uint8)
    tensor.fill_(1)
    assert mapped_kib("AnonHugePages", tensor) >= huge_pages.PAGE_BYTES >> 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_taken_when_it_is_written_and_given_back_with_the_tensor() -> None:
    gigabyte = huge_pages.empty((1 << 30,), torch.uint8)
    assert mapped_kib("Rss", gigabyte) < 64 << 10
    before = _mapped_bytes()
    del gigabyte
    gc.collect()
    assert _mapped_bytes() <= before - (1 << 30)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_room_that_grows_row_by_row_gives_its_old_memory_back() -> None:
    rooms, weight = Rooms(torch.float32), huge_pages.copy(torch.zeros(1000))
    rooms.room("gated", 1, 8192)
    before = _mapped_bytes()
    for num_rows in range(2, 257):
        rooms.room("gated", num_rows, 8192)
    assert _mapped_bytes() - before < 4 * 256 * 8192 * 4
    assert not weight.any()


def _mapped_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * 4096
