"""Scenes of coloured shapes: sampled from a seed, drawn antialiased, the same on every machine.

A scene holds one to three objects in distinct cells of a 3x3 grid. Lengths are fractions of a cell
or of the picture until a scene is drawn, so one scene can be drawn at any size. This module knows
nothing of language (`language.py`) nor of training (`batches.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rgb: TypeAlias = tuple[int, int, int]
Floats: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = NDArray[np.uint8]

SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES: Final = ("small", "large")
COLORS: Final[dict[str, Rgb]] = {
    "red": (220, 38, 38),
    "orange": (246, 140, 28),
    "yellow": (246, 222, 48),
    "green": (38, 158, 62),
    "cyan": (48, 206, 216),
    "blue": (38, 84, 220),
    "purple": (132, 48, 178),
    "pink": (246, 132, 190),
    "brown": (122, 72, 34),
    "black": (20, 20, 20),
}
BACKGROUNDS: Final[dict[str, Rgb]] = {
    "white": (248, 248, 248),
    "gray": (164, 164, 164),
    "black": (14, 14, 14),
    "beige": (226, 210, 174),
    "navy": (24, 34, 88),
}
PLACES: Final = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the center",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
# Diameter as a fraction of the cell's smaller side. The gap keeps "small" and "large" apart even
# where the model's processor stretches one side by a fifth.
SCALES: Final = {"small": (0.60, 0.66), "large": (0.88, 0.96)}
MAX_OBJECTS: Final = 3
MIN_SIDE: Final = 96
MAX_SIDE: Final = 1024
MAX_ASPECT: Final = 2.2
MAX_ANGLE_DEGREES: Final = 8.0
MIN_COLOR_DISTANCE: Final = 100.0
COLOR_JITTER: Final = 8
_NOISE_TILE: Final = 128


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape in one cell.

    cell: 0-8 in reading order; scale: diameter over the cell's smaller side; shift: offset from the
    cell's centre as a fraction (-1..1) of the room left on each axis; rgb: the colour as drawn.
    """

    shape: str
    color: str
    size: str
    cell: int
    scale: float
    angle_degrees: float
    shift: tuple[float, float]
    rgb: Rgb

    @property
    def place(self) -> str:
        """The words for the object's cell, such as "at the top left"."""
        return PLACES[self.cell]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. Objects stand in reading order.

    gradient: change of every channel from one edge to the other, (x, y), in 0-255 levels;
    noise: standard deviation in levels; noise_seed: makes drawing repeatable.
    """

    objects: tuple[SceneObject, ...]
    background: str
    background_rgb: Rgb
    gradient: tuple[float, float]
    noise: float
    noise_seed: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an object lies in a picture of a given size: centre and radius in pixels."""

    x: float
    y: float
    radius: float


class UnsupportedSize(ValueError):
    """A picture size outside what the generator draws and the checkpoint was trained on."""


def check_size(width: int, height: int) -> None:
    """Raise UnsupportedSize unless both sides and the aspect ratio are within the limits."""
    for name, side in (("width", width), ("height", height)):
        if not MIN_SIDE <= side <= MAX_SIDE:
            raise UnsupportedSize(f"{name} is {side}; it must be from {MIN_SIDE} to {MAX_SIDE}")
    aspect = max(width, height) / min(width, height)
    if aspect > MAX_ASPECT:
        raise UnsupportedSize(
            f"aspect ratio of {width}x{height} is {aspect:.2f}; it must be at most {MAX_ASPECT}"
        )


def sample_size(
    rng: np.random.Generator, *, width: int | None = None, height: int | None = None
) -> tuple[int, int]:
    """Draw (width, height) log-uniformly within the limits; a side that is given is kept."""
    if width is not None and height is not None:
        check_size(width, height)
        return width, height
    known = width if width is not None else height
    if known is not None:
        check_size(known, known)
        low, high = max(MIN_SIDE, known / MAX_ASPECT), min(MAX_SIDE, known * MAX_ASPECT)
        other = int(np.clip(_log_uniform(rng, low, high), math.ceil(low), math.floor(high)))
        return (known, other) if width is not None else (other, known)
    aspect = _log_uniform(rng, 1, MAX_ASPECT)
    short = _log_uniform(rng, MIN_SIDE, MAX_SIDE / aspect)
    long = min(int(short * aspect), MAX_SIDE, int(int(short) * MAX_ASPECT))
    return (long, int(short)) if rng.random() < 0.5 else (int(short), long)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def sample_scene(
    rng: np.random.Generator, count_weights: Sequence[float] = (1.0, 1.0, 1.0)
) -> Scene:
    """Draw a scene; `count_weights` are the relative odds of one, two and three objects."""
    weights = np.asarray(count_weights, dtype=np.float64)
    num_objects = 1 + int(rng.choice(MAX_OBJECTS, p=weights / weights.sum()))
    background = str(rng.choice(list(BACKGROUNDS)))
    colors = visible_colors(background)
    cells = sorted(int(cell) for cell in rng.choice(len(PLACES), num_objects, replace=False))
    objects = tuple(_sample_object(rng, cell, colors) for cell in cells)
    return Scene(
        objects=objects,
        background=background,
        background_rgb=_jitter(rng, BACKGROUNDS[background]),
        gradient=(float(rng.uniform(-8, 8)), float(rng.uniform(-8, 8))),
        noise=float(rng.uniform(0, 3)),
        noise_seed=int(rng.integers(2**31)),
    )


def visible_colors(background: str) -> tuple[str, ...]:
    """The colours far enough from a background to be told from it."""
    base = BACKGROUNDS[background]
    return tuple(c for c, rgb in COLORS.items() if math.dist(rgb, base) >= MIN_COLOR_DISTANCE)


def _sample_object(rng: np.random.Generator, cell: int, colors: Sequence[str]) -> SceneObject:
    color, size = str(rng.choice(colors)), str(rng.choice(SIZES))
    return SceneObject(
        shape=str(rng.choice(SHAPES)),
        color=color,
        size=size,
        cell=cell,
        scale=float(rng.uniform(*SCALES[size])),
        angle_degrees=float(rng.uniform(-MAX_ANGLE_DEGREES, MAX_ANGLE_DEGREES)),
        shift=(float(rng.uniform(-0.6, 0.6)), float(rng.uniform(-0.6, 0.6))),
        rgb=_jitter(rng, COLORS[color]),
    )


def _jitter(rng: np.random.Generator, rgb: Rgb) -> Rgb:
    red, green, blue = rng.integers(-COLOR_JITTER, COLOR_JITTER + 1, 3) + rgb
    return (_level(red), _level(green), _level(blue))


def _level(value: int) -> int:
    return int(min(max(value, 0), 255))


def place_object(obj: SceneObject, width: int, height: int) -> Placement:
    """Lay an object out in a picture of `width` x `height` pixels."""
    cell_width, cell_height = width / 3, height / 3
    diameter = obj.scale * min(cell_width, cell_height)
    row, column = divmod(obj.cell, 3)
    return Placement(
        x=(column + 0.5) * cell_width + obj.shift[0] * (cell_width - diameter) / 2,
        y=(row + 0.5) * cell_height + obj.shift[1] * (cell_height - diameter) / 2,
        radius=diameter / 2,
    )


def draw(scene: Scene, width: int, height: int) -> Pixels:
    """Draw a scene: [height, width, 3] uint8."""
    canvas = _background(scene, width, height)
    for obj in scene.objects:
        at = place_object(obj, width, height)
        x0, x1 = max(int(at.x - at.radius - 2), 0), min(int(at.x + at.radius + 3), width)
        y0, y1 = max(int(at.y - at.radius - 2), 0), min(int(at.y + at.radius + 3), height)
        xs = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - at.x)
        ys = np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - at.y)
        inside = np.clip(signed_distance(obj, at.radius, xs, ys) + 0.5, 0, 1)[..., None]
        window = canvas[y0:y1, x0:x1]
        window += inside * (np.asarray(obj.rgb, dtype=np.float32) - window)
    pixels: Pixels = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return pixels


def _background(scene: Scene, width: int, height: int) -> Floats:
    rng = np.random.default_rng(scene.noise_seed)
    tile = rng.standard_normal((_NOISE_TILE, _NOISE_TILE), dtype=np.float32)
    repeats = (-(-height // _NOISE_TILE), -(-width // _NOISE_TILE))
    light = np.tile(tile * np.float32(scene.noise), repeats)[:height, :width]
    slope_x, slope_y = scene.gradient
    light = light + np.linspace(-slope_x / 2, slope_x / 2, width, dtype=np.float32)
    light += np.linspace(-slope_y / 2, slope_y / 2, height, dtype=np.float32)[:, None]
    return light[..., None] + np.asarray(scene.background_rgb, dtype=np.float32)


def signed_distance(obj: SceneObject, radius: float, xs: Floats, ys: Floats) -> Floats:
    """Distance to the outline in pixels, positive inside: [len(ys), len(xs)].

    xs, ys: offsets from the object's centre in pixels, y downwards.
    """
    angle = math.radians(obj.angle_degrees)
    cos, sin = np.float32(math.cos(angle) / radius), np.float32(math.sin(angle) / radius)
    x = xs[None, :] * cos + ys[:, None] * sin
    y = ys[:, None] * cos - xs[None, :] * sin
    return np.asarray(_unit_distance(obj.shape, x, y) * np.float32(radius), dtype=np.float32)


def _unit_distance(shape: str, x: Floats, y: Floats) -> Floats:
    """Signed distance for shapes that fit the unit circle's bounding box."""
    match shape:
        case "circle":
            return 1 - np.hypot(x, y)
        case "square":
            return np.float32(0.86) - np.maximum(np.abs(x), np.abs(y))
        case "triangle":
            # An equilateral triangle of circumradius 1.12, lowered so that its box is centred.
            y = y - np.float32(0.24)
            slanted = np.abs(x) * np.float32(math.sqrt(3) / 2) - y * np.float32(0.5)
            return np.float32(0.56) - np.maximum(y, slanted)
        case "star":
            return _star_distance(x, y)
        case "cross":
            across, up = np.abs(x), np.abs(y)
            return np.minimum(
                np.float32(0.94) - np.maximum(across, up), np.float32(0.32) - np.minimum(across, up)
            )
        case "ring":
            return np.float32(0.22) - np.abs(np.hypot(x, y) - np.float32(0.78))
        case _:
            raise ValueError(f"unknown shape {shape!r}; known shapes: {', '.join(SHAPES)}")


def _star_distance(x: Floats, y: Floats) -> Floats:
    """Five points of radius 1.05, valleys of radius 0.45; every edge folded onto one."""
    fifth = 2 * math.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + fifth / 2, fifth) - fifth / 2)
    rho = np.hypot(x, y)
    tip, valley = 1.05, (0.45 * math.cos(fifth / 2), 0.45 * math.sin(fifth / 2))
    length = math.hypot(tip - valley[0], valley[1])
    normal = (valley[1] / length, (tip - valley[0]) / length)
    along = rho * np.cos(angle) * np.float32(normal[0])
    across = rho * np.sin(angle) * np.float32(normal[1])
    return np.asarray(np.float32(tip * normal[0]) - along - across, dtype=np.float32)
