"""Which device and format are chosen, and how impossible ones are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from model.runner import device
from model.runner.device import (
    UnusableSetting,
    cpu_multiplies_bfloat16,
    resolve_device,
    resolve_dtype,
)
from model.settings import Dtype

if TYPE_CHECKING:
    from pathlib import Path

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("flags\t\t: fpu avx512f avx512_bf16", True, id="AVX512_BF16"),
        pytest.param("flags\t\t: fpu amx_bf16 amx_tile", True, id="AMX"),
        pytest.param("Features\t: fp asimd i8mm bf16", True, id="Arm"),
        pytest.param("flags\t\t: fpu avx2 avx512f avx512_vnni", False, id="AVX-512 without it"),
        pytest.param("model name\t: bf16", False, id="elsewhere in the file"),
    ],
)
def test_bfloat16_needs_the_processors_instructions(
    tmp_path: Path, line: str, expected: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n")
    assert cpu_multiplies_bfloat16(tmp_path / "cpuinfo") is expected


def test_unknown_processor_multiplies_no_bfloat16(tmp_path: Path) -> None:
    assert not cpu_multiplies_bfloat16(tmp_path / "absent")


@pytest.mark.parametrize(
    ("setting", "saved", "where", "expected"),
    [
        pytest.param(Dtype.FLOAT16, "bfloat16", CPU, torch.float16, id="what is asked for"),
        pytest.param(Dtype.AUTO, "bfloat16", CPU, torch.float32, id="float32 on a plain processor"),
        pytest.param(Dtype.AUTO, "bfloat16", CUDA, torch.bfloat16, id="the checkpoint's on CUDA"),
        pytest.param(Dtype.AUTO, "float32", CUDA, torch.float32, id="float32 stays on CUDA"),
    ],
)
def test_resolve_dtype(
    monkeypatch: pytest.MonkeyPatch,
    setting: Dtype,
    saved: str,
    where: torch.device,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert resolve_dtype(setting, saved, where) is expected


def test_old_gpu_takes_float16_for_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert resolve_dtype(Dtype.AUTO, "bfloat16", CUDA) is torch.float16


def test_bfloat16_processor_takes_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "cpu_multiplies_bfloat16", lambda: True)
    assert resolve_dtype(Dtype.AUTO, "float32", CPU) is torch.bfloat16


@pytest.mark.parametrize("name", ["gpu", "meta", "cpu:x", "cuda:99"])
def test_impossible_device_is_named(name: str) -> None:
    with pytest.raises(UnusableSetting, match=f"model.device is '{name}'"):
        resolve_device(name)


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto").type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
