"""`python -m tests.cluster.tools [name…]`: make the programs and sources of a cluster.

Without a name: all of them, in an order that puts first what most tests need. What is already there
is left alone. Each path is printed when it is ready.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.cluster.tools.cache import find, program, sources
from tests.cluster.tools.go_module import GoFailed
from tests.cluster.tools.pins import PROGRAMS, SOURCES
from tests.cluster.tools.requirements import missing


def main() -> int:
    """Make what was asked for; 1 where something is missing or does not build."""
    names = _parse()
    lacking = missing(building=any(name not in PROGRAMS or find(name) is None for name in names))
    if lacking:
        print("\n".join(lacking), file=sys.stderr)
        return 1
    started = time.monotonic()
    for name in names:
        try:
            path = program(name) if name in PROGRAMS else sources(name.removeprefix("src/"))
        except GoFailed as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(f"{time.monotonic() - started:6.0f} s  {path}", flush=True)
    return 0


def _parse() -> list[str]:
    known = [*PROGRAMS, *(f"src/{name}" for name in SOURCES)]
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.tools", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"some of {', '.join(known)} (default: all)"
    )
    names: list[str] = parser.parse_args().names
    for name in names:
        if name not in known:
            parser.error(f"{name!r} is no tool; known: {', '.join(known)}")
    return names or known


if __name__ == "__main__":
    sys.exit(main())
