"""`python -m tests.chart.generate`: write what of the chart is derived from elsewhere.

The table of values in the chart's README, from the comments in values.yaml; and the schema of
`settings`, from the server's own settings. A test fails when either is stale.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

import yaml

from model.settings import Section, Settings
from tests.serving import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART: Final = ROOT / "charts" / "qwen3-vl"
VALUES: Final = CHART / "values.yaml"
SCHEMA: Final = CHART / "values.schema.json"
README: Final = CHART / "README.md"
START: Final = "<!-- values: begin -->"
END: Final = "<!-- values: end -->"
# A default longer than this is in values.yaml for whoever wants to see it.
MAX_DEFAULT_LENGTH: Final = 60

# Set by values of the chart's own, together with what must agree with them: ports, probes, mounts.
CHART_OWNED: Final = frozenset(
    {
        ("model", "dir"),
        ("model", "id"),
        ("model", "revision"),
        ("model", "names"),
        ("model", "dtype"),
        ("model", "quantization"),
        ("jobs", "redis_url"),
        ("server", "host"),
        ("server", "http_port"),
        ("server", "grpc_port"),
        ("server", "unready_seconds"),
        ("server", "drain_seconds"),
        ("server", "ui_url"),
    }
)


def settings_schema() -> dict[str, Any]:
    """The JSON schema of the chart's `settings`: every field that the server has, and no other."""
    sections: dict[str, Any] = {}
    for section, info in Settings.model_fields.items():
        assert isinstance(info.default, Section)
        fields = type(info.default).model_json_schema()["properties"]
        sections[section] = {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: _nullable(field)
                for name, field in fields.items()
                if (section, name) not in CHART_OWNED
            },
        }
    return {"type": "object", "additionalProperties": False, "properties": sections}


def _nullable(field: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without its default, and with null: the server's own default."""
    kept = {key: value for key, value in field.items() if key not in {"default", "title"}}
    description = kept.pop("description", "")
    branches = kept.pop("anyOf", None) or [kept]
    types = [branch for branch in branches if branch != {"type": "null"}]
    return {"description": description, "anyOf": [*types, {"type": "null"}]}


def documented_values(text: str) -> Iterator[tuple[str, str]]:
    """(dotted name, comment) of every commented key of a values.yaml, in its order.

    The comment stands in the lines right above the key.
    """
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            comment.append(line.strip("# "))
            continue
        if key := re.match(r"( *)([A-Za-z_]\w*):", line):
            indent = len(key[1])
            path = [*((at, name) for at, name in path if at < indent), (indent, key[2])]
            if comment:
                yield ".".join(name for _, name in path), " ".join(comment)
        comment = []


def values_table() -> str:
    """The README's table: one row a value, one bold row a group."""
    text = VALUES.read_text()
    defaults = yaml.safe_load(text)
    names = list(documented_values(text))
    groups = {parent for name, _ in names for parent in _parents(name)}
    rows = ["| value | default | |", "|---|---|---|"]
    for name, comment in names:
        shown = "" if name in groups else f"`{_shown(_lookup(defaults, name))}`"
        title = f"**{name}**" if name in groups else f"`{name}`"
        rows.append(f"| {title} | {shown} | {_cell(comment)} |")
    return "\n".join(rows)


def _parents(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _lookup(values: Any, name: str) -> Any:
    for key in name.split("."):
        values = values[key]
    return values


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _cell(text) if len(text) <= MAX_DEFAULT_LENGTH else "…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def readme_with_table() -> str:
    """The chart's README with the table of now."""
    before, _, rest = README.read_text().partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{values_table()}\n{END}{after}"


def schema_with_settings() -> str:
    """values.schema.json with the settings of now."""
    schema = json.loads(SCHEMA.read_text())
    schema["properties"]["settings"] = settings_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    """Write both."""
    README.write_text(readme_with_table())
    SCHEMA.write_text(schema_with_settings())


if __name__ == "__main__":
    main()
