"""Where a canary's traffic and state are: the interface, and Gateway API routes behind it.

Two InferenceServices stand behind one weighted HTTPRoute. State and weights are written together,
against the version that was read, so that of two writers one is told that it was too late.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from model.canary import services
from model.canary.cluster import (
    COMPONENT,
    DEPLOYMENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    INFERENCE_POOL,
    INFERENCE_SERVICE,
    SERVICE,
    Kind,
)
from model.canary.errors import NotFound, Refused
from model.canary.observe import select_service
from model.canary.routes import (
    POOL_KIND,
    Presence,
    Split,
    canary_name,
    split_rules,
    why_not_weighted,
    why_refused,
)
from model.canary.state import ANNOTATION, Phase, State, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from model.canary.cluster import Cluster, Object
    from model.canary.routes import Ref

FOLLOWER_KINDS: Mapping[str, Kind] = {kind.plural: kind for kind in (HTTP_ROUTE, GRPC_ROUTE)}

BACKEND_KINDS: Mapping[str, Kind] = {"Service": SERVICE, POOL_KIND: INFERENCE_POOL}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The object that carries a canary, as it was read. state: None where there never was one."""

    body: Object
    state: State | None


class Traffic(Protocol):
    """What carries a canary's traffic and state, and the InferenceServices behind it."""

    kind: Kind
    name: str

    def read(self) -> Snapshot:
        """The object of now; raises NotFound, and Refused for a state that cannot be read."""

    def write(self, snapshot: Snapshot, state: State, *, dry_run: bool = False) -> Snapshot:
        """Put state and weights there; raises Conflict where it was written since it was read."""

    def follow(self, state: State) -> None:
        """Give the other routes the weights of the state."""

    def prepare(self, state: State, *, dry_run: bool = False) -> None:
        """Make the canary, where it is to be made and is not there; raises Refused."""

    def why_not_routed(self, state: State) -> str | None:
        """Why requests are not led as the state says; None where nobody has said so."""

    def why_not_ready(self, state: State) -> str | None:
        """Why the canary serves nothing; None where it does."""

    def selectors(self, state: State) -> tuple[str, str]:
        """PromQL selectors of the stable one's pods and of the canary's."""

    def canary_client(self, state: State) -> httpx.Client:
        """A client for the canary alone; raises Refused."""

    def why_not_promoted(self, state: State) -> str | None:
        """Make the stable one like the canary; why it does not serve yet, None where it does."""

    def leave(self, state: State) -> None:
        """When it is over: delete the canary that was made, and own nothing any more."""

    def record(self, state: State, reason: str, message: str, *, bad: bool) -> None:
        """An Event about what became of the canary."""


class RouteTraffic:
    """A canary behind an HTTPRoute, and behind those routes that follow it."""

    kind = HTTP_ROUTE

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    def read(self) -> Snapshot:
        """The route of now."""
        return snapshot_of(self._cluster.get(HTTP_ROUTE, self.name))

    def write(self, snapshot: Snapshot, state: State, *, dry_run: bool = False) -> Snapshot:
        """Put state and weights on the route; nothing is written where both are there."""
        body = with_state(snapshot.body, state)
        body["spec"] = self._split(body["spec"], HTTP_ROUTE, state)
        if body == snapshot.body:
            return snapshot
        return snapshot_of(self._cluster.replace(HTTP_ROUTE, body, dry_run=dry_run))

    def follow(self, state: State) -> None:
        """Give the routes that follow the weights of the state; one that is gone is left out."""
        for kind, name in _followers(state):

            def change(body: Object, kind: Kind = kind) -> Object:
                return {**body, "spec": self._split(body["spec"], kind, state)}

            try:
                self._cluster.edit(kind, name, change)
            except NotFound:
                continue

    def prepare(self, state: State, *, dry_run: bool = False) -> None:
        """Make the canary from the stable InferenceService, unless it is there."""
        found = self._cluster.find(INFERENCE_SERVICE, state.canary)
        if state.changes is None:
            if found is None:
                raise Refused(
                    f"InferenceService {state.canary} is not there; make it, or say with --image, "
                    "--set-env or --storage-uri what it has of its own"
                )
            return
        if found is not None:
            if services.revision_of(found) != state.id:
                raise Refused(
                    f"InferenceService {state.canary} is there already, and not of this canary; "
                    f"delete it, or use it as it is with --canary {state.canary} alone"
                )
            return
        stable = self._cluster.get(INFERENCE_SERVICE, state.stable)
        canary = services.make_canary(stable, state.canary, state.changes, state.id)
        self._cluster.create(INFERENCE_SERVICE, canary, dry_run=dry_run)

    def why_not_routed(self, state: State) -> str | None:
        """What a gateway has against one of the routes as it is now, or can do nothing with."""
        found = [self._cluster.find(*route) for route in self._routes(state)]
        reasons = (
            why_refused(route) or why_not_weighted(route, (state.stable, state.canary))
            for route in found
            if route is not None
        )
        return next(filter(None, reasons), None)

    def why_not_ready(self, state: State) -> str | None:
        """Why the canary's InferenceService is not Ready, or its routes do not lead to it."""
        found = self._cluster.find(INFERENCE_SERVICE, state.canary)
        if found is None:
            return f"InferenceService {state.canary} is not there"
        return services.why_not_ready(found) or self.why_not_routed(state)

    def selectors(self, state: State) -> tuple[str, str]:
        """By InferenceService."""
        namespace = self._cluster.namespace
        return select_service(namespace, state.stable), select_service(namespace, state.canary)

    def canary_client(self, state: State) -> httpx.Client:
        """The Service that KServe makes for the canary's InferenceService."""
        return self._cluster.service_client(services.service_name(state.canary), "80")

    def why_not_promoted(self, state: State) -> str | None:
        """Give the stable InferenceService the canary's predictor, and wait for its pods."""
        canary = self._cluster.find(INFERENCE_SERVICE, state.canary)
        stable = self._cluster.get(INFERENCE_SERVICE, state.stable)
        if services.revision_of(stable) != state.id:
            if canary is None:
                raise Refused(f"InferenceService {state.canary} is gone before it was promoted")

            def promoted(body: Object) -> Object:
                predictor = services.promote_predictor(
                    body["spec"]["predictor"], canary["spec"]["predictor"], state.id
                )
                return {**body, "spec": {**body["spec"], "predictor": predictor}}

            self._cluster.edit(INFERENCE_SERVICE, state.stable, promoted)
            return "its new spec is written"
        name = services.service_name(state.stable)
        deployment = self._cluster.find(DEPLOYMENT, name)
        if deployment is None:
            return f"Deployment {name} is not there"
        return services.why_not_rolled_out(deployment, state.id) or services.why_not_ready(stable)

    def leave(self, state: State) -> None:
        """Give the routes back to who manages them, and delete the InferenceService that was made.

        Server-side apply, as Helm 4 does it, would else refuse to write the rules that were written
        here last, though they are as they were.
        """
        for kind, name in self._routes(state):
            with contextlib.suppress(NotFound):
                self._cluster.edit(kind, name, disown)
        found = self._cluster.find(INFERENCE_SERVICE, state.canary)
        if state.removes_canary and found and services.revision_of(found) == state.id:
            self._cluster.delete(INFERENCE_SERVICE, state.canary)

    def record(self, state: State, reason: str, message: str, *, bad: bool) -> None:
        """An Event about the route, and one about the canary's InferenceService."""
        about = [(HTTP_ROUTE, self.name), (INFERENCE_SERVICE, state.canary)]
        for kind, name in about:
            found = self._cluster.find(kind, name)
            if found is not None:
                self._cluster.record(kind, found, reason, message, bad=bad)

    def _routes(self, state: State) -> list[tuple[Kind, str]]:
        return [(HTTP_ROUTE, self.name), *_followers(state)]

    def _split(self, spec: Object, kind: Kind, state: State) -> Object:
        split = Split(
            stable=state.stable,
            canary=state.canary,
            weight_percent=state.weight_percent,
            header=state.header if state.routes_header else None,
            presence=_presence(state),
            make_ref=lambda ref: self._make_ref(ref, kind, state),
        )
        return {**spec, "rules": split_rules(spec.get("rules", ()), split)}

    def _make_ref(self, ref: Ref, kind: Kind, state: State) -> Ref:
        """The canary's backend beside a stable one; raises Refused where there is none.

        A canary that was made here has no InferencePool: its Service stands beside the stable
        one's pool, where the gateway takes that.
        """
        name = canary_name(ref["name"], state.stable, state.canary)
        kind_of_ref = BACKEND_KINDS.get(ref.get("kind", "Service"))
        if kind_of_ref is not None and self._cluster.find(kind_of_ref, name) is not None:
            return {**ref, "name": name}
        service = self._cluster.find(SERVICE, services.service_name(state.canary))
        if service is None:
            raise Refused(f"the canary has no backend {name}, and no Service in its place")
        return {
            "group": "",
            "kind": "Service",
            "name": service["metadata"]["name"],
            "port": services.service_port(service, grpc=kind is GRPC_ROUTE),
        }


def snapshot_of(body: Object) -> Snapshot:
    """An object with the state that its annotation holds; raises Refused."""
    text = (body["metadata"].get("annotations") or {}).get(ANNOTATION)
    return Snapshot(body, None if text is None else parse(text))


def with_state(body: Object, state: State) -> Object:
    """The object with the state in its annotation."""
    metadata = body["metadata"]
    annotations = {**(metadata.get("annotations") or {}), ANNOTATION: state.dump()}
    return {**body, "metadata": {**metadata, "annotations": annotations}}


def disown(body: Object) -> Object:
    """The object, its fields no longer owned by this tool."""
    metadata = body["metadata"]
    owners = [one for one in metadata.get("managedFields", ()) if one.get("manager") != COMPONENT]
    if len(owners) == len(metadata.get("managedFields", ())):
        return body
    return {**body, "metadata": {**metadata, "managedFields": owners}}


def _followers(state: State) -> list[tuple[Kind, str]]:
    parts = [follower.partition("/") for follower in state.followers]
    return [(FOLLOWER_KINDS[plural], name) for plural, _, name in parts]


def _presence(state: State) -> Presence:
    if state.removes_canary:
        return Presence.DROPPED
    if state.phase in (Phase.PROGRESSING, Phase.PROMOTING):
        return Presence.ADDED
    return Presence.AS_IT_IS
