"""The work that is measured: the model's shape, the pictures, the prompt. Fixed, so that figures
compare.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests.checkpoints import Shape

NUM_NEW_TOKENS = 64
WIDTH, HEIGHT = 512, 384

# About 120 M parameters: large enough that matrix products decide, small enough for two cores.
BENCH_SHAPE = Shape(
    vocab_size=4096,
    hidden_size=768,
    intermediate_size=2048,
    num_layers=12,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    mrope_section=(12, 10, 10),
    tied=True,
    vision_depth=12,
    vision_hidden_size=384,
    vision_intermediate_size=1536,
    vision_heads=6,
    deepstack_layers=(3, 6, 9),
    num_position_embeddings=2304,
    min_pixels=64 * 64,
    max_pixels=512 * 512,
)


def prompt_text() -> str:
    """The question of every request."""
    return "Describe this image."


def make_pictures(count: int, seed: int) -> list[bytes]:
    """PNG files of smooth noise; another seed gives others, so that no cache answers."""
    draw = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(file, "PNG")
        pictures.append(file.getvalue())
    return pictures
