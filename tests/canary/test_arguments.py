"""The command line: what it means, and what it refuses before anything is asked."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from model.canary.__main__ import plugin
from model.canary.arguments import (
    changes_of,
    golden_of,
    parse_arguments,
    plan_of,
    prometheus_url,
)
from model.canary.commands import main
from model.canary.errors import UsageError
from model.canary.plan import Plan
from model.canary.state import Changes, Header
from model.cli import main as command_line
from tests.serving import ROOT

if TYPE_CHECKING:
    import argparse

START = ("start", "qwen3-vl", "--canary", "next")


def start(*flags: str) -> argparse.Namespace:
    return parse_arguments("canary", [*START, *flags])


def test_nothing_given_is_the_plans_own_defaults() -> None:
    given = start()
    assert plan_of(given) == Plan()
    assert changes_of(given) is None
    assert golden_of(given) is None


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--steps", "1,50"], "steps", (1, 50)),
        (["--hold", "90s"], "hold_seconds", 90.0),
        (["--hold", "1.5m"], "hold_seconds", 90.0),
        (["--interval", "2"], "interval_seconds", 2.0),
        (["--deadline", "1h"], "deadline_seconds", 3600.0),
        (["--min-requests", "7"], "min_requests", 7),
        (["--max-failing", "3"], "max_failing", 3),
    ],
)
def test_a_flag_sets_its_field_of_the_plan(flags: list[str], name: str, value: Any) -> None:
    assert getattr(plan_of(start(*flags)), name) == value


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["--max-error-ratio", "0.2"], "max_error_ratio", 0.2),
        (["--max-error-increase", "none"], "max_error_increase", None),
        (["--max-ttft-growth", "2"], "max_ttft_growth", 2.0),
        (["--max-ttft", "250ms"], "max_ttft_seconds", 0.25),
        (["--max-itl", "40ms"], "max_itl_seconds", 0.04),
    ],
)
def test_a_flag_sets_its_gate(flags: list[str], name: str, value: Any) -> None:
    assert getattr(plan_of(start(*flags)).gates, name) == value


def test_changes_make_a_canary() -> None:
    given = parse_arguments(
        "canary",
        ["start", "qwen3-vl", "--image", "server:2", "--set-env", "A=b=c", "--replicas", "2"],
    )
    assert changes_of(given) == Changes(image="server:2", env={"A": "b=c"}, replicas=2)


def test_the_golden_sets_path_is_kept_whole() -> None:
    golden = golden_of(start("--golden", "golden.jsonl", "--golden-overlap", "0.9"))
    assert golden is not None
    assert golden.path == str(Path("golden.jsonl").absolute())
    assert golden.min_overlap == 0.9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "5,x"], "no percentages, as in 5,25,50,100"),
        (["--hold", "long"], "'long' is no time, as in 250ms, 30s, 5m or 1h"),
        (["--hold", "-5s"], "expected one argument"),
        (["--max-error-ratio", "few"], "neither a number nor none"),
        (["--set-env", "A"], "no variable, as in NAME=VALUE"),
        (["--header", "no header=1"], "no header, as in NAME=VALUE"),
        (["--header-only"], "--header-only needs --header"),
        (["--prometheus-url", "prometheus:9090"], "no http:// or https:// URL"),
        (["--prometheus-url", "service://x"], "no service://NAMESPACE/NAME:PORT"),
        (["--stepss", "5"], "unrecognized arguments"),
    ],
)
def test_what_is_wrong_alone_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        start(*flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["start", "qwen3-vl"], "name the canary's InferenceService with --canary, or say what"),
        (["start", "pod/x", "--image", "a"], "neither an HTTPRoute's name nor isvc/NAME"),
        (["start", "isvc/x", "--canary", "y"], "in Knative mode the canary is a revision"),
        (["roll", "x"], "invalid choice: 'roll'"),
        ([], "required: COMMAND"),
    ],
)
def test_commands_that_mean_nothing_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments("canary", arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "25,5"], r"--steps is \(25, 5\): .*percentages that rise"),
        (["--interval", "0"], r"--interval is 0\.0: "),
        (["--min-requests", "0"], r"--min-requests is 0: "),
        (["--max-error-ratio", "2"], r"--max-error-ratio is 2\.0: "),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_its_flag(flags: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_of(start(*flags))


def test_targets_name_their_kind() -> None:
    def target(text: str) -> object:
        return parse_arguments("canary", ["pause", text]).target

    assert target("a") == target("httproute/a") == ("route", "a")
    assert target("isvc/a") == target("InferenceService/a") == ("service", "a")
    assert parse_arguments("canary", ["status"]).target is None


def test_prometheus_may_be_a_service_of_the_cluster() -> None:
    assert prometheus_url("service://monitoring/prometheus:80").endswith("prometheus:80")
    assert prometheus_url("http://prometheus:9090/") == "http://prometheus:9090"
    assert start("--header", "x=y").header == Header(name="x", value="y")


def test_no_cluster_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = str(tmp_path / "absent")
    assert main("canary", ["status", "--kubeconfig", absent], {}) == 1
    assert "no cluster to talk to" in capsys.readouterr().err


def test_the_plugin_is_named_as_kubectl_looks_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-qwen3vl"] == f"{plugin.__module__}:{plugin.__name__}"
    monkeypatch.setattr(sys, "argv", ["kubectl-qwen3vl", "canary", "--help"])
    with pytest.raises(SystemExit) as ended:
        plugin()
    assert ended.value.code == 0
    assert "usage: kubectl qwen3vl canary" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["kubectl-qwen3vl", "deploy"])
    assert plugin() == 2


def test_the_command_line_carries_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line(["canary", "watch", "--help"])
    assert "usage: qwen3-vl canary watch" in capsys.readouterr().out
