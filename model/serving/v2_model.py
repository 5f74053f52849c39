"""What the V2 protocols need of the model, and what they say of it: metadata, configuration, state.

The answers are plain dicts named as in Triton's JSON, whose names are also the protobuf fields':
HTTP and gRPC cannot disagree about the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import model as package
from model.errors import ModelNotFound
from model.serving.contract import (
    BACKEND,
    INPUTS,
    NO_SHARED_MEMORY,
    OUTPUTS,
    PLATFORM,
    SERVER_EXTENSIONS,
    VERSION,
    TensorSpec,
)
from model.serving.lifecycle import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from kserve import InferRequest, InferResponse

    from model.serving.lifecycle import Lifecycle
    from model.serving.statistics import ModelStatistics
    from model.serving.tap import Tap


MODEL_STATES: Final = {
    Phase.LOADING: ("LOADING", ""),
    Phase.READY: ("READY", ""),
    Phase.UNREADY: ("UNLOADING", "the server is shutting down"),
    Phase.DRAINING: ("UNLOADING", "the server is shutting down"),
    Phase.STOPPED: ("UNAVAILABLE", "the server has shut down"),
    Phase.FAILED: ("UNAVAILABLE", "the model failed to load; see the server's log"),
}

_ONE_MODEL = "unsupported: this server serves the one model it was started with"
# gRPC methods that are not offered, and what is said instead.
UNSUPPORTED: Final = {
    "RepositoryModelLoad": _ONE_MODEL,
    "RepositoryModelUnload": _ONE_MODEL,
    **{
        f"{kind}SharedMemory{verb}": NO_SHARED_MEMORY
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "unsupported: tracing cannot be set while the server runs",
    "LogSettings": "unsupported: logging cannot be set while the server runs",
}


class Delta(NamedTuple):
    """One piece of a streamed answer: the outputs of the contract, each of shape [1].

    text: what is added; finish_reason: empty but in the last one
    """

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class V2Model(Protocol):
    """The served model, as the V2 protocols call it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names clients may use; the first is the one shown."""

    async def __call__(
        self, body: InferRequest, headers: dict[str, str] | None = None
    ) -> tuple[InferResponse, dict[str, str]]:
        """Answer a request's sequences; cancelling the call cancels them. Raises ServingError."""

    def stream(
        self, request: InferRequest, tap: Tap[Delta] | None = None
    ) -> AsyncGenerator[Delta, None]:
        """An answer as it comes, for a request of one sequence; closing it cancels.

        tap: where pieces go that need not come by the iterator

        Raises ServingError.
        """

    def statistics(self) -> ModelStatistics:
        """Counts and times so far."""


def check_model(model: V2Model, name: str, version: str = "") -> None:
    """Raise ModelNotFound unless this name and version are served; an empty version means any."""
    if name not in model.names:
        raise ModelNotFound(name, model.names)
    if version not in ("", VERSION):
        raise ModelNotFound(name, (f"version {VERSION!r}",), version)


def server_metadata() -> dict[str, Any]:
    """The server's name, version and protocol extensions."""
    return {
        "name": "qwen3-vl-server",
        "version": package.__version__,
        "extensions": list(SERVER_EXTENSIONS),
    }


def model_metadata(name: str) -> dict[str, Any]:
    """The model's platform, versions and tensors."""
    return {
        "name": name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [_tensor_metadata(spec) for spec in INPUTS],
        "outputs": [_tensor_metadata(spec) for spec in OUTPUTS],
    }


def model_config(name: str) -> dict[str, Any]:
    """The model's configuration, as far as it means something here.

    max_batch_size is 0, Triton's word for "the shapes are whole": N is the tensor's own first size.
    decoupled is false: every request has one answer, and only those who ask get it in pieces.
    """
    return {
        "name": name,
        "platform": PLATFORM,
        "backend": BACKEND,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": 0,
        "input": [_tensor_config(spec) for spec in INPUTS],
        "output": [_tensor_config(spec) for spec in OUTPUTS],
        "model_transaction_policy": {"decoupled": False},
    }


def model_statistics(name: str, statistics: ModelStatistics) -> dict[str, Any]:
    """One model's entry of the statistics extension."""
    stages = {
        stage: {"count": duration.count, "ns": duration.ns}
        for stage, duration in statistics.durations().items()
    }
    nothing = {"count": 0, "ns": 0}
    return {
        "name": name,
        "version": VERSION,
        "last_inference": statistics.last_inference_ms,
        "inference_count": statistics.inference_count,
        "execution_count": statistics.execution_count,
        "inference_stats": {**stages, "cache_hit": nothing, "cache_miss": nothing},
        "batch_stats": [],
    }


def repository_index(
    names: tuple[str, ...], lifecycle: Lifecycle, *, only_ready: bool
) -> list[dict[str, Any]]:
    """One entry a name, with its state and the reason for it."""
    if only_ready and not lifecycle.ready:
        return []
    state, reason = MODEL_STATES[lifecycle.phase]
    why = {"reason": reason} if reason else {}
    return [{"name": name, "version": VERSION, "state": state, **why} for name in names]


def headers_of(pairs: Mapping[str, str]) -> dict[str, str]:
    """A request's headers as the model takes them: names in lower case."""
    return {name.lower(): value for name, value in pairs.items()}


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _tensor_config(spec: TensorSpec) -> dict[str, Any]:
    data_type = "TYPE_STRING" if spec.datatype == "BYTES" else f"TYPE_{spec.datatype}"
    config = {"name": spec.name, "data_type": data_type, "dims": list(spec.shape)}
    return {**config, "optional": True} if spec.optional else config
