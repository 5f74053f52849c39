"""What the text model's layer loop asks of a device beyond matrix products.

`TorchKernels` is plain torch: what CPUs run, and what other sets are compared with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import silu

from model.runner.attention import AttentionMetadata, build_attention_metadata, paged_attention

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

    from model.engine.batch import ScheduledSequence
    from model.runner.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class TextGeometry:
    """The text model's numbers that kernels need.

    scaling: of query times key; eps: of every norm
    inverse_frequencies: [head_dim / 2] float32, radians a position
    axes: [head_dim / 2] int64, whose position (0 time, 1 height, 2 width) each frequency turns by:
    Qwen3-VL interleaves them (Qwen3-VL technical report, 2025, "Interleaved MRoPE")
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scaling: float
    eps: float
    inverse_frequencies: Tensor
    axes: Tensor

    @classmethod
    def of(cls, model: PreTrainedModel) -> TextGeometry:
        """A loaded model's geometry; raises ValueError for rotary scaling it does not know."""
        config, language_model = model.config.text_config, model.model.language_model
        rotary, first = language_model.rotary_emb, language_model.layers[0].self_attn
        if rotary.rope_type != "default":
            raise ValueError(f"rope_type is {rotary.rope_type!r}; this runner knows 'default'")
        half = first.head_dim // 2
        axes = torch.zeros(half, dtype=torch.int64)
        for axis in (1, 2):
            axes[axis : rotary.mrope_section[axis] * 3 : 3] = axis
        return cls(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=first.head_dim,
            scaling=first.scaling,
            eps=config.rms_norm_eps,
            inverse_frequencies=rotary.inv_freq,
            axes=axes.to(rotary.inv_freq.device),
        )


# Each set of kernels has metadata of its own; only the set that made it reads it.
Metadata: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of every token's angles, both [num_tokens, head_dim / 2]."""

    cos: Tensor
    sin: Tensor


class TextKernels(Protocol):
    """Everything between the products of a decoder layer."""

    def metadata(self, shares: Seq[ScheduledSequence]) -> Metadata:
        """Where a step's tokens lie in the cache, in the form that `attention` takes."""
        ...

    def rms_norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Scale each row by its root mean square, then by weight; rows: [num_rows, hidden_size]."""
        ...

    def add_rms_norm(self, hidden: Tensor, addition: Tensor, weight: Tensor) -> Tensor:
        """Add in place to hidden, and return the sum's norm."""
        ...

    def attention(
        self,
        layer: int,
        qkv: Tensor,
        qk_norm: Tensor,
        rotation: Rotation,
        cache: KVCache,
        metadata: Metadata,
    ) -> Tensor:
        """Norm and rotate queries and keys, store keys and values, attend.

        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], may be overwritten
        qk_norm: [num_heads + num_kv_heads, head_dim], each head's weight of its norm
        returns [num_tokens, num_heads * head_dim]
        """
        ...

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up; gate_up: [num_tokens, 2 * intermediate_size], may be overwritten."""
        ...


def rotation_of(positions: Tensor, geometry: TextGeometry, dtype: torch.dtype) -> Rotation:
    """positions: [3, num_tokens] int64, by axis."""
    turned = positions.transpose(0, 1).index_select(1, geometry.axes)
    angles = turned * geometry.inverse_frequencies
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


class TorchKernels:
    """TextKernels as torch operations."""

    def __init__(
        self,
        geometry: TextGeometry,
        block_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._geometry = geometry
        self._block_size = block_size
        self._device = device
        self._dtype = dtype

    def metadata(self, shares: Seq[ScheduledSequence]) -> AttentionMetadata:
        """See TextKernels."""
        return build_attention_metadata(shares, self._block_size, self._device, self._dtype)

    def rms_norm(self, rows: Tensor, weight: Tensor) -> Tensor:
        """See TextKernels."""
        return rms_norm(rows, weight, self._geometry.eps)

    def add_rms_norm(self, hidden: Tensor, addition: Tensor, weight: Tensor) -> Tensor:
        """See TextKernels."""
        return rms_norm(hidden.add_(addition), weight, self._geometry.eps)

    def attention(
        self,
        layer: int,
        qkv: Tensor,
        qk_norm: Tensor,
        rotation: Rotation,
        cache: KVCache,
        metadata: AttentionMetadata,
    ) -> Tensor:
        """See TextKernels."""
        geometry = self._geometry
        num_turned = geometry.num_heads + geometry.num_kv_heads
        heads = qkv.view(len(qkv), num_turned + geometry.num_kv_heads, geometry.head_dim)
        turned = rotate(rms_norm(heads[:, :num_turned], qk_norm, geometry.eps), rotation)
        query, key = torch.split(turned, [geometry.num_heads, geometry.num_kv_heads], dim=1)
        value = heads[:, num_turned:]
        attended = paged_attention(query, key, value, cache, layer, metadata, geometry.scaling)
        return attended.reshape(len(qkv), -1)

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """See TextKernels."""
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale by the root mean square of the last dimension, in float32 as the model was trained.

    Source: Zhang and Sennrich, NeurIPS 2019.
    """
    # The norm of a vector reads it once; squaring, summing and dividing would write it too.
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=torch.float32)
    scale = length.mul_(length).div_(rows.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(rows, scale).to(rows.dtype).mul_(weight)


def rotate(heads: Tensor, rotation: Rotation) -> Tensor:
    """Rotary position embedding: the first half of head_dim with the second.

    heads: [num_tokens, num_heads, head_dim]
    Source: Su et al., RoFormer, 2021.
    """
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.empty_like(heads)
    low, high = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=low)
    torch.mul(second, cos, out=high)
    low.addcmul_(second, sin, value=-1)
    high.addcmul_(first, sin)
    return rotated
