"""Packed linear layers: the same numbers, and the original weights gone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.runner.packed import PackedLinear, can_pack

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(
    not can_pack(CPU, torch.float32), reason="this torch has no packed linear operators"
)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 48), (17, 48), (1, 300, 48), (2, 3, 48)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"]
)
def test_it_equals_the_layer_it_replaces(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias).requires_grad_(False).to(dtype)
    rows = torch.randn(shape, generator=generator).to(dtype)
    packed = PackedLinear(linear)(rows)
    assert packed.shape == (*shape[:-1], 80)
    torch.testing.assert_close(packed, linear(rows), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [(torch.device("cuda"), torch.float32), (CPU, torch.float16)],
    ids=["cuda", "float16"],
)
def test_what_has_no_packed_layers_keeps_its_own(device: torch.device, dtype: torch.dtype) -> None:
    assert not can_pack(device, dtype)
