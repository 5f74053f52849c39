"""Every combination of values, judged by the API server and KServe's webhooks in a dry run."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.chart.combinations import COMBINATIONS, Values, files
from tests.chart.helm import HelmError, Object, render
from tests.cluster.cluster import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.cluster import Cluster
    from tests.cluster.components.kserve import KServe

ALL = {**COMBINATIONS, **files()}
NUM_AT_A_TIME = 3
# Operators that the chart writes for, and no cluster of these tests need have.
ELSEWHERE = {
    "cert-manager.io",
    "gateway.envoyproxy.io",
    "gateway.nginx.org",
    "monitoring.coreos.com",
    "networking.gke.io",
    "networking.istio.io",
    "security.istio.io",
}


@pytest.fixture(scope="module")
def place(cluster: Cluster, kserve: KServe) -> Iterator[str]:
    """A namespace to apply to, beside one for those who watch."""
    del kserve
    watchers = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "monitoring"}}
    cluster.apply([watchers])
    with cluster.namespace("values") as namespace:
        yield namespace


@pytest.fixture(scope="module")
def known(cluster: Cluster, place: str) -> set[tuple[str, str]]:
    """(apiVersion, kind) of all that the API server serves."""
    rows = cluster.kubectl("api-resources", "--no-headers").splitlines()
    return {(row.split()[-3], row.split()[-1]) for row in rows}


def dry_run(cluster: Cluster, objects: list[Object]) -> str:
    """Let the API server, its admission and all webhooks judge them; nothing is kept."""
    return cluster.kubectl(
        *("apply", "--server-side", "--dry-run=server", "-f", "-"),
        stdin=yaml.dump_all(objects, Dumper=yaml.CSafeDumper),
    )


def group(one: Object) -> str:
    return str(one["apiVersion"]).rpartition("/")[0]


def judge(cluster: Cluster, place: str, known: set[tuple[str, str]], values: Values) -> None:
    """Fail where a combination of values is not accepted."""
    objects = render(values, namespace=place)
    foreign = [one for one in objects if (one["apiVersion"], one["kind"]) not in known]
    assert {group(one) for one in foreign} <= ELSEWHERE
    ours = [one for one in objects if one not in foreign]
    told = dry_run(cluster, ours)
    assert len(told.splitlines()) == len(ours)
    assert "inferenceservice.serving.kserve.io/" in told


@pytest.fixture(scope="module")
def judgements(
    cluster: Cluster, place: str, known: set[tuple[str, str]]
) -> Iterator[dict[str, Future[None]]]:
    """Of all combinations, a few at a time: each is a chain of programs, of which one runs."""
    with ThreadPoolExecutor(NUM_AT_A_TIME) as threads:
        yield {
            name: threads.submit(judge, cluster, place, known, values)
            for name, values in ALL.items()
        }


@pytest.mark.parametrize("name", ALL)
def test_every_combination_of_values_is_accepted(
    judgements: dict[str, Future[None]], name: str
) -> None:
    judgements[name].result()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param(
            {"commonLabels": {"team": "vision & more"}},
            'Invalid value: "vision & more"',
            id="a label, by the API server",
        ),
        pytest.param(
            {"deploymentMode": "Knative", "knative": {"minReplicas": 5, "maxReplicas": 4}},
            "'MinReplicas' cannot be greater than MaxReplicas",
            id="more replicas at least than at most, by KServe's webhook",
        ),
        pytest.param(
            {"autoscaling": {"mode": "hpa", "behavior": {"scaleUp": {"selectPolicy": "Most"}}}},
            "/autoscaling/behavior/scaleUp/selectPolicy",
            id="an HPA's behaviour, by the chart's schema",
        ),
        pytest.param(
            {"networkPolicy": {"extraEgress": [{"ports": [{"port": 70000}]}]}},
            "70000",
            id="a port of the network policy",
        ),
        pytest.param(
            {"gpu": {"enabled": True}, "replicas": 2, "rollout": {"maxSurge": 0}},
            "rollout.maxSurge and rollout.maxUnavailable are both 0",
            id="a rollout that cannot begin, by the chart's templates",
        ),
        pytest.param(
            {"extraManifests": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}]},
            "name",
            id="a manifest without a name",
        ),
        pytest.param(
            {"tolerations": [{"key": "spot", "operatr": "Exists"}]},
            "operatr",
            id="a misspelt field of a pod",
        ),
    ],
)
def test_what_is_wrong_is_refused_and_named(
    cluster: Cluster, place: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises((HelmError, CommandFailed)) as refused:
        dry_run(cluster, render(values, namespace=place))
    assert message in str(refused.value)


def test_nothing_of_a_dry_run_is_kept(cluster: Cluster, place: str) -> None:
    dry_run(cluster, render({}, namespace=place))
    kept = cluster.kubectl(
        *("get", "isvc,deployments,pdb,networkpolicies", "--namespace", place, "--output=name")
    )
    assert kept == ""
