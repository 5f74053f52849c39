"""`python -m tests.cluster.tools [name…]`: make the programs and sources of a cluster.

Without a name: all of them, in an order that puts first what most tests need. What is already there
is left alone. Each path is printed when it is ready.

Two builds run side by side: while one waits for downloads or links, the other compiles.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Final

from tests.cluster.tools.cache import find, make_together, program, sources
from tests.cluster.tools.go_module import GoFailed
from tests.cluster.tools.pins import PROGRAMS, SOURCES, builds
from tests.cluster.tools.requirements import missing

AT_ONCE: Final = 2


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
    try:
        _make([*builds(name for name in names if name in PROGRAMS), *_sources_of(names)])
    except GoFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _sources_of(names: list[str]) -> list[list[str]]:
    return [[name] for name in names if name not in PROGRAMS]


def _make(groups: list[list[str]]) -> None:
    """Make each group, and print where it lies; the first that fails lets no further one begin."""
    started = time.monotonic()

    def make(names: list[str]) -> None:
        if names[0] in PROGRAMS:
            make_together(names)
        for name in names:
            path = program(name) if name in PROGRAMS else sources(name.removeprefix("src/"))
            print(f"{time.monotonic() - started:6.0f} s  {path}", flush=True)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        making = [threads.submit(make, names) for names in groups]
        try:
            for one in as_completed(making):
                one.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


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
