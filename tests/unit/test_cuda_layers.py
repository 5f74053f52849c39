"""Prefill steps over buffers of fixed sizes, on a CPU their kernels interpreted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

pytest.importorskip("triton")

from model.engine.batch import ScheduledBatch, ScheduledSequence
from model.engine.sequence import Sequence
from model.runner import cuda_layers
from model.runner.cuda_layers import SIZES, LayerGraphs, sizes_for
from model.runner.cuda_text import CudaTextModel
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Driver
from tests.unit.test_cuda_runner import (
    PROMPTS,
    Overlapped,
    cuda_runner,
    needs_cuda,
    record_by_hand,
    requests_of,
    torch_runner,
)
from tests.unit.triton_interpreter import DEVICE, interpreted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from model.runner.cuda_runner import CudaRunner
    from tests.unit.runner_driver import Part

SHAPE = Shape(num_layers=2, vision_depth=3, deepstack_layers=(1,))
SMALL_SIZES = (8, 24, 72)


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    # Interpreted, every row takes its time, a padding row too.
    with interpreted(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda_layers, "SIZES", SMALL_SIZES)
        patch.setattr(cuda_layers, "MAX_CHUNKS", 3)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPE)


def layers_of(runner: CudaRunner) -> LayerGraphs:
    assert isinstance(runner._text, CudaTextModel)
    assert runner._text.graphs is not None
    return runner._text.graphs


def counted_steps(runner: CudaRunner) -> list[tuple[int, bool]]:
    """The padded steps that run from now on: tokens, and whether decodes are among them."""
    layers = layers_of(runner)
    steps: list[tuple[int, bool]] = []
    compute = layers._compute

    def counted(step: Any) -> None:
        steps.append((step.size, step.decodes))
        compute(step)

    layers._compute = counted  # type: ignore[method-assign]
    return steps


@pytest.mark.parametrize(
    ("prompts", "chunk_size", "expected"),
    [
        pytest.param([[5]], 99, {(8, False)}, id="a prompt of text"),
        pytest.param([[8]], 99, {(8, False)}, id="a prompt without padding"),
        pytest.param([[9], [6]], 99, {(24, False)}, id="two prompts"),
        pytest.param(PROMPTS[1:2], 99, {(24, False)}, id="a picture"),
        pytest.param(PROMPTS, 99, {(72, False)}, id="text and pictures"),
        pytest.param(PROMPTS, 7, {(24, False), (24, True), (8, True)}, id="chunks beside decodes"),
        pytest.param([[70], [5]], 99, set(), id="more tokens than the largest size"),
        pytest.param([[2], [2], [2], [2]], 99, set(), id="more chunks than there is room for"),
    ],
)
def test_padded_steps_give_what_torch_gives(
    folder: Path, prompts: list[list[Part]], chunk_size: int, expected: set[tuple[int, bool]]
) -> None:
    requests = requests_of(prompts)
    runner = cuda_runner(folder)
    runner.cache.storage.fill_(float("nan"))
    steps = counted_steps(runner)
    answers = Overlapped(runner, chunk_size).generate(requests, 4)
    assert answers == Driver(torch_runner(folder)).generate(requests, 4)
    assert set(steps) == expected


def test_a_step_finds_nothing_of_the_ones_before(folder: Path) -> None:
    requests = requests_of([[20]])
    expected = Driver(torch_runner(folder)).generate(requests, 4)
    runner = cuda_runner(folder)
    # Pictures and a longer step, in the rows that are used again or padding now.
    Driver(runner).generate(requests_of(PROMPTS), 2)
    layers = layers_of(runner)
    layers._hidden.fill_(float("nan"))
    layers._deepstack.mul_(1e6)
    assert layers._deepstack[:, :20].any(), "a picture was where text will be"
    steps = counted_steps(runner)
    assert Driver(runner).generate(requests, 4) == expected
    assert steps == [(24, False)]


def test_chunks_that_sample_nothing_are_computed_all_the_same(folder: Path) -> None:
    runner = cuda_runner(folder)
    sequence = Sequence(requests_of([[12]])[0])
    sequence.block_table = [3]
    runner.cache.storage.fill_(7.0)
    steps = counted_steps(runner)
    share = ScheduledSequence(sequence, 0, 7, samples=False)
    assert runner.execute(ScheduledBatch((share,))).tokens() == []
    assert steps == [(8, False)]
    written = (runner.cache.storage != 7.0).flatten(3).any(3).any(0).any(0).nonzero()[:, 0].tolist()
    # Its own slots, and one of the block that is nobody's.
    assert written == [*range(48, 55), runner.num_blocks * 16]


def test_prompts_that_are_told_of_leave_no_room(folder: Path) -> None:
    requests = requests_of([[12]], prompt_logprobs=1)
    runner = cuda_runner(folder)
    steps = counted_steps(runner)
    expected = Driver(torch_runner(folder)).generate(requests, 3)
    assert Driver(runner).generate(requests, 3) == expected
    assert steps == [], "every row of a prompt is asked for, and the buffer holds one a sequence"


def test_recorded_steps_are_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cuda":
        pytest.skip("real graphs are tested below")
    monkeypatch.setattr(cuda_layers, "SIZES", SMALL_SIZES[:1])
    runner = cuda_runner(folder)
    layers = layers_of(runner)
    computed = counted_steps(runner)
    compute = layers._compute
    replays: list[tuple[int, bool]] = []

    def again() -> Callable[[], None]:
        step = computed[-1]

        def replay() -> None:
            replays.append(step)
            compute(cuda_layers._Step(*step))

        return replay

    record_by_hand(monkeypatch, again)
    layers.record((0, 0))
    assert layers.num_recorded == 2
    assert computed == [(8, True), (8, True), (8, False), (8, False)], "each runs once before"
    requests = requests_of([[5]])
    expected = Driver(torch_runner(folder)).generate(requests, 4)
    assert Overlapped(runner).generate(requests, 4) == expected
    assert replays == [(8, False)]


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        pytest.param(16, SMALL_SIZES[:2], id="the next size above"),
        pytest.param(24, SMALL_SIZES[:2], id="a size itself"),
        pytest.param(512, SMALL_SIZES, id="no more than the largest"),
    ],
)
def test_sizes_to_record(max_tokens: int, expected: tuple[int, ...]) -> None:
    assert sizes_for(max_tokens) == expected
    assert list(SIZES) == sorted(SIZES)


def test_the_memory_of_recorded_steps_is_counted(folder: Path) -> None:
    few, many = (cuda_runner(folder, max_batched_tokens=most) for most in (16, 72))
    layers = layers_of(many)
    shape = layers._shape
    assert shape.sizes == SMALL_SIZES
    held = sum(t.nbytes for t in (layers._hidden, layers._deepstack, layers._attended))
    assert shape.num_bytes == held
    assert many._graph_bytes() - few._graph_bytes() >= held // 2


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graphs_give_bit_for_bit_what_the_same_step_gives(folder: Path, dtype: torch.dtype) -> None:
    recorded, plain = (cuda_runner(folder, dtype, graphs=graphs) for graphs in (True, False))
    recorded.warm_up()
    assert layers_of(recorded).num_recorded == 2 * len(SMALL_SIZES)
    for prompts, chunk_size in ((PROMPTS, 99), (PROMPTS, 7), ([[5]], 99), (PROMPTS, 11)):
        requests = requests_of(prompts)
        expected = Overlapped(plain, chunk_size).generate(requests, 8)
        assert Overlapped(recorded, chunk_size).generate(requests, 8) == expected
        assert torch.equal(layers_of(recorded)._output[:1], layers_of(plain)._output[:1])
