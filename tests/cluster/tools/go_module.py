"""A scratch Go module in which somebody else's program builds as it does at home.

`go install package@version` refuses modules with `replace` lines, and most of these have some. So
the scratch module *is* upstream's go.mod: its requirements, replacements and exclusions, less its
own tools, plus upstream itself at the pinned version. Upstream's go.sum comes along.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cluster.tools.pins import GoProgram, Module


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


def build(program: GoProgram, scratch: Path, target: Path) -> None:
    """Build the program in a scratch folder, and move it to its place when it is whole."""
    upstream = download(program.module, scratch)
    described = json.loads(_go(scratch, "mod", "edit", "-json", str(upstream / "go.mod")))
    (scratch / "go.mod").write_text(scratch_module(described, program.module))
    sums = upstream / "go.sum"
    if sums.exists():
        (scratch / "go.sum").write_text(sums.read_text())
    variables = " ".join(f"-X {name}={value}" for name, value in program.variables.items())
    output = scratch / "program"
    _go(
        scratch,
        *("build", "-mod=mod", "-trimpath", "-ldflags", f"-s -w {variables}".strip()),
        *("-o", str(output), program.package),
    )
    output.replace(target)


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
