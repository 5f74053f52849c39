"""Positions equal those of transformers' get_rope_index, prompt and generated tokens alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration as Oracle

from model.runner.positions import batch_positions, prompt_positions
from tests.checkpoints import IMAGE_PAD, Shape, build_config
from tests.unit.runner_driver import MERGE, make_request

if TYPE_CHECKING:
    from tests.unit.runner_driver import Part

PROMPTS: list[list[Part]] = [
    [1],
    [17],
    [(1, 1)],
    [(4, 7)],
    [3, (2, 3), 7],
    [(3, 2), 4],
    [4, (1, 9)],
    [2, (1, 1), (2, 2), 3],
    [2, (6, 1), 5, (2, 3), 1, (1, 4), 6],
    [(8, 8), (1, 8), (8, 1)],
]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    with torch.device("meta"):
        return Oracle(build_config(Shape()))


@pytest.mark.parametrize("parts", PROMPTS, ids=str)
def test_positions_equal_get_rope_index(oracle: Oracle, parts: list[Part]) -> None:
    request = make_request("r", parts)
    ids = torch.tensor([request.prompt_token_ids])
    grids = torch.tensor([[1, i.grid_height, i.grid_width] for i in request.images])
    expected, delta = oracle.model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == IMAGE_PAD).int(),
        image_grid_thw=grids if request.images else None,
    )
    positions = prompt_positions(len(request.prompt_token_ids), request.images, MERGE)
    np.testing.assert_array_equal(positions.prompt, expected[:, 0].numpy())
    assert positions.delta == delta.item()


@pytest.mark.parametrize(
    ("start", "end"),
    [
        pytest.param(0, 4, id="inside the prompt"),
        pytest.param(8, 10, id="up to the prompt's end"),
        pytest.param(8, 13, id="across it"),
        pytest.param(10, 11, id="first generated token"),
        pytest.param(25, 28, id="well past it"),
    ],
)
def test_span_continues_the_prompt(start: int, end: int) -> None:
    request = make_request("r", [2, (2, 2), 2])
    positions = prompt_positions(10, request.images, MERGE)
    assert positions.delta == -2
    every = np.hstack((positions.prompt, np.tile(np.arange(10, 40) - 2, (3, 1))))
    np.testing.assert_array_equal(positions.span(start, end), every[:, start:end])


@pytest.mark.parametrize(
    "spans",
    [
        pytest.param([(0, 10)], id="a prompt"),
        pytest.param([(10, 11), (25, 26), (39, 40)], id="a generated token of each"),
        pytest.param([(9, 10), (10, 11), (2, 6), (8, 13), (17, 18)], id="all kinds"),
        pytest.param([], id="nothing"),
    ],
)
def test_a_batch_has_its_spans_side_by_side(spans: list[tuple[int, int]]) -> None:
    requests = [make_request("r", parts) for parts in ([2, (2, 2), 2], [10], [(2, 3), 4])]
    known = [prompt_positions(10, request.images, MERGE) for request in requests]
    batch = [(known[i % 3], *span) for i, span in enumerate(spans)]
    expected = [np.empty((3, 0)), *(positions.span(start, end) for positions, start, end in batch)]
    np.testing.assert_array_equal(batch_positions(batch), np.hstack(expected))
