"""Small arrays from the host to the device without waiting for what the device still does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def on_device(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """The array there; on the CPU it shares the array's memory.

    A copy from ordinary memory to CUDA waits for every kernel before it, and with it the host.
    """
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
