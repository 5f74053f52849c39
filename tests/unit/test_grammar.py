"""Structured output and sampling parameters, from the prompt to the text, with the bundled model.

Float32 on the CPU, so that a token's logits hardly depend on how many rows a step has.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from kserve import InferInput, InferRequest
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration as Oracle

from model.checkpoint import read_checkpoint
from model.demo import CHECKPOINT_DIR, SAMPLES_DIR
from model.engine.batch import ScheduledSequence
from model.engine.sequence import Sequence
from model.errors import EngineFailure, InvalidRequest, Unsupported
from model.request import FinishReason, GenerateRequest, SamplingParams
from model.runner.grammar import Grammars, without
from model.runner.load import load_runner
from model.serving.generation import derived_seed
from model.serving.images import PixelBounds
from model.serving.kserve_model import Loaded, Qwen3VLModel, _build_pipeline
from model.serving.prompt import Prompt
from model.serving.structure import ANY_OBJECT, Choice, JsonSchema, Lark, Regex, compile_structure
from model.settings import Dtype, EngineSettings, ModelSettings, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from numpy.typing import NDArray

    from model.runner.runner import TorchRunner
    from model.serving.generation import Completion, Pipeline
    from model.serving.structure import Structure

CHECKPOINT = read_checkpoint(CHECKPOINT_DIR)
TOKENIZER = Tokenizer.from_file(str(CHECKPOINT_DIR / "tokenizer.json"))
PICTURE = (SAMPLES_DIR / "scene-00000.jpg").read_bytes()
WARM = SamplingParams(temperature=1.0, max_tokens=400)


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    color: Literal["red", "green", "blue"]
    sides: int = Field(ge=0, le=9)
    note: str = Field(max_length=12)


class Scene(BaseModel):
    model_config = ConfigDict(extra="forbid")

    shapes: list[Shape] = Field(min_length=1, max_length=2)
    certain: bool | None


SCENE = JsonSchema(json.dumps(Scene.model_json_schema()))


def settings(kv_cache_bytes: int) -> Settings:
    return Settings(
        model=ModelSettings(device="cpu", dtype=Dtype.FLOAT32),
        engine=EngineSettings(kv_cache_bytes=kv_cache_bytes),
    )


@pytest.fixture(scope="module")
def runner() -> TorchRunner:
    return load_runner(settings(64 << 20), CHECKPOINT)


@contextlib.asynccontextmanager
async def serving(runner: TorchRunner) -> AsyncIterator[Pipeline]:
    pipeline = _build_pipeline(Loaded(CHECKPOINT, runner), settings(1 << 20))
    pipeline.engine.start()
    try:
        yield pipeline
    finally:
        await asyncio.to_thread(pipeline.engine.stop)
        pipeline.close()
        assert runner._rows.num_kept == 0


def prompt(
    sampling: SamplingParams, structure: Structure | None = None, text: str = "Describe this image."
) -> Prompt:
    return Prompt.about([PICTURE], text, sampling, PixelBounds(), structure)


async def answers(pipeline: Pipeline, prompts: list[Prompt]) -> list[Completion]:
    return await pipeline.complete(await pipeline.prepare(prompts))


def ids_of(mask: NDArray[np.int32]) -> set[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return {int(token_id) for token_id in bits.nonzero()[0]}


def sequence_of(
    structure: Structure, completion: str = "", sampling: SamplingParams = WARM
) -> Sequence:
    request = GenerateRequest("r", (1, 2), sampling, 0, grammar=compile_structure(structure))
    sequence = Sequence(request)
    sequence.token_ids += tokens_of(completion)
    return sequence


def tokens_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def mask_of(
    grammars: Grammars, sequence: Sequence, banned: frozenset[int] = frozenset()
) -> set[int]:
    share = ScheduledSequence(sequence, 0, len(sequence.token_ids), samples=True)
    return ids_of(grammars.masks([(share, banned)])[sequence])


# The mask


def test_a_mask_allows_what_continues_the_text_and_nothing_beyond_the_tokenizer() -> None:
    allowed = mask_of(Grammars(CHECKPOINT), sequence_of(Choice(("red", "blue"))))
    begins = {tokens_of(text)[0] for text in ("r", "red", "b", "blue")}
    assert begins <= allowed
    assert not allowed & CHECKPOINT.eos_token_ids
    assert max(allowed) < TOKENIZER.get_vocab_size() < CHECKPOINT.vocab_size


def test_a_complete_text_allows_the_end_alone_even_where_it_is_banned() -> None:
    sequence = sequence_of(Choice(("red", "blue")), "red")
    ends = CHECKPOINT.eos_token_ids
    assert mask_of(Grammars(CHECKPOINT), sequence) == ends
    assert mask_of(Grammars(CHECKPOINT), sequence, banned=ends) == ends


def test_a_ban_takes_the_end_from_a_text_that_may_go_on() -> None:
    grammars = Grammars(CHECKPOINT)
    sequence = sequence_of(Regex("a+"), "a")
    assert mask_of(grammars, sequence) >= CHECKPOINT.eos_token_ids
    rest = mask_of(grammars, sequence, banned=CHECKPOINT.eos_token_ids)
    assert rest
    assert not rest & CHECKPOINT.eos_token_ids


def test_banned_ids_beyond_the_mask_are_ignored() -> None:
    mask = np.array([-1], dtype=np.int32)
    assert ids_of(without(mask, frozenset({31, 0, 99}))) == set(range(1, 31))
    assert ids_of(mask) == set(range(32))


def test_a_matcher_that_is_made_again_allows_the_same() -> None:
    grammars = Grammars(CHECKPOINT)
    text = '{"shapes": [{"color": "red", "sides": 4'
    sequence = sequence_of(SCENE)
    for token in tokens_of(text):
        before = mask_of(grammars, sequence)
        assert token in before
        sequence.token_ids.append(token)
    followed = mask_of(grammars, sequence)
    grammars.forget(sequence)
    assert grammars.num_kept == 0
    assert mask_of(grammars, sequence) == followed
    assert mask_of(Grammars(CHECKPOINT), sequence) == followed


def test_a_matcher_that_fails_ends_its_own_sequence_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    grammars = Grammars(CHECKPOINT)
    broken, sound = sequence_of(Regex("a+"), "b"), sequence_of(Regex("a+"))
    shares = [
        (ScheduledSequence(one, 0, len(one.token_ids), samples=True), frozenset[int]())
        for one in (broken, sound)
    ]
    for _ in range(2):
        masks = grammars.masks(shares)
    assert ids_of(masks[broken]) == CHECKPOINT.eos_token_ids
    assert tokens_of("a")[0] in ids_of(masks[sound])
    fault = (
        "the answer's grammar failed: Parser Error: token \"b\" doesn't satisfy the grammar; "
        "byte 'b' fails parse"
    )
    assert isinstance(grammars.fault(broken), EngineFailure)
    assert (str(grammars.fault(broken)), grammars.fault(sound)) == (fault, None)
    assert [record.message for record in caplog.records] == [f"request r: {fault}"]


def test_a_grammar_that_costs_too_much_is_its_senders_fault() -> None:
    grammars = Grammars(CHECKPOINT)
    costly = sequence_of(Regex("(a{1000}){1000}"))
    while (allowed := mask_of(grammars, costly)) != CHECKPOINT.eos_token_ids:
        costly.token_ids.append(min(allowed))
    fault = grammars.fault(costly)
    assert isinstance(fault, InvalidRequest)
    assert str(fault).startswith("the answer's form is too complex to follow: lexer error")


def test_a_tokenizer_that_llguidance_refuses_ends_answers_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    grammars = Grammars(replace(CHECKPOINT, path=tmp_path))
    assert mask_of(grammars, sequence_of(Regex("a"))) == CHECKPOINT.eos_token_ids
    assert "llguidance cannot use this model" in caplog.text
    fault = grammars.fault(sequence_of(Regex("a")))
    assert isinstance(fault, Unsupported)
    assert "not possible with this model's tokenizer" in str(fault)


@pytest.mark.parametrize(
    "structure",
    [
        pytest.param(Regex("((((a{1,100}){1,100}){1,100}){1,100}){1,100}"), id="nested counts"),
        pytest.param(Regex("(.*(a.{30}|b.{31}|c.{32}|e.{37})){8}x"), id="many states"),
        pytest.param(Regex(r"(\p{L}|\p{N}){1,60000}"), id="long classes"),
        pytest.param(Lark('start: a\na: a a | "x" a | a "x" | "x"'), id="ambiguity"),
        pytest.param(
            JsonSchema(
                json.dumps(
                    {
                        "type": "object",
                        "properties": {f"p{i}": {"type": "string"} for i in range(900)},
                    }
                )
            ),
            id="900 optional fields",
        ),
    ],
)
@pytest.mark.timeout(60)  # endless without llguidance's limits
def test_no_grammar_takes_long_to_follow(structure: Structure) -> None:
    grammars = Grammars(CHECKPOINT)
    sequence = sequence_of(structure)
    draw = np.random.default_rng(0)
    for _ in range(41):
        allowed = sorted(mask_of(grammars, sequence))
        assert allowed, "a text can always go on or end"
        sequence.token_ids.append(int(draw.choice(allowed)))


# From the prompt to the text


async def test_json_follows_its_schema_whatever_the_seed(runner: TorchRunner) -> None:
    async with serving(runner) as pipeline:
        done = await answers(
            pipeline, [prompt(replace(WARM, seed=seed), SCENE) for seed in range(8)]
        )
    for completion in done:
        assert completion.finish_reason is FinishReason.STOP, completion.text
        Scene.model_validate_json(completion.text, strict=True)
    assert len({completion.text for completion in done}) == 8


async def test_any_object_is_an_object(runner: TorchRunner) -> None:
    sampling = [replace(WARM, seed=seed, max_tokens=100) for seed in range(6)]
    async with serving(runner) as pipeline:
        done = await answers(pipeline, [prompt(one, ANY_OBJECT) for one in sampling])
    for completion in done:
        if completion.finish_reason is FinishReason.STOP:
            assert isinstance(json.loads(completion.text), dict)
    assert any(completion.finish_reason is FinishReason.STOP for completion in done)


async def test_a_choice_is_one_of_its_texts(runner: TorchRunner) -> None:
    texts = ("yes", "no", "größer 🙂", "a red\nsquare")
    async with serving(runner) as pipeline:
        done = await answers(
            pipeline, [prompt(replace(WARM, seed=seed), Choice(texts)) for seed in range(20)]
        )
    assert {completion.text for completion in done} <= set(texts)
    assert len({completion.text for completion in done}) > 1
    assert {completion.finish_reason for completion in done} == {FinishReason.STOP}


@pytest.mark.parametrize(
    "pattern", [r"[a-f]{4}-[0-9]{2,3}(/x+)?", r"(red|blue) (circle|square)s?\.", "ü{3}"]
)
async def test_a_regex_matches_the_whole_text(runner: TorchRunner, pattern: str) -> None:
    async with serving(runner) as pipeline:
        done = await answers(
            pipeline, [prompt(replace(WARM, seed=seed), Regex(pattern)) for seed in range(8)]
        )
    for completion in done:
        if completion.finish_reason is FinishReason.STOP:
            assert re.fullmatch(pattern, completion.text), completion.text
    assert any(completion.finish_reason is FinishReason.STOP for completion in done)


@pytest.mark.parametrize(
    ("change", "text", "reason"),
    [
        pytest.param({"max_tokens": 1}, "abc", FinishReason.LENGTH, id="too short for it"),
        pytest.param({"min_tokens": 50}, "abc", FinishReason.STOP, id="complete before min_tokens"),
        pytest.param({"stop": ("bc",)}, "a", FinishReason.STOP, id="a stop string inside"),
        pytest.param(
            {"ignore_eos": True, "max_tokens": 9}, "abc", FinishReason.LENGTH, id="ignore_eos"
        ),
        pytest.param(
            {"logit_bias": tuple((i, -100.0) for i in range(300))},
            "abc",
            FinishReason.STOP,
            id="bias",
        ),
    ],
)
async def test_a_grammar_beside_other_ends(
    runner: TorchRunner, change: dict[str, Any], text: str, reason: FinishReason
) -> None:
    # Byte for byte, so that the text has three tokens at least.
    structure = Lark("start: /a/ /b/ /c/")
    async with serving(runner) as pipeline:
        [done] = await answers(pipeline, [prompt(replace(WARM, seed=1, **change), structure)])
    assert done.finish_reason is reason
    assert text.startswith(done.text) if change.get("max_tokens") == 1 else done.text == text


async def test_a_grammar_survives_preemption(runner: TorchRunner) -> None:
    prompts = [prompt(replace(WARM, seed=seed, max_tokens=150), SCENE) for seed in range(8)]
    async with serving(runner) as pipeline:
        expected = await answers(pipeline, prompts)
    narrow = load_runner(settings(2 << 20), CHECKPOINT)
    async with serving(narrow) as pipeline:
        done = await answers(pipeline, prompts)
        assert pipeline.engine.stats.preemptions > 0
    assert [completion.text for completion in done] == [completion.text for completion in expected]


def mixed(number: int) -> Prompt:
    """Requests that have little in common."""
    sampling = replace(WARM, seed=number, max_tokens=24 + number % 7)
    changes: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0, "logprobs": 20},
        {"top_k": 20, "top_p": 0.8, "presence_penalty": 1.5, "logprobs": 2},
        {"frequency_penalty": 0.8, "repetition_penalty": 1.2},
        {"logit_bias": ((11, 4.0), (300, -100.0)), "min_p": 0.02},
        {"top_p": 0.95, "min_tokens": 20, "logprobs": 0},
    ]
    structures = (
        None,
        None,
        SCENE,
        Choice(("a red circle", "a blue square")),
        Regex("[a-z ]{30,}"),
    )
    change = changes[number % len(changes)]
    return prompt(replace(sampling, **change), structures[number % len(structures)])


async def test_a_seeded_request_is_answered_the_same_alone_and_among_63_others(
    runner: TorchRunner,
) -> None:
    prompts = [mixed(number) for number in range(64)]
    async with serving(runner) as pipeline:
        together = await answers(pipeline, prompts)
        for number in range(0, 64, 5):
            [alone] = await answers(pipeline, [prompts[number]])
            assert alone.text == together[number].text, number
            assert [token for token, _ in alone.logprobs] == [
                token for token, _ in together[number].logprobs
            ]
            # The matrix products round by the number of rows; nothing after them does.
            assert values(alone) == pytest.approx(values(together[number]), abs=1e-4)


def values(completion: Completion) -> list[float]:
    return [
        value
        for _, told in completion.logprobs
        for value in (told.logprob, *(value for _, value in told.top))
    ]


async def test_logprobs_are_those_of_a_forward_pass_of_transformers(runner: TorchRunner) -> None:
    sampling = replace(
        WARM, seed=3, max_tokens=20, logprobs=20, repetition_penalty=1.3, temperature=0.5
    )
    async with serving(runner) as pipeline:
        [request] = await pipeline.prepare([prompt(sampling)])
        [completion] = await pipeline.complete([request])
    tokens = [token for token, _ in completion.logprobs]
    assert len(tokens) == completion.completion_tokens
    expected = oracle_logprobs(runner, request, tokens)
    for (token, told), row in zip(completion.logprobs, expected, strict=True):
        assert told.logprob == pytest.approx(row[token].item(), abs=1e-3)
        assert [value for _, value in told.top] == pytest.approx(
            row.topk(20).values.tolist(), abs=1e-3
        )
        assert [value for _, value in told.top] == pytest.approx(
            [row[token_id].item() for token_id, _ in told.top], abs=1e-3
        )


def oracle_logprobs(
    runner: TorchRunner, request: GenerateRequest, completion: list[int]
) -> torch.Tensor:
    """[len(completion), vocab_size]"""
    oracle = Oracle.from_pretrained(CHECKPOINT_DIR, dtype=torch.float32).eval()
    ids = torch.tensor([[*request.prompt_token_ids, *completion]])
    [image] = request.images
    patches = runner.vision.patches(image).float()
    # Of a picture both frames are the same, and the server keeps one.
    frames = patches.view(len(patches), 3, 1, -1).expand(-1, -1, 2, -1)
    with torch.inference_mode():
        logits = oracle(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=frames.reshape(len(patches), -1),
            image_grid_thw=torch.tensor([[1, image.grid_height, image.grid_width]]),
            mm_token_type_ids=(ids == CHECKPOINT.image_token_id).int(),
        ).logits[0]
    first = len(request.prompt_token_ids) - 1
    return logits[first : first + len(completion)].float().log_softmax(-1)


async def test_deltas_hold_every_tokens_logprobs_once(runner: TorchRunner) -> None:
    sampling = replace(WARM, seed=5, max_tokens=30, logprobs=1, stop=("zzzz",))
    async with serving(runner) as pipeline:
        requests = await pipeline.prepare([prompt(sampling)])
        [generation] = pipeline.start(requests)
        deltas = [delta async for delta in generation]
        [completion] = await pipeline.complete(
            [replace(requests[0], request_id="again") for _ in range(1)]
        )
    told = [token for delta in deltas for token in delta.logprobs]
    assert len(told) == deltas[-1].num_completion_tokens
    assert tuple(token for token, _ in told) == tuple(token for token, _ in completion.logprobs)


async def test_n_answers_have_seeds_of_their_own_and_one_picture(runner: TorchRunner) -> None:
    sampling = replace(WARM, seed=7, max_tokens=12, temperature=3.0)
    async with serving(runner) as pipeline:
        requests = await pipeline.prepare([replace(prompt(sampling), n=4), prompt(sampling)])
        again = await pipeline.prepare([replace(prompt(sampling), n=3)])
        done = await pipeline.complete(requests)
    seeds = [request.seed for request in requests]
    assert seeds[0] == seeds[4] == 7
    assert seeds[:3] == [request.seed for request in again]
    assert seeds[:4] == [derived_seed(7, number) for number in range(4)]
    assert len({request.request_id for request in requests}) == 5
    assert all(request.images is requests[0].images for request in requests[:4])
    assert done[0].text == done[4].text
    assert len({completion.text for completion in done}) > 2


@pytest.mark.parametrize("n", [0, 17, -1])
def test_n_out_of_range_is_named(n: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"n is {n}; it must be from 1 to 16"):
        replace(prompt(WARM), n=n)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param({"logit_bias": ((1024, 1.0),)}, "logit_bias has token id 1024", id="bias"),
        pytest.param({"stop_token_ids": frozenset({5000})}, "stop_token_ids has token", id="stop"),
    ],
)
async def test_ids_beyond_the_vocabulary_are_named(
    runner: TorchRunner, change: dict[str, Any], text: str
) -> None:
    async with serving(runner) as pipeline:
        with pytest.raises(InvalidRequest, match=f"{text}.*vocabulary has 1024 ids"):
            await pipeline.prepare([prompt(replace(WARM, **change))])


def test_v2_parameters_become_the_prompts_of_every_row(runner: TorchRunner) -> None:
    model = Qwen3VLModel(settings(1 << 20), lambda: Loaded(CHECKPOINT, runner))
    model.load()
    image = InferInput("image", [2], "BYTES", [PICTURE, PICTURE])
    parameters = {"priority": 1, "timeout": 1500, "choice": ["a"], "presence_penalty": 1.5}
    prompts = model._prompts(InferRequest("qwen3-vl", infer_inputs=[image], parameters=parameters))
    model.stop()
    for one in prompts:
        assert one.sampling.presence_penalty == 1.5
        assert one.structure == Choice(("a",))
        assert (one.priority, one.max_queue_seconds) == (-4, 0.0015)
    assert len(prompts) == 2


async def test_priority_and_patience_reach_the_engine(runner: TorchRunner) -> None:
    asked = replace(prompt(WARM), priority=-4, max_queue_seconds=2.5)
    async with serving(runner) as pipeline:
        [request] = await pipeline.prepare([asked])
    assert (request.priority, request.max_queue_seconds) == (-4, 2.5)
