"""What linters say of the chart: nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.chart.combinations import COMBINATIONS, Values, files
from tests.chart.helm import CHART, helm, template
from tests.serving import ROOT

if TYPE_CHECKING:
    from pathlib import Path

RULES: Final = YamlLintConfig((ROOT / "tests" / "chart" / "lintconf.yaml").read_text())
SOURCES: Final = [CHART / "Chart.yaml", *sorted(CHART.glob("values*.yaml"))]
VALUES_FILES: Final = sorted(CHART.glob("values-*.yaml"))


def problems(text: str) -> list[str]:
    return [str(problem) for problem in linter.run(text, RULES)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_the_chart_s_own_files_are_tidy(path: Path) -> None:
    assert problems(path.read_text()) == []


@pytest.mark.parametrize(
    "values",
    [COMBINATIONS["everything that watches"], COMBINATIONS["Knative"], *files().values()],
    ids=["everything that watches", "Knative", *files()],
)
def test_what_it_renders_is_tidy(values: Values) -> None:
    assert problems(template(values)) == []


@pytest.mark.parametrize("path", VALUES_FILES, ids=lambda path: path.stem)
def test_helm_has_nothing_against_the_values_files(path: Path) -> None:
    said = helm("lint", "--strict", str(CHART), "--values", str(path))
    assert "1 chart(s) linted, 0 chart(s) failed" in said
