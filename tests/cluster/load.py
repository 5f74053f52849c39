"""A steady mixture of requests, and what became of each: for what must not lose any."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
import httpx

from tests.cluster.inference import MODEL, v2_request
from tests.server.grpc_client import Stub, infer_request, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_TOKENS: Final = 8
TIMEOUT_SECONDS: Final = 30.0
NUM_WORKERS: Final = 128


@dataclass(frozen=True)
class Outcome:
    """One request."""

    kind: str
    began: float  # time.monotonic()
    seconds: float
    answer: str  # what it said; empty where it failed
    failure: str  # empty where all went well

    @property
    def failed(self) -> bool:
        """Whether its client would call it failed."""
        return bool(self.failure)


@dataclass
class Load:
    """What has been sent so far."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failures(self) -> list[Outcome]:
        """Those that failed."""
        return [one for one in self.outcomes if one.failed]

    @property
    def error_ratio(self) -> float:
        """0–1; 0 where nothing was sent."""
        return len(self.failures) / len(self.outcomes) if self.outcomes else 0.0

    def since(self, moment: float) -> Load:
        """What began at this time.monotonic() or later."""
        return Load([one for one in self.outcomes if one.began >= moment])

    def summary(self) -> str:
        """How many of each kind, and why some failed."""
        sent = Counter(one.kind for one in self.outcomes)
        reasons = Counter(f"{one.kind}: {one.failure[:200]}" for one in self.failures)
        return f"{dict(sent)}, failed: {dict(reasons)}"


class V2Requests:
    """V2 in JSON, each over a connection of its own."""

    kind = "v2"

    def __init__(self, url: str, picture: bytes, headers: dict[str, str] | None = None) -> None:
        self._url = f"{url}/v2/models/{MODEL}/infer"
        self._body = v2_request(picture, max_tokens=MAX_TOKENS)
        self._headers = headers or {}

    def send(self) -> str:
        """The description."""
        answer = httpx.post(
            self._url,
            json=self._body,
            headers=self._headers,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        )
        answer.raise_for_status()
        outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
        return str(outputs["text"][0])


class StreamedChats:
    """OpenAI chat, streamed; cut short counts as failed."""

    kind = "stream"

    def __init__(self, url: str, picture: bytes, headers: dict[str, str] | None = None) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._headers = headers or {}
        image = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
        content = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": "Describe this image."},
        ]
        self._body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": MAX_TOKENS,
            "stream": True,
        }

    def send(self) -> str:
        """The whole text."""
        text, ended = "", False
        with httpx.stream(
            "POST",
            self._url,
            json=self._body,
            headers=self._headers,
            timeout=TIMEOUT_SECONDS,
            trust_env=False,
        ) as answer:
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
        if not ended:
            raise httpx.RemoteProtocolError("the stream ended before its end")
        return text


class GrpcRequests:
    """V2 over gRPC, on one channel."""

    kind = "grpc"

    def __init__(self, address: str, picture: bytes) -> None:
        self._stub = Stub(grpc.insecure_channel(address))
        self._request = infer_request(picture, parameters={})

    def send(self) -> str:
        """The description."""
        return text_of(self._stub.ModelInfer(self._request, timeout=TIMEOUT_SECONDS))


@contextmanager
def running_load(
    senders: Sequence[V2Requests | StreamedChats | GrpcRequests], *, per_second: float
) -> Iterator[Load]:
    """Send at this rate, in turn, whatever comes back; all have ended when this ends."""
    load, stopped = Load(), threading.Event()
    with ThreadPoolExecutor(NUM_WORKERS) as workers:

        def send_on_time() -> None:
            began = time.monotonic()
            for number, sender in enumerate(itertools.cycle(senders)):
                if stopped.wait(max(began + number / per_second - time.monotonic(), 0)):
                    return
                workers.submit(_send, sender, load)

        clock = threading.Thread(target=send_on_time)
        clock.start()
        try:
            yield load
        finally:
            stopped.set()
            clock.join()


def _send(sender: V2Requests | StreamedChats | GrpcRequests, load: Load) -> None:
    began = time.monotonic()
    answer = failure = ""
    try:
        answer = sender.send()
        failure = "" if answer else "an empty answer"
    except (httpx.HTTPError, grpc.RpcError, ValueError) as error:
        failure = f"{type(error).__name__}: {error}"
    load.outcomes.append(Outcome(sender.kind, began, time.monotonic() - began, answer, failure))


def _delta(event: dict[str, Any]) -> str:
    if "error" in event:
        raise ValueError(f"error in the stream: {event['error']}")
    choices = event.get("choices") or ()
    return "".join(choice["delta"].get("content") or "" for choice in choices)
