"""This environment's torch and CUDA's libraries, lent to the images: 5 GB that no test is about.

As a layer they would be written four times over before buildah is done with them (25 GB, and
minutes), and fetched anew wherever nothing is cached. Mounted at their place while pip installs, it
finds them there and installs the rest. `QWEN3VL_IMAGE_TEST=whole` builds the images as they ship.
"""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Final

LENT: Final = re.compile(r"torch|triton|(nvidia|cuda)[-_].*")
# Debian bookworm's: another one's compiled modules do not load.
PYTHON: Final = (3, 11)
SITE_PACKAGES: Final = "/opt/venv/lib/python{}.{}/site-packages".format(*PYTHON)


def is_whole() -> bool:
    """Whether images are built as they ship."""
    return os.environ.get("QWEN3VL_IMAGE_TEST") == "whole" or sys.version_info[:2] != PYTHON


def torch_mounts() -> tuple[str, ...]:
    """Options for buildah and podman; none where images are whole."""
    if is_whole():
        return ()
    here = Path(sysconfig.get_path("purelib"))
    tops = {
        file.parts[0]
        for one in metadata.distributions()
        if LENT.fullmatch(one.metadata["Name"])
        for file in one.files or ()
        if ".." not in file.parts
    }
    return tuple(f"--volume={here / top}:{SITE_PACKAGES}/{top}:ro" for top in sorted(tops))
