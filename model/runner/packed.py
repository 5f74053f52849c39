"""Linear layers with their weights laid out for a CPU.

Torch hands an unpacked float32 product to a library that is at its best for hundreds of rows; a
decode step has few. What follows a product elementwise is computed while its result is in cache.
Our own kernels where the processor has the vectors for them, else oneDNN's by the operators that
torch.compile emits for frozen weights; where a build of torch lacks those, layers stay as they are.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from model.runner.native import compiled
from model.runner.native.wide import WideActivation, WideLinear, can_widen

if TYPE_CHECKING:
    from collections.abc import Callable

# The layout is chosen for this many rows: measured best from 4 to 256, no worse beyond.
PACKED_ROWS = 64


class Activation(Enum):
    """What is applied to a product, by oneDNN's name and variant."""

    NONE = ("none", "")
    GELU = ("gelu", "none")
    GELU_TANH = ("gelu", "tanh")


class Linear(Protocol):
    """A linear layer with what follows it."""

    def __call__(self, rows: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """activation(rows @ weight.T + bias), then + plus; plus only without an activation.

        rows: [num_rows, in_features]; plus: [num_rows, out_features]
        """
        ...


class PackedLinear(nn.Module):
    """A Linear over a packed weight, which replaces the original."""

    def __init__(self, layer: nn.Linear, activation: Activation = Activation.NONE) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias
        self._activation = activation
        # Not a parameter: an opaque tensor can neither be saved nor moved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACKED_ROWS)

    def forward(self, rows: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """See Linear."""
        product: Tensor
        if plus is not None:
            assert self._activation is Activation.NONE, "an activation and a sum do not mix"
            product = torch.ops.mkldnn._linear_pointwise.binary(
                rows, plus, self._weight, self.bias, "add"
            )
        else:
            name, variant = self._activation.value
            product = torch.ops.mkldnn._linear_pointwise(
                rows, self._weight, self.bias, name, [], variant
            )
        return product


class PlainLinear(nn.Module):
    """A Linear of torch's own operations, over the layer's parameters."""

    def __init__(self, layer: nn.Module, activation: Activation = Activation.NONE) -> None:
        super().__init__()
        self.layer = layer
        self._activation = activation

    def forward(self, rows: Tensor, *, plus: Tensor | None = None) -> Tensor:
        """See Linear."""
        layer = self.layer
        if self._activation is Activation.GELU_TANH and rows.is_cuda and type(layer) is nn.Linear:
            # The product's own epilogue, where the device's library has it.
            return torch._addmm_activation(layer.bias, rows, layer.weight.t(), use_gelu=True)
        product: Tensor = layer(rows)
        match self._activation:
            case Activation.GELU:
                product = gelu(product)
            case Activation.GELU_TANH:
                product = gelu(product, approximate="tanh")
            case Activation.NONE if plus is not None:
                product = product.add_(plus)
            case Activation.NONE:
                pass
        return product


class GatedLinear:
    """A product of gates and values, and what joins them."""

    def __init__(self, linear: Linear, silu_mul: Callable[[Tensor], Tensor]) -> None:
        self.linear = linear
        self._silu_mul = silu_mul

    def __call__(self, rows: Tensor) -> Tensor:
        """rows: [num_rows, in_features]; returns [num_rows, out_features / 2]."""
        return self._silu_mul(self.linear(rows))


def make_linear(layer: nn.Module, activation: Activation = Activation.NONE) -> Linear:
    """Packed where that exists for the weight's device and number format."""
    # Quantized layers are another class, and have a form of their own.
    if not isinstance(layer, nn.Linear):
        return PlainLinear(layer, activation)
    if widens(layer):
        match activation:
            case Activation.NONE:
                return WideLinear(layer)
            case Activation.GELU_TANH:
                return WideLinear(layer, WideActivation.GELU_TANH)
            case Activation.GELU:
                # The exact form needs an error function: torch's, in a pass of its own.
                return PlainLinear(WideLinear(layer), activation)
    if can_pack(layer.weight.device, layer.weight.dtype):
        return PackedLinear(layer, activation)
    return PlainLinear(layer, activation)


def make_gated(
    layer: nn.Module, silu_mul: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """silu of the first half of the outputs times the second half, by `silu_mul` where the product
    cannot do it.
    """
    if isinstance(layer, nn.Linear) and widens(layer):
        return WideLinear(layer, WideActivation.SWIGLU)
    return GatedLinear(make_linear(layer), silu_mul)


def widens(layer: nn.Linear) -> bool:
    """Whether our own kernels take it: the fastest where they are usable."""
    return (
        layer.weight.device.type == "cpu"
        and compiled.usable(layer.weight.dtype)
        and can_widen(layer)
    )


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed layers exist for this device and number format."""
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
