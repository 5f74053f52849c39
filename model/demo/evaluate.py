"""Measure a checkpoint on held-out scenes, through transformers' own `generate`.

Counts exact matches: an answer is right when every character is.
"""

import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from model.demo.examples import FORMATS, Example, PictureSettings, make_example

_MAX_NEW_TOKENS: Final = 64
_NUMBER_NAMES: Final = ("no", "one", "two", "three")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One picture, one prompt, the right answer, and the table rows it counts towards."""

    picture: Image.Image
    text: str
    answer: str
    rows: tuple[str, ...]


@dataclass(slots=True)
class Report:
    """Exact matches by row of the table, and the answers that were wrong."""

    hits: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    totals: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    wrong: list[tuple[str, str, str]] = field(default_factory=list)

    def count(self, prompt: Prompt, said: str) -> None:
        for row in prompt.rows:
            self.totals[row] += 1
            self.hits[row] += said == prompt.answer
        if said != prompt.answer:
            self.wrong.append((prompt.text, prompt.answer, said))

    def accuracy(self, row: str) -> float:
        """Exact matches over prompts, 0-1; 1 where the row has no prompts."""
        return self.hits[row] / self.totals[row] if self.totals[row] else 1.0

    def table(self) -> str:
        """The table in Markdown."""
        lines = ["| held-out scenes | exact | of | % |", "|---|---:|---:|---:|"]
        lines += [
            f"| {row} | {self.hits[row]} | {self.totals[row]} | {100 * self.accuracy(row):.1f} |"
            for row in sorted(self.totals)
        ]
        return "\n".join(lines)


class Answerer:
    """A checkpoint behind transformers' Auto classes; answers prompts in batches."""

    def __init__(self, model_dir: Path, *, device: str = "cpu", dtype: str = "auto") -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
        self._image_processor: Any = AutoImageProcessor.from_pretrained(model_dir)
        model: Any = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=dtype)
        self._model = model.to(device).eval()
        self._device = device

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
        """Model inputs, padded on the left.

        Put together here rather than by AutoProcessor, which demands torchvision for the sake of
        videos.
        """
        images = self._image_processor([p.picture for p in prompts], return_tensors="pt")
        texts = []
        for prompt, grid in zip(prompts, images["image_grid_thw"], strict=True):
            content = [{"type": "image"}, {"type": "text", "text": prompt.text}]
            text: str = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
            num_tokens = int(grid.prod()) // self._image_processor.merge_size**2
            texts.append(text.replace("<|image_pad|>", "<|image_pad|>" * num_tokens))
        tokens = self._tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        is_image = tokens["input_ids"] == self._model.config.image_token_id
        inputs = {**tokens, **images, "mm_token_type_ids": is_image.to(torch.int32)}
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    @torch.inference_mode()
    def answer(self, prompts: Sequence[Prompt]) -> list[str]:
        """Greedy answers."""
        inputs = self.inputs(prompts)
        output = self._model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        new_tokens = output[:, inputs["input_ids"].shape[1] :]
        answers: list[str] = self._tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        return answers


def prompts_of(example: Example) -> Iterator[Prompt]:
    """The prompts of an example with their table rows."""
    picture = Image.open(io.BytesIO(example.encoded)).convert("RGB")
    number = _NUMBER_NAMES[len(example.scene.objects)]
    side = "under" if min(example.width, example.height) < 192 else "from"
    for turn in example.turns:
        rows: tuple[str, ...]
        if turn.kind == "describe":
            rows = (
                "descriptions",
                f"descriptions: {number} object{'s' * (number != 'one')}",
                f"descriptions: {example.image_format}",
                f"descriptions: shorter side {side} 192 pixels",
            )
        else:
            rows = ("questions", f"questions: {turn.kind}", f"questions: {example.image_format}")
        yield Prompt(picture, turn.prompt, turn.answer, rows)


def evaluation_examples(
    seed: int, count: int, settings: Iterable[PictureSettings]
) -> Iterator[Example]:
    """`count` examples, the ways of encoding taken in turn."""
    ways = list(settings)
    return (make_example(seed, i, ways[i % len(ways)]) for i in range(count))


def default_encodings(num_questions: int) -> list[PictureSettings]:
    """Every format at its everyday quality, 75."""
    return [PictureSettings(image_format=f, num_questions=num_questions) for f in FORMATS]


def evaluate(answerer: Answerer, examples: Iterable[Example], *, batch_size: int = 32) -> Report:
    """Ask every prompt of every example."""
    report = Report()
    prompts = [prompt for example in examples for prompt in prompts_of(example)]
    # Long answers together: a batch runs until its longest one ends.
    prompts.sort(key=lambda p: len(p.answer))
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        for prompt, said in zip(batch, answerer.answer(batch), strict=True):
            report.count(prompt, said)
    return report
