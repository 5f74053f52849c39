"""Every knob of the server: unit, default and reason, read once at the composition root.

From `QVL_SECTION__NAME` in the environment and `--section.name` on the command line; the command
line wins.
An unknown `QVL_*` variable or flag is refused: a misspelt limit must not silently be no limit.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_PREFIX = "QVL_"
MIB = 1 << 20


class UnknownSetting(ValueError):
    """An environment variable with our prefix that names no setting."""


class Dtype(StrEnum):
    """Number format of weights and KV cache."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class Quantization(StrEnum):
    """Bits of the decoder layers' weights."""

    NONE = "none"
    BITSANDBYTES_8BIT = "bitsandbytes-8bit"
    BITSANDBYTES_4BIT = "bitsandbytes-4bit"

    @classmethod
    def _missing_(cls, value: object) -> Quantization | None:
        # vLLM's name, which KServe's server hands on to it; it means 4 bits there too.
        return cls.BITSANDBYTES_4BIT if value == "bitsandbytes" else None


class Section(BaseModel):
    """A group of settings; closed and immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSettings(Section):
    """Which checkpoint is served, and how it is held."""

    dir: Path | None = Field(
        None,
        description="checkpoint folder; default: the bundled demo model (--model_dir is the same)",
    )
    id: str | None = Field(
        None, description="name on the model hub, fetched when no folder is given"
    )
    revision: str | None = Field(None, description="branch, tag or commit of --model_id")
    names: tuple[str, ...] = Field(
        ("qwen3-vl",), min_length=1, description="names clients may use; the first is the one shown"
    )
    device: str = Field(
        "auto",
        description="torch device: cpu, cuda, cuda:1 …; several with commas share the layers; "
        "auto takes CUDA where there is one, and more than one only for a model too large for it",
    )
    dtype: Dtype = Field(
        Dtype.AUTO,
        description="auto: the checkpoint's on CUDA; on CPU bfloat16 where the processor has "
        "instructions for it, else float32",
    )
    quantization: Quantization = Field(
        Quantization.NONE,
        description="bitsandbytes-8bit or bitsandbytes-4bit (bitsandbytes is the same): decoder "
        "layers take a half or a quarter of the memory, and longer",
    )


class EngineSettings(Section):
    """The continuous-batching engine."""

    max_batched_tokens: int | None = Field(
        None,
        ge=16,
        description="tokens a step computes at most: prefill speed against the ITL of others; "
        "default: 2048 on CUDA, 512 on CPU, where larger products are no faster",
    )
    max_encoder_tokens: int = Field(
        4096,
        ge=1,
        description="image tokens a step encodes at most; a single larger image still goes, alone",
    )
    max_sequences: int = Field(64, ge=1, description="sequences that run at once")
    max_queued_requests: int = Field(
        512, ge=1, description="sequences that may wait; more are answered with 429"
    )
    max_queued_image_tokens: int = Field(
        262_144,
        ge=1,
        description="image tokens that may wait: queued pictures are memory, about 3 KB a token; "
        "more are answered with 429, but never those that come when none wait",
    )
    max_queue_seconds: float | None = Field(
        None,
        gt=0,
        description="how long a request that names no limit may wait for its first step before it "
        "is answered with 504; default: as long as it takes",
    )
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="tokens of prompt and answer; default: the checkpoint's, at most 32768",
    )
    block_size: int = Field(16, ge=1, description="tokens of a KV block")
    prefix_cache: bool = Field(
        True, description="reuse the KV of equal beginnings of prompts, pictures included"
    )
    reference: bool = Field(
        False, description="run transformers' own modules: slower, to compare answers with"
    )
    embedding_cache_bytes: int = Field(
        256 * MIB, ge=0, description="memory for embeddings of pictures seen lately; 0: none"
    )
    kv_cache_bytes: int | None = Field(
        None,
        ge=1,
        description="memory of the KV cache; default: on CUDA what memory_ratio leaves, on CPU "
        "1 GiB or what max_sequences can use, whichever is less",
    )
    memory_ratio: float = Field(
        0.9, gt=0, le=1, description="share of the device's memory for weights, activations and KV"
    )
    stall_seconds: float = Field(
        120.0, gt=0, description="a step longer than this makes liveness fail: the device hangs"
    )


class ImageSettings(Section):
    """What pictures are let in, and how large the model sees them."""

    max_bytes: int = Field(10 * MIB, ge=1, description="encoded size of one picture, in bytes")
    max_source_pixels: int = Field(
        40_000_000, ge=1, description="width x height before resizing, read from the header first"
    )
    max_side: int = Field(16_384, ge=1, description="pixels of the longer side before resizing")
    max_aspect_ratio: float = Field(
        200.0,
        gt=1,
        description="longer over shorter side; the model's own limit, may only be lowered",
    )
    max_per_request: int = Field(8, ge=1, description="pictures in one prompt")
    min_pixels: int | None = Field(
        None,
        ge=1,
        description="pixels a picture is enlarged to; default: the checkpoint's processor",
    )
    max_pixels: int | None = Field(
        None, ge=1, description="pixels a picture is shrunk to; default: the checkpoint's processor"
    )
    url_domains: tuple[str, ...] = Field(
        (),
        description="hosts that pictures are fetched from: names, *.example.com for all below it, "
        "* for any public one; none: no URL is fetched, as a server that fetches what strangers "
        "name is a way into the network",
    )
    url_ports: tuple[int, ...] = Field(
        (80, 443), min_length=1, description="ports that a picture's URL may have"
    )
    url_allow_private: bool = Field(
        False,
        description="DANGEROUS, for tests and development: fetch from addresses inside the network "
        "and on this machine too, metadata services among them",
    )
    url_connect_seconds: float = Field(
        3.0, gt=0, description="how long connecting to a picture's host may take"
    )
    url_read_seconds: float = Field(
        5.0, gt=0, description="how long a picture's host may send nothing"
    )
    url_total_seconds: float = Field(
        10.0, gt=0, description="how long a picture's URL may take in all, redirects included"
    )
    url_max_redirects: int = Field(
        3, ge=0, description="redirects that a picture's URL may lead through, each judged anew"
    )


class RequestSettings(Section):
    """Limits of one request, checked before its body is held in memory."""

    max_body_bytes: int = Field(
        64 * MIB, ge=1, description="HTTP body or gRPC message: a batch of large pictures"
    )
    body_idle_seconds: float = Field(
        30.0, gt=0, description="how long an HTTP body may pause: slow senders, not absent ones"
    )
    max_head_bytes: int = Field(
        64 * 1024, ge=1024, description="an HTTP request's line and headers, of a stream's likewise"
    )
    head_seconds: float = Field(
        20.0, gt=0, description="how long these may take to arrive: slow senders, not absent ones"
    )
    send_idle_seconds: float = Field(
        60.0,
        gt=0,
        description="how long a client may read nothing of its answer: then it is cut off, "
        "since what it does not take is memory here",
    )
    max_batch: int = Field(32, ge=1, description="prompts in one V2 request or one batch")
    max_prompt_bytes: int = Field(
        32 * 1024, ge=1, description="UTF-8 bytes of the text of one prompt"
    )
    max_stop: int = Field(4, ge=0, description="stop strings of one request")
    default_max_tokens: int = Field(
        256, ge=1, description="completion tokens when the client names none"
    )
    default_prompt: str = Field(
        "Describe this image.", min_length=1, description="the prompt when the client sends none"
    )


class JobSettings(Section):
    """Batches that nobody waits for."""

    redis_url: SecretStr | None = Field(
        None,
        description="redis://, rediss:// or unix:// of a Redis that keeps jobs, so that every "
        "replica can tell of them and a restart does not lose them; default: memory",
    )
    max_pictures: int = Field(1000, ge=1, description="pictures in one job")
    max_body_bytes: int = Field(
        128 * MIB, ge=1, description="HTTP body of a job; more pictures than fit come as URLs"
    )
    max_unfinished: int = Field(
        16, ge=1, description="jobs of this server that wait or run; more are answered with 429"
    )
    max_waiting_bytes: int = Field(
        512 * MIB,
        ge=1,
        description="memory for the pictures of those jobs; more are answered with 429",
    )
    max_running_pictures: int = Field(
        8, ge=1, description="pictures of all jobs that are worked on at once, in turn"
    )
    keep_seconds: float = Field(
        24 * 3600.0, gt=0, description="how long results are kept once a job has ended"
    )
    max_kept: int = Field(
        1000, ge=1, description="jobs kept in memory; those that ended first make room"
    )
    max_result_bytes: int = Field(
        128 * MIB,
        ge=1,
        description="memory for results, where there is no Redis; those that ended first make room",
    )
    lease_seconds: float = Field(
        30.0,
        gt=0,
        description="how long a job counts as running without a sign of its server, with Redis",
    )


class ServerSettings(Section):
    """Listening, starting and stopping."""

    host: str = Field("0.0.0.0", description="address to listen on, HTTP and gRPC")
    http_port: int = Field(8080, ge=0, le=65535, description="HTTP port; 0 takes a free one")
    grpc_port: int = Field(8081, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    preprocess_threads: int = Field(
        max(2, min(8, os.cpu_count() or 2)), ge=1, description="threads that decode and tokenise"
    )
    unready_seconds: float = Field(
        0.0,
        ge=0,
        description="after SIGTERM: unready but still serving, while load balancers look away "
        "and kept connections move on (5 in Kubernetes); gRPC connections live half as long",
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="after that: how long running requests may take to finish"
    )
    keep_alive_seconds: int = Field(
        65, ge=1, description="idle HTTP connections are kept this long"
    )
    max_http2_streams: int = Field(
        256,
        ge=1,
        description="requests at once on one HTTP/2 connection: a gateway has few of them",
    )
    cors_origins: tuple[str, ...] = Field(
        (),
        description="origins whose pages may call this server from a browser, as "
        "https://app.example.com; * for any; default: none",
    )
    ui_url: str | None = Field(
        None,
        pattern=r"^https?://[^/\s]+(/\S*)?$",
        description="address of the page (make ui), where /ui leads; default: /ui says how to "
        "start it",
    )


class Settings(BaseSettings):
    """All of them."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
    )

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    image: ImageSettings = ImageSettings()
    request: RequestSettings = RequestSettings()
    jobs: JobSettings = JobSettings()
    server: ServerSettings = ServerSettings()


def environment_names() -> frozenset[str]:
    """Every environment variable that is a setting, upper case."""
    return frozenset(
        f"{ENV_PREFIX}{section}__{name}".upper()
        for section, info in Settings.model_fields.items()
        if isinstance(info.default, Section)
        for name in type(info.default).model_fields
    )


def refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """Raise UnknownSetting for a `QVL_*` variable that pydantic-settings would silently ignore."""
    known = environment_names()
    for variable in sorted(environ):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in known:
            raise UnknownSetting(f"{variable} is no setting; see qwen3-vl serve --help")
