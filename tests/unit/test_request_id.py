"""Every HTTP answer carries a request's name, whoever gave it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.testclient import TestClient

from model.errors import NotReady
from model.serving.body import install_error_handlers
from model.serving.request_id import RequestIds, request_id_of
from model.serving.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Scope


@pytest.fixture
def ended() -> list[tuple[str | None, int | None]]:
    """Route and status of every request that has ended."""
    return []


@pytest.fixture
def client(ended: list[tuple[str | None, int | None]]) -> TestClient:
    async def name(request: Request) -> Response:
        return JSONResponse({"id": request_id_of(request)})

    async def stream(request: Request) -> Response:
        return StreamingResponse(iter([b"a", b"b"]))

    async def refusing(request: Request) -> Response:
        raise NotReady("later")

    async def broken(request: Request) -> Response:
        raise RuntimeError

    handlers = (name, stream, refusing, broken)
    app = Starlette(routes=[Route(("GET",), f"/{one.__name__}", one) for one in handlers])
    install_error_handlers(app)

    def tell(scope: Scope, status: int | None) -> None:
        ended.append((getattr(scope.get("route"), "path", None), status))

    return TestClient(RequestIds(app, tell), raise_server_exceptions=False)


def test_every_end_is_told(client: TestClient, ended: list[tuple[str | None, int | None]]) -> None:
    for path in ("/name", "/stream", "/refusing", "/broken", "/nowhere"):
        client.get(path)
    expected = [("/name", 200), ("/stream", 200), ("/refusing", 503), ("/broken", 500), (None, 404)]
    assert ended == expected


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("a", id="one character"),
        pytest.param("A.b_c:d-9", id="every kind of character"),
        pytest.param("x" * 128, id="the longest"),
    ],
)
def test_a_clients_own_name_is_kept(client: TestClient, given: str) -> None:
    answer = client.get("/name", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == answer.json()["id"] == given


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 129, id="too long"),
        pytest.param("a b", id="a space"),
        pytest.param("a\tb", id="a tab"),
        pytest.param("é", id="not ASCII"),
        pytest.param("<script>", id="markup"),
        pytest.param(None, id="none"),
    ],
)
def test_any_other_is_replaced(client: TestClient, given: str | None) -> None:
    headers = {} if given is None else {b"x-request-id": given.encode("latin-1")}
    first, second = (client.get("/name", headers=headers).headers["x-request-id"] for _ in "ab")
    assert first != second
    assert len(first) == 32
    assert first.isalnum()


@pytest.mark.parametrize(
    ("path", "status"), [("/stream", 200), ("/refusing", 503), ("/nowhere", 404), ("/broken", 500)]
)
def test_every_kind_of_answer_carries_it(client: TestClient, path: str, status: int) -> None:
    answer = client.get(path, headers={"x-request-id": "mine"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (status, "mine")


def test_a_request_is_logged_with_its_name(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "model.serving.request_id"):
        client.get("/refusing", headers={"x-request-id": "mine"})
    assert "mine GET /refusing: 503, " in caplog.text
