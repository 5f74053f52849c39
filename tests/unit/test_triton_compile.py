"""The Triton kernels compile for the devices that are served on, which needs none of them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from model.runner import (
    triton_attention,
    triton_kernels,
    triton_products,
    triton_row_attention,
    triton_vision,
)
from model.runner.kernels import Rotation

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
# What every data centre's device since 2020 gives a program.
SHARED_BYTES = 99 << 10
MODULES = (
    triton_kernels,
    triton_attention,
    triton_row_attention,
    triton_products,
    triton_vision,
)
# By other kernels alone.
CALLED = ("_offsets", "_fold", "_turned", "_cut", "follow")


class Compiler:
    """Stands in for a kernel: compiles what would have been launched."""

    def __init__(self, kernel: Any, target: GPUTarget) -> None:
        self.kernel = kernel
        self.target = target
        self.num_compiled = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *arguments: Any, **options: int) -> None:
        self._compile(*arguments, **options)
        if self.target.arch >= 90:
            # The last parameter: whether a kernel starts before the one in front of it has ended.
            self._compile(*arguments[:-1], True, launch_pdl=True, **options)

    def _compile(self, *arguments: Any, **options: int) -> None:
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int, ...], Any] = {}
        parameters = inspect.signature(self.kernel.fn).parameters.values()
        for place, (parameter, value) in enumerate(zip(parameters, arguments, strict=True)):
            if "constexpr" in parameter.annotation:
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = POINTERS.get(value.dtype, "*i32")
                attributes[(place,)] = [["tt.divisibility", 16]]
            else:
                assert parameter.name in self.kernel.do_not_specialize, "a count would recompile"
                signature[parameter.name] = "i32"
        source = ASTSource(self.kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self.target, options=options)
        assert compiled.metadata.shared <= SHARED_BYTES
        self.num_compiled += 1


@pytest.mark.parametrize(
    ("arch", "dtype"),
    [
        pytest.param(80, torch.float16, id="A100"),
        pytest.param(90, torch.bfloat16, id="H100 and H200"),
    ],
)
def test_every_kernel_compiles_as_it_is_launched(
    arch: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilers = {}
    for module in MODULES:
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction) and name not in CALLED:
                compilers[name] = Compiler(value, GPUTarget("cuda", arch, 32))
                monkeypatch.setattr(module, name, compilers[name])
    launch_all(dtype)
    assert len(compilers) == 11
    assert [name for name in compilers if not compilers[name].num_compiled] == []


def launch_all(dtype: torch.dtype) -> None:
    rows, weight = torch.zeros(4, 4096, dtype=dtype), torch.zeros(4096, dtype=dtype)
    triton_kernels.rms_norm(rows, weight, 1e-6)
    triton_kernels.add_rms_norm(rows, rows, weight, 1e-6)
    triton_kernels.silu_mul(torch.zeros(4, 2 * 12288, dtype=dtype))
    patches, scale = torch.zeros(4, 1152, dtype=dtype), torch.zeros(1152, dtype=dtype)
    triton_vision.add_layer_norm(patches, patches, scale, scale, 1e-6)
    angles = torch.zeros(4, 36, dtype=dtype)
    triton_vision.rotate_in_place(torch.zeros(4, 3 * 1152, dtype=dtype), angles, angles, 16)
    row = rows[:1]
    triton_products.norm_product(row, weight, torch.zeros(6144, 4096, dtype=dtype), 1e-6)
    gate_up = torch.zeros(2 * 12288, 4096, dtype=dtype)
    triton_products.norm_gated_product(row, weight, gate_up, 1e-6)
    down = torch.zeros(4096, 12288, dtype=dtype)
    triton_products.add_product(row, torch.zeros(1, 12288, dtype=dtype), down)
    numbers, tables = torch.zeros(4, dtype=torch.int32), torch.zeros(4, 8, dtype=torch.int32)
    cache = torch.zeros(64, KV_HEADS, HEAD_DIM, dtype=dtype)
    angles = torch.zeros(4, HEAD_DIM // 2, dtype=dtype)
    query = triton_kernels.norm_rotate_store(
        torch.zeros(4, (HEADS + 2 * KV_HEADS) * HEAD_DIM, dtype=dtype),
        torch.zeros(HEADS + KV_HEADS, HEAD_DIM, dtype=dtype),
        angles,
        angles,
        numbers,
        cache,
        cache,
        1e-6,
    )
    paged = {"block_size": 16, "scaling": HEAD_DIM**-0.5}
    triton_attention.decode_attention(
        *(query, cache, cache, numbers, tables, numbers, query),
        split_tokens=256,
        max_splits=8,
        **paged,
    )
    triton_attention.prefill_attention(query, cache, cache, tables[:, :4], tables, query, **paged)
    triton_row_attention.row_attention(
        torch.zeros(1, (HEADS + 2 * KV_HEADS) * HEAD_DIM, dtype=dtype),
        torch.zeros(HEADS + KV_HEADS, HEAD_DIM, dtype=dtype),
        Rotation(angles[:1], angles[:1]),
        *(numbers, cache, cache, tables[:1], numbers),
        eps=1e-6,
        **paged,
    )
