"""From pixels to embeddings: normalise, cut into patches, run the vision tower.

Patches equal those of `Qwen2VLImageProcessor` with do_resize=False. Knows nothing of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from model.runner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

    from model.checkpoint import Checkpoint
    from model.request import ImageInput
    from model.runner.fast_vision import Grid

# Patches that share a call of the tower, unless one picture alone has more. Beyond the first number
# a CPU's activations fall out of its cache.
MAX_PATCHES_CPU = 1024
MAX_PATCHES = 1 << 16


@dataclass(frozen=True, slots=True)
class ImageEmbeddings:
    """What the text model takes of one image.

    tokens: [num_tokens, hidden_size]; deepstack: one [num_tokens, hidden_size] for each of the
    first text layers
    """

    tokens: Tensor
    deepstack: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Memory held."""
        return sum(layer.nbytes for layer in (self.tokens, *self.deepstack))


class VisionTower(Protocol):
    """The vision model: patches of pictures side by side to embeddings."""

    def __call__(self, patches: Tensor, grids: Seq[Grid]) -> list[Tensor]:
        """Embeddings for the text model, then one such tensor for each DeepStack layer.

        patches: [sum of height * width, 3 * patch_size ** 2], in the merger's order
        returns tensors of [num_patches / merge_size ** 2, out_hidden_size]
        """
        ...


class ReferenceTower:
    """Transformers' own tower: slower, to compare with."""

    def __init__(self, tower: PreTrainedModel) -> None:
        self._tower = tower

    def __call__(self, patches: Tensor, grids: Seq[Grid]) -> list[Tensor]:
        """See VisionTower."""
        num_frames = self._tower.config.temporal_patch_size
        # A still is a clip whose frames are equal.
        frames = patches.view(len(patches), 3, 1, -1).expand(-1, -1, num_frames, -1)
        output = self._tower(
            frames.reshape(len(patches), -1),
            grid_thw=torch.tensor([(1, *grid) for grid in grids], device=patches.device),
        )
        return [output.pooler_output, *output.deepstack_features]


class VisionEncoder:
    """From pictures of any sizes to their embeddings."""

    def __init__(
        self,
        tower: VisionTower,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._tower = tower
        self._device = device
        self._dtype = dtype
        self._patch_size = checkpoint.patch_size
        self._merge_size = checkpoint.merge_size
        self._max_patches = MAX_PATCHES_CPU if device.type == "cpu" else MAX_PATCHES
        # Each channel's scale and shift for every pixel of a patch: [3 * patch_size ** 2].
        std = torch.tensor(checkpoint.image_std).repeat_interleave(self._patch_size**2)
        mean = torch.tensor(checkpoint.image_mean).repeat_interleave(self._patch_size**2)
        self._scale = (1 / (255 * std)).to(device)
        self._shift = (mean / std).to(device)

    def encode(self, images: Seq[ImageInput]) -> list[ImageEmbeddings]:
        """Embeddings of each image."""
        # Equal sizes next to each other: the tower attends over them in one call.
        order = sorted(range(len(images)), key=lambda i: _grid(images[i]))
        encoded: list[ImageEmbeddings] = []
        for group in _groups(order, images, self._max_patches):
            encoded += self._encode([images[i] for i in group])
        by_index = dict(zip(order, encoded, strict=True))
        return [by_index[i] for i in range(len(images))]

    def _encode(self, images: Seq[ImageInput]) -> list[ImageEmbeddings]:
        parts = [self.patches(image) for image in images]
        patches = parts[0] if len(parts) == 1 else torch.cat(parts)
        layers = self._tower(patches.to(self._dtype), [_grid(image) for image in images])
        if len(images) == 1:
            return [ImageEmbeddings(layers[0], tuple(layers[1:]))]
        sizes = [image.num_tokens for image in images]
        # Copies: a view would hold every image of the call until the last of them is done.
        per_layer = [[part.clone() for part in torch.split(layer, sizes)] for layer in layers]
        return [
            ImageEmbeddings(parts[0], tuple(parts[1:])) for parts in zip(*per_layer, strict=True)
        ]

    def patches(self, image: ImageInput) -> Tensor:
        """Normalised patches in the order the merger takes them.

        returns [grid_height * grid_width, 3 * patch_size ** 2] float32: the merge windows row by
        row, the patches of a window row by row
        """
        size, merge = self._patch_size, self._merge_size
        height, width = image.grid_height, image.grid_width
        assert image.pixels.shape == (height * size, width * size, 3), (
            "pixels disagree with the grid"
        )
        # Bytes cross to the device, a quarter of what floats would be.
        pixels = on_device(image.pixels, self._device)
        windows = pixels.view(height // merge, merge, size, width // merge, merge, size, 3)
        ordered = windows.permute(0, 3, 1, 4, 6, 2, 5).reshape(height * width, -1)
        return ordered.to(torch.float32).mul_(self._scale).sub_(self._shift)


def _grid(image: ImageInput) -> Grid:
    return image.grid_height, image.grid_width


def _groups(order: Seq[int], images: Seq[ImageInput], max_patches: int) -> list[list[int]]:
    """Indices of images that share a call, in the order given."""
    groups: list[list[int]] = []
    room = 0
    for i in order:
        num_patches = images[i].grid_height * images[i].grid_width
        if not groups or num_patches > room:
            groups.append([])
            room = max_patches
        groups[-1].append(i)
        room -= num_patches
    return groups
