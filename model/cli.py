"""The `qwen3-vl` command: one program, its commands in modules that only they import."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Final

from model import __version__

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq


def _serve(arguments: Seq[str]) -> int:
    from model.__main__ import leave, main

    leave(main(arguments))


def _describe(arguments: Seq[str]) -> int:
    from model.client.command import main

    return main(arguments, os.environ)


def _canary(arguments: Seq[str]) -> int:
    from model.canary.__main__ import main

    return main(arguments, "qwen3-vl canary")


COMMANDS: Final[dict[str, tuple[Callable[[Seq[str]], int], str]]] = {
    "serve": (_serve, "run the server: V2 over HTTP and gRPC, OpenAI's API, describe"),
    "describe": (_describe, "describe pictures: ask a server, or a model in this process"),
    "canary": (_canary, "roll a new version out on Kubernetes by steps, and back by itself"),
}


def main(arguments: Seq[str] | None = None) -> int:
    """Run a command of `qwen3-vl`; what follows its name is that command's own."""
    lines = "\n".join(f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="qwen3-vl",
        description="Qwen3-VL: a model server, and a command line to ask it.",
        epilog=f"commands:\n{lines}\n\nqwen3-vl COMMAND --help says more of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qwen3-vl {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="its own")
    given = parser.parse_args(arguments)
    run, _ = COMMANDS[given.command]
    return run(given.arguments)


if __name__ == "__main__":
    sys.exit(main())
