"""A canary in Knative mode: a new revision of the one InferenceService, and its percent.

KServe's controller turns `canaryTrafficPercent` into the traffic of a Knative Service. State, spec
and percent are on the same object. A revision's pods are told apart by their names, which begin
with the revision's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from model.canary.cluster import INFERENCE_SERVICE
from model.canary.errors import Refused
from model.canary.services import change_predictor, revision_of
from model.canary.state import Phase, State
from model.canary.traffic import snapshot_of, with_state

if TYPE_CHECKING:
    import httpx

    from model.canary.cluster import Cluster, Object
    from model.canary.traffic import Snapshot

PERCENT: Final = "canaryTrafficPercent"
# What the predictor was before: a rollback leaves the new spec there, at 0 %, as KServe has it.
STABLE_PREDICTOR: Final = "qwen3-vl.io/canary-stable-predictor"
# At 100 % KServe calls the canary's revision the one that is rolled out.
STABLE_REVISION: Final = "qwen3-vl.io/canary-stable-revision"


class KnativeTraffic:
    """A canary that is a revision of an InferenceService."""

    kind = INFERENCE_SERVICE

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self.name = name

    def read(self) -> Snapshot:
        """The InferenceService of now."""
        return snapshot_of(self._cluster.get(INFERENCE_SERVICE, self.name))

    def write(self, snapshot: Snapshot, state: State, *, dry_run: bool = False) -> Snapshot:
        """Put state, spec and percent on the InferenceService."""
        body = with_state(snapshot.body, state)
        if state.phase is Phase.STARTING and revision_of(body) != state.id:
            body = _with_changes(body, state)
        predictor = {**body["spec"]["predictor"], PERCENT: state.weight_percent}
        if state.phase is Phase.PROMOTED:
            del predictor[PERCENT]
            # `with_state` made these annotations anew: the snapshot keeps its own.
            body["metadata"]["annotations"].pop(STABLE_PREDICTOR, None)
        body["spec"] = {**body["spec"], "predictor": predictor}
        if body == snapshot.body:
            return snapshot
        return snapshot_of(self._cluster.replace(INFERENCE_SERVICE, body, dry_run=dry_run))

    def follow(self, state: State) -> None:
        """Nothing follows a revision."""

    def prepare(self, state: State, *, dry_run: bool = False) -> None:
        """Nothing more: the revision is made of the spec that `write` put there."""

    def why_not_routed(self, state: State) -> str | None:
        """Nothing: Knative's own routes are KServe's to write."""
        return None

    def why_not_ready(self, state: State) -> str | None:
        """Why the new revision is not ready."""
        stable, created, ready = self._revisions()
        if created == stable:
            return "Knative has not made its revision yet"
        return None if ready == created else f"revision {created} is not ready"

    def selectors(self, state: State) -> tuple[str, str]:
        """By the pods' names."""
        revisions = self._revisions()
        stable, canary = (
            f'namespace="{self._cluster.namespace}",pod=~"{revision}-deployment-.+"'
            for revision in revisions[:2]
        )
        return stable, canary

    def canary_client(self, state: State) -> httpx.Client:
        """None that is known: a revision has no Service that answers without Knative's gateway."""
        raise Refused("say where the new revision alone answers with --golden-url")

    def why_not_promoted(self, state: State) -> str | None:
        """The revision serves already; without a percent it gets everything."""
        return None

    def leave(self, state: State) -> None:
        """Nothing: Knative scales a revision without traffic to zero."""

    def record(self, state: State, reason: str, message: str, *, bad: bool) -> None:
        """An Event about the InferenceService."""
        found = self._cluster.find(INFERENCE_SERVICE, self.name)
        if found is not None:
            self._cluster.record(INFERENCE_SERVICE, found, reason, message, bad=bad)

    def _revisions(self) -> tuple[str | None, str | None, str | None]:
        """The stable one's, the newest, and the newest that is ready."""
        body = self._cluster.get(INFERENCE_SERVICE, self.name)
        status = _predictor_status(body)
        stable = body["metadata"]["annotations"].get(STABLE_REVISION)
        return stable, status.get("latestCreatedRevision"), status.get("latestReadyRevision")


def _predictor_status(body: Object) -> Object:
    components = body.get("status", {}).get("components") or {}
    return dict(components.get("predictor") or {})


def _with_changes(body: Object, state: State) -> Object:
    """The InferenceService with the canary's spec, made from what was stable last."""
    annotations = body["metadata"]["annotations"]
    kept = annotations.get(STABLE_PREDICTOR)
    predictor = json.loads(kept) if kept else dict(body["spec"]["predictor"])
    predictor.pop(PERCENT, None)
    if state.changes is None:
        raise Refused("say what the new revision has of its own: --image, --set-env, --storage-uri")
    changed = change_predictor(predictor, state.changes, state.id)
    revision = _predictor_status(body).get("latestRolledoutRevision")
    if revision is None:
        raise Refused(
            f"{body['metadata']['name']} has no revision that is rolled out: is it "
            "Ready, and in Knative mode?"
        )
    kept_now = {STABLE_PREDICTOR: json.dumps(predictor), STABLE_REVISION: revision}
    metadata = {**body["metadata"], "annotations": {**annotations, **kept_now}}
    return {**body, "metadata": metadata, "spec": {**body["spec"], "predictor": changed}}
