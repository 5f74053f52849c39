"""A scratch Go module in which somebody else's program builds as it does at home.

`go install package@version` refuses modules with `replace` lines, and most of these have some. So
the scratch module *is* upstream's go.mod: its requirements, replacements and exclusions, less its
own tools, plus upstream itself at the pinned version. Upstream's go.sum comes along.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.cluster.tools.pins import GoProgram, Module


VERSION: Final = re.compile(r"v\d+")


class GoFailed(Exception):
    """A go command that ended badly, with what it said."""

    def __init__(self, arguments: tuple[str, ...], output: str) -> None:
        last = "\n".join(output.strip().splitlines()[-15:])
        super().__init__(f"go {' '.join(arguments)} failed:\n{last}")


def download(module: Module, scratch: Path) -> Path:
    """The module's folder in Go's own cache; it is fetched when it is not there yet."""
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "go.mod").write_text("module scratch\n\ngo 1.24\n")
    answer = json.loads(_go(scratch, "mod", "download", "-json", f"{module.path}@{module.version}"))
    return scratch / str(answer["Dir"])


def build(programs: Mapping[str, GoProgram], scratch: Path) -> dict[str, Path]:
    """Build programs of one module, with the same variables, in a scratch folder; where each is.

    One `go build` compiles once what they share, and links one while it still compiles another.
    """
    first = next(iter(programs.values()))
    upstream = download(first.module, scratch)
    described = json.loads(_go(scratch, "mod", "edit", "-json", str(upstream / "go.mod")))
    (scratch / "go.mod").write_text(scratch_module(described, first.module))
    sums = upstream / "go.sum"
    if sums.exists():
        (scratch / "go.sum").write_text(sums.read_text())
    variables = " ".join(f"-X {name}={value}" for name, value in first.variables.items())
    output = scratch / "programs"
    output.mkdir()
    _go(
        scratch,
        *("build", "-mod=mod", "-trimpath", "-ldflags", f"-s -w {variables}".strip()),
        # What the linker would drop: an eighth of the compilers' time, and a quarter of the cache.
        *("-gcflags", "all=-dwarf=false"),
        *("-o", f"{output}/", *(program.package for program in programs.values())),
    )
    return {name: output / executable(program.package) for name, program in programs.items()}


def executable(package: str) -> str:
    """What `go build` calls a package's program: its last part that is no version."""
    return next(part for part in reversed(package.split("/")) if not VERSION.fullmatch(part))


def scratch_module(upstream: dict[str, Any], module: Module) -> str:
    """The go.mod described by `go mod edit -json`, as one that requires upstream itself."""
    required = [(module.path, module.version)]
    required += [(line["Path"], line["Version"]) for line in upstream.get("Require") or ()]
    lines = ["module scratch", f"go {upstream['Go']}"]
    lines += [f"godebug {line['Key']}={line['Value']}" for line in upstream.get("Godebug") or ()]
    lines += [f"require {path} {version}" for path, version in required]
    for line in upstream.get("Exclude") or ():
        lines.append(f"exclude {line['Path']} {line['Version']}")
    for line in upstream.get("Replace") or ():
        old, new = line["Old"], line["New"]
        if "Version" in new:
            target = f"{new['Path']} {new['Version']}"
        elif module.local_version:
            target = f"{old['Path']} {module.local_version}"
        else:
            continue
        lines.append(f"replace {old['Path']} {old.get('Version', '')} => {target}")
    return "\n".join(lines) + "\n"


def _go(folder: Path, *arguments: str) -> str:
    """A go command's output. Programs are built without cgo, so that they need no C library."""
    done = subprocess.run(
        ["go", *arguments],
        cwd=folder,
        env=os.environ | {"CGO_ENABLED": "0", "GOWORK": "off", "GO111MODULE": "on"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise GoFailed(arguments, done.stdout + done.stderr)
    return done.stdout
