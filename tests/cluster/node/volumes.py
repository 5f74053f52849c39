"""A pod's volumes as folders: written once before its containers start, then bind-mounted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.cluster.node.environment import ConfigMissing, configuration, field_value

if TYPE_CHECKING:
    from tests.cluster.node.api import Api, Json

MINIMUM_TOKEN_SECONDS: Final = 600
DEFAULT_MODE: Final = 0o644


@dataclass(frozen=True)
class Volume:
    """Where a volume's content lies, or that it is memory of its own."""

    path: Path
    # A folder that only the pod writes: its group becomes fsGroup.
    owned: bool = False


def make_volumes(api: Api, pod: Json, folder: Path, address: str) -> dict[str, Volume]:
    """All volumes of the pod, by name.

    Raises ConfigMissing while a ConfigMap, Secret or claim is not there.
    """
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    volumes = {}
    for volume in pod["spec"].get("volumes") or ():
        made = _make(api, pod, volume, folder / volume["name"], address)
        if group is not None and made.owned:
            _give_to_group(made.path, int(group))
        volumes[volume["name"]] = made
    return volumes


def _make(api: Api, pod: Json, volume: Json, path: Path, address: str) -> Volume:
    namespace = pod["metadata"]["namespace"]
    if "hostPath" in volume:
        return Volume(Path(volume["hostPath"]["path"]))
    if "persistentVolumeClaim" in volume:
        return Volume(_claimed(api, namespace, volume["persistentVolumeClaim"]["claimName"]))
    path.mkdir(parents=True, exist_ok=True)
    if "emptyDir" in volume:
        path.chmod(0o777)
    elif "configMap" in volume:
        source = volume["configMap"] | {"name": volume["configMap"].get("name", "")}
        _write_configuration(api, namespace, "configmaps", source, path)
    elif "secret" in volume:
        source = volume["secret"] | {"name": volume["secret"]["secretName"]}
        _write_configuration(api, namespace, "secrets", source, path)
    elif "downwardAPI" in volume:
        _write_fields(pod, volume["downwardAPI"], path, address)
    elif "projected" in volume:
        for source in volume["projected"].get("sources") or ():
            _project(api, pod, source, path, address)
    else:
        kind = next(key for key in volume if key != "name")
        raise ConfigMissing(f"volume {volume['name']}: this node knows no {kind}")
    return Volume(path, owned=True)


def _project(api: Api, pod: Json, source: Json, path: Path, address: str) -> None:
    namespace = pod["metadata"]["namespace"]
    if "serviceAccountToken" in source:
        wanted = source["serviceAccountToken"]
        (path / wanted["path"]).write_text(_token(api, pod, wanted))
        (path / wanted["path"]).chmod(DEFAULT_MODE)
    if "configMap" in source:
        _write_configuration(api, namespace, "configmaps", source["configMap"], path)
    if "secret" in source:
        _write_configuration(api, namespace, "secrets", source["secret"], path)
    if "downwardAPI" in source:
        _write_fields(pod, source["downwardAPI"], path, address)


def _write_configuration(api: Api, namespace: str, kind: str, source: Json, path: Path) -> None:
    found = configuration(api, namespace, kind, source["name"])
    if found is None:
        if source.get("optional"):
            return
        raise ConfigMissing(f"{kind} {source['name']} not found")
    items = source.get("items") or [{"key": key, "path": key} for key in found]
    for item in items:
        if item["key"] not in found:
            raise ConfigMissing(f"key {item['key']} not found in {kind} {source['name']}")
        target = path / item["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found[item["key"]])
        target.chmod(item.get("mode") or source.get("defaultMode") or DEFAULT_MODE)


def _write_fields(pod: Json, source: Json, path: Path, address: str) -> None:
    for item in source.get("items") or ():
        target = path / item["path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(field_value(pod, item["fieldRef"]["fieldPath"], address))


def _token(api: Api, pod: Json, wanted: Json) -> str:
    """A token of the pod's service account, bound to the pod. It is not renewed."""
    metadata = pod["metadata"]
    account = pod["spec"].get("serviceAccountName", "default")
    bound_to = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    spec = {
        "audiences": [wanted["audience"]] if wanted.get("audience") else [],
        "expirationSeconds": max(wanted.get("expirationSeconds", 3607), MINIMUM_TOKEN_SECONDS),
        "boundObjectRef": bound_to,
    }
    path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return str(api.create(path, request)["status"]["token"])


def _claimed(api: Api, namespace: str, claim: str) -> Path:
    """The folder behind a bound claim."""
    found = api.find(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
    name = (found or {}).get("spec", {}).get("volumeName")
    if not name:
        raise ConfigMissing(f"claim {claim} is not bound")
    spec = api.get(f"/api/v1/persistentvolumes/{name}")["spec"]
    return Path((spec.get("hostPath") or spec["local"])["path"])


def _give_to_group(path: Path, group: int) -> None:
    for one in (path, *path.rglob("*")):
        os.chown(one, -1, group)
        mode = one.stat().st_mode
        one.chmod(mode | (0o2070 if one.is_dir() else 0o060 if mode & 0o200 else 0o040))
