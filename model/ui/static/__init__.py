"""What runs and shows in the browser, as text."""

from __future__ import annotations

from pathlib import Path
from typing import Final

STATIC_DIR: Final = Path(__file__).parent


def static(name: str) -> str:
    """The text of a file in this folder."""
    return (STATIC_DIR / name).read_text(encoding="utf-8")
