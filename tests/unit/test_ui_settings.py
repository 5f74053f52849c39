"""The page's flags and variables; what it cannot work with is refused by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from model.settings import environment_names
from model.ui.settings import PageSettings, SettingsError, parse_settings
from tests.serving import ROOT


def test_nothing_given_is_the_defaults() -> None:
    settings = parse_settings([])
    assert (settings.api, settings.port, settings.root_path) == ("http://localhost:8080", 7860, "")


@pytest.mark.parametrize(
    ("arguments", "name", "expected"),
    [
        (["--api", "https://x.org/models/"], "api", "https://x.org/models"),
        (
            ["--api", "http://inside:80", "--public-api", "https://x.org"],
            "shown_api",
            "https://x.org",
        ),
        (["--api", "http://inside:80"], "shown_api", "http://inside:80"),
        (["--port", "9000"], "port", 9000),
        (["--root-path", "/ui/"], "path_prefix", "/ui"),
        (["--root-path", "https://x.org/a/ui"], "path_prefix", "/a/ui"),
    ],
)
def test_a_flag_sets_its_field(arguments: list[str], name: str, expected: object) -> None:
    assert getattr(parse_settings(arguments), name) == expected


def test_a_variable_sets_its_field_and_a_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3VL_UI_PORT", "9000")
    monkeypatch.setenv("QWEN3VL_UI_API", "http://there:1")
    settings = parse_settings(["--port", "9001"])
    assert (settings.port, settings.api) == (9001, "http://there:1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--api", "localhost:8080"], "--api is 'localhost:8080'.*like http://localhost:8080"),
        (["--api", "ftp://x.org"], "--api is 'ftp://x.org'"),
        (["--api", "http://me:pass@x.org"], "no user"),
        (["--port", "70000"], "--port is '70000'"),
        (["--root-path", "ui"], "--root-path is 'ui'.*must begin with /"),
    ],
)
def test_what_cannot_be_set_is_refused_by_name(arguments: list[str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(arguments)


def test_an_unknown_flag_ends_with_status_2() -> None:
    with pytest.raises(SystemExit) as exit_:
        parse_settings(["--prot", "1"])
    assert exit_.value.code == 2


def test_in_the_servers_environment_it_says_what_is_missing() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "model.ui"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "gradio is not installed here; the page's own environment: make ui\n"


def test_every_field_says_what_it_is_for() -> None:
    assert all(field.description for field in PageSettings.model_fields.values())


def test_no_variable_is_one_that_the_server_would_refuse() -> None:
    assert not any(name.startswith("QWEN3VL_UI_") for name in environment_names())
    assert not PageSettings.model_config["env_prefix"].startswith("QVL_")
