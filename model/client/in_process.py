"""The model in this process, asked as a server is: through the same application, without a socket.

The one module of the client that needs the other floors.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from model.client.app_transport import AppTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from collections.abc import Sequence as Seq
    from contextlib import AbstractAsyncContextManager

    from model.serving.kserve_model import Qwen3VLModel


class UnusableModel(Exception):
    """A checkpoint that makes no model; its text is for the user."""


class UnusableSettings(Exception):
    """Flags or variables that make no settings; its text is for the user."""


def load_model(
    arguments: Seq[str], environ: Mapping[str, str], *, quiet: bool = False
) -> Callable[[], AbstractAsyncContextManager[AppTransport]]:
    """Load what `qwen3-vl serve` would with these arguments; how far it is goes to standard error.

    Returns what runs it on an event loop. Blocks, on the main thread, so that an interrupt ends it.
    Raises UnusableModel, UnusableSettings.
    """
    # Both before the imports below: see model.__main__.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.argv = sys.argv[:1]
    from model.__main__ import exit_at_once, load
    from model.checkpoint import CheckpointError
    from model.serving.arguments import SettingsError, parse_settings
    from model.serving.kserve_model import Qwen3VLModel

    logging.basicConfig(format="qwen3-vl: %(message)s")
    for name in ("qwen3-vl", "model"):
        logging.getLogger(name).setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        settings, _ = parse_settings(arguments, environ)
        model = Qwen3VLModel(settings, lambda: load(settings), on_fatal=exit_at_once)
        model.load()
    except SettingsError as e:
        raise UnusableSettings(str(e)) from e
    except CheckpointError as e:
        raise UnusableModel(str(e)) from e
    return partial(_running, model)


@asynccontextmanager
async def _running(model: Qwen3VLModel) -> AsyncIterator[AppTransport]:
    """Run the engine; what is asked goes through the transport."""
    from model.serving.lifecycle import Lifecycle, Phase
    from model.serving.request_id import RequestIds
    from model.serving.server import build_app

    lifecycle = Lifecycle(stalled=lambda: model.stalled)
    app = RequestIds(build_app(model, lifecycle, model.settings))
    await model.start_engine()
    lifecycle.enter(Phase.READY)
    try:
        yield AppTransport(app)
    finally:
        await asyncio.to_thread(model.stop)
