"""Linear layers with their weights laid out for oneDNN, for the few rows of a decode step on a CPU.

Torch hands an unpacked float32 product to a library that is at its best for hundreds of rows. The
operators are those that torch.compile emits for frozen weights; where a build of torch lacks them,
layers stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# The layout is chosen for this many rows: measured best from 4 to 256, no worse beyond.
PACKED_ROWS = 64


class PackedLinear(nn.Module):
    """x @ weight.T + bias over a packed weight, which replaces the original."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        # Not a parameter: an opaque tensor can neither be saved nor moved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), PACKED_ROWS)

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in_features] → [..., out_features]."""
        flat = rows.reshape(-1, self.in_features)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            flat, self._weight, self.bias, "none", [], ""
        )
        return product.view(*rows.shape[:-1], self.out_features)


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed layers exist for this device and number format."""
    return (
        device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
