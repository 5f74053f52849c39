"""A release's life: installed, asked, tested, upgraded, rolled back, uninstalled."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.cluster.components.gateway import NAMESPACE as GATEWAY_NAMESPACE
from tests.cluster.load import mixture
from tests.cluster.pickers import POOLS, Pickers
from tests.cluster.release import PICKED, Release, merged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.gateway import GatewayController
    from tests.cluster.components.kserve import KServe
    from tests.cluster.load import Front

# What Kubernetes writes about others' objects, and forgets by itself.
RECORDS = {"events", "events.events.k8s.io"}
SETTING = "QVL_ENGINE__MAX_SEQUENCES"
GONE_SECONDS = 120.0
# Helm waits for all of a release to be ready, and fails then.
WAIT = "120s"
NUM_PICKERS = 2


class Objects(NamedTuple):
    """kind/name of all that a release's namespace holds, the gateways', and of what is in none."""

    inside: set[str]
    beside: set[str]
    outside: set[str]


@pytest.fixture(scope="module")
def place(cluster: Cluster, gateway: GatewayController) -> Iterator[str]:
    """A namespace."""
    del gateway
    with cluster.namespace("install") as namespace:
        yield namespace


@pytest.fixture(scope="module")
def before(cluster: Cluster, place: str) -> Objects:
    """What there was before the release."""
    return objects(cluster, place)


@pytest.fixture(scope="module")
def release(cluster: Cluster, kserve: KServe, place: str, before: Objects) -> Release:
    """The CPU demo behind a Gateway with pickers, installed."""
    del before
    installed = Release(cluster, kserve, place)
    # Nobody asks while pods are replaced.
    values = {"shutdown": {"unreadySeconds": 1}, "picker": {"replicas": NUM_PICKERS}}
    installed.install(merged(PICKED, values), "--wait", "--timeout", WAIT)
    return installed


@pytest.fixture(scope="module")
def fronts(release: Release, gateway: GatewayController) -> tuple[Front, Front]:
    """Its Service, and its Gateway."""
    return release.front(), release.picked_front(gateway)


def objects(cluster: Cluster, namespace: str) -> Objects:
    """All that the API server has, but for records."""
    inside, outside = kinds(cluster, "--namespaced=true"), kinds(cluster, "--namespaced=false")

    def listed(wanted: str, *where: str) -> set[str]:
        found = cluster.kubectl("get", wanted, *where, "--output=name", "--ignore-not-found")
        return set(found.split())

    with ThreadPoolExecutor() as threads:
        asked = [
            threads.submit(listed, inside, "--namespace", namespace),
            threads.submit(listed, inside, "--namespace", GATEWAY_NAMESPACE),
            threads.submit(listed, outside),
        ]
    return Objects(*(one.result() for one in asked))


@cache
def kinds(cluster: Cluster, scope: str) -> str:
    """All that can be listed, but for records."""
    names = cluster.kubectl("api-resources", "--verbs=list", scope, "--output=name").split()
    return ",".join(name for name in names if name not in RECORDS)


def setting(release: Release) -> str:
    """What the one ready pod is told of a setting."""
    [pod] = release.ready_pods()
    [container] = pod["spec"]["containers"]
    return str(next(one["value"] for one in container["env"] if one["name"] == SETTING))


def test_helm_has_waited_for_all_of_it(release: Release) -> None:
    history = json.loads(release.helm("history", release.name, "--output", "json"))
    assert [one["status"] for one in history] == ["deployed"]
    assert len(release.ready_pods()) == 1
    pickers = Pickers(release)
    assert [len(pickers.ready(pool)) for pool in POOLS] == [NUM_PICKERS] * len(POOLS)


def test_a_picture_is_described_in_every_protocol_through_service_and_gateway(
    fronts: tuple[Front, Front], sample_image: bytes
) -> None:
    answers = [described(front, sample_image) for front in fronts]
    # The same picture, model and greedy choice of tokens, whichever way it is asked.
    assert len({text for each in answers for text in each.values()}) == 1, answers
    assert all(answers[0].values())


def described(front: Front, image: bytes) -> dict[str, str]:
    """What each kind of request is told of a picture."""
    senders = mixture(front, image)
    answers = {sender.kind: sender.send().strip() for sender in senders}
    for sender in senders:
        sender.close()
    return answers


def test_helm_s_own_test_describes_a_picture(release: Release) -> None:
    told = release.helm("test", release.name)
    assert "Succeeded" in told
    # What it did is told by the log alone: the chart takes a test that succeeded away.
    [log] = (release.cluster.log_folder / release.namespace).glob("*-test/describe.log")
    assert log.read_text().strip()


def test_an_upgrade_changes_the_pods_and_a_rollback_brings_the_old_ones_back(
    release: Release, fronts: tuple[Front, Front], sample_image: bytes
) -> None:
    [before] = release.ready_pods()
    assert setting(release) == "16"
    release.upgrade({"settings": {"engine": {"max_sequences": 8}}})
    [upgraded] = release.ready_pods()
    assert upgraded["metadata"]["uid"] != before["metadata"]["uid"]
    assert setting(release) == "8"
    release.rollback(1)
    [back] = release.ready_pods()
    assert back["metadata"]["uid"] not in {one["metadata"]["uid"] for one in (before, upgraded)}
    assert setting(release) == "16"
    for front in fronts:
        assert all(described(front, sample_image).values())
    history = json.loads(release.helm("history", release.name, "--output", "json"))
    assert [one["status"] for one in history] == ["superseded", "superseded", "deployed"]


def test_an_uninstalled_release_leaves_nothing(
    cluster: Cluster, release: Release, before: Objects
) -> None:
    def made() -> set[str]:
        # Others' namespaces may go meanwhile.
        now = objects(cluster, release.namespace)
        return set().union(*(have - had for have, had in zip(now, before, strict=True)))

    there = made()
    assert f"inferenceservice.serving.kserve.io/{release.service_name}" in there
    assert f"deployment.apps/{release.deployment}" in there
    assert f"inferencepool.inference.networking.k8s.io/{release.service_name}-v2" in there
    # Its Envoy.
    assert any(one.startswith(f"deployment.apps/envoy-{release.namespace}-") for one in there)
    release.uninstall()
    try:
        cluster.wait_for(lambda: not made(), "nothing is left", seconds=GONE_SECONDS, every=1.0)
    except AssertionError as error:
        raise AssertionError(f"{error}: {sorted(made())}") from None
