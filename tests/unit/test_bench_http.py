"""The benchmark's arithmetic on the server's histogram."""

from __future__ import annotations

import pytest

from tests.bench.http import quantile

INF = float("inf")


@pytest.mark.parametrize(
    ("cumulative", "share", "value"),
    [
        pytest.param({0.01: 100, 0.02: 100, INF: 100}, 0.5, 0.005, id="half of the first bucket"),
        pytest.param({0.01: 0, 0.02: 100, INF: 100}, 0.99, 0.0199, id="within its bucket"),
        pytest.param({0.01: 98, 0.02: 100, INF: 100}, 0.99, 0.015, id="between two"),
        pytest.param({0.01: 0, 0.02: 50, INF: 100}, 0.99, 0.02, id="beyond the last bound"),
    ],
)
def test_quantile(cumulative: dict[float, float], share: float, value: float) -> None:
    assert quantile(cumulative, share) == pytest.approx(value)
