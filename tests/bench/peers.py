"""What we are measured against: transformers' own `generate`, one request after the other."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
)

from tests.bench.work import PROMPT

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from tests.bench.work import Work

IMAGE_PAD = "<|image_pad|>"


class SequentialGenerate:
    """The model, its processor's image half and its tokenizer, on the CPU."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._images = AutoImageProcessor.from_pretrained(folder)

    def run(self, pictures: Seq[bytes], work: Work) -> float:
        """Answer each picture; tokens a second."""
        started = time.perf_counter()
        for picture in pictures:
            self._answer(picture, work.num_tokens)
        return len(pictures) * work.num_tokens / (time.perf_counter() - started)

    @torch.inference_mode()
    def _answer(self, picture: bytes, num_tokens: int) -> None:
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        pixels = self._images(images=[image], return_tensors="pt")
        grid = pixels["image_grid_thw"]
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        num_pads = int(grid.prod()) // self._images.merge_size**2
        text = text.replace(IMAGE_PAD, IMAGE_PAD * num_pads)
        ids = self._tokenizer(text, return_tensors="pt")["input_ids"]
        image_id = self._model.config.image_token_id
        output = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == image_id).int(),
            pixel_values=pixels["pixel_values"],
            image_grid_thw=grid,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
        )
        assert output.shape[1] == ids.shape[1] + num_tokens
