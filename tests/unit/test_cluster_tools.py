"""The tools of the cluster tests: how a scratch module is written, and where a program is found."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.machine.kernel import refused
from tests.cluster.tools import cache, go_module
from tests.cluster.tools.go_module import executable, scratch_module
from tests.cluster.tools.pins import PROGRAMS, GoProgram, Module, builds, stamp
from tests.cluster.tools.requirements import missing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

UPSTREAM = {
    "Module": {"Path": "example.org/server"},
    "Go": "1.24.0",
    "Require": [{"Path": "example.org/library", "Version": "v1.2.3"}],
    "Exclude": [{"Path": "example.org/broken", "Version": "v0.1.0"}],
    "Tool": [{"Path": "example.org/linter"}],
}


def lines(upstream: dict[str, object], *, local_version: str = "") -> list[str]:
    """The scratch go.mod of a module made from this description."""
    return scratch_module(upstream, Module("example.org/server", "v1.0.0", local_version)).split(
        "\n"
    )


def test_a_scratch_module_requires_upstream_and_what_upstream_requires() -> None:
    written = lines(UPSTREAM)
    assert "require example.org/server v1.0.0" in written
    assert "require example.org/library v1.2.3" in written
    assert "exclude example.org/broken v0.1.0" in written
    assert not any("linter" in line for line in written)


@pytest.mark.parametrize(
    ("new", "local_version", "expected"),
    [
        pytest.param(
            {"Path": "example.org/fork", "Version": "v9.0.0"},
            "",
            ["replace example.org/library  => example.org/fork v9.0.0"],
            id="a replacement by a published module stays",
        ),
        pytest.param(
            {"Path": "./staging/library"},
            "v0.35.1",
            ["replace example.org/library  => example.org/library v0.35.1"],
            id="a relative path becomes the version under which it is published",
        ),
        pytest.param(
            {"Path": "./staging/library"}, "", [], id="a relative path without one is dropped"
        ),
    ],
)
def test_replacements_mean_the_same_outside_their_repository(
    new: dict[str, str], local_version: str, expected: list[str]
) -> None:
    upstream = UPSTREAM | {"Replace": [{"Old": {"Path": "example.org/library"}, "New": new}]}
    replacements = [
        line for line in lines(upstream, local_version=local_version) if "replace" in line
    ]
    assert replacements == expected


def test_programs_of_one_module_are_built_together() -> None:
    groups = builds(["helm", "kubectl", "etcd", "kube-apiserver", "envoy"])
    assert groups == [["helm"], ["kubectl", "kube-apiserver"], ["etcd"], ["envoy"]]


@pytest.mark.parametrize(
    ("package", "name"),
    [
        pytest.param("k8s.io/kubernetes/cmd/kubectl", "kubectl", id="the last part"),
        pytest.param("go.etcd.io/etcd/server/v3", "server", id="but for a version"),
    ],
)
def test_a_built_program_is_looked_for_under_the_name_that_go_gives_it(
    package: str, name: str
) -> None:
    assert executable(package) == name


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and nothing else to take programs from."""
    monkeypatch.setenv("QWEN3VL_TOOLS_DIR", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.delenv("QWEN3VL_TOOLS_FROM_PATH", raising=False)
    return tmp_path


def put(folder: Path, name: str, made_by: str | None = None) -> Path:
    """A program in a folder, stamped where told by what made it."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if made_by is not None:
        (folder / f"{name}.pin").write_text(made_by)
    return program


def test_a_cached_program_is_found_while_its_pin_is_the_table_s(tools: Path) -> None:
    built = put(tools / "bin", "etcd", stamp(PROGRAMS["etcd"]))
    assert cache.find("etcd") == built
    assert cache.program("etcd") == built
    put(tools / "bin", "etcd", stamp(PROGRAMS["helm"]))
    assert cache.find("etcd") is None


def test_a_half_made_program_is_not_found(tools: Path) -> None:
    put(tools / "bin", "etcd")
    assert cache.find("etcd") is None


def test_of_a_group_only_what_is_missing_is_made(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def build(programs: Mapping[str, GoProgram], scratch: Path) -> dict[str, Path]:
        asked.extend(programs)
        return {name: put(scratch, name) for name in programs}

    monkeypatch.setattr(go_module, "build", build)
    there = put(tools / "bin", "kubectl", stamp(PROGRAMS["kubectl"]))
    before = there.stat().st_ino
    cache.make_together(["kubectl", "kube-scheduler", "kube-proxy"])
    assert asked == ["kube-scheduler", "kube-proxy"]
    assert there.stat().st_ino == before
    assert all(cache.find(name) for name in ("kubectl", "kube-scheduler", "kube-proxy"))
    assert not list((tools / "bin").glob("*-scratch"))


def test_envtest_s_programs_come_first(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tools / "bin", "etcd", stamp(PROGRAMS["etcd"]))
    assets = put(tmp_path / "assets", "etcd")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets.parent))
    assert cache.find("etcd") == assets


def test_the_path_is_looked_at_only_when_told(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = put(tmp_path / "installed", "helm")
    monkeypatch.setenv("PATH", str(installed.parent))
    assert cache.find("helm") is None
    monkeypatch.setenv("QWEN3VL_TOOLS_FROM_PATH", "1")
    assert cache.find("helm") == installed


def test_what_the_machine_lacks_is_said_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = missing(building=True, running=True)
    assert any(line.startswith("go is not on PATH: install Go") for line in said)
    assert "ip is not on PATH: apt-get install iproute2" in said


def test_a_kernel_that_refuses_namespaces_is_said_with_what_it_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = put(tmp_path / "bin", "setpriv")
    refusing.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1\n")
    monkeypatch.setenv("PATH", str(refusing.parent), prepend=":")
    assert refused() == [
        "the kernel, or the container around us, refuses namespaces of its own for network, mounts"
        " and processes: unshare failed: Operation not permitted"
    ]
