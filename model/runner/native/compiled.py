"""The compiled library: found, loaded once, its functions given their signatures.

Built when the package is installed, where a C compiler is; without it torch's operations serve.
"""

from __future__ import annotations

import ctypes
import logging
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).parent / f"_cpu_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
SUFFIXES: Final = {torch.float32: "f32", torch.bfloat16: "bf16"}

POINTER, INTEGER, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
SIGNATURES: Final[dict[str, list[Any]]] = {
    "rms_norm": [POINTER] * 4 + [INTEGER] * 2 + [FLOAT],
    "turn_and_store": [POINTER] * 7 + [INTEGER] * 4 + [FLOAT],
    "attend_decode": [POINTER] * 7 + [INTEGER] * 6 + [FLOAT],
    "silu_mul": [POINTER] * 2 + [INTEGER] * 2,
}
# Where the processor has the vectors for them, which `usable` says.
WIDE_SIGNATURES: Final[dict[str, list[Any]]] = {
    "linear": [POINTER] * 5 + [INTEGER] * 4,
    "unpack_rows": [POINTER] * 3 + [INTEGER] * 2,
    "attend_decode_wide": [POINTER] * 7 + [INTEGER] * 6 + [FLOAT, INTEGER],
    "attend": [POINTER] * 6 + [INTEGER] * 2 + [POINTER, INTEGER],
    "run_layers": [POINTER] * 3,
    "run_blocks": [POINTER] * 3,
}


@cache
def load(path: Path) -> ctypes.CDLL | None:
    """The library at `path`, None where it is missing; told once."""
    try:
        # The kernels use the threads that torch has: two pools would fight for the cores.
        for openmp in _openmp_libraries():
            ctypes.CDLL(str(openmp), ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(path))
    except OSError as e:
        logger.warning("no compiled kernels, so decoding is slower: %s", e)
        return None
    for suffix in SUFFIXES.values():
        signatures = dict(SIGNATURES)
        if getattr(library, f"usable_{suffix}")():
            signatures |= WIDE_SIGNATURES
        for name, signature in signatures.items():
            function = getattr(library, f"{name}_{suffix}")
            function.argtypes, function.restype = signature, None
    return library


def usable(dtype: torch.dtype) -> bool:
    """Whether the kernels for 512-bit vectors are compiled, and are the fastest on this processor.

    Where there are matrix tiles (AMX), oneDNN's products of bfloat16 use them, which is faster yet.
    """
    if dtype not in SUFFIXES or (library := load(LIBRARY)) is None:
        return False
    if dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return False
    return bool(getattr(library, f"usable_{SUFFIXES[dtype]}")())


def function(name: str, dtype: torch.dtype) -> Any:  # noqa: ANN401 - ctypes has no type for it
    """A function of the library for one number format."""
    library = load(LIBRARY)
    assert library is not None, "asked before"
    return getattr(library, f"{name}_{SUFFIXES[dtype]}")


def fields(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:  # noqa: ANN401 - a ctypes type
    """Fields of one type, for a ctypes.Structure."""
    return tuple((name, kind) for name in names)


def _openmp_libraries() -> list[Path]:
    """Torch's own OpenMP, as its wheels bring it."""
    torch_dir = Path(torch.__file__).parent
    return [
        path
        for folder in (torch_dir / "lib", torch_dir.parent / "torch.libs")
        for path in folder.glob("libgomp*")
    ]
