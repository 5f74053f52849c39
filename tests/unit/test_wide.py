"""The kernels for 512-bit vectors against the same in torch: products, pictures, whole layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from model.runner.kernels import Rotation, rotate
from model.runner.native.compiled import usable
from model.runner.native.wide import Spans, WideActivation, WideAttention, WideLinear
from model.runner.packed import make_gated, make_linear

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
DTYPES = [
    pytest.param(
        dtype,
        id=str(dtype),
        marks=pytest.mark.skipif(not usable(dtype), reason="not for this processor"),
    )
    for dtype in TOLERANCE
]


def linear(in_features: int, out_features: int, dtype: torch.dtype, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    return layer.to(dtype)


def exact(layer: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    """In float32, of the same numbers."""
    return layer.to(torch.float32)(rows.to(torch.float32))


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert actual.dtype is dtype
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.to(torch.float32), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 13, 300])
@pytest.mark.parametrize(
    ("in_features", "out_features"), [(48, 64), (384, 100), (768, 1), (2050, 192)]
)
def test_a_product_of_any_size_is_torchs(
    in_features: int, out_features: int, num_rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    for bias in (True, False):
        layer = linear(in_features, out_features, dtype, bias=bias)
        rows, plus = (torch.randn(num_rows, size).to(dtype) for size in (in_features, out_features))
        wide = WideLinear(layer)
        expected = exact(layer, rows)
        assert_close(wide(rows), expected, dtype)
        assert_close(wide(rows, plus=plus), expected + plus.to(torch.float32), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_features", [64, 96, 7])
def test_activations_are_torchs(out_features: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    rows = (8 * torch.randn(9, 64)).to(dtype)
    layer = linear(64, out_features, dtype, bias=True)
    curved = WideLinear(layer, WideActivation.GELU_TANH)(rows)
    assert_close(curved, gelu(exact(layer, rows), approximate="tanh"), dtype)
    pair = linear(64, 2 * out_features, dtype, bias=False)
    gated = WideLinear(pair, WideActivation.SWIGLU)(rows)
    gate, up = exact(pair, rows).chunk(2, dim=-1)
    assert_close(gated, silu(gate) * up, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_among_any_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    wide = WideLinear(linear(768, 256, dtype, bias=False))
    rows = torch.randn(100, 768).to(dtype)
    whole = wide(rows)
    for first, last in ((0, 1), (5, 18), (93, 100)):
        assert torch.equal(wide(rows[first:last]), whole[first:last])


@pytest.mark.parametrize("dtype", DTYPES)
def test_they_are_what_linear_layers_become(dtype: torch.dtype) -> None:
    layer = linear(64, 128, dtype, bias=False)
    assert isinstance(make_linear(layer), WideLinear)
    assert isinstance(make_gated(layer, silu), WideLinear)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(6, 64), (3, 72), (2, 16), (2, 128)], ids=str)
@pytest.mark.parametrize(
    "sizes", [[1], [64], [600], [5, 130, 64]], ids=lambda sizes: f"{sizes} patches"
)
def test_pictures_attend_to_themselves_alone(
    sizes: list[int], num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(sum(sizes), 3 * num_heads * head_dim).to(dtype)
    angles = torch.randn(sum(sizes), head_dim // 2)
    rotation = Rotation(angles.cos().to(dtype), angles.sin().to(dtype))
    heads = qkv.view(len(qkv), 3 * num_heads, head_dim)
    turned = rotate(heads[:, : 2 * num_heads], rotation)
    parts = (*turned.chunk(2, dim=1), heads[:, 2 * num_heads :])
    expected = [
        scaled_dot_product_attention(
            *(part.to(torch.float32).transpose(0, 1) for part in picture)
        ).transpose(0, 1)
        for picture in zip(*(part.split(sizes) for part in parts), strict=True)
    ]
    attended = WideAttention(dtype).over_pictures(
        qkv, rotation.cos, rotation.sin, num_heads, Spans.of_themselves(sizes)
    )
    assert_close(attended, torch.cat(expected).flatten(1), dtype)
