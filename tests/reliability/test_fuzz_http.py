"""Random bodies to every HTTP route: JSON with wrong values and wrong bytes, forms of any parts.

Passed when each is answered, refused as the client's fault in its route's own form, and the server
is as new.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

from tests.mutations import EDITS, VALUES, WORDS, changed, edited, fuzz, places
from tests.reliability.bodies import END, FORM, JSON_ROUTES, part
from tests.reliability.conftest import check_unharmed
from tests.reliability.pictures import GIF, JPEG, PNG
from tests.reliability.protocols import (
    V2_PATH,
    Ask,
    check_told,
    write_batch,
    write_chat,
    write_completions,
    write_describe,
    write_generate,
    write_v2_json,
)

if TYPE_CHECKING:
    from tests.reliability.protocols import Clients
    from tests.serving import RunningServer

# Few tokens: what is answered is not the point.
ASK: Final = Ask((GIF,), "What?", {"max_tokens": 2, "stop": ["a"], "logit_bias": {"5": 1.0}})
GOOD: Final[dict[str, dict[str, Any]]] = {
    request["url"]: json.loads(request["content"])
    for request in (
        write_v2_json(ASK),
        write_generate(ASK),
        write_generate(ASK, "generate_stream"),
        write_describe(ASK, stream=True, style="brief", language="German"),
        write_batch(ASK),
        write_batch(ASK, "/api/v1/jobs"),
        write_chat(ASK, n=2, stream=True, stream_options={"include_usage": True}),
        write_completions(ASK),
        {"url": "/tokenize", "content": '{"prompt": "a", "return_token_strs": true}'},
        {"url": "/detokenize", "content": '{"tokens": [1, 2]}'},
    )
}
assert GOOD.keys() == set(JSON_ROUTES)


@st.composite
def json_bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A route and a body for it with up to three wrong values, perhaps with wrong bytes as well."""
    route = draw(st.sampled_from(JSON_ROUTES))
    document = GOOD[route]
    for _ in range(draw(st.integers(1, 3))):
        where = draw(st.sampled_from(places(document) or [("x",)]))
        value = draw(VALUES)
        document = changed(document, where, value)
    if draw(st.integers(0, 5)) == 5:
        document = {**document, draw(st.sampled_from(WORDS)): draw(VALUES)}
    content = json.dumps(document).encode()
    return route, edited(content, draw(EDITS)) if draw(st.integers(0, 9)) == 9 else content


def test_json(clients: Clients, server: RunningServer) -> None:
    def check(sent: tuple[str, bytes]) -> None:
        route, content = sent
        headers = {"Content-Type": "application/json"}
        check_told(clients.http.post(route, content=content, headers=headers))

    assert fuzz(check, json_bodies()) >= 100
    check_unharmed(server)


FIELDS: Final = st.sampled_from(
    ["image", "prompt", "style", "stream", "stop", "seed", "max_tokens", "regex", "x", "", 'a"b']
)
CONTENTS: Final = st.sampled_from(
    [PNG, JPEG, GIF, b"", b"2", b"true", b"null", b"[1]", b"https://x/", b"\xff"]
) | st.binary(max_size=20)
PARTS: Final = st.builds(
    part,
    FIELDS,
    CONTENTS,
    st.sampled_from([b"Content-Type: image/png", b"X: y", b"Content-Type: a/b; charset=utf-16"]),
    filename=st.none() | st.sampled_from(["a.png", "", "../a", "🙂"]),
)


@st.composite
def forms(draw: st.DrawFn) -> tuple[str, bytes]:
    """A route and a form of up to six parts, perhaps with wrong bytes."""
    route = draw(st.sampled_from(["/api/v1/describe", "/api/v1/batch", "/api/v1/jobs"]))
    good = [
        part("image" if "describe" in route else "images", GIF, filename="a"),
        part("seed", b"1"),
    ]
    parts = draw(st.lists(PARTS, max_size=4))
    content = b"".join([*(good if draw(st.booleans()) else []), *parts, END])
    return route, edited(content, draw(EDITS)) if draw(st.booleans()) else content


def test_forms(clients: Clients, server: RunningServer) -> None:
    def check(sent: tuple[str, bytes]) -> None:
        route, content = sent
        url = f"{route}?x"
        check_told(clients.http.post(url, content=content, headers=FORM))

    assert fuzz(check, forms()) >= 100
    check_unharmed(server)


@st.composite
def binary_bodies(draw: st.DrawFn) -> tuple[bytes, str]:
    """A body of JSON and binary tensor data, and what its header says of their border."""
    raw = edited(len(GIF).to_bytes(4, "little") + GIF, draw(EDITS))
    # Mostly right: what is wrong before the elements hides them.
    size = draw(st.sampled_from([*[len(raw)] * 8, 0, -1, len(raw) + 1, 1 << 62, "4"]))
    shape = draw(st.sampled_from([[1], [1], [2], [1, 2]]) if draw(st.integers(0, 9)) else VALUES)
    tensor = {"name": "image", "datatype": "BYTES", "shape": shape}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": size}}]}).encode()
    wrong = [len(head) - 1, 0, len(head) + len(raw), 1 << 40]
    return head + raw, str(draw(st.sampled_from([*[len(head)] * 8, *wrong])))


def test_binary_tensors(clients: Clients, server: RunningServer) -> None:
    def check(sent: tuple[bytes, str]) -> None:
        content, border = sent
        headers = {"Inference-Header-Content-Length": border}
        check_told(clients.http.post(f"{V2_PATH}/infer", content=content, headers=headers))

    assert fuzz(check, binary_bodies()) >= 100
    check_unharmed(server)
