"""tritonclient.grpc and tritonclient.grpc.aio (written with 2.73), each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.serving import RunningServer

    Scenario = Callable[[str], dict[str, Any]]

MODEL = "qwen3-vl"


@pytest.fixture
def scenario(server: RunningServer, sample_image: bytes, tmp_path: Path) -> Scenario:
    """Play one of triton_scenarios, and say what it saw."""
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(sample_image)

    def run(name: str) -> dict[str, Any]:
        module = "tests.clients.triton_scenarios"
        done = subprocess.run(
            [sys.executable, "-m", module, name, server.grpc_address, str(picture)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run


def test_what_the_server_and_the_model_say_of_themselves(scenario: Scenario) -> None:
    seen = scenario("about")
    assert (seen["live"], seen["ready"], seen["model_ready"]) == (True, True, True)
    assert "binary_tensor_data" in seen["server"]["extensions"]
    assert seen["metadata"]["versions"] == ["1"]
    assert [tensor["name"] for tensor in seen["metadata"]["inputs"]] == ["image", "prompt"]
    assert seen["config"]["config"]["backend"] == MODEL
    assert seen["index"]["models"] == [{"name": MODEL, "version": "1", "state": "READY"}]
    assert seen["statistics"]["model_stats"][0]["name"] == MODEL
    for status, message in seen["unsupported"]:
        assert status == "StatusCode.UNIMPLEMENTED"
        assert message.startswith("unsupported: ")


def test_requests_and_refusals(scenario: Scenario) -> None:
    seen = scenario("unary")
    assert seen["id"] == "7"
    assert len(seen["texts"]) == 2
    assert seen["finish_reason"] == ["length"] * 2
    assert len(seen["prompt_tokens"]) == 2
    assert seen["selected"] == ["completion_tokens"]
    # Not compared: in bfloat16 what is cached may decide a close call.
    assert all(len(text) > 10 for text in (*seen["compressed"], seen["priority"], seen["later"]))
    assert seen["asked"] != seen["later"]
    assert seen["typed"] == [4]
    assert seen["unknown_model"][0] == "StatusCode.NOT_FOUND"
    assert seen["unknown_version"][0] == "StatusCode.NOT_FOUND"
    assert seen["bad_value"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "top_p is 2" in seen["bad_value"][1]
    assert seen["shared_memory"][0] == "StatusCode.UNIMPLEMENTED"
    assert "not in shared memory" in seen["shared_memory"][1]


def test_streams(scenario: Scenario) -> None:
    seen = scenario("stream")
    for deltas in seen["deltas"].values():
        assert "".join(deltas) == seen["whole"]
        assert len(deltas) > 5
    assert seen["seconds"] > 0
    assert "'nope' is not served here" in seen["error"]


def test_leaving_cancels(server: RunningServer, scenario: Scenario) -> None:
    seen = scenario("cancel")
    assert "cancelled" in seen["call"].lower()
    assert seen["deadline"][0] == "StatusCode.DEADLINE_EXCEEDED"
    server.wait_until_idle()


def test_asyncio(server: RunningServer, scenario: Scenario) -> None:
    seen = scenario("aio")
    assert seen["ready"]
    assert len(set(seen["texts"])) == 1
    assert "".join(seen["deltas"]) == seen["texts"][0]
    assert "'nope' is not served here" in seen["refused"]
    server.wait_until_idle()
