"""From a checkpoint folder to a model on its device: safetensors only, never pickle or remote code.

Each tensor goes straight to its device in its final format; no second copy of the weights is held.
Every failure is a CheckpointError that names the file, the tensor, and what was expected.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from model.checkpoint import CheckpointError
from model.runner.placement import Placement
from model.runner.quantize import (
    QuantizedLinear,
    empty_quantized_layers,
    log_memory,
    saved_shapes,
)
from model.settings import Quantization

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEAD = "lm_head.weight"
LOG_SECONDS = 5.0
# A file is mapped anew after so many bytes, so that pages already copied count no longer.
REMAP_BYTES = 256 << 20
SAVED_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(slots=True)
class LoadProgress:
    """How far loading is; written by the loading thread, read by any other."""

    total_bytes: int = 0
    loaded_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of the folder: where it lies, and the parameter it belongs to."""

    file: Path
    key: str
    parameter: str
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(slots=True)
class _Reporter:
    """Progress for people: a bar on a terminal, else a line every few seconds."""

    progress: LoadProgress
    started: float = field(default_factory=time.monotonic)
    logged: float = field(default_factory=time.monotonic)
    bar: tqdm[Any] | None = None

    def start(self) -> None:
        if sys.stderr.isatty():
            total = self.progress.total_bytes
            self.bar = tqdm(total=total, unit="B", unit_scale=True, desc="weights", leave=False)

    def advance(self, num_bytes: int) -> None:
        now = time.monotonic()
        self.progress.loaded_bytes += num_bytes
        self.progress.seconds = now - self.started
        if self.bar is not None:
            self.bar.update(num_bytes)
        elif now - self.logged >= LOG_SECONDS:
            self.logged = now
            logger.info(_progress_line(self.progress))

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.close()


def load_model(
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    progress: LoadProgress | None = None,
    quantization: Quantization = Quantization.NONE,
) -> PreTrainedModel:
    """Build the model a folder describes and fill it on one device."""
    model = empty_model(path, dtype, quantization)
    placement = Placement.on(device, len(model.model.language_model.layers))
    return fill_model(model, path, placement, dtype, progress)


def empty_model(
    path: Path, dtype: torch.dtype, quantization: Quantization = Quantization.NONE
) -> PreTrainedModel:
    """The model a folder describes, its weights on `meta` in their final sizes."""
    config = _read_config(path)
    with init_empty_weights(include_buffers=False):
        model = Qwen3VLForConditionalGeneration(config)
    empty_quantized_layers(model, quantization, dtype)
    return model


def fill_model(
    model: PreTrainedModel,
    path: Path,
    placement: Placement,
    dtype: torch.dtype,
    progress: LoadProgress | None = None,
) -> PreTrainedModel:
    """Give an empty model the folder's weights; returns it in eval mode, without gradients.

    A quantized layer takes each weight as it is read, so that no more than one is held whole.
    Buffers that are not saved (rotary frequencies) stay float32, as from_pretrained leaves them.
    """
    expected = saved_shapes(model)
    tensors = list(_saved_tensors(path, set(expected)))
    tied = model.config.tie_word_embeddings
    if tied and all(tensor.parameter != HEAD for tensor in tensors):
        del expected[HEAD]
    saved = _match(path, tensors, expected)
    reporter = _Reporter(progress or LoadProgress())
    reporter.progress.total_bytes = sum(tensor.num_bytes for tensor in saved)
    reporter.start()
    try:
        _fill(model, saved, placement, dtype, reporter)
    finally:
        reporter.stop()
    if tied:
        _tie(model, head_saved=HEAD in expected)
    for name, module in model.named_modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            setattr(module, leaf, buffer.to(placement.of(name)))
    log_memory(model, dtype)
    return model.eval().requires_grad_(False)


def _tie(model: PreTrainedModel, *, head_saved: bool) -> None:
    """Share the embedding with the head, unless the folder holds a head that differs."""
    embedding = model.model.language_model.embed_tokens.weight
    if head_saved and not torch.equal(model.lm_head.weight, embedding):
        logger.warning("config.json ties %s to the embedding, but both are saved and differ", HEAD)
        return
    model.lm_head.weight = embedding


def _read_config(path: Path) -> Qwen3VLConfig:
    try:
        config = Qwen3VLConfig.from_pretrained(path, local_files_only=True)
    except Exception as e:  # whatever transformers finds wrong with the file
        raise CheckpointError(f"{path / 'config.json'} describes no usable model: {e}") from e
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = dict(quantization).get("quant_method", "unknown")
        raise CheckpointError(
            f"{path / 'config.json'} has quantization_config {method!r}; "
            "this server loads float weights (F32, F16, BF16), of which --quantization makes 8 or "
            "4 bits"
        )
    return config


def _saved_tensors(path: Path, parameters: set[str]) -> Iterator[SavedTensor]:
    """Every tensor of the folder, from the files' headers."""
    for file, promised in _weight_files(path).items():
        with _opened(file) as handle:
            keys = set(handle.keys())
            for key in sorted(promised - keys):
                raise CheckpointError(
                    f"{file} has no tensor {key!r}, which {INDEX_FILE} puts there"
                )
            for key in sorted(keys):
                part = handle.get_slice(key)
                if part.get_dtype() not in SAVED_DTYPES:
                    raise CheckpointError(
                        f"{file}: tensor {key!r} is saved as {part.get_dtype()}; "
                        f"expected one of {', '.join(sorted(SAVED_DTYPES))}"
                    )
                shape = tuple(part.get_shape())
                num_bytes = math.prod(shape) * int(part.get_dtype().lstrip("BF")) // 8
                yield SavedTensor(file, key, _parameter_name(key, parameters), shape, num_bytes)


def _weight_files(path: Path) -> dict[Path, set[str]]:
    """The folder's weight files, each with the tensors an index promises of it."""
    if (path / INDEX_FILE).is_file():
        files = _indexed_files(path)
    elif (path / SINGLE_FILE).is_file():
        files = {path / SINGLE_FILE: set()}
    elif pickled := sorted(path.glob("*.bin")) + sorted(path.glob("*.pth")):
        raise CheckpointError(
            f"{path} has only pickled weights ({pickled[0].name}), which can run code when read; "
            "save them as safetensors"
        )
    else:
        raise CheckpointError(f"{path} has neither {SINGLE_FILE} nor {INDEX_FILE}")
    return files


def _indexed_files(path: Path) -> dict[Path, set[str]]:
    index = path / INDEX_FILE
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        entries = [(str(key), str(name)) for key, name in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{index} is not readable as an index with a weight_map: {e}") from e
    files: dict[Path, set[str]] = {}
    for key, name in entries:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index} names {name!r}; it may name .safetensors files beside it"
            )
        files.setdefault(path / name, set()).add(key)
    missing = sorted(file.name for file in files if not file.is_file())
    if missing:
        raise CheckpointError(
            f"{index} names {len(files)} files, of which {len(missing)} are missing: "
            f"{', '.join(missing[:3])}"
        )
    return files


def _parameter_name(key: str, parameters: set[str]) -> str:
    """The parameter a saved key means; a checkpoint of the bare model lacks the leading `model.`"""
    prefixed = f"model.{key}"
    return prefixed if key not in parameters and prefixed in parameters else key


def _match(
    path: Path, saved: list[SavedTensor], expected: dict[str, tuple[int, ...]]
) -> list[SavedTensor]:
    """The tensors to load, once every parameter has exactly one of its shape."""
    by_parameter: dict[str, SavedTensor] = {}
    for tensor in saved:
        if tensor.parameter not in expected:
            raise CheckpointError(f"{tensor.file}: unexpected tensor {tensor.key!r}")
        if tensor.shape != expected[tensor.parameter]:
            raise CheckpointError(
                f"{tensor.file}: tensor {tensor.key!r} has shape {list(tensor.shape)}; "
                f"config.json makes it {list(expected[tensor.parameter])}"
            )
        if (other := by_parameter.setdefault(tensor.parameter, tensor)) is not tensor:
            raise CheckpointError(f"{tensor.file} and {other.file} both hold {tensor.parameter!r}")
    missing = [name for name in expected if name not in by_parameter]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(expected)} tensors are missing, first {missing[0]!r}"
        )
    return list(by_parameter.values())


def _fill(
    model: PreTrainedModel,
    saved: list[SavedTensor],
    placement: Placement,
    dtype: torch.dtype,
    reporter: _Reporter,
) -> None:
    for device, tensors in _mappings(saved, placement):
        with _opened(tensors[0].file, device) as handle:
            for tensor in tensors:
                _put(model, tensor.parameter, _read(handle, tensor, device, dtype))
                reporter.advance(tensor.num_bytes)


def _put(model: PreTrainedModel, parameter: str, value: Tensor) -> None:
    parent, _, leaf = parameter.rpartition(".")
    module = model.get_submodule(parent)
    if isinstance(module, QuantizedLinear) and leaf == "weight":
        module.fill(value)
    else:
        setattr(module, leaf, nn.Parameter(value, requires_grad=False))


def _mappings(
    saved: list[SavedTensor], placement: Placement
) -> Iterator[tuple[torch.device, list[SavedTensor]]]:
    """Tensors in groups that are read through one mapping of their file, each for one device."""
    group: list[SavedTensor] = []

    def source(tensor: SavedTensor) -> tuple[Path, str]:
        return tensor.file, str(placement.of(tensor.parameter))

    for tensor in sorted(saved, key=lambda t: (*source(t), t.key)):
        full = sum(t.num_bytes for t in group) >= REMAP_BYTES
        if group and (full or source(group[0]) != source(tensor)):
            yield placement.of(group[0].parameter), group
            group = []
        group.append(tensor)
    if group:
        yield placement.of(group[0].parameter), group


def _read(
    handle: safe_open, tensor: SavedTensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    try:
        value: Tensor = handle.get_tensor(tensor.key)  # type: ignore[no-untyped-call]
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{tensor.file}: tensor {tensor.key!r} is not readable: {e}") from e
    if device.type == "cpu":
        # A private copy: left on the mapping, weights would be read from disk again under memory
        # pressure, and a file replaced in place would change them.
        return torch.empty(value.shape, dtype=dtype).copy_(value)
    return value.to(device, dtype)


def _opened(file: Path, device: torch.device | None = None) -> safe_open:
    try:
        return safe_open(file, framework="pt", device=str(device or "cpu"))
    except (SafetensorError, OSError) as e:
        raise CheckpointError(
            f"{file} ({file.stat().st_size if file.is_file() else 0} bytes) is no complete "
            f"safetensors file: {e}"
        ) from e


def _progress_line(progress: LoadProgress) -> str:
    rate = progress.loaded_bytes / max(progress.seconds, 1e-9)
    left = (progress.total_bytes - progress.loaded_bytes) / max(rate, 1.0)
    share = progress.loaded_bytes / max(progress.total_bytes, 1)
    return (
        f"weights: {share:.0%} of {progress.total_bytes / 2**30:.2f} GiB, "
        f"{rate / 2**20:.0f} MiB/s, {left:.0f} s left"
    )
