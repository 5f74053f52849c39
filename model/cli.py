"""The `qwen3-vl` command; its `serve` is `python -m model`."""

from __future__ import annotations

import argparse
import sys

from model import __version__
from model.__main__ import main as serve


def main() -> int:
    """Run a command of `qwen3-vl`; what follows its name is that command's own."""
    parser = argparse.ArgumentParser(prog="qwen3-vl", description="Model server for Qwen3-VL.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("command", choices=["serve"], help="serve: run the server")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see qwen3-vl serve --help")
    given = parser.parse_args()
    return serve(given.arguments)


if __name__ == "__main__":
    sys.exit(main())
