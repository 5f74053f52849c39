"""What a route takes, which one is chosen, and whole numbers in queries."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from model.errors import InvalidRequest
from model.serving.body import install_error_handlers
from model.serving.routing import QueryInteger, Route, inference_first, routes_of

PAGE = QueryInteger("page", default=3, low=1, high=9)
AFTER = QueryInteger("after", default=0, low=0)


async def told(request: Request) -> Response:
    """The template of the route that was chosen, and what it found in the path."""
    return JSONResponse([request.scope["route"].path, request.path_params])


def client() -> TestClient:
    paths = (("GET", "/one/{name}"), ("DELETE", "/one/{name}"), ("GET", "/any/{name:path}"))
    app = Starlette(routes=[Route((method,), path, told) for method, path in paths])
    install_error_handlers(app)
    return TestClient(app, follow_redirects=False)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        pytest.param("GET", "/one/a", ["/one/{name}", {"name": "a"}], id="a part of a path"),
        pytest.param("DELETE", "/one/a", ["/one/{name}", {"name": "a"}], id="its other method"),
        pytest.param("GET", "/one/a%20b", ["/one/{name}", {"name": "a b"}], id="escaped"),
        pytest.param("GET", "/any/a/b/", ["/any/{name:path}", {"name": "a/b/"}], id="slashes"),
        pytest.param("GET", "/any/", ["/any/{name:path}", {"name": ""}], id="nothing"),
    ],
)
def test_a_handler_is_told_its_route_and_its_path(method: str, path: str, expected: Any) -> None:
    assert client().request(method, path).json() == expected


def test_a_slash_too_many_is_led_to_the_path_without() -> None:
    answer = client().get("/one/a/?b=1")
    assert answer.status_code == 307
    assert answer.headers["location"] == "http://testserver/one/a?b=1"


@pytest.mark.parametrize(
    ("path", "allowed"), [("/one/a", "DELETE, GET, HEAD"), ("/any/a", "GET, HEAD")]
)
def test_a_wrong_method_is_told_all_that_its_path_has(path: str, allowed: str) -> None:
    answer = client().post(path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json() == {"error": f"POST {path}: not allowed"}


def test_a_route_has_the_methods_that_it_was_given() -> None:
    """HEAD is the transport's: a route that had it would be described and counted with it."""
    assert Route(("GET",), "/", told).methods == {"GET"}
    assert client().head("/one/a").status_code == 405


def test_what_runs_the_model_comes_first_and_the_order_stays() -> None:
    routes = [Route(("GET",), f"/{name}", told, inference=name.isupper()) for name in "aBcD"]
    app = Starlette(routes=inference_first(routes))
    assert [route.path for route in routes_of(app)] == ["/B", "/D", "/a", "/c"]


@pytest.mark.parametrize(
    ("parameter", "query", "expected"),
    [
        pytest.param(PAGE, "", 3, id="not given"),
        pytest.param(PAGE, "page=1", 1, id="the least"),
        pytest.param(PAGE, "page=9", 9, id="the most"),
        pytest.param(PAGE, "page=0&page=2", 2, id="the last one counts"),
        pytest.param(PAGE, "page=007", 7, id="zeros before it"),
        pytest.param(AFTER, f"after={10**30}", 10**30, id="no bound"),
    ],
)
def test_a_whole_number_is_read(parameter: QueryInteger, query: str, expected: int) -> None:
    assert parameter.of(asked(query)) == expected


@pytest.mark.parametrize(
    ("parameter", "query", "error"),
    [
        pytest.param(
            PAGE,
            "page=0",
            "page is 0; it must be an integer of at least 1 and at most 9",
            id="less",
        ),
        pytest.param(
            PAGE,
            "page=10",
            "page is 10; it must be an integer of at least 1 and at most 9",
            id="more",
        ),
        pytest.param(
            PAGE,
            "page=",
            "page is ''; it must be an integer of at least 1 and at most 9",
            id="empty",
        ),
        pytest.param(
            AFTER, "after=-1", "after is -1; it must be an integer of at least 0", id="-1"
        ),
        pytest.param(AFTER, "after=1.5", "after is '1.5'; it must be", id="a fraction"),
        pytest.param(AFTER, "after=1_0", "after is '1_0'; it must be", id="an underscore"),
        pytest.param(AFTER, "after=%D9%A3", "after is '٣'; it must be", id="another script"),
        pytest.param(AFTER, "after=x%0Ay", r"after is 'x\ny'; it must be", id="a line's end"),
        pytest.param(AFTER, f"after={'9' * 5000}", "(5000 long); it must be", id="endless"),
    ],
)
def test_any_other_is_refused_by_name(parameter: QueryInteger, query: str, error: str) -> None:
    with pytest.raises(InvalidRequest) as told_:
        parameter.of(asked(query))
    assert error in str(told_.value)


def asked(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})
