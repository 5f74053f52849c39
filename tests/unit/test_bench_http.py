"""The benchmark's arithmetic on the server's histogram, and on moments of both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.first_bytes import FirstTokens, delays
from tests.bench.http import quantile
from tests.bench.work import Work

if TYPE_CHECKING:
    from pathlib import Path

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


def test_delays_are_paired_in_the_order_of_the_tokens() -> None:
    assert delays([2.0, 1.0, 1.0], [1.5, 2.25, 1.25]) == [0.25, 0.5, 0.25]
    with pytest.raises(ValueError, match="zip"):
        delays([1.0], [1.5, 2.0])


def test_each_first_token_is_taken_once(tmp_path: Path) -> None:
    file = tmp_path / "moments"
    file.write_text("1.5\n2.5\n")
    moments = FirstTokens(file)
    assert moments.take() == [1.5, 2.5]
    file.write_text("1.5\n2.5\n3.5\n")
    assert moments.take() == [3.5]
    assert moments.take() == []


def test_staggered_answers_are_as_long_as_the_others_on_average_and_end_apart() -> None:
    work = Work(num_tokens=10, spread=3)
    each = work.lengths(7)
    assert sorted(each) == [7, 8, 9, 10, 11, 12, 13]
    assert work.lengths(14) == each * 2
    assert Work(num_tokens=10).lengths(3) == [10] * 3
