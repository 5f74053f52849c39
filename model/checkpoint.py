"""What a checkpoint folder says of itself: read from its JSON files, without any tensor library.

Both the protocols (image sizes, special tokens, defaults) and the runner (shapes, normalisation)
read it.
Layout: the hub's Qwen3-VL folders, and what `save_pretrained` of transformers 5 writes
(`processor_config.json`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MODEL_TYPE = "qwen3_vl"
DEFAULT_MAX_MODEL_LEN = 32_768
HUB_PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.txt")


class CheckpointError(Exception):
    """A checkpoint that cannot be served; its text is one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class DefaultSampling:
    """Sampling where a request names none, of generation_config.json; greedy without do_sample."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A dense Qwen3-VL checkpoint.

    dtype: as saved ("bfloat16", …); patch_size, merge_size: pixels of a patch, patches of a token's
    side
    image_mean, image_std: of RGB scaled to 0–1; min_pixels, max_pixels: area a picture is resized
    into
    """

    path: Path
    dtype: str
    vocab_size: int
    max_position_embeddings: int
    eos_token_ids: frozenset[int]
    image_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    patch_size: int
    merge_size: int
    temporal_patch_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    min_pixels: int
    max_pixels: int
    default_sampling: DefaultSampling

    @property
    def pixels_per_token(self) -> int:
        """Pixels one visual token stands for."""
        return (self.patch_size * self.merge_size) ** 2

    def max_model_len(self, wanted: int | None) -> int:
        """Tokens of prompt and answer: what is wanted, else a useful default, never over the
        model's.
        """
        return min(wanted or DEFAULT_MAX_MODEL_LEN, self.max_position_embeddings)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and check a checkpoint's description.

    Raises CheckpointError: no folder, a missing or broken file, another architecture.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is not a folder; --model_dir takes a Qwen3-VL checkpoint folder"
        )
    config = _read_json(path / "config.json")
    model_type = config.get("model_type")
    if model_type != MODEL_TYPE:
        raise CheckpointError(
            f"{path / 'config.json'} has model_type {model_type!r}; this server runs {MODEL_TYPE!r}"
        )
    if not (path / "tokenizer.json").is_file():
        raise CheckpointError(f"{path / 'tokenizer.json'} is missing")
    try:
        return _build(path, config, _image_processor(path), _generation(path))
    except KeyError as e:
        raise CheckpointError(f"the configuration in {path} lacks {e.args[0]!r}") from e
    except (TypeError, ValueError) as e:
        raise CheckpointError(f"the configuration in {path} is not usable: {e}") from e


def _build(
    path: Path, config: dict[str, Any], processor: dict[str, Any], generation: dict[str, Any]
) -> Checkpoint:
    text, vision = config["text_config"], config["vision_config"]
    size = processor.get("size") or {}
    return Checkpoint(
        path=path,
        dtype=str(
            text.get("dtype") or config.get("dtype") or config.get("torch_dtype") or "float32"
        ),
        vocab_size=int(text["vocab_size"]),
        max_position_embeddings=int(text["max_position_embeddings"]),
        eos_token_ids=_token_ids(generation.get("eos_token_id", text.get("eos_token_id"))),
        image_token_id=int(config["image_token_id"]),
        vision_start_token_id=int(config["vision_start_token_id"]),
        vision_end_token_id=int(config["vision_end_token_id"]),
        patch_size=int(vision["patch_size"]),
        merge_size=int(vision["spatial_merge_size"]),
        temporal_patch_size=int(vision["temporal_patch_size"]),
        image_mean=_triple(processor["image_mean"]),
        image_std=_triple(processor["image_std"]),
        min_pixels=int(size.get("shortest_edge") or processor["min_pixels"]),
        max_pixels=int(size.get("longest_edge") or processor["max_pixels"]),
        default_sampling=_default_sampling(generation),
    )


def _default_sampling(generation: dict[str, Any]) -> DefaultSampling:
    repetition_penalty = float(generation.get("repetition_penalty") or 1.0)
    if not generation.get("do_sample", False):
        return DefaultSampling(repetition_penalty=repetition_penalty)
    return DefaultSampling(
        temperature=float(generation.get("temperature") or 1.0),
        top_p=float(generation.get("top_p") or 1.0),
        top_k=int(generation.get("top_k") or 0),
        repetition_penalty=repetition_penalty,
    )


def _image_processor(path: Path) -> dict[str, Any]:
    """The image processor's settings, of the combined file where it has them, as transformers 5."""
    combined = path / "processor_config.json"
    if combined.is_file():
        section = _read_json(combined).get("image_processor")
        if isinstance(section, dict):
            return section
    return _read_json(path / "preprocessor_config.json")


def _generation(path: Path) -> dict[str, Any]:
    file = path / "generation_config.json"
    return _read_json(file) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(f"{file} is missing") from e
    except (OSError, ValueError) as e:
        raise CheckpointError(f"{file} is not readable JSON: {e}") from e
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no JSON object")
    return content


def _token_ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset([value] if isinstance(value, int) else value)


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
