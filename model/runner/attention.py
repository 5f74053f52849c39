"""Paged attention: writes a step's keys and values into the cache, then attends through it.

The reference backend: plain torch operations on any device. `register` makes it known to
transformers under `ATTENTION_NAME`; the model passes its metadata and cache through as keyword
arguments. Source of paging: Kwon et al., SOSP 2023, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from model.engine.batch import ScheduledSequence
    from model.runner.kv_cache import KVCache

ATTENTION_NAME = "paged_reference"
# Decode rows whose contexts fall into one power of two share a padded call, at most doubling the
# gather; below this length a call costs more than the padding.
SMALLEST_CONTEXT_BUCKET = 256


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Single-token queries of similar context, attended in one call.

    rows: [num_rows] int64, into the flat batch
    slots: [num_rows, max_context] int64; past a context's end its own first slot is repeated
    mask: [num_rows, 1, 1, max_context], 0 or -inf; None where all contexts are equally long
    """

    rows: Tensor
    slots: Tensor
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One sequence's chunk: rows [start, end) of the flat batch.

    slots: [1, context] int64; None for a chunk that starts its sequence: it attends to itself alone
    mask: [num_tokens, context], 0 or -inf; None with slots None, where plain causality is meant
    """

    start: int
    end: int
    slots: Tensor | None
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """What every layer of a step needs to know of its batch, built once.

    slot_mapping: [num_tokens] int64, where each new token's KV goes
    """

    slot_mapping: Tensor
    decode_groups: tuple[DecodeGroup, ...]
    prefill_spans: tuple[PrefillSpan, ...]


def build_attention_metadata(
    shares: Seq[ScheduledSequence], block_size: int, device: torch.device, dtype: torch.dtype
) -> AttentionMetadata:
    """Lay a batch out over the cache; `dtype` is the one queries will have."""
    mapping: list[NDArray[np.int64]] = []
    spans: list[PrefillSpan] = []
    buckets: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}
    row = 0
    for share in shares:
        slots = context_slots(share.sequence.block_table, share.end, block_size)
        mapping.append(slots[share.start :])
        if share.num_tokens == 1:
            bucket = max(SMALLEST_CONTEXT_BUCKET, 1 << (share.end - 1).bit_length())
            buckets.setdefault(bucket, []).append((row, slots))
        else:
            spans.append(prefill_span(row, share.start, slots, device, dtype))
        row += share.num_tokens
    return AttentionMetadata(
        slot_mapping=torch.from_numpy(np.concatenate(mapping)).to(device),
        decode_groups=tuple(_decode_group(members, device, dtype) for members in buckets.values()),
        prefill_spans=tuple(spans),
    )


def context_slots(block_table: Seq[int], end: int, block_size: int) -> NDArray[np.int64]:
    """Slots of tokens [0, end): [end] int64."""
    num_blocks = -(-end // block_size)
    assert num_blocks <= len(block_table), "a share reaches past its block table"
    first = np.asarray(block_table[:num_blocks], dtype=np.int64) * block_size
    return (first[:, None] + np.arange(block_size)).reshape(-1)[:end]


def paged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cache: KVCache,
    layer: int,
    metadata: AttentionMetadata,
    scaling: float,
) -> Tensor:
    """Store the new keys and values, then attend each query to its own sequence's context.

    query: [num_tokens, num_heads, head_dim]; key, value: [num_tokens, num_kv_heads, head_dim]
    returns [num_tokens, num_heads, head_dim]
    """
    cache.write(layer, metadata.slot_mapping, key, value)
    output = torch.empty_like(query)
    for group in metadata.decode_groups:
        whole = len(group.rows) == len(query)
        rows = query if whole else query.index_select(0, group.rows)
        attended = _attend_decode(rows, *cache.gather(layer, group.slots), group.mask, scaling)
        if whole:
            return attended
        output.index_copy_(0, group.rows, attended)
    for span in metadata.prefill_spans:
        rows = query[span.start : span.end]
        if span.slots is None:
            keys = key[span.start : span.end].transpose(0, 1)[None]
            values = value[span.start : span.end].transpose(0, 1)[None]
        else:
            keys, values = cache.gather(layer, span.slots)
        output[span.start : span.end] = attend_prefill(rows, keys, values, span.mask, scaling)
    return output


def register() -> None:
    """Make the reference known to transformers; no mask function, so that it builds no mask."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, _transformers_attention)


def _transformers_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    kv_cache: KVCache,
    attention_metadata: AttentionMetadata,
    **_: Any,
) -> tuple[Tensor, None]:
    """The shape transformers calls: query [1, num_heads, num_tokens, head_dim], and so on."""
    assert attention_mask is None, "the paged backend masks by metadata alone"
    layer = module.layer_idx
    assert isinstance(layer, int)
    output = paged_attention(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        kv_cache,
        layer,
        attention_metadata,
        scaling,
    )
    return output[None], None


def _attend_decode(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """One query a row.

    query: [num_rows, num_heads, head_dim]
    keys, values: [num_rows, num_kv_heads, context, head_dim]
    """
    num_rows, num_heads, head_dim = query.shape
    # The heads that share a KV head are its queries: no copy of keys and values per head.
    grouped = query.reshape(num_rows, keys.shape[1], -1, head_dim)
    attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    return attended.reshape(num_rows, num_heads, head_dim)


def attend_prefill(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scaling: float
) -> Tensor:
    """One sequence's chunk.

    query: [num_tokens, num_heads, head_dim]
    keys, values: [1, num_kv_heads, context, head_dim]
    """
    attended = scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    return attended[0].transpose(0, 1)


def _decode_group(
    members: list[tuple[int, NDArray[np.int64]]], device: torch.device, dtype: torch.dtype
) -> DecodeGroup:
    lengths = np.asarray([len(slots) for _, slots in members])
    longest = int(lengths.max())
    # Padding repeats a slot that certainly holds numbers: -inf in the mask would not stop a NaN
    # value from another sequence's, or nobody's, slot.
    padded = np.stack([np.pad(s, (0, longest - len(s)), constant_values=s[0]) for _, s in members])
    mask = None
    if int(lengths.min()) < longest:
        past_end = torch.from_numpy(np.arange(longest) >= lengths[:, None]).to(device)
        mask = _additive(past_end, dtype)[:, None, None]
    rows = torch.tensor([row for row, _ in members], dtype=torch.int64, device=device)
    return DecodeGroup(rows, torch.from_numpy(padded).to(device), mask)


def prefill_span(
    row: int, start: int, slots: NDArray[np.int64], device: torch.device, dtype: torch.dtype
) -> PrefillSpan:
    num_tokens = len(slots) - start
    if start == 0:
        return PrefillSpan(row, row + num_tokens, None, None)
    index = torch.arange(len(slots), device=device)
    future = index[None] > index[start:, None]
    return PrefillSpan(
        row, row + num_tokens, torch.from_numpy(slots).to(device)[None], _additive(future, dtype)
    )


def _additive(masked: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(masked.shape, dtype=dtype, device=masked.device).masked_fill_(
        masked, float("-inf")
    )
