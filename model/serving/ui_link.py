"""`/ui` on the server: the way to the page, which is a process of its own.

Where `server.ui_url` is set, /ui leads there; where not, it says how to start the page, with 404:
there is none here. Behind a gateway that routes /ui to the page, neither is ever seen.
"""

from __future__ import annotations

import shlex
from html import escape
from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse, RedirectResponse, Response

from model.serving.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

NO_PAGE: Final = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Qwen3-VL server</title>
<style>
body {{ font: 16px/1.6 system-ui, sans-serif; max-width: 40em; margin: 12vh auto; padding: 0 1em }}
pre {{ padding: .8em 1em; border: 1px solid; border-radius: 8px; overflow-x: auto }}
</style>
<h1>The page runs beside this server</h1>
<p>It needs no GPU and an environment of its own. In the repository:</p>
<pre tabindex="0">make ui API={api}</pre>
<p>Then it is at <code>http://localhost:7860</code>. Started with <code>--ui_url</code> and the
page's address, this server leads there from here.</p>
</html>
"""


def ui_routes(ui_url: str | None) -> list[Route]:
    """The route, with and without a slash at its end.

    ui_url: the page's address, None where none is known
    """

    async def ui(request: Request) -> Response:
        if ui_url is not None:
            return RedirectResponse(ui_url, 307)
        # The address is what the client says it called: shown to it alone, and as text.
        api = escape(shlex.quote(str(request.base_url).rstrip("/")))
        return HTMLResponse(NO_PAGE.format(api=api), 404)

    return [Route(("GET",), path, ui) for path in ("/ui", "/ui/")]
