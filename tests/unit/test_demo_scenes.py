"""Scenes: the same from a seed everywhere, inside their cells, and drawn as they are described."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from model.demo import examples, language, scenes
from model.demo.__main__ import main

SEEDS = st.integers(min_value=0, max_value=2**32 - 1)


def scene_of(seed: int) -> scenes.Scene:
    return scenes.sample_scene(np.random.default_rng(seed))


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_the_same_seed_draws_the_same_picture(seed: int) -> None:
    first, second = scene_of(seed), scene_of(seed)
    assert first == second
    assert np.array_equal(scenes.draw(first, 120, 96), scenes.draw(second, 120, 96))


@given(SEEDS, st.floats(1, scenes.MAX_ASPECT), st.booleans())
@settings(max_examples=50, deadline=None)
def test_objects_stay_in_distinct_cells_in_reading_order(
    seed: int, aspect: float, upright: bool
) -> None:
    scene = scene_of(seed)
    width, height = (300, int(300 * aspect)) if upright else (int(300 * aspect), 300)
    cells = [o.cell for o in scene.objects]
    assert cells == sorted(set(cells))
    for obj in scene.objects:
        at = scenes.place_object(obj, width, height)
        row, column = divmod(obj.cell, 3)
        assert column * width / 3 <= at.x - at.radius
        assert at.x + at.radius <= (column + 1) * width / 3
        assert row * height / 3 <= at.y - at.radius
        assert at.y + at.radius <= (row + 1) * height / 3


@given(SEEDS)
@settings(max_examples=50, deadline=None)
def test_objects_differ_from_their_background(seed: int) -> None:
    scene = scene_of(seed)
    for obj in scene.objects:
        names = scenes.COLORS[obj.color], scenes.BACKGROUNDS[scene.background]
        assert math.dist(*names) >= scenes.MIN_COLOR_DISTANCE


@given(SEEDS, st.integers(96, 400), st.integers(96, 200))
@settings(max_examples=50, deadline=None)
def test_the_picture_shows_the_colors_that_the_scene_names(
    seed: int, width: int, height: int
) -> None:
    scene = scene_of(seed)
    pixels = scenes.draw(scene, width, height).astype(float)
    for obj in scene.objects:
        at = scenes.place_object(obj, width, height)
        # A ring's colour is on its band, not at its centre.
        x = at.x + (0.78 * at.radius if obj.shape == "ring" else 0)
        distances = {
            name: math.dist(pixels[int(at.y), int(x)], rgb) for name, rgb in scenes.COLORS.items()
        }
        assert min(distances, key=distances.__getitem__) == obj.color
    empty = next(cell for cell in (0, 2, 6, 8) if cell not in [o.cell for o in scene.objects])
    row, column = divmod(empty, 3)
    corner = pixels[row // 2 * (height - 1), column // 2 * (width - 1)]
    distances = {name: math.dist(corner, rgb) for name, rgb in scenes.BACKGROUNDS.items()}
    assert min(distances, key=distances.__getitem__) == scene.background


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_every_shape_fits_its_box_and_fills_a_good_part_of_it(shape: str) -> None:
    obj = scenes.SceneObject(shape, "red", "large", 4, 0.9, 8.0, (0, 0), (220, 38, 38))
    steps = np.arange(-120, 121, dtype=np.float32)
    inside = scenes.signed_distance(obj, 100.0, steps, steps) > 0
    rows, columns = np.nonzero(inside)
    assert max(abs(int(v) - 120) for v in (*rows, *columns)) <= 108
    assert 0.2 < inside.sum() / (200 * 200) < 0.8


@given(SEEDS)
def test_sizes_drawn_from_a_seed_are_supported(seed: int) -> None:
    scenes.check_size(*scenes.sample_size(np.random.default_rng(seed)))


@given(SEEDS, st.integers(scenes.MIN_SIDE, scenes.MAX_SIDE))
def test_a_given_side_is_kept_and_the_other_suits_it(seed: int, side: int) -> None:
    width, height = scenes.sample_size(np.random.default_rng(seed), width=side)
    assert width == side
    scenes.check_size(width, height)


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [
        pytest.param(95, 200, "width is 95; it must be from 96 to 1024", id="too narrow"),
        pytest.param(200, 1025, "height is 1025; it must be from 96 to 1024", id="too tall"),
        pytest.param(500, 200, "is 2.50; it must be at most 2.2", id="too long"),
    ],
)
def test_unsupported_sizes_name_limit_and_value(width: int, height: int, words: str) -> None:
    with pytest.raises(scenes.UnsupportedSize, match=words):
        scenes.check_size(width, height)


def test_the_scenes_command_writes_pictures_and_captions(tmp_path: Path) -> None:
    arguments = ["--seed", "5", "--count", "3", "--out", str(tmp_path), "--questions", "2"]
    assert main(["scenes", *arguments, "--format", "webp", "--width", "160"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines[::3]] == [f"scene-0000{i}.webp" for i in range(3)]
    assert all(line.keys() == {"image", "prompt", "answer"} for line in lines)
    assert lines[0]["prompt"] == language.DESCRIBE
    with Image.open(tmp_path / "scene-00000.webp") as picture:
        assert (picture.format, picture.width) == ("WEBP", 160)


def test_an_example_does_not_depend_on_how_many_are_made() -> None:
    few = examples.make_example(7, 3, examples.PictureSettings(num_questions=1))
    many = examples.make_example(7, 3, examples.PictureSettings(num_questions=1))
    assert few == many
    assert few != examples.make_example(7, 4, examples.PictureSettings(num_questions=1))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--width", "40"], id="width below the limit"),
        pytest.param(["--quality", "5"], id="quality below the limit"),
        pytest.param(["--count", "0"], id="nothing to write"),
        pytest.param(["--seed", "-1"], id="negative seed"),
    ],
)
def test_the_scenes_command_refuses_what_it_cannot_do(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["scenes", "--out", str(tmp_path), *arguments])
    assert stop.value.code == 2
    assert "must be" in capsys.readouterr().err


def test_without_a_command_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out
