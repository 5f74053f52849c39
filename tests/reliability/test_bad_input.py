"""Wrong input over every protocol: each fault with its status and its words, none of them a 5xx.

The tables are in faults.py (the same fault put to all protocols), bodies.py, v2_cases.py,
openai_cases.py and raw_requests.py. What is odd, but no fault, is described.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from tests.reliability.bodies import BODIES, FORMS, GOOD_FORMS, JSON_ROUTES
from tests.reliability.conftest import check_unharmed
from tests.reliability.faults import CASES, SAME_CLASS, said
from tests.reliability.openai_cases import CHAT_CASES, COMPLETION_CASES
from tests.reliability.pictures import ODD
from tests.reliability.protocols import ADDRESS, V2_PATH, WAYS, Ask, http_error
from tests.reliability.raw_requests import RAW, answer_to
from tests.reliability.v2_cases import BINARY_CASES, JSON_CASES, MESSAGES

if TYPE_CHECKING:
    from tests.reliability.bodies import Body
    from tests.reliability.faults import Fault
    from tests.reliability.protocols import Clients, Way
    from tests.reliability.raw_requests import Raw
    from tests.reliability.v2_cases import Message
    from tests.serving import RunningServer

# The bomb is smaller than what a job may have.
BODY_CASES = [
    (route, body)
    for route in JSON_ROUTES
    for body in BODIES
    if (body.status, route) != (413, "/api/v1/jobs")
]
OWN_CASES = [
    *((f"{V2_PATH}/infer", case) for case in (*JSON_CASES, *BINARY_CASES)),
    *(("/api/v1/describe", case) for case in FORMS),
    *(("/v1/chat/completions", case) for case in CHAT_CASES),
    *(("/v1/completions", case) for case in COMPLETION_CASES),
]


@pytest.mark.parametrize(
    ("fault", "way"), CASES, ids=[f"{fault} ({way.name})" for fault, way in CASES]
)
def test_a_fault_is_of_the_same_class_in_every_protocol(
    clients: Clients, fault: Fault, way: Way
) -> None:
    answer = way.send(clients, way.write(fault.ask))
    assert said(answer.text, fault.words(way)), answer
    assert not ADDRESS.search(answer.text)
    assert answer.status in (fault.status, SAME_CLASS[fault.status], None)


@pytest.mark.parametrize(
    ("route", "body"), BODY_CASES, ids=[f"{route}: {body}" for route, body in BODY_CASES]
)
def test_a_body_that_is_no_json_object(clients: Clients, body: Body, route: str) -> None:
    refused(clients, route, body)


@pytest.mark.parametrize(
    ("route", "body"), OWN_CASES, ids=[f"{route}: {body}" for route, body in OWN_CASES]
)
def test_a_fault_of_one_protocol(clients: Clients, route: str, body: Body) -> None:
    refused(clients, route, body)


@pytest.mark.parametrize("raw", RAW, ids=str)
def test_bytes_that_are_no_request(server: RunningServer, raw: Raw) -> None:
    status, body = answer_to(server, raw)
    assert status == raw.status, body
    assert raw.message in body


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_a_message_that_is_wrong(clients: Clients, message: Message) -> None:
    request = message.request
    data = request if isinstance(request, bytes) else request.SerializeToString()
    with pytest.raises(grpc.RpcError) as raised:
        clients.stub.raw("ModelInfer", data)
    assert raised.value.code().name == message.code
    assert said(raised.value.details(), message.message), raised.value.details()


@pytest.mark.parametrize("way", [way for way in WAYS if way.can_say(Ask((b"x",)))], ids=str)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_picture_is_a_picture(clients: Clients, way: Way, name: str) -> None:
    answer = way.send(clients, way.write(Ask((ODD[name],), parameters={"max_tokens": 2})))
    assert answer.status in (200, "OK"), answer


@pytest.mark.parametrize("form", GOOD_FORMS, ids=str)
def test_an_odd_form_is_a_form(clients: Clients, form: Body) -> None:
    response = clients.http.post("/api/v1/describe", content=form.content, headers=form.headers)
    assert response.is_success, response.text


def test_the_server_is_as_new(server: RunningServer) -> None:
    check_unharmed(server)


def refused(clients: Clients, route: str, body: Body) -> None:
    """Send a body; it must be refused as its case says."""
    answer = http_error(clients.http.post(route, content=body.content, headers=body.headers))
    assert answer.status == body.status, answer
    assert said(answer.text, body.message), answer
    assert not ADDRESS.search(answer.text)
