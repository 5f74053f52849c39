"""What a checkpoint folder says of itself, and what is wrong with folders that are none."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from model.checkpoint import CheckpointError, read_checkpoint
from model.demo import CHECKPOINT_DIR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in CHECKPOINT_DIR.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    return tmp_path


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def test_the_bundled_checkpoint_is_read() -> None:
    checkpoint = read_checkpoint(CHECKPOINT_DIR)
    assert (checkpoint.patch_size, checkpoint.merge_size) == (16, 2)
    assert checkpoint.pixels_per_token == 32 * 32
    assert checkpoint.eos_token_ids
    assert checkpoint.default_sampling.temperature == 0.0
    assert checkpoint.min_pixels < checkpoint.max_pixels


def test_sampling_comes_from_the_generation_config(folder: Path) -> None:
    wanted = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    change(folder / "generation_config.json", lambda config: config.update(wanted))
    sampling = read_checkpoint(folder).default_sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 20)


def test_the_combined_file_is_read_first_as_transformers_does(folder: Path) -> None:
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    combined = {"image_processor": processor | {"image_mean": [0.1, 0.2, 0.3]}}
    (folder / "processor_config.json").write_text(json.dumps(combined))
    assert read_checkpoint(folder).image_mean == (0.1, 0.2, 0.3)
    (folder / "preprocessor_config.json").unlink()
    assert read_checkpoint(folder).image_mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("combined", [None, {"video_processor": {}}], ids=["absent", "of videos"])
def test_the_older_file_is_read_where_the_combined_one_says_nothing(
    folder: Path, combined: dict[str, Any] | None
) -> None:
    (folder / "processor_config.json").unlink()
    if combined is not None:
        (folder / "processor_config.json").write_text(json.dumps(combined))
    assert read_checkpoint(folder).image_mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(None, 4096), (100, 100), (1 << 30, 4096)],
    ids=["default", "less", "more than the model's"],
)
def test_context_length(folder: Path, wanted: int | None, expected: int) -> None:
    change(
        folder / "config.json",
        lambda config: config["text_config"].update(max_position_embeddings=4096),
    )
    assert read_checkpoint(folder).max_model_len(wanted) == expected


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            lambda folder: shutil.rmtree(folder), "is not a folder", id="no folder at all"
        ),
        pytest.param(
            lambda folder: (folder / "config.json").unlink(),
            "config.json is missing",
            id="no config.json",
        ),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json is not readable JSON",
            id="broken JSON",
        ),
        pytest.param(
            lambda folder: (folder / "config.json").write_text("[]"),
            "holds no JSON object",
            id="a list",
        ),
        pytest.param(
            lambda folder: change(
                folder / "config.json", lambda config: config.update(model_type="llama")
            ),
            "has model_type 'llama'; this server runs 'qwen3_vl'",
            id="another architecture",
        ),
        pytest.param(
            lambda folder: change(
                folder / "config.json", lambda config: config.pop("image_token_id")
            ),
            "lacks 'image_token_id'",
            id="a field missing",
        ),
        pytest.param(
            lambda folder: change(
                folder / "processor_config.json",
                lambda config: config["image_processor"].update(image_mean=[0.5]),
            ),
            "is not usable",
            id="a field of the wrong form",
        ),
        pytest.param(
            lambda folder: (folder / "tokenizer.json").unlink(),
            "tokenizer.json is missing",
            id="no tokenizer",
        ),
    ],
)
def test_a_folder_that_cannot_be_served(
    folder: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(folder)
