"""The pure parts of the cluster tests' node: command lines, names, images, statuses."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.cluster.node.container import Observed
from tests.cluster.node.dns import Names, answer
from tests.cluster.node.environment import command_line, expand
from tests.cluster.node.images import Image, add_image, find_image
from tests.cluster.node.status import pod_status

if TYPE_CHECKING:
    from pathlib import Path

RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("$(PORT)", "8080", id="a known name by its value"),
        pytest.param("$(OTHER)", "$(OTHER)", id="an unknown name stays"),
        pytest.param("$$(PORT)", "$(PORT)", id="two dollars are one"),
        pytest.param("$PORT", "$PORT", id="without brackets it is the shell's"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expected: str) -> None:
    assert expand(text, {"PORT": "8080"}) == expected


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        pytest.param({}, ["serve", "--fast"], id="nothing given: the image's"),
        pytest.param({"args": ["--slow"]}, ["serve", "--slow"], id="args replace its arguments"),
        pytest.param({"command": ["sh"]}, ["sh"], id="command replaces both"),
    ],
)
def test_a_command_line_comes_from_pod_and_image(
    container: dict[str, Any], expected: list[str]
) -> None:
    assert command_line(container, ["serve"], ["--fast"], {}) == expected


def test_an_unknown_image_cannot_be_pulled(tmp_path: Path) -> None:
    assert find_image(tmp_path, "example/other:1") is None
    ours = find_image(tmp_path, "registry.example:5000/team/qwen3-vl-server:1.0@sha256:00")
    assert ours is not None
    assert ours.entrypoint[1:] == ("-m", "model")


def test_an_added_image_is_found_by_its_whole_name(tmp_path: Path) -> None:
    added = Image(("false",), environment={"A": "b"})
    add_image(tmp_path, "qwen3-vl-server:broken", added)
    assert find_image(tmp_path, "qwen3-vl-server:broken") == added
    assert find_image(tmp_path, "qwen3-vl-server:1") != added


class KnownNames:
    """Names with one Service."""

    def addresses(self, name: str) -> list[str] | None:
        """One name has an address, one exists without."""
        return {"web.test.svc.cluster.local": ["10.0.0.7"], "empty.test.svc.cluster.local": []}.get(
            name
        )


def query(name: str, kind: int = 1) -> bytes:
    """A question for one name."""
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", 77, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)


@pytest.mark.parametrize(
    ("name", "kind", "code", "records"),
    [
        pytest.param("web.test.svc.cluster.local", 1, 0, [b"\x0a\0\0\x07"], id="an address"),
        pytest.param("WEB.test.svc.cluster.local", 1, 0, [b"\x0a\0\0\x07"], id="in any case"),
        pytest.param("web.test.svc.cluster.local", 28, 0, [], id="no IPv6, but it exists"),
        pytest.param("empty.test.svc.cluster.local", 1, 0, [], id="no pod is ready"),
        pytest.param("web.example.org", 1, 3, [], id="nothing outside the cluster"),
    ],
)
def test_dns_answers(name: str, kind: int, code: int, records: list[bytes]) -> None:
    reply = answer(query(name, kind), cast("Names", KnownNames()))
    assert reply is not None
    number, flags, _, num_records = struct.unpack("!4H", reply[:8])
    assert (number, flags & 0xF, num_records) == (77, code, len(records))
    assert reply.endswith(b"".join(records))


def test_dns_takes_no_notice_of_what_is_no_query() -> None:
    assert answer(b"short", cast("Names", KnownNames())) is None


def status(
    mains: dict[str, Observed], inits: dict[str, Observed] | None = None, **spec: Any
) -> dict[str, Any]:
    """The status of a pod with two containers, of which these are known."""
    containers = [{"name": name, "image": "i"} for name in ("one", "two")]
    pod = {"spec": {"containers": containers, "restartPolicy": "Never", **spec}, "status": {}}
    return pod_status(pod, "10.0.0.1", "10.0.0.2", inits or {}, mains, "now")


def conditions(told: dict[str, Any]) -> dict[str, str]:
    """A status's conditions by type."""
    return {one["type"]: one["status"] for one in told["conditions"]}


def ended(code: int) -> Observed:
    """A container that has ended."""
    return Observed({"terminated": {"exitCode": code}})


@pytest.mark.parametrize(
    ("mains", "phase", "ready"),
    [
        pytest.param({}, "Pending", "False", id="nothing begun"),
        pytest.param({"one": Observed(RUNNING, ready=True)}, "Running", "False", id="one of two"),
        pytest.param(
            {name: Observed(RUNNING, ready=True) for name in ("one", "two")},
            "Running",
            "True",
            id="both ready",
        ),
        pytest.param({"one": ended(0), "two": ended(0)}, "Succeeded", "False", id="both done"),
        pytest.param({"one": ended(0), "two": ended(1)}, "Failed", "False", id="one has failed"),
    ],
)
def test_phase_and_readiness_follow_the_containers(
    mains: dict[str, Observed], phase: str, ready: str
) -> None:
    told = status(mains)
    assert told["phase"] == phase
    assert conditions(told)["Ready"] == ready


def test_a_pod_is_not_initialized_before_its_init_containers_have_ended() -> None:
    init = {"initContainers": [{"name": "first", "image": "i"}]}
    assert conditions(status({}, {"first": Observed(RUNNING)}, **init))["Initialized"] == "False"
    assert conditions(status({}, {"first": ended(0)}, **init))["Initialized"] == "True"
    assert status({}, {"first": ended(1)}, **init)["phase"] == "Failed"


def test_a_readiness_gate_holds_a_pod_back() -> None:
    ready = {name: Observed(RUNNING, ready=True) for name in ("one", "two")}
    told = conditions(status(ready, readinessGates=[{"conditionType": "example/open"}]))
    assert (told["ContainersReady"], told["Ready"]) == ("True", "False")
