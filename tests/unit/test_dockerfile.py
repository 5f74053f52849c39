"""What the Dockerfile promises, read from its text; `make image-test` builds and runs it."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

from model.settings import environment_names
from model.ui.settings import PageSettings
from tests.serving import ROOT

TEXT = re.sub(r"(?m)^#.*\n", "", (ROOT / "Dockerfile").read_text()).replace("\\\n", " ")
# FROM image AS name: name → the stage.
STAGES = {stage.split()[3]: stage for stage in re.split(r"(?m)^(?=FROM )", TEXT)[1:]}
TARGETS = ("cpu", "cuda", "ui")


def test_the_default_target_is_the_one_that_runs_anywhere() -> None:
    assert [*STAGES][-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_ends_as_a_numbered_user_with_labels_by_argument(target: str) -> None:
    stage = STAGES[target]
    assert re.findall(r"(?m)^USER (.*)$", stage) == ["10001:10001"]
    assert stage.index("USER") > stage.rindex("COPY")
    for name in ("version", "revision", "source"):
        assert f'org.opencontainers.image.{name}="${name.upper()}"' in stage


def test_every_variable_of_ours_is_a_setting() -> None:
    assert {*re.findall(r"QVL_\w+", TEXT)} <= environment_names()
    pages = {f"QWEN3VL_UI_{name}".upper() for name in PageSettings.model_fields}
    assert {*re.findall(r"QWEN3VL_UI_\w+", TEXT)} <= pages


def test_every_entry_point_is_the_process_itself() -> None:
    # A shell in between would take SIGTERM and not hand it on.
    points = re.findall(r"(?m)^ENTRYPOINT (.*)$", TEXT)
    assert [point[:2] for point in points] == ['["', '["']


def test_no_index_is_named() -> None:
    assert re.findall(r"https?://(?!127\.0\.0\.1)\S+", TEXT) == []


def test_everything_copied_from_the_checkout_is_let_in() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    refused = [line for line in lines if line and line[0] not in "!#*"]
    copied = [
        source
        for sources in re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", TEXT)
        for source in sources.split()
    ]
    for source in copied:
        assert (ROOT / source).exists()
        assert any(source == name or source.startswith(f"{name}/") for name in allowed)
        assert not any(fnmatch(source, pattern) for pattern in refused)
