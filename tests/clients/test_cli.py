"""`qwen3-vl describe` as people and scripts call it: the command, against the real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from model.client.arguments import QUESTION_FLAGS, STYLES
from model.serving.describe_body import OPTION_FIELDS
from model.serving.styles import STYLES as SERVER_STYLES
from tests.clients.command import (
    COMMAND,
    DESCRIPTIONS,
    FIRST,
    LONG,
    NOWHERE,
    SAMPLES,
    described,
    json_lines,
    started,
    terminal,
    text_of,
)
from tests.clients.scripted_server import Reply, scripted
from tests.serving import ROOT

if TYPE_CHECKING:
    from tests.serving import RunningServer


# Pictures in, text out


def test_one_picture_is_its_description_and_nothing_else(server: RunningServer) -> None:
    ended = described(SAMPLES[0], url=server.http_address)
    assert text_of(ended) == f"{FIRST}\n"
    assert ended.stderr == b""


def test_the_installed_command_is_the_same(server: RunningServer) -> None:
    command = Path(sys.executable).with_name("qwen3-vl")
    if not command.exists():
        pytest.skip("the package is not installed")
    ended = subprocess.run(
        [command, "describe", SAMPLES[0], "--url", server.http_url],
        capture_output=True,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert text_of(ended) == f"{FIRST}\n"


def test_several_are_labelled_and_in_the_order_given(server: RunningServer) -> None:
    pictures = list(reversed(SAMPLES))
    printed = text_of(described(*pictures, url=server.http_url))
    assert printed.splitlines() == [f"{one}: {DESCRIPTIONS[one.name]}" for one in pictures]


def test_globs_folders_and_standard_input(server: RunningServer, tmp_path: Path) -> None:
    for path in ("a.JPG", "b/c.jpg", "b/.hidden.jpg", ".d/e.jpg", "b/notes.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(SAMPLES[0].read_bytes())
    found = described("-r", tmp_path, f"{tmp_path}/*.JPG", "-", "--json",
                      url=server.http_url, stdin=SAMPLES[1].read_bytes())  # fmt: skip
    answers = json_lines(text_of(found).encode())
    assert [one["path"] for one in answers] == [f"{tmp_path}/a.JPG", f"{tmp_path}/b/c.jpg", "-"]
    assert answers[2]["description"] == DESCRIPTIONS[SAMPLES[1].name]


def test_together_is_one_answer_about_all(server: RunningServer) -> None:
    [answer] = json_lines(
        text_of(described("--together", "--json", *SAMPLES[:2], url=server.http_url)).encode()
    )
    assert answer["paths"] == [str(path) for path in SAMPLES[:2]]
    assert len(answer["images"]) == 2


def test_a_prompt_and_parameters_reach_the_model(server: RunningServer) -> None:
    [answer] = json_lines(
        text_of(
            described(
                *(SAMPLES[0], "--json", "--prompt", "What color is the background?"),
                *("--max-tokens", 7, "--ignore-eos", "--temperature", "0.5", "--seed", 1),
                *("--max-pixels", 128 * 128, "--logit-bias", '{"5": -1}', "--stop", "zzz"),
                url=server.http_url,
            )
        ).encode()
    )
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["finish_reason"] == "length"
    assert answer["images"][0]["seen_width"] <= 128
    assert "color" not in answer["description"]


def test_every_field_of_the_request_has_a_flag() -> None:
    flags = {name for group in QUESTION_FLAGS.values() for name in group}
    # --timeout counts more than the queue, --stream is about the output, pictures are no flag.
    others = {"image", "stream", "timeout_seconds"}
    assert flags == {"prompt", "image", *OPTION_FIELDS} - others
    assert tuple(STYLES) == tuple(SERVER_STYLES)


def test_text_is_printed_as_it_comes(server: RunningServer) -> None:
    pieces, times = [], []
    with started(SAMPLES[0], "--stream", "--url", server.http_url) as process:
        while piece := os.read(process.stdout.fileno(), 4096):
            pieces.append(piece)
            times.append(time.monotonic())
        assert process.wait(10) == 0
    assert b"".join(pieces).decode() == f"{FIRST}\n"
    assert len(pieces) > 3
    assert times[-1] - times[0] > 0.01


# JSON lines and files


def test_json_is_one_object_a_picture_in_order_with_errors_among_them(
    server: RunningServer, tmp_path: Path
) -> None:
    text = tmp_path / "notes.jpg"
    text.write_text("no picture")
    missing = tmp_path / "missing.jpg"
    ended = described(SAMPLES[0], text, missing, SAMPLES[1], "--json", url=server.http_url)
    assert ended.returncode == 1
    first, refused, unreadable, last = json_lines(ended.stdout)
    assert (first["path"], first["description"]) == (str(SAMPLES[0]), FIRST)
    assert {"usage", "timings", "finish_reason", "images", "id", "model"} <= first.keys()
    assert (refused["status"], "not a JPEG" in refused["error"]) == (400, True)
    assert unreadable == {"path": str(missing), "error": "No such file or directory"}
    assert last["description"] == DESCRIPTIONS[SAMPLES[1].name]
    assert ended.stderr == b"qwen3-vl: 2 of 4 are not described\n"


def test_as_text_errors_are_on_standard_error(server: RunningServer, tmp_path: Path) -> None:
    ended = described(SAMPLES[0], tmp_path / "no.jpg", url=server.http_url)
    assert ended.returncode == 1
    assert ended.stdout.decode() == f"{SAMPLES[0]}: {FIRST}\n"
    assert f"{tmp_path}/no.jpg: No such file or directory" in ended.stderr.decode()


def test_what_the_server_refuses_is_told_in_its_words(server: RunningServer) -> None:
    ended = described(SAMPLES[0], "--temperature", "99", url=server.http_url)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert b"temperature is 99.0; it must be from 0" in ended.stderr
    ended = described("https://example.com/a.jpg", url=server.http_url)
    assert ended.returncode == 1
    assert b"fetching is off" in ended.stderr


def test_a_second_run_asks_only_for_what_the_first_left_out(tmp_path: Path) -> None:
    pictures = [tmp_path / f"{name}.jpg" for name in "abcd"]
    for path in pictures:
        path.write_bytes(b"x")
    output = tmp_path / "answers.jsonl"
    again = (*pictures, "--json", "--output", output, "--skip-done", "--concurrency", "1")
    with scripted(Reply(), Reply.error(400, "no"), Reply()) as server:
        assert described(*again, url=server.url).returncode == 1
        assert len(server.questions) == 4
        # As if it had been killed while it wrote the last line.
        output.write_bytes(output.read_bytes()[:-10])
        assert described(*again, url=server.url).returncode == 0
        assert len(server.questions) == 6
        assert described(*again, url=NOWHERE).returncode == 0
    answers = json_lines(output.read_bytes())
    assert [Path(one["path"]).stem for one in answers if "description" in one] == list("acbd")


def test_a_file_of_something_else_is_not_appended_to(tmp_path: Path) -> None:
    output = tmp_path / "notes.txt"
    output.write_text("my notes\n")
    ended = described(SAMPLES[0], "--json", "-o", output, "--skip-done", url=NOWHERE)
    assert ended.returncode == 2
    assert b"notes.txt line 1 is not one of an earlier run" in ended.stderr
    assert output.read_text() == "my notes\n"


def test_a_full_disk_is_told(server: RunningServer) -> None:
    ended = described(*SAMPLES, "--output", "/dev/full", url=server.http_url)
    assert ended.returncode == 1
    assert ended.stderr == b"qwen3-vl: the answers cannot be written: No space left on device\n"


# Interrupts, pipes, terminals


def test_an_interrupt_cancels_what_runs(server: RunningServer) -> None:
    with started(*SAMPLES[:3], *LONG, "--url", server.http_url) as process:
        server.wait_until_running(3)
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == (b"", b"")
    assert process.returncode == 130
    server.wait_until_idle()


def test_a_reader_that_goes_ends_it_quietly(server: RunningServer) -> None:
    with started(*SAMPLES, "--concurrency", "1", "--url", server.http_url) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 141
    server.wait_until_idle()


def test_many_pictures_are_a_bar_on_a_terminal(server: RunningServer) -> None:
    command = [*COMMAND, *SAMPLES, "--json", "--url", server.http_url]
    with terminal() as (screen, shown):
        ended = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=screen, timeout=60, check=True
        )
        bar = shown()
    assert f"{len(SAMPLES)}/{len(SAMPLES)}" in bar
    assert "picture" in bar
    assert [one["path"] for one in json_lines(ended.stdout)] == [str(path) for path in SAMPLES]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((SAMPLES[0],), id="one picture"),
        pytest.param((*SAMPLES, "--quiet"), id="quiet"),
        pytest.param((*SAMPLES, "--stream"), id="stream"),
    ],
)
def test_but_not_for(server: RunningServer, arguments: tuple[object, ...]) -> None:
    command = [*COMMAND, *map(str, arguments), "--url", server.http_url]
    with terminal() as (screen, shown):
        subprocess.run(command, stdout=subprocess.PIPE, stderr=screen, timeout=60, check=True)
        assert shown() == ""


def test_answers_and_bar_share_a_terminal(server: RunningServer) -> None:
    command = [*COMMAND, *SAMPLES, "--url", server.http_url]
    with terminal() as (screen, shown):
        subprocess.run(command, stdout=screen, stderr=screen, timeout=60, check=True)
        # What a bar leaves behind is overwritten before the answer's line begins.
        lines = [line.rpartition("\r")[2] for line in shown().replace("\r\n", "\n").split("\n")]
    for path in SAMPLES:
        assert f"{path}: {DESCRIPTIONS[path.name]}" in lines


def test_text_cannot_steer_a_terminal() -> None:
    text = "\x1b[2Ja cat\x07\r\x9b1m"
    with scripted(Reply(body=json.dumps({"description": text}).encode())) as server:
        command = [*COMMAND, str(SAMPLES[0]), "--url", server.url]
        with terminal() as (screen, shown):
            subprocess.run(command, stdout=screen, stderr=screen, timeout=60, check=True)
            assert shown() == "\ufffd[2Ja cat\ufffd\ufffd\ufffd1m\r\n"
        piped = described(SAMPLES[0], url=server.url)
    assert text_of(piped) == f"{text}\n", "a program gets it as it is"


# Speed


def test_it_starts_without_the_servers_libraries(server: RunningServer) -> None:
    program = (
        "import sys; from model.cli import main; status = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'kserve', 'numpy', 'pydantic', 'fastapi', 'grpc'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys(); sys.exit(status)"
    )
    command = [sys.executable, "-c", program, "describe", SAMPLES[0], "--url", server.http_url]
    subprocess.run(command, timeout=60, check=True, stdout=subprocess.DEVNULL)


def test_the_help_names_every_command_and_every_exit_status() -> None:
    command = [sys.executable, "-m", "model.cli"]
    overview = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert {"serve", "describe"} <= set(overview.stdout.split())
    help_text = text_of(described("--help"))
    for status in ("0", "1", "2", "3", "4", "130", "141"):
        assert re.search(rf"^  {status} |    {status} ", help_text, re.MULTILINE), status
