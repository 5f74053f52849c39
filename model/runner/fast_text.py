"""The text model as a layer loop of our own, over the checkpoint's weights: the path that serves.

Fewer and larger operations than transformers' modules: one product for query, key and value, one
for gate and up, norm and rotation of queries and keys together, the last norm on sampled rows only.
Equal to the reference path of `qwen3_vl.py` up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from model.runner.attention import paged_attention
from model.runner.packed import PackedLinear, can_pack

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

    from model.runner.kv_cache import KVCache
    from model.runner.qwen3_vl import TextInputs


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer.

    input_norm, post_norm: [hidden_size]; qk_norm: [num_heads + num_kv_heads, head_dim], the weights
    of both norms, row by row of what they are multiplied with
    """

    input_norm: Tensor
    qkv: Callable[[Tensor], Tensor]
    qk_norm: Tensor
    out: Callable[[Tensor], Tensor]
    post_norm: Tensor
    gate_up: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class FastTextModel:
    """Embedding, decoder layers and head of a Qwen3-VL; takes the model's layers apart."""

    def __init__(self, model: PreTrainedModel) -> None:
        language_model, config = model.model.language_model, model.config.text_config
        assert config.hidden_act == "silu", "every Qwen3-VL has it"
        self._embed = language_model.embed_tokens
        self._rotary = language_model.rotary_emb
        self._norm = language_model.norm.weight
        self._head = model.lm_head
        self._eps: float = config.rms_norm_eps
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_dim: int = language_model.layers[0].self_attn.head_dim
        self._scaling: float = language_model.layers[0].self_attn.scaling
        weight = model.lm_head.weight
        packs = can_pack(weight.device, weight.dtype)
        self._layers: list[_Layer] = []
        for index, layer in enumerate(language_model.layers):
            self._layers.append(self._take(layer, packs))
            if packs:
                # The packed copies are all that is used: let go of the originals layer by layer.
                language_model.layers[index] = nn.Identity()

    def logits(self, inputs: TextInputs, cache: KVCache) -> Tensor:
        """Run a step; writes the batch's KV. Returns [num_samples, vocab_size] float32."""
        hidden: Tensor = self._embed(inputs.token_ids)
        images = inputs.images
        if images is not None:
            hidden.index_copy_(0, images.rows, images.tokens)
        cos, sin = self._rotary(hidden[None], inputs.positions[:, None])
        # Both halves of the last dimension are the same angles; [num_tokens, 1, head_dim / 2].
        half = self._head_dim // 2
        cos, sin = cos[0, :, None, :half], sin[0, :, None, :half]
        for index, layer in enumerate(self._layers):
            normal = rms_norm(hidden, layer.input_norm, self._eps)
            query, key, value = self._project(layer, normal, cos, sin)
            attended = paged_attention(
                query, key, value, cache, index, inputs.attention, self._scaling
            )
            hidden.add_(layer.out(attended.reshape(len(hidden), -1)))
            normal = rms_norm(hidden, layer.post_norm, self._eps)
            gate, up = layer.gate_up(normal).chunk(2, dim=-1)
            hidden.add_(layer.down(silu(gate).mul_(up)))
            if images is not None and index < len(images.deepstack):
                hidden.index_add_(0, images.rows, images.deepstack[index])
        sampled = rms_norm(hidden.index_select(0, inputs.sample_rows), self._norm, self._eps)
        logits: Tensor = self._head(sampled)
        return logits.to(torch.float32)

    def _project(
        self, layer: _Layer, normal: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries and keys, and values.

        normal: [num_tokens, hidden_size]; returns three [num_tokens, heads, head_dim]
        """
        heads = (self._num_heads, self._num_kv_heads, self._num_kv_heads)
        projected = layer.qkv(normal).view(len(normal), sum(heads), self._head_dim)
        num_rotated = self._num_heads + self._num_kv_heads
        rotated = rotate(rms_norm(projected[:, :num_rotated], layer.qk_norm, self._eps), cos, sin)
        query, key = torch.split(rotated, [self._num_heads, self._num_kv_heads], dim=1)
        return query, key, projected[:, num_rotated:]

    def _take(self, layer: Qwen3VLTextDecoderLayer, packs: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        wrap: Callable[[nn.Linear], nn.Module] = PackedLinear if packs else _itself
        qk_norm = torch.cat(
            [
                attention.q_norm.weight.expand(self._num_heads, -1),
                attention.k_norm.weight.expand(self._num_kv_heads, -1),
            ]
        )
        return _Layer(
            input_norm=layer.input_layernorm.weight,
            qkv=wrap(fuse([attention.q_proj, attention.k_proj, attention.v_proj])),
            qk_norm=qk_norm,
            out=wrap(attention.o_proj),
            post_norm=layer.post_attention_layernorm.weight,
            gate_up=wrap(fuse([mlp.gate_proj, mlp.up_proj])),
            down=wrap(mlp.down_proj),
        )


def fuse(linears: Seq[nn.Linear]) -> nn.Linear:
    """One layer that computes several of the same input, outputs side by side.

    The originals become views of its weight, so that memory holds it once.
    """
    names = [name for name, _ in linears[0].named_parameters()]
    sizes = [linear.out_features for linear in linears]
    fused = nn.Linear(linears[0].in_features, sum(sizes), bias="bias" in names, device="meta")
    for name in names:
        joined = torch.cat([getattr(linear, name).detach() for linear in linears])
        setattr(fused, name, nn.Parameter(joined, requires_grad=False))
        for linear, part in zip(linears, torch.split(joined, sizes), strict=True):
            setattr(linear, name, nn.Parameter(part, requires_grad=False))
    return fused


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale by the root mean square of the last dimension, in float32 as the model was trained.

    Source: Zhang and Sennrich, NeurIPS 2019.
    """
    wide = rows.to(torch.float32)
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normal.to(rows.dtype).mul_(weight)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding: the first half of head_dim with the second.

    heads: [num_tokens, num_heads, head_dim]; cos, sin: [num_tokens, 1, head_dim / 2]
    Source: Su et al., RoFormer, 2021.
    """
    first, second = heads.chunk(2, dim=-1)
    rotated = torch.empty_like(heads)
    low, high = rotated.chunk(2, dim=-1)
    torch.mul(first, cos, out=low)
    torch.mul(second, cos, out=high)
    low.addcmul_(second, sin, value=-1)
    high.addcmul_(first, sin)
    return rotated


def _itself(linear: nn.Linear) -> nn.Module:
    return linear
