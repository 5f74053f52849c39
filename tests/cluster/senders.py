"""Kinds of requests, as clients send them; the answer is whole, or something is raised."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import httpx

from model.serving.v2_proto import message_class
from tests.cluster.inference import MODEL, v2_request
from tests.server.grpc_client import Stub, infer_request, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from model.serving.v2_proto import Message

# Short: what is tried is the way to the server, and its two cores are shared by all of the cluster.
MAX_TOKENS: Final = 8
TIMEOUT_SECONDS: Final = 60.0
NUM_RECONNECTS: Final = 3
# Else all channels of the process to one address are one connection.
OWN_CONNECTION: Final = (("grpc.use_local_subchannel_pool", 1),)


class Sender(Protocol):
    """One kind of request. `send` raises whatever went wrong."""

    kind: str

    def send(self) -> str:
        """The answer's text."""

    def close(self) -> None:
        """Close the connections that are kept."""


@dataclass(frozen=True)
class Connecting:
    """How a client connects.

    kept: its connections are kept, as most clients do; else each request has one of its own
    reconnects: a connection that is refused is tried again, as nothing has been sent
    """

    kept: bool = False
    reconnects: bool = False

    def kind(self, name: str) -> str:
        """The name of a kind of requests that are sent so."""
        return f"{name} kept" if self.kept else name


NEW: Final = Connecting()


class _HttpSender:
    """A kind of HTTP request."""

    name: str

    def __init__(self, connecting: Connecting, headers: dict[str, str] | None = None) -> None:
        self.kind = connecting.kind(self.name)
        transport = httpx.HTTPTransport(
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=None if connecting.kept else 0),
            retries=NUM_RECONNECTS if connecting.reconnects else 0,
        )
        self._client = httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, transport=transport)

    def close(self) -> None:
        """Close the connections that are kept."""
        self._client.close()


class V2Requests(_HttpSender):
    """V2 in JSON."""

    name = "v2"

    def __init__(
        self,
        url: str,
        picture: bytes,
        headers: dict[str, str] | None = None,
        *,
        connecting: Connecting = NEW,
    ) -> None:
        super().__init__(connecting, headers)
        self._url = f"{url}/v2/models/{MODEL}/infer"
        self._body = v2_request(picture, max_tokens=MAX_TOKENS)

    def send(self) -> str:
        """The description."""
        answer = self._client.post(self._url, json=self._body)
        answer.raise_for_status()
        outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
        return str(outputs["text"][0])


class Describes(_HttpSender):
    """The plain endpoint, with a form as curl sends it."""

    name = "describe"

    def __init__(self, url: str, picture: bytes, *, connecting: Connecting = NEW) -> None:
        super().__init__(connecting)
        self._url = f"{url}/api/v1/describe"
        self._picture = picture

    def send(self) -> str:
        """The description."""
        form = {"max_tokens": str(MAX_TOKENS)}
        answer = self._client.post(self._url, files={"image": self._picture}, data=form)
        answer.raise_for_status()
        return str(answer.json()["description"])


class StreamedChats(_HttpSender):
    """OpenAI chat, streamed; cut short counts as failed.

    on_event: called as each piece of the text comes
    """

    name = "stream"

    def __init__(
        self,
        url: str,
        picture: bytes,
        headers: dict[str, str] | None = None,
        *,
        connecting: Connecting = NEW,
        max_tokens: int = MAX_TOKENS,
        on_event: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(connecting, headers)
        self._url = f"{url}/v1/chat/completions"
        self._on_event = on_event
        image = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": "Describe this image."},
        ]
        self._body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "stream": True,
        }

    def send(self) -> str:
        """The whole text."""
        text, ended = "", False
        with self._client.stream("POST", self._url, json=self._body) as answer:
            if not answer.is_success:
                raise httpx.HTTPStatusError(
                    f"{answer.status_code} {answer.read()[:200]!r}",
                    request=answer.request,
                    response=answer,
                )
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    text += _delta(json.loads(line.removeprefix("data: ")))
                    self._on_event()
        if not ended:
            raise httpx.RemoteProtocolError("the stream ended before its end")
        return text


class GrpcRequests:
    """V2 over gRPC."""

    name = "grpc"

    def __init__(self, address: str, picture: bytes, *, connecting: Connecting = NEW) -> None:
        self.kind = connecting.kind(self.name)
        self._address = address
        self._options = {"timeout": TIMEOUT_SECONDS, "wait_for_ready": connecting.reconnects}
        self._kept = grpc.insecure_channel(address, OWN_CONNECTION) if connecting.kept else None
        self._request = infer_request(picture, parameters=_parameters(MAX_TOKENS))

    def send(self) -> str:
        """The description."""
        if self._kept is not None:
            return self._ask(Stub(self._kept))
        with grpc.insecure_channel(self._address, OWN_CONNECTION) as channel:
            return self._ask(Stub(channel))

    def close(self) -> None:
        """Close the channel that is kept."""
        if self._kept is not None:
            self._kept.close()

    def _ask(self, stub: Stub) -> str:
        return text_of(stub.ModelInfer(self._request, **self._options))


class GrpcStreams(GrpcRequests):
    """V2 over gRPC, the answer streamed; cut short counts as failed.

    on_event: called as each piece of the text comes
    """

    name = "grpc stream"

    def __init__(
        self,
        address: str,
        picture: bytes,
        *,
        connecting: Connecting = NEW,
        max_tokens: int = MAX_TOKENS,
        on_event: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(address, picture, connecting=connecting)
        self._request = infer_request(picture, parameters=_parameters(max_tokens))
        self._on_event = on_event

    def _ask(self, stub: Stub) -> str:
        text, ended = "", False
        for message in stub.ModelStreamInfer(iter([self._request]), **self._options):
            if message.error_message:
                raise ValueError(message.error_message)
            answer = message.infer_response
            if answer.parameters["triton_final_response"].bool_param:
                ended = True
            else:
                text += text_of(answer)
                self._on_event()
        if not ended:
            raise ValueError("the stream ended before its end")
        return text


def _parameters(max_tokens: int) -> dict[str, Message]:
    value = message_class("InferParameter")
    return {
        "max_tokens": value(int64_param=max_tokens),
        "ignore_eos": value(bool_param=True),
        "triton_enable_empty_final_response": value(bool_param=True),
    }


def _delta(event: dict[str, Any]) -> str:
    if "error" in event:
        raise ValueError(f"error in the stream: {event['error']}")
    choices = event.get("choices") or ()
    return "".join(choice["delta"].get("content") or "" for choice in choices)
