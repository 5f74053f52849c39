"""values.yaml, its schema and the README's table say the same."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from model import __version__
from tests.chart.generate import (
    CHART,
    README,
    SCHEMA,
    VALUES,
    documented_values,
    readme_with_table,
    schema_with_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULTS = yaml.safe_load(VALUES.read_text())
# What is Kubernetes' own, or free: its inside is not the chart's to name.
OPAQUE = frozenset(
    {
        "affinity",
        "autoscaling.behavior",
        "monitoring.dashboard.labels",
        "page.resources",
        "picker.resources",
        "podSecurityContext",
        "resources",
        "securityContext",
    }
)


def leaves(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names of all keys, down to what the schema leaves open."""
    for key, value in values.items():
        name = f"{path}{key}"
        yield name
        if isinstance(value, dict) and value and name not in OPAQUE:
            yield from leaves(value, f"{name}.")


def properties(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Dotted names that the schema knows; `settings` is the server's, and has no defaults here."""
    for key, inner in schema.get("properties", {}).items():
        name = f"{path}{key}"
        yield name
        if name not in OPAQUE and not name.startswith("settings."):
            yield from properties(inner, f"{name}.")


def test_the_readme_has_the_table_of_now() -> None:
    assert README.read_text() == readme_with_table(), "run: python -m tests.chart.generate"


def test_the_schema_has_the_settings_of_now() -> None:
    assert SCHEMA.read_text() == schema_with_settings(), "run: python -m tests.chart.generate"


def test_the_chart_is_of_the_server_s_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__


def test_every_value_has_exactly_one_comment() -> None:
    documented = [name for name, _ in documented_values(VALUES.read_text())]
    assert sorted(documented) == sorted(set(leaves(DEFAULTS)))


def test_schema_and_values_name_the_same() -> None:
    known = set(properties(json.loads(SCHEMA.read_text()))) - {"global"}
    assert known == set(leaves(DEFAULTS))


def test_the_schema_is_closed_at_every_level() -> None:
    def unclosed(schema: Any, path: str) -> Iterator[str]:
        if isinstance(schema, list):
            for one in schema:
                yield from unclosed(one, path)
        elif isinstance(schema, dict):
            if "properties" in schema and schema.get("additionalProperties") is not False:
                yield path
            for key, inner in schema.items():
                yield from unclosed(inner, f"{path}/{key}")

    assert not list(unclosed(json.loads(SCHEMA.read_text()), ""))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("# One\na: 1\n", [("a", "One")], id="above its key"),
        pytest.param("# G\ng:\n  # H\n  h: 1\n", [("g", "G"), ("g.h", "H")], id="nested"),
        pytest.param("# Free\n\na: 1\n", [], id="not above a blank line"),
        pytest.param("# One\n# two\na: 1\nb: 2\n", [("a", "One two")], id="several lines"),
    ],
)
def test_comments_belong_to_the_key_below(text: str, expected: list[tuple[str, str]]) -> None:
    assert list(documented_values(text)) == expected
