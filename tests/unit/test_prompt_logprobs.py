"""Logprobs of prompts: those of transformers, on every path, however the work is cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration as Oracle

from model.checkpoint import read_checkpoint
from model.engine.batch import OutOfDeviceMemory, ScheduledBatch, ScheduledSequence
from model.engine.sequence import Sequence
from model.request import SamplingParams
from model.runner import prompt_logprobs
from model.runner.load import load_runner
from model.runner.loader import load_model
from model.runner.logprobs import known_logprobs
from model.runner.native import compiled
from model.settings import Dtype, EngineSettings, ModelSettings, Settings
from tests.checkpoints import IMAGE_PAD, Shape, make_checkpoint
from tests.unit.runner_driver import Driver, Part, make_request, processor_patches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from model.request import GenerateRequest, TokenLogprobs
    from model.runner.runner import TorchRunner

NUM_TOP = 3
PROMPTS: list[list[Part]] = [[1], [2], [40], [3, (2, 3), 7], [20, (5, 2), (1, 3), 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), Shape(num_layers=4))


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Oracle:
    return Oracle.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(params=["fast", "narrow", "reference", "cuda"])
def runner(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TorchRunner]:
    if request.param == "cuda":
        pytest.importorskip("triton")
        from model.runner.cuda_runner import CudaRunner
        from tests.unit.triton_interpreter import DEVICE, interpreted

        engine = EngineSettings(kv_cache_bytes=4 << 20, max_model_len=512, max_sequences=6)
        with interpreted():
            model = load_model(folder, DEVICE, torch.float32)
            yield CudaRunner(model, read_checkpoint(folder), engine, graphs=False)
        return
    if request.param == "narrow":
        monkeypatch.setattr(compiled, "usable", lambda dtype: False)
    engine = EngineSettings(kv_cache_bytes=4 << 20, reference=request.param == "reference")
    settings = Settings(model=ModelSettings(device="cpu", dtype=Dtype.FLOAT32), engine=engine)
    yield load_runner(settings, read_checkpoint(folder))


def asking(name: str, parts: list[Part], seed: int = 0) -> GenerateRequest:
    sampling = SamplingParams(max_tokens=4, prompt_logprobs=NUM_TOP)
    return make_request(name, parts, seed=seed, sampling=sampling)


class Listener(Driver):
    """Keeps what each sequence's first token brought of its prompt."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.told: dict[str, list[tuple[TokenLogprobs, ...]]] = {}
        execute = self.runner.execute

        def listening(batch: ScheduledBatch) -> Any:
            step = execute(batch)
            sampled = [share.sequence for share in batch.sequences if share.samples]
            for sequence, token in zip(sampled, step.tokens(), strict=True):
                if token.prompt_logprobs is not None:
                    self.told.setdefault(sequence.request_id, []).append(token.prompt_logprobs)
            return step

        self.runner.execute = listening  # type: ignore[method-assign]


@torch.inference_mode()
def expected(oracle: Oracle, runner: TorchRunner, request: GenerateRequest) -> torch.Tensor:
    """log_softmax of transformers' logits, [num_prompt_tokens, vocab_size]."""
    ids = torch.tensor([request.prompt_token_ids])
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if request.images:
        patches = [processor_patches(runner.vision, image) for image in request.images]
        inputs["pixel_values"] = torch.cat(patches)
        inputs["image_grid_thw"] = torch.tensor(
            [[1, image.grid_height, image.grid_width] for image in request.images]
        )
        inputs["mm_token_type_ids"] = (ids == IMAGE_PAD).int()
    table: torch.Tensor = oracle(**inputs).logits[0].float().log_softmax(-1)
    return table


def check(told: tuple[TokenLogprobs, ...], table: torch.Tensor, request: GenerateRequest) -> None:
    ids = request.prompt_token_ids
    assert len(told) == len(ids) - 1
    for one, row, token_id in zip(told, table, ids[1:], strict=False):
        assert one.logprob == pytest.approx(row[token_id].item(), abs=2e-4)
        values = torch.tensor([logprob for _, logprob in one.top])
        torch.testing.assert_close(values, row.topk(NUM_TOP).values, atol=2e-4, rtol=0)
        assert one.rank is not None
        # As many are more probable, give or take those that rounding may turn round.
        assert (row > row[token_id] + 2e-4).sum() < one.rank
        assert one.rank <= (row > row[token_id] - 2e-4).sum()
        if one.rank <= NUM_TOP:
            assert one.top[one.rank - 1] == (token_id, one.logprob)


@pytest.mark.parametrize("chunk_size", [5, 16, 1 << 20])
def test_they_are_those_of_transformers(
    oracle: Oracle, runner: TorchRunner, chunk_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_logprobs, "HEAD_ROWS", 7)
    requests = [asking(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    driver = Listener(runner, chunk_size)
    silent = make_request("silent", [25], seed=9)
    driver.generate([*requests, silent], 3)
    assert driver.told.keys() == {request.request_id for request in requests}
    for request in requests:
        [told] = driver.told[request.request_id]
        check(told, expected(oracle, runner, request), request)
    assert runner.num_kept == 0


def test_whoever_asks_gets_the_same_answer(runner: TorchRunner) -> None:
    def answers(sampling: SamplingParams) -> list[list[int]]:
        requests = [
            make_request(f"r{i}", parts, seed=i, sampling=sampling)
            for i, parts in enumerate(PROMPTS[1:4])
        ]
        return Driver(runner, chunk_size=16).generate(requests, 4)

    assert answers(SamplingParams(prompt_logprobs=1)) == answers(SamplingParams())


def test_a_preempted_prompt_is_told_whole_and_once(oracle: Oracle, runner: TorchRunner) -> None:
    driver = Listener(runner, chunk_size=16)
    request = asking("r", [40])
    sequence = Sequence(request)
    driver.step([sequence])
    driver.preempt(sequence)  # before its first token: all of it again
    while sequence.num_completion_tokens < 2:
        driver.step([sequence])
    driver.preempt(sequence)  # after it: the answer goes on, and the prompt has been told
    while sequence.num_completion_tokens < 4:
        driver.step([sequence])
    [told] = driver.told["r"]
    check(told, expected(oracle, runner, request), request)


def test_a_step_that_is_done_again_tells_nothing_twice(
    oracle: Oracle, runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = asking("r", [40])
    sequence = Sequence(request)
    sequence.block_table = list(range(runner.num_blocks))
    first, second = (
        ScheduledBatch((ScheduledSequence(sequence, start, 20, samples=start == 20),))
        for start in (0, 20)
    )
    runner.execute(first)
    head, left = runner._text.head, [1]

    def soon_too_large(hidden: torch.Tensor) -> torch.Tensor:
        if not left:
            raise OutOfDeviceMemory
        left.pop()
        return head(hidden)

    monkeypatch.setattr(prompt_logprobs, "HEAD_ROWS", 7)
    monkeypatch.setattr(runner._text, "head", soon_too_large)
    with pytest.raises(OutOfDeviceMemory):
        runner.execute(second)
    monkeypatch.setattr(runner._text, "head", head)
    [token] = runner.execute(second).tokens()
    assert token.prompt_logprobs is not None
    check(token.prompt_logprobs, expected(oracle, runner, request), request)


def test_logits_of_few_rows_exist_at_a_time(
    runner: TorchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, widths = runner._text.head, []

    def counting(hidden: torch.Tensor) -> torch.Tensor:
        widths.append(len(hidden))
        return head(hidden)

    monkeypatch.setattr(runner._text, "head", counting)
    Driver(runner).generate([asking("r", [200])], 1)
    assert widths == [64, 64, 64, 7, 1]


def test_of_equal_logprobs_the_smaller_id_ranks_first() -> None:
    [one] = known_logprobs(torch.tensor([[1.0, 2.0, 2.0, 2.0]]), torch.tensor([2]), 2)
    assert one.rank == 2
    assert [token_id for token_id, _ in one.top] == [1, 2]
