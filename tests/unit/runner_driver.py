"""Drives a TorchRunner by hand: chunks, blocks, preemption, all as the test says.

Every block is NaN until its owner writes it, and NaN again once it is freed: a read of a slot that
is not the sequence's own would show in its tokens.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from model.engine.batch import ScheduledBatch, ScheduledImage, ScheduledSequence
from model.engine.sequence import Sequence
from model.request import GenerateRequest, ImageInput, SamplingParams
from tests.checkpoints import IMAGE_PAD, NUM_BYTES, VISION_END, VISION_START

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    import torch

    from model.runner.runner import TorchRunner
    from model.runner.vision import VisionEncoder

# So many text tokens, or the (height, width) in merged tokens of an image.
Part = int | tuple[int, int]
PATCH, MERGE = 16, 2


def make_request(
    name: str,
    parts: Seq[Part],
    *,
    seed: int = 0,
    sampling: SamplingParams | None = None,
) -> GenerateRequest:
    """A prompt from parts: an int is so many random text tokens, a pair an image's (height, width)
    in merged tokens, between its vision_start and vision_end.
    """
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    images: list[ImageInput] = []
    for part in parts:
        if isinstance(part, int):
            ids += rng.integers(0, NUM_BYTES, part).tolist()
            continue
        ids.append(VISION_START)
        images.append(make_image(rng, part, offset=len(ids)))
        ids += [IMAGE_PAD] * images[-1].num_tokens + [VISION_END]
    return GenerateRequest(name, tuple(ids), sampling or SamplingParams(), seed, tuple(images))


def make_image(rng: np.random.Generator, merged: tuple[int, int], offset: int) -> ImageInput:
    """A random picture of (height, width) merged tokens."""
    height, width = merged[0] * MERGE, merged[1] * MERGE
    pixels = rng.integers(0, 256, (height * PATCH, width * PATCH, 3), dtype=np.uint8)
    return ImageInput(
        pixels=pixels,
        grid_height=height,
        grid_width=width,
        offset=offset,
        num_tokens=merged[0] * merged[1],
        digest=pixels.tobytes()[:16],
        source_width=width * PATCH,
        source_height=height * PATCH,
    )


def processor_patches(encoder: VisionEncoder, image: ImageInput) -> torch.Tensor:
    """An image's patches as transformers' tower takes them: a clip of two equal frames."""
    patches = encoder.patches(image)
    return patches.view(len(patches), 3, 1, -1).expand(-1, -1, 2, -1).reshape(len(patches), -1)


@dataclass
class Driver:
    """Runs sequences side by side in chunks; block ids are dealt in random order."""

    runner: TorchRunner
    chunk_size: int = 1 << 20
    num_steps: int = 0
    free: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.runner.cache.storage.fill_(float("nan"))
        self.free = list(range(self.runner.num_blocks))
        random.Random(0).shuffle(self.free)

    def generate(self, requests: Seq[GenerateRequest], num_tokens: int) -> list[list[int]]:
        """The first num_tokens completion ids of each request, all run together."""
        sequences = [Sequence(request) for request in requests]
        while any(s.num_completion_tokens < num_tokens for s in sequences):
            self.step([s for s in sequences if s.num_completion_tokens < num_tokens])
        for sequence in sequences:
            self.preempt(sequence)
        return [s.token_ids[s.num_prompt_tokens :] for s in sequences]

    def step(self, sequences: Seq[Sequence]) -> None:
        """One step over these, each with its next chunk or its decode token."""
        shares = tuple(self._share(sequence) for sequence in sequences)
        images = tuple(image for share in shares for image in self._images(share))
        sampled = iter(self.runner.execute(ScheduledBatch(shares, images)).tokens())
        for share in shares:
            share.sequence.num_computed_tokens = share.end
            if share.samples:
                share.sequence.token_ids.append(next(sampled).token_id)
        assert next(sampled, None) is None
        self.num_steps += 1

    def preempt(self, sequence: Sequence) -> None:
        """Take everything from a sequence but its tokens."""
        self.runner.release([sequence])
        size = self.runner.block_size
        for block in sequence.block_table:
            self.runner.cache.storage[:, :, block * size : (block + 1) * size] = float("nan")
        self.free += sequence.block_table
        sequence.block_table = []
        sequence.num_computed_tokens = sequence.num_encoded_images = 0

    def _share(self, sequence: Sequence) -> ScheduledSequence:
        start = sequence.num_computed_tokens
        num_tokens = min(self.chunk_size, sequence.num_uncomputed_tokens)
        while len(sequence.block_table) * self.runner.block_size < start + num_tokens:
            sequence.block_table.append(self.free.pop())
        samples = start + num_tokens == len(sequence.token_ids)
        return ScheduledSequence(sequence, start, num_tokens, samples)

    def _images(self, share: ScheduledSequence) -> list[ScheduledImage]:
        scheduled = []
        images = share.sequence.request.images
        while (i := share.sequence.num_encoded_images) < len(images) and images[
            i
        ].offset < share.end:
            scheduled.append(ScheduledImage(share.sequence, i))
            share.sequence.num_encoded_images += 1
        return scheduled
