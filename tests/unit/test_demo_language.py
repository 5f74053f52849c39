"""Descriptions and questions: worded as documented, and true of their scene."""

from collections import Counter

import numpy as np
import pytest

from model.demo import language
from model.demo.scenes import COLORS, PLACES, SHAPES, Scene, SceneObject, sample_scene


def an_object(shape: str, color: str, size: str, cell: int) -> SceneObject:
    return SceneObject(shape, color, size, cell, 0.6, 0.0, (0, 0), COLORS[color])


def a_scene(*objects: SceneObject, background: str = "white") -> Scene:
    return Scene(objects, background, (248, 248, 248), (0, 0), 0, 0)


RED_CIRCLE = an_object("circle", "red", "small", 0)
BLUE_STAR = an_object("star", "blue", "large", 4)
ORANGE_RING = an_object("ring", "orange", "small", 8)


@pytest.mark.parametrize(
    ("scene", "description", "brief", "tags"),
    [
        pytest.param(
            a_scene(BLUE_STAR),
            "A large blue star in the center, on a white background.",
            "A blue star.",
            "blue star, white background",
            id="one object",
        ),
        pytest.param(
            a_scene(RED_CIRCLE, BLUE_STAR, background="navy"),
            "A small red circle at the top left and a large blue star in the center, "
            "on a navy background.",
            "A red circle and a blue star.",
            "red circle, blue star, navy background",
            id="two objects",
        ),
        pytest.param(
            a_scene(RED_CIRCLE, BLUE_STAR, ORANGE_RING),
            "A small red circle at the top left, a large blue star in the center and "
            "a small orange ring at the bottom right, on a white background.",
            "A red circle, a blue star and an orange ring.",
            "red circle, blue star, orange ring, white background",
            id="three objects",
        ),
    ],
)
def test_descriptions(scene: Scene, description: str, brief: str, tags: str) -> None:
    assert language.describe(scene) == description
    assert language.describe_briefly(scene) == brief
    assert language.tags(scene) == tags


def mentioned(prompt: str, words: tuple[str, ...] | list[str]) -> str | None:
    """The word of a closed list that a prompt speaks of, plural or not."""
    plain = prompt.lower().rstrip("?.").replace("crosses", "cross").split()
    return next((w for w in words if w in plain or f"{w}s" in plain), None)


def place_in(prompt: str) -> int | None:
    found = [i for i, place in enumerate(PLACES) if place in prompt]
    return max(found, key=lambda i: len(PLACES[i])) if found else None


def true_answer(turn: language.Turn, scene: Scene) -> str:
    """The answer worked out again, from the words of the prompt alone."""
    shape, color = mentioned(turn.prompt, SHAPES), mentioned(turn.prompt, list(COLORS))
    cell = place_in(turn.prompt)
    fitting = [
        o
        for o in scene.objects
        if (shape is None or o.shape == shape)
        and (color is None or o.color == color)
        and (cell is None or o.cell == cell)
    ]
    match turn.kind:
        case "count" | "count color" | "count shape":
            return f"{language.NUMBERS[len(fitting)]}."
        case "background":
            return f"{scene.background.title()}."
        case "exists":
            return "Yes." if fitting else "No."
        case "what at" if not fitting:
            return "Nothing."
    (only,) = fitting
    return {
        "what at": f"A {only.size} {only.color} {only.shape}.",
        "color": f"{only.color.title()}.",
        "shape": f"A {only.shape}.",
        "size": f"{only.size.title()}.",
        "where": f"{only.place[0].upper()}{only.place[1:]}.",
    }[turn.kind]


def test_every_question_has_one_right_answer() -> None:
    rng = np.random.default_rng(11)
    kinds: Counter[str] = Counter()
    for _ in range(3000):
        scene = sample_scene(rng)
        turn = language.ask(rng, scene)
        kinds[turn.kind] += 1
        assert turn.answer == true_answer(turn, scene), turn
    assert set(kinds) == set(language.QUESTION_KINDS)
    assert min(kinds.values()) > 100


def test_yes_no_and_none_are_balanced() -> None:
    rng = np.random.default_rng(12)
    answers = Counter(language.ask(rng, sample_scene(rng)).answer for _ in range(4000))
    assert 0.5 < answers["Yes."] / answers["No."] < 2
    assert answers["None."] > 100
    assert answers["Nothing."] > 30
