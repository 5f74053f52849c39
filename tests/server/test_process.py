"""The process: how it starts, what it says when it cannot, how it drains and ends."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest

from model.demo import CHECKPOINT_DIR
from model.serving.v2_proto import message_class
from tests.server.grpc_client import Stub, infer_request
from tests.serving import RunningServer, start_server, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NUM_TOKENS = 600
LONG_ANSWER = {"max_tokens": NUM_TOKENS, "ignore_eos": True}


def run_to_end(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "model", "--http_port", "0", "--grpc_port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environ,
        check=False,
    )


def test_unready_but_alive_while_it_loads() -> None:
    with start_server(wait_ready=False) as server:
        seen = set()
        for _ in range(2000):
            live = httpx.get(f"{server.http_url}/v2/health/live").status_code
            ready = httpx.get(f"{server.http_url}/v2/health/ready").status_code
            seen.add((live, ready))
            if ready == 200:
                break
            refused = httpx.post(f"{server.http_url}/api/v1/describe", json={"image": "AAAA"})
            if refused.status_code == 503:
                assert "still loading" in refused.json()["error"]
                assert int(refused.headers["retry-after"]) > 0
            time.sleep(0.02)
    assert seen == {(200, 503), (200, 200)}


def test_the_log_begins_with_what_runs_and_ends_with_a_line_to_paste() -> None:
    with start_server() as server:
        log = server.log()
    found = [log.index(word) for word in ("version ", "listening ", "model ", "device ", "memory ")]
    assert found[0] < found[1] < found[2] < found[3] < found[4] < log.index("ready ")
    assert f"http://localhost:{server.http_port}/api/v1/describe" in log


def test_sigterm_lets_http_and_grpc_finish_together(sample_image: bytes) -> None:
    with start_server() as server, ThreadPoolExecutor(8) as threads:
        streams = [threads.submit(stream_over_http, server, sample_image) for _ in range(3)]
        streams += [threads.submit(infer_over_grpc, server, sample_image) for _ in range(3)]
        server.wait_until_running(6)
        server.process.send_signal(signal.SIGTERM)
        assert refusal_of_a_new_request(server, sample_image) == 503
        answers = [stream.result(60) for stream in streams]
        assert server.process.wait(60) == 0
    assert answers == [(NUM_TOKENS, "length")] * 6


def test_a_second_signal_ends_it_at_once(sample_image: bytes) -> None:
    with start_server() as server, ThreadPoolExecutor(1) as threads:
        stream = threads.submit(stream_over_http, server, sample_image)
        server.wait_until_running(1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == -signal.SIGTERM
        with pytest.raises(httpx.TransportError):
            stream.result(10)


def test_what_does_not_finish_in_time_is_told_that_it_was_cancelled(sample_image: bytes) -> None:
    with (
        start_server("--server.drain-seconds", "0.05") as server,
        ThreadPoolExecutor(1) as threads,
    ):
        stream = threads.submit(stream_over_http, server, sample_image)
        server.wait_until_running(1)
        server.process.send_signal(signal.SIGTERM)
        num_tokens, reason = stream.result(30)
        assert server.process.wait(30) == 0
    assert (num_tokens < NUM_TOKENS, reason) == (True, "cancelled")


def test_sigterm_while_loading_ends_it() -> None:
    with start_server(wait_ready=False) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


@pytest.fixture
def process_one() -> Iterator[Callable[[], tuple[subprocess.Popen[str], int]]]:
    """Starts a server as the first process of a namespace, as a container's is; gives its pid."""
    unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    if os.geteuid() != 0 or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("needs root and process namespaces")
    started: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], int]:
        command = [*unshare, sys.executable, "-m", "model", "--http_port", "0", "--grpc_port", "0"]
        outer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        started.append(outer)
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        wait_for(lambda: children.read_text() != "", "unshare starts it")
        return outer, int(children.read_text())

    yield start
    for outer in started:
        outer.kill()
        outer.communicate()


def catches_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_process_one_is_ended_by_sigterm_while_it_imports(
    process_one: Callable[[], tuple[subprocess.Popen[str], int]],
) -> None:
    outer, pid = process_one()
    wait_for(lambda: catches_sigterm(pid), "it has a handler")
    os.kill(pid, signal.SIGTERM)
    _, log = outer.communicate(timeout=10)
    assert outer.returncode == 128 + signal.SIGTERM
    assert "listening" not in log


def test_process_one_is_ended_by_a_second_sigterm(
    process_one: Callable[[], tuple[subprocess.Popen[str], int]],
) -> None:
    outer, pid = process_one()
    assert outer.stderr is not None
    for line in outer.stderr:
        if "ready      in" in line:
            break
    os.kill(pid, signal.SIGTERM)
    while "draining" not in outer.stderr.readline():
        pass
    os.kill(pid, signal.SIGTERM)
    outer.communicate(timeout=10)
    assert outer.returncode == 128 + signal.SIGTERM


def test_a_server_that_has_stopped_is_gone_at_once() -> None:
    with start_server() as server:
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopped\n" in server.log(), "the server says that it has stopped")
        stopped = time.monotonic()
        assert server.process.wait(30) == 0
        # Taking torch's modules apart took 2 s.
        assert time.monotonic() - stopped < 1


def test_sigterm_ends_it_also_while_loading_hangs(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    os.mkfifo(folder / "config.json")  # as a network's file system that has gone away
    with start_server("--model_dir", str(folder), wait_ready=False) as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "stopped" in server.log()


def test_answers_do_not_wait_for_the_client_to_acknowledge_their_head(
    server: RunningServer,
) -> None:
    with httpx.Client(base_url=server.http_url) as client:
        seconds = []
        for _ in range(9):
            started = time.monotonic()
            assert client.post("/v2/repository/index").is_success
            seconds.append(time.monotonic() - started)
    assert sorted(seconds)[4] < 0.03, "40 ms is Nagle's algorithm against a delayed acknowledgement"


def test_a_taken_http_port_is_told_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_to_end("--http_port", str(port))
    assert ended.returncode == 1
    assert f"cannot listen on 0.0.0.0:{port} (HTTP): Address already in use" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_taken_grpc_port_is_told_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_to_end("--grpc_port", str(port))
    assert ended.returncode == 1
    assert f"cannot listen on 0.0.0.0:{port} (gRPC)" in ended.stderr
    assert "Traceback" not in ended.stderr


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def foreign(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(remove_folder, "is not a folder", id="no folder"),
        pytest.param(truncate, "model.safetensors", id="truncated weights"),
        pytest.param(remove_weights, "safetensors", id="no weights"),
        pytest.param(pickle_only, "safetensors", id="pickled weights only"),
        pytest.param(foreign, "model_type 'llama'", id="another architecture"),
    ],
)
def test_an_unusable_checkpoint_ends_it_with_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT_DIR, folder)
    spoil(folder)
    ended = run_to_end("--model_dir", str(folder))
    assert ended.returncode == 1
    [sentence] = [line for line in ended.stderr.splitlines() if "cannot serve" in line]
    assert message in sentence
    assert "Traceback" not in ended.stderr


def test_an_unknown_variable_ends_it_with_status_2() -> None:
    ended = run_to_end(QVL_ENGINE__MAX_SEQUENCE="3")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "QVL_ENGINE__MAX_SEQUENCE is no setting" in ended.stderr


def stream_over_http(server: RunningServer, image: bytes) -> tuple[int, str]:
    """Tokens and finish reason of a long streamed answer."""
    body = {"image": base64.b64encode(image).decode(), "parameters": LONG_ANSWER}
    url = f"{server.http_url}/v2/models/qwen3-vl/generate_stream"
    last: dict[str, object] = {}
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                last = json.loads(line.removeprefix("data: "))
    return int(str(last["completion_tokens"])), str(last["finish_reason"])


def infer_over_grpc(server: RunningServer, image: bytes) -> tuple[int, str]:
    """The same, unary over gRPC."""
    value = message_class("InferParameter")
    parameters = {
        "max_tokens": value(int64_param=LONG_ANSWER["max_tokens"]),
        "ignore_eos": value(bool_param=True),
    }
    with grpc.insecure_channel(server.grpc_address) as channel:
        answer = Stub(channel).ModelInfer(infer_request(image, parameters=parameters), timeout=60)
    raw = {
        output.name: bytes(content)
        for output, content in zip(answer.outputs, answer.raw_output_contents, strict=True)
    }
    return int.from_bytes(raw["completion_tokens"], "little"), raw["finish_reason"][4:].decode()


def refusal_of_a_new_request(server: RunningServer, image: bytes) -> int:
    """Readiness and a new request, while the old ones finish."""
    deadline = time.monotonic() + 5
    while httpx.get(f"{server.http_url}/v2/health/ready").status_code != 503:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return httpx.post(f"{server.http_url}/api/v1/describe", files={"image": image}).status_code
