"""Whether the CUDA path gives the reference's answers on this machine's GPU."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch

from model.checkpoint import read_checkpoint
from model.runner.cuda_runner import CudaRunner
from model.runner.load import load_runner
from model.runner.loader import load_model
from model.settings import Dtype, EngineSettings, ModelSettings, Settings
from tests.bench.gpu_parts import (
    DEVICE,
    Figure,
    batch_of,
    decoder_of,
    make_image,
    make_sequences,
    overlapped,
)
from tests.checkpoints import Shape, make_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.runner.runner import TorchRunner

CORRECTNESS = "correctness"


def check_answers() -> Iterator[Figure]:
    """Raises AssertionError where the CUDA path does not give the reference's answers."""
    shape = Shape(
        hidden_size=256,
        num_heads=8,
        head_dim=64,
        mrope_section=(12, 10, 10),
        num_layers=4,
        # Heads of 72, as the largest models have them.
        vision_hidden_size=144,
        vision_heads=2,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = make_checkpoint(Path(name), shape, dtype=torch.bfloat16)
        exact, torch_cuda = (_reference(folder, device) for device in ("cpu", DEVICE.type))
        plain, recorded = (_cuda_runner(folder, graphs=graphs) for graphs in (False, True))
        recorded.warm_up()
        expected = _teacher_forced(exact)
        ours = _distance(_teacher_forced(plain), expected)
        rounded = _teacher_forced(torch_cuda)
        theirs = _distance(rounded, expected)
        note = f"bfloat16 against float32 on the CPU; transformers' own modules: {theirs:.2e}"
        yield Figure(CORRECTNESS, "relative error of logits", ours, "", note)
        assert ours < max(1.25 * theirs, 1e-2), "logits are farther off than rounding explains"
        yield from _check_embeddings(shape, exact, torch_cuda, plain)
        tolerance = float((rounded - expected).abs().max())
        safe, agreed = _agreement(_teacher_forced(recorded), expected, tolerance)
        yield Figure(CORRECTNESS, "greedy tokens that agree", agreed, f"of {safe} safe ones")
        assert agreed == safe > 0, "a greedy token differs where rounding cannot have changed it"
        assert _decode_ids(recorded) == _decode_ids(plain), "graphs change tokens"
        first, second = (decoder_of(runner)._logits for runner in (recorded, plain))
        assert torch.equal(first[:3], second[:3]), "graphs change logits"
        yield Figure(CORRECTNESS, "graphs equal the same steps unrecorded", 1, "bit for bit")


def _check_embeddings(
    shape: Shape, exact: TorchRunner, torch_cuda: TorchRunner, ours: TorchRunner
) -> Iterator[Figure]:
    expected = _embeddings(exact, shape)
    error = _distance(_embeddings(ours, shape), expected)
    theirs = _distance(_embeddings(torch_cuda, shape), expected)
    note = f"bfloat16 against float32 on the CPU; transformers' own modules: {theirs:.2e}"
    yield Figure(CORRECTNESS, "relative error of image embeddings", error, "", note)
    assert error < max(1.25 * theirs, 1e-2), "embeddings are farther off than rounding explains"


def _embeddings(runner: TorchRunner, shape: Shape) -> torch.Tensor:
    """Of pictures of several sizes in one call: [num_tokens, layers * hidden_size] on the CPU."""
    window = shape.patch_size * shape.merge_size
    sizes = [(5, 7), (5, 7), (12, 3), (1, 1)]
    images = [
        make_image(shape, (height * window, width * window), seed)
        for seed, (height, width) in enumerate(sizes)
    ]
    encoded = runner.vision.encode(images)
    return torch.cat([torch.cat([e.tokens, *e.deepstack], 1) for e in encoded]).float().cpu()


def _reference(folder: Path, device: str) -> TorchRunner:
    dtype = Dtype.FLOAT32 if device == "cpu" else Dtype.BFLOAT16
    engine = EngineSettings(kv_cache_bytes=64 << 20, max_model_len=1024, reference=True)
    settings = Settings(model=ModelSettings(device=device, dtype=dtype), engine=engine)
    return load_runner(settings, read_checkpoint(folder))


def _cuda_runner(folder: Path, *, graphs: bool) -> CudaRunner:
    engine = EngineSettings(kv_cache_bytes=64 << 20, max_model_len=1024, max_sequences=8)
    model = load_model(folder, DEVICE, torch.bfloat16)
    return CudaRunner(model, read_checkpoint(folder), engine, graphs=graphs)


def _teacher_forced(runner: TorchRunner) -> torch.Tensor:
    """Logits of ragged prompts and of 8 decode steps over fixed tokens; float32 on the CPU."""
    sequences = make_sequences(runner, (7, 300, 65))
    with _recorded_logits(runner) as seen:
        runner.execute(batch_of(sequences, whole=True)).tokens()
        for step in range(8):
            for sequence in sequences:
                sequence.token_ids.append(40 + step)
            runner.execute(batch_of(sequences)).tokens()
    runner.release(sequences)
    assert len(seen) == 9, "one for each step"
    return torch.cat([logits[: len(sequences)].float().cpu() for logits in seen])


@contextmanager
def _recorded_logits(runner: TorchRunner) -> Iterator[list[torch.Tensor]]:
    """The logits of every step that runs meanwhile, padding rows included."""
    seen: list[torch.Tensor] = []
    decoder = decoder_of(runner) if isinstance(runner, CudaRunner) else None
    run_text = runner._text.logits
    run_decoder = decoder.run if decoder is not None else None
    decodes = False

    def text_logits(*arguments: Any) -> torch.Tensor:
        logits = run_text(*arguments)
        if not decodes:
            seen.append(logits.clone())
        return logits

    def decoder_run(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal decodes
        assert run_decoder is not None
        # Unless it was recorded, a decode step calls the text model itself.
        decodes = True
        logits, largest = run_decoder(*arguments)
        decodes = False
        seen.append(logits.clone())
        return logits, largest

    with ExitStack() as stack:
        stack.enter_context(patch.object(runner._text, "logits", text_logits))
        if decoder is not None:
            stack.enter_context(patch.object(decoder, "run", decoder_run))
        yield seen


def _distance(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).norm() / expected.norm())


def _agreement(logits: torch.Tensor, expected: torch.Tensor, tolerance: float) -> tuple[int, int]:
    """Rows whose best token leads by more than rounding can change, and how many agree."""
    best = expected.topk(2, dim=-1).values
    safe = best[:, 0] - best[:, 1] > 2 * tolerance
    agreed = logits.argmax(-1) == expected.argmax(-1)
    return int(safe.sum()), int((safe & agreed).sum())


def _decode_ids(runner: CudaRunner) -> list[list[int]]:
    """24 greedy tokens of three sequences, steps overlapped."""
    sequences = make_sequences(runner, (7, 300, 65), seed=1)
    first = runner.execute(batch_of(sequences, whole=True)).tokens()
    ids = [[token.token_id] for token in first]
    for sequence, token in zip(sequences, first, strict=True):
        sequence.token_ids.append(token.token_id)
    for tokens in overlapped(runner, sequences, 24):
        for row, token_id in zip(ids, tokens, strict=True):
            row.append(token_id)
    runner.release(sequences)
    return ids
