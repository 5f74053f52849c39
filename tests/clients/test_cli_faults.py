"""`qwen3-vl describe` where something is wrong: exit statuses, busy and starting servers, streams
that break.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from model.cli import main
from tests.clients.command import (
    NOWHERE,
    SAMPLES,
    described,
    json_lines,
    started,
    text_of,
)
from tests.clients.scripted_server import Reply, scripted

if TYPE_CHECKING:
    from pathlib import Path


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param([], "PICTURE", id="no picture"),
        pytest.param(["{folder}"], "is a folder; --recursive", id="a folder"),
        pytest.param(["-r", "{folder}"], "no picture (.jpg", id="an empty folder"),
        pytest.param(["a.jpg", "--max-tokens", "ten"], "invalid int value: 'ten'", id="no number"),
        pytest.param(["a.jpg", "--style", "poem"], "invalid choice: 'poem'", id="style"),
        pytest.param(["a.jpg", "--json-schema", "{"], "cannot be read as JSON", id="JSON"),
        pytest.param(["a.jpg", "--json-schema", "@nope"], "No such file", id="JSON file"),
        pytest.param(["a.jpg", "--logit-bias", "[1]"], "is JSON, but no object", id="JSON list"),
        pytest.param(["a.jpg", "--url", "ftp://x"], "'ftp://x' is not an http", id="scheme"),
        pytest.param(["a.jpg", "--url", "http://x:99999"], "is not an http", id="port"),
        pytest.param(["a.jpg", "--stream", "--json"], "give one of them", id="stream and JSON"),
        pytest.param(
            ["a.jpg", "--stream", "--concurrency", "3"], "no effect", id="stream and concurrency"
        ),
        pytest.param(["a.jpg", "--concurrency", "0"], "not a number from 1", id="none at once"),
        pytest.param(["a.jpg", "--timeout", "nan"], "not a number of seconds", id="NaN"),
        pytest.param(["a.jpg", "--skip-done"], "needs --json and --output", id="skip done"),
        pytest.param(["a.jpg", "-o", "{folder}/x/y"], "No such file", id="no such output"),
        pytest.param(["a.jpg", "--frobnicate"], "unrecognized arguments", id="unknown flag"),
        pytest.param(["a.jpg", "--max-tok", "3"], "unrecognized arguments", id="abbreviation"),
        pytest.param(["a.jpg", "--api-key", "a\nb"], "printable ASCII", id="key"),
        pytest.param(
            ["a.jpg", "--url", NOWHERE, "--model_dir", "x"], "no effect with --url", id="both"
        ),
    ],
)
def test_a_wrong_command_line_is_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    given = [one.replace("{folder}", str(tmp_path)) for one in arguments]
    try:
        status: object = main(["describe", *given])
    except SystemExit as e:  # argparse's own way
        status = e.code
    printed = capsys.readouterr()
    assert (status, printed.out) == (2, "")
    assert message in printed.err


@pytest.mark.parametrize(
    ("url", "message"),
    [
        pytest.param(NOWHERE, "Connection refused", id="nobody listens"),
        pytest.param("http://nowhere.invalid", "nowhere.invalid: ", id="no such name"),
    ],
)
def test_no_server_is_status_3(url: str, message: str) -> None:
    ended = described(*SAMPLES, "--wait", "0", url=url)
    assert (ended.returncode, ended.stdout) == (3, b"")
    assert f"cannot reach {url}: " in ended.stderr.decode()
    assert message in ended.stderr.decode()
    assert f"{len(SAMPLES)} of {len(SAMPLES)} are not described" in ended.stderr.decode()


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param(Reply.error(503, "loading"), "is not ready: loading", id="not ready"),
        pytest.param(Reply(502, b"<h1>Bad\n gateway</h1>"), "502 Bad Gateway", id="a gateway"),
        pytest.param(Reply.error(404, "no route"), "describes no pictures: no route", id="404"),
        pytest.param(Reply(200, b"<html>"), "answered by something else", id="another server"),
        pytest.param(Reply(200, b"[1]"), "answered by something else", id="other JSON"),
        pytest.param(
            Reply(301, b"", {"Location": "https://x.example"}), "redirects to https", id="moved"
        ),
        pytest.param(Reply(cut=True), "cannot reach", id="cut off"),
    ],
)
def test_a_server_that_describes_nothing_is_status_3(reply: Reply, message: str) -> None:
    with scripted(reply) as server:
        ended = described(SAMPLES[0], "--wait", "0", url=server.url)
    assert (ended.returncode, ended.stdout) == (3, b"")
    assert message in ended.stderr.decode()


def test_a_refused_key_is_status_4_and_ends_the_run() -> None:
    with scripted(Reply.error(401, "unknown key")) as server:
        ended = described(*SAMPLES, "--concurrency", "1", "--json", url=server.url)
        assert len(server.questions) == 1
    assert (ended.returncode, ended.stdout) == (4, b"")
    assert b"refuses the API key: unknown key" in ended.stderr


def test_the_key_comes_from_the_environment_or_a_flag() -> None:
    with scripted(Reply()) as server:
        described(SAMPLES[0], url=server.url)
        described(SAMPLES[0], url=server.url, QWEN3_VL_API_KEY="of-environment\n")
        described(SAMPLES[0], "--api-key", "of-flag", url=server.url, QWEN3_VL_API_KEY="other")
    keys = [headers.get("authorization") for headers in server.headers]
    assert keys == [None, "Bearer of-environment", "Bearer of-flag"]


# Servers that are busy, slow, starting


def test_busy_and_starting_servers_are_asked_again_when_they_say() -> None:
    replies = (
        Reply.error(503, "the model is still loading", Retry_After="1"),
        Reply.error(429, "9 requests are queued", Retry_After="0"),
        Reply(),
    )
    with scripted(*replies) as server:
        started = time.monotonic()
        ended = described(SAMPLES[0], url=server.url)
        assert len(server.questions) == 3
    assert text_of(ended) == "a cat\n"
    assert time.monotonic() - started >= 1
    assert b"waiting: " in ended.stderr
    assert b"still loading" in ended.stderr


def test_a_server_that_starts_is_waited_for() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
    with started(SAMPLES[0], "--url", f"http://127.0.0.1:{port}", "--wait", "60") as process:
        assert b"Connection refused" in process.stderr.readline()
        with scripted(Reply(), port=port):
            assert process.communicate(timeout=30) == (b"a cat\n", b"")
    assert process.returncode == 0


def test_a_busy_server_is_given_up_at_the_timeout() -> None:
    with scripted(Reply.error(429, "queue is full", Retry_After="0.2")) as server:
        ended = described(SAMPLES[0], "--timeout", "1", "--json", url=server.url)
        assert len(server.questions) >= 2
    [answer] = json_lines(ended.stdout)
    assert ended.returncode == 1
    assert answer["error"] == "no answer in 1 s; the last try: queue is full"
    assert answer["status"] == 429


# Streams that break


def test_a_stream_ends_with_the_whole_answer() -> None:
    events = [
        {"type": "start", "id": "1"},
        {"type": "delta", "text": "a cat\u2028and"},
        {"type": "delta", "text": " a dog"},
        {"type": "end", "description": "a cat\u2028and a dog"},
    ]
    with scripted(Reply.events(*events)) as server:
        ended = described(SAMPLES[0], "--stream", url=server.url)
        assert server.questions[0]["stream"] is True
    assert text_of(ended) == "a cat\u2028and a dog\n"


@pytest.mark.parametrize(
    ("last", "cut", "message"),
    [
        pytest.param(
            {"type": "error", "error": "the engine failed", "status": 500},
            False,
            "the engine failed",
            id="an error on the way",
        ),
        pytest.param({"type": "delta", "text": ""}, False, "was cut off", id="no end"),
        pytest.param({"type": "delta", "text": ""}, True, "connection broke", id="no connection"),
    ],
)
def test_a_stream_that_breaks_is_a_failure_and_not_asked_again(
    last: dict[str, Any], cut: bool, message: str
) -> None:
    with scripted(Reply.events({"type": "delta", "text": "a c"}, last, cut=cut)) as server:
        ended = described(SAMPLES[0], "--stream", url=server.url)
        assert len(server.questions) == 1
    assert (ended.returncode, ended.stdout) == (1, b"a c\n")
    assert message in ended.stderr.decode()
