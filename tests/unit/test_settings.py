"""Settings from the environment and the command line; what is misspelt is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.serving.arguments import SettingsError, parse_settings
from model.settings import Dtype, Section, Settings, environment_names


def parse(*arguments: str, **environ: str) -> Settings:
    settings, unused = parse_settings(arguments, environ)
    assert not unused
    return settings


def test_nothing_given_is_the_defaults() -> None:
    assert parse() == Settings()


@pytest.mark.parametrize(
    ("arguments", "section", "name", "expected"),
    [
        (["--http_port", "9000"], "server", "http_port", 9000),
        (["--server.http-port", "9000"], "server", "http_port", 9000),
        (["--server.http_port=9000"], "server", "http_port", 9000),
        (["--model_dir", "/models/x"], "model", "dir", Path("/models/x")),
        (["--model_id", "Qwen/Qwen3-VL-2B-Instruct"], "model", "id", "Qwen/Qwen3-VL-2B-Instruct"),
        (["--model_name", "a", "--model_name", "b"], "model", "names", ("a", "b")),
        (["--model_name", "a", "b"], "model", "names", ("a", "b")),
        (["--dtype", "bfloat16"], "model", "dtype", Dtype.BFLOAT16),
        (["--engine.max-sequences", "4"], "engine", "max_sequences", 4),
        (["--ui_url", "https://x.org/page"], "server", "ui_url", "https://x.org/page"),
        (["--timeout-keep-alive", "9"], "server", "keep_alive_seconds", 9),
    ],
)
def test_a_flag_sets_its_field(
    arguments: list[str], section: str, name: str, expected: object
) -> None:
    assert getattr(getattr(parse(*arguments), section), name) == expected


def test_a_variable_sets_its_field_and_a_flag_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_ENGINE__MAX_SEQUENCES", "5")
    monkeypatch.setenv("QVL_ENGINE__BLOCK_SIZE", "32")
    settings = parse("--engine.max-sequences", "6")
    assert (settings.engine.max_sequences, settings.engine.block_size) == (6, 32)


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ([], {"QVL_ENGINE__MAX_SEQUENCE": "5"}, "QVL_ENGINE__MAX_SEQUENCE is no setting"),
        (["--engine.max-sequences", "0"], {}, "engine.max_sequences is '0'"),
        (["--engine.max-sequences", "many"], {}, "engine.max_sequences is 'many'"),
        (["--http_port", "70000"], {}, "server.http_port is 70000"),
        (["--ui_url", "/ui"], {}, "server.ui_url is '/ui'"),
        (["--workers", "2"], {}, "--workers is 2; the limit is 1"),
    ],
)
def test_what_cannot_be_set_is_refused_by_name(
    arguments: list[str], environ: dict[str, str], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        parse_settings(arguments, environ)


def test_an_unknown_flag_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        parse("--engine.max-sequenecs", "4")
    assert exit_.value.code == 2
    assert "--engine.max-sequenecs" in capsys.readouterr().err


def test_a_kserve_flag_without_a_meaning_here_is_named() -> None:
    _, unused = parse_settings(["--max_threads", "9"], {})
    assert unused == ("--max_threads",)


def test_every_field_says_what_it_is() -> None:
    for info in Settings.model_fields.values():
        assert isinstance(info.default, Section)
        for name, field in type(info.default).model_fields.items():
            assert field.description, name


def test_variables_are_named_after_their_fields() -> None:
    assert {"QVL_SERVER__HTTP_PORT", "QVL_MODEL__DIR"} <= environment_names()
