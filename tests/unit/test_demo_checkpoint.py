"""The bundled checkpoint: complete, readable by transformers' Auto classes, and accurate."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from model.demo import CHECKPOINT_DIR, SAMPLES_DIR, language
from model.demo.architecture import (
    average_weights,
    build_config,
    write_configs,
    write_weights,
)
from model.demo.evaluate import (
    Answerer,
    Prompt,
    default_encodings,
    evaluate,
    evaluation_examples,
)
from model.demo.tokenizer import MARKUP_TOKENS, SPECIAL_TOKENS, load_tokenizer, write_tokenizer

MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT_DIR)


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer(CHECKPOINT_DIR, dtype="float32")


def test_every_file_is_readable_by_any_user_and_all_are_small() -> None:
    files = [path for path in CHECKPOINT_DIR.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in files)


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, model.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokenizer_and_configs_can_be_made_again(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    write_configs(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        bundled = (CHECKPOINT_DIR / path.name).read_text()
        if path.name == "config.json":
            made, bundled_config = json.loads(path.read_text()), json.loads(bundled)
            made.pop("transformers_version")
            bundled_config.pop("transformers_version")
            assert made == bundled_config
        else:
            assert path.read_text() == bundled, path.name


def test_configuration_agrees_with_the_tokenizer() -> None:
    config: Any = AutoConfig.from_pretrained(CHECKPOINT_DIR)
    token_ids = load_tokenizer(CHECKPOINT_DIR).get_vocab()
    assert config.image_token_id == token_ids["<|image_pad|>"]
    assert config.text_config.vocab_size >= len(token_ids)
    assert config.tie_word_embeddings
    assert config.text_config.tie_word_embeddings
    assert sum(config.text_config.rope_parameters["mrope_section"]) == 32
    generation: Any = GenerationConfig.from_pretrained(CHECKPOINT_DIR)
    assert token_ids["<|im_end|>"] in generation.eos_token_id
    assert build_config(token_ids).to_diff_dict()["architectures"] == config.architectures


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None,
    reason="transformers' Qwen3-VL video processor needs torchvision",
)
def test_auto_processor_reads_a_picture_and_a_prompt() -> None:
    processor: Any = AutoProcessor.from_pretrained(CHECKPOINT_DIR)
    assert processor.image_processor.size["longest_edge"] == 43008


@pytest.mark.parametrize(
    "text",
    [
        "A small red circle at the top left, on a white background.",
        "Grüße, 世界! 🙂 12345\n\n\tx",
        "don't  stop",
        "",
    ],
)
def test_any_text_comes_back_from_the_tokenizer(
    tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_word_of_a_caption_is_one_token(tokenizer: PreTrainedTokenizerBase) -> None:
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in language.words())


def test_special_tokens_are_single_and_markup_survives_decoding(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    for token in (*SPECIAL_TOKENS, *MARKUP_TOKENS):
        ids = tokenizer.encode(token)
        assert len(ids) == 1
        kept = tokenizer.decode(ids, skip_special_tokens=True)
        assert kept == ("" if token in SPECIAL_TOKENS else token)


def test_the_chat_template_writes_turns_pictures_and_tools(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    tool = {"type": "function", "function": {"name": "zoom", "parameters": {}}}
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"x": 1}}}
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look."}]},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "done"},
            {"role": "tool", "content": "twice"},
        ],
        tools=[tool],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\n")
    assert "<tools>\n" + json.dumps(tool) + "\n</tools>" in text
    assert text.endswith(
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Look.<|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "zoom", "arguments": {"x": 1}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\ndone\n</tool_response>\n"
        "<tool_response>\ntwice\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_held_out_scenes_are_described_word_for_word(answerer: Answerer) -> None:
    examples = evaluation_examples(4242, 60, default_encodings(num_questions=1))
    report = evaluate(answerer, examples)
    assert report.accuracy("descriptions") >= 0.95, report.wrong
    assert report.accuracy("questions") >= 0.9, report.wrong


def test_the_bundled_samples_are_captioned_right(answerer: Answerer) -> None:
    from PIL import Image

    lines = (SAMPLES_DIR / "captions.jsonl").read_text().splitlines()
    assert len({json.loads(line)["image"] for line in lines}) >= 4
    prompts = []
    for line in map(json.loads, lines):
        picture = Image.open(SAMPLES_DIR / line["image"]).convert("RGB")
        prompts.append(Prompt(picture, line["prompt"], line["answer"], ()))
    assert answerer.answer(prompts) == [prompt.answer for prompt in prompts]


def test_the_mean_of_weights_is_the_mean_of_each(tmp_path: Path) -> None:
    states = [{"a": torch.full((2,), value), "b": torch.ones(3) * value} for value in (1.0, 3.0)]
    files = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for file, state in zip(files, states, strict=True):
        save_file(state, file)
    write_weights(tmp_path, average_weights(files))
    mean = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in mean.items()} == {
        "a": [2.0, 2.0],
        "b": [2.0, 2.0, 2.0],
    }
