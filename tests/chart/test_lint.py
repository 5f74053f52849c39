"""What linters say of the chart: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.chart.combinations import COMBINATIONS, Values, files
from tests.chart.helm import CHART, helm, template, tool
from tests.cluster.tools.cache import sources
from tests.serving import ROOT

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


def test_chart_testing_has_nothing_against_the_chart() -> None:
    chart_testing = tool("ct")
    rules = sources("chart-testing") / "etc"
    folders = (Path(sys.executable).parent, Path(tool("helm")).parent)
    said = subprocess.run(
        (
            *(chart_testing, "lint", "--charts", str(CHART), "--helm-lint-extra-args", "--strict"),
            *("--chart-yaml-schema", str(rules / "chart_schema.yaml")),
            *("--lint-conf", str(rules / "lintconf.yaml")),
            # It compares with the default branch of a remote, and asks a forge for the names.
            *("--check-version-increment=false", "--validate-maintainers=false"),
        ),
        # It calls helm, and the linters that are installed beside Python.
        env={**os.environ, "PATH": os.pathsep.join((*map(str, folders), os.environ["PATH"]))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert "All charts linted successfully" in said.stdout


@pytest.mark.parametrize("path", VALUES_FILES, ids=lambda path: path.stem)
def test_helm_has_nothing_against_the_values_files(path: Path) -> None:
    said = helm("lint", "--strict", str(CHART), "--values", str(path))
    assert "1 chart(s) linted, 0 chart(s) failed" in said
