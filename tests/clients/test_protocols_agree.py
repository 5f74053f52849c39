"""200 questions over four protocols, whole and streamed: eight ways to ask, one answer.

Pictures and questions of the bundled model's own generator; greedy and seeded, with stop strings,
penalties and short limits among them.
"""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import httpx
import pytest

from model.demo.examples import PictureSettings, make_example
from model.serving.v2_proto import message_class
from tests.server.grpc_client import Stub, infer_request, prefixed, reason_of, text_of
from tests.serving import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from model.serving.v2_proto import Message
    from tests.serving import RunningServer

NUM_SCENES: Final = 50
QUESTIONS_A_SCENE: Final = 3  # and the description
SEED: Final = 20_260
THREADS: Final = 16
MODEL: Final = "qwen3-vl"


@dataclass(frozen=True)
class Question:
    """One request; parameters by the names that every protocol has."""

    picture: bytes
    prompt: str
    parameters: dict[str, Any]

    @property
    def base64(self) -> str:
        return base64.b64encode(self.picture).decode()


@dataclass(frozen=True)
class Answer:
    """What a client reads, put together from its pieces where it was streamed."""

    text: str
    finish_reason: str
    num_pieces: int = 1


def parameters(number: int) -> dict[str, Any]:
    """Of question `number`: every kind of sampling and of end."""
    match number % 5:
        case 0:
            return {}
        case 1:
            return {"temperature": 0.8, "seed": number}
        case 2:
            sampling = {"temperature": 3.0, "top_p": 0.95, "top_k": 40, "min_p": 0.001}
            return {**sampling, "seed": number, "max_tokens": 24}
        case 3:
            return {"temperature": 0, "max_tokens": 5, "ignore_eos": True}
        case _:
            penalties = {"repetition_penalty": 1.2, "presence_penalty": 0.5}
            return {**penalties, "temperature": 1.5, "seed": number, "max_tokens": 40, "stop": "e "}


def questions() -> list[Question]:
    settings = PictureSettings(num_questions=QUESTIONS_A_SCENE)
    examples = [make_example(SEED, index, settings) for index in range(NUM_SCENES)]
    asked = [(example.encoded, turn.prompt) for example in examples for turn in example.turns]
    return [
        Question(picture, prompt, parameters(number))
        for number, (picture, prompt) in enumerate(asked)
    ]


class Client:
    """All eight ways."""

    def __init__(self, server: RunningServer) -> None:
        self._http = httpx.Client(base_url=server.http_url, timeout=120)
        self._channel = grpc.insecure_channel(server.grpc_address)
        self._stub = Stub(self._channel)

    def close(self) -> None:
        self._http.close()
        self._channel.close()

    def _post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        answer = self._http.post(path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer

    def v2_http(self, question: Question) -> Answer:
        inputs = [
            _json_tensor("image", question.base64, {"content_type": "base64"}),
            _json_tensor("prompt", question.prompt, {}),
        ]
        body = {"inputs": inputs, "parameters": question.parameters}
        answer = self._post(f"/v2/models/{MODEL}/infer", body).json()
        found = {output["name"]: output["data"][0] for output in answer["outputs"]}
        return Answer(found["text"], found["finish_reason"])

    def v2_http_stream(self, question: Question) -> Answer:
        body = {"image": question.base64, "prompt": question.prompt, **question.parameters}
        answer = self._post(f"/v2/models/{MODEL}/generate_stream", body)
        events = _events(answer.text)
        return _joined([event["text"] for event in events], events[-1]["finish_reason"])

    def v2_grpc(self, question: Question) -> Answer:
        answer = self._stub.ModelInfer(_grpc_request(question))
        return Answer(text_of(answer), reason_of(answer))

    def v2_grpc_stream(self, question: Question) -> Answer:
        answers = []
        for answer in self._stub.ModelStreamInfer(iter([_grpc_request(question)])):
            assert not answer.error_message, answer.error_message
            answers.append(answer.infer_response)
        return _joined([text_of(answer) for answer in answers], reason_of(answers[-1]))

    def openai(self, question: Question) -> Answer:
        [choice] = self._post("/v1/chat/completions", _chat(question)).json()["choices"]
        return Answer(choice["message"]["content"], choice["finish_reason"])

    def openai_stream(self, question: Question) -> Answer:
        answer = self._post("/v1/chat/completions", {**_chat(question), "stream": True})
        choices = [event["choices"][0] for event in _events(answer.text)]
        pieces = [choice["delta"].get("content", "") for choice in choices]
        return _joined(pieces, choices[-1]["finish_reason"])

    def describe(self, question: Question) -> Answer:
        body = {"image": question.base64, "prompt": question.prompt, **question.parameters}
        answer = self._post("/api/v1/describe", body).json()
        return Answer(answer["description"], answer["finish_reason"])

    def describe_stream(self, question: Question) -> Answer:
        body = {"image": question.base64, "prompt": question.prompt, **question.parameters}
        answer = self._post("/api/v1/describe", body, accept="application/x-ndjson")
        lines = [json.loads(line) for line in answer.text.splitlines()]
        pieces = [line["text"] for line in lines if line["type"] == "delta"]
        return _joined(pieces, lines[-1]["finish_reason"])


# A question, and by protocol the whole answer and the streamed one.
Asked = tuple[Question, dict[str, tuple[Answer, Answer]]]

WAYS: Final[dict[str, Callable[[Client, Question], Answer]]] = {
    "V2 over HTTP": Client.v2_http,
    "V2 over gRPC": Client.v2_grpc,
    "OpenAI": Client.openai,
    "describe": Client.describe,
}
STREAMED: Final[dict[str, Callable[[Client, Question], Answer]]] = {
    "V2 over HTTP": Client.v2_http_stream,
    "V2 over gRPC": Client.v2_grpc_stream,
    "OpenAI": Client.openai_stream,
    "describe": Client.describe_stream,
}


def _json_tensor(name: str, value: str, tensor_parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": "BYTES",
        "shape": [1],
        "data": [value],
        "parameters": tensor_parameters,
    }


def _grpc_request(question: Question) -> Message:
    parameter = message_class("InferParameter")
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    inputs = [{"name": name, "datatype": "BYTES", "shape": [1]} for name in ("image", "prompt")]
    contents = [prefixed(question.picture), prefixed(question.prompt.encode())]
    return infer_request(
        question.picture,
        inputs=inputs,
        raw_input_contents=contents,
        parameters={
            name: parameter(**{kinds[type(value)]: value})
            for name, value in question.parameters.items()
        },
    )


def _chat(question: Question) -> dict[str, Any]:
    url = f"data:image/jpeg;base64,{question.base64}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": question.prompt},
    ]
    return {"messages": [{"role": "user", "content": content}], **question.parameters}


def _events(text: str) -> list[dict[str, Any]]:
    """The objects of server-sent events."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(item) for item in data if item != "[DONE]"]


def _joined(pieces: list[str], finish_reason: str) -> Answer:
    return Answer("".join(pieces), finish_reason, sum(bool(piece) for piece in pieces))


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """In float32: rounded to fewer bits, logits depend on how many rows are computed at once."""
    with start_server("--dtype", "float32") as running:
        yield running


@pytest.fixture(scope="module")
def answers(
    server: RunningServer,
) -> Iterator[list[Asked]]:
    """All of them, asked and answered side by side."""
    client = Client(server)

    def ask(question: Question) -> dict[str, tuple[Answer, Answer]]:
        return {
            name: (WAYS[name](client, question), STREAMED[name](client, question)) for name in WAYS
        }

    asked = questions()
    with ThreadPoolExecutor(THREADS) as threads:
        yield list(zip(asked, threads.map(ask, asked), strict=True))
    client.close()


def test_streams_are_the_whole_answers_in_pieces(answers: list[Asked]) -> None:
    for question, by_protocol in answers:
        for name, (whole, streamed) in by_protocol.items():
            assert streamed.text == whole.text, (name, question.prompt, question.parameters)
            assert streamed.finish_reason == whole.finish_reason, (name, question)


def test_four_protocols_give_the_same_answer(answers: list[Asked]) -> None:
    for question, by_protocol in answers:
        texts = {name: whole.text for name, (whole, _) in by_protocol.items()}
        assert len(set(texts.values())) == 1, (texts, question.prompt, question.parameters)
        assert len({whole.finish_reason for whole, _ in by_protocol.values()}) == 1


def test_the_200_answers_are_of_every_kind(answers: list[Asked]) -> None:
    wholes = [by_protocol["OpenAI"][0] for _, by_protocol in answers]
    assert len(wholes) == 200
    assert len({whole.text for whole in wholes}) > 100
    assert {whole.finish_reason for whole in wholes} == {"stop", "length"}
    for name in STREAMED:
        assert sum(by_protocol[name][1].num_pieces for _, by_protocol in answers) > 800
