"""The CUDA runner on a CPU, its kernels interpreted; what only a GPU can show is marked `cuda`."""

from __future__ import annotations

import asyncio
import random
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from model.checkpoint import read_checkpoint
from model.engine.batch import (
    DeviceFailure,
    FinishedStep,
    OutOfDeviceMemory,
    SampledToken,
    ScheduledBatch,
    ScheduledImage,
    ScheduledSequence,
)
from model.engine.blocks import BlockPool
from model.engine.loop import Engine
from model.engine.scheduler import Scheduler, SchedulerLimits
from model.engine.sequence import Sequence
from model.request import SamplingParams
from model.runner import cuda_text, fast_text, packed, triton_products
from model.runner.cuda_graphs import BUCKETS, bucket_of, buckets_for, padded_arrays, resolve_ids
from model.runner.cuda_runner import CudaRunner, CudaStep, probe
from model.runner.device import device_errors
from model.runner.load import _runner_class, load_runner
from model.runner.loader import load_model
from model.runner.placement import Placement
from model.runner.runner import TorchRunner
from model.runner.sampler import Chosen
from model.settings import EngineSettings, ModelSettings, Settings
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Driver, Part, make_request
from tests.unit.triton_interpreter import DEVICE, interpreted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from model.engine.batch import LaunchedStep, Runner
    from model.request import GenerateRequest

# More layers that pictures add to than others: no step is padded, see test_cuda_layers.py.
SHAPE = Shape(num_layers=2, vision_depth=3)
PROMPTS: list[list[Part]] = [[9], [3, (2, 3), 7], [20, (5, 2), (1, 3), 2]]
CUDA = Placement.on(torch.device("cuda"), 2)
TWO = Placement((torch.device("cuda", 0), torch.device("cuda", 1)), (0, 1), 0)
OURS = ("model.runner.cuda_", "model.runner.triton_")
MODEL: Any = None  # only looked at by what tests replace
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True, scope="module")
def _interpreted() -> Iterator[None]:
    with interpreted():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPE)


def engine_settings(**changes: Any) -> EngineSettings:
    defaults = {"kv_cache_bytes": 1 << 20, "max_model_len": 128, "max_sequences": 6}
    return EngineSettings(**(defaults | changes))


def cuda_runner(
    folder: Path, dtype: torch.dtype = torch.float32, *, graphs: bool = False, **changes: Any
) -> CudaRunner:
    model = load_model(folder, DEVICE, dtype)
    checkpoint = read_checkpoint(folder)
    return CudaRunner(model, checkpoint, engine_settings(**changes), graphs=graphs)


def torch_runner(folder: Path) -> TorchRunner:
    settings = Settings(
        model=ModelSettings(device="cpu", dtype="float32"), engine=engine_settings()
    )
    return load_runner(settings, read_checkpoint(folder))


def requests_of(prompts: Seq[list[Part]], **sampling: Any) -> list[GenerateRequest]:
    return [
        make_request(f"r{i}", parts, seed=i, sampling=SamplingParams(**sampling))
        for i, parts in enumerate(prompts)
    ]


class Overlapped(Driver):
    """Launches each step before it reads the one before, as the engine does."""

    def generate(self, requests: Seq[GenerateRequest], num_tokens: int) -> list[list[int]]:
        sequences = [Sequence(request) for request in requests]
        self.ends = {s: s.num_prompt_tokens + num_tokens for s in sequences}
        running: LaunchedStep = FinishedStep([])
        shares: tuple[ScheduledSequence, ...] = ()
        while any(len(s.token_ids) < self.ends[s] for s in sequences):
            batch = self._next(sequences)
            launched = self.runner.execute(batch)
            self._read(shares, running)
            shares, running = batch.sequences, launched
        self._read(shares, running)
        for sequence in sequences:
            self.preempt(sequence)
        return [s.token_ids[s.num_prompt_tokens : self.ends[s]] for s in sequences]

    def _next(self, sequences: Seq[Sequence]) -> ScheduledBatch:
        shares = []
        for sequence in sequences:
            known = len(sequence.token_ids) + sequence.num_pending_tokens
            if known == self.ends[sequence]:
                continue
            start = sequence.num_computed_tokens
            num_tokens = min(self.chunk_size, known - start)
            samples = start + num_tokens == known
            while len(sequence.block_table) * self.runner.block_size < start + num_tokens:
                sequence.block_table.append(self.free.pop())
            shares.append(ScheduledSequence(sequence, start, num_tokens, samples))
            sequence.num_computed_tokens += num_tokens
            sequence.num_pending_tokens += samples
        images = tuple(image for share in shares for image in self._images(share))
        return ScheduledBatch(tuple(shares), images)

    @staticmethod
    def _read(shares: Seq[ScheduledSequence], step: LaunchedStep) -> None:
        sampled = [share.sequence for share in shares if share.samples]
        for sequence, token in zip(sampled, step.tokens(), strict=True):
            sequence.token_ids.append(token.token_id)
            sequence.num_pending_tokens -= 1


def test_implements_the_engines_protocol(folder: Path) -> None:
    runner: Runner = cuda_runner(folder)
    assert runner.overlaps
    assert runner.execute(ScheduledBatch(())).tokens() == []


@pytest.mark.parametrize(
    ("driver", "chunk_size"),
    [
        pytest.param(Driver, 1 << 20, id="whole prompts, one step after the other"),
        pytest.param(Driver, 7, id="chunks beside decodes"),
        pytest.param(Overlapped, 1 << 20, id="whole prompts, overlapped"),
        pytest.param(Overlapped, 7, id="chunks beside decodes, overlapped"),
    ],
)
def test_generates_what_torch_generates(
    folder: Path, driver: type[Driver], chunk_size: int
) -> None:
    expected = Driver(torch_runner(folder)).generate(requests_of(PROMPTS), 6)
    assert driver(cuda_runner(folder), chunk_size).generate(requests_of(PROMPTS), 6) == expected


def test_one_row_alone_takes_kernels_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A processor's layers are packed; a device's are as they were loaded.
    for asked in ("can_pack", "widens"):
        monkeypatch.setattr(packed, asked, lambda *_: False)
    monkeypatch.setattr(fast_text, "can_pack", lambda *_: False)
    runner = cuda_runner(folder)
    num_added = 0

    def add(*arguments: torch.Tensor) -> None:
        nonlocal num_added
        num_added += 1
        triton_products.add_product(*arguments)

    monkeypatch.setattr(cuda_text, "add_product", add)
    expected, _ = Driver(runner).generate(requests_of([PROMPTS[2], PROMPTS[2]]), 6)
    assert num_added == 0
    assert Driver(runner).generate(requests_of([PROMPTS[2]]), 6) == [expected]
    assert num_added == 2 * SHAPE.num_layers * 5


def test_seeded_sampling_is_the_same_overlapped(folder: Path) -> None:
    requests = requests_of(PROMPTS[:2], temperature=1.0, top_p=0.9)
    expected = Driver(torch_runner(folder)).generate(requests, 6)
    assert Overlapped(cuda_runner(folder)).generate(requests, 6) == expected


def test_logprobs_come_with_the_tokens(folder: Path) -> None:
    runner = cuda_runner(folder)
    sequence = Sequence(requests_of([[5]], logprobs=2)[0])
    sequence.block_table = [3]
    share = ScheduledSequence(sequence, 0, 5, samples=True)
    [token] = runner.execute(ScheduledBatch((share,))).tokens()
    assert token.logprobs is not None
    assert token.logprobs.top[0] == (token.token_id, token.logprobs.logprob)
    assert len(token.logprobs.top) == 2


def test_the_spare_block_is_nobodys(folder: Path) -> None:
    runner = cuda_runner(folder)
    block_bytes = 2 * SHAPE.num_layers * 16 * SHAPE.num_kv_heads * SHAPE.head_dim * 4
    assert runner.num_blocks == (1 << 20) // block_bytes
    assert runner.cache.num_blocks == runner.num_blocks + 1


def test_padding_rows_write_to_the_spare_block_alone(folder: Path) -> None:
    runner = cuda_runner(folder)
    runner.cache.storage.fill_(7.0)
    sequences = [Sequence(request) for request in requests_of([[5], [6], [7]])]
    for block, sequence in enumerate(sequences):
        sequence.block_table = [block]
    prompts = [ScheduledSequence(s, 0, len(s.token_ids), samples=True) for s in sequences]
    runner.execute(ScheduledBatch(tuple(prompts))).tokens()
    before = runner.cache.storage.clone()
    for sequence in sequences:
        sequence.token_ids.append(65)
    decodes = [ScheduledSequence(share.sequence, share.end, 1, samples=True) for share in prompts]
    runner.execute(ScheduledBatch(tuple(decodes))).tokens()
    changed = (before != runner.cache.storage).flatten(3).any(3).any(0).any(0)
    spare = runner.num_blocks * 16
    # Three rows run as four.
    assert changed.nonzero()[:, 0].tolist() == [5, 16 + 6, 32 + 7, spare]


@pytest.mark.parametrize(
    ("max_rows", "expected"),
    [
        pytest.param(1, (1,), id="a single sequence"),
        pytest.param(3, (1, 2, 4), id="the next size above"),
        pytest.param(64, (1, 2, 4, 8, 16, 32, 48, 64), id="the default"),
        pytest.param(1000, BUCKETS, id="no more than 256"),
    ],
)
def test_sizes_to_record(max_rows: int, expected: tuple[int, ...]) -> None:
    assert buckets_for(max_rows) == expected
    for num_rows in range(1, min(max_rows, 256) + 1):
        size = bucket_of(num_rows, expected)
        assert size >= num_rows
        assert size in expected


@pytest.mark.parametrize(
    ("spans", "fits"),
    [
        pytest.param([(4, 5), (9, 10)], True, id="one token of each"),
        pytest.param([(4, 5), (0, 10)], False, id="a prompt among them"),
        pytest.param([(4, 5)] * 9, False, id="more than the largest size"),
        pytest.param([(128, 129)], False, id="longer than the longest context"),
    ],
)
def test_steps_that_run_padded(folder: Path, spans: list[tuple[int, int]], fits: bool) -> None:
    decoder = cuda_runner(folder)._decoder
    assert decoder is not None
    shares = []
    for start, end in spans:
        sequence = Sequence(requests_of([[end]])[0])
        shares.append(ScheduledSequence(sequence, start, end - start, samples=True))
    assert decoder.fits(shares) is fits
    if fits:
        silent = ScheduledSequence(shares[0].sequence, 4, 1, samples=False)
        assert not decoder.fits([*shares, silent])


def test_padded_arrays(folder: Path) -> None:
    runner = cuda_runner(folder)
    sequences = [Sequence(request) for request in requests_of([[17], [3]])]
    sequences[0].block_table, sequences[1].block_table = [5, 7], [2]
    shares = [ScheduledSequence(s, len(s.token_ids) - 1, 1, samples=True) for s in sequences]
    tokens = runner._flatten(shares)
    arrays = padded_arrays(tokens, shares, 4, runner._kernels, trash_slot=999)
    token_ids, sources, positions, slots, contexts, tables = (a.tolist() for a in arrays)
    assert token_ids == [sequences[0].token_ids[16], sequences[1].token_ids[2], 0, 0]
    assert sources == [-1] * 4
    assert positions == [[16, 2, 0, 0]] * 3
    assert slots == [7 * 16, 2 * 16 + 2, 999, 999]
    assert contexts == [17, 3, 0, 0]
    assert [row[:3] for row in tables] == [[5, 7, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert all(array.dtype == np.int32 for array in arrays)


def test_pending_tokens_come_from_the_latest_step(folder: Path) -> None:
    runner = cuda_runner(folder)
    first, second = (Sequence(request) for request in requests_of([[4], [3]]))
    runner._places = {second: 0, first: 1}
    shares = [
        ScheduledSequence(first, 4, 1, samples=True),
        ScheduledSequence(second, 2, 2, samples=True),
    ]
    tokens = runner._flatten(shares)
    assert tokens.token_ids.tolist() == [0, second.token_ids[2], 0]
    assert tokens.sources.tolist() == [1, -1, 0]
    assert tokens.sample_rows.tolist() == [0, 2]
    latest = torch.tensor([70, 71, 99])
    token_ids, sources = map(torch.from_numpy, (tokens.token_ids, tokens.sources))
    assert resolve_ids(token_ids, sources, latest).tolist() == [71, second.token_ids[2], 70]


def test_a_step_that_fails_leaves_the_latest_tokens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = cuda_runner(folder)
    sequence = Sequence(requests_of([[4]])[0])
    sequence.block_table = [0]
    prompt = ScheduledSequence(sequence, 0, 4, samples=True)
    [token] = runner.execute(ScheduledBatch((prompt,))).tokens()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    decode = ScheduledBatch((ScheduledSequence(sequence, 4, 1, samples=True),))
    with monkeypatch.context() as patch:
        patch.setattr("model.runner.cuda_runner.CudaStep", fail)
        with pytest.raises(OutOfDeviceMemory, match="2 GiB"):
            runner.execute(decode)
    assert runner._latest[runner._places[sequence]].item() == token.token_id
    pending = runner.execute(decode).tokens()
    sequence.token_ids.append(token.token_id)
    assert runner.execute(decode).tokens() == pending


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfDeviceMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OutOfDeviceMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), OutOfDeviceMemory),
        (RuntimeError("Triton Error [CUDA]: out of memory"), OutOfDeviceMemory),
        (torch.AcceleratorError("CUDA error: unspecified launch failure", 719), DeviceFailure),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), DeviceFailure),
        (RuntimeError("Triton Error [CUDA]: device-side assert"), DeviceFailure),
        (RuntimeError("shape '[2]' is invalid"), RuntimeError),
        (KeyError("key"), KeyError),
    ],
)
def test_device_errors_are_told_apart(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected) as caught, device_errors():
        raise error
    assert type(caught.value) is expected


def test_a_finished_step_gives_its_tokens_twice() -> None:
    step = CudaStep(Chosen(torch.tensor([3, 1]), None))
    assert step.tokens() == step.tokens() == [SampledToken(3), SampledToken(1)]


def test_warm_up_keeps_nothing(folder: Path) -> None:
    runner = cuda_runner(folder)
    runner.warm_up()
    assert runner.num_kept == 0
    assert runner._decoder is not None
    assert runner._decoder.num_recorded == 0, "there is nothing to record with on a CPU"


def test_probe_runs_this_models_heads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(folder, DEVICE, torch.float16)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(torch.cuda, "device", nullcontext)
    probe(model, 16, DEVICE, torch.float16)
    odd = load_model(
        make_checkpoint(folder.parent / "odd", Shape(head_dim=24, mrope_section=(4, 4, 4))),
        *(DEVICE, torch.float16),
    )
    with pytest.raises(ValueError, match="head_dim is 24"):
        probe(odd, 16, DEVICE, torch.float16)


async def test_the_engine_overlaps_chunks_and_preempts_with_it(folder: Path) -> None:
    requests = [
        make_request(f"r{i}", parts, seed=i, sampling=sampling)
        for i, parts in enumerate([*PROMPTS, [30], [17, (2, 2), 4]])
        for sampling in [SamplingParams(max_tokens=9, temperature=i % 2, ignore_eos=True)]
    ]
    expected = [Driver(torch_runner(folder)).generate([request], 9)[0] for request in requests]
    runner = cuda_runner(folder)
    limits = SchedulerLimits(
        max_batched_tokens=24, max_encoder_tokens=24, max_sequences=6, max_model_len=128
    )
    scheduler = Scheduler(limits, BlockPool(9, runner.block_size))
    engine = Engine(scheduler, runner, max_queued_requests=9, stall_seconds=100)
    engine.start()
    streams = engine.submit(requests)
    answers = [[event.token_id async for event in stream] for stream in streams]
    await asyncio.to_thread(engine.stop)
    assert answers == expected
    assert engine.stats.preemptions > 0
    assert runner.num_kept == 0


class ReplayedByHand:
    """What a CUDA graph is to its caller, where there is none: replays by computing anew."""

    def __init__(self) -> None:
        self.replay = self.not_recorded

    def not_recorded(self) -> None:
        raise AssertionError("replayed before it was recorded")


def record_by_hand(
    monkeypatch: pytest.MonkeyPatch, again: Callable[[], Callable[[], None]]
) -> None:
    """Let graphs be recorded without a GPU.

    again: what the graph does from now on that has just been recorded
    """

    @contextmanager
    def recording(graph: ReplayedByHand, **_: Any) -> Iterator[None]:
        yield
        graph.replay = again()  # type: ignore[method-assign]

    for name, stand_in in {
        "CUDAGraph": ReplayedByHand,
        "graph": recording,
        "Stream": lambda _: None,
        "stream": nullcontext,
        "synchronize": lambda _: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)


def test_recorded_sizes_are_replayed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cuda":
        pytest.skip("real graphs are tested below")
    runner = cuda_runner(folder)
    decoder = runner._decoder
    assert decoder is not None
    replays: list[int] = []
    computed: list[int] = []
    compute = decoder._compute

    def counted(size: int) -> None:
        computed.append(size)
        compute(size)

    def again() -> Callable[[], None]:
        size = computed[-1]

        def replay() -> None:
            replays.append(size)
            compute(size)

        return replay

    monkeypatch.setattr(decoder, "_compute", counted)
    record_by_hand(monkeypatch, again)
    decoder.record((0, 0))
    assert computed == [8, 8, 4, 4, 2, 2, 1, 1], "each runs once before it is recorded"
    requests = requests_of(PROMPTS)
    expected = Driver(torch_runner(folder)).generate(requests, 4)
    assert Overlapped(runner).generate(requests, 4) == expected
    assert replays == [4, 4, 4], "three sequences run as four"
    assert len(computed) == 8, "nothing that is recorded runs as written"


@pytest.mark.parametrize(
    ("placement", "dtype", "reference", "expected"),
    [
        pytest.param(CUDA, torch.bfloat16, False, CudaRunner, id="bfloat16"),
        pytest.param(CUDA, torch.float16, False, CudaRunner, id="float16"),
        pytest.param(CUDA, torch.float32, False, TorchRunner, id="float32"),
        pytest.param(CUDA, torch.bfloat16, True, TorchRunner, id="the reference"),
        pytest.param(TWO, torch.bfloat16, False, TorchRunner, id="several devices"),
        pytest.param(
            Placement.on(torch.device("cpu"), 2), torch.bfloat16, False, TorchRunner, id="a CPU"
        ),
    ],
)
def test_which_runner_serves(
    placement: Placement,
    dtype: torch.dtype,
    reference: bool,
    expected: type[TorchRunner],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("model.runner.cuda_runner.probe", lambda *_: None)
    settings = engine_settings(reference=reference)
    assert _runner_class(MODEL, placement, dtype, settings) is expected


def test_where_triton_does_not_work_torch_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr("model.runner.cuda_runner.probe", fail)
    assert _runner_class(MODEL, CUDA, torch.bfloat16, engine_settings()) is TorchRunner
    assert "Failed to find C compiler" in caplog.text


def test_where_triton_is_missing_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "cuda_runner",
        "cuda_graphs",
        "cuda_kernels",
        "cuda_layers",
        "triton_attention",
        "triton_kernels",
    ):
        monkeypatch.delitem(sys.modules, f"model.runner.{name}")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert _runner_class(MODEL, CUDA, torch.bfloat16, engine_settings()) is TorchRunner


@pytest.mark.cuda
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_graphs_give_bit_for_bit_what_the_same_step_gives(folder: Path, dtype: torch.dtype) -> None:
    prompts: list[list[Part]] = [[5 + i] for i in range(5)]
    requests = requests_of(prompts)
    recorded, plain = (cuda_runner(folder, dtype, graphs=graphs) for graphs in (True, False))
    recorded.warm_up()
    assert recorded._decoder is not None
    assert recorded._decoder.num_recorded == len(recorded._decoder.buckets)
    expected = Overlapped(plain).generate(requests, 24)
    assert Overlapped(recorded).generate(requests, 24) == expected
    # Another number of rows, another graph, buffers used before.
    assert Overlapped(recorded).generate(requests[:2], 24) == Overlapped(plain).generate(
        requests[:2], 24
    )
    assert torch.equal(recorded._decoder._logits[:2], plain._decoder._logits[:2])  # type: ignore[union-attr]


@pytest.mark.cuda
@needs_cuda
def test_half_precision_is_no_farther_from_float32_than_torch(folder: Path) -> None:
    sequences = [Sequence(request) for request in requests_of(PROMPTS)]
    exact = prompt_logits(torch_runner(folder), sequences)
    settings = Settings(
        model=ModelSettings(device="cuda", dtype="bfloat16"), engine=engine_settings(reference=True)
    )
    reference = load_runner(settings, read_checkpoint(folder))
    ours = cuda_runner(folder, torch.bfloat16)
    distance = (prompt_logits(ours, sequences) - exact).norm()
    assert distance < 1.25 * (prompt_logits(reference, sequences) - exact).norm()
    assert 0 < distance < 0.1 * exact.norm()


@pytest.mark.cuda
@needs_cuda
def test_settings_choose_the_cuda_runner(folder: Path) -> None:
    for dtype, expected in (("bfloat16", True), ("float16", True), ("float32", False)):
        settings = Settings(
            model=ModelSettings(device="cuda", dtype=dtype), engine=engine_settings()
        )
        runner = load_runner(settings, read_checkpoint(folder))
        assert isinstance(runner, CudaRunner) is expected


@pytest.mark.cuda
@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_launch_waits_for_nothing(folder: Path) -> None:
    runner = cuda_runner(folder, torch.bfloat16, graphs=True)
    runner.warm_up()
    driver = Overlapped(runner)
    driver.generate(requests_of(PROMPTS), 4)
    torch.cuda.set_sync_debug_mode("error")
    try:
        driver.generate(requests_of([[5], [6]]), 8)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def prompt_logits(runner: TorchRunner, sequences: Seq[Sequence]) -> torch.Tensor:
    """Logits of all prompts in one step; [num_sequences, vocab_size] float32 on the CPU."""
    free = list(range(runner.num_blocks))
    random.Random(0).shuffle(free)
    shares = []
    images = []
    for sequence in sequences:
        sequence.block_table = [free.pop() for _ in range(8)]
        shares.append(ScheduledSequence(sequence, 0, len(sequence.token_ids), samples=True))
        images += [ScheduledImage(sequence, i) for i in range(len(sequence.request.images))]
    seen = []
    run = runner._text.logits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner._text, "logits", lambda *a: seen.append(run(*a)) or seen[-1].clone())
        runner.execute(ScheduledBatch(tuple(shares), tuple(images))).tokens()
    runner.release(sequences)
    return seen[0].cpu()
