"""The KV cache: its tensors, what a block costs, and how many blocks there are.

Knows nothing of who owns which block; the engine's pool does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.runner import huge_pages
from model.runner.device import UnusableSetting

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedConfig

    from model.settings import EngineSettings

DEFAULT_CPU_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class KVShape:
    """What one block looks like, all layers together."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype

    @classmethod
    def of(cls, config: PreTrainedConfig, block_size: int, dtype: torch.dtype) -> KVShape:
        """Of a text model's configuration."""
        return cls(
            num_layers=config.num_hidden_layers,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            block_size=block_size,
            dtype=dtype,
        )

    @property
    def block_bytes(self) -> int:
        """Keys and values of one block in every layer."""
        elements = 2 * self.num_layers * self.block_size * self.num_kv_heads * self.head_dim
        return elements * self.dtype.itemsize


class KVCache:
    """Keys and values of every layer, as slots: slot = block * block_size + offset.

    keys, values: a layer's [num_slots, num_kv_heads, head_dim]
    """

    def __init__(self, shape: KVShape, num_blocks: int, device: torch.device) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        # Uninitialised on purpose: on CPU pages cost nothing until written, and attention never
        # reads a slot that its own sequence has not written.
        num_slots = num_blocks * shape.block_size
        sizes = (shape.num_layers, 2, num_slots, shape.num_kv_heads, shape.head_dim)
        if device.type == "cpu":
            self.storage = huge_pages.empty(sizes, shape.dtype)
        else:
            self.storage = torch.empty(sizes, dtype=shape.dtype, device=device)
        self.keys: tuple[Tensor, ...] = tuple(self.storage[:, 0].unbind(0))
        self.values: tuple[Tensor, ...] = tuple(self.storage[:, 1].unbind(0))

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return self.num_blocks * self.shape.block_bytes

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store new tokens.

        slots: [num_tokens] int64; keys, values: [num_tokens, num_kv_heads, head_dim]
        """
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at these slots, copied.

        slots: [num_rows, context] int64; returns two [num_rows, num_kv_heads, context, head_dim]
        """
        shape = (*slots.shape, self.shape.num_kv_heads, self.shape.head_dim)
        flat = slots.reshape(-1)
        keys = self.keys[layer].index_select(0, flat).view(shape)
        values = self.values[layer].index_select(0, flat).view(shape)
        return keys.transpose(1, 2), values.transpose(1, 2)


def size_kv_cache(
    settings: EngineSettings,
    shape: KVShape,
    max_model_len: int,
    device: torch.device,
    measure_activations: Callable[[], int],
) -> int:
    """How many blocks the cache has.

    `kv_cache_bytes` where it is set. Else on CUDA what `memory_ratio` of the device leaves once
    everything in use and the activations of the largest step are taken off; on CPU 1 GiB or what
    `max_sequences` of `max_model_len` tokens can fill, whichever is less.

    measure_activations: bytes a largest step needs at its peak; called on CUDA only.
    Raises UnusableSetting when not even one block fits.
    """
    if settings.kv_cache_bytes is not None:
        num_bytes, source = settings.kv_cache_bytes, "engine.kv_cache_bytes"
    elif device.type == "cuda":
        activations = measure_activations()
        free, total = torch.cuda.mem_get_info(device)
        num_bytes = int(total * settings.memory_ratio) - (total - free) - activations
        source = f"engine.memory_ratio {settings.memory_ratio}"
    else:
        per_sequence = -(-max_model_len // shape.block_size)
        needed = settings.max_sequences * per_sequence * shape.block_bytes
        num_bytes, source = min(DEFAULT_CPU_BYTES, needed), "the default of 1 GiB"
    num_blocks = num_bytes // shape.block_bytes
    if num_blocks < 1:
        raise UnusableSetting(
            f"{source} leaves {num_bytes} bytes for the KV cache; one block of {shape.block_size} "
            f"tokens takes {shape.block_bytes}"
        )
    return num_blocks
