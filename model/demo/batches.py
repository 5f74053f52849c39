"""Training batches: scenes drawn, encoded, resized, labelled and packed, by worker processes.

Every picture of a batch has the same grid, so all is dense. A row packs several exchanges about its
picture: either side by side (each sees the shared picture and itself only, its positions restarting
after the picture, as if it were alone) or one after the other, as turns of one conversation. numpy,
PIL and tokenizers alone: no torch.
"""

import io
import itertools
import math
import multiprocessing as mp
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.demo.labels import TOKEN_LABELS, owner_map, patch_occupancy, token_labels
from model.demo.language import QUESTION_KINDS, SYSTEM_PROMPT, Turn, ask, ask_to_describe
from model.demo.pixels import FACTOR, resize, to_patches
from model.demo.scenes import (
    Pixels,
    Scene,
    draw,
    sample_scene,
    sample_size,
)
from model.demo.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from multiprocessing.queues import Queue
    from multiprocessing.sharedctypes import Synchronized

IGNORE: Final = -100
# What is learnt last is asked most: finding by place, and comparing with every object.
_HARD_KINDS: Final = ("what at", "exists", "count shape", "count color")
_TRAIN_KINDS: Final = (*QUESTION_KINDS, *_HARD_KINDS * 2, "where")
_NARROW: Final = 1.65  # aspect ratio
_EXTRA_NARROW: Final = 0.4
# Share of rows with a description, by the part of the training that is over: questions, which are
# learnt later, have the middle to themselves; the end polishes descriptions.
_DESCRIBED: Final = ((0.35, 1.0), (0.9, 0.4), (2.0, 0.9))
_TRAIN_STREAM: Final = 0x7EA1  # keeps training scenes apart from those of any `scenes --seed`
_COUNT_WEIGHTS: Final = ((0.02, (1.0, 0.0, 0.0)), (0.06, (1.0, 1.0, 0.0)), (2.0, (0.2, 0.3, 0.5)))
_FILTERS: Final = (
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
    Image.Resampling.BOX,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One picture and the exchanges about it. All token arrays have one entry a token.

    patches: [num_patches, 768] uint8; grid: (rows, columns) in visual tokens
    labels: name -> [num_visual_tokens] int64; occupancy: [num_patches, 64] bool
    segments: 0 is seen by all that follows, k > 0 only by segment k; positions: [3, num_tokens]
    targets: the next token where it belongs to an answer, else IGNORE; weights: what it counts for
    owners: index into `turns` of the answer a token belongs to, else -1
    """

    patches: Pixels
    grid: tuple[int, int]
    labels: dict[str, NDArray[np.int64]]
    occupancy: NDArray[np.bool_]
    token_ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    owners: NDArray[np.int64]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one grid, padded to the longest: every array of `Row` with a leading batch axis."""

    grid: tuple[int, int]
    patches: Pixels
    labels: dict[str, NDArray[np.int64]]
    occupancy: NDArray[np.bool_]
    token_ids: NDArray[np.int64]
    segments: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    owners: NDArray[np.int64]
    turns: tuple[tuple[Turn, ...], ...]


class RowMaker:
    """Makes rows from a seed and the part of the training that is over (the curriculum)."""

    def __init__(self, model_dir: Path) -> None:
        self._tokenizer = load_tokenizer(model_dir)
        self._image_pad = self._tokenizer.get_vocab()["<|image_pad|>"]

    def make(self, rng: np.random.Generator, progress: float = 1.0) -> Row:
        weights = next(w for limit, w in _COUNT_WEIGHTS if progress < limit)
        scene = sample_scene(rng, weights)
        picture = self._photograph(rng, scene)
        pixels = resize(picture)
        height, width, _ = pixels.shape
        owner = owner_map(scene, width, height)
        turns = [ask(rng, scene, _TRAIN_KINDS) for _ in range(6)]
        if rng.random() < next(share for limit, share in _DESCRIBED if progress < limit):
            # As long as the three questions that make way for it.
            turns = [ask_to_describe(rng, scene), *turns[:3]]
        grid = (height // FACTOR, width // FACTOR)
        token_ids, segments, owners = self._tokens(rng, turns, grid)
        return Row(
            patches=to_patches(pixels),
            grid=grid,
            labels=token_labels(scene, owner),
            occupancy=patch_occupancy(owner),
            token_ids=token_ids,
            segments=segments,
            positions=self._positions(token_ids, segments, grid),
            targets=_targets(token_ids, segments, owners),
            weights=_weights(owners),
            owners=owners,
            turns=tuple(turns),
        )

    def _photograph(self, rng: np.random.Generator, scene: Scene) -> Image.Image:
        """Draw and encode a scene as a client's picture might have been."""
        width, height = sample_size(rng)
        if rng.random() < _EXTRA_NARROW:
            # What is small in a square picture is large in a narrow one: that takes practice.
            while max(width, height) < _NARROW * min(width, height):
                width, height = sample_size(rng)
        if rng.random() < 0.975:
            # Drawn small, because that is cheap, but not so small that the processor would enlarge
            # them all: it rounds a large picture's grid down and a small one's up.
            shrink = math.sqrt(min(1.0, rng.uniform(20_000, 80_000) / (width * height)))
            shrink = max(shrink, 96 / min(width, height))
            width, height = round(width * shrink), round(height * shrink)
        picture = Image.fromarray(draw(scene, width, height))
        if rng.random() < 0.25:
            scale = rng.uniform(0.8, 1.25)
            size = tuple(
                max(96, round(side * scale * rng.uniform(0.95, 1.05))) for side in picture.size
            )
            picture = picture.resize((size[0], size[1]), _FILTERS[int(rng.integers(len(_FILTERS)))])
        return _encode(rng, picture)

    def _tokens(
        self, rng: np.random.Generator, turns: list[Turn], grid: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Token ids, segments and owners (-1 outside answers) of a row."""
        style = rng.random()
        chained, text_first = style < 0.16, style < 0.08
        picture = f"<|vision_start|>{'<|image_pad|>' * (grid[0] * grid[1])}<|vision_end|>"
        system = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n" if rng.random() < 0.1 else ""
        opening = f"{system}<|im_start|>user\n"
        pieces = [(opening if text_first else opening + picture, 0, -1)]
        if chained:
            rng.shuffle(turns)
        for index, turn in enumerate(turns):
            prompt = _vary(rng, turn.prompt)
            if chained and index > 0:
                prompt = f"\n<|im_start|>user\n{prompt}"
            if text_first and index == 0:
                prompt += picture
            segment = 0 if chained else index + 1
            pieces.append((f"{prompt}<|im_end|>\n<|im_start|>assistant\n", segment, -1))
            pieces.append((f"{turn.answer}<|im_end|>", segment, index))
        ids, segments, owners = [], [], []
        for text, segment, owner in pieces:
            piece = self._tokenizer.encode(text).ids
            ids += piece
            segments += [segment] * len(piece)
            owners += [owner] * len(piece)
        return np.asarray(ids), np.asarray(segments), np.asarray(owners)

    def _positions(
        self, token_ids: NDArray[np.int64], segments: NDArray[np.int64], grid: tuple[int, int]
    ) -> NDArray[np.int64]:
        """Three-axis positions: [3, num_tokens]; a picture takes as many as its longer side."""
        is_pad = token_ids == self._image_pad
        start = int(np.argmax(is_pad))
        rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
        positions = np.empty((3, len(token_ids)), dtype=np.int64)
        positions[:, :start] = np.arange(start)
        end = start + len(rows)
        positions[:, start:end] = start + np.stack([np.zeros_like(rows), rows, columns])
        first = start + max(grid)
        shared = end + int(np.sum(segments[end:] == 0))
        positions[:, end:shared] = first + np.arange(shared - end)
        for segment in range(1, int(segments.max()) + 1):
            mine = segments == segment
            positions[:, mine] = first + shared - end + np.arange(int(mine.sum()))
        return positions


def _encode(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    kind = rng.random()
    if kind < 0.25:
        return picture
    if kind < 0.9:
        picture.save(buffer, "JPEG", quality=int(rng.integers(40, 96)))
    else:
        picture.save(buffer, "WEBP", quality=int(rng.integers(40, 96)), method=0)
    return Image.open(buffer).convert("RGB")


def _vary(rng: np.random.Generator, prompt: str) -> str:
    """Now and then, how people type: no capital, no full stop."""
    roll = rng.random()
    if roll < 0.04:
        prompt = prompt.lower()
    return prompt[:-1] if roll < 0.02 or 0.04 <= roll < 0.06 else prompt


def _targets(
    token_ids: NDArray[np.int64], segments: NDArray[np.int64], owners: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The next token where it is part of an answer; an answer never ends where a segment starts."""
    targets = np.full_like(token_ids, IGNORE)
    is_answer = owners[1:] >= 0
    assert np.array_equal(segments[1:][is_answer], segments[:-1][is_answer])
    targets[:-1][is_answer] = token_ids[1:][is_answer]
    return targets


def _weights(owners: NDArray[np.int64]) -> NDArray[np.float32]:
    """What each target counts for; a short answer's token more, or descriptions would be all."""
    weights = np.zeros(len(owners), dtype=np.float32)
    lengths = np.bincount(owners[owners >= 0])
    is_answer = owners[1:] >= 0
    weights[:-1][is_answer] = lengths[owners[1:][is_answer]] ** -0.75
    return weights


def collate(rows: Sequence[Row]) -> Batch:
    """Stack rows of one grid; padding tokens belong to segment -1 and have no target."""
    longest = max(len(row.token_ids) for row in rows)

    def pad(arrays: Iterator[NDArray[Any]], value: int) -> NDArray[Any]:
        widths = [(0, 0)]
        return np.stack(
            [
                np.pad(
                    a, widths * (a.ndim - 1) + [(0, longest - a.shape[-1])], constant_values=value
                )
                for a in arrays
            ]
        )

    return Batch(
        grid=rows[0].grid,
        patches=np.stack([row.patches for row in rows]),
        labels={name: np.stack([row.labels[name] for row in rows]) for name in TOKEN_LABELS},
        occupancy=np.stack([row.occupancy for row in rows]),
        token_ids=pad((row.token_ids for row in rows), 0),
        segments=pad((row.segments for row in rows), -1),
        positions=pad((row.positions for row in rows), 0),
        targets=pad((row.targets for row in rows), IGNORE),
        weights=pad((row.weights for row in rows), 0).astype(np.float32),
        owners=pad((row.owners for row in rows), -1),
        turns=tuple(row.turns for row in rows),
    )


def batches(
    maker: RowMaker,
    rng: np.random.Generator,
    batch_size: int,
    progress: "Synchronized[float] | float",
) -> Iterator[Batch]:
    """Endless batches; rows wait in a bucket of their grid until it is full."""
    buckets: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)
    while True:
        row = maker.make(rng, progress if isinstance(progress, float) else progress.value)
        bucket = buckets[row.grid]
        bucket.append(row)
        if len(bucket) == batch_size:
            yield collate(buckets.pop(row.grid))


def _work(
    model_dir: Path,
    seed: Sequence[int],
    batch_size: int,
    progress: "Synchronized[float]",
    queue: "Queue[Batch]",
) -> None:
    rng = np.random.default_rng([_TRAIN_STREAM, *seed])
    for batch in batches(RowMaker(model_dir), rng, batch_size, progress):
        queue.put(batch)


class BatchWorkers:
    """Worker processes that keep a queue of batches full."""

    def __init__(
        self,
        model_dir: Path,
        *,
        seed: int,
        start: int,
        num_workers: int,
        batch_size: int,
        progress: float,
    ) -> None:
        context = mp.get_context("spawn")
        self._progress: Synchronized[float] = context.Value("d", progress)
        self._queue: Queue[Batch] = context.Queue(maxsize=12)
        self._processes = [
            context.Process(
                target=_work,
                args=(model_dir, (seed, start, i), batch_size, self._progress, self._queue),
                daemon=True,
            )
            for i in range(num_workers)
        ]
        for process in self._processes:
            process.start()

    def __iter__(self) -> Iterator[Batch]:
        for _ in itertools.count():
            yield self._queue.get()

    def advance(self, progress: float) -> None:
        """Tell the workers which part of the training is over, 0 to 1."""
        self._progress.value = progress

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
