"""`/openapi.json`, and a page that shows it at `/api/docs` and `/docs`, without the internet.

At `/` is the way to them.

The page is Swagger UI as the package fastapi-offline carries it; nothing in it is loaded from
elsewhere, which its Content-Security-Policy also forbids.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Final

import orjson
from starlette.responses import JSONResponse, RedirectResponse, Response

from model import __version__
from model.errors import NotFound
from model.serving.openapi import TITLE, build_document
from model.serving.routing import Route, routes_of

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

    from model.settings import Settings

# Relative, so that the page works behind a proxy that adds a prefix.
PAGE: Final = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{TITLE}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<noscript>Without JavaScript there is <a href="../openapi.json">the document</a>.</noscript>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
# No validator: it would be sent this document's address, wherever the page is not on localhost.
START: Final = """
SwaggerUIBundle({
  url: new URL("../openapi.json", window.location.href).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
TYPES: Final = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
# What a program is told that asks for nothing; a browser is led to the page.
INDEX: Final = {
    "name": "qwen3-vl-server",
    "version": __version__,
    "docs": "/api/docs",
    "openapi": "/openapi.json",
    "health": "/health",
    "metrics": "/metrics",
}
ASSETS: Final = ("swagger-ui-bundle.js", "swagger-ui.css")


def docs_routes(settings: Settings) -> list[Route]:
    """The routes; the description is of the app's routes when it is first asked for."""

    @cache
    def document(app: Starlette) -> bytes:
        return orjson.dumps(build_document(routes_of(app), settings))

    async def openapi(request: Request) -> Response:
        """This description."""
        return Response(document(request.app), media_type="application/json")

    return [
        Route(("GET",), "/openapi.json", openapi, tag="docs"),
        Route(("GET",), "/api/docs", page, tag="docs"),
        Route(("GET",), "/", index),
        Route(("GET",), "/docs", short, tag="docs"),
        Route(("GET",), "/api/docs/{name}", asset),
    ]


async def page(request: Request) -> Response:
    """This description, to read and to try."""
    headers = {"Content-Security-Policy": POLICY}
    return Response(PAGE, media_type="text/html", headers=headers)


async def index(request: Request) -> Response:
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse("api/docs")
    return JSONResponse(INDEX)


async def short(request: Request) -> Response:
    """The way to /api/docs."""
    return RedirectResponse("api/docs")


async def asset(request: Request) -> Response:
    """A part of the page."""
    return _asset(request.path_params["name"])


@cache
def _asset(name: str) -> Response:
    if name == "start.js":
        content = START.encode()
    elif name in ASSETS:
        content = (resources.files("fastapi_offline") / "static" / name).read_bytes()
    else:
        raise NotFound(f"/api/docs has no part {name[:80]!r}")
    media_type = TYPES[name[name.rindex(".") :]]
    return Response(content, media_type=media_type, headers={"Cache-Control": "max-age=3600"})
