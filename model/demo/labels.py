"""What the auxiliary heads are taught: for every visual token and patch, what it shows.

Only training reads this; the checkpoint keeps nothing of it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.demo.pixels import FACTOR, MERGE, PATCH
from model.demo.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    SIZES,
    Scene,
    place_object,
    signed_distance,
)

# What an auxiliary head tells about the object under a visual token; 0 is "none".
TOKEN_LABELS: Final = {
    "shape": len(SHAPES) + 1,
    "color": len(COLORS) + 1,
    "size": len(SIZES) + 1,
    "cell": 10,
    "rank": 4,
    "background": len(BACKGROUNDS),
}
OCCUPANCY_SIDE: Final = 8
_MIN_COVER: Final = 0.1


def owner_map(scene: Scene, width: int, height: int) -> NDArray[np.int64]:
    """Which object covers what: [height / 2, width / 2], 0 none, else 1 + index.

    width, height: the resized picture. Lengths are relative, so a stretched copy of the scene is
    drawn by stretching the sample points instead.
    """
    owner = np.zeros((height // 2, width // 2), dtype=np.int64)
    for index, obj in enumerate(scene.objects):
        at = place_object(obj, width, height)
        xs = np.arange(1, width, 2, dtype=np.float32) - np.float32(at.x)
        ys = np.arange(1, height, 2, dtype=np.float32) - np.float32(at.y)
        x = np.flatnonzero(np.abs(xs) <= at.radius * 1.2)
        y = np.flatnonzero(np.abs(ys) <= at.radius * 1.2)
        inside = signed_distance(obj, at.radius, xs[x], ys[y]) > 0
        owner[y[0] : y[-1] + 1, x[0] : x[-1] + 1][inside] = index + 1
    return owner


def token_labels(scene: Scene, owner: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """What each visual token shows: [num_visual_tokens] a label, 0 where it shows no object."""
    side = FACTOR // 2
    rows, columns = owner.shape[0] // side, owner.shape[1] // side
    tiles = owner.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows * columns, -1)
    covers = np.stack([(tiles == k + 1).mean(1) for k in range(len(scene.objects))])
    best = np.where(covers.max(0) >= _MIN_COVER, covers.argmax(0) + 1, 0)
    tables = {
        "shape": [0, *(SHAPES.index(o.shape) + 1 for o in scene.objects)],
        "color": [0, *(list(COLORS).index(o.color) + 1 for o in scene.objects)],
        "size": [0, *(SIZES.index(o.size) + 1 for o in scene.objects)],
        "cell": [0, *(o.cell + 1 for o in scene.objects)],
        "rank": list(range(len(scene.objects) + 1)),
    }
    labels = {name: np.asarray(table)[best] for name, table in tables.items()}
    labels["background"] = np.full_like(best, list(BACKGROUNDS).index(scene.background))
    return labels


def patch_occupancy(owner: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where objects are inside each patch: [num_patches, 64], patches in the merger's order."""
    rows, columns = owner.shape[0] // (PATCH // 2 * MERGE), owner.shape[1] // (PATCH // 2 * MERGE)
    blocks = (owner > 0).reshape(rows, MERGE, OCCUPANCY_SIDE, columns, MERGE, OCCUPANCY_SIDE)
    return np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 2, 5)).reshape(-1, OCCUPANCY_SIDE**2)
