"""The text model as a layer loop of our own, over the checkpoint's weights: the path that serves.

Fewer and larger operations than transformers' modules: one product for query, key and value, one
for gate and up, the last norm on sampled rows only, the rest by the device's kernels.
Equal to the reference path of `qwen3_vl.py` up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from model.runner.kernels import rotation_of
from model.runner.native.layers import NativeLayers
from model.runner.native.wide import WideLinear
from model.runner.packed import can_pack, make_gated, make_linear, widens
from model.runner.quantize import QuantizedLinear

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer

    from model.engine.batch import ScheduledSequence
    from model.runner.kernels import Metadata, Rotation, TextGeometry, TextKernels
    from model.runner.kv_cache import KVCache
    from model.runner.qwen3_vl import TextInputs

AnyLinear: TypeAlias = nn.Linear | QuantizedLinear


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One decoder layer's parts.

    input_norm, post_norm: [hidden_size]; qk_norm: [num_heads + num_kv_heads, head_dim], the weights
    of both norms, row by row of what they are multiplied with
    """

    input_norm: Tensor
    qkv: Callable[[Tensor], Tensor]
    qk_norm: Tensor
    out: Callable[[Tensor], Tensor]
    post_norm: Tensor
    gated: Callable[[Tensor], Tensor]
    down: Callable[[Tensor], Tensor]


class FastTextModel:
    """Embedding, decoder layers and head of a Qwen3-VL; takes the model's layers apart."""

    def __init__(
        self, model: PreTrainedModel, geometry: TextGeometry, kernels: TextKernels
    ) -> None:
        assert model.config.text_config.hidden_act == "silu", "every Qwen3-VL has it"
        language_model = model.model.language_model
        self._geometry = geometry
        self._kernels = kernels
        self._norm = language_model.norm.weight
        weight = model.lm_head.weight
        packs = can_pack(weight.device, weight.dtype)
        self._embed, self._head = _take_ends(model)
        self._layers: list[DecoderLayer] = []
        for index, layer in enumerate(language_model.layers):
            self._layers.append(_take(layer, geometry, kernels))
            if packs:
                # The packed copies are all that is used: let go of the originals layer by layer.
                language_model.layers[index] = nn.Identity()
        self._native = NativeLayers.of(self._layers, self._norm, kernels)

    def metadata(self, shares: Seq[ScheduledSequence]) -> Metadata:
        """Where a step's tokens lie in the cache."""
        return self._kernels.metadata(shares)

    def logits(self, inputs: TextInputs, cache: KVCache) -> Tensor:
        """Run a step; writes the batch's KV. Returns [num_samples, vocab_size] float32."""
        return self.head(self.hidden(inputs, cache))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of what `hidden` gives: [num_rows, vocab_size] float32."""
        logits: Tensor = self._head(hidden)
        return logits.to(torch.float32)

    def hidden(self, inputs: TextInputs, cache: KVCache) -> Tensor:
        """Run a step's layers; writes the batch's KV. Returns [num_samples, hidden_size]."""
        hidden: Tensor = self._embed(inputs.token_ids)
        images = inputs.images
        if images is not None:
            hidden.index_copy_(0, images.rows, images.tokens)
        rotation = rotation_of(inputs.positions, self._geometry, hidden.dtype)
        last = len(self._layers) - 1
        # Of the last layer only the rows that choose a token are read, unless DeepStack reaches it.
        trims = images is None or len(images.deepstack) <= last
        inputs.computing()
        if self._native is not None:
            normal = self._native(hidden, rotation, inputs, cache, trims=trims)
        else:
            normal = self._run(hidden, rotation, inputs, cache, trims=trims)
        return normal if trims else normal.index_select(0, inputs.sample_rows)

    def _run(
        self, hidden: Tensor, rotation: Rotation, inputs: TextInputs, cache: KVCache, *, trims: bool
    ) -> Tensor:
        """The layers and the norm after them; of sampled rows alone where `trims`."""
        kernels, images = self._kernels, inputs.images
        normal = kernels.rms_norm(hidden, self._layers[0].input_norm)
        last = len(self._layers) - 1
        for index, layer in enumerate(self._layers):
            attended = kernels.attention(
                index, layer.qkv(normal), layer.qk_norm, rotation, cache, inputs.attention
            )
            if index == last and trims:
                if len(inputs.sample_rows) == 0:
                    return hidden[:0]
                hidden = hidden.index_select(0, inputs.sample_rows)
                attended = attended.index_select(0, inputs.sample_rows)
            normal = kernels.add_rms_norm(hidden, layer.out(attended), layer.post_norm)
            update = layer.down(layer.gated(normal))
            if images is not None:
                images.add_deepstack(index, update)
            if index < last:
                normal = kernels.add_rms_norm(hidden, update, self._layers[index + 1].input_norm)
        return kernels.add_rms_norm(hidden, update, self._norm)


def _take_ends(
    model: PreTrainedModel,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Embedding and head; of a weight that they share only the packed copy is left."""
    embedding, head = model.model.language_model.embed_tokens, model.lm_head
    if not isinstance(head, nn.Linear) or not widens(head):
        return embedding, head
    packed = WideLinear(head)
    model.lm_head = nn.Identity()
    if embedding.weight is not head.weight:
        return embedding, packed
    model.model.language_model.embed_tokens = nn.Identity()
    return packed.rows, packed


def _take(
    layer: Qwen3VLTextDecoderLayer, geometry: TextGeometry, kernels: TextKernels
) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    qk_norm = torch.cat(
        [
            attention.q_norm.weight.expand(geometry.num_heads, -1),
            attention.k_norm.weight.expand(geometry.num_kv_heads, -1),
        ]
    )
    return DecoderLayer(
        input_norm=layer.input_layernorm.weight,
        qkv=make_linear(fuse([attention.q_proj, attention.k_proj, attention.v_proj])),
        qk_norm=qk_norm,
        out=make_linear(attention.o_proj),
        post_norm=layer.post_attention_layernorm.weight,
        gated=make_gated(fuse([mlp.gate_proj, mlp.up_proj]), kernels.silu_mul),
        down=make_linear(mlp.down_proj),
    )


def fuse(linears: Seq[AnyLinear]) -> AnyLinear:
    """One layer that computes several of the same input, outputs side by side.

    The originals become views of its weight, so that memory holds it once.
    """
    names = [name for name, _ in linears[0].named_parameters()]
    sizes = [linear.out_features for linear in linears]
    fused = _wider(linears[0], sum(sizes), bias="bias" in names)
    for name in names:
        joined = torch.cat([getattr(linear, name).detach() for linear in linears])
        setattr(fused, name, nn.Parameter(joined, requires_grad=False))
        for linear, part in zip(linears, torch.split(joined, sizes), strict=True):
            setattr(linear, name, nn.Parameter(part, requires_grad=False))
    return fused


def _wider(linear: AnyLinear, out_features: int, *, bias: bool) -> AnyLinear:
    """A layer of the same kind and inputs, with more outputs and without weights."""
    if isinstance(linear, QuantizedLinear):
        return linear.like(out_features, bias=bias)
    return nn.Linear(linear.in_features, out_features, bias=bias, device="meta")
