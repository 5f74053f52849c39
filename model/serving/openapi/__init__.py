"""What every HTTP route takes and answers: OpenAPI 3.1, from the tables that judge requests.

Each protocol has its file here; a route without a description is a mistake that a test finds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi.openapi.utils import get_openapi

from model import __version__
from model.serving.openapi import describe, openai, parameters, server, v2
from model.serving.openapi.openai_answers import ERROR
from model.serving.openapi.parts import STRING, error_responses
from model.serving.request_id import CLIENTS_OWN, HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from starlette.routing import BaseRoute

    from model.settings import Settings

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


def build_document(routes: Seq[BaseRoute], settings: Settings) -> dict[str, Any]:
    """The description of these routes; raises LookupError for one that is not described."""
    document = get_openapi(
        title=TITLE,
        version=__version__,
        description=DESCRIPTION,
        routes=routes,
        tags=[{"name": name, "description": text} for name, text in TAGS.items()],
    )
    described = {
        **server.operations(),
        **describe.operations(settings),
        **v2.operations(settings),
        **openai.operations(settings),
    }
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            methods[method] = _merged(operation, described[method, path])
    document["components"] = {
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
    return document


def _merged(operation: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """Our description, over the handler's docstring and what else FastAPI knows."""
    summary, _, more = operation["description"].partition("\n")
    described = {"summary": summary, "description": more.strip() or summary, **described}
    return {**operation, **described}
