"""`kubectl qwen3vl canary …`, a plugin: kubectl finds `kubectl-qwen3vl` on the PATH."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from model.canary.commands import main as run_command
from model.canary.errors import EXIT_USAGE

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq


def main(arguments: Seq[str], program: str = "kubectl qwen3vl canary") -> int:
    """Run a command of the canary; the exit status."""
    return run_command(program, arguments, os.environ)


def plugin() -> int:
    """The plugin; canary is the one thing it does."""
    match sys.argv[1:]:
        case ["canary", *arguments]:
            return main(arguments)
        case ["-h" | "--help"]:
            return main(["--help"])
        case _:
            print("usage: kubectl qwen3vl canary COMMAND …", file=sys.stderr)
            return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m model.canary"))
