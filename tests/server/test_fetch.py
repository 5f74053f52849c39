"""A picture by URL over every protocol: the same picture, and the same refusals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import httpx
import pytest

from tests.picture_server import PictureServer, picture_server
from tests.server.grpc_client import Stub, infer_request, text_of
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.serving import RunningServer

    # Asks for a picture by its URL: the text, or the error's status and words.
    Ask: TypeAlias = Callable[[RunningServer, str], str | tuple[int, str]]


@pytest.fixture(scope="module")
def pictures(sample_image: bytes) -> Iterator[PictureServer]:
    with picture_server(sample_image) as running:
        yield running


@pytest.fixture(scope="module")
def fetching(pictures: PictureServer) -> Iterator[RunningServer]:
    """A server that may fetch from this machine, as only a test may."""
    with start_server(
        *("--image.url_domains", "127.0.0.1"),
        *("--image.url_ports", str(pictures.port)),
        *("--image.url_allow_private", "true"),
    ) as running:
        yield running


def post(server: RunningServer, path: str, **request: Any) -> Any:
    """The answer's JSON, or the error's status and words."""
    response = httpx.post(server.http_url + path, timeout=60, **request)
    answer = response.json()
    if response.is_success:
        return answer
    error = answer["error"]
    return response.status_code, error["message"] if isinstance(error, dict) else error


def picked(answer: Any, *path: str | int) -> Any:
    if isinstance(answer, tuple):
        return answer
    for key in path:
        answer = answer[key]
    return answer


def by_describe(server: RunningServer, url: str) -> Any:
    return picked(post(server, "/api/v1/describe", json={"image": url}), "description")


def by_form(server: RunningServer, url: str) -> Any:
    files = {"image": (None, url)}
    return picked(post(server, "/api/v1/describe", files=files), "description")


def by_stream(server: RunningServer, url: str) -> Any:
    body = {"image": url, "stream": True}
    headers = {"accept": "application/x-ndjson"}
    response = httpx.post(
        f"{server.http_url}/api/v1/describe", json=body, headers=headers, timeout=60
    )
    if response.is_error:
        return response.status_code, response.json()["error"]
    return json.loads(response.text.splitlines()[-1])["description"]


def by_batch(server: RunningServer, url: str) -> Any:
    [result] = post(server, "/api/v1/batch", json={"images": [url]})["results"]
    return (result["status"], result["error"]) if "error" in result else result["description"]


def by_v2(server: RunningServer, url: str) -> Any:
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [url]}
    answer = post(server, "/v2/models/qwen3-vl/infer", json={"inputs": [image]})
    return picked(answer, "outputs", 0, "data", 0)


def by_generate(server: RunningServer, url: str) -> Any:
    return picked(post(server, "/v2/models/qwen3-vl/generate", json={"image": url}), "text")


def by_grpc(server: RunningServer, url: str) -> Any:
    with grpc.insecure_channel(server.grpc_address) as channel:
        try:
            return text_of(Stub(channel).ModelInfer(infer_request(url.encode()), timeout=60))
        except grpc.RpcError as e:
            return {grpc.StatusCode.INVALID_ARGUMENT: 400}[e.code()], e.details()


def by_openai(server: RunningServer, url: str) -> Any:
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "Describe this image."},
    ]
    body = {"model": "qwen3-vl", "messages": [{"role": "user", "content": parts}]}
    return picked(
        post(server, "/v1/chat/completions", json=body), "choices", 0, "message", "content"
    )


PROTOCOLS = [
    pytest.param(ask, id=ask.__name__)
    for ask in (
        by_describe,
        by_form,
        by_stream,
        by_batch,
        by_v2,
        by_generate,
        by_grpc,
        by_openai,
    )
]


@pytest.mark.parametrize("ask", PROTOCOLS)
def test_a_picture_by_url_is_described_as_the_file_is(
    fetching: RunningServer, pictures: PictureServer, sample_image: bytes, ask: Ask
) -> None:
    files = {"image": sample_image}
    expected = post(fetching, "/api/v1/describe", files=files)["description"]
    assert ask(fetching, pictures.url("/redirect?to=/picture.jpg")) == expected


@pytest.mark.parametrize("ask", PROTOCOLS)
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://169.254.169.254:{port}/latest/", "a host that this server is set to fetch from"),
        ("http://127.0.0.1:22/", "image URL must have port {port}; it has 22"),
        ("http://127.0.0.1:{port}/secret", "leads to something that is not a JPEG, PNG"),
        ("http://127.0.0.1:{port}/missing", "was answered with status 404, not 200"),
    ],
)
def test_every_protocol_refuses_the_same_in_the_same_words(
    fetching: RunningServer, pictures: PictureServer, ask: Ask, url: str, message: str
) -> None:
    answer = ask(fetching, url.format(port=pictures.port))
    assert answer[0] == 400, answer
    assert message.format(port=pictures.port) in answer[1]


@pytest.mark.parametrize("ask", PROTOCOLS)
def test_no_protocol_fetches_unless_it_is_set_to(
    server: RunningServer, pictures: PictureServer, ask: Ask
) -> None:
    seen = len(pictures.requests)
    answer = ask(server, pictures.url("/picture.jpg"))
    assert answer[0] == 400, answer
    assert "fetching is off on this server" in answer[1]
    assert len(pictures.requests) == seen


def test_a_url_in_several_places_is_fetched_once(
    fetching: RunningServer, pictures: PictureServer
) -> None:
    url = pictures.url("/picture.jpg?several")
    answer = post(fetching, "/api/v1/describe", json={"image": [url, url, url]})
    assert len(answer["images"]) == 3
    assert [path for path, _ in pictures.requests].count("/picture.jpg?several") == 1


def test_a_client_that_goes_away_ends_the_fetching(
    fetching: RunningServer, pictures: PictureServer
) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{fetching.http_url}/api/v1/describe",
            json={"image": pictures.url("/slow")},
            timeout=0.5,
        )
    fetching.wait_until_idle()


def test_urls_are_kept_out_of_the_log(fetching: RunningServer, pictures: PictureServer) -> None:
    by_describe(fetching, pictures.url("/picture.jpg?signature=secret"))
    assert "secret" not in fetching.log()
