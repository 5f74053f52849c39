"""The command line as a subprocess, and a terminal to run it on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import termios
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from model.demo import SAMPLES_DIR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COMMAND = (sys.executable, "-m", "model.cli", "describe")
SAMPLES = sorted(SAMPLES_DIR.glob("*.jpg"))
CAPTIONS = [json.loads(line) for line in (SAMPLES_DIR / "captions.jsonl").read_text().splitlines()]
DESCRIPTIONS = {
    one["image"]: one["answer"] for one in CAPTIONS if one["prompt"] == "Describe this image."
}
FIRST = DESCRIPTIONS[SAMPLES[0].name]
NOWHERE = "http://127.0.0.1:1"
LONG = ("--max-tokens", "3000", "--ignore-eos")


def described(
    *arguments: object, url: str | None = None, stdin: bytes | None = b"", **environ: str
) -> subprocess.CompletedProcess[bytes]:
    """The ended command."""
    where = () if url is None else ("--url", url)
    return subprocess.run(
        [*COMMAND, *map(str, arguments), *where],
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
        env=os.environ | environ,
    )


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """The running command; what is left of it at the end is killed."""
    command = [*COMMAND, *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def terminal() -> Iterator[tuple[int, Callable[[], str]]]:
    """A terminal's file descriptor, and what was shown there once all programs have left it."""
    ours, theirs = os.openpty()
    shown = bytearray()

    def read() -> str:
        os.close(theirs)
        # Linux ends a terminal that nobody writes to any more with an error.
        with suppress(OSError):
            while piece := os.read(ours, 4096):
                shown.extend(piece)
        return shown.decode()

    try:
        termios.tcsetwinsize(theirs, (25, 80))
        yield theirs, read
    finally:
        os.close(ours)


def text_of(ended: subprocess.CompletedProcess[bytes]) -> str:
    """What a command printed that must have worked."""
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode()


def json_lines(printed: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.decode().splitlines()]
