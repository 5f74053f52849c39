"""Beside Prometheus: writes its configuration and its targets, as they change.

The configuration is a ConfigMap, each key a file. The targets are all pods' ports, with the labels
that Prometheus' own discovery of pods would give them; which of them are scraped, and under which
labels, is for the configuration's relabelling to say.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

from tests.cluster.node.api import Api

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.node.api import Json

CONFIGURATION: Final = "prometheus.yml"
TARGETS: Final = "targets.json"
RELOAD: Final = "http://127.0.0.1:9090/-/reload"
AGAIN_SECONDS: Final = 0.2
_META: Final = "__meta_kubernetes"


def main() -> None:
    """Write what is there and what changes, until it is stopped."""
    given = _parse()
    # As process 1 it would take no notice.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    api, folder = Api(Path(given.kubeconfig)), Path(given.folder)
    threading.Thread(target=_follow_pods, args=(api, folder), daemon=True).start()
    api.follow(
        f"/api/v1/namespaces/{given.namespace}/configmaps",
        lambda _, found: _configure(folder, found["data"]),
        fieldSelector=f"metadata.name={given.configuration}",
    )


def targets_of(pod: Json) -> Iterator[Json]:
    """A pod's ports in the form of `file_sd`, with discovery's labels; none before it has an IP."""
    metadata, status = pod["metadata"], pod.get("status", {})
    if "podIP" not in status or metadata.get("deletionTimestamp"):
        return
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    labels = {
        f"{_META}_namespace": metadata["namespace"],
        f"{_META}_pod_name": metadata["name"],
        f"{_META}_pod_ready": conditions.get("Ready", "False").lower(),
    }
    for key, value in (metadata.get("labels") or {}).items():
        name = "".join(letter if letter.isalnum() else "_" for letter in key)
        labels |= {f"{_META}_pod_label_{name}": value, f"{_META}_pod_labelpresent_{name}": "true"}
    for container in pod["spec"]["containers"]:
        for port in container.get("ports") or ():
            yield {
                "targets": [f"{status['podIP']}:{port['containerPort']}"],
                "labels": labels | {f"{_META}_pod_container_port_name": port.get("name", "")},
            }


def _follow_pods(api: Api, folder: Path) -> None:
    pods: dict[str, list[Json]] = {}

    def on_change(kind: str, pod: Json) -> None:
        uid, before = pod["metadata"]["uid"], dict(pods)
        if kind == "DELETED":
            pods.pop(uid, None)
        else:
            pods[uid] = list(targets_of(pod))
        if pods != before:
            everything = [one for targets in pods.values() for one in targets]
            _write(folder / TARGETS, json.dumps(everything))

    api.follow("/api/v1/pods", on_change)


def _configure(folder: Path, files: dict[str, str]) -> None:
    # Last the one that names the others: once it is there, Prometheus may start.
    for name in sorted(files, key=lambda name: name == CONFIGURATION):
        _write(folder / name, files[name])
    while True:
        try:
            answer = httpx.post(RELOAD, timeout=10.0)
        except httpx.TransportError:
            time.sleep(AGAIN_SECONDS)  # not there yet
        else:
            print(f"reloaded: {answer.status_code} {answer.text}", flush=True)
            return


def _write(path: Path, content: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(content)
    partial.replace(path)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kubeconfig", help="of the cluster")
    parser.add_argument("namespace", help="of the ConfigMap")
    parser.add_argument("configuration", help="the ConfigMap's name")
    parser.add_argument("folder", help="where Prometheus reads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
