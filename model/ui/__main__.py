"""`python -m model.ui`: the page, against a server that runs elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING

import uvicorn

from model.ui.settings import SettingsError, parse_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model.ui.settings import PageSettings

logger = logging.getLogger("model.ui")

# Open pages hold a stream each, for as long as they are open.
STOP_SECONDS = 2


class _Uvicorn(uvicorn.Server):
    """uvicorn that returns on a signal: its own raises it again, and uploads would be left."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        yield


def main() -> int:
    """Serve the page until a signal; the process's exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    # httpx would tell each request, and that is nobody's business.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = parse_settings(sys.argv[1:])
    except SettingsError as e:
        print(e, file=sys.stderr)
        return 2
    # What people upload is theirs: in a folder of this process alone, gone when it ends.
    with tempfile.TemporaryDirectory(prefix="qwen3-vl-page-") as folder:
        try:
            serve(settings, folder)
        except ModuleNotFoundError as e:
            missing = f"{e.name} is not installed here; the page's own environment: make ui"
            print(missing, file=sys.stderr)
            return 2
    return 0


def serve(settings: PageSettings, upload_folder: str) -> None:
    """Run the page; Gradio reads the environment when it is first imported."""
    os.environ["GRADIO_TEMP_DIR"] = upload_folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"
    from model.ui.page import build_app

    app = build_app(settings)
    shown = "localhost" if settings.host == "0.0.0.0" else settings.host
    logger.info(
        "page on http://%s:%d%s/, server at %s",
        shown,
        settings.port,
        settings.path_prefix,
        settings.api,
    )
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    _Uvicorn(config).run()


if __name__ == "__main__":
    sys.exit(main())
