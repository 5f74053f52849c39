"""`make load`: the field's own load generators against the bundled server, one table for all.

perf_analyzer speaks V2, aiperf and guidellm OpenAI's chat with streams. Each runs in an environment
of its own (`make load-tools`), since their dependencies and ours exclude each other; none fetches
anything: the tokenizer is the bundled checkpoint's.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model.demo import CHECKPOINT_DIR, SAMPLES_DIR
from tests.bench import perf_analyzer
from tests.bench.client import MODEL_NAME
from tests.bench.rounds import progress
from tests.bench.servers import ROOT, free_port, our_server, running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.servers import RunningServer

CONCURRENCIES: Final = (1, 4, 16)
NUM_REQUESTS: Final = 64
# perf_analyzer divides by whole seconds: of few requests its rate would be far too low.
NUM_V2_REQUESTS: Final = 512
NUM_TOKENS: Final = 24
PROMPT: Final = "Describe this image."
AIPERF: Final = ROOT / ".venv-aiperf/bin/aiperf"
GUIDELLM: Final = ROOT / ".venv-guidellm/bin/guidellm"
HEAD: Final = (
    "| tool | protocol | concurrency | requests/s | latency p50 | TTFT p50 | ITL p50 |",
    "|---|---|---:|---:|---:|---:|---:|",
)
# aiperf takes a tokenizer by its hub name only; this is the bundled one's, in a cache of its own.
HUB_NAME: Final = "bundled/qwen3-vl"
REVISION: Final = "0" * 40
TOOL_SECONDS: Final = 300


class ToolFailed(Exception):
    """A load generator that ended with an error, or counted failed requests."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a tool says of one load, in milliseconds; None for what it does not measure."""

    tool: str
    protocol: str
    concurrency: int
    per_second: float
    latency: float
    ttft: float | None = None
    itl: float | None = None

    def __str__(self) -> str:
        times = (f"{one:.1f} ms" if one is not None else "" for one in (self.ttft, self.itl))
        return (
            f"| {self.tool} | {self.protocol} | {self.concurrency} | {self.per_second:.1f} | "
            f"{self.latency:.1f} ms | {' | '.join(times)} |"
        )


def main() -> None:
    """Run every tool that is installed, and print the table."""
    parser = argparse.ArgumentParser(prog="make load", description=__doc__)
    parser.add_argument("--only", choices=tuple(TOOLS), help="one tool (default: all)")
    only = parser.parse_args().only
    grpc_port = free_port()
    reports: list[Report] = []
    ours = our_server(CHECKPOINT_DIR, "auto", "--grpc_port", str(grpc_port))
    with running(ours) as server, tempfile.TemporaryDirectory() as name:
        for tool, (program, measure) in TOOLS.items():
            if only not in (None, tool):
                continue
            if not program.exists():
                progress(f"{tool} is left out: `make load-tools` installs it")
                continue
            folder = Path(name) / tool
            folder.mkdir()
            for report in measure(server, grpc_port, folder):
                progress(str(report))
                reports.append(report)
    progress("\n" + "\n".join((*HEAD, *map(str, reports))))


def pictures() -> list[bytes]:
    """The bundled samples."""
    return [file.read_bytes() for file in sorted(SAMPLES_DIR.glob("*.jpg"))]


def with_perf_analyzer(server: RunningServer, grpc_port: int, folder: Path) -> Iterator[Report]:
    """V2 over HTTP and gRPC; the whole answer counts, streamed or not."""
    questions = [(picture, PROMPT) for picture in pictures()]
    inputs = perf_analyzer.write_inputs(folder / "inputs.json", questions)
    http, grpc = f"127.0.0.1:{server.launch.port}", f"127.0.0.1:{grpc_port}"
    ways = {
        "V2, HTTP": ("-i", "http", "-u", http),
        "V2, gRPC": ("-i", "grpc", "-u", grpc),
        "V2, gRPC streams": ("-i", "grpc", "-u", grpc, "--streaming"),
    }
    for protocol, options in ways.items():
        for concurrency in CONCURRENCIES:
            [load] = perf_analyzer.measure(
                *("-m", MODEL_NAME, "--input-data", str(inputs), *options),
                *("--concurrency-range", str(concurrency), "--request-count", str(NUM_V2_REQUESTS)),
            )
            latency = load.p50 / 1000
            yield Report("perf_analyzer", protocol, concurrency, load.per_second, latency)


def with_aiperf(server: RunningServer, grpc_port: int, folder: Path) -> Iterator[Report]:
    """OpenAI's chat, with pictures of noise that it makes itself."""
    home = _hub_cache(folder)
    for concurrency in CONCURRENCIES:
        out = folder / str(concurrency)
        _run(
            *(str(AIPERF), "profile", "--model", MODEL_NAME, "--url", server.url),
            *("--endpoint-type", "chat", "--streaming", "--tokenizer", HUB_NAME),
            *("--image-batch-size", "1", "--image-width-mean", "192"),
            *("--image-height-mean", "192", "--prompt-input-tokens-mean", "16"),
            *("--output-tokens-mean", str(NUM_TOKENS), "--extra-inputs", "ignore_eos:true"),
            *("--use-server-token-count", "--concurrency", str(concurrency)),
            *("--warmup-request-count", "4", "--request-count", str(NUM_REQUESTS)),
            *("--ui", "none", "--output-artifact-dir", str(out)),
            folder=folder,
            HF_HOME=str(home),
        )
        figures = json.loads((out / "profile_export_aiperf.json").read_text())
        _check("aiperf", int(figures["request_count"]["avg"]))
        yield Report(
            "aiperf",
            "chat, SSE",
            concurrency,
            figures["request_throughput"]["avg"],
            figures["request_latency"]["p50"],
            figures["time_to_first_token"]["p50"],
            figures["inter_token_latency"]["p50"],
        )


def with_guidellm(server: RunningServer, grpc_port: int, folder: Path) -> Iterator[Report]:
    """OpenAI's chat, with the bundled samples."""
    data = folder / "questions.jsonl"
    data.write_text("".join(f"{json.dumps(one)}\n" for one in _questions(NUM_REQUESTS)))
    for concurrency in CONCURRENCIES:
        out = folder / f"{concurrency}.json"
        _run(
            *(str(GUIDELLM), "run", "--disable-console-interactive"),
            *("--backend", f"kind=openai_http,target={server.url},model={MODEL_NAME}"),
            *("--profile", f"kind=concurrent,streams={concurrency}"),
            *("--constraint", f"kind=max_requests,count={NUM_REQUESTS}"),
            *("--data", f"kind=json_file,path={data}", "--output", f"kind=json,path={out}"),
            *("--tokenizer", f"kind=hf_auto,model={CHECKPOINT_DIR}"),
            folder=folder,
        )
        [benchmark] = json.loads(out.read_text())["benchmarks"]
        figures = benchmark["metrics"]
        _check("guidellm", figures["request_totals"]["successful"])
        yield Report(
            "guidellm",
            "chat, SSE",
            concurrency,
            figures["requests_per_second"]["successful"]["mean"],
            figures["request_latency"]["successful"]["median"] * 1000,
            figures["time_to_first_token_ms"]["successful"]["median"],
            figures["inter_token_latency_ms"]["successful"]["median"],
        )


TOOLS: Final[dict[str, tuple[Path, Callable[[RunningServer, int, Path], Iterator[Report]]]]] = {
    "perf_analyzer": (perf_analyzer.PROGRAM, with_perf_analyzer),
    "aiperf": (AIPERF, with_aiperf),
    "guidellm": (GUIDELLM, with_guidellm),
}


def _questions(count: int) -> Iterator[dict[str, Any]]:
    samples = pictures()
    for number in range(count):
        encoded = base64.b64encode(samples[number % len(samples)]).decode()
        url = f"data:image/jpeg;base64,{encoded}"
        yield {"image": url, "prompt": PROMPT, "output_tokens_count": NUM_TOKENS}


def _hub_cache(folder: Path) -> Path:
    """A hub cache that holds the bundled checkpoint's tokenizer and nothing else."""
    home = folder / "hub-home"
    repository = home / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(REVISION)
    for file in (*CHECKPOINT_DIR.glob("*.json"), *CHECKPOINT_DIR.glob("*.jinja")):
        (snapshot / file.name).symlink_to(file)
    return home


def _run(*command: str, folder: Path, **environ: str) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} | environ,
        capture_output=True,
        text=True,
        timeout=TOOL_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise ToolFailed((done.stdout + done.stderr)[-4000:])


def _check(tool: str, num_answered: int) -> None:
    """Raise ToolFailed unless every request was answered."""
    if num_answered != NUM_REQUESTS:
        raise ToolFailed(f"{tool}: {num_answered} of {NUM_REQUESTS} requests were answered")


if __name__ == "__main__":
    main()
