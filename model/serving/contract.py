"""The model's V2 contract as data: tensors, versions, defaults. Every V2 answer about the model
reads it here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PLATFORM: Final = "pytorch_qwen3_vl"
BACKEND: Final = "qwen3-vl"
VERSION: Final = "1"
NO_SHARED_MEMORY: Final = (
    "unsupported: this server takes tensors in the request only, not in shared memory"
)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as V2 metadata shows it; -1 is a size the request chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


INPUTS: Final = (
    TensorSpec("image", "BYTES", (-1,)),
    TensorSpec("prompt", "BYTES", (-1,), optional=True),
)
OUTPUTS: Final = (
    TensorSpec("text", "BYTES", (-1,)),
    TensorSpec("finish_reason", "BYTES", (-1,)),
    TensorSpec("prompt_tokens", "INT32", (-1,)),
    TensorSpec("completion_tokens", "INT32", (-1,)),
)
SERVER_EXTENSIONS: Final = (
    "binary_tensor_data",
    "generate",
    "health",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
