"""The README's first lines, run as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.serving import ROOT

if TYPE_CHECKING:
    from tests.serving import RunningServer

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def at(server: RunningServer, text: str) -> str:
    """The README's text with this server's addresses."""
    return text.replace("localhost:8080", server.http_address).replace(
        "localhost:8081", server.grpc_address
    )


def test_the_curl_line_gives_the_answer_below_it(server: RunningServer) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    [command] = [block for block in blocks("sh") if block.startswith("curl ")]
    printed = subprocess.run(
        at(server, command), shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    [shown] = blocks("json")
    expected = json.loads(shown)
    answer = json.loads(printed.stdout)
    assert answer.keys() == expected.keys()
    for stable in ("model", "description", "finish_reason", "usage", "images"):
        assert answer[stable] == expected[stable]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_the_python_lines_work_over_both_protocols(server: RunningServer, protocol: str) -> None:
    [script] = [block for block in blocks("python") if "tritonclient" in block]
    if protocol == "grpc":
        script = script.replace("tritonclient.http", "tritonclient.grpc")
        script = script.replace("localhost:8080", "localhost:8081")
    assert printed_by(at(server, script)) == "Beige."


def test_the_openai_lines_work(server: RunningServer) -> None:
    [script] = [block for block in blocks("python") if "openai" in block]
    assert printed_by(at(server, script)) == "Beige."


def test_the_openai_curl_line_works(server: RunningServer) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    [command] = re.findall(r"^\| OpenAI \|[^|]*\| `(.*)` \|$", README, re.MULTILINE)
    command = command.replace("photo.jpg", "model/demo/samples/scene-00000.jpg")
    printed = subprocess.run(
        at(server, command), shell=True, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout)["choices"][0]["message"]["content"]


def printed_by(script: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
