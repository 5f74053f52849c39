"""Health, metrics and this description itself, as OpenAPI has them."""

from __future__ import annotations

from typing import Any, Final

from model.serving.lifecycle import Phase
from model.serving.openapi.parts import (
    JSON,
    OBJECT,
    STRING,
    answer,
    errors,
    one_of,
    ref,
    response,
)

COMPONENTS: Final = {
    "Error": answer({"error": STRING}),
    "Health": answer({"status": one_of(phase.value for phase in Phase)}),
}


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    """What each route answers, by method and path."""
    return {
        ("get", "/health"): {
            "responses": {
                "200": response("Requests are served.", {JSON: ref("Health")}),
                "503": response("Loading, draining or failed.", {JSON: ref("Health")}),
            }
        },
        ("get", "/metrics"): {
            "responses": {
                "200": response(
                    "For Prometheus.",
                    {"text/plain": STRING, "application/openmetrics-text": STRING},
                ),
                **errors(500),
            }
        },
        ("get", "/openapi.json"): {
            "responses": {"200": response("This description.", {JSON: OBJECT})}
        },
        ("get", "/api/docs"): {"responses": {"200": response("A page.", {"text/html": STRING})}},
        ("get", "/docs"): {"responses": {"307": response("The way to /api/docs.", {})}},
    }
