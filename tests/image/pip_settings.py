"""This machine's pip settings, as a build may have them: its index, its proxy, its authorities."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CA_IN_BUILD: Final = "/run/ca.crt"
# What tells where packages come from; a build has no use for paths of this machine.
KEPT: Final = ("extra-index-url", "index-url", "proxy", "timeout", "trusted-host")


@dataclass(frozen=True)
class PipSettings:
    """pip.conf for the build, and the authorities that it names as CA_IN_BUILD."""

    text: str
    authorities: bytes


def pip_settings() -> PipSettings:
    """Read from `pip config list`, environment included."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    values = {}
    for line in said.stdout.splitlines():
        name, _, value = line.partition("=")
        values[name.rpartition(".")[2]] = ast.literal_eval(value)
    lines = ["[global]", *(f"{name} = {values[name]}" for name in KEPT if name in values)]
    if "cert" not in values:
        return PipSettings("\n".join(lines) + "\n", b"")
    lines.append(f"cert = {CA_IN_BUILD}")
    return PipSettings("\n".join(lines) + "\n", Path(values["cert"]).read_bytes())
