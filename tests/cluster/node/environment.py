"""A container's environment and command line, from its pod's specification."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.cluster.node.api import Api, Json

_REFERENCE: Final = re.compile(r"\$(\$|\(([-._a-zA-Z0-9]+)\))")
_KEYED: Final = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


class ConfigMissing(Exception):
    """A ConfigMap, Secret or key that a container needs is not there (yet)."""


def container_environment(api: Api, pod: Json, container: Json, address: str) -> dict[str, str]:
    """What the container's process finds in its environment, less what its image gives."""
    namespace = pod["metadata"]["namespace"]
    environment = _service_links(api, pod) if pod["spec"].get("enableServiceLinks", True) else {}
    environment |= _kubernetes_service(api)
    for source in container.get("envFrom") or ():
        prefix = source.get("prefix", "")
        for key, value in _whole_source(api, namespace, source).items():
            environment[prefix + key] = value
    for variable in container.get("env") or ():
        if "valueFrom" in variable:
            found = _value_from(api, pod, container, address, variable["valueFrom"])
            if found is not None:
                environment[variable["name"]] = found
        else:
            environment[variable["name"]] = expand(variable.get("value") or "", environment)
    return environment


def expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` by its value where there is one; `$$` is a dollar sign."""

    def replacement(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return environment.get(match[2], match[0])

    return _REFERENCE.sub(replacement, text)


def command_line(
    container: Json,
    entrypoint: Sequence[str],
    arguments: Sequence[str],
    environment: Mapping[str, str],
) -> list[str]:
    """`command` replaces an image's entry point and arguments, `args` its arguments."""
    if container.get("command"):
        line = [*container["command"], *(container.get("args") or ())]
    else:
        line = [*entrypoint, *(container.get("args") or arguments)]
    return [expand(part, environment) for part in line]


def field_value(pod: Json, path: str, address: str) -> str:
    """A field that the downward API knows.

    Raises ConfigMissing for one it does not know.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    plain: dict[str, Any] = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": address,
        "status.podIPs": address,
        "status.hostIP": pod.get("status", {}).get("hostIP", ""),
    }
    if path in plain:
        return str(plain[path])
    if keyed := _KEYED.fullmatch(path):
        return str(metadata.get(keyed[1], {}).get(keyed[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        pairs = metadata.get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{value}"' for key, value in sorted(pairs.items()))
    raise ConfigMissing(f"the downward API has no field {path}")


def configuration(api: Api, namespace: str, kind: str, name: str) -> dict[str, bytes] | None:
    """All keys of a ConfigMap (kind `configmaps`) or Secret (`secrets`); None where it is not."""
    found = api.find(f"/api/v1/namespaces/{namespace}/{kind}/{name}")
    if found is None:
        return None
    if kind == "secrets":
        return {key: base64.b64decode(text) for key, text in (found.get("data") or {}).items()}
    plain = {key: text.encode() for key, text in (found.get("data") or {}).items()}
    binary = (found.get("binaryData") or {}).items()
    return plain | {key: base64.b64decode(text) for key, text in binary}


def _whole_source(api: Api, namespace: str, source: Json) -> dict[str, str]:
    kind, reference = _reference(source, "configMapRef", "secretRef")
    found = configuration(api, namespace, kind, reference["name"])
    if found is None:
        if reference.get("optional"):
            return {}
        raise ConfigMissing(f"{kind} {reference['name']} not found")
    return {key: value.decode() for key, value in found.items()}


def _value_from(api: Api, pod: Json, container: Json, address: str, source: Json) -> str | None:
    """The value, or None for an optional one that is not there."""
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"], address)
    if "resourceFieldRef" in source:
        return _resource(container, source["resourceFieldRef"]["resource"])
    kind, reference = _reference(source, "configMapKeyRef", "secretKeyRef")
    found = configuration(api, pod["metadata"]["namespace"], kind, reference["name"]) or {}
    if reference["key"] in found:
        return found[reference["key"]].decode()
    if reference.get("optional"):
        return None
    raise ConfigMissing(f"key {reference['key']} not found in {kind} {reference['name']}")


def _reference(source: Json, config_map: str, secret: str) -> tuple[str, Json]:
    if config_map in source:
        return "configmaps", source[config_map]
    return "secrets", source[secret]


def _resource(container: Json, path: str) -> str:
    kind, _, name = path.partition(".")
    amounts = (container.get("resources") or {}).get(kind) or {}
    return str(amounts.get(name, "0"))


def _kubernetes_service(api: Api) -> dict[str, str]:
    service = api.get("/api/v1/namespaces/default/services/kubernetes")
    return _links_of(service)


def _service_links(api: Api, pod: Json) -> dict[str, str]:
    """The variables for each Service of the namespace, as Docker's links had them."""
    services = api.get(f"/api/v1/namespaces/{pod['metadata']['namespace']}/services")
    links: dict[str, str] = {}
    for service in services["items"]:
        if service["spec"].get("clusterIP") not in (None, "", "None"):
            links |= _links_of(service)
    return links


def _links_of(service: Json) -> dict[str, str]:
    name = service["metadata"]["name"].upper().replace("-", "_")
    host, ports = service["spec"]["clusterIP"], service["spec"]["ports"]
    first = ports[0]["port"]
    links = {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": str(first),
        f"{name}_PORT": f"tcp://{host}:{first}",
    }
    for port in ports:
        if port.get("name"):
            suffix = port["name"].upper().replace("-", "_")
            links[f"{name}_SERVICE_PORT_{suffix}"] = str(port["port"])
    return links
