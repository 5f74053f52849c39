"""From logits to the next token of each row, by the row's own parameters.

A sample depends on the row's logits, seed and completion index alone, never on the batch around it:
noise is a function of (seed, index, token id), and each row is filtered at a width of its own.
Order of the filters: min_tokens, repetition penalty, temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.engine.batch import SampledToken

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.engine.batch import ScheduledSequence

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK_64 = (1 << 64) - 1
# The largest float32 below 1: a draw of 1 itself would make infinite noise.
BELOW_ONE = 1 - 2**-24
SMALLEST_WIDTH = 64
NUCLEUS_WIDTH = 1024
NUCLEUS_MARGIN = 1e-5  # above the rounding of a sum over any vocabulary


@dataclass(frozen=True, slots=True)
class Row:
    """What one row of logits needs to become a token.

    index: completion tokens the sequence has so far
    token_ids: prompt and completion, for the repetition penalty
    banned: ids that must not be chosen now, because min_tokens is not reached
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int
    index: int
    token_ids: Seq[int] = ()
    banned: frozenset[int] = frozenset()

    @property
    def plain(self) -> bool:
        """Whether the row's logits go to the choice as they are."""
        return self.repetition_penalty == 1.0 and not self.banned


def row_of(share: ScheduledSequence, eos_token_ids: frozenset[int]) -> Row:
    """The parameters of the token that a share's logits choose."""
    sequence = share.sequence
    sampling = sequence.request.sampling
    index = share.completion_index
    early = index < sampling.min_tokens
    return Row(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        seed=sequence.request.seed,
        index=index,
        token_ids=sequence.token_ids,
        banned=eos_token_ids | sampling.stop_token_ids if early else frozenset(),
    )


def sample(logits: Tensor, rows: Seq[Row]) -> list[SampledToken]:
    """Choose a token for each row; logits: [num_rows, vocab_size] float32, changed in place."""
    assert len(logits) == len(rows), "every row of logits needs its parameters"
    if not rows:
        return []
    for row, row_logits in zip(rows, logits, strict=True):
        if not row.plain:
            _adjust(row, row_logits)
    chosen = logits.argmax(-1)
    for width, members in _by_width(logits, rows).items():
        index = torch.tensor(members, device=logits.device)
        drawn = _draw(logits.index_select(0, index), [rows[i] for i in members], width)
        chosen.index_copy_(0, index, drawn)
    return [SampledToken(token_id) for token_id in chosen.tolist()]


def _by_width(logits: Tensor, rows: Seq[Row]) -> dict[int, list[int]]:
    """Rows that sample, by how many of their largest logits are sorted and filtered; 0: none."""
    vocab_size = logits.shape[1]
    widths: dict[int, list[int]] = {}
    nucleus: list[int] = []
    for i, row in enumerate(rows):
        if row.temperature == 0.0:
            continue
        if 0 < row.top_k < vocab_size:
            # A width of the row's own: rounding must not follow the batch's largest top_k.
            width = max(SMALLEST_WIDTH, 1 << (row.top_k - 1).bit_length())
            widths.setdefault(min(width, vocab_size), []).append(i)
        elif row.top_p < 1.0:
            nucleus.append(i)
        else:
            widths.setdefault(0, []).append(i)
    for width, members in _by_nucleus(logits, rows, nucleus).items():
        widths.setdefault(width, []).extend(members)
    return widths


def _by_nucleus(logits: Tensor, rows: Seq[Row], members: list[int]) -> dict[int, list[int]]:
    """Rows with top_p alone: NUCLEUS_WIDTH where it holds top_p of the mass, else the vocabulary.

    A nucleus is small as a rule, and sorting a whole vocabulary costs ten times as much.
    """
    if not members:
        return {}
    width = min(NUCLEUS_WIDTH, logits.shape[1])
    index = torch.tensor(members, device=logits.device)
    scaled = _scale(logits.index_select(0, index), [rows[i] for i in members])
    masses = scaled.softmax(-1).topk(width).values.sum(-1).tolist()
    widths: dict[int, list[int]] = {}
    for i, mass in zip(members, masses, strict=True):
        enough = mass > rows[i].top_p + NUCLEUS_MARGIN
        widths.setdefault(width if enough else logits.shape[1], []).append(i)
    return widths


def _adjust(row: Row, logits: Tensor) -> None:
    """Apply min_tokens and the repetition penalty to one row; logits: [vocab_size]."""
    if row.banned:
        ids = [i for i in row.banned if i < len(logits)]
        logits[torch.tensor(ids, dtype=torch.int64, device=logits.device)] = float("-inf")
    if row.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(row.token_ids)), dtype=torch.int64, device=logits.device)
        values = logits[seen]
        penalty = row.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _scale(logits: Tensor, rows: Seq[Row]) -> Tensor:
    """Divide by temperature, the maximum made 0 first: a tiny one must not make two infinities."""
    temperature = torch.tensor([row.temperature for row in rows], device=logits.device)
    # The smallest normal float32 in place of less: 0 / 0 would be no number.
    divisor = temperature.clamp_(min=torch.finfo(torch.float32).tiny)[:, None]
    return (logits - logits.amax(-1, keepdim=True)) / divisor


def _draw(logits: Tensor, rows: Seq[Row], width: int) -> Tensor:
    """Sample each row by the exponential race: the smallest Exp(1) / probability wins.

    logits: [num_rows, vocab_size]; width: as `_by_width` has it; returns [num_rows] int64
    """
    scaled = _scale(logits, rows)
    if width:
        mass = scaled.logsumexp(-1, keepdim=True)
        largest, ids = scaled.topk(width, dim=-1)
        scaled = _keep_top(largest, rows, mass)
    else:
        ids = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    if any(row.min_p > 0.0 for row in rows):
        min_p = torch.tensor([row.min_p for row in rows], device=logits.device)[:, None]
        scaled = scaled.masked_fill(scaled.exp() < min_p, float("-inf"))
    winner = (scaled - exponential_noise(rows, ids).log()).argmax(-1, keepdim=True)
    return ids.gather(1, winner)[:, 0]


def _keep_top(scaled: Tensor, rows: Seq[Row], mass: Tensor) -> Tensor:
    """Apply top_k, then top_p to what it left.

    scaled: [num_rows, width], largest first; mass: [num_rows, 1], log-sum-exp of the whole rows
    """
    device, width = scaled.device, scaled.shape[1]
    top_k = torch.tensor([row.top_k for row in rows], device=device)[:, None]
    limited = (top_k > 0) & (top_k <= width)  # beyond the width it spans the vocabulary
    dropped = limited & (torch.arange(width, device=device) >= top_k)
    scaled = scaled.masked_fill(dropped, float("-inf"))
    mass = torch.where(limited, scaled.logsumexp(-1, keepdim=True), mass)
    top_p = torch.tensor([row.top_p for row in rows], device=device)[:, None]
    probabilities = (scaled - mass).exp()
    before = probabilities.cumsum(-1) - probabilities
    # The first always stays: nothing comes before it, and rounding must not say otherwise.
    before[:, 0] = 0.0
    return scaled.masked_fill((before >= top_p) & (top_p < 1.0), float("-inf"))


def exponential_noise(rows: Seq[Row], token_ids: Tensor) -> Tensor:
    """Exp(1) draws that depend on (seed, index, token id) alone.

    token_ids: [num_rows, width] int64; returns float32 of that shape
    Source: SplitMix64 as a counter (Steele, Lea, Flood, OOPSLA 2014).
    """
    keys = [_signed(_mix(_mix(row.seed) + row.index * GOLDEN_GAMMA)) for row in rows]
    state = torch.tensor(keys, dtype=torch.int64, device=token_ids.device)[:, None]
    bits = _mix_tensor(state + (token_ids + 1) * _signed(GOLDEN_GAMMA))
    # 32 bits keep the small draws, which win races, finely graded in float32.
    uniform = ((bits >> 32) & 0xFFFFFFFF).to(torch.float32).add_(0.5).mul_(2.0**-32)
    return -torch.log1p(-uniform.clamp_(max=BELOW_ONE))


def _mix(value: int) -> int:
    """SplitMix64's finaliser."""
    value = (value + GOLDEN_GAMMA) & MASK_64
    value = ((value ^ (value >> 30)) * MIX_1) & MASK_64
    value = ((value ^ (value >> 27)) * MIX_2) & MASK_64
    return value ^ (value >> 31)


def _mix_tensor(value: Tensor) -> Tensor:
    """The same without the first addition, on int64, whose products wrap as unsigned ones do."""
    value = (value ^ _shifted(value, 30)) * _signed(MIX_1)
    value = (value ^ _shifted(value, 27)) * _signed(MIX_2)
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Logical right shift: int64's own copies the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
