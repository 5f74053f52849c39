"""One question in every protocol's own form, and its refusal in one form again.

So that one table of faults can be put to all of them.
"""

from __future__ import annotations

import base64
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import grpc
import httpx

from model.serving.v2_proto import message_class
from tests.server.grpc_client import MODEL, OPTIONS, Stub, prefixed
from tests.serving import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from tests.serving import RunningServer

# Of an object in memory, as Python's own texts hold them.
ADDRESS: Final = re.compile(r"0x[0-9a-f]{6}")
INSIDE: Final = re.compile(r'"status": ?5\d\d|"server_error"|internal error')
V2_PATH: Final = f"/v2/models/{MODEL}"
INT64: Final = range(-(1 << 63), 1 << 63)
UINT64: Final = range(1 << 64)


@dataclass(frozen=True)
class Ask:
    """What is asked: pictures as files, or as the text that stands for one (a URL, base64).

    parameters: by their names, as JSON has them
    """

    pictures: tuple[bytes | str, ...]
    prompt: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    model: str = MODEL


@dataclass(frozen=True)
class Answer:
    """HTTP's status or gRPC's code, and the text of the error or of the answer.

    status: None inside a gRPC stream, where errors have none
    """

    status: int | str | None
    text: str


class Unsayable(Exception):
    """A question that a protocol has no form for."""


class Clients:
    """Open connections to one server."""

    def __init__(self, http: httpx.Client, stub: Stub) -> None:
        self.http = http
        self.stub = stub

    @classmethod
    def of(cls, server: RunningServer) -> AbstractContextManager[Clients]:
        """Connect."""
        return cls.at(server.http_url, server.grpc_address)

    @classmethod
    @contextmanager
    def at(cls, url: str, grpc_address: str) -> Iterator[Clients]:
        """Connect to a server, or what stands before it."""
        with (
            httpx.Client(base_url=url, timeout=60, trust_env=False) as http,
            grpc.insecure_channel(grpc_address, options=OPTIONS) as channel,
        ):
            yield cls(http, Stub(channel))


@dataclass(frozen=True)
class Way:
    """A protocol: how a question is written, and how it is sent.

    family: protocols that use the same words
    write: raises Unsayable
    """

    name: str
    family: str
    write: Callable[[Ask], Any]
    send: Callable[[Clients, Any], Answer]

    def __str__(self) -> str:
        return self.name

    def can_say(self, ask: Ask) -> bool:
        """Whether the protocol has a form for a question."""
        try:
            self.write(ask)
        except Unsayable:
            return False
        return True


def text_of(picture: bytes | str) -> str:
    """A picture as JSON carries it."""
    return picture if isinstance(picture, str) else base64.b64encode(picture).decode()


def is_url(picture: bytes | str) -> bool:
    """Whether a picture is the text of a URL."""
    return isinstance(picture, str) and "://" in picture


def http_error(response: httpx.Response) -> Answer:
    """An answer of any HTTP route; an error must have its family's form."""
    if response.is_success:
        return Answer(response.status_code, response.text)
    error = response.json()["error"]
    return Answer(response.status_code, error["message"] if isinstance(error, dict) else error)


def check_told(response: httpx.Response) -> None:
    """Assert that a request was answered, or told in its route's form that it is wrong."""
    assert response.status_code < 500, response.text
    text = http_error(response).text
    assert not ADDRESS.search(text), text
    if not response.is_success:
        openai = response.request.url.path.startswith("/v1/")
        assert isinstance(response.json()["error"], dict if openai else str), response.text
        assert 0 < len(text) < 2000, text
    # What went wrong behind a status that was sent already.
    assert not INSIDE.search(text), text


# V2


def _shape(ask: Ask) -> list[int]:
    return [1] if len(ask.pictures) == 1 else [1, len(ask.pictures)]


def _tensor(ask: Ask) -> dict[str, Any]:
    """The image input, without its data. URLs go as they are, other text is called base64."""
    base64_text = any(isinstance(one, str) and not is_url(one) for one in ask.pictures)
    parameters = {"content_type": "base64"} if base64_text else {}
    return {"name": "image", "datatype": "BYTES", "shape": _shape(ask), "parameters": parameters}


def write_v2_json(ask: Ask) -> dict[str, Any]:
    tensor = _tensor(ask)
    if not any(is_url(one) for one in ask.pictures):
        tensor["parameters"] = {"content_type": "base64"}
    inputs = [{**tensor, "data": [text_of(one) for one in ask.pictures]}] if ask.pictures else []
    if ask.prompt is not None:
        prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": [ask.prompt]}
        inputs.append(prompt)
    content = json.dumps({"inputs": inputs, "parameters": ask.parameters})
    return {"url": f"/v2/models/{ask.model}/infer", "content": content}


def write_v2_binary(ask: Ask) -> dict[str, Any]:
    tensors, raws = [], []
    for tensor, raw in _raw_tensors(ask):
        tensor["parameters"]["binary_data_size"] = len(raw)
        tensors.append(tensor)
        raws.append(raw)
    head = json.dumps({"inputs": tensors, "parameters": ask.parameters}).encode()
    return {
        "url": f"/v2/models/{ask.model}/infer",
        "content": b"".join([head, *raws]),
        "headers": {"Inference-Header-Content-Length": str(len(head))},
    }


def _raw_tensors(ask: Ask) -> Iterator[tuple[dict[str, Any], bytes]]:
    if ask.pictures:
        elements = [one.encode() if isinstance(one, str) else one for one in ask.pictures]
        yield _tensor(ask), prefixed(*elements)
    if ask.prompt is not None:
        prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "parameters": {}}
        yield prompt, prefixed(ask.prompt.encode("utf-8", "surrogatepass"))


def write_generate(ask: Ask, verb: str = "generate") -> dict[str, Any]:
    images = [text_of(one) for one in ask.pictures]
    document: dict[str, Any] = {"parameters": ask.parameters}
    if images:
        document["image"] = images[0] if len(images) == 1 else [images]
    if ask.prompt is not None:
        document["prompt"] = ask.prompt
    return {"url": f"/v2/models/{ask.model}/{verb}", "content": json.dumps(document)}


def write_grpc(ask: Ask) -> Any:
    request = message_class("ModelInferRequest")(model_name=ask.model)
    for tensor, raw in _raw_tensors(ask):
        described = request.inputs.add(name=tensor["name"], datatype="BYTES", shape=tensor["shape"])
        for name, value in tensor["parameters"].items():
            described.parameters[name].string_param = value
        request.raw_input_contents.append(raw)
    for name, value in ask.parameters.items():
        field_name = _param_field(value)
        text = json.dumps(value) if isinstance(value, list | dict) else value
        setattr(request.parameters[name], field_name, text)
    return request


def _param_field(value: object) -> str:
    match value:
        case bool():
            return "bool_param"
        case int() if value in INT64:
            return "int64_param"
        case int() if value in UINT64:
            return "uint64_param"
        case float():
            return "double_param"
        case str() | list() | dict():
            return "string_param"
        case _:
            raise Unsayable


def send_http(clients: Clients, request: dict[str, Any]) -> Answer:
    """POST it."""
    return http_error(clients.http.post(**request))


def send_grpc(clients: Clients, request: Any) -> Answer:
    try:
        response = clients.stub.ModelInfer(request, timeout=60)
    except grpc.RpcError as e:
        return Answer(e.code().name, e.details())
    return Answer("OK", str(response.raw_output_contents[0][4:], "utf-8"))


def send_grpc_stream(clients: Clients, request: Any) -> Answer:
    answers = list(clients.stub.ModelStreamInfer(iter([request]), timeout=60))
    if answers[-1].error_message:
        return Answer(None, answers[-1].error_message)
    texts = [one.infer_response.raw_output_contents[0][4:] for one in answers]
    return Answer("OK", b"".join(texts).decode())


# describe and its like


def write_form(ask: Ask) -> dict[str, Any]:
    fields: list[tuple[str, Any]] = []
    for picture in ask.pictures:
        if isinstance(picture, str) and not is_url(picture):
            raise Unsayable
        fields.append(("image", (None, picture) if isinstance(picture, str) else picture))
    if ask.prompt is not None:
        fields.append(("prompt", (None, ask.prompt.encode("utf-8", "surrogatepass"))))
    for name, value in ask.parameters.items():
        several = value if name == "stop" and isinstance(value, list) else [value]
        if value is None or (name == "stop" and not isinstance(value, list | str)):
            raise Unsayable  # a form has only text there
        fields += [(name, (None, _form_text(one))) for one in several]
    return {"url": "/api/v1/describe", "files": fields}


def _form_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def write_describe(ask: Ask, **more: object) -> dict[str, Any]:
    document: dict[str, Any] = {**ask.parameters, **more}
    if ask.pictures:
        document["image"] = [text_of(one) for one in ask.pictures]
    if ask.prompt is not None:
        document["prompt"] = ask.prompt
    return {"url": "/api/v1/describe", "content": json.dumps(document)}


def write_batch(ask: Ask, url: str = "/api/v1/batch") -> dict[str, Any]:
    if len(ask.pictures) > 1:
        raise Unsayable
    document: dict[str, Any] = {**ask.parameters}
    if ask.pictures:
        document["images"] = [text_of(one) for one in ask.pictures]
    if ask.prompt is not None:
        document["prompts"] = [ask.prompt]
    return {"url": url, "content": json.dumps(document)}


def send_batch(clients: Clients, request: dict[str, Any]) -> Answer:
    """A batch's one result stands for the request."""
    response = clients.http.post(**request)
    if not response.is_success:
        return http_error(response)
    [result] = response.json()["results"]
    return Answer(result.get("status", 200), result.get("error", response.text))


def send_job(clients: Clients, request: dict[str, Any]) -> Answer:
    """The same as a job, waited for."""
    response = clients.http.post(**request)
    if response.status_code != HTTPStatus.ACCEPTED:
        return http_error(response)
    url = f"{response.headers['location']}/results"
    wait_for(lambda: clients.http.get(url).json()["next"] is None, "the job has ended")
    [result] = clients.http.get(url).json()["results"]
    return Answer(result.get("status", 200), result.get("error", ""))


# OpenAI


def write_chat(ask: Ask, **more: object) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": _picture_url(one)}} for one in ask.pictures
    ]
    if ask.prompt is not None:
        parts.append({"type": "text", "text": ask.prompt})
    messages = [{"role": "user", "content": parts}]
    document = {"model": ask.model, "messages": messages, **ask.parameters, **more}
    return {"url": "/v1/chat/completions", "content": json.dumps(document)}


def _picture_url(picture: bytes | str) -> str:
    if isinstance(picture, str) and (is_url(picture) or picture.startswith("data:")):
        return picture
    return f"data:image/png;base64,{text_of(picture)}"


def write_completions(ask: Ask) -> dict[str, Any]:
    """Prompt and parameters: completions take no pictures, and ask for nothing by themselves."""
    if ask.prompt is None and not ask.parameters:
        raise Unsayable
    document = {"model": ask.model, "prompt": ask.prompt or "A", **ask.parameters}
    return {"url": "/v1/completions", "content": json.dumps(document)}


WAYS: Final = (
    Way("V2 JSON", "v2", write_v2_json, send_http),
    Way("V2 binary", "v2", write_v2_binary, send_http),
    Way("generate", "v2", write_generate, send_http),
    Way("generate_stream", "v2", partial(write_generate, verb="generate_stream"), send_http),
    Way("gRPC", "v2", write_grpc, send_grpc),
    Way("gRPC stream", "v2", write_grpc, send_grpc_stream),
    Way("describe form", "describe", write_form, send_http),
    Way("describe JSON", "describe", write_describe, send_http),
    Way("describe stream", "describe", partial(write_describe, stream=True), send_http),
    Way("batch", "describe", write_batch, send_batch),
    Way("job", "describe", partial(write_batch, url="/api/v1/jobs"), send_job),
    Way("chat", "openai", write_chat, send_http),
    Way("chat stream", "openai", partial(write_chat, stream=True), send_http),
    Way("completions", "openai", write_completions, send_http),
)
