"""The two parsers that read a client's bytes most directly: pictures and binary tensors.

Each is fuzzed in a process of its own, with bounded memory and time; and each fuzzer must find a
fault that is planted.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.mutations import FUZZ_SECONDS
from tests.reliability.pictures import GIF
from tests.server.grpc_client import prefixed
from tests.serving import ROOT

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_INPUT_BYTES = 8192


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A fuzzer that has ended."""
    return subprocess.run(
        [sys.executable, "-m", f"tests.reliability.{module}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=FUZZ_SECONDS + 120,
        check=False,
    )


def test_mutated_pictures_are_decoded_or_refused() -> None:
    ended = run("fuzz_images", FUZZ_SECONDS)
    assert ended.returncode == 0, ended.stderr[-5000:]
    print(ended.stdout)
    seen = json.loads(ended.stdout.splitlines()[-1])
    assert seen["examples"] >= 200
    assert seen["decoded"] > 0
    assert seen["refused"] > 0


def test_a_fault_in_the_decoder_is_found() -> None:
    ended = run("fuzz_images", 60, "planted")
    assert ended.returncode == 1
    assert "IndexError: planted" in ended.stderr


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Good bodies to begin with."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number, elements in enumerate(((GIF,), (b"ab", b"c"), (b"",))):
        raw = prefixed(*elements)
        tensor = {"name": "image", "datatype": "BYTES", "shape": [len(elements)]}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps({"inputs": [tensor]}).encode()
        border = len(head).to_bytes(2, "little")
        (folder / f"whole-{number}").write_bytes(b"w" + border + head + raw)
        (folder / f"framed-{number}").write_bytes(b"f" + bytes([len(elements), 0]) + raw)
    return folder


def atheris(corpus: Path, seconds: float, *more: str) -> subprocess.CompletedProcess[str]:
    """The coverage-guided fuzzer, for a time."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed: it has no wheels for this Python or platform")
    flags = (
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={LONGEST_INPUT_BYTES}",
        # The fuzzer bounds its own memory: libFuzzer reads the peak that Linux carries over an
        # exec: this process's, where many models have been loaded.
        "-rss_limit_mb=0",
        "-timeout=5",
        f"-artifact_prefix={corpus.parent}/",
        "-print_final_stats=1",
    )
    return run("fuzz_tensors", *more, *flags, corpus)


def test_any_binary_tensors_are_read_or_refused(corpus: Path) -> None:
    ended = atheris(corpus, FUZZ_SECONDS)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-5000:]
    [runs] = [line for line in ended.stderr.splitlines() if "number_of_executed_units" in line]
    print(runs)
    assert int(runs.split()[-1]) >= 1000


def test_a_fault_in_the_parser_of_tensors_is_found(corpus: Path) -> None:
    ended = atheris(corpus, 60, "planted")
    assert ended.returncode != 0
    assert "IndexError: planted" in ended.stdout + ended.stderr
