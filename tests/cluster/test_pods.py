"""Pods live and die on the nodes here as on a kubelet's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.cluster.pods import log_of, main_status, pod, run_to_end, shell, status

if TYPE_CHECKING:
    from tests.cluster.cluster import Cluster

ENDS_ON_TERM = "trap 'echo asked to end; exit 0' TERM; echo running; while :; do sleep 0.1; done"
# Enough for one of them to be looked at while it is made, if it could be.
NUM_APART = 5


def delete(cluster: Cluster, namespace: str, name: str) -> float:
    """Delete a pod; how many seconds it took to be gone."""
    began = time.monotonic()
    cluster.kubectl("delete", "pod", name, "--namespace", namespace, "--timeout", "60s")
    return time.monotonic() - began


def test_a_pod_runs_to_its_end_and_its_log_is_kept(cluster: Cluster, namespace: str) -> None:
    assert run_to_end(cluster, namespace, pod("hello", "echo", "hello there")) == "Succeeded"
    assert cluster.kubectl("logs", "hello", "--namespace", namespace) == "hello there\n"


def test_a_pod_sees_its_configuration_and_writes_nothing_outside(
    cluster: Cluster, namespace: str
) -> None:
    objects = [
        {
            "apiVersion": "v1",
            "kind": kind,
            "metadata": {"name": "settings"},
            field: {"colour": value},
        }
        for kind, field, value in (("ConfigMap", "data", "green"), ("Secret", "stringData", "red"))
    ]
    script = (
        'set -e; echo "$COLOUR $(cat /etc/settings/colour) $(cat /etc/secret/colour) $POD $(id -u)"'
        "; touch /tmp/seen; ls /tmp; if touch /etc/outside; then exit 1; fi; cat /proc/1/comm"
    )
    reference = {"configMapKeyRef": {"name": "settings", "key": "colour"}}
    configured = pod(
        "configured",
        *shell(script),
        container={
            "env": [
                {"name": "COLOUR", "valueFrom": reference},
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
            "volumeMounts": [
                {"name": "settings", "mountPath": "/etc/settings"},
                {"name": "secret", "mountPath": "/etc/secret"},
                {"name": "scratch", "mountPath": "/tmp"},
            ],
            "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 1234},
        },
        volumes=[
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "secret", "secret": {"secretName": "settings"}},
            {"name": "scratch", "emptyDir": {}},
        ],
    )
    cluster.apply(objects, namespace=namespace)
    assert run_to_end(cluster, namespace, configured) == "Succeeded"
    lines = log_of(cluster, namespace, "configured").splitlines()
    assert lines[:2] == ["green green red configured 1234", "seen"]
    assert lines[-1] == "sh", "its command is process 1"


def test_init_containers_run_first_and_share_volumes(cluster: Cluster, namespace: str) -> None:
    mount = {"volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    init = {"name": "init", "image": "busybox", "command": ["touch", "/shared/made"], **mount}
    after = pod(
        "after",
        *("ls", "/shared"),
        container=mount,
        initContainers=[init],
        volumes=[{"name": "shared", "emptyDir": {}}],
    )
    assert run_to_end(cluster, namespace, after) == "Succeeded"
    assert log_of(cluster, namespace, "after") == "made\n"


def test_a_sidecar_runs_beside_the_others_and_ends_after_them(
    cluster: Cluster, namespace: str
) -> None:
    sidecar = {
        "name": "beside",
        "image": "busybox",
        "restartPolicy": "Always",
        "command": list(shell(ENDS_ON_TERM)),
    }
    main = pod("main", "sleep", "1", initContainers=[sidecar])
    assert run_to_end(cluster, namespace, main) == "Succeeded"
    cluster.wait_for(
        lambda: "asked to end" in log_of(cluster, namespace, "main", "beside"), "it was asked to"
    )


def test_a_deleted_pod_runs_its_hook_then_gets_sigterm(cluster: Cluster, namespace: str) -> None:
    hook = {"preStop": {"exec": {"command": list(shell("echo hook > /tmp/hook; sleep 1"))}}}
    script = ENDS_ON_TERM.replace("echo asked", "cat /tmp/hook; echo asked")
    polite = pod(
        "polite", *shell(script), container={"lifecycle": hook}, terminationGracePeriodSeconds=30
    )
    cluster.apply([polite], namespace=namespace)
    cluster.wait_for(lambda: log_of(cluster, namespace, "polite"), "it runs")
    assert 1 <= delete(cluster, namespace, "polite") < 20
    assert log_of(cluster, namespace, "polite").split("\n")[:3] == [
        *("running", "hook", "asked to end"),
    ]


def test_who_ignores_sigterm_is_killed_when_its_grace_is_over(
    cluster: Cluster, namespace: str
) -> None:
    script = "trap '' TERM; echo running; while :; do sleep 0.1; done"
    cluster.apply(
        [pod("deaf", *shell(script), terminationGracePeriodSeconds=3)], namespace=namespace
    )
    cluster.wait_for(lambda: log_of(cluster, namespace, "deaf"), "it runs")
    assert 3 <= delete(cluster, namespace, "deaf") < 20


def test_whoever_deletes_it_again_may_leave_it_less_time(cluster: Cluster, namespace: str) -> None:
    script = "trap '' TERM; echo running; while :; do sleep 0.1; done"
    cluster.apply(
        [pod("deaf", *shell(script), terminationGracePeriodSeconds=300)], namespace=namespace
    )
    cluster.wait_for(lambda: log_of(cluster, namespace, "deaf"), "it runs")
    cluster.kubectl("delete", "pod", "deaf", "--namespace", namespace, "--wait=false")
    time.sleep(1)
    began = time.monotonic()
    cluster.kubectl("delete", "pod", "deaf", "--namespace", namespace, "--grace-period", "1")
    assert time.monotonic() - began < 20


def test_what_crashes_is_restarted_and_then_backed_off(cluster: Cluster, namespace: str) -> None:
    cluster.apply([pod("crashes", *shell("exit 3"), restartPolicy="Always")], namespace=namespace)
    cluster.wait_for(
        lambda: (
            "waiting" in main_status(cluster, namespace, "crashes").get("state", {})
            and main_status(cluster, namespace, "crashes")["restartCount"] >= 1
        ),
        "it waits to be restarted",
    )
    told = main_status(cluster, namespace, "crashes")
    assert told["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert told["lastState"]["terminated"]["exitCode"] == 3


def test_a_killed_container_says_so_and_comes_back(cluster: Cluster, namespace: str) -> None:
    cluster.apply(
        [pod("victim", *shell(ENDS_ON_TERM), restartPolicy="Always")], namespace=namespace
    )
    cluster.wait_for_condition(f"/api/v1/namespaces/{namespace}/pods/victim", "Ready")
    cluster.crash(namespace, "victim")
    cluster.wait_for(
        lambda: main_status(cluster, namespace, "victim")["restartCount"] == 1, "it came back"
    )
    told = main_status(cluster, namespace, "victim")
    assert told["lastState"]["terminated"]["exitCode"] == 137


@pytest.mark.parametrize(
    ("probe", "restarts"),
    [
        pytest.param("livenessProbe", True, id="a failing liveness probe restarts"),
        pytest.param("startupProbe", True, id="a failing startup probe restarts"),
        pytest.param("readinessProbe", False, id="a failing readiness probe only unreadies"),
    ],
)
def test_probes(cluster: Cluster, namespace: str, probe: str, restarts: bool) -> None:
    check = {"exec": {"command": ["test", "-e", "/tmp/well"]}, "periodSeconds": 1}
    check |= {"failureThreshold": 1, "successThreshold": 1}
    script = f"[ {probe} = startupProbe ] || touch /tmp/well; sleep 4; rm -f /tmp/well; sleep 60"
    probed = pod("probed", *shell(script), container={probe: check}, restartPolicy="Always")
    cluster.apply([probed], namespace=namespace)

    def was_seen() -> bool:
        told = main_status(cluster, namespace, "probed")
        if restarts:
            return bool(told.get("restartCount"))
        return bool(told.get("started")) and not told["ready"]

    if probe != "startupProbe":
        cluster.wait_for_condition(f"/api/v1/namespaces/{namespace}/pods/probed", "Ready")
    cluster.wait_for(was_seen, "the probe has failed")


def test_a_probe_never_looks_at_the_machine_s_own_files(cluster: Cluster, namespace: str) -> None:
    here = str(cluster.kubeconfig)
    probe = {"exec": {"command": ["test", "-e", here]}, "periodSeconds": 1, "failureThreshold": 60}
    names = [f"apart-{number}" for number in range(NUM_APART)]
    pods = [pod(name, "sleep", "60", container={"startupProbe": probe}) for name in names]
    cluster.apply(pods, namespace=namespace)
    for name in names:
        cluster.wait_for(
            lambda name=name: "running" in main_status(cluster, namespace, name).get("state", {}),  # type: ignore[misc]
            f"{name} runs",
        )
    time.sleep(1)
    assert not any(main_status(cluster, namespace, name)["started"] for name in names)


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        pytest.param({"image": "example/unknown:1"}, "ErrImagePull", id="an unknown image"),
        pytest.param(
            {"securityContext": {"runAsNonRoot": True}},
            "CreateContainerConfigError",
            id="root where it must not be",
        ),
        pytest.param(
            {"envFrom": [{"configMapRef": {"name": "missing"}}]},
            "CreateContainerConfigError",
            id="a missing ConfigMap",
        ),
    ],
)
def test_what_cannot_start_waits_and_says_why(
    cluster: Cluster, namespace: str, container: dict[str, Any], reason: str
) -> None:
    cluster.apply([pod("waits", "true", container=container)], namespace=namespace)

    def waits() -> bool:
        state = main_status(cluster, namespace, "waits").get("state", {})
        return bool(state.get("waiting", {}).get("reason") == reason)

    cluster.wait_for(waits, reason)
    assert status(cluster, namespace, "waits")["phase"] == "Pending"


def test_a_job_completes(cluster: Cluster, namespace: str) -> None:
    template = {"spec": pod("job", "true")["spec"]}
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once"},
        "spec": {"template": template},
    }
    cluster.apply([job], namespace=namespace)
    cluster.wait_for_condition(f"/apis/batch/v1/namespaces/{namespace}/jobs/once", "Complete")
