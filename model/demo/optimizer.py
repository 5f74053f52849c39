"""AdamW and a moving average over all parameters as one vector.

One vector, because processes then share one gradient buffer, and saving, averaging and swapping
weights are each a single copy.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

_BETAS: Final = (0.9, 0.98)


def parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All parameters once, in a stable order."""
    return [p for module in modules for p in module.parameters()]


class FlatParameters:
    """All parameters as views of one vector, their gradients as views of another.

    Holds AdamW's moments and the exponential moving average over the same layout.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        gradient: Tensor,
        *,
        weight_decay: float,
        ema_decay: float,
    ) -> None:
        self.weight_decay = weight_decay
        self.ema_decay = ema_decay
        params = parameters(modules)
        self.values = torch.cat([p.detach().reshape(-1) for p in params])
        self.gradient = gradient
        self.decays = torch.cat([torch.full((p.numel(),), float(p.ndim > 1)) for p in params])
        self.decays = self.decays.to(self.values.device)
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)
        self.average = self.values.clone()
        offset = 0
        for p in params:
            end = offset + p.numel()
            p.data = self.values[offset:end].view_as(p)
            p.grad = gradient[offset:end].view_as(p)
            offset = end

    def step(self, gradient: Tensor, number: int, rate: float) -> float:
        """One AdamW step from a mean gradient, clipped to norm 1; returns the norm before."""
        norm = float(gradient.norm())
        gradient = gradient * min(1.0, 1.0 / (norm + 1e-6))
        self.first.lerp_(gradient, 1 - _BETAS[0])
        self.second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = math.sqrt(1 - _BETAS[1] ** number) / (1 - _BETAS[0] ** number)
        self.values.addcmul_(self.values, self.decays, value=-rate * self.weight_decay)
        self.values.addcdiv_(self.first, self.second.sqrt().add_(1e-8), value=-rate * scale)
        decay = min(self.ema_decay, (1 + number) / (10 + number))
        self.average.lerp_(self.values, 1 - decay)
        return norm

    def swap_average(self) -> None:
        """Exchange the weights with their moving average, to evaluate or save; call again after."""
        kept = self.values.clone()
        self.values.copy_(self.average)
        self.average.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        names = ("values", "first", "second", "average")
        return {name: getattr(self, name) for name in names}

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
