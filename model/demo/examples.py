"""Held-out examples: encoded pictures with prompts and the answers they should get.

What `python -m model.demo scenes` writes and `evaluate` asks. Example `index` of a seed is the same
whatever the count, and no seed reaches a picture that training saw.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from model.demo.language import DESCRIBE, Turn, ask, describe
from model.demo.scenes import Scene, draw, sample_scene, sample_size

FORMATS: Final = {"jpeg": "jpg", "png": "png", "webp": "webp"}
MIN_QUALITY: Final = 30
_STREAM: Final = 0x5CE7  # training draws from another: see batches.py


@dataclass(frozen=True, slots=True)
class PictureSettings:
    """How pictures are made. width, height: pixels, drawn from the seed where None."""

    image_format: str = "jpeg"
    quality: int = 75
    width: int | None = None
    height: int | None = None
    num_questions: int = 2

    def __post_init__(self) -> None:
        if self.image_format not in FORMATS:
            known = ", ".join(FORMATS)
            raise ValueError(f"format is {self.image_format!r}; it must be one of {known}")
        if not MIN_QUALITY <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; it must be from {MIN_QUALITY} to 100")
        if self.num_questions < 0:
            raise ValueError(f"questions is {self.num_questions}; it must be at least 0")


@dataclass(frozen=True, slots=True)
class Example:
    """An encoded picture; the first turn is the description, questions follow."""

    scene: Scene
    width: int
    height: int
    image_format: str
    encoded: bytes
    turns: tuple[Turn, ...]


def make_example(seed: int, index: int, settings: PictureSettings) -> Example:
    """Make example `index` of a seed."""
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must be at least 0")
    rng = np.random.default_rng([_STREAM, index, seed])
    scene = sample_scene(rng)
    questions = [ask(rng, scene) for _ in range(settings.num_questions)]
    width, height = sample_size(rng, width=settings.width, height=settings.height)
    picture = Image.fromarray(draw(scene, width, height))
    return Example(
        scene=scene,
        width=width,
        height=height,
        image_format=settings.image_format,
        encoded=encode(picture, settings.image_format, settings.quality),
        turns=(Turn("describe", DESCRIBE, describe(scene)), *questions),
    )


def encode(picture: Image.Image, image_format: str, quality: int) -> bytes:
    """Encode a picture; `quality` is for the lossy formats."""
    buffer = io.BytesIO()
    options = {} if image_format == "png" else {"quality": quality}
    picture.save(buffer, image_format.upper(), **options)
    return buffer.getvalue()


def write_examples(out: Path, examples: Iterator[Example]) -> int:
    """Write pictures and `captions.jsonl` ({image, prompt, answer} a line); returns how many."""
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    with (out / "captions.jsonl").open("w", encoding="utf-8") as captions:
        for count, example in enumerate(examples, start=1):
            name = f"scene-{count - 1:05d}.{FORMATS[example.image_format]}"
            (out / name).write_bytes(example.encoded)
            for turn in example.turns:
                line = {"image": name, "prompt": turn.prompt, "answer": turn.answer}
                captions.write(json.dumps(line) + "\n")
    return count
