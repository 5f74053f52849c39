"""/ui leads to the page where its address is known, and says how to start it where not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from model.serving.ui_link import ui_routes

if TYPE_CHECKING:
    from tests.serving import RunningServer


@pytest.mark.parametrize("path", ["/ui", "/ui/"])
def test_without_an_address_it_says_how_to_start_the_page(server: RunningServer, path: str) -> None:
    answer = httpx.get(server.http_url + path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert f"make ui API={server.http_url}" in answer.text


@pytest.mark.parametrize("path", ["/ui", "/ui/"])
def test_with_an_address_it_leads_there(path: str) -> None:
    answer = client("https://pages.example.org/ui/").get(path, follow_redirects=False)
    assert answer.status_code == 307
    assert answer.headers["location"] == "https://pages.example.org/ui/"


def test_a_strange_host_is_shown_as_text() -> None:
    answer = client(None).get("/ui", headers={"host": "x'><script>alert(1)</script>"})
    assert answer.status_code == 404
    assert "<script" not in answer.text


def client(ui_url: str | None) -> TestClient:
    return TestClient(Starlette(routes=ui_routes(ui_url)))
