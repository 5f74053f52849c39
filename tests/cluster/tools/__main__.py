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
    given = _parse()
    names: list[str] = given.names
    lacking = missing(
        building=any(name not in PROGRAMS or find(name) is None for name in names),
        running=given.running,
    )
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


def _parse() -> argparse.Namespace:
    known = [*PROGRAMS, *(f"src/{name}" for name in SOURCES)]
    parser = argparse.ArgumentParser(prog="python -m tests.cluster.tools", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"some of {', '.join(known)} (default: all)"
    )
    parser.add_argument(
        "--running",
        action="store_true",
        help="first say what the machine lacks to run a cluster, and make nothing then",
    )
    given = parser.parse_args()
    for name in given.names:
        if name not in known:
            parser.error(f"{name!r} is no tool; known: {', '.join(known)}")
    given.names = given.names or known
    return given


if __name__ == "__main__":
    sys.exit(main())
