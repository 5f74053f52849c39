"""The server that all tests of a session share, and a picture to send it."""

from __future__ import annotations

import io
import signal
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

from tests.serving import SAMPLES, RunningServer, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_configure() -> None:
    """Let the programs that tests start be interrupted.

    What a script starts in the background ignores SIGINT, and so does all that it starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """One server process for every test that asks for it; started by the first."""
    with start_server() as running:
        yield running
        assert running.process.poll() is None, f"the server ended by itself:\n{running.log()}"


@pytest.fixture(scope="session")
def sample_image() -> bytes:
    """An encoded picture that the bundled model can describe."""
    for path in sorted(SAMPLES.glob("*.jpg")):
        return path.read_bytes()
    picture = Image.new("RGB", (200, 150), "white")
    ImageDraw.Draw(picture).ellipse((50, 40, 110, 100), fill="red")
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()
