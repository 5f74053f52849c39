"""Good input made bad: JSON with other values, bytes edited anywhere, for as long as wished.

`FUZZ_SECONDS` in the environment says how long each fuzzer works; 10 by default.
"""

from __future__ import annotations

import copy
import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable

FUZZ_SECONDS: Final = float(os.environ.get("FUZZ_SECONDS", "10"))

WORDS: Final = (
    *("text", "image_url", "auto", "required", "f", "", "a" * 99, "\x7f", "🙂", "-1", "{", "[]"),
    *("BYTES", "base64", "data:,", "https://x/", "\x00", "\u2028", "٣", "0x10", "1e3"),
)
SCALARS: Final = (
    st.none()
    | st.booleans()
    | st.sampled_from(WORDS)
    | st.sampled_from([0, 1, 2, -1, 2**63 - 1, -(2**63), 2**64 - 1, 1e308, -0.0, 0.5, 21, 1 << 31])
)
KEYS: Final = st.sampled_from(
    ["type", "function", "name", "url", "schema", "json", "text", "x", "5"]
)
VALUES: Final = st.recursive(
    SCALARS,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(KEYS, values, max_size=3),
    max_leaves=6,
)
# What numbers in a file or a message say when they lie.
LIES: Final = st.sampled_from(
    [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0" * 4, b"\0\0\0\1"]
)
EDITS: Final = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "repeat", "cut"]),
        st.floats(0, 1, exclude_max=True),
        LIES | st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


class _TimeIsOver(KeyboardInterrupt):
    """The one kind of exception that hypothesis takes for no finding."""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, item in items:
        found.append((*path, key))
        if isinstance(item, dict | list):
            found += places(item, (*path, key))
    return found


def changed(document: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A copy with one value replaced."""
    result = copy.deepcopy(document)
    *parents, last = path
    holder: Any = result
    for key in parents:
        holder = holder[key]
    holder[last] = value
    return result


def edited(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """The bytes after some edits, each at a share of their length."""
    for kind, share, new in edits:
        position = int(share * len(data))
        end = position + len(new)
        match kind:
            case "replace":
                data = data[:position] + new + data[end:]
            case "insert":
                data = data[:position] + new + data[position:]
            case "delete":
                data = data[:position] + data[end:]
            case "repeat":
                data = data[:end] + data[position:]
            case "cut":
                data = data[:position] if share > 0.5 else data
    return data


def fuzz(
    check: Callable[[Any], None],
    strategy: st.SearchStrategy[Any],
    *,
    seconds: float = FUZZ_SECONDS,
    max_examples: int = 1_000_000,
) -> int:
    """Check random values until the time is over; how many they were. A failure is made small."""
    num_checked = 0
    ends = time.monotonic() + seconds
    number = secrets.randbits(64)

    @seed(number)
    @settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def check_all(value: Any) -> None:
        nonlocal num_checked
        check(value)
        num_checked += 1
        if time.monotonic() > ends:
            raise _TimeIsOver

    with suppress(_TimeIsOver):
        check_all()
    print(f"{num_checked} examples of seed {number}")
    return num_checked
