"""The reference path over several devices: each layer computes where its weights and its KV lie.

accelerate's hooks bring a step's tensors to each layer's device, and the last hidden states back
to the first device, where sampling is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from accelerate.utils import send_to_device

from model.runner.attention import AttentionMetadata, DecodeGroup, PrefillSpan
from model.runner.attention import build_attention_metadata as build
from model.runner.kv_cache import KVCache, KVShape
from model.runner.qwen3_vl import TextModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from torch import Tensor
    from transformers import PreTrainedModel

    from model.engine.batch import ScheduledSequence
    from model.runner.placement import Placement


class SpreadKVCache(KVCache):
    """A KV cache whose layers lie on several devices; no single storage."""

    def __init__(self, shape: KVShape, num_blocks: int, placement: Placement) -> None:
        self.shape = shape
        self.num_blocks = num_blocks
        size = (2, num_blocks * shape.block_size, shape.num_kv_heads, shape.head_dim)
        self.layers = tuple(
            torch.empty(size, dtype=shape.dtype, device=placement.devices[index])
            for index in placement.layers
        )
        self.keys: tuple[Tensor, ...] = tuple(layer[0] for layer in self.layers)
        self.values: tuple[Tensor, ...] = tuple(layer[1] for layer in self.layers)


@dataclass(frozen=True, slots=True)
class MovableMetadata(AttentionMetadata):
    """Metadata with the method that accelerate's hooks look for; moved once to each device."""

    copies: dict[torch.device, MovableMetadata] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: AttentionMetadata, device: torch.device) -> MovableMetadata:
        """The same, which lies on this device."""
        parts = (getattr(metadata, part.name) for part in fields(metadata))
        movable = cls(*parts)
        movable.copies[device] = movable
        return movable

    def to(self, device: torch.device, non_blocking: bool = False) -> MovableMetadata:
        """The same on another device."""
        copy = self.copies.get(device)
        if copy is None:
            copy = MovableMetadata(
                send_to_device(self.slot_mapping, device),
                tuple(_moved_group(group, device) for group in self.decode_groups),
                tuple(_moved_span(span, device) for span in self.prefill_spans),
                self.copies,
            )
            self.copies[device] = copy
        return copy


class SpreadTextModel(TextModel):
    """Embedding, decoder layers and head of a Qwen3-VL whose parts lie on several devices."""

    def __init__(self, model: PreTrainedModel, block_size: int, placement: Placement) -> None:
        super().__init__(model, block_size)
        self._first = placement.first
        language_model = model.model.language_model
        for index, layer in zip(placement.layers, language_model.layers, strict=True):
            add_hook_to_module(layer, AlignDevicesHook(placement.devices[index]))
        add_hook_to_module(language_model.norm, AlignDevicesHook(placement.devices[-1]))
        # Its output comes back to where its input was: the first device.
        whole = AlignDevicesHook(placement.first, io_same_device=True)
        add_hook_to_module(language_model, whole)
        head = AlignDevicesHook(placement.devices[placement.head], io_same_device=True)
        add_hook_to_module(model.lm_head, head)

    def metadata(self, shares: Seq[ScheduledSequence]) -> MovableMetadata:
        """Where a step's tokens lie in the cache."""
        built = build(shares, self._block_size, self._first, self._head.weight.dtype)
        return MovableMetadata.of(built, self._first)


def num_spread_blocks(
    shape: KVShape, placement: Placement, size: Callable[[KVShape, torch.device], int]
) -> int:
    """Blocks that fit every device beside its weights.

    size: blocks that a device takes of a shape, here that of the layers it holds
    """
    counts = []
    for index, device in enumerate(placement.devices):
        num_layers = placement.layers.count(index)
        if num_layers:
            part = KVShape(
                num_layers, shape.num_kv_heads, shape.head_dim, shape.block_size, shape.dtype
            )
            counts.append(size(part, device))
    return min(counts)


def _moved_group(group: DecodeGroup, device: torch.device) -> DecodeGroup:
    moved = (send_to_device(getattr(group, part.name), device) for part in fields(group))
    return DecodeGroup(*moved)


def _moved_span(span: PrefillSpan, device: torch.device) -> PrefillSpan:
    moved = (send_to_device(getattr(span, part.name), device) for part in fields(span))
    return PrefillSpan(*moved)
