"""InferenceServices as JSON: a canary made from the stable one, the stable one made like the
canary, and whether one of them serves. Pure.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from model.canary.errors import Refused

if TYPE_CHECKING:
    from model.canary.state import Changes

Object: TypeAlias = dict[str, Any]

CONTAINER: Final = "kserve-container"
CANARY_OF: Final = "qwen3-vl.io/canary-of"
# On the pods, through the predictor's annotations: when the Deployment has it, KServe has seen the
# spec that it came with.
REVISION: Final = "qwen3-vl.io/revision"
H2C: Final = "kubernetes.io/h2c"
# How many pods a version has is no part of the version.
SCALE_FIELDS: Final = (
    "minReplicas",
    "maxReplicas",
    "scaleTarget",
    "scaleMetric",
    "scaleMetricType",
    "autoScaling",
    "canaryTrafficPercent",
)
# Of whoever made the stable one; a release that found its labels on a canary would take it over.
NOT_COPIED: Final = (
    "meta.helm.sh/",
    "helm.sh/",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/instance",
    "kubectl.kubernetes.io/",
    "argocd.argoproj.io/",
    "kustomize.toolkit.fluxcd.io/",
    "helm.toolkit.fluxcd.io/",
    "qwen3-vl.io/canary",
)


def make_canary(stable: Object, name: str, changes: Changes, revision: str) -> Object:
    """A canary: the stable InferenceService under another name, changed. Raises Refused."""
    metadata = stable["metadata"]
    predictor = change_predictor(stable["spec"]["predictor"], changes, revision)
    _keep_model_name(predictor, metadata["name"])
    predictor["minReplicas"] = changes.replicas
    predictor["maxReplicas"] = max(changes.replicas, predictor.get("maxReplicas") or 0)
    return {
        "apiVersion": stable["apiVersion"],
        "kind": stable["kind"],
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {**_copied(metadata.get("labels")), CANARY_OF: metadata["name"]},
            "annotations": _copied(metadata.get("annotations")),
        },
        "spec": {**stable["spec"], "predictor": predictor},
    }


def change_predictor(predictor: Object, changes: Changes, revision: str) -> Object:
    """A predictor with another image, other variables or another model; raises Refused."""
    changed = copy.deepcopy(predictor)
    changed.pop("canaryTrafficPercent", None)
    container = _container(changed)
    if changes.image is not None:
        container["image"] = changes.image
    for name, value in changes.env.items():
        _set_variable(container, name, value)
    if changes.storage_uri is not None:
        _set_storage(changed, container, changes.storage_uri)
    changed["annotations"] = {**(changed.get("annotations") or {}), REVISION: revision}
    return changed


def promote_predictor(stable: Object, canary: Object, revision: str) -> Object:
    """The stable one's predictor: the canary's, at the stable one's scale."""
    predictor = {key: value for key, value in canary.items() if key not in SCALE_FIELDS}
    scale = {key: value for key, value in stable.items() if key in SCALE_FIELDS}
    annotations = {**(predictor.get("annotations") or {}), REVISION: revision}
    return copy.deepcopy({**predictor, **scale, "annotations": annotations})


def service_name(service: str) -> str:
    """The Service and the Deployment that KServe makes of an InferenceService's predictor."""
    return f"{service}-predictor"


def service_port(service: Object, *, grpc: bool) -> int:
    """The port of a Service that a route's backend names: h2c for gRPC, else the first."""
    ports = service["spec"]["ports"]
    h2c = [port for port in ports if port.get("appProtocol") == H2C]
    if grpc and not h2c:
        raise Refused(f"Service {service['metadata']['name']} has no port with appProtocol {H2C}")
    return int((h2c if grpc else ports)[0]["port"])


def revision_of(service: Object) -> str | None:
    """Which canary gave an InferenceService its spec."""
    annotations = service["spec"]["predictor"].get("annotations") or {}
    return annotations.get(REVISION)


def why_not_ready(service: Object) -> str | None:
    """Why an InferenceService serves nothing; None where it is Ready."""
    conditions = service.get("status", {}).get("conditions", ())
    [ready] = [one for one in conditions if one.get("type") == "Ready"][:1] or [{}]
    if ready.get("status") == "True":
        return None
    words = [ready.get("reason"), ready.get("message")]
    detail = ": ".join(word for word in words if word)
    return f"{service['metadata']['name']} is not Ready{f' ({detail})' if detail else ''}"


def why_not_rolled_out(deployment: Object, revision: str) -> str | None:
    """Why a Deployment is not yet what it should become, as `kubectl rollout status` judges."""
    spec, status = deployment["spec"], deployment.get("status", {})
    template = spec["template"]["metadata"].get("annotations") or {}
    if template.get(REVISION) != revision:
        return "KServe has not seen the new spec yet"
    if status.get("observedGeneration", 0) < deployment["metadata"]["generation"]:
        return "its Deployment has not been seen yet"
    wanted, updated = spec.get("replicas", 1), status.get("updatedReplicas", 0)
    if updated < wanted:
        return f"{updated} of {wanted} pods are new"
    if status.get("replicas", 0) > updated:
        return f"{status['replicas'] - updated} old pods are left"
    if status.get("availableReplicas", 0) < updated:
        return f"{status.get('availableReplicas', 0)} of {wanted} pods are available"
    return None


def _copied(values: dict[str, str] | None) -> dict[str, str]:
    return {k: v for k, v in (values or {}).items() if not k.startswith(NOT_COPIED)}


def _container(predictor: Object) -> Object:
    """What the model runs in: the custom container, or the model that a runtime is found for."""
    for container in predictor.get("containers", ()):
        if container.get("name") == CONTAINER:
            return container  # type: ignore[no-any-return]
    if "model" in predictor:
        return predictor["model"]  # type: ignore[no-any-return]
    raise Refused(f"the predictor has neither a container named {CONTAINER} nor a model")


def _keep_model_name(predictor: Object, stable: str) -> None:
    """Paths contain the model's name, and a runtime calls it by its InferenceService's name."""
    model = predictor.get("model")
    if model is None:
        return
    args = list(model.get("args", ()))
    if not any(arg.partition("=")[0] == "--model_name" for arg in args):
        model["args"] = [*args, f"--model_name={stable}"]


def _set_variable(container: Object, name: str, value: str) -> None:
    others = [one for one in container.get("env", ()) if one["name"] != name]
    container["env"] = [*others, {"name": name, "value": value}]


def _set_storage(predictor: Object, container: Object, uri: str) -> None:
    """Where the model comes from, where the stable one says it; raises Refused."""
    if "model" in predictor:
        predictor["model"]["storageUri"] = uri
        return
    places = predictor.get("storageUris")
    if not places:
        _set_variable(container, "STORAGE_URI", uri)
    elif len(places) == 1:
        places[0]["uri"] = uri
    else:
        raise Refused(
            f"the stable one has {len(places)} storageUris; --storage-uri replaces one. Make the "
            "canary's InferenceService yourself and name it with --canary"
        )
