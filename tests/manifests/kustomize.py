"""kubectl as the tests call it, and what a kustomization gives as dictionaries."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest
import yaml

from tests.cluster.tools.cache import find, program
from tests.cluster.tools.requirements import missing
from tests.serving import ROOT

if TYPE_CHECKING:
    from pathlib import Path

MANIFESTS: Final = ROOT / "manifests"
FOLDERS: Final = sorted(
    str(path.parent.relative_to(MANIFESTS)) for path in MANIFESTS.rglob("kustomization.yaml")
)

Object = dict[str, Any]


@cache
def kubectl_program() -> str:
    """kubectl's path; skips where there is none and none can be built, but never in CI."""
    found = find("kubectl")
    if found is None and (lacking := missing(building=True)):
        assert not os.environ.get("CI"), lacking
        pytest.skip(f"no kubectl, and none can be built: {'; '.join(lacking)}")
    return str(found or program("kubectl"))


def kustomized(folder: str | Path) -> list[Object]:
    """The objects that `kubectl apply -k` would send, of a folder below manifests/ or anywhere."""
    done = subprocess.run(
        [kubectl_program(), "kustomize", str(MANIFESTS / folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Warnings tell of what the next kustomize will not take.
    assert done.stderr == ""
    return [one for one in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if one]


def containers(objects: list[Object]) -> list[Object]:
    """Every container that runs, wherever its pod is described."""
    return [one for content in objects for one in _containers(content)]


def _containers(content: Any) -> list[Object]:
    if isinstance(content, list):
        return [one for part in content for one in _containers(part)]
    if not isinstance(content, dict):
        return []
    found = [one for name in ("containers", "initContainers") for one in content.get(name, [])]
    return found + [one for part in content.values() for one in _containers(part)]
