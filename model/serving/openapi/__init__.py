"""What every HTTP route takes and answers: OpenAPI 3.1, from the tables that judge requests.

Each protocol has its file here; a route without a description is a mistake that a test finds.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from model import __version__
from model.serving.openapi import describe, openai, parameters, server, v2
from model.serving.openapi.openai_answers import ERROR
from model.serving.openapi.parts import STRING, error_responses
from model.serving.request_id import CLIENTS_OWN, HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.serving.routing import Route
    from model.settings import Settings

OPENAPI_VERSION: Final = "3.1.0"
TITLE: Final = "Qwen3-VL server"
DESCRIPTION: Final = (
    "A picture goes in, a description comes out: over the V2 inference protocol, OpenAI's, or "
    "plain describe. OpenAI's routes are also under `/openai/v1`. Names that mean nothing here are "
    "refused, but for OpenAI's, which are named in `X-Ignored-Fields`."
)
TAGS: Final = {
    "describe": "For people with curl.",
    "jobs": "Batches that nobody waits for.",
    "openai": "Chat and completions, for OpenAI's clients and vLLM's.",
    "v2": "KServe's Open Inference Protocol with Triton's extensions.",
    "health": "For orchestrators and Prometheus.",
    "docs": "This description.",
}


def build_document(routes: Seq[Route], settings: Settings) -> dict[str, Any]:
    """The description of these routes; raises LookupError for one that is not described."""
    components = {
        "schemas": {
            **server.COMPONENTS,
            **parameters.components(settings.request),
            **describe.COMPONENTS,
            **v2.COMPONENTS,
            **openai.COMPONENTS,
        },
        "responses": error_responses("Error", ERROR),
        "headers": {
            HEADER: {
                "description": "The request's name: the client's own, or a new one.",
                "required": True,
                "schema": {**STRING, "pattern": f"^{CLIENTS_OWN.pattern}$"},
            }
        },
    }
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": TITLE, "description": DESCRIPTION, "version": __version__},
        "paths": _paths(routes, settings),
        "components": components,
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
    }


def _paths(routes: Seq[Route], settings: Settings) -> dict[str, dict[str, Any]]:
    """Operations by path and method."""
    described = {
        **server.operations(),
        **describe.operations(settings),
        **v2.operations(settings),
        **openai.operations(settings),
    }
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.tag is not None:
            path = paths.setdefault(route.path_format, {})
            for method in map(str.lower, sorted(route.methods)):
                path[method] = _operation(route, method, described[method, route.path_format])
    return paths


def _operation(route: Route, method: str, described: dict[str, Any]) -> dict[str, Any]:
    """What is described, over what the route and its handler's docstring say."""
    summary, _, more = (inspect.getdoc(route.endpoint) or "").partition("\n")
    return {
        "tags": [route.tag],
        "summary": summary,
        "description": more.strip() or summary,
        "operationId": re.sub(r"\W", "_", f"{route.name}{route.path_format}_{method}"),
        **described,
    }
