"""The runner as the engine sees it: what it keeps, what it lets go, what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.checkpoint import read_checkpoint
from model.engine.sequence import Sequence
from model.request import SamplingParams
from model.runner.device import UnusableSetting
from model.runner.kv_cache import DEFAULT_CPU_BYTES, KVShape, size_kv_cache
from model.runner.load import load_runner
from model.runner.loader import load_model
from model.settings import Dtype, EngineSettings, ModelSettings, Settings
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Driver, make_request

if TYPE_CHECKING:
    from pathlib import Path

    from model.engine.batch import Runner
    from model.runner.runner import TorchRunner

CPU = torch.device("cpu")
BLOCK_BYTES = 2 * 3 * 16 * 2 * 16 * 4


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), Shape(num_layers=3))


def make_runner(path: Path, dtype: Dtype = Dtype.FLOAT32, **engine: Any) -> TorchRunner:
    settings = Settings(
        model=ModelSettings(device="cpu", dtype=dtype),
        engine=EngineSettings(**({"kv_cache_bytes": 1 << 20} | engine)),
    )
    return load_runner(settings, read_checkpoint(path))


def test_implements_the_engines_protocol(checkpoint_path: Path) -> None:
    runner: Runner = make_runner(checkpoint_path)
    assert runner.block_size == 16
    assert runner.num_blocks == (1 << 20) // BLOCK_BYTES


def test_memory_counts_weights_and_cache(checkpoint_path: Path) -> None:
    runner = make_runner(checkpoint_path)
    assert runner.memory().kv_cache_bytes == runner.num_blocks * BLOCK_BYTES
    model = load_model(checkpoint_path, torch.device("cpu"), torch.float32)
    assert runner.memory().weight_bytes == sum(p.nbytes for p in model.parameters())


def test_embeddings_go_once_their_image_is_computed(checkpoint_path: Path) -> None:
    runner = make_runner(checkpoint_path)
    driver = Driver(runner, chunk_size=5)
    sequence = Sequence(make_request("r", [2, (2, 3), 1, (1, 2), 4]))
    held = []
    while not sequence.num_completion_tokens:
        driver.step([sequence])
        held.append(sorted(runner.kept_images(sequence)))
    # Images end at 9 and 14 of 19 tokens; chunks at 5, 10, 15, 19.
    assert held == [[0], [], [], []]
    driver.step([sequence])
    assert runner.num_kept == 1


def test_release_forgets_and_may_be_repeated(checkpoint_path: Path) -> None:
    runner = make_runner(checkpoint_path)
    driver = Driver(runner, chunk_size=4)
    sequence = Sequence(make_request("r", [2, (3, 3), 1]))
    driver.step([sequence])
    assert sorted(runner.kept_images(sequence)) == [0]
    for _ in range(2):
        runner.release([sequence])
        assert runner.num_kept == 0


def test_share_without_sampling_gives_no_id(checkpoint_path: Path) -> None:
    driver = Driver(make_runner(checkpoint_path), chunk_size=4)
    first, second = (
        Sequence(make_request(name, [length])) for name, length in (("a", 9), ("b", 3))
    )
    driver.step([first, second])
    assert (first.num_completion_tokens, second.num_completion_tokens) == (0, 1)


@pytest.mark.parametrize("kernels", ["compiled", "torch's", "the reference"])
def test_a_step_is_told_before_its_layers_run(
    checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    if kernels == "torch's":
        monkeypatch.setattr("model.runner.runner.supports", lambda geometry, dtype: False)
    runner = make_runner(checkpoint_path, reference=kernels == "the reference")
    sequence = Sequence(make_request("r", [2, (2, 3), 1]))
    driver = Driver(runner, chunk_size=100)
    # As bits: what nobody has written is NaN.
    keys = runner.cache.keys[0].view(torch.int32)
    at_the_call: list[torch.Tensor] = []
    runner.computing = lambda: at_the_call.append(keys.clone())
    for _ in range(2):
        before = keys.clone()
        at_the_call.clear()
        driver.step([sequence])
        assert all(torch.equal(keys_then, before) for keys_then in at_the_call)
        assert at_the_call
        assert not torch.equal(keys, before)


@pytest.mark.parametrize("num_blocks", [1, 2, 50])
def test_warm_up_keeps_nothing(checkpoint_path: Path, num_blocks: int) -> None:
    runner = make_runner(
        checkpoint_path, block_size=4, kv_cache_bytes=num_blocks * BLOCK_BYTES // 4
    )
    assert runner.num_blocks == num_blocks
    runner.warm_up()
    assert runner.num_kept == 0


def test_warm_up_changes_no_answer(checkpoint_path: Path) -> None:
    request = make_request("r", [4, (2, 2), 3])
    runner = make_runner(checkpoint_path)
    before = Driver(runner).generate([request], 8)
    runner.warm_up()
    assert Driver(runner).generate([request], 8) == before


def test_seeded_request_draws_the_same_alone_in_a_batch_and_after_preemption(
    checkpoint_path: Path,
) -> None:
    runner = make_runner(checkpoint_path)
    params = SamplingParams(temperature=1.0, top_p=0.95)
    requests = [make_request(f"{i}", [5 + i], seed=i, sampling=params) for i in range(6)]
    alone = [Driver(runner).generate([request], 10)[0] for request in requests]
    assert Driver(runner, chunk_size=3).generate(requests, 10) == alone
    driver = Driver(runner)
    sequence = Sequence(requests[0])
    for step in range(11):
        if step == 4:
            driver.preempt(sequence)
        driver.step([sequence])
    assert sequence.token_ids[sequence.num_prompt_tokens :][:10] == alone[0]


@pytest.mark.parametrize("dtype", [Dtype.BFLOAT16, Dtype.FLOAT16])
def test_narrow_formats_run_every_kind_of_step(checkpoint_path: Path, dtype: Dtype) -> None:
    runner = make_runner(checkpoint_path, dtype)
    requests = [make_request("a", [4, (2, 2), 3]), make_request("b", [18])]
    tokens = Driver(runner, chunk_size=6).generate(requests, 6)
    assert [len(ids) for ids in tokens] == [6, 6]


@pytest.mark.parametrize(
    ("settings", "max_model_len", "expected"),
    [
        pytest.param(
            {"kv_cache_bytes": 10 * BLOCK_BYTES + 7}, 4096, 10, id="what is set, whole blocks"
        ),
        pytest.param({"max_sequences": 2}, 100, 2 * 7, id="what the sequences can fill"),
        pytest.param({}, 1 << 20, DEFAULT_CPU_BYTES // BLOCK_BYTES, id="at most 1 GiB"),
    ],
)
def test_cache_size_on_cpu(settings: dict[str, Any], max_model_len: int, expected: int) -> None:
    shape = KVShape(num_layers=3, num_kv_heads=2, head_dim=16, block_size=16, dtype=torch.float32)
    assert shape.block_bytes == BLOCK_BYTES
    size = size_kv_cache(EngineSettings(**settings), shape, max_model_len, CPU, lambda: 0)
    assert size == expected


def test_cache_smaller_than_a_block_is_refused(checkpoint_path: Path) -> None:
    with pytest.raises(UnusableSetting, match=r"kv_cache_bytes leaves 100 bytes .* takes 12288"):
        make_runner(checkpoint_path, kv_cache_bytes=100)


def test_cache_on_cuda_is_what_the_ratio_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = KVShape(num_layers=3, num_kv_heads=2, head_dim=16, block_size=16, dtype=torch.float32)
    total, free = 1000 * BLOCK_BYTES, 800 * BLOCK_BYTES
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, total))
    settings = EngineSettings(memory_ratio=0.75)
    cuda = torch.device("cuda")
    assert size_kv_cache(settings, shape, 4096, cuda, lambda: 50 * BLOCK_BYTES) == 750 - 200 - 50
    with pytest.raises(UnusableSetting, match=r"memory_ratio 0\.75 leaves -"):
        size_kv_cache(settings, shape, 4096, cuda, lambda: 600 * BLOCK_BYTES)
