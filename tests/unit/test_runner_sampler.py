"""Sampling: filters row by row, draws that follow the distribution and no one else's batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from model.engine.batch import ScheduledSequence
from model.engine.sequence import Sequence
from model.request import GenerateRequest, SamplingParams
from model.runner import sampler
from model.runner.sampler import Row, exponential_noise, row_of, sample

GREEDY = Row(
    temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, seed=1, index=0
)
WARM = replace(GREEDY, temperature=1.0)
PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]
NUM_DRAWS = 20_000
# Chi-square at p = 1e-4 for 1 to 5 degrees of freedom: the draws are fixed, so this never flickers.
CRITICAL = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7}


def chosen(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    return [token.token_id for token in sample(logits, rows)]


def draw_many(row: Row, probabilities: list[float], vary: str = "index") -> np.ndarray:
    """How often each token came, over NUM_DRAWS rows that differ in one parameter."""
    logits = torch.tensor(probabilities).log().repeat(NUM_DRAWS, 1)
    rows = [
        replace(row, seed=i) if vary == "seed" else replace(row, index=i) for i in range(NUM_DRAWS)
    ]
    return np.bincount(chosen(logits, rows), minlength=len(probabilities))


@pytest.mark.parametrize("vary", ["index", "seed"])
@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        pytest.param({}, 6, id="no filter"),
        pytest.param({"top_k": 3}, 3, id="top_k keeps three"),
        pytest.param({"top_k": 6}, 6, id="top_k of the whole vocabulary"),
        pytest.param({"top_k": 1000}, 6, id="top_k beyond the vocabulary"),
        pytest.param({"top_p": 0.8}, 3, id="top_p keeps the token that crosses it"),
        pytest.param({"top_p": 0.69}, 2, id="top_p just below a sum keeps what reaches it"),
        pytest.param({"top_k": 4, "top_p": 0.72}, 2, id="top_p applies to what top_k left"),
        pytest.param({"min_p": 0.2}, 4, id="min_p keeps what reaches a share of the best"),
        pytest.param({"top_k": 5, "min_p": 0.3}, 3, id="min_p after top_k"),
    ],
)
def test_draws_follow_the_renormalised_distribution(
    change: dict[str, Any], allowed: int, vary: str
) -> None:
    counts = draw_many(replace(WARM, **change), PROBABILITIES, vary)
    expected = np.array(PROBABILITIES[:allowed]) / sum(PROBABILITIES[:allowed]) * NUM_DRAWS
    assert counts[allowed:].sum() == 0
    statistic = ((counts[:allowed] - expected) ** 2 / expected).sum()
    assert statistic < CRITICAL[allowed - 1], f"chi-square {statistic:.1f}: {counts} for {expected}"


def test_temperature_sharpens_the_distribution() -> None:
    counts = draw_many(replace(WARM, temperature=0.5), PROBABILITIES)
    squared = np.square(PROBABILITIES)
    expected = squared / squared.sum() * NUM_DRAWS
    assert ((counts - expected) ** 2 / expected).sum() < CRITICAL[5]


def test_noise_is_exponential_and_independent_between_rows() -> None:
    ids = torch.arange(1000).expand(200, 1000)
    noise = exponential_noise([replace(WARM, index=i) for i in range(200)], ids).double()
    assert noise.min() > 0
    assert noise.isfinite().all()
    assert abs(noise.mean() - 1) < 0.01
    assert abs(noise.var() - 1) < 0.03
    assert abs((noise < 0.01).double().mean() - (1 - np.exp(-0.01))) < 1e-3
    correlation = torch.corrcoef(noise)
    assert (correlation - torch.eye(200)).abs().max() < 0.2


MIXED = [
    GREEDY,
    WARM,
    replace(WARM, seed=2, top_k=20, top_p=0.8, temperature=0.7),
    replace(WARM, seed=3, top_k=200),
    replace(WARM, seed=4, top_p=0.9, temperature=0.3),
    replace(WARM, seed=5, top_p=0.95, temperature=5.0),
    replace(WARM, seed=6, min_p=0.05, repetition_penalty=1.3, token_ids=(1, 2, 3, 3)),
    replace(WARM, seed=7, index=9, banned=frozenset({5, 6})),
]


def test_row_draws_the_same_alone_and_in_any_batch() -> None:
    logits = torch.randn((64, 5000), generator=torch.Generator().manual_seed(0)) * 3
    rows = [replace(MIXED[i % len(MIXED)], index=i) for i in range(64)]
    together = chosen(logits.clone(), rows)
    assert together == [chosen(logits[i : i + 1].clone(), rows[i : i + 1])[0] for i in range(64)]
    backwards = chosen(logits.flip(0).contiguous(), rows[::-1])
    assert together == backwards[::-1]
    assert len(set(together)) > 20


def test_narrow_nucleus_equals_sorting_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn((50, 5000), generator=torch.Generator().manual_seed(1)) * 3
    rows = [replace(WARM, index=i, top_p=0.9, temperature=0.2 + i / 25) for i in range(50)]
    narrow = chosen(logits.clone(), rows)
    monkeypatch.setattr(sampler, "NUCLEUS_WIDTH", 5000)
    assert narrow == chosen(logits.clone(), rows)


def test_seed_and_index_change_the_draw() -> None:
    logits = torch.zeros((1, 100_000))
    rows = [WARM, replace(WARM, seed=2), replace(WARM, index=1), replace(WARM, seed=(1 << 63) - 1)]
    assert len({chosen(logits.clone(), [row])[0] for row in rows}) == 4


def test_greedy_rows_take_the_exact_maximum() -> None:
    logits = torch.randn((5, 300), generator=torch.Generator().manual_seed(2))
    expected = logits.argmax(-1).tolist()
    assert chosen(logits, [GREEDY] * 5) == expected


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45])
def test_vanishing_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn((5, 300), generator=torch.Generator().manual_seed(3)) * 50
    expected = logits.argmax(-1).tolist()
    rows = [replace(WARM, temperature=temperature, index=i, top_p=0.9) for i in range(5)]
    assert chosen(logits, rows) == expected


def test_no_rows_choose_nothing() -> None:
    assert chosen(torch.zeros((0, 10)), []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("min_tokens", "num_done", "banned"),
    [
        pytest.param(3, 2, {7, 8, 9}, id="one short: end and stop ids are banned"),
        pytest.param(3, 3, set(), id="reached: nothing is banned"),
        pytest.param(0, 0, set(), id="not asked for"),
    ],
)
def test_min_tokens_ban_the_ids_that_end(
    min_tokens: int, num_done: int, banned: set[int], temperature: float
) -> None:
    params = SamplingParams(
        min_tokens=min_tokens, stop_token_ids=frozenset({7, 8}), temperature=temperature
    )
    sequence = Sequence(GenerateRequest("r", (1, 2), params, seed=0))
    sequence.token_ids += [3] * num_done
    row = row_of(
        ScheduledSequence(sequence, 0, len(sequence.token_ids), samples=True), frozenset({9})
    )
    assert row.banned == banned
    logits = torch.zeros((1, 12))
    logits[0, 7:10] = 100.0
    logits[0, 4] = 50.0
    assert chosen(logits, [row])[0] in ({4} if banned else {7, 8, 9})


def test_banned_ids_beyond_the_vocabulary_are_ignored() -> None:
    assert chosen(torch.zeros((1, 4)), [replace(GREEDY, banned=frozenset({99, 0}))]) != [0]


def test_repetition_penalty_lowers_seen_tokens_of_either_sign() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.2], [-3.0, -3.5, -1.0, -1.2]])
    row = replace(GREEDY, repetition_penalty=1.5)
    rows = [replace(row, token_ids=(0, 0)), replace(row, token_ids=[2])]
    assert chosen(logits, rows) == [1, 3]
    assert logits[0, 0] == pytest.approx(2 / 1.5)
