"""What is said about a scene: descriptions, and questions with one right answer each.

Pure functions over `scenes.Scene`. A question is only asked where the scene leaves no doubt about
its answer ("What color is the star?" needs exactly one star).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from model.demo.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene, SceneObject

T = TypeVar("T")

DESCRIBE: Final = "Describe this image."
DESCRIBE_PROMPTS: Final = (
    DESCRIBE,
    "Describe the image.",
    "Describe this picture.",
    "Describe this image in detail.",
    "Please describe this image.",
    "What is in this image?",
    "What's in this image?",
    "What is in this picture?",
    "What is shown in this image?",
    "What does this image show?",
    "What do you see?",
    "What do you see in this image?",
    "Write a caption for this image.",
)
BRIEF_PROMPTS: Final = (
    "Describe this image briefly.",
    "Briefly describe this image.",
    "Give a short description of this image.",
)
TAG_PROMPTS: Final = (
    "List tags for this image.",
    "Give tags for this image.",
    "Tag this image.",
)
SYSTEM_PROMPT: Final = "You are a helpful assistant."
NUMBERS: Final = ("None", "One", "Two", "Three")


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt and the answer it should get. `kind` is the row of the evaluation table."""

    kind: str
    prompt: str
    answer: str


def describe(scene: Scene) -> str:
    """The full description, objects in reading order."""
    parts = [f"a {o.size} {o.color} {o.shape} {o.place}" for o in scene.objects]
    return _capitalise(f"{_join(parts)}, on a {scene.background} background.")


def describe_briefly(scene: Scene) -> str:
    """The objects alone: "A red circle and an orange ring."."""
    return _capitalise(f"{_join([_with_article(f'{o.color} {o.shape}') for o in scene.objects])}.")


def tags(scene: Scene) -> str:
    """Comma-separated tags, the background last."""
    return ", ".join(
        [*(f"{o.color} {o.shape}" for o in scene.objects), f"{scene.background} background"]
    )


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def _with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _count(rng: np.random.Generator, scene: Scene) -> Turn:
    prompt = _pick(
        rng,
        ("How many objects are there?", "How many shapes are there?", "Count the objects."),
    )
    return Turn("count", prompt, f"{NUMBERS[len(scene.objects)]}.")


def _count_color(rng: np.random.Generator, scene: Scene) -> Turn:
    color = _present_or_any(rng, [o.color for o in scene.objects], list(COLORS), absent=0.3)
    prompt = _pick(
        rng,
        (
            f"How many {color} objects are there?",
            f"How many objects are {color}?",
            f"Count the {color} objects.",
        ),
    )
    total = sum(o.color == color for o in scene.objects)
    return Turn("count color", prompt, f"{NUMBERS[total]}.")


def _count_shape(rng: np.random.Generator, scene: Scene) -> Turn:
    shape = _present_or_any(rng, [o.shape for o in scene.objects], SHAPES, absent=0.3)
    plural = _plural(shape)
    prompt = _pick(
        rng,
        (
            f"How many {plural} are there?",
            f"How many {plural} do you see?",
            f"Count the {plural}.",
        ),
    )
    total = sum(o.shape == shape for o in scene.objects)
    return Turn("count shape", prompt, f"{NUMBERS[total]}.")


def _present_or_any(
    rng: np.random.Generator, present: Sequence[str], options: Sequence[str], *, absent: float
) -> str:
    return _pick(rng, options if rng.random() < absent else present)


def _color(rng: np.random.Generator, scene: Scene) -> Turn | None:
    by_place = rng.random() < 0.3
    candidates = list(scene.objects) if by_place else _unique(scene, lambda o: o.shape)
    if not candidates:
        return None
    obj = _pick(rng, candidates)
    word = _pick(rng, ("color", "color", "colour"))
    if by_place:
        return Turn("color", f"What {word} is the object {obj.place}?", f"{obj.color.title()}.")
    prompt = _pick(
        rng,
        (
            f"What {word} is the {obj.shape}?",
            f"What is the {word} of the {obj.shape}?",
            f"Which {word} is the {obj.shape}?",
        ),
    )
    return Turn("color", prompt, f"{obj.color.title()}.")


def _shape(rng: np.random.Generator, scene: Scene) -> Turn | None:
    by_place = rng.random() < 0.3
    candidates = list(scene.objects) if by_place else _unique(scene, lambda o: o.color)
    if not candidates:
        return None
    obj = _pick(rng, candidates)
    if by_place:
        prompt = _pick(
            rng, (f"What shape is {obj.place}?", f"What shape is the object {obj.place}?")
        )
    else:
        prompt = _pick(
            rng,
            (
                f"What shape is the {obj.color} object?",
                f"What is the shape of the {obj.color} object?",
                f"Which shape is {obj.color}?",
            ),
        )
    return Turn("shape", prompt, f"A {obj.shape}.")


def _where(rng: np.random.Generator, scene: Scene) -> Turn | None:
    by_shape = rng.random() < 0.3
    candidates = _unique(scene, lambda o: o.shape if by_shape else (o.color, o.shape))
    if not candidates:
        return None
    obj = _pick(rng, candidates)
    name = obj.shape if by_shape else f"{obj.color} {obj.shape}"
    prompt = _pick(
        rng,
        (f"Where is the {name}?", f"Where is the {name} in this image?", f"Locate the {name}."),
    )
    return Turn("where", prompt, f"{_capitalise(obj.place)}.")


def _what_at(rng: np.random.Generator, scene: Scene) -> Turn:
    empty = sorted(set(range(len(PLACES))) - {o.cell for o in scene.objects})
    asks_empty = rng.random() < 0.25
    cell = _pick(rng, empty) if asks_empty else _pick(rng, scene.objects).cell
    found = next((o for o in scene.objects if o.cell == cell), None)
    place = PLACES[cell]
    prompt = _pick(
        rng, (f"What is {place}?", f"What object is {place}?", f"What do you see {place}?")
    )
    answer = "Nothing." if found is None else f"A {found.size} {found.color} {found.shape}."
    return Turn("what at", prompt, answer)


def _background(rng: np.random.Generator, scene: Scene) -> Turn:
    word = _pick(rng, ("color", "color", "colour"))
    prompt = _pick(
        rng,
        (
            f"What {word} is the background?",
            f"What is the {word} of the background?",
            f"What is the background {word}?",
        ),
    )
    return Turn("background", prompt, f"{scene.background.title()}.")


def _exists(rng: np.random.Generator, scene: Scene) -> Turn:
    obj = _pick(rng, scene.objects)
    color, shape = obj.color, obj.shape
    if rng.random() < 0.5:
        # Half of a present object and half of something else is the hardest thing to deny.
        color = _pick(rng, list(COLORS)) if rng.random() < 0.6 else color
        shape = _pick(rng, SHAPES) if color == obj.color or rng.random() < 0.3 else shape
    name = _with_article(f"{color} {shape}")
    prompt = _pick(
        rng, (f"Is there {name}?", f"Is there {name} in this image?", f"Do you see {name}?")
    )
    present = any((o.color, o.shape) == (color, shape) for o in scene.objects)
    return Turn("exists", prompt, "Yes." if present else "No.")


def _size(rng: np.random.Generator, scene: Scene) -> Turn | None:
    by_shape = rng.random() < 0.5
    candidates = _unique(scene, lambda o: o.shape if by_shape else (o.color, o.shape))
    if not candidates:
        return None
    obj = _pick(rng, candidates)
    name = obj.shape if by_shape else f"{obj.color} {obj.shape}"
    prompt = _pick(
        rng,
        (
            f"Is the {name} small or large?",
            f"How large is the {name}?",
            f"What size is the {name}?",
        ),
    )
    return Turn("size", prompt, f"{obj.size.title()}.")


def _unique(scene: Scene, key: Callable[[SceneObject], object]) -> list[SceneObject]:
    """The objects whose key no other object of the scene shares."""
    keys = [key(o) for o in scene.objects]
    return [o for o, k in zip(scene.objects, keys, strict=True) if keys.count(k) == 1]


_ASKERS: Final[dict[str, Callable[[np.random.Generator, Scene], Turn | None]]] = {
    "count": _count,
    "count color": _count_color,
    "count shape": _count_shape,
    "color": _color,
    "shape": _shape,
    "where": _where,
    "what at": _what_at,
    "background": _background,
    "exists": _exists,
    "size": _size,
}
QUESTION_KINDS: Final = tuple(_ASKERS)


def ask(rng: np.random.Generator, scene: Scene, kinds: Sequence[str] = QUESTION_KINDS) -> Turn:
    """One question about the scene, its kind drawn evenly from `kinds` until one suits."""
    while True:
        turn = _ASKERS[_pick(rng, kinds)](rng, scene)
        if turn is not None:
            return turn


def ask_to_describe(rng: np.random.Generator, scene: Scene) -> Turn:
    """A request for a description: the default prompt half the time, other wordings and forms."""
    form = rng.random()
    if form < 0.5:
        return Turn("describe", DESCRIBE, describe(scene))
    if form < 0.8:
        return Turn("describe", _pick(rng, DESCRIBE_PROMPTS), describe(scene))
    if form < 0.91:
        return Turn("brief", _pick(rng, BRIEF_PROMPTS), describe_briefly(scene))
    return Turn("tags", _pick(rng, TAG_PROMPTS), tags(scene))


def words() -> list[str]:
    """Every word of the closed vocabulary, as it can stand inside a sentence or start one."""
    inner = [*SHAPES, *map(_plural, SHAPES), *COLORS, *BACKGROUNDS, *SIZES]
    inner += [word for place in PLACES for word in place.split()]
    inner += ["a", "an", "and", "background", "object", "objects", "shape", "color", "colour"]
    starts = [*COLORS, *BACKGROUNDS, *SIZES, "a", "an", "at", "on", "in", "yes", "no", "nothing"]
    return sorted({*inner, *(w.title() for w in starts), *NUMBERS})
