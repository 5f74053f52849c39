"""The API server's answers: what is asked again, and what is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from model.canary.cluster import GRPC_ROUTE, MAX_ATTEMPTS, MAX_WAIT_SECONDS, Cluster
from model.canary.errors import Unreachable
from tests.canary.memory_api import NAMESPACE, failure

if TYPE_CHECKING:
    from collections.abc import Iterator


def busy(seconds: str | None) -> httpx.Response:
    """As a kind's storage is for a moment when it is asked for first."""
    answer = failure(429, "storage is (re)initializing")
    if seconds is not None:
        answer.headers["Retry-After"] = seconds
    return answer


def cluster(answers: Iterator[httpx.Response], waited: list[float]) -> Cluster:
    transport = httpx.MockTransport(lambda request: next(answers))
    return Cluster(
        lambda path: httpx.Client(transport=transport, base_url=f"http://api/{path}"),
        NAMESPACE,
        waited.append,
    )


def test_who_asks_to_be_asked_later_is_asked_later() -> None:
    waited: list[float] = []
    answers = iter([busy("1"), busy("3600"), httpx.Response(200, json={"items": [{"a": 1}]})])
    assert cluster(answers, waited).list_all(GRPC_ROUTE) == [{"a": 1}]
    assert waited == [1.0, MAX_WAIT_SECONDS]


@pytest.mark.parametrize(
    ("seconds", "num_waits"),
    [
        pytest.param("1", MAX_ATTEMPTS - 1, id="for as long as it may take"),
        pytest.param(None, 0, id="where it says when"),
        pytest.param("soon", 0, id="in seconds"),
    ],
)
def test_but_not_for_ever(seconds: str | None, num_waits: int) -> None:
    waited: list[float] = []
    answers = iter(busy(seconds) for _ in range(MAX_ATTEMPTS))
    with pytest.raises(Unreachable, match="GET grpcroutes: storage is"):
        cluster(answers, waited).list_all(GRPC_ROUTE)
    assert len(waited) == num_waits
