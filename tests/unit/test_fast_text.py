"""The serving path against the reference path: the same logits, the weights held once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from model.checkpoint import read_checkpoint
from model.engine.batch import ScheduledBatch, ScheduledImage, ScheduledSequence
from model.engine.sequence import Sequence
from model.runner.fast_text import FastTextModel, fuse
from model.runner.kernels import Rotation, rms_norm, rotate
from model.runner.load import load_runner
from model.runner.native import compiled
from model.settings import Dtype, EngineSettings, ModelSettings, Settings
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Driver, Part, make_request

if TYPE_CHECKING:
    from pathlib import Path

    from model.runner.kv_cache import KVCache
    from model.runner.qwen3_vl import TextInputs
    from model.runner.runner import TorchRunner

PROMPTS: list[list[Part]] = [[9], [3, (2, 3), 7], [20, (5, 2), (1, 3), 2]]


@pytest.fixture(
    scope="module",
    params=[
        Shape(tied=True, num_layers=5),
        Shape(tied=False, num_layers=5),
        Shape(num_layers=3),
        Shape(num_layers=4, head_dim=64, mrope_section=(12, 10, 10)),
    ],
    ids=["tied", "untied", "DeepStack in every layer", "heads of 64"],
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), request.param)


@pytest.fixture(params=["wide", "narrow"], autouse=True)
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the processor's 512-bit vectors, where it has them, and as one without."""
    if request.param == "narrow":
        monkeypatch.setattr(compiled, "usable", lambda dtype: False)
    elif not compiled.usable(torch.float32):
        pytest.skip("this processor has no kernels for 512-bit vectors")
    return str(request.param)


def runner_of(folder: Path, dtype: Dtype, *, reference: bool) -> TorchRunner:
    engine = EngineSettings(kv_cache_bytes=4 << 20, reference=reference)
    settings = Settings(model=ModelSettings(device="cpu", dtype=dtype), engine=engine)
    return load_runner(settings, read_checkpoint(folder))


def test_the_fast_path_is_what_serves(folder: Path, vectors: str) -> None:
    text = runner_of(folder, Dtype.FLOAT32, reference=False)._text
    assert isinstance(text, FastTextModel)
    assert (text._native is not None) == (vectors == "wide")


def logits_of(folder: Path, dtype: Dtype, *, reference: bool) -> torch.Tensor:
    runner = runner_of(folder, dtype, reference=reference)
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    return run_teacher_forced(runner, [Sequence(request) for request in requests])


def test_logits_equal_the_reference(folder: Path) -> None:
    fast, exact = (
        logits_of(folder, Dtype.FLOAT32, reference=reference) for reference in (False, True)
    )
    assert (fast - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
def test_half_precision_is_no_farther_from_float32_than_the_reference(
    folder: Path, dtype: Dtype
) -> None:
    exact = logits_of(folder, Dtype.FLOAT32, reference=True)
    fast, reference = (
        (logits_of(folder, dtype, reference=path) - exact).norm() for path in (False, True)
    )
    assert 0 < reference < 0.1 * exact.norm()
    assert fast < 1.25 * reference


def run_teacher_forced(runner: TorchRunner, sequences: list[Sequence]) -> torch.Tensor:
    """Logits of all prompts in one step, then of one decode step after a fixed token."""
    logits = []
    run = runner._text.logits

    def recording(inputs: TextInputs, cache: KVCache) -> torch.Tensor:
        logits.append(run(inputs, cache))
        return logits[-1].clone()

    runner._text.logits = recording  # type: ignore[method-assign]
    free = iter(range(runner.num_blocks))
    for sequence in sequences:
        sequence.block_table = [next(free) for _ in range(8)]
    images = tuple(
        ScheduledImage(s, index) for s in sequences for index in range(len(s.request.images))
    )
    prompts = tuple(ScheduledSequence(s, 0, len(s.token_ids), samples=True) for s in sequences)
    runner.execute(ScheduledBatch(prompts, images))
    for sequence in sequences:
        sequence.token_ids.append(65)
    decodes = tuple(ScheduledSequence(s, len(s.token_ids) - 1, 1, samples=True) for s in sequences)
    runner.execute(ScheduledBatch(decodes))
    return torch.cat(logits)


def test_both_paths_generate_the_same_tokens(folder: Path) -> None:
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    reference, fast = (
        Driver(runner_of(folder, Dtype.FLOAT32, reference=reference), 7).generate(requests, 12)
        for reference in (True, False)
    )
    assert fast == reference


def test_another_cache_is_read_and_written_from_the_next_step_on(folder: Path) -> None:
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    runner = runner_of(folder, Dtype.FLOAT32, reference=False)
    expected = Driver(runner, 7).generate(requests, 4)
    before, runner.cache = runner.cache, runner._new_cache(runner.num_blocks)
    before.storage.fill_(7.0)
    assert Driver(runner, 7).generate(requests, 4) == expected
    assert (before.storage == 7.0).all(), "the cache before is somebody else's now"


@pytest.mark.parametrize("bias", [True, False])
def test_fused_layers_share_their_memory_with_the_originals(bias: bool) -> None:
    parts = [nn.Linear(6, size, bias=bias).requires_grad_(False) for size in (4, 2, 3)]
    rows = torch.randn(5, 6)
    expected = torch.cat([part(rows) for part in parts], dim=-1)
    fused = fuse(parts)
    torch.testing.assert_close(fused(rows), expected)
    fused.weight[0, 0] = 7.0
    fused.weight[-1, 0] = 9.0
    assert (parts[0].weight[0, 0], parts[-1].weight[-1, 0]) == (7.0, 9.0)
    torch.testing.assert_close(torch.cat([part(rows) for part in parts], dim=-1), fused(rows))


def test_rotation_keeps_lengths_and_turns_by_the_angle() -> None:
    heads = torch.randn(3, 2, 8)
    angle = torch.full((3, 4), torch.pi / 2)
    rotated = rotate(heads, Rotation(angle.cos(), angle.sin()))
    torch.testing.assert_close(rotated, torch.cat([-heads[..., 4:], heads[..., :4]], dim=-1))


def test_norm_is_taken_in_float32() -> None:
    rows = torch.full((1, 4), 300.0, dtype=torch.float16)
    normal = rms_norm(rows, torch.ones(4, dtype=torch.float16), 1e-6)
    torch.testing.assert_close(normal, torch.ones(1, 4, dtype=torch.float16))
