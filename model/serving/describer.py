"""Questions to answers: what describe, batch and jobs do with a picture once they have read it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from model.serving.describe_body import Question
from model.serving.generation import Transcript
from model.serving.parameters import (
    parse_pixel_bounds,
    parse_priority,
    parse_structure,
    parse_timeout_seconds,
)
from model.serving.prompt import Prompt
from model.serving.styles import STYLES, instruct, tags_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from model.request import GenerateRequest, SamplingParams
    from model.serving.describe_body import Options
    from model.serving.generation import Completion, TextDelta
    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.tap import Tap


class Describer:
    """Answers questions with one model. Everything raises ServingError."""

    def __init__(self, model: Qwen3VLModel) -> None:
        self._model = model

    @property
    def model_name(self) -> str:
        """The name that answers carry."""
        return str(self._model.name)

    def check_capacity(self, num_questions: int) -> None:
        """Raise QueueFull unless that many more may wait."""
        self._model.pipeline.engine.check_capacity(num_questions)

    def prompt(self, question: Question) -> Prompt:
        """What the model is asked; judges every option, but no picture."""
        options = question.options
        text = instruct(
            question.prompt or None,
            options.style,
            options.language,
            self._model.settings.request.default_prompt,
        )
        return Prompt.about(
            question.images,
            text,
            self._sampling(options),
            parse_pixel_bounds(options.parameters),
            parse_structure(options.parameters),
            priority=parse_priority(options.parameters),
            max_queue_seconds=parse_timeout_seconds(options.parameters),
        )

    def check(self, options: Options) -> None:
        """Judge options before any picture is seen."""
        self._model.pipeline.check(self.prompt(Question((), None, options)))

    async def answer(self, question: Question) -> dict[str, Any]:
        """The whole answer, without an id."""
        started = time.monotonic()
        pipeline = self._model.pipeline
        [request] = await pipeline.prepare([self.prompt(question)])
        prepare_seconds = time.monotonic() - started
        [completion] = await pipeline.complete([request])
        return _answer(request, completion, question.options, prepare_seconds)

    async def events(
        self, question: Question, head: dict[str, Any], tap: Tap[dict[str, Any]]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """A start, the text as it comes, an end that holds the whole answer.

        head: what start and end carry beside it; tap: where the text may go instead; closing the
        generator cancels
        """
        started = time.monotonic()
        pipeline = self._model.pipeline
        [request] = await pipeline.prepare([self.prompt(question)])
        prepare_seconds = time.monotonic() - started
        [generation] = pipeline.start([request])
        transcript = Transcript(generation)

        def piece(delta: TextDelta) -> dict[str, Any]:
            transcript.add(delta)
            return {"type": "delta", "text": delta.text} if delta.text else {}

        generation.tap(tap.after(piece))
        try:
            tokens = {
                "prompt_tokens": generation.prompt_tokens,
                "image_tokens": generation.image_tokens,
            }
            yield {"type": "start", **head, "images": _images(request), "usage": tokens}
            async for delta in generation:
                if told := piece(delta):
                    yield told
        finally:
            generation.close()
        answer = _answer(request, transcript.completion(), question.options, prepare_seconds)
        yield {"type": "end", **head, **answer}

    def _sampling(self, options: Options) -> SamplingParams:
        parameters = options.parameters
        if options.style is not None and parameters.get("max_tokens") is None:
            limit = self._model.pipeline.engine.max_sequence_tokens
            parameters = parameters | {"max_tokens": min(STYLES[options.style].max_tokens, limit)}
        return self._model.sampling(parameters)


def _answer(
    request: GenerateRequest, completion: Completion, options: Options, prepare_seconds: float
) -> dict[str, Any]:
    timings = completion.timings
    return {
        "description": completion.text,
        **_asked(options, completion.text),
        "finish_reason": completion.finish_reason.value,
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "image_tokens": completion.image_tokens,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        },
        "images": _images(request),
        "timings": {
            "prepare_ms": _milliseconds(prepare_seconds),
            "queue_ms": _milliseconds(timings.queue_seconds),
            "first_text_ms": _milliseconds(timings.first_text_seconds),
            "generate_ms": _milliseconds(timings.total_seconds),
            "total_ms": _milliseconds(prepare_seconds + timings.total_seconds),
        },
    }


def _asked(options: Options, text: str) -> dict[str, Any]:
    asked = {"style": options.style, "language": options.language}
    tags = {"tags": tags_of(text)} if options.style == "tags" else {}
    return {name: value for name, value in asked.items() if value is not None} | tags


def _images(request: GenerateRequest) -> list[dict[str, int]]:
    return [
        {
            "width": image.source_width,
            "height": image.source_height,
            "seen_width": image.pixels.shape[1],
            "seen_height": image.pixels.shape[0],
            "tokens": image.num_tokens,
        }
        for image in request.images
    ]


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
