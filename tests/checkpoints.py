"""Random Qwen3-VL checkpoints of any shape on disk: real files, real formats, tiny by default.

`make_checkpoint` writes what a hub folder holds: config.json, generation_config.json,
preprocessor_config.json, safetensors (one file or sharded), a byte-level tokenizer with Qwen's
special tokens, and a chat template. The same shape and seed give the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
NUM_BYTES = 256
ENDOFTEXT, IM_START, IM_END, VISION_START, VISION_END, _, IMAGE_PAD, VIDEO_PAD = range(
    NUM_BYTES, NUM_BYTES + len(SPECIAL_TOKENS)
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type == 'image' or part.type == 'image_url' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif 'text' in part %}{{ part.text }}{% endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""


@dataclass(frozen=True)
class Shape:
    """A model's sizes; the defaults make about 0.3 M parameters that run in milliseconds.

    mrope_section must sum to head_dim / 2, its last two at most a third of that each.
    """

    vocab_size: int = 320
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 16
    mrope_section: tuple[int, int, int] = (4, 2, 2)
    max_position_embeddings: int = 4096
    tied: bool = False
    vision_depth: int = 3
    vision_hidden_size: int = 32
    vision_intermediate_size: int = 64
    vision_heads: int = 2
    deepstack_layers: tuple[int, ...] = (0, 1, 2)
    patch_size: int = 16
    merge_size: int = 2
    num_position_embeddings: int = 64
    min_pixels: int = 32 * 32
    max_pixels: int = 256 * 256
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    generation: dict[str, Any] = field(default_factory=dict)


def make_checkpoint(
    path: Path,
    shape: Shape | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a checkpoint folder and return it."""
    shape = shape or Shape()
    path.mkdir(parents=True, exist_ok=True)
    model = random_model(shape, seed).to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(path, max_shard_size=max_shard_size)
    make_tokenizer().save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    for name, content in {
        "tokenizer_config.json": _tokenizer_config(),
        "preprocessor_config.json": _preprocessor(shape),
        "generation_config.json": _generation(shape),
    }.items():
        (path / name).write_text(json.dumps(content, indent=2))
    return path


def random_model(shape: Shape, seed: int) -> Qwen3VLForConditionalGeneration:
    """A model whose greedy choices are far from ties and depend on context and images."""
    model = Qwen3VLForConditionalGeneration(build_config(shape)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        elif parameter.ndim == 1:
            parameter.copy_(1 + 0.1 * noise)
        elif "embed" in name and "patch" not in name:
            parameter.copy_(0.5 * noise)
        else:
            parameter.copy_(noise * 1.5 * (parameter[0].numel() ** -0.5))
    return model


def build_config(shape: Shape) -> Qwen3VLConfig:
    """The transformers configuration of a shape."""
    return Qwen3VLConfig(
        text_config={
            "vocab_size": shape.vocab_size,
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.num_layers,
            "num_attention_heads": shape.num_heads,
            "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim,
            "max_position_embeddings": shape.max_position_embeddings,
            "tie_word_embeddings": shape.tied,
            "bos_token_id": ENDOFTEXT,
            "eos_token_id": IM_END,
            "pad_token_id": ENDOFTEXT,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_interleaved": True,
                "mrope_section": list(shape.mrope_section),
            },
        },
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": shape.vision_intermediate_size,
            "num_heads": shape.vision_heads,
            "patch_size": shape.patch_size,
            "spatial_merge_size": shape.merge_size,
            "temporal_patch_size": 2,
            "out_hidden_size": shape.hidden_size,
            "num_position_embeddings": shape.num_position_embeddings,
            "deepstack_visual_indexes": list(shape.deepstack_layers),
        },
        tie_word_embeddings=shape.tied,
        image_token_id=IMAGE_PAD,
        video_token_id=VIDEO_PAD,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )


def make_tokenizer() -> Tokenizer:
    """One token a byte, and Qwen's special tokens after them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in SPECIAL_TOKENS]
    )
    return tokenizer


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }


def _preprocessor(shape: Shape) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": shape.min_pixels, "longest_edge": shape.max_pixels},
        "patch_size": shape.patch_size,
        "temporal_patch_size": 2,
        "merge_size": shape.merge_size,
        "image_mean": list(shape.image_mean),
        "image_std": list(shape.image_std),
    }


def _generation(shape: Shape) -> dict[str, Any]:
    defaults = {
        "bos_token_id": ENDOFTEXT,
        "pad_token_id": ENDOFTEXT,
        "eos_token_id": [IM_END, ENDOFTEXT],
        "do_sample": False,
    }
    return defaults | shape.generation
