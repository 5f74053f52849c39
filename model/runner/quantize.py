"""Decoder-layer weights in 8 or 4 bits, by bitsandbytes; activations keep their number format.

8 bits: int8 with one scale a row. The scheme of LLM.int8 (Dettmers et al., NeurIPS 2022) also
rounds activations and looks for outliers across the whole batch, so that a sequence's tokens would
depend on its neighbours: here only weights are rounded.
4 bits: NF4 with one float32 scale for 64 weights (Dettmers et al., QLoRA, NeurIPS 2023). On CUDA
bitsandbytes chooses its kernel by the number of rows: equal up to rounding, not bit by bit.
Embedding, head, norms and vision tower stay whole.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from model.runner.device import UnusableSetting
from model.settings import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

BITS = {Quantization.BITSANDBYTES_8BIT: 8, Quantization.BITSANDBYTES_4BIT: 4}
BLOCK_SIZE = 64
LARGEST_INT8 = 127
# So many weights are quantized at once: bitsandbytes' temporaries take up to 20 bytes for each.
CHUNK = 1 << 20
MIB = 1 << 20


class QuantizedLinear(nn.Module):
    """x @ weight.T + bias over a quantized weight; every tensor's first dimension is the output.

    8 bits: weight [out_features, in_features] int8; scale [out_features] in the model's dtype
    4 bits: weight [out_features, in_features / 2] uint8, two a byte;
    scale [out_features, in_features / 64] float32
    """

    def __init__(
        self, in_features: int, out_features: int, bits: int, dtype: torch.dtype, *, bias: bool
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.bits, self.dtype = bits, dtype
        if bits == 8:
            weight, scale = _meta(torch.int8, out_features, in_features), _meta(dtype, out_features)
        else:
            weight = _meta(torch.uint8, out_features, in_features // 2)
            scale = _meta(torch.float32, out_features, in_features // BLOCK_SIZE)
        self.weight, self.scale = _parameter(weight), _parameter(scale)
        self.bias = _parameter(_meta(dtype, out_features)) if bias else None

    def like(self, out_features: int, *, bias: bool) -> QuantizedLinear:
        """An empty layer of the same inputs and bits."""
        return QuantizedLinear(self.in_features, out_features, self.bits, self.dtype, bias=bias)

    def fill(self, weight: Tensor) -> None:
        """Take a weight in full precision: [out_features, in_features], on the final device."""
        quantize = _to_int8 if self.bits == 8 else _to_nf4
        num_rows = max(1, CHUNK // self.in_features)
        parts = [quantize(part) for part in torch.split(weight, num_rows)]
        self.weight = _parameter(torch.cat([part for part, _ in parts]))
        self.scale = _parameter(torch.cat([scale for _, scale in parts]).to(self.scale.dtype))

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features]."""
        if self.bits == 8:
            return linear(rows, self.weight * self.scale[:, None], self.bias)
        product: Tensor = torch.ops.bitsandbytes.gemm_4bit.default(
            rows,
            self.weight.view(-1, 1),
            [self.out_features, self.in_features],
            self.scale.view(-1),
            BLOCK_SIZE,
            "nf4",
            bias=self.bias,
        )
        return product


def check_quantization(
    quantization: Quantization, device: torch.device, dtype: torch.dtype
) -> None:
    """Raise UnusableSetting where bitsandbytes is missing or its operators fail on the device."""
    if quantization is Quantization.NONE:
        return
    _register_operators(quantization)
    probe = QuantizedLinear(BLOCK_SIZE, BLOCK_SIZE, BITS[quantization], dtype, bias=False)
    try:
        probe.fill(torch.ones((BLOCK_SIZE, BLOCK_SIZE), dtype=dtype, device=device))
        sums = probe(torch.ones((1, BLOCK_SIZE), dtype=dtype, device=device))
        worst = float((sums - BLOCK_SIZE).abs().max())
    except Exception as e:  # whatever its native library or torch raises
        reason = str(e).strip().partition("\n")[0] or type(e).__name__
        raise UnusableSetting(
            f"model.quantization is {quantization.value}, which does not run on {device} in "
            f"{dtype}: {reason}"
        ) from e
    if not worst < 1:
        raise UnusableSetting(
            f"model.quantization is {quantization.value}, which computes wrongly on {device} in "
            f"{dtype}: off by {worst} of {BLOCK_SIZE}"
        )


def empty_quantized_layers(
    model: PreTrainedModel, quantization: Quantization, dtype: torch.dtype
) -> None:
    """Replace the decoder layers' linears of a model without weights by quantized ones."""
    if quantization is Quantization.NONE:
        return
    _register_operators(quantization)
    bits = BITS[quantization]
    layers = model.model.language_model.layers
    for name, module in list(layers.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        if bits == 4 and module.in_features % BLOCK_SIZE:
            # A block of scales would span two rows: bitsandbytes 0.50 reads wrong scales on CPU.
            raise UnusableSetting(
                f"model.quantization is {quantization.value}, but decoder layer {name} has "
                f"{module.in_features} inputs, which is no multiple of {BLOCK_SIZE}"
            )
        parent, _, leaf = name.rpartition(".")
        replaced = QuantizedLinear(
            module.in_features, module.out_features, bits, dtype, bias=module.bias is not None
        )
        setattr(layers.get_submodule(parent), leaf, replaced)


def saved_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The parameters a checkpoint of this model holds, each with its shape there."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            shapes[f"{name}.weight"] = (module.out_features, module.in_features)
            del shapes[f"{name}.scale"]
    return shapes


def log_memory(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Tell what quantization saved of a loaded model that would else be held in dtype."""
    linears = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if not linears:
        return
    whole_bytes = sum(x.in_features * x.out_features for x in linears) * dtype.itemsize
    held = sum(x.weight.nbytes + x.scale.nbytes for x in linears)
    after = sum(parameter.nbytes for parameter in model.parameters())
    before = after - held + whole_bytes
    logger.info(
        "quantized  %d linears to %d bits: %.1f → %.1f MiB (%.0f%%); "
        "all weights: %.1f → %.1f MiB (%.0f%%)",
        *(len(linears), linears[0].bits),
        *(whole_bytes / MIB, held / MIB, 100 * held / whole_bytes),
        *(before / MIB, after / MIB, 100 * after / before),
    )


def _register_operators(quantization: Quantization) -> None:
    """Let bitsandbytes add its operators to torch; slow to import, hence only where it is used."""
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as e:
        raise UnusableSetting(
            f"model.quantization is {quantization.value}, but bitsandbytes cannot be imported "
            f"({e}); pip install bitsandbytes"
        ) from e


def _to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8, and the factor that takes each back."""
    # The operator takes float16 alone on CUDA, whose range a row's largest weight may exceed.
    largest = weight.abs().amax(dim=1, keepdim=True).to(torch.float32).clamp_min(1e-30)
    unit = (weight.to(torch.float32) / largest).to(torch.float16)
    quantized, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(unit)
    return quantized, absmax * largest[:, 0] / LARGEST_INT8


def _to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as packed NF4, and the factor of each block."""
    packed, absmax = torch.ops.bitsandbytes.quantize_4bit.default(
        weight.contiguous(), BLOCK_SIZE, "nf4", torch.uint8
    )
    return packed.view(len(weight), -1), absmax.view(len(weight), -1)


def _meta(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _parameter(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
