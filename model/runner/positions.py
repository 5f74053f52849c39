"""Where each token stands for the rotary embedding: M-RoPE positions from spans and grids alone.

Knows neither torch nor token ids; equal to `Qwen3VLModel.get_rope_index` for still images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from model.request import ImageInput


@dataclass(frozen=True, slots=True, eq=False)
class PromptPositions:
    """Positions of one prompt, and the shift that continues them.

    prompt: [3, num_prompt_tokens] int64; rows are time, height, width
    delta: position minus index of every token after the prompt; negative where images are large
    """

    prompt: NDArray[np.int64]
    delta: int

    def span(self, start: int, end: int) -> NDArray[np.int64]:
        """Positions of tokens [start, end), generated ones included: [3, end - start]."""
        num_prompt = self.prompt.shape[1]
        if end <= num_prompt:
            return self.prompt[:, start:end]
        generated = np.arange(max(start, num_prompt), end, dtype=np.int64) + self.delta
        tail = np.broadcast_to(generated, (3, len(generated)))
        return tail if start >= num_prompt else np.hstack((self.prompt[:, start:], tail))


def batch_positions(spans: Seq[tuple[PromptPositions, int, int]]) -> NDArray[np.int64]:
    """Positions of several sequences' tokens [start, end), side by side: [3, num_tokens]."""
    positions = np.empty((3, sum(end - start for _, start, end in spans)), dtype=np.int64)
    row = 0
    # Most tokens are generated, one for each sequence: arrays of their own would cost them most.
    rows: list[int] = []
    generated: list[int] = []
    for known, start, end in spans:
        if end - start == 1 and start >= known.prompt.shape[1]:
            rows.append(row)
            generated.append(start + known.delta)
        else:
            positions[:, row : row + end - start] = known.span(start, end)
        row += end - start
    positions[:, rows] = generated
    return positions


def prompt_positions(num_tokens: int, images: Seq[ImageInput], merge_size: int) -> PromptPositions:
    """Lay text out along all three axes and each image over its merged grid.

    images: in the order of their offsets. Text after an image starts past its longer side.
    """
    positions = np.empty((3, num_tokens), dtype=np.int64)
    index = position = 0
    for image in images:
        num_text = image.offset - index
        positions[:, index : image.offset] = np.arange(position, position + num_text)
        position += num_text
        height, width = image.grid_height // merge_size, image.grid_width // merge_size
        assert height * width == image.num_tokens, "an image's grid disagrees with its placeholders"
        positions[0, image.offset : image.end] = position
        positions[1, image.offset : image.end] = position + np.repeat(np.arange(height), width)
        positions[2, image.offset : image.end] = position + np.tile(np.arange(width), height)
        position += max(height, width)
        index = image.end
    positions[:, index:] = np.arange(position, position + num_tokens - index)
    return PromptPositions(positions, position - index)
