"""Patches equal the image processor's; embeddings equal get_image_features, alone or together."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from model.checkpoint import read_checkpoint
from model.runner.fast_vision import FastVisionTower
from model.runner.vision import ReferenceTower, VisionEncoder
from tests.checkpoints import Shape, make_checkpoint, random_model
from tests.unit.runner_driver import make_image, processor_patches

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from transformers import PreTrainedModel

    from model.runner.fast_vision import Grid

CPU = torch.device("cpu")
SIDES = [(1, 1), (2, 3), (5, 1), (1, 7), (4, 4)]
NORMALISATIONS = [
    pytest.param((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), id="Qwen3-VL's"),
    pytest.param((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.2613, 0.2757), id="CLIP's"),
]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return random_model(Shape(), seed=0)


@pytest.fixture(scope="module")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("vision"))


@pytest.mark.parametrize(("mean", "std"), NORMALISATIONS)
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_patches_equal_the_image_processor(
    tmp_path: Path,
    sides: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> None:
    path = make_checkpoint(tmp_path, Shape(image_mean=mean, image_std=std, num_layers=1))
    encoder = VisionEncoder(unused_tower, read_checkpoint(path), CPU, torch.float32)
    image = make_image(np.random.default_rng(0), sides, offset=0)
    processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    expected = processor(image.pixels, do_resize=False, return_tensors="pt")
    assert expected["image_grid_thw"].tolist() == [[1, image.grid_height, image.grid_width]]
    patches = processor_patches(encoder, image)
    torch.testing.assert_close(patches, expected["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("fast", [True, False], ids=["own loop", "reference"])
def test_images_together_equal_each_alone(
    model: PreTrainedModel, checkpoint_path: Path, fast: bool
) -> None:
    visual = model.model.visual
    tower = FastVisionTower(copy.deepcopy(visual)) if fast else ReferenceTower(visual)
    encoder = VisionEncoder(tower, read_checkpoint(checkpoint_path), CPU, torch.float32)
    rng = np.random.default_rng(2)
    images = [make_image(rng, sides, offset=0) for sides in SIDES]
    for image, embeddings in zip(images, encoder.encode(images), strict=True):
        expected = visual(
            processor_patches(encoder, image),
            grid_thw=torch.tensor([[1, image.grid_height, image.grid_width]]),
        )
        assert embeddings.tokens.shape == (image.num_tokens, Shape().hidden_size)
        torch.testing.assert_close(embeddings.tokens, expected.pooler_output, rtol=1e-5, atol=5e-5)
        assert len(embeddings.deepstack) == 3
        for layer, reference in zip(embeddings.deepstack, expected.deepstack_features, strict=True):
            torch.testing.assert_close(layer, reference, rtol=1e-5, atol=5e-5)


def test_a_call_of_the_tower_is_bounded_in_patches(
    checkpoint_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.runner.vision.MAX_PATCHES_CPU", 40)
    calls: list[list[tuple[int, int]]] = []

    def tower(patches: torch.Tensor, grids: Seq[Grid]) -> list[torch.Tensor]:
        calls.append(list(grids))
        assert len(patches) == sum(height * width for height, width in grids)
        return [patches.view(len(patches) // 4, -1)]

    encoder = VisionEncoder(tower, read_checkpoint(checkpoint_path), CPU, torch.float32)
    rng = np.random.default_rng(2)
    images = [make_image(rng, sides, offset=0) for sides in [(4, 4), (2, 2), (1, 2), (2, 2)]]
    encoded = encoder.encode(images)
    assert calls == [[(2, 4), (4, 4), (4, 4)], [(8, 8)]]
    for image, embeddings in zip(images, encoded, strict=True):
        expected = encoder.patches(image).view(image.num_tokens, -1)
        torch.testing.assert_close(embeddings.tokens, expected, rtol=0, atol=0)


def test_no_images_need_no_tower(checkpoint_path: Path) -> None:
    encoder = VisionEncoder(unused_tower, read_checkpoint(checkpoint_path), CPU, torch.float32)
    assert encoder.encode([]) == []


def unused_tower(patches: torch.Tensor, grids: Seq[Grid]) -> list[torch.Tensor]:
    raise AssertionError("the tower was called")
