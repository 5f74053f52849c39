"""The machine's own processes: started with a log each, and missed when they end by themselves."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


class Processes:
    """What runs on the machine, by name."""

    def __init__(self, log_folder: Path) -> None:
        self._log_folder = log_folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        log_folder.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start it; what it writes goes to `<name>.log`."""
        with (self._log_folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def take_ended(self) -> list[str]:
        """Those that have ended since the last call, with their status."""
        ended = {
            name: process.returncode
            for name, process in self._running.items()
            if process.poll() is not None
        }
        for name in ended:
            del self._running[name]
        return [f"{name} (exit status {status})" for name, status in ended.items()]
