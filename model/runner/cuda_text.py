"""The text model's layer loop on CUDA: a step of one token takes kernels of its own.

One sequence alone is what a user waits for most often. Its steps read every weight once and compute
next to nothing; norms, activations and sums then cost as much time to start as to run.
Needs triton; only what runs on CUDA imports this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from model.runner.fast_text import FastTextModel
from model.runner.packed import GatedLinear, PlainLinear
from model.runner.triton_products import add_product, norm_gated_product, norm_product

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

    from model.runner.cuda_kernels import CudaKernels
    from model.runner.cuda_layers import LayerGraphs
    from model.runner.fast_text import DecoderLayer
    from model.runner.kernels import Rotation, TextGeometry
    from model.runner.kv_cache import KVCache
    from model.runner.qwen3_vl import TextInputs


class CudaTextModel(FastTextModel):
    """FastTextModel over CudaKernels."""

    def __init__(
        self, model: PreTrainedModel, geometry: TextGeometry, kernels: CudaKernels
    ) -> None:
        super().__init__(model, geometry, kernels)
        weights = [found for layer in self._layers if (found := _weights(layer)) is not None]
        # None where a layer is quantized or has a bias: then every step is one of many rows.
        self._weights = weights if len(weights) == len(self._layers) else None
        self._cuda_kernels = kernels
        # Where layers are recorded; set when there is a cache to record with.
        self.graphs: LayerGraphs | None = None

    def _run(
        self, hidden: Tensor, rotation: Rotation, inputs: TextInputs, cache: KVCache, *, trims: bool
    ) -> Tensor:
        """See FastTextModel."""
        single = len(hidden) == len(inputs.sample_rows) == 1 and inputs.images is None
        if self._weights is not None and single:
            return self._run_single(hidden, rotation, inputs, cache, self._weights)
        graphs = self.graphs
        if graphs is not None and trims and graphs.fits(inputs, len(hidden)):
            return graphs.run(hidden, rotation, inputs)
        return super()._run(hidden, rotation, inputs, cache, trims=trims)

    def layers(
        self, hidden: Tensor, rotation: Rotation, inputs: TextInputs, cache: KVCache
    ) -> Tensor:
        """The layers as they are written, and the norm of sampled rows after them."""
        return super()._run(hidden, rotation, inputs, cache, trims=True)

    def _run_single(
        self,
        hidden: Tensor,
        rotation: Rotation,
        inputs: TextInputs,
        cache: KVCache,
        all_weights: Seq[_Weights],
    ) -> Tensor:
        kernels, eps = self._cuda_kernels, self._geometry.eps
        for index, (layer, weights) in enumerate(zip(self._layers, all_weights, strict=True)):
            qkv = norm_product(hidden, layer.input_norm, weights.qkv, eps)
            attended = kernels.row_attention(
                index, qkv, layer.qk_norm, rotation, cache, inputs.attention
            )
            add_product(hidden, attended, weights.out)
            gated = norm_gated_product(hidden, layer.post_norm, weights.gate_up, eps)
            add_product(hidden, gated, weights.down)
        return kernels.rms_norm(hidden, self._norm)


@dataclass(frozen=True, slots=True)
class _Weights:
    """One layer's, each [out_features, in_features]."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


def _weights(layer: DecoderLayer) -> _Weights | None:
    gated = layer.gated.linear if isinstance(layer.gated, GatedLinear) else None
    weights = [_weight(part) for part in (layer.qkv, layer.out, gated, layer.down)]
    plain = [weight for weight in weights if weight is not None]
    return _Weights(*plain) if len(plain) == len(weights) else None


def _weight(part: object) -> Tensor | None:
    """None of a layer that is quantized, or has a bias."""
    layer: nn.Module | None = part.layer if isinstance(part, PlainLinear) else None
    if isinstance(layer, nn.Linear) and [name for name, _ in layer.named_parameters()] == [
        "weight"
    ]:
        return layer.weight
    return None
