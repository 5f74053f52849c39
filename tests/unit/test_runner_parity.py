"""Greedy tokens equal those of transformers' generate, however the work is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration as Oracle

from model.checkpoint import read_checkpoint
from model.engine.sequence import Sequence
from model.runner.load import load_runner
from model.settings import Dtype, EngineSettings, ModelSettings, Settings
from tests.checkpoints import IMAGE_PAD, Shape, make_checkpoint
from tests.unit.runner_driver import Driver, Part, make_request, processor_patches

if TYPE_CHECKING:
    from pathlib import Path

    from model.request import GenerateRequest
    from model.runner.runner import TorchRunner

NUM_TOKENS = 12
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PROMPTS = [
    pytest.param([5], id="text only"),
    pytest.param([1], id="one token"),
    pytest.param([15], id="one short of a block"),
    pytest.param([16], id="exactly a block"),
    pytest.param([17], id="one past a block"),
    pytest.param([32], id="exactly two blocks"),
    pytest.param([3, (2, 3), 7], id="one image"),
    pytest.param([(3, 2), 4], id="image first"),
    pytest.param([4, (1, 5)], id="image last"),
    pytest.param([(4, 4)], id="nothing but an image"),
    pytest.param([2, (1, 1), (2, 2), 3], id="adjacent images"),
    pytest.param([2, (6, 1), 5, (2, 3), 1, (1, 4), 6], id="three ragged images"),
]


MIXED: list[list[Part]] = [
    [9],
    [3, (2, 3), 7],
    [20, (5, 2), (1, 3), 2],
    [33],
    [1, (2, 2), 1, (3, 1), 1, (1, 6)],
]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def checkpoint_path(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), Shape(tied=request.param))


@pytest.fixture(scope="module")
def oracle(checkpoint_path: Path) -> Oracle:
    model = Oracle.from_pretrained(checkpoint_path, dtype=torch.float32)
    return model.eval()


def runner_for(path: Path, device: str = "cpu", block_size: int = 16) -> TorchRunner:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    settings = Settings(
        model=ModelSettings(device=device, dtype=Dtype.FLOAT32),
        engine=EngineSettings(block_size=block_size, kv_cache_bytes=2 << 20),
    )
    return load_runner(settings, read_checkpoint(path))


def expected_tokens(oracle: Oracle, runner: TorchRunner, request: GenerateRequest) -> list[int]:
    """What generate says, with the smallest gap between its two best logits printed."""
    ids = torch.tensor([request.prompt_token_ids])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if request.images:
        inputs["pixel_values"] = torch.cat(
            [processor_patches(runner.vision, i).cpu() for i in request.images]
        )
        inputs["image_grid_thw"] = torch.tensor(
            [[1, i.grid_height, i.grid_width] for i in request.images]
        )
        inputs["mm_token_type_ids"] = (ids == IMAGE_PAD).int()
    output = oracle.generate(
        **inputs,
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(output.logits).topk(2).values
    print(f"smallest top-2 gap of {request.request_id}: {(best[..., 0] - best[..., 1]).min():.2e}")
    tokens: list[int] = output.sequences[0, ids.shape[1] :].tolist()
    return tokens


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parts", PROMPTS)
def test_prompts_alone_equal_generate(
    checkpoint_path: Path, oracle: Oracle, parts: list[Part], device: str
) -> None:
    runner = runner_for(checkpoint_path, device)
    request = make_request("alone", parts, seed=len(parts))
    expected = expected_tokens(oracle, runner, request)
    assert Driver(runner).generate([request], NUM_TOKENS) == [expected]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 16, 17, 1 << 20])
def test_mixed_batch_equals_generate_at_any_chunk_size(
    checkpoint_path: Path, oracle: Oracle, chunk_size: int, block_size: int, device: str
) -> None:
    runner = runner_for(checkpoint_path, device, block_size)
    requests = [make_request(f"request {i}", parts, seed=i) for i, parts in enumerate(MIXED)]
    expected = [expected_tokens(oracle, runner, request) for request in requests]
    assert Driver(runner, chunk_size).generate(requests, NUM_TOKENS) == expected


@pytest.mark.parametrize("chunk_size", [5, 1 << 20])
@pytest.mark.parametrize("num_steps", [1, 2, 6])
def test_preempted_sequence_resumes_where_it_was(
    checkpoint_path: Path, oracle: Oracle, num_steps: int, chunk_size: int
) -> None:
    runner = runner_for(checkpoint_path)
    requests = [make_request("kept", [12], seed=1), make_request("lost", [4, (2, 4), 6], seed=2)]
    expected = [expected_tokens(oracle, runner, request) for request in requests]
    driver = Driver(runner, chunk_size)
    kept, lost = (Sequence(request) for request in requests)
    for _ in range(num_steps):
        driver.step([kept, lost])
    driver.preempt(lost)
    driver.step([kept])
    while min(kept.num_completion_tokens, lost.num_completion_tokens) < NUM_TOKENS:
        driver.step([kept, lost])
    tokens = [s.token_ids[s.num_prompt_tokens :][:NUM_TOKENS] for s in (kept, lost)]
    assert tokens == expected


def test_image_and_text_requests_leave_nothing_to_each_other(
    checkpoint_path: Path, oracle: Oracle
) -> None:
    runner = runner_for(checkpoint_path)
    turns: list[list[Part]] = [[11], [6, (3, 3), 2], [11], [5, (1, 2)]]
    requests = [make_request(f"turn {i}", parts, seed=i) for i, parts in enumerate(turns)]
    expected = [expected_tokens(oracle, runner, request) for request in requests]
    driver = Driver(runner)
    assert [driver.generate([request], NUM_TOKENS)[0] for request in requests] == expected


def test_poisoned_rope_deltas_change_nothing(checkpoint_path: Path, oracle: Oracle) -> None:
    runner = runner_for(checkpoint_path)
    request = make_request("poisoned", [3, (2, 3), 7])
    expected = expected_tokens(oracle, runner, request)
    runner.model.model.rope_deltas = torch.tensor([[-1234]])
    assert Driver(runner).generate([request], NUM_TOKENS) == [expected]


def test_same_text_with_another_image_reads_differently(checkpoint_path: Path) -> None:
    runner = runner_for(checkpoint_path)
    requests = [make_request(f"seed {i}", [(3, 3)], seed=i) for i in range(2)]
    assert requests[0].prompt_token_ids == requests[1].prompt_token_ids
    first, second = Driver(runner).generate(requests, NUM_TOKENS)
    assert first != second
