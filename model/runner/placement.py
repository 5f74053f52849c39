"""Which device each part of a model lies on: one device where it fits, else layers over several.

Knows sizes and devices, no weights: it works on models whose tensors are still on `meta`.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import compute_module_sizes

from model.runner.device import UnusableSetting, resolve_device

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LAYERS = "model.language_model.layers"
NORM = "model.language_model.norm"
HEAD = "lm_head"
# The rest of a device's memory is for the KV cache and activations.
WEIGHT_SHARE = 0.8
# Where nothing but the balance between the named devices decides.
UNLIMITED = 1 << 60
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model lies, as indices into devices, which may name one device twice.

    Vision tower, embedding and rotary frequencies: the first; final norm: the last.
    layers: of each decoder layer, ascending; head: the first where the embedding is shared, else
    the last
    """

    devices: tuple[torch.device, ...]
    layers: tuple[int, ...]
    head: int

    @classmethod
    def on(cls, device: torch.device, num_layers: int) -> Placement:
        """All on one device."""
        return cls((device,), (0,) * num_layers, 0)

    @property
    def first(self) -> torch.device:
        """Where a step begins and its logits are sampled from."""
        return self.devices[0]

    @property
    def spread(self) -> bool:
        """Whether there are several devices."""
        return len(self.devices) > 1

    def of(self, name: str) -> torch.device:
        """The device of a module or parameter, by its full name."""
        if name.startswith(f"{LAYERS}."):
            layer = int(name.removeprefix(f"{LAYERS}.").partition(".")[0])
            return self.devices[self.layers[layer]]
        if name.startswith(NORM):
            return self.devices[-1]
        return self.devices[self.head] if name.startswith(HEAD) else self.first

    def __str__(self) -> str:
        if not self.spread:
            return str(self.first)
        counts = Counter(self.layers)
        return ", ".join(
            f"{device} ({counts[index]} layers)" for index, device in enumerate(self.devices)
        )


def resolve_devices(name: str) -> tuple[torch.device, ...]:
    """The devices a setting names: several with commas; `auto` takes every CUDA device.

    Raises UnusableSetting: no such device, CUDA that is not there, devices of two kinds.
    """
    if name == "auto" and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    devices = tuple(resolve_device(part.strip()) for part in name.split(","))
    if len({device.type for device in devices}) > 1:
        raise UnusableSetting(f"model.device is {name!r}; its devices must be of one kind")
    return devices


def choose_placement(
    model: PreTrainedModel, name: str, dtype: torch.dtype, memory_ratio: float
) -> Placement:
    """Where the `model.device` setting puts a model of this size.

    A list is used whole; of the devices that `auto` finds, the first alone where the model fits.
    Raises UnusableSetting where the model fits nowhere.
    """
    devices = resolve_devices(name)
    num_layers = len(model.model.language_model.layers)
    if len(devices) == 1:
        return Placement.on(devices[0], num_layers)
    rooms = [_room(device, memory_ratio) for device in devices]
    num_bytes = _sizes(model, dtype)[""]
    if name == "auto" and num_bytes <= rooms[0]:
        logger.info(
            "%d CUDA devices; the model's %.0f MiB fit %s, the others stay unused",
            *(len(devices), num_bytes / MIB, devices[0]),
        )
        return Placement.on(devices[0], num_layers)
    return place_layers(model, devices, rooms, dtype)


def place_layers(
    model: PreTrainedModel, devices: Seq[torch.device], rooms: Seq[int], dtype: torch.dtype
) -> Placement:
    """Balance a model over devices in their order, whole decoder layers on each.

    model: may lie on meta; rooms: bytes of weights each device may hold
    Raises UnusableSetting where they cannot hold it.
    """
    sizes = _sizes(model, dtype)
    layers = model.model.language_model.layers
    total, last_bytes = sizes[""], sizes[NORM] + sizes[HEAD]
    first_bytes = total - sizes[LAYERS] - last_bytes
    layer_bytes = max(sizes[f"{LAYERS}.{index}"] for index in range(len(layers)))
    even = total // len(devices) + layer_bytes // 2
    free = [min(room, even) for room in rooms[:-1]] + [rooms[-1]]
    free[0] -= first_bytes
    free[-1] -= last_bytes
    # accelerate keeps room on its first device for a layer that is brought in from elsewhere:
    # none is here.
    free[0] += layer_bytes
    found = infer_auto_device_map(
        layers,
        max_memory={index: max(0, room) for index, room in enumerate(free)},
        no_split_module_classes=[type(layers[0]).__name__],
        dtype=dtype,
        clean_result=False,
    )
    indices = [found[str(index)] for index in range(len(layers))]
    if first_bytes > rooms[0] or not all(isinstance(index, int) for index in indices):
        raise UnusableSetting(
            f"the model's {total / MIB:.0f} MiB of weights do not fit "
            f"{len(devices)} devices with room for {', '.join(f'{r / MIB:.0f}' for r in rooms)} MiB"
        )
    tied = model.config.tie_word_embeddings
    return Placement(tuple(devices), tuple(indices), head=0 if tied else len(devices) - 1)


def _sizes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of every module and parameter by its full name; "" is the whole."""
    sizes: dict[str, int] = compute_module_sizes(model, dtype=dtype)
    if model.config.tie_word_embeddings:
        # Counted under both names as long as the weights are on meta.
        sizes[""] -= sizes[HEAD]
        sizes[HEAD] = 0
    return sizes


def _room(device: torch.device, memory_ratio: float) -> int:
    """Bytes of weights a device may hold."""
    if device.type != "cuda":
        return UNLIMITED
    free, total = torch.cuda.mem_get_info(device)
    return int(max(0, free - (1 - memory_ratio) * total) * WEIGHT_SHARE)
