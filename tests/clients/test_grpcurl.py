"""grpcurl (written with 1.9.3, built by Go into build/): reflection, health, calls from JSON.

Skipped where there is no Go; tests/server/test_v2_grpc.py asks reflection and health from Python.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.serving import RunningServer

    Grpcurl = Callable[..., subprocess.CompletedProcess[str]]

MODULE = "github.com/fullstorydev/grpcurl/cmd/grpcurl"
VERSION = "v1.9.3"
FOLDER = ROOT / "build" / f"grpcurl-{VERSION}"
SERVICE = "inference.GRPCInferenceService"
# On two cores beside other tests a first build takes minutes.
BUILD_SECONDS = 900

pytestmark = [
    pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed"),
    pytest.mark.timeout(BUILD_SECONDS + 60),
]


@pytest.fixture(scope="session")
def program() -> str:
    """The built program; a second run finds it there."""
    file = FOLDER / "grpcurl"
    if not file.exists():
        subprocess.run(
            ["go", "install", f"{MODULE}@{VERSION}"],
            env=os.environ | {"GOBIN": str(FOLDER), "GOFLAGS": "-mod=mod"},
            check=True,
            timeout=BUILD_SECONDS,
            capture_output=True,
        )
    return str(file)


@pytest.fixture
def grpcurl(program: str, server: RunningServer) -> Grpcurl:
    """Ask the server; arguments before the address, then what is asked, then the JSON."""

    def run(*arguments: str, ask: str, data: object = None) -> subprocess.CompletedProcess[str]:
        body = [] if data is None else ["-d", "@"]
        return subprocess.run(
            [program, "-plaintext", *arguments, *body, server.grpc_address, *ask.split()],
            input=None if data is None else json.dumps(data),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def request(picture: bytes, **parameters: dict[str, Any]) -> dict[str, Any]:
    contents = {"bytes_contents": [base64.b64encode(picture).decode()]}
    image = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": contents}
    return {
        "model_name": "qwen3-vl",
        "id": "g",
        "inputs": [image],
        "outputs": [{"name": "text"}],
        "parameters": parameters,
    }


def text_of(answer: dict[str, Any]) -> str:
    return base64.b64decode(answer["rawOutputContents"][0])[4:].decode()


def test_services_are_listed_and_described(grpcurl: Grpcurl) -> None:
    services = grpcurl(ask="list").stdout.split()
    assert services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ]
    methods = grpcurl(ask=f"list {SERVICE}").stdout.split()
    assert {f"{SERVICE}.ModelInfer", f"{SERVICE}.ModelStreamInfer"} <= set(methods)
    for symbol in (*services, *methods, "inference.ModelInferRequest", "inference.ModelConfig"):
        described = grpcurl(ask=f"describe {symbol}")
        assert described.returncode == 0, described.stderr
        assert symbol in described.stdout
    assert "not found" in grpcurl(ask="describe inference.Nope").stderr.lower()


def test_health(grpcurl: Grpcurl) -> None:
    for service in ("", SERVICE, "qwen3-vl"):
        answer = grpcurl(ask="grpc.health.v1.Health/Check", data={"service": service})
        assert json.loads(answer.stdout) == {"status": "SERVING"}
    assert json.loads(grpcurl(ask=f"{SERVICE}/ServerLive").stdout) == {"live": True}


def test_a_request_as_json(grpcurl: Grpcurl, sample_image: bytes) -> None:
    short = request(sample_image, max_tokens={"int64_param": 3})
    answer = grpcurl(ask=f"{SERVICE}/ModelInfer", data=short)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["id"] == "g"
    assert text_of(json.loads(answer.stdout))


def test_a_stream(grpcurl: Grpcurl, sample_image: bytes) -> None:
    whole = grpcurl(ask=f"{SERVICE}/ModelInfer", data=request(sample_image)).stdout
    streamed = grpcurl(ask=f"{SERVICE}/ModelStreamInfer", data=request(sample_image)).stdout
    decoder, pieces = json.JSONDecoder(), []
    while streamed.strip():
        answer, end = decoder.raw_decode(streamed.lstrip())
        pieces.append(text_of(answer["inferResponse"]))
        streamed = streamed.lstrip()[end:]
    assert len(pieces) > 5
    assert "".join(pieces) == text_of(json.loads(whole))


def test_refusals(grpcurl: Grpcurl, sample_image: bytes) -> None:
    unknown = grpcurl(ask=f"{SERVICE}/ModelMetadata", data={"name": "nope"})
    assert "Code: NotFound" in unknown.stderr
    bad = grpcurl(
        ask=f"{SERVICE}/ModelInfer", data=request(sample_image, max_tokens={"int64_param": 0})
    )
    assert "Code: InvalidArgument" in bad.stderr
    assert "max_tokens is 0" in bad.stderr
    assert "Code: Unimplemented" in grpcurl(ask=f"{SERVICE}/LogSettings").stderr
