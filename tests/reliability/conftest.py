"""A server of its own for everything hostile: whatever was sent to it, it must be as new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.reliability.protocols import Clients
from tests.serving import RunningServer, start_server, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """The process; at the end it must be ready, hold nothing open, and have logged no traceback."""
    with start_server() as running:
        yield running
        check_unharmed(running)


@pytest.fixture(scope="session")
def clients(server: RunningServer) -> Iterator[Clients]:
    """Connections to it."""
    with Clients.of(server) as connected:
        yield connected


def check_unharmed(server: RunningServer) -> None:
    """Assert that a server is as it was when it started."""
    assert server.process.poll() is None, f"the server ended by itself:\n{server.log()}"
    with Clients.of(server) as connected:
        assert connected.http.get("/v2/health/ready").json() == {"ready": True}
        assert connected.http.get("/v2/health/live").json() == {"live": True}
    # Jobs may still be answered.
    wait_for(lambda: server.metric("running_sequences") == 0, "no sequence runs", seconds=60)
    server.wait_until_idle()
    assert "Traceback" not in server.log(), server.log()
