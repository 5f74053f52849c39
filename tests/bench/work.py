"""The work that is measured: the model's shape, its files, the pictures, the prompt. Fixed, so that
figures compare.

Knows nothing of who does the work.
"""

from __future__ import annotations

import io
import itertools
import json
import string
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.checkpoints import IMAGE_PAD, NUM_BYTES, SPECIAL_TOKENS, Shape, make_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

PROMPT: Final = "Describe this image."
STRIDE: Final = 37  # has no factor in common with what it is taken the rest by
# Every token that the model can choose is a text of this many letters, so that a streamed piece
# tells how many tokens it carries.
TOKEN_LETTERS: Final = 4
NUM_SILENT_TOKENS: Final = NUM_BYTES + len(SPECIAL_TOKENS)
EMBEDDING: Final = "model.language_model.embed_tokens.weight"

# About 120 M parameters: large enough that matrix products decide, small enough for two cores.
BENCH_SHAPE: Final = Shape(
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
    # vLLM's start-up tries the largest picture allowed; one much larger than this takes it minutes.
    max_pixels=512 * 512,
)


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that differ only in their picture, and in the length of their answers.

    num_tokens: of each answer, never fewer; spread: answers have up to so many more or fewer
    """

    num_tokens: int = 64
    width: int = 512
    height: int = 384
    spread: int = 0

    def lengths(self, count: int) -> list[int]:
        """Tokens of so many answers; neighbours differ, all of the spread come equally often."""
        each = 2 * self.spread + 1
        return [self.num_tokens - self.spread + index * STRIDE % each for index in range(count)]

    def pictures(self, count: int, *seed: int) -> list[bytes]:
        """PNG files of smooth noise; another seed gives others, so that no cache answers."""
        draw = np.random.default_rng(seed)
        return [self._picture(draw) for _ in range(count)]

    def _picture(self, draw: np.random.Generator) -> bytes:
        coarse = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((self.width, self.height), Image.Resampling.BICUBIC).save(file, "PNG")
        return file.getvalue()


DESCRIBE: Final = Work()
# Little to see and much to say: what is left is decoding, and handing out tokens.
CHAT: Final = Work(num_tokens=128, width=64, height=64)
# The same, but that streams which began together do not end together.
STAGGERED: Final = replace(CHAT, spread=48)


def write_bench_model(folder: Path) -> Path:
    """The checkpoint of all measurements, its answers made of `TOKEN_LETTERS`-letter tokens."""
    make_checkpoint(folder, BENCH_SHAPE)
    _give_every_token_a_text(folder / "tokenizer.json")
    _mute_other_tokens(folder / "model.safetensors")
    return folder


def num_tokens_of(text: str) -> int:
    """How many tokens a piece of an answer of the bench model is."""
    num_tokens, rest = divmod(len(text), TOKEN_LETTERS)
    assert rest == 0, f"{text!r} is no whole number of tokens"
    return num_tokens


def _give_every_token_a_text(file: Path) -> None:
    """Fill the byte tokenizer's vocabulary up to the model's; no text becomes the new tokens.

    A token without text, or half a character, would be held back by the servers: no piece of the
    stream would show when it was made.
    """
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    vocab = tokenizer["model"]["vocab"]
    vocab |= {text: NUM_BYTES + i for i, text in enumerate(SPECIAL_TOKENS)}
    assert vocab["<|image_pad|>"] == IMAGE_PAD
    words = map("".join, itertools.product(string.ascii_lowercase, repeat=TOKEN_LETTERS))
    vocab |= {next(words): token for token in range(NUM_SILENT_TOKENS, BENCH_SHAPE.vocab_size)}
    file.write_text(json.dumps(tokenizer), encoding="utf-8")


def _mute_other_tokens(file: Path) -> None:
    """Make bytes and special tokens hardly likely; what they mean as input stays.

    The embedding is the output layer too, and RMS norms take its scale out of the input.
    """
    weights = load_file(file)
    weights[EMBEDDING][:NUM_SILENT_TOKENS] *= 0.01
    save_file(weights, file, metadata={"format": "pt"})
