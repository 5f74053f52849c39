"""The `kserve.Model`: KServe's hooks around the pipeline, for the V2 tensors of `contract.py`.

preprocess: tensors to requests; predict: requests to completions; postprocess: completions to
tensors. KServe's own
`__call__` runs the three and times them; `stream` does the same with a response for every piece of
text.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kserve import InferOutput, InferRequest, InferResponse, Model
from kserve.model import InferenceVerb

from model.engine.blocks import BlockPool
from model.engine.loop import Engine
from model.engine.scheduler import Scheduler, SchedulerLimits
from model.errors import InvalidRequest, NotReady, Unsupported
from model.serving.chat import PromptEncoder
from model.serving.contract import OUTPUTS, VERSION
from model.serving.generation import Pipeline
from model.serving.parameters import (
    parse_max_queue_seconds,
    parse_pixel_bounds,
    parse_priority,
    parse_sampling,
    parse_structure,
    sampling_defaults,
)
from model.serving.prompt import Prompt
from model.serving.statistics import InferTimes, ModelStatistics, StatisticsRecorder
from model.serving.v2_model import Delta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping

    from model.checkpoint import Checkpoint
    from model.engine.batch import Runner
    from model.request import GenerateRequest, SamplingParams
    from model.serving.generation import Completion, TextDelta
    from model.serving.tap import Tap
    from model.settings import Settings


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the runner's floor hands over: a warmed-up runner and what the checkpoint says of
    itself.
    """

    checkpoint: Checkpoint
    runner: Runner


@dataclass(frozen=True, slots=True)
class _Batch:
    """A V2 request between the hooks; times are nanoseconds of time.monotonic_ns."""

    source: InferRequest
    requests: list[GenerateRequest]
    started: int
    prepared: int


@dataclass(frozen=True, slots=True)
class _Answers:
    """Its answers, on their way back."""

    batch: _Batch
    completions: list[Completion]
    generated: int


class Qwen3VLModel(Model):  # type: ignore[misc]  # kserve ships no types
    """Qwen3-VL behind KServe's interface.

    load_runner: reads the weights; called once, on whatever thread calls `load`
    on_fatal: see Engine
    """

    def __init__(
        self,
        settings: Settings,
        load_runner: Callable[[], Loaded],
        on_fatal: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(settings.model.names[0])
        self.names: tuple[str, ...] = settings.model.names
        self.settings = settings
        self._load_runner = load_runner
        self._on_fatal = on_fatal
        self._load_lock = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._recorder = StatisticsRecorder()
        self.load_seconds: float | None = None

    # Life

    def load(self) -> bool:
        """Load the weights and build the engine, once; blocks. Raises CheckpointError.

        The engine still has to be started, with `start_engine`, on the event loop that serves.
        """
        with self._load_lock:
            if self._pipeline is None:
                started = time.monotonic()
                loaded = self._load_runner()
                self._pipeline = _build_pipeline(loaded, self.settings, self._on_fatal)
                self.load_seconds = time.monotonic() - started
        return True

    async def start_engine(self) -> None:
        """Start stepping; requests are taken from now on."""
        self.pipeline.engine.start()
        self.ready = True

    def stop(self) -> None:
        """Stop the engine; what still runs is cancelled."""
        self.ready = False
        if self._pipeline is not None:
            self._pipeline.engine.stop()
            self._pipeline.close()

    @property
    def pipeline(self) -> Pipeline:
        """The loaded model; raises NotReady before `load` is done."""
        if self._pipeline is None:
            raise NotReady("the model is still loading; try again later")
        return self._pipeline

    @property
    def loaded(self) -> bool:
        """Whether `pipeline` can be had."""
        return self._pipeline is not None

    @property
    def stalled(self) -> bool:
        """Whether the engine has work and makes no progress."""
        return self._pipeline is not None and self._pipeline.engine.stalled

    def statistics(self) -> ModelStatistics:
        """Counts and durations since the start, as V2's statistics extension has them."""
        steps = self._pipeline.engine.stats.steps if self._pipeline is not None else 0
        return self._recorder.snapshot(execution_count=steps)

    # KServe's hooks

    async def __call__(
        self,
        body: InferRequest,
        headers: dict[str, str] | None = None,
        verb: InferenceVerb = InferenceVerb.PREDICT,
    ) -> tuple[InferResponse, dict[str, str]]:
        """The three hooks, one after the other, timed by KServe; failures are counted."""
        if verb is not InferenceVerb.PREDICT:
            raise Unsupported("this model offers no explanations")
        with self._counting_failure():
            response, response_headers = await super().__call__(body, headers, verb)
        return response, response_headers

    async def preprocess(
        self, payload: InferRequest, headers: Mapping[str, str] | None = None
    ) -> _Batch:
        """Tensors to one GenerateRequest for each row; raises ServingError."""
        started = time.monotonic_ns()
        requests = await self.pipeline.prepare(self._prompts(payload))
        return _Batch(payload, requests, started, time.monotonic_ns())

    async def predict(self, payload: _Batch, headers: Mapping[str, str] | None = None) -> _Answers:
        """Generate all rows at once; a cancelled call cancels its sequences."""
        completions = await self.pipeline.complete(payload.requests)
        return _Answers(payload, completions, time.monotonic_ns())

    async def postprocess(
        self,
        result: _Answers,
        headers: Mapping[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """Completions to the output tensors, each of shape [N]."""
        completions = result.completions
        response = _response(
            result.batch.source,
            text=[completion.text for completion in completions],
            finish_reason=[completion.finish_reason.value for completion in completions],
            prompt_tokens=[completion.prompt_tokens for completion in completions],
            completion_tokens=[completion.completion_tokens for completion in completions],
        )
        queued = max(completion.timings.queue_seconds for completion in completions)
        self._count(result.batch, queued, result.generated)
        return response

    async def stream(
        self, request: InferRequest, tap: Tap[Delta] | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Each piece of text as it comes, here or by the tap; the last has a finish_reason.

        Raises InvalidRequest unless the request is for exactly one sequence.
        """
        with self._counting_failure():
            batch = await self.preprocess(request)
            if len(batch.requests) != 1:
                raise InvalidRequest(
                    f"a streamed request holds {len(batch.requests)} prompts; the limit is 1"
                )
            [generation] = self.pipeline.start(batch.requests)
            prompt_tokens = generation.prompt_tokens

            def piece(delta: TextDelta) -> Delta:
                text, num_tokens, reason, _ = delta
                return Delta(
                    text, "" if reason is None else reason.value, prompt_tokens, num_tokens
                )

            if tap is not None:
                generation.tap(tap.after(piece))
            try:
                async for delta in generation:
                    yield piece(delta)
            finally:
                generation.close()
        self._count(batch, generation.queue_seconds, time.monotonic_ns())

    # Counting

    @contextlib.contextmanager
    def _counting_failure(self) -> Iterator[None]:
        started = time.monotonic_ns()
        try:
            yield
        except BaseException:  # a cancelled request got no answer either
            self._recorder.record_failure(time.monotonic_ns() - started)
            raise

    def _count(self, batch: _Batch, queue_seconds: float, generated: int) -> None:
        queue = int(queue_seconds * 1e9)
        ended = time.monotonic_ns()
        times = InferTimes(
            queue=queue,
            compute_input=batch.prepared - batch.started,
            compute_infer=generated - batch.prepared - queue,
            compute_output=ended - generated,
            total=ended - batch.started,
        )
        self._recorder.record_success(times, len(batch.requests))

    # Between tensors and prompts

    def sampling(self, parameters: Mapping[str, object]) -> SamplingParams:
        """A request's parameters over the checkpoint's defaults; raises InvalidRequest."""
        limits = self.settings.request
        defaults = sampling_defaults(
            self.pipeline.checkpoint.default_sampling, limits.default_max_tokens
        )
        return parse_sampling(parameters, defaults, max_stop=limits.max_stop)

    def _prompts(self, request: InferRequest) -> list[Prompt]:
        parameters: dict[str, Any] = request.parameters or {}
        sampling = self.sampling(parameters)
        bounds = parse_pixel_bounds(parameters)
        structure = parse_structure(parameters)
        priority = parse_priority(parameters)
        max_queue_seconds = parse_max_queue_seconds(parameters)
        tensors = {tensor.name: tensor for tensor in request.inputs}
        image = tensors["image"]
        rows = image.shape[0]
        per_row = image.shape[1] if len(image.shape) == 2 else 1
        if rows > self.settings.request.max_batch:
            raise InvalidRequest(
                f"image holds {rows} rows; the limit is {self.settings.request.max_batch}"
            )
        texts = self._texts(tensors["prompt"].data if "prompt" in tensors else None, rows)
        return [
            Prompt.about(
                image.data[row * per_row : (row + 1) * per_row],
                texts[row],
                sampling,
                bounds,
                structure,
                priority=priority,
                max_queue_seconds=max_queue_seconds,
            )
            for row in range(rows)
        ]

    def _texts(self, data: list[bytes] | None, rows: int) -> list[str]:
        if data is None:
            return [self.settings.request.default_prompt] * rows
        try:
            texts = [text.decode("utf-8") for text in data]
        except UnicodeDecodeError as e:
            raise InvalidRequest(
                f"prompt is not UTF-8: byte {e.start} is {e.object[e.start]:#04x}"
            ) from e
        return texts * rows if len(texts) == 1 else texts


def _response(request: InferRequest, **tensors: list[Any]) -> InferResponse:
    outputs = [
        InferOutput(spec.name, [len(tensors[spec.name])], spec.datatype, tensors[spec.name])
        for spec in OUTPUTS
    ]
    return InferResponse(request.id, request.model_name, outputs, model_version=VERSION)


def _build_pipeline(
    loaded: Loaded, settings: Settings, on_fatal: Callable[[], None] | None = None
) -> Pipeline:
    checkpoint, runner = loaded.checkpoint, loaded.runner
    limits = SchedulerLimits(
        max_batched_tokens=runner.max_batched_tokens,
        max_encoder_tokens=settings.engine.max_encoder_tokens,
        max_sequences=settings.engine.max_sequences,
        max_model_len=checkpoint.max_model_len(settings.engine.max_model_len),
        prefix_cache=settings.engine.prefix_cache,
        max_queue_seconds=settings.engine.max_queue_seconds,
    )
    scheduler = Scheduler(limits, BlockPool(runner.num_blocks, runner.block_size))
    engine = Engine(
        scheduler,
        runner,
        max_queued_requests=settings.engine.max_queued_requests,
        max_queued_image_tokens=settings.engine.max_queued_image_tokens,
        stall_seconds=settings.engine.stall_seconds,
        on_fatal=on_fatal,
    )
    encoder = PromptEncoder.load(checkpoint, settings.request, settings.image)
    return Pipeline(checkpoint, encoder, engine, settings)
