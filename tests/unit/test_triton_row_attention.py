"""Attention of a single row against the torch reference: on a GPU, else in the interpreter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

pytest.importorskip("triton")

from model.runner.cuda_kernels import CudaKernels
from model.runner.kernels import Rotation, TorchKernels
from model.runner.triton_row_attention import PARTS, TILE
from tests.unit.test_triton_kernels import DEVICE, Step, close, every_geometry, random
from tests.unit.triton_interpreter import interpreted

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    with interpreted():
        yield


class Row:
    """A sequence's last token before its attention, over a cache that holds all before it."""

    def __init__(
        self,
        context: int,
        *,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 16,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.step = Step(
            [(context - 1, context)],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            block_size=block_size,
            dtype=dtype,
        )
        self.qk_norm = random(heads + kv_heads, head_dim, dtype=dtype)
        angle = random(head_dim // 2, 1).t()
        self.rotation = Rotation(angle.cos().to(dtype), angle.sin().to(dtype))
        self.cuda = CudaKernels(self.step.geometry, block_size, DEVICE, context)
        self.metadata = self.cuda.metadata(self.step.shares)
        # Last: what a kernel reads early must be older than what is in front of it.
        self.qkv = random(1, (heads + 2 * kv_heads) * head_dim, dtype=dtype)

    def expected(self) -> torch.Tensor:
        """By the reference, which also writes the row's key and value."""
        step = self.step
        torch_kernels = TorchKernels(step.geometry, step.block_size, DEVICE, self.step.query.dtype)
        return torch_kernels.attention(
            0,
            self.qkv.clone(),
            self.qk_norm,
            self.rotation,
            step.cache,
            torch_kernels.metadata(step.shares),
        )

    def computed(self) -> torch.Tensor:
        return self.cuda.row_attention(
            0, self.qkv, self.qk_norm, self.rotation, self.step.cache, self.metadata
        )


@pytest.mark.parametrize("block_size", [16, 4])
@pytest.mark.parametrize(
    "context",
    [
        pytest.param(1, id="the first token, with nothing before it"),
        pytest.param(2, id="one token before it"),
        pytest.param(TILE, id="one token less than a tile before it"),
        pytest.param(TILE + 1, id="a whole tile before it, and a part for itself alone"),
        pytest.param(5 * TILE - 7, id="several parts, the last of them ragged"),
    ],
)
def test_a_row_attends_among_nan_slots(context: int, block_size: int) -> None:
    row = Row(context, block_size=block_size)
    before = row.step.cache.storage.clone()
    output = row.computed()
    after = row.step.cache.storage.clone()
    row.step.cache.storage.copy_(before)
    close(output, row.expected())
    # Its key and value are stored, and nothing else is touched.
    reference = row.step.cache.storage
    assert torch.equal(after.isnan(), reference.isnan())
    close(after.nan_to_num(), reference.nan_to_num())


@pytest.mark.parametrize(
    "num_tiles",
    [
        pytest.param(PARTS, id="a tile each"),
        pytest.param(PARTS + 1, id="two tiles each, and parts without any"),
        pytest.param(2 * PARTS, id="two tiles each"),
    ],
)
def test_long_contexts_are_shared_out(num_tiles: int) -> None:
    for context in (num_tiles * TILE, num_tiles * TILE - TILE + 1):
        row = Row(context, heads=1, kv_heads=1)
        close(row.computed(), row.expected())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@every_geometry
def test_a_row_of_every_geometry(
    heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    row = Row(150, heads=heads, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype)
    close(row.computed(), row.expected())


def test_a_row_gives_the_same_again_and_again() -> None:
    row = Row(700)
    first = row.computed()
    for _ in range(20):
        assert torch.equal(row.computed(), first)


def test_a_row_alone_is_the_row_of_a_batch_up_to_rounding() -> None:
    row = Row(300)
    batched = row.cuda.attention(
        0, row.qkv, row.qk_norm, row.rotation, row.step.cache, row.metadata
    )
    close(row.computed(), batched)


def test_a_padding_row_looks_at_itself_and_writes_to_its_slot_alone() -> None:
    row = Row(40)
    assert row.metadata.decode is not None
    row.metadata.decode.contexts.zero_()
    # What lies in its table must not matter: it has no context.
    row.metadata.decode.tables.fill_(1 << 20)
    cache = row.step.cache
    before = cache.storage.clone()
    output = row.computed()
    [slot] = row.metadata.slots.tolist()
    changed = (before != cache.storage) & ~(before.isnan() & cache.storage.isnan())
    assert changed.flatten(3).any(3).any(0).any(0).nonzero().tolist() == [[slot]]
    close(output.view(4, 16), cache.values[0][slot].repeat_interleave(2, 0))


def test_a_row_without_a_slot_is_written_nowhere() -> None:
    row = Row(40)
    expected = row.computed()
    row.step.cache.storage[:, :, row.metadata.slots.long()] = float("nan")
    row.metadata.slots.fill_(-1)
    before = row.step.cache.storage.clone()
    assert torch.equal(row.computed(), expected)
    assert torch.equal(before.isnan(), row.step.cache.storage.isnan())
