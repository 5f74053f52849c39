"""Sampling: filters row by row, draws that follow the distribution and no one else's batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from model.checkpoint import read_checkpoint
from model.demo import CHECKPOINT_DIR
from model.engine.batch import ScheduledSequence
from model.engine.sequence import Sequence
from model.request import GenerateRequest, SamplingParams
from model.runner import sampler
from model.runner.rows import Bias, History, Row, RowSource
from model.runner.sampler import argmax, exponential_noise, noise_key, sample

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

CHECKPOINT = read_checkpoint(CHECKPOINT_DIR)
GREEDY = Row(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=1, completion_index=0)
WARM = GREEDY._replace(temperature=1.0)
PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01]
NUM_DRAWS = 20_000
# Chi-square at p = 1e-4 for 1 to 5 degrees of freedom: the draws are fixed, so this never flickers.
CRITICAL = {1: 15.1, 2: 18.4, 3: 21.1, 4: 23.5, 5: 25.7}


def chosen(logits: torch.Tensor, rows: list[Row]) -> list[int]:
    return [token.token_id for token in sample(logits, rows)]


def allowing(token_ids: Iterable[int], vocab_size: int = 5000) -> NDArray[np.int32]:
    """A grammar's mask."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def draw_many(row: Row, probabilities: list[float], vary: str = "completion_index") -> np.ndarray:
    """How often each token came, over NUM_DRAWS rows that differ in one parameter."""
    logits = torch.tensor(probabilities).log().repeat(NUM_DRAWS, 1)
    rows = [
        row._replace(seed=i) if vary == "seed" else row._replace(completion_index=i)
        for i in range(NUM_DRAWS)
    ]
    return np.bincount(chosen(logits, rows), minlength=len(probabilities))


@pytest.mark.parametrize("vary", ["completion_index", "seed"])
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
    counts = draw_many(WARM._replace(**change), PROBABILITIES, vary)
    expected = np.array(PROBABILITIES[:allowed]) / sum(PROBABILITIES[:allowed]) * NUM_DRAWS
    assert counts[allowed:].sum() == 0
    statistic = ((counts[:allowed] - expected) ** 2 / expected).sum()
    assert statistic < CRITICAL[allowed - 1], f"chi-square {statistic:.1f}: {counts} for {expected}"


def test_temperature_sharpens_the_distribution() -> None:
    counts = draw_many(WARM._replace(temperature=0.5), PROBABILITIES)
    squared = np.square(PROBABILITIES)
    expected = squared / squared.sum() * NUM_DRAWS
    assert ((counts - expected) ** 2 / expected).sum() < CRITICAL[5]


def test_noise_is_exponential_and_independent_between_rows() -> None:
    ids = torch.arange(1000).expand(200, 1000)
    keys = [noise_key(WARM._replace(completion_index=i)) for i in range(200)]
    noise = exponential_noise(torch.tensor(keys)[:, None], ids).double()
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
    WARM._replace(seed=2, top_k=20, top_p=0.8, temperature=0.7),
    WARM._replace(seed=3, top_k=200),
    WARM._replace(seed=4, top_p=0.9, temperature=0.3),
    WARM._replace(seed=5, top_p=0.95, temperature=5.0),
    WARM._replace(seed=6, min_p=0.05, repetition_penalty=1.3, history=History((1, 2), (3, 3))),
    WARM._replace(seed=7, completion_index=9, banned=frozenset({5, 6}), num_top=0),
    WARM._replace(
        seed=8,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        history=History((), range(0, 3000, 7)),
        num_top=20,
    ),
    WARM._replace(seed=9, bias=Bias.of([(4, 5.0), (4000, -100.0)]), top_p=0.9, num_top=3),
    GREEDY._replace(mask=allowing(range(0, 5000, 3)), num_top=20),
    WARM._replace(seed=10, mask=allowing(range(2500)), top_k=50, top_p=0.95),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_row_gets_the_same_token_and_logprobs_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    logits = torch.randn((64, 5000), generator=torch.Generator().manual_seed(0)) * 3
    logits = logits.to(dtype).float()  # of bfloat16 every row has hundreds of equal logits
    rows = [MIXED[i % len(MIXED)]._replace(completion_index=i) for i in range(64)]
    together = sample(logits.clone(), rows)
    assert together == [
        token for i in range(64) for token in sample(logits[i : i + 1].clone(), [rows[i]])
    ]
    assert together == sample(logits.flip(0).contiguous(), rows[::-1])[::-1]
    assert len({token.token_id for token in together}) > 20


def test_narrow_nucleus_equals_sorting_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn((50, 5000), generator=torch.Generator().manual_seed(1)) * 3
    rows = [
        WARM._replace(completion_index=i, top_p=0.9, temperature=0.2 + i / 25) for i in range(50)
    ]
    narrow = chosen(logits.clone(), rows)
    monkeypatch.setattr(sampler, "NUCLEUS_WIDTH", 5000)
    assert narrow == chosen(logits.clone(), rows)


def test_seed_and_index_change_the_draw() -> None:
    logits = torch.zeros((1, 100_000))
    rows = [
        WARM,
        WARM._replace(seed=2),
        WARM._replace(completion_index=1),
        WARM._replace(seed=(1 << 63) - 1),
    ]
    assert len({chosen(logits.clone(), [row])[0] for row in rows}) == 4


def test_greedy_rows_take_the_exact_maximum() -> None:
    logits = torch.randn((5, 300), generator=torch.Generator().manual_seed(2))
    expected = logits.argmax(-1).tolist()
    assert chosen(logits, [GREEDY] * 5) == expected


def test_of_equal_logits_the_first_is_taken_on_every_device() -> None:
    rows = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-torch.inf] * 4, [0.0, -0.0, 0.0, 0.0]])
    assert argmax(rows).tolist() == rows.argmax(-1).tolist() == [1, 0, 0]
    assert argmax(rows).dtype is torch.int64
    assert argmax(rows[:0]).tolist() == []


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45])
def test_vanishing_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn((5, 300), generator=torch.Generator().manual_seed(3)) * 50
    expected = logits.argmax(-1).tolist()
    rows = [WARM._replace(temperature=temperature, completion_index=i, top_p=0.9) for i in range(5)]
    assert chosen(logits, rows) == expected


def test_no_rows_choose_nothing() -> None:
    assert chosen(torch.zeros((0, 10)), []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("min_tokens", "num_done", "banned"),
    [
        pytest.param(3, 2, {7, 8}, id="one short: end and stop ids are banned"),
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
    [row] = RowSource(CHECKPOINT).rows([share_of(sequence)])
    assert row.banned == (banned | CHECKPOINT.eos_token_ids if banned else set())
    logits = torch.zeros((1, 1024))
    logits[0, 7:9] = logits[0, list(CHECKPOINT.eos_token_ids)] = 100.0
    logits[0, 4] = 50.0
    assert (chosen(logits, [row]) == [4]) is bool(banned)


def test_banned_ids_beyond_the_vocabulary_are_ignored() -> None:
    assert chosen(torch.zeros((1, 4)), [GREEDY._replace(banned=frozenset({99, 0}))]) != [0]


def test_repetition_penalty_lowers_seen_tokens_of_either_sign() -> None:
    logits = torch.tensor([[2.0, 1.5, -1.0, -1.2], [-3.0, -3.5, -1.0, -1.2]])
    row = GREEDY._replace(repetition_penalty=1.5)
    rows = [row._replace(history=History((0,), (0, 0))), row._replace(history=History((), [2]))]
    assert chosen(logits, rows) == [1, 3]
    assert logits[0, 0] == pytest.approx(2 / 1.5)
    assert logits[1, 2] == pytest.approx(-1.5)


def test_penalties_are_over_the_completion_as_openai_defines_them() -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    row = row_after((7, 7, 8), (1, 2, 1, 1), params)
    logits = torch.ones((1, 10))
    sample(logits, [row])
    expected = torch.ones(10)
    expected[1] = 1 - 3 * 0.25 - 0.5
    expected[2] = 1 - 1 * 0.25 - 0.5
    assert torch.equal(logits[0], expected)


def test_every_adjustment_together_equals_the_formula() -> None:
    params = SamplingParams(
        repetition_penalty=1.3,
        presence_penalty=-1.0,
        frequency_penalty=0.7,
        logit_bias=((1, 3.0), (9, -100.0)),
    )
    before = torch.randn(10, generator=torch.Generator().manual_seed(5))
    logits = before.clone()[None]
    sample(logits, [row_after((1, 5), (2, 5, 5), params)])
    expected = before.tolist()
    for token_id in (1, 2, 5):
        value = expected[token_id]
        expected[token_id] = value / 1.3 if value > 0 else value * 1.3
    for token_id, count in ((2, 1), (5, 2)):
        expected[token_id] -= 0.7 * count - 1.0
    expected[1] += 3.0
    expected[9] -= 100.0
    assert logits[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_history_that_grows_equals_one_that_is_read_at_once() -> None:
    tokens = [i * 37 % 500 for i in range(2000)]
    grown = History(range(100))
    for token in tokens:
        grown.count([token])
    once = History(range(100), tokens)
    assert grown.ids.tolist() == once.ids.tolist()
    assert grown.counts.tolist() == once.counts.tolist()
    assert dict(zip(once.ids.tolist(), once.counts.tolist(), strict=True)) == {
        token: float(tokens.count(token)) for token in {*range(100), *tokens}
    }


def test_what_is_kept_for_a_sequence_follows_its_tokens_and_is_made_again() -> None:
    source = RowSource(CHECKPOINT)
    params = SamplingParams(frequency_penalty=1.0, logit_bias=((3, 1.0),))
    sequence = Sequence(GenerateRequest("r", (1, 2), params, seed=0))
    for token in (5, 6, 5):
        source.rows([share_of(sequence)])
        sequence.token_ids.append(token)
    [row] = source.rows([share_of(sequence)])
    assert source.num_kept == 1
    source.release([sequence])
    assert source.num_kept == 0
    [again] = source.rows([share_of(sequence)])
    for one in (row, again):
        assert one.history is not None
        assert (one.history.ids.tolist(), one.history.counts.tolist()) == ([5, 6], [2.0, 1.0])


def test_rows_that_ask_for_nothing_are_plain_and_keep_nothing() -> None:
    source = RowSource(CHECKPOINT)
    sequence = Sequence(GenerateRequest("r", (1, 2), SamplingParams(logprobs=2), seed=0))
    [row] = source.rows([share_of(sequence), share_of(sequence)._replace(samples=False)])
    assert row.plain
    assert source.num_kept == 0


def test_logit_bias_decides() -> None:
    logits = torch.zeros((2, 50))
    rows = [GREEDY._replace(bias=Bias.of([(7, 100.0)])), GREEDY._replace(bias=Bias.of([(0, -1.0)]))]
    assert chosen(logits, rows) == [7, 1]


def test_a_mask_leaves_what_it_allows_and_no_padding() -> None:
    logits = torch.arange(100.0).repeat(3, 1)
    rows = [
        GREEDY._replace(mask=allowing([3, 31, 64], 100)),
        GREEDY,
        GREEDY._replace(mask=allowing([0], 100)),
    ]
    assert chosen(logits, rows) == [64, 99, 0]
    assert logits[0].isfinite().nonzero()[:, 0].tolist() == [3, 31, 64]
    assert logits[1].isfinite().all()


def test_logprobs_are_the_models_own_whatever_is_done_to_the_logits() -> None:
    logits = torch.randn((1, 100), generator=torch.Generator().manual_seed(6)) * 2
    expected = logits[0].double().log_softmax(-1)
    row = WARM._replace(
        temperature=0.3,
        top_k=5,
        repetition_penalty=2.0,
        history=History(range(50)),
        bias=Bias.of([(99, 100.0)]),
        num_top=5,
    )
    [token] = sample(logits.clone(), [row])
    assert token.token_id == 99
    assert token.logprobs is not None
    assert token.logprobs.logprob == pytest.approx(expected[99].item(), abs=1e-5)
    best = expected.topk(5)
    assert [token_id for token_id, _ in token.logprobs.top] == best.indices.tolist()
    assert [value for _, value in token.logprobs.top] == pytest.approx(
        best.values.tolist(), abs=1e-5
    )


@pytest.mark.parametrize("num_top", [0, 1, 3, 20])
def test_only_rows_that_ask_get_as_many_top_logprobs_as_they_ask_for(num_top: int) -> None:
    rows = [GREEDY, GREEDY._replace(num_top=num_top), GREEDY._replace(num_top=20)]
    tokens = sample(torch.randn((3, 30)), rows)
    assert tokens[0].logprobs is None
    told = [token.logprobs for token in tokens[1:] if token.logprobs is not None]
    assert [len(logprobs.top) for logprobs in told] == [num_top, 20]


def test_more_top_logprobs_than_ids_are_all_ids() -> None:
    [token] = sample(torch.zeros((1, 4)), [GREEDY._replace(num_top=20)])
    assert token.logprobs is not None
    assert [token_id for token_id, _ in token.logprobs.top] == [0, 1, 2, 3]


def test_equal_logprobs_are_in_the_order_of_their_ids() -> None:
    logits = torch.tensor([1.0, 3.0, 1.0, 3.0, -2.0, 3.0] * 50)[None]
    [token] = sample(logits, [GREEDY._replace(num_top=20)])
    assert token.logprobs is not None
    assert [token_id for token_id, _ in token.logprobs.top] == [
        i for i in range(300) if i % 6 in (1, 3, 5)
    ][:20]


@pytest.mark.parametrize(
    ("params", "needs"),
    [
        pytest.param({}, False, id="nothing"),
        pytest.param({"logprobs": 3, "logit_bias": ((1, 1.0),)}, False, id="of this step alone"),
        pytest.param({"repetition_penalty": 1.1}, True, id="repetition"),
        pytest.param({"presence_penalty": -0.1}, True, id="presence"),
        pytest.param({"frequency_penalty": 0.1}, True, id="frequency"),
    ],
)
def test_what_needs_the_tokens_before(params: dict[str, Any], needs: bool) -> None:
    request = GenerateRequest("r", (1,), SamplingParams(**params), seed=0)
    assert request.needs_history is needs
    assert GenerateRequest("r", (1,), SamplingParams(), seed=0, grammar="g").needs_history


def row_after(prompt: tuple[int, ...], completion: tuple[int, ...], params: SamplingParams) -> Row:
    sequence = Sequence(GenerateRequest("r", prompt, params, seed=0))
    sequence.token_ids += completion
    [row] = RowSource(CHECKPOINT).rows([share_of(sequence)])
    return row


def share_of(sequence: Sequence) -> ScheduledSequence:
    return ScheduledSequence(sequence, 0, len(sequence.token_ids), samples=True)
