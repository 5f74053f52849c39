"""From pixels to embeddings: normalise, cut into patches, run the vision tower.

Equal to `Qwen2VLImageProcessor` with do_resize=False. Knows nothing of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

    from model.checkpoint import Checkpoint
    from model.request import ImageInput


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


class LinearPatchEmbed(nn.Module):
    """The patch embedding as one matrix product, over the convolution's own parameters.

    Stride and kernel are equal, so it is the same sum; as Conv3d it took a tenth of the tower's
    time on a CPU.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches: Tensor) -> Tensor:
        """[num_patches, patch_dim] → [num_patches, hidden_size]."""
        weight = self.proj.weight
        return linear(patches.to(weight.dtype), weight.flatten(1), self.proj.bias)


class VisionEncoder:
    """The vision tower, over images of any sizes side by side."""

    def __init__(
        self,
        tower: PreTrainedModel,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._tower = tower
        self._device = device
        self._dtype = dtype
        self._patch_size = checkpoint.patch_size
        self._merge_size = checkpoint.merge_size
        self._temporal_patch_size = checkpoint.temporal_patch_size
        self._mean = torch.tensor(checkpoint.image_mean, device=device)
        self._std = torch.tensor(checkpoint.image_std, device=device)

    def encode(self, images: Seq[ImageInput]) -> list[ImageEmbeddings]:
        """Embeddings of each image, all of them in one pass of the tower."""
        if not images:
            return []
        grids = [(1, image.grid_height, image.grid_width) for image in images]
        patches = torch.cat([self.patches(image) for image in images])
        output = self._tower(
            patches.to(self._dtype), grid_thw=torch.tensor(grids, device=self._device)
        )
        sizes = [image.num_tokens for image in images]
        layers = [output.pooler_output, *output.deepstack_features]
        # Copies: a view would hold every image of the call until the last of them is done.
        per_layer = [[part.clone() for part in layer.split(sizes)] for layer in layers]
        return [
            ImageEmbeddings(parts[0], tuple(parts[1:])) for parts in zip(*per_layer, strict=True)
        ]

    def patches(self, image: ImageInput) -> Tensor:
        """Normalised patches in the order the merger takes them.

        returns [grid_height * grid_width, 3 * temporal_patch_size * patch_size ** 2] float32:
        the merge windows row by row, the patches of a window row by row
        """
        size, merge = self._patch_size, self._merge_size
        height, width = image.grid_height, image.grid_width
        assert image.pixels.shape == (height * size, width * size, 3), (
            "pixels disagree with the grid"
        )
        # Bytes cross to the device, a quarter of what floats would be.
        pixels = torch.from_numpy(image.pixels).to(self._device)
        normal = (pixels.to(torch.float32) / 255 - self._mean) / self._std
        windows = normal.view(height // merge, merge, size, width // merge, merge, size, 3)
        ordered = windows.permute(0, 3, 1, 4, 6, 2, 5)
        # A still is a clip whose frames are equal.
        frames = ordered.unsqueeze(5).expand(
            *ordered.shape[:5], self._temporal_patch_size, size, size
        )
        return frames.reshape(height * width, -1)
