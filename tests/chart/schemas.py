"""Objects against the real schemas: Kubernetes' from its Python client, others' from their CRDs.

Closed, as an API server with strict validation is: a field that a schema does not know is an error.
What a schema cannot say (CEL rules, webhooks) is the cluster tests' to find. NGINX Gateway Fabric
and GKE publish no module with their CRDs; their objects are read by tests of their own.
"""

from __future__ import annotations

import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import pytest
import yaml
from kubernetes import client

from tests.cluster.tools.cache import sources
from tests.cluster.tools.go_module import download
from tests.cluster.tools.pins import Module
from tests.cluster.tools.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

# Folders of CRDs that the cluster tests have too, and modules that only their schemas are read of.
SOURCES: Final = (
    *("kserve", "gateway-api", "inference-extension", "envoy-gateway", "keda"),
    "prometheus-operator",
)
MODULES: Final = {Module("istio.io/api", "v1.26.0"): "kubernetes"}
UNPUBLISHED: Final = frozenset({"gateway.nginx.org", "networking.gke.io"})

Schema = dict[str, Any]


def errors_of(one: dict[str, Any]) -> list[str]:
    """What is wrong with an object by its kind's schema; empty when nothing is."""
    group = one["apiVersion"].rpartition("/")[0]
    name = f"{one['kind']}/{one['metadata']['name']}"
    if group in UNPUBLISHED:
        return []
    if model := _client_model(one["apiVersion"], one["kind"]):
        return [f"{name}: {error}" for error in _by_model(one, model, "")]
    return [
        f"{name}: {'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"
        for error in _validator(one["apiVersion"], one["kind"]).iter_errors(one)
    ]


@cache
def _validator(api_version: str, kind: str) -> jsonschema.Draft4Validator:
    """A validator of one version of a CRD."""
    spec = yaml.load(_definitions()[api_version.partition("/")[0], kind], Loader=_Loader)["spec"]
    [schema] = [
        version["schema"]["openAPIV3Schema"]
        for version in spec["versions"]
        if f"{spec['group']}/{version['name']}" == api_version
    ]
    # OpenAPI 3.0's schemas are draft 4's: exclusiveMinimum is a boolean there.
    made = closed(schema)
    # The API server's own: a CRD may name them or not.
    made["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
    return jsonschema.Draft4Validator(made)


@cache
def _definitions() -> dict[tuple[str, str], str]:
    """(group, kind) → the text of its CRD; skips without Go, but never in CI."""
    if lacking := missing(building=True):
        assert not os.environ.get("CI"), lacking
        pytest.skip(f"upstream CRDs cannot be fetched: {'; '.join(lacking)}")
    with tempfile.TemporaryDirectory() as scratch:
        folders = [sources(name) / "crds" for name in SOURCES]
        folders += [download(module, Path(scratch)) / at for module, at in MODULES.items()]
    found = {}
    for path in (path for folder in folders for path in folder.rglob("*.yaml")):
        for text in re.split(r"^---$", path.read_text(), flags=re.MULTILINE):
            # Only those that are asked for are parsed: they are megabytes.
            group = re.search(r"^  group: (\S+)$", text, re.MULTILINE)
            kind = re.search(r"^    kind: (\w+)$", text, re.MULTILINE)
            if group and kind:
                found[group[1], kind[1]] = text
    return found


class _Loader(yaml.CSafeLoader):
    """YAML 1.1 has a type of its own for a plain "=", which is an operator in one of the CRDs."""


_Loader.add_constructor("tag:yaml.org,2002:value", _Loader.construct_yaml_str)


def closed(schema: Any) -> Any:
    """The schema, refusing what it does not name; quantities may be numbers or text."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items() if key != "description"}
    if made.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _client_model(api_version: str, kind: str) -> type[Any] | None:
    """The Kubernetes client's class of a kind, None where it is a CRD's."""
    group, _, version = api_version.rpartition("/")
    if (
        ("." in group and not group.endswith(".k8s.io"))
        or "gateway" in group
        or "inference" in group
    ):
        return None
    return getattr(client, f"{version.capitalize()}{kind}", None)


def _by_model(value: Any, model: type[Any], path: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no object"
        return
    known = {json_name: name for name, json_name in model.attribute_map.items()}
    try:
        model(**{known[key]: "" for key in value if key in known})
    except ValueError as e:
        yield f"{path}: {e}"
    for key, inner in value.items():
        if key not in known:
            yield f"{path}.{key}: {model.__name__} has no such field"
        else:
            yield from _by_type(inner, model.openapi_types[known[key]], f"{path}.{key}")


def _by_type(value: Any, expected: str, path: str) -> Iterator[str]:
    simple = {"str": str, "int": int, "bool": bool, "float": (int, float), "datetime": str}
    if listed := re.fullmatch(r"list\[(.+)\]", expected):
        if not isinstance(value, list):
            yield f"{path}: {value!r} is no list"
            return
        for index, inner in enumerate(value):
            yield from _by_type(inner, listed[1], f"{path}[{index}]")
    elif mapped := re.fullmatch(r"dict[([]str, (.+)[])]", expected):
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no map"
            return
        for key, inner in value.items():
            yield from _by_type(inner, mapped[1], f"{path}.{key}")
    elif expected in simple:
        if not isinstance(value, simple[expected]) or (
            isinstance(value, bool) is not (expected == "bool")
        ):
            yield f"{path}: {value!r} is no {expected}"
    elif expected != "object":
        yield from _by_model(value, getattr(client, expected), path)
