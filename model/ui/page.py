"""The page as an ASGI application: Gradio's, at any path, asking for nothing from elsewhere."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gradio as gr
import httpx
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from model.ui.api import Api
from model.ui.document import OwnDocument
from model.ui.form import lay_out
from model.ui.handlers import Handlers
from model.ui.static import STATIC_DIR, static

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from model.ui.settings import PageSettings

# The bundled model's own pictures, read as files: no line of that floor runs here.
SAMPLES_DIR: Final = Path(__file__).parents[1] / "demo" / "samples"
NUM_SAMPLES: Final = 4

HEALTH_EVERY_SECONDS: Final = 20
CONNECT_SECONDS: Final = 5.0
# A large picture over a slow line, and a server that reads it when it can.
SEND_SECONDS: Final = 120.0

# Uploads are looked at for deletion so often, and deleted when so old.
CACHE_SECONDS: Final = (600, 12 * 3600)

THEME: Final = gr.themes.Default(
    primary_hue=gr.themes.colors.indigo,
    secondary_hue=gr.themes.colors.indigo,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_lg,
    # The reader's own fonts: nothing is fetched for them.
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(
    # Gradio's own greys and blues are too light to read for many: these have a contrast of 4.5.
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color_subdued="*neutral_500",
    block_info_text_color="*neutral_500",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_600",
    color_accent="*primary_600",
)


def build_app(settings: PageSettings) -> OwnDocument:
    """The page, its health and its example pictures."""
    client = httpx.AsyncClient(
        timeout=httpx.Timeout(
            settings.answer_seconds, connect=CONNECT_SECONDS, write=SEND_SECONDS, pool=None
        ),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(title="Qwen3-VL page", openapi_url=None, lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the page is there; the server's health is on it."""
        return {"status": "ready"}

    app.mount("/samples", StaticFiles(directory=SAMPLES_DIR, check_dir=False))
    blocks = build_blocks(Api(settings.api, client), settings)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        root_path=settings.root_path or None,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=f"{settings.max_upload_mib}mb",
        theme=THEME,
        css_paths=[STATIC_DIR / "page.css"],
        head=f"<script>{static('page.js')}</script>",
    )
    # Without this, Gradio takes any path of this machine in a request for an upload, and copies the
    # file to where everybody may fetch it: its check is for pages that it launches itself.
    blocks.has_launched = True
    return OwnDocument(app, settings.path_prefix, static("icon.svg"))


def build_blocks(api: Api, settings: PageSettings) -> gr.Blocks:
    """The parts, and which function answers which event."""
    samples = [path.name for path in sorted(SAMPLES_DIR.glob("*.jpg"))[:NUM_SAMPLES]]
    with gr.Blocks(
        title="Qwen3-VL", analytics_enabled=False, delete_cache=CACHE_SECONDS, fill_width=True
    ) as blocks:
        form = lay_out(samples)
        handlers = Handlers(api, settings.shown_api, form)
        # Not Gradio's own wheels and borders over the parts: each says what it waits for itself.
        quiet = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}

        asked = [form.pictures, form.prompt, form.style, form.language, form.each]
        options = list(form.options.values())
        code = [form.curl, form.python]
        form.describe.click(None, None, None, js="() => qwen3vl.started()")
        form.describe.click(
            handlers.describe,
            {*asked, *options, form.key, form.history},
            [form.answer, *code, form.history, form.entries, form.describe, form.stop],
            **quiet,
        )
        form.stop.click(handlers.stop, None, None, **quiet)
        blocks.unload(handlers.stop)

        form.entries.restore(
            handlers.restore, form.history, [*asked, *options, form.answer, *code], **quiet
        )
        form.forget.click(handlers.forget, None, [form.history, form.entries], **quiet)

        health = {"fn": handlers.health, "inputs": form.key, "outputs": form.health, **quiet}
        opened = "() => { qwen3vl.ready(); return qwen3vl.key(); }"
        blocks.load(None, None, form.key, js=opened).then(**health)
        form.key.change(None, form.key, None, js="(key) => qwen3vl.keep(key)")
        form.key.blur(**health)
        gr.Timer(HEALTH_EVERY_SECONDS).tick(**health)
    return blocks
