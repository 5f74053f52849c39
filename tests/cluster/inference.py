"""An InferenceService of the project's server, and requests to it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Final

import httpx

if TYPE_CHECKING:
    from pathlib import Path

IMAGE: Final = "qwen3-vl-server:test"
MODEL: Final = "qwen3-vl"
PROBE_TIMEOUT_SECONDS: Final = 5
# How long it goes on serving while Services and gateways look away from a pod that ends.
UNREADY: Final = 5


def inference_service(
    name: str,
    *,
    replicas: int = 1,
    image: str = IMAGE,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """A plain one, in Standard mode, without an autoscaler or routes of KServe's."""
    variables = [{"name": key, "value": value} for key, value in (environment or {}).items()]
    container = {
        "name": "kserve-container",
        "image": image,
        "args": ["--http_port=8080", "--grpc_port=8081", f"--server.unready-seconds={UNREADY}"],
        "env": variables,
        "ports": [
            {"name": "http1", "containerPort": 8080},
            {"name": "h2c", "containerPort": 8081},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/v2/health/ready", "port": 8080},
            "periodSeconds": 1,
            "timeoutSeconds": PROBE_TIMEOUT_SECONDS,
        },
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                # With the class "external" minReplicas would not reach the Deployment.
                "serving.kserve.io/autoscalerClass": "none",
            },
            "labels": {"networking.kserve.io/visibility": "cluster-local"},
        },
        "spec": {
            "predictor": {
                "minReplicas": replicas,
                "maxReplicas": replicas,
                "terminationGracePeriodSeconds": 60,
                "containers": [container],
            }
        },
    }


def v2_request(*pictures: bytes, max_tokens: int = 16) -> dict[str, Any]:
    """A V2 request in JSON that asks for a description of each."""
    image = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [len(pictures)],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(picture).decode() for picture in pictures],
    }
    return {"inputs": [image], "parameters": {"max_tokens": max_tokens}}


def described(url: str, picture: bytes) -> str:
    """What the server at this address says of a picture."""
    answer = httpx.post(
        f"{url}/v2/models/{MODEL}/infer", json=v2_request(picture), timeout=60, trust_env=False
    )
    answer.raise_for_status()
    outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
    return str(outputs["text"][0])


def sample(folder: Path) -> bytes:
    """The first of the bundled pictures."""
    return min(folder.glob("*.jpg")).read_bytes()
