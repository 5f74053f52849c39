"""The composition root: settings → runner → engine → server.

`python -m model --help` lists every knob.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from model import __version__
from model.checkpoint import HUB_PATTERNS, CheckpointError, read_checkpoint
from model.demo import CHECKPOINT_DIR, SAMPLES_DIR

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from model.serving.kserve_model import Loaded
    from model.settings import ModelSettings, ServerSettings, Settings

logger = logging.getLogger("qwen3-vl")

EXIT_FAILED = 1
EXIT_USAGE = 2
FAREWELL_SECONDS = 1.0
# Where KServe's storage initializer puts what STORAGE_URI names.
KSERVE_MODEL_DIR = Path("/mnt/models")
MIB = 1 << 20


def main(arguments: Seq[str] | None = None) -> int:
    """Serve until a signal; the exit status: 0 after a drain, 1 when nothing could be served."""
    started = time.monotonic()
    if threading.current_thread() is threading.main_thread():
        # Until the server has a better one: process 1 of a container is ended by no signal that it
        # has no handler for, and imports take seconds.
        signal.signal(signal.SIGTERM, _end_at_once)
    # Before torch is imported. Threads that spin long while they wait take the cores from those
    # they wait for: up to six times slower beside one other busy process. Threads that sleep at
    # once must be woken for every product. A few microseconds are as good as the better of both.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "300")
    # Imports make a million objects that stay: to look through them again and again for garbage is
    # a fifth of the start. `_load_and_collect` begins with it.
    gc.disable()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)-7s %(message)s")
    # It would log the URL of every picture that is fetched, signature and all.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    arguments = sys.argv[1:] if arguments is None else arguments
    # KServe parses sys.argv when it is imported, and would answer --help itself.
    sys.argv = sys.argv[:1]
    from model.serving.arguments import SettingsError, parse_settings

    try:
        settings, unused = parse_settings(arguments, os.environ)
    except SettingsError as e:
        print(f"qwen3-vl: {e}", file=sys.stderr)
        return EXIT_USAGE
    logger.info("version    %s", __version__)
    if unused:
        logger.warning("%s: no effect on this server", ", ".join(unused))
    return serve(settings, started)


def serve(settings: Settings, started: float) -> int:
    """Join the floors and run; started: time.monotonic() of the process's first line."""
    from model.serving.kserve_model import Qwen3VLModel
    from model.serving.server import Server, StartError

    async def run() -> int:
        model = Qwen3VLModel(settings, lambda: _load_and_collect(settings), on_fatal=exit_at_once)
        server = Server(model, settings, _listen(settings.server))
        return await server.run(_invitation(server.http_port), started)

    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(run())
    except StartError as e:
        print(f"qwen3-vl: {e}", file=sys.stderr)
        return EXIT_FAILED


def _load_and_collect(settings: Settings) -> Loaded:
    """Load; collect garbage from then on, but look no more at what is there already."""
    loaded = load(settings)
    gc.freeze()
    gc.enable()
    return loaded


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed: it takes a third of asyncio's time for a small write."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _end_at_once(number: int, frame: object) -> NoReturn:
    leave(128 + number)


def exit_at_once() -> None:
    """End the process with a failure: its device is lost, and only a new process gets it back."""
    # The ends of the streams are on their way to clients.
    time.sleep(FAREWELL_SECONDS)
    os._exit(EXIT_FAILED)


def leave(status: int) -> NoReturn:
    """End the process of a server that has stopped: all that is ours is closed by then.

    The interpreter takes seconds to take torch's and transformers' modules apart, for nobody, out
    of the time that a pod is given to end.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


def find_checkpoint(settings: ModelSettings) -> Path:
    """The folder to load: named, mounted by KServe, fetched by its hub name, or the bundled one.

    Raises CheckpointError when the hub cannot give it.
    """
    if settings.dir is not None:
        return settings.dir
    if settings.id is not None:
        return _fetch(settings.id, settings.revision)
    if KSERVE_MODEL_DIR.is_dir() and any(KSERVE_MODEL_DIR.iterdir()):
        return KSERVE_MODEL_DIR
    return CHECKPOINT_DIR


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(HUB_PATTERNS))
    except Exception as e:  # the hub's client raises dozens of kinds, none of them ours to mend
        raise CheckpointError(
            f"{name} could not be fetched from the hub: {type(e).__name__}"
        ) from e
    return Path(folder)


def load(settings: Settings) -> Loaded:
    """Read the weights and warm up; on the loading thread, so that torch's import blocks nobody."""
    from model.serving.kserve_model import Loaded

    path = find_checkpoint(settings.model)
    checkpoint = read_checkpoint(path)
    logger.info("model      %s", "bundled demo model" if path == CHECKPOINT_DIR else path)
    from model.runner.device import UnusableSetting
    from model.runner.load import load_runner

    try:
        runner = load_runner(settings, checkpoint)
    except UnusableSetting as e:
        raise CheckpointError(str(e)) from e
    memory = runner.memory()
    logger.info("device     %s, %s", runner.placement, str(runner.dtype).removeprefix("torch."))
    logger.info(
        "memory     weights %.1f MiB, KV cache %.1f MiB (%d blocks of %d tokens)",
        memory.weight_bytes / MIB,
        memory.kv_cache_bytes / MIB,
        runner.num_blocks,
        runner.block_size,
    )
    runner.warm_up()
    return Loaded(checkpoint, runner)


def _listen(settings: ServerSettings) -> socket.socket:
    """Bind before anything is loaded, so that a taken port is told at once."""
    from model.serving.server import ListenError

    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio sends small pieces at once only where the protocol is named; else Nagle's algorithm
    # holds the second piece of every answer, and every token of a stream, for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.http_port))
        listener.listen(2048)
    except OSError as e:
        listener.close()
        raise ListenError(
            f"cannot listen on {settings.host}:{settings.http_port} (HTTP): {e.strerror}; "
            "choose another with --http_port"
        ) from e
    listener.setblocking(False)
    return listener


def _invitation(http_port: int) -> str:
    """A line for the log that can be pasted into a shell."""
    samples = sorted(SAMPLES_DIR.glob("*.jpg"))
    picture = os.path.relpath(samples[0]) if samples else "photo.jpg"
    return f"curl -F image=@{picture} http://localhost:{http_port}/api/v1/describe"


if __name__ == "__main__":
    leave(main())
