"""The bundled checkpoint's shape: a Qwen3-VL of four million parameters, and its other files.

Real Qwen3-VL in every respect but size. Writes what transformers and vLLM read beside the weights
and the tokenizer; knows nothing of training.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from model.demo.pixels import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH
from model.demo.tokenizer import VOCAB_SIZE, load_tokenizer

MAX_POSITIONS: Final = 4096
_TEXT: Final[dict[str, Any]] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": MAX_POSITIONS,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    # Sums to head_dim / 2; interleaving needs the last two at a third of that at most.
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_interleaved": True,
        "mrope_section": [12, 10, 10],
    },
}
_VISION: Final[dict[str, Any]] = {
    "depth": 4,
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_heads": 5,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "spatial_merge_size": MERGE,
    "out_hidden_size": 192,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [1],
}
_IMAGE_PROCESSOR: Final[dict[str, Any]] = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": MERGE,
    "patch_size": PATCH,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    "temporal_patch_size": 2,
}


def build_config(token_ids: Mapping[str, int]) -> Qwen3VLConfig:
    """The model's configuration; `token_ids` maps special tokens to their ids."""
    special = {
        "bos_token_id": token_ids["<|endoftext|>"],
        "eos_token_id": token_ids["<|im_end|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }
    return Qwen3VLConfig(
        text_config={**_TEXT, **special},
        vision_config=dict(_VISION),
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
        architectures=["Qwen3VLForConditionalGeneration"],
        dtype="bfloat16",
    )


def build_model(model_dir: Path) -> Qwen3VLForConditionalGeneration:
    """An untrained float32 model for the tokenizer in `model_dir`."""
    config = build_config(load_tokenizer(model_dir).get_vocab())
    return Qwen3VLForConditionalGeneration(config).float()


def write_configs(model_dir: Path) -> None:
    """Write every JSON file beside tokenizer and weights."""
    token_ids = load_tokenizer(model_dir).get_vocab()
    build_config(token_ids).save_pretrained(model_dir)
    image = {"image_processor_type": "Qwen2VLImageProcessor", **_IMAGE_PROCESSOR}
    video = {
        "video_processor_type": "Qwen3VLVideoProcessor",
        **_IMAGE_PROCESSOR,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": 16 * MAX_PIXELS},
        "do_sample_frames": True,
        "fps": 2,
        "min_frames": 4,
        "max_frames": 16,
    }
    contents: dict[str, Mapping[str, Any]] = {
        "generation_config.json": {
            "bos_token_id": token_ids["<|endoftext|>"],
            "do_sample": False,
            "eos_token_id": [token_ids["<|im_end|>"], token_ids["<|endoftext|>"]],
            "max_new_tokens": 128,
            "pad_token_id": token_ids["<|endoftext|>"],
        },
        "preprocessor_config.json": {"processor_class": "Qwen3VLProcessor", **image},
        "video_preprocessor_config.json": {"processor_class": "Qwen3VLProcessor", **video},
        "processor_config.json": {
            "processor_class": "Qwen3VLProcessor",
            "image_processor": image,
            "video_processor": video,
        },
    }
    for name, content in contents.items():
        (model_dir / name).write_text(json.dumps(content, indent=2) + "\n")


def average_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The mean of weights that ended the same run differently, taken in float32.

    Source: Wortsman et al., Model soups, ICML 2022.
    """
    states = [load_file(file) for file in files]
    return {
        name: torch.stack([state[name].float() for state in states]).mean(0) for name in states[0]
    }


def write_weights(model_dir: Path, state: Mapping[str, Tensor]) -> None:
    """Write `model.safetensors` in bfloat16, in one step that a reader cannot see half done."""
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in state.items()
        if name != "lm_head.weight"  # tied to the embedding, which stores it
    }
    partial = model_dir / "model.safetensors.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    # safetensors writes 0600; a container runs as another user.
    os.chmod(partial, 0o644)
    os.replace(partial, model_dir / "model.safetensors")
