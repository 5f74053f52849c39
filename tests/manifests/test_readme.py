"""What manifests/README.md says, held to what is there."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from tests.cluster.tools import pins
from tests.manifests.kustomize import FOLDERS, MANIFESTS, kustomized

if TYPE_CHECKING:
    from pathlib import Path

README = (MANIFESTS / "README.md").read_text()


def test_every_folder_is_in_its_table() -> None:
    rows = re.findall(r"(?m)^\| (`[^|]*`) \|", README)
    named = {name for row in rows for name in re.findall(r"`([^`]*)`", row)}
    assert named == set(FOLDERS)


def test_versions_are_those_that_the_cluster_tests_run() -> None:
    written = dict(re.findall(r"(?m)^\| ([\w -]+) \| ([\d.]+) \|", README))
    pinned = {
        "Kubernetes": pins.KUBERNETES,
        "KServe": pins.KSERVE,
        "Gateway API": pins.GATEWAY_API,
        "Inference extension": pins.INFERENCE_EXTENSION,
        "Envoy Gateway": pins.ENVOY_GATEWAY,
        "KEDA": pins.KEDA,
    }
    for name, version in pinned.items():
        assert written[name] == version.removeprefix("v"), name


def test_its_example_changes_image_host_and_size(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    here = os.path.relpath(MANIFESTS, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(example.replace("../manifests", here))
    objects = kustomized(tmp_path)
    [service] = [one for one in objects if one["kind"] == "InferenceService"]
    [container] = service["spec"]["predictor"]["containers"]
    assert container["image"] == "registry.example.com/qwen3-vl-server:0.1.0"
    assert container["resources"]["limits"]["memory"] == "8Gi"
    hosts = {
        host
        for one in objects
        if one["kind"] == "Ingress"
        for host in (one["spec"]["rules"][0]["host"], *one["spec"]["tls"][0]["hosts"])
    }
    assert hosts == {"pictures.example.com"}
