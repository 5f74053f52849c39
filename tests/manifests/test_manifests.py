"""The plain manifests: rendered from the chart as it is, and understood by the server."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.serving.arguments import parse_settings
from model.settings import JobSettings, RequestSettings, Settings, environment_names
from model.ui.settings import PageSettings
from tests.chart.helm import tool
from tests.manifests.kustomize import FOLDERS, MANIFESTS, containers, kustomized
from tests.manifests.render import OVERLAYS, helm_template, render
from tests.serving import ROOT

MIB = 1 << 20
# KServe's, where a service names none.
KSERVE_GRACE_SECONDS = 30
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SERVED = [folder for folder in FOLDERS if not folder.endswith("example")]


def keyed(objects: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """By what a cluster knows them by."""
    return {(one["apiVersion"], one["kind"], one["metadata"]["name"]): one for one in objects}


def servers(folder: str) -> list[dict[str, Any]]:
    """The containers of a folder that run the server."""
    found = [
        one for one in containers(kustomized(folder)) if "qwen3-vl-server" in one.get("image", "")
    ]
    assert found
    return found


def read_by_server(container: dict[str, Any]) -> Settings:
    """The settings that its arguments and variables make; fails on a name the server refuses."""
    variables = {one["name"]: one.get("value", "") for one in container["env"]}
    arguments = [one.replace("{{.Name}}", "photos") for one in container["args"]]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        settings, unused = parse_settings(arguments, variables)
    assert not unused
    return settings


def test_what_is_rendered_is_the_chart_as_it_is() -> None:
    for folder, files in render(Path(tool("helm"))).items():
        found = {path.name: path.read_text() for path in (MANIFESTS / folder).iterdir()}
        assert found == files, f"manifests/{folder} is stale: make manifests"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_gives_what_helm_gives_with_its_values(name: str) -> None:
    expected = helm_template(Path(tool("helm")), OVERLAYS[name])
    given = keyed(kustomized(f"overlays/{name}"))
    assert given == {key: one.content for key, one in expected.items()}


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_kustomization_renders_objects_that_differ_in_name(folder: str) -> None:
    objects = kustomized(folder)
    assert objects
    assert len(keyed(objects)) == len(objects)


@pytest.mark.parametrize("folder", SERVED)
def test_every_variable_and_flag_is_a_setting(folder: str) -> None:
    for container in servers(folder):
        names = {one["name"] for one in container["env"]}
        assert {name for name in names if name.startswith("QVL_")} <= environment_names()
        read_by_server(container)


@pytest.mark.parametrize("folder", SERVED)
def test_the_image_is_this_version_and_runs_as_it_was_made_to(folder: str) -> None:
    for container in servers(folder):
        assert container["image"].startswith(f"qwen3-vl-server:{VERSION}")
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert [port["name"] for port in container["ports"]] == ["http1", "h2c"]


def test_every_file_by_hand_is_reached() -> None:
    # A file that no kustomization names would be applied by nobody.
    for path in MANIFESTS.rglob("kustomization.yaml"):
        listed = yaml.safe_load(path.read_text())["resources"]
        others = {one.name for one in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
        assert others == {one for one in listed if one.endswith(".yaml")}


class TestServingRuntime:
    RUNTIMES = ("serving-runtime/cluster", "serving-runtime/namespaced")

    @pytest.mark.parametrize("folder", RUNTIMES)
    def test_a_service_that_names_the_format_gets_it(self, folder: str) -> None:
        [runtime] = kustomized(folder)
        [example] = kustomized("serving-runtime/example")
        model = example["spec"]["predictor"]["model"]
        [supported] = runtime["spec"]["supportedModelFormats"]
        assert supported["name"] == model["modelFormat"]["name"] == "qwen3-vl"
        assert supported["autoSelect"]
        assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]

    def test_both_are_the_same_but_for_their_kind(self) -> None:
        whole, part = ({**kustomized(folder)[0]} for folder in self.RUNTIMES)
        assert (whole.pop("kind"), part.pop("kind")) == ("ClusterServingRuntime", "ServingRuntime")
        assert whole == part

    def test_the_services_name_and_its_weights_reach_the_server(self) -> None:
        settings = read_by_server(servers("serving-runtime/cluster")[0])
        assert settings.model.names == ("photos",)
        assert str(settings.model.dir) == "/mnt/models"

    def test_a_drain_ends_before_the_grace_period(self) -> None:
        [runtime] = servers("serving-runtime/cluster")
        server = read_by_server(runtime).server
        assert server.unready_seconds + server.drain_seconds + 10 <= KSERVE_GRACE_SECONDS
        predictor = kustomized("serving-runtime/example")[0]["spec"]["predictor"]
        # KServe lays the service's variables over the runtime's.
        env = runtime["env"] + predictor["model"]["env"]
        server = read_by_server({**runtime, "env": env}).server
        grace = predictor["terminationGracePeriodSeconds"]
        assert server.unready_seconds + server.drain_seconds + 10 <= grace


class TestIngress:
    @pytest.fixture
    def ingresses(self) -> dict[str, dict[str, Any]]:
        """Name → Ingress, with annotations under their short names."""
        found = [one for one in kustomized("overlays/ingress-nginx") if one["kind"] == "Ingress"]
        for one in found:
            notes = one["metadata"]["annotations"]
            one["short"] = {name.rpartition("/")[2]: value for name, value in notes.items()}
        return {one["metadata"]["name"]: one for one in found}

    def test_bodies_as_large_as_the_server_takes_come_through(
        self, ingresses: dict[str, dict[str, Any]]
    ) -> None:
        largest = max(RequestSettings().max_body_bytes, JobSettings().max_body_bytes)
        size = ingresses["qwen3-vl"]["short"]["proxy-body-size"]
        assert size == f"{largest // MIB}m"
        assert ingresses["qwen3-vl-grpc"]["short"]["proxy-body-size"] == "0"

    def test_streams_are_not_gathered(self, ingresses: dict[str, dict[str, Any]]) -> None:
        assert ingresses["qwen3-vl"]["short"]["proxy-buffering"] == "off"
        assert ingresses["qwen3-vl-grpc"]["short"]["backend-protocol"] == "GRPC"

    def test_one_certificate_covers_every_host(self, ingresses: dict[str, dict[str, Any]]) -> None:
        assert {json.dumps(one["spec"]["tls"]) for one in ingresses.values()} == {
            json.dumps([{"hosts": ["qwen3-vl.example.com"], "secretName": "qwen3-vl-tls"}])
        }
        # Two that ask for the same Secret would each make a Certificate of it.
        issuers = [one["short"].get("issuer") for one in ingresses.values()]
        assert sorted(filter(None, issuers)) == ["qwen3-vl"]

    def test_backends_are_the_ports_of_kserves_service(
        self, ingresses: dict[str, dict[str, Any]]
    ) -> None:
        [service] = [
            one for one in kustomized("overlays/ingress-nginx") if one["kind"] == "InferenceService"
        ]
        name = f"{service['metadata']['name']}-predictor"
        [container] = service["spec"]["predictor"]["containers"]
        # KServe gives the first port the number 80 and leaves the others.
        numbers = [80, *(port["containerPort"] for port in container["ports"][1:])]
        backends = {
            (path["backend"]["service"]["name"], path["backend"]["service"]["port"]["number"])
            for one in ingresses.values()
            for rule in one["spec"]["rules"]
            for path in rule["http"]["paths"]
        }
        assert backends == {(name, number) for number in numbers}


def test_the_page_understands_what_it_is_given() -> None:
    for folder in ("overlays/cpu-demo", "overlays/gateway"):
        [page] = [one for one in containers(kustomized(folder)) if "qwen3-vl-ui" in one["image"]]
        assert page["image"] == f"qwen3-vl-ui:{VERSION}"
        variables = {
            one["name"].removeprefix("QWEN3VL_UI_").lower(): one["value"]
            for one in page["env"]
            if one["name"].startswith("QWEN3VL_UI_")
        }
        # Closed: a name that is no setting of the page's is refused.
        assert PageSettings(**variables).api.startswith("http://qwen3-vl-predictor.")
