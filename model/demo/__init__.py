"""The bundled Qwen3-VL checkpoint, and everything that made it.

Knows where the checkpoint and the sample pictures are. Importing this package is cheap: it imports
neither torch nor transformers, nor any other part of the server.
"""

from pathlib import Path
from typing import Final

CHECKPOINT_DIR: Final[Path] = Path(__file__).resolve().parent / "checkpoint"
SAMPLES_DIR: Final[Path] = Path(__file__).resolve().parent / "samples"

__all__ = ["CHECKPOINT_DIR", "SAMPLES_DIR"]
