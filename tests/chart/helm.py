"""Helm as the tests call it, and the chart's objects as dictionaries.

Helm is the cluster tests' own: from their cache or from PATH, built once where it is in neither.
"""

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
    from collections.abc import Mapping

CHART: Final = ROOT / "charts" / "qwen3-vl"
RELEASE: Final = "photos"
NAMESPACE: Final = "vision"
# What the release's objects are called.
FULLNAME: Final = "photos-qwen3-vl"

Object = dict[str, Any]


class HelmError(Exception):
    """Helm's own message of what is wrong with chart or values."""


@cache
def tool(name: str) -> str:
    """A program's path; skips where there is none and none can be built, but never in CI."""
    found = find(name)
    if found is None and (lacking := missing(building=True)):
        assert not os.environ.get("CI"), lacking
        pytest.skip(f"no {name}, and none can be built: {'; '.join(lacking)}")
    return str(found or program(name))


def helm(*arguments: str, stdin: str = "") -> str:
    """What `helm …` prints; raises HelmError."""
    ended = subprocess.run(
        [tool("helm"), *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        raise HelmError(ended.stderr)
    return ended.stdout


def render(
    values: Mapping[str, Any] | None = None,
    *arguments: str,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
) -> list[Object]:
    """Every object of a release with these values, hooks included; raises HelmError."""
    text = template(values, *arguments, release=release, namespace=namespace)
    return [one for one in yaml.load_all(text, Loader=yaml.CSafeLoader) if one]


def template(
    values: Mapping[str, Any] | None = None,
    *arguments: str,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
) -> str:
    """The release's YAML; raises HelmError."""
    return _template(yaml.safe_dump(dict(values or {})), release, namespace, *arguments)


@cache
def _template(values: str, release: str, namespace: str, *arguments: str) -> str:
    """The same values are rendered once for all tests."""
    command = ("template", release, str(CHART), "--namespace", namespace, "--values", "-")
    return helm(*command, *arguments, stdin=values)


def named(objects: list[Object], kind: str, name: str = FULLNAME) -> Object:
    """The one object of this kind and name."""
    found = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} of {kind}/{name} in {kinds(objects)}"
    return found[0]


def kinds(objects: list[Object]) -> list[str]:
    """kind/name of each, sorted."""
    return sorted(f"{one['kind']}/{one['metadata']['name']}" for one in objects)


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    """Those of one kind."""
    return [one for one in objects if one["kind"] == kind]


def container(objects: list[Object]) -> Object:
    """The server's container in the InferenceService."""
    [only] = named(objects, "InferenceService")["spec"]["predictor"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(objects: list[Object]) -> dict[str, Any]:
    """The server's variables: name → value, or where it is taken from."""
    return {
        one["name"]: one.get("value", one.get("valueFrom")) for one in container(objects)["env"]
    }
