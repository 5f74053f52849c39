"""The page's image: small, without the server's libraries, and the page in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from tests.image.conftest import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.image.conftest import Image
    from tests.image.containers import Container

MAX_BYTES = 600 * 10**6


@pytest.fixture(scope="module")
def page(page_image: Image) -> Iterator[Container]:
    """The page, against a server that is not there."""
    with page_image.run("--api=http://127.0.0.1:1") as container:
        container.wait_until("/health")
        yield container


def test_it_shows_the_page_and_is_healthy(page: Container) -> None:
    answer = httpx.get(page.http_url)
    assert answer.is_success
    assert "Qwen3-VL" in answer.text
    assert page.is_healthy()


def test_it_is_not_root_and_its_labels_are_those_of_the_build(
    page_image: Image, page: Container
) -> None:
    assert page.run("id", "-u").stdout.strip() == "10001"
    assert page_image.labels["version"] == LABELS["VERSION"]
    assert page_image.labels["title"] == "qwen3-vl-ui"


def test_it_is_small_and_knows_nothing_of_the_server(page_image: Image, page: Container) -> None:
    assert page_image.num_bytes < MAX_BYTES
    absent = "torch", "kserve", "model.serving", "model.runner", "model.demo"
    found = page.python(
        f"import importlib.util as u; print([n for n in {absent} if u.find_spec(n)])"
    )
    assert found == "[]"


def test_it_ends_with_0_on_a_stop(page_image: Image) -> None:
    with page_image.run() as container:
        container.wait_until("/health")
        assert container.stop() == 0
