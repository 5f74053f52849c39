"""Training sees what inference sees: same pixels, same prompt tokens, same logits."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
)

from model.demo import CHECKPOINT_DIR, batches, labels, pixels, scenes
from model.demo.network import cosine_filters, packed_mask, read, see
from model.demo.train import TrainSettings, learning_rate


@pytest.fixture(scope="module")
def model() -> Qwen3VLForConditionalGeneration:
    return AutoModelForImageTextToText.from_pretrained(CHECKPOINT_DIR, dtype="float32").eval()


@pytest.fixture(scope="module")
def maker() -> batches.RowMaker:
    return batches.RowMaker(CHECKPOINT_DIR)


def to_float(patches: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(patches).float() / 127.5 - 1


def transformers_logits(
    model: Qwen3VLForConditionalGeneration, row: batches.Row, keep: np.ndarray[Any, Any]
) -> torch.Tensor:
    """transformers' own forward over the kept tokens of a row, as one plain prompt."""
    ids = torch.from_numpy(row.token_ids[keep])[None]
    frames = to_float(row.patches).view(-1, 3, 1, 16, 16).expand(-1, 3, 2, 16, 16)
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=frames.reshape(len(frames), -1),
        image_grid_thw=torch.tensor([[1, row.grid[0] * 2, row.grid[1] * 2]]),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
    )
    logits: torch.Tensor = output.logits[0]
    return logits


@torch.inference_mode()
def test_the_packed_forward_equals_transformers_own(
    model: Qwen3VLForConditionalGeneration, maker: batches.RowMaker
) -> None:
    rng = np.random.default_rng(3)
    # One row of each way of packing: a conversation, a description with questions, questions alone.
    rows = {int(row.segments.max()): row for row in (maker.make(rng, 0.5) for _ in range(20))}
    assert sorted(rows) == [0, 4, 6]
    for row in rows.values():
        seen = see(model, to_float(row.patches)[None], row.grid)
        arrays = (row.token_ids, row.segments, row.positions)
        ours = model.lm_head(read(model, seen, *(torch.from_numpy(a)[None] for a in arrays)))[0]
        for segment in range(1, int(row.segments.max()) + 1) or [0]:
            keep = (row.segments == 0) | (row.segments == segment)
            theirs = transformers_logits(model, row, keep)
            torch.testing.assert_close(ours[torch.from_numpy(keep)], theirs, rtol=1e-3, atol=1e-3)


def test_padding_and_other_rows_change_nothing(
    model: Qwen3VLForConditionalGeneration, maker: batches.RowMaker
) -> None:
    batch = next(batches.batches(maker, np.random.default_rng(4), 3, 1.0))
    with torch.inference_mode():
        seen = see(model, to_float(batch.patches), batch.grid)
        arrays = (batch.token_ids, batch.segments, batch.positions)
        together = read(model, seen, *(torch.from_numpy(a) for a in arrays))
        for i in range(3):
            length = int((batch.segments[i] >= 0).sum())
            alone = read(
                model,
                see(model, to_float(batch.patches[i : i + 1]), batch.grid),
                *(torch.from_numpy(a[i : i + 1, ..., :length]) for a in arrays),
            )
            torch.testing.assert_close(together[i, :length], alone[0], rtol=1e-3, atol=1e-3)


def test_a_segment_sees_the_picture_and_itself_only() -> None:
    mask = packed_mask(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0].int().tolist()
    assert mask[3] == [1, 1, 1, 1, 0, 0]
    assert mask[4] == [1, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    "size", [(96, 96), (211, 96), (96, 211), (300, 200), (333, 471), (1024, 466), (192, 224)]
)
def test_patches_equal_the_image_processors(size: tuple[int, int]) -> None:
    from PIL import Image

    processor = AutoImageProcessor.from_pretrained(CHECKPOINT_DIR)
    scene = scenes.sample_scene(np.random.default_rng(sum(size)))
    picture = Image.fromarray(scenes.draw(scene, *size))
    theirs = processor([picture], return_tensors="pt")
    resized = pixels.resize(picture)
    rows, columns = resized.shape[0] // 16, resized.shape[1] // 16
    assert theirs["image_grid_thw"].tolist() == [[1, rows, columns]]
    frames = theirs["pixel_values"].view(-1, 3, 2, 16, 16)
    torch.testing.assert_close(frames[:, :, 0], frames[:, :, 1])
    ours = to_float(pixels.to_patches(resized))
    torch.testing.assert_close(frames[:, :, 0].flatten(1), ours, atol=1e-5, rtol=0)


def test_rows_are_what_the_chat_template_makes(maker: batches.RowMaker) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT_DIR)
    rng = np.random.default_rng(8)
    row = next(r for r in iter(lambda: maker.make(rng), None) if r.segments.max() > 0)
    kept = row.token_ids[(row.segments == 0) | (row.segments == 1)].tolist()
    text = tokenizer.decode(kept).replace("<|image_pad|>" * math.prod(row.grid), "<|image_pad|>")
    prompt = text.split("<|vision_end|>")[1].split("<|im_end|>")[0]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]},
        {"role": "assistant", "content": row.turns[0].answer},
    ]
    if text.startswith("<|im_start|>system"):
        messages.insert(0, {"role": "system", "content": "You are a helpful assistant."})
    assert text + "\n" == tokenizer.apply_chat_template(messages, tokenize=False)


def test_targets_spell_the_answers_and_their_ends(maker: batches.RowMaker) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT_DIR)
    rng = np.random.default_rng(9)
    for _ in range(10):
        row = maker.make(rng)
        for index, turn in enumerate(row.turns):
            spelt = row.targets[:-1][row.owners[1:] == index]
            assert tokenizer.decode(spelt.tolist()) == f"{turn.answer}<|im_end|>"


def test_token_labels_point_at_the_objects() -> None:
    scene = scenes.sample_scene(np.random.default_rng(2), (0, 0, 1))
    owner = labels.owner_map(scene, 192, 192)
    shown_by = labels.token_labels(scene, owner)
    for rank, obj in enumerate(scene.objects, start=1):
        shown = shown_by["rank"] == rank
        assert shown.any()
        assert set(shown_by["color"][shown]) == {list(scenes.COLORS).index(obj.color) + 1}
        assert set(shown_by["cell"][shown]) == {obj.cell + 1}


def test_filters_are_orthogonal() -> None:
    filters = cosine_filters(160)
    assert filters.shape == (160, 768)
    gram = filters[:80] @ filters[:80].T
    assert np.allclose(gram, np.eye(80), atol=1e-5)


@pytest.mark.parametrize(
    ("progress", "step", "share"),
    [
        pytest.param(0.0, 75, 0.5, id="warms up in steps"),
        pytest.param(0.5, 1000, 0.5, id="half the cosine at half time"),
        pytest.param(1.0, 1000, 0.002, id="almost nothing at the end"),
    ],
)
def test_learning_rate_follows_the_clock(progress: float, step: int, share: float) -> None:
    settings = TrainSettings(model_dir=Path(), work_dir=Path(), learning_rate=2.0)
    assert learning_rate(settings, progress, step) == pytest.approx(2.0 * share, abs=1e-4)
