"""From a picture to patches, exactly as the checkpoint's image processor does it.

numpy and PIL alone, so that data workers start in a moment; a test holds it to transformers' own
image processor.
"""

import math
from typing import Final

import numpy as np
from PIL import Image

from model.demo.scenes import Pixels

PATCH: Final = 16
MERGE: Final = 2
FACTOR: Final = PATCH * MERGE
# 36 to 42 visual tokens: enough for a small shape in a 2.2:1 picture to span 25 pixels.
MIN_PIXELS: Final = 36 * FACTOR**2
MAX_PIXELS: Final = 42 * FACTOR**2


def model_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) that the processor resizes a picture to: multiples of 32, area bounded."""
    rows, columns = round(height / FACTOR), round(width / FACTOR)
    area = rows * columns * FACTOR**2
    if area > MAX_PIXELS:
        shrink = math.sqrt(height * width / MAX_PIXELS)
        rows = max(1, math.floor(height / shrink / FACTOR))
        columns = max(1, math.floor(width / shrink / FACTOR))
    elif area < MIN_PIXELS:
        grow = math.sqrt(MIN_PIXELS / (height * width))
        rows = math.ceil(height * grow / FACTOR)
        columns = math.ceil(width * grow / FACTOR)
    return columns * FACTOR, rows * FACTOR


def resize(picture: Image.Image) -> Pixels:
    """Resize to the model's size: [height, width, 3] uint8."""
    size = model_size(*picture.size)
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def to_patches(pixels: Pixels) -> Pixels:
    """Cut into patches in the merger's order: [num_patches, 3 * 16 * 16] uint8, one frame."""
    height, width, channels = pixels.shape
    blocks = pixels.reshape(
        height // FACTOR, MERGE, PATCH, width // FACTOR, MERGE, PATCH, channels
    ).transpose(0, 3, 1, 4, 6, 2, 5)
    return np.ascontiguousarray(blocks).reshape(-1, channels * PATCH * PATCH)
