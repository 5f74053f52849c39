"""`qwen3-vl describe` without a server: the model loaded into its own process."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.clients.command import DESCRIPTIONS, SAMPLES, described, json_lines, started, text_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving import RunningServer


def test_it_says_what_the_server_says(server: RunningServer) -> None:
    ended = described(*SAMPLES, "--json")
    text_of(ended)
    asked = described(*SAMPLES, "--json", url=server.http_url)
    for here, there in zip(json_lines(ended.stdout), json_lines(asked.stdout), strict=True):
        assert here.keys() == there.keys()
        for stable in ("path", "description", "finish_reason", "usage", "images", "model"):
            assert here[stable] == there[stable]


def test_progress_of_loading_is_on_standard_error() -> None:
    ended = described(SAMPLES[0], "--stream")
    assert text_of(ended) == f"{DESCRIPTIONS[SAMPLES[0].name]}\n"
    assert b"bundled demo model" in ended.stderr
    assert b"weights" in ended.stderr


def test_quiet_is_silent() -> None:
    ended = described(SAMPLES[0], "--quiet")
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_what_is_wrong_is_told_in_the_servers_words(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture")
    ended = described(tmp_path / "notes.jpg", SAMPLES[0], "--json", "--max-tokens", "5")
    assert ended.returncode == 1
    refused, answer = json_lines(ended.stdout)
    assert (refused["status"], "not a JPEG" in refused["error"]) == (400, True)
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        pytest.param({"QVL_MODEL__NAMES": "["}, "are JSON, as QVL_MODEL__NAMES=", id="broken JSON"),
        pytest.param({"QVL_MODEL__DIRR": "x"}, "QVL_MODEL__DIRR is no setting", id="unknown"),
    ],
)
def test_a_variable_that_is_no_setting_is_status_2(environ: dict[str, str], message: str) -> None:
    ended = described(SAMPLES[0], **environ)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert message in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr


def test_a_model_that_cannot_be_loaded_is_status_3() -> None:
    ended = described(SAMPLES[0], "--model-dir", "nowhere")
    assert (ended.returncode, ended.stdout) == (3, b"")
    assert ended.stderr == (
        b"qwen3-vl: nowhere is not a folder; --model_dir takes a Qwen3-VL checkpoint folder\n"
    )


@pytest.mark.parametrize("moment", ["it loads", "it answers"])
def test_an_interrupt_ends_it_while(moment: str) -> None:
    with started(*SAMPLES * 50, "--json") as process:
        # The log's first lines, or the first answer.
        (process.stderr if moment == "it loads" else process.stdout).readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, b"Traceback" in errors) == (130, False)
