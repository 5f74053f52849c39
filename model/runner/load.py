"""From settings and a checkpoint to the runner that suits them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from model.runner.device import resolve_dtype
from model.runner.loader import LoadProgress, empty_model, fill_model
from model.runner.placement import Placement, choose_placement, resolve_devices
from model.runner.quantize import check_quantization
from model.runner.runner import TorchRunner

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from model.checkpoint import Checkpoint
    from model.settings import EngineSettings, Settings

logger = logging.getLogger(__name__)


def load_runner(
    settings: Settings, checkpoint: Checkpoint, progress: LoadProgress | None = None
) -> TorchRunner:
    """Load a checkpoint onto the devices the settings name, and size its KV cache.

    Raises CheckpointError, UnusableSetting.
    """
    wanted = settings.model
    device = resolve_devices(wanted.device)[0]
    dtype = resolve_dtype(wanted.dtype, checkpoint.dtype, device)
    check_quantization(wanted.quantization, device, dtype)
    model = empty_model(checkpoint.path, dtype, wanted.quantization)
    placement = choose_placement(model, wanted.device, dtype, settings.engine.memory_ratio)
    fill_model(model, checkpoint.path, placement, dtype, progress)
    runner = _runner_class(model, placement, dtype, settings.engine)
    return runner(model, checkpoint, settings.engine, placement)


def _runner_class(
    model: PreTrainedModel, placement: Placement, dtype: torch.dtype, settings: EngineSettings
) -> type[TorchRunner]:
    """The runner that is fastest on these devices and works here."""
    device = placement.first
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or placement.spread or settings.reference or not half:
        return TorchRunner
    try:
        from model.runner.cuda_runner import CudaRunner, probe

        probe(model, settings.block_size, device, dtype)
    except Exception as e:  # no Triton, no C compiler for it, a device or heads it does not know …
        logger.warning("CUDA runs without kernels of its own, slower: %s", e)
        return TorchRunner
    return CudaRunner
