"""Every custom resource against its CRD's schema, from the modules that the cluster tests pin.

Closed: the API server would drop a misspelt field with a warning that `apply` shows and forgets.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.cluster.tools.cache import cache_folder, sources
from tests.cluster.tools.requirements import missing
from tests.manifests.kustomize import FOLDERS, kustomized

# API group → whose CRDs; cert-manager's lie in no module that is pinned.
OWNERS = {
    "serving.kserve.io": "kserve",
    "keda.sh": "keda",
    "gateway.networking.k8s.io": "gateway-api",
    "inference.networking.k8s.io": "inference-extension",
    "gateway.envoyproxy.io": "envoy-gateway",
}


@cache
def schemas(owner: str) -> dict[tuple[str, str], dict[str, Any]]:
    """(apiVersion, kind) → its schema, closed; skips where it cannot be had, but never in CI."""
    if not (cache_folder() / "src" / owner).exists() and (lacking := missing(building=True)):
        assert not os.environ.get("CI"), lacking
        pytest.skip(f"no CRDs of {owner}, and none can be fetched: {'; '.join(lacking)}")
    found = {}
    for path in sorted((sources(owner) / "crds").rglob("*.yaml")):
        # KServe's are a chart's, with a template in their labels.
        lines = [line for line in path.read_text().splitlines() if "{{" not in line]
        for crd in yaml.load_all("\n".join(lines), Loader=yaml.CSafeLoader):
            if crd and crd.get("kind") == "CustomResourceDefinition":
                spec = crd["spec"]
                for version in spec["versions"]:
                    key = f"{spec['group']}/{version['name']}", spec["names"]["kind"]
                    found[key] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema: Any) -> Any:
    """The schema with no property but those it names, as the API server prunes."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(value) for name, value in schema.items()}
    is_open = "additionalProperties" in made or made.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not is_open:
        made["additionalProperties"] = False
    return made


def problems(resource: dict[str, Any]) -> list[str]:
    """What its schema says against it."""
    owner = OWNERS[resource["apiVersion"].partition("/")[0]]
    schema = schemas(owner)[resource["apiVersion"], resource["kind"]]
    errors = Draft202012Validator(schema).iter_errors(resource)
    return [f"{error.json_path}: {error.message}" for error in errors]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folders_custom_resources_are_as_their_schemas_say(folder: str) -> None:
    for resource in kustomized(folder):
        if resource["apiVersion"].partition("/")[0] in OWNERS:
            assert problems(resource) == [], resource["kind"]


def test_a_misspelt_field_is_found() -> None:
    [runtime] = kustomized("serving-runtime/cluster")
    runtime["spec"]["containers"][0]["readynessProbe"] = {}
    assert len(problems(runtime)) == 1
    assert "readynessProbe" in problems(runtime)[0]
