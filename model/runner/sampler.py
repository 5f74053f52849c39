"""From logits to the next token of each row, by the row's own parameters.

A sample depends on the row's logits and parameters alone, never on the batch around it: noise is a
function of (seed, completion index, token id), each row is filtered at a width of its own, and sums
are of kinds whose rounding does not follow the number of rows.
Order: what `adjust` does, then temperature, top_k, top_p, min_p.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.engine.batch import SampledToken
from model.runner.adjust import adjust
from model.runner.logprobs import Logprobs, raw_logprobs
from model.runner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.errors import ServingError
    from model.runner.rows import Row

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
MASK_64 = (1 << 64) - 1
# The largest float32 below 1: a draw of 1 itself would make infinite noise.
BELOW_ONE = 1 - 2**-24
SMALLEST_WIDTH = 64
NUCLEUS_WIDTH = 1024
NUCLEUS_MARGIN = 1e-5  # above the rounding of a sum over any vocabulary
# Probabilities in these units are integers, whose sums are the same in any order: CUDA adds floats
# in an order that follows the number of rows.
UNIT = 2.0**-50


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens on the device; token_ids: [num_rows] int64; faults: by row, see Row."""

    token_ids: Tensor
    logprobs: Logprobs | None
    faults: dict[int, ServingError] = field(default_factory=dict)

    def tokens(self) -> list[SampledToken]:
        """Wait for them."""
        told = self.logprobs.of(self.token_ids) if self.logprobs else {}
        return [
            SampledToken(token, told.get(i), self.faults.get(i))
            for i, token in enumerate(self.token_ids.tolist())
        ]


def sample(logits: Tensor, rows: Seq[Row]) -> list[SampledToken]:
    """Choose a token for each row; logits: [num_rows, vocab_size] float32, changed in place."""
    return choose(logits, rows).tokens()


def choose(logits: Tensor, rows: Seq[Row]) -> Chosen:
    """The same, without waiting for the tokens."""
    assert len(logits) == len(rows), "every row of logits needs its parameters"
    if not rows:
        return Chosen(torch.empty(0, dtype=torch.int64), None)
    logprobs = raw_logprobs(logits, rows)
    faults = {i: row.fault for i, row in enumerate(rows) if row.fault is not None}
    adjust(logits, rows)
    chosen = argmax(logits)
    if all(row.temperature == 0.0 for row in rows):
        return Chosen(chosen, logprobs, faults)
    parameters = _Parameters.of(rows, logits.device)
    for width, members in _by_width(logits, rows, parameters).items():
        index = on_device(np.array(members), logits.device)
        drawn = _draw(logits.index_select(0, index), parameters.select(index), width)
        chosen.index_copy_(0, index, drawn)
    return Chosen(chosen, logprobs, faults)


class _Parameters(NamedTuple):
    """The rows' own, on the device, each [num_rows, 1].

    top_k: 0 for all; top_p: in units; key: what makes the noise the row's own
    """

    temperature: Tensor
    min_p: Tensor
    top_k: Tensor
    top_p: Tensor
    key: Tensor

    @classmethod
    def of(cls, rows: Seq[Row], device: torch.device) -> _Parameters:
        """In one transfer: floats travel as the integers that have their bits."""
        floats = np.array([[row.temperature, row.min_p] for row in rows], dtype=np.float64)
        integers = np.array([[row.top_k, _units(row.top_p), noise_key(row)] for row in rows])
        packed = on_device(np.concatenate([floats.view(np.int64), integers], axis=1), device)
        temperature, min_p, top_k, top_p, key = (packed[:, i, None] for i in range(5))
        return cls(_float32(temperature), _float32(min_p), top_k, top_p, key)

    def select(self, index: Tensor) -> _Parameters:
        """Those of some rows."""
        return _Parameters(*(values.index_select(0, index) for values in self))


def _by_width(logits: Tensor, rows: Seq[Row], parameters: _Parameters) -> dict[int, list[int]]:
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
    if nucleus:
        for width, members in _by_nucleus(logits, rows, parameters, nucleus).items():
            widths.setdefault(width, []).extend(members)
    return widths


def _by_nucleus(
    logits: Tensor, rows: Seq[Row], parameters: _Parameters, members: list[int]
) -> dict[int, list[int]]:
    """Rows with top_p alone: NUCLEUS_WIDTH where it holds top_p of the mass, else the vocabulary.

    A nucleus is small as a rule, and sorting a whole vocabulary costs ten times as much.
    """
    width = min(NUCLEUS_WIDTH, logits.shape[1])
    index = on_device(np.array(members), logits.device)
    scaled = _scale(logits.index_select(0, index), parameters.select(index).temperature)
    masses = _in_units(scaled.softmax(-1).topk(width).values).sum(-1).tolist()
    widths: dict[int, list[int]] = {}
    for i, mass in zip(members, masses, strict=True):
        enough = mass * UNIT > rows[i].top_p + NUCLEUS_MARGIN
        widths.setdefault(width if enough else logits.shape[1], []).append(i)
    return widths


def _scale(logits: Tensor, temperature: Tensor) -> Tensor:
    """Divide by temperature, the maximum made 0 first: a tiny one must not make two infinities."""
    # The smallest normal float32 in place of less: 0 / 0 would be no number.
    divisor = temperature.clamp(min=torch.finfo(torch.float32).tiny)
    return (logits - logits.amax(-1, keepdim=True)) / divisor


def _draw(logits: Tensor, parameters: _Parameters, width: int) -> Tensor:
    """Sample each row by the exponential race: the smallest Exp(1) / probability wins.

    logits: [num_rows, vocab_size]; width: as `_by_width` has it; returns [num_rows] int64
    """
    scaled = _scale(logits, parameters.temperature)
    if width:
        mass = _log_mass(scaled)
        largest, ids = scaled.topk(width, dim=-1)
        scaled = _keep_top(largest, parameters, mass)
    else:
        ids = torch.arange(logits.shape[1], device=logits.device).expand_as(logits)
    scaled = scaled.masked_fill(scaled.exp() < parameters.min_p, float("-inf"))
    winner = argmax(scaled - exponential_noise(parameters.key, ids).log())
    return ids.gather(1, winner[:, None])[:, 0]


def argmax(rows: Tensor) -> Tensor:
    """Where each row is largest, the first place of several; rows: [num_rows, width] float32.

    On CPU by numpy, which is some ten times as fast as torch there.
    returns [num_rows] int64
    """
    if rows.device.type == "cpu":
        return torch.from_numpy(rows.numpy().argmax(-1))
    return rows.argmax(-1)


def _keep_top(scaled: Tensor, parameters: _Parameters, mass: Tensor) -> Tensor:
    """Apply top_k, then top_p to what it left.

    scaled: [num_rows, width], largest first; mass: [num_rows, 1], log-sum-exp of the whole rows
    """
    width, top_k, top_p = scaled.shape[1], parameters.top_k, parameters.top_p
    limited = (top_k > 0) & (top_k <= width)  # beyond the width it spans the vocabulary
    dropped = limited & (torch.arange(width, device=scaled.device) >= top_k)
    scaled = scaled.masked_fill(dropped, float("-inf"))
    mass = torch.where(limited, _log_mass(scaled), mass)
    probabilities = _in_units((scaled - mass).exp())
    before = probabilities.cumsum(-1) - probabilities
    filtered = top_p < _units(1.0)
    return scaled.masked_fill(filtered & (before >= top_p), float("-inf"))


def _log_mass(scaled: Tensor) -> Tensor:
    """log-sum-exp of rows whose maximum is 0, [num_rows, 1].

    By log_softmax, which reduces each row alone; CUDA's own logsumexp cuts a row into as many parts
    as there are few rows.
    """
    return -scaled.log_softmax(-1).amax(-1, keepdim=True)


def _in_units(probabilities: Tensor) -> Tensor:
    return (probabilities * (1 / UNIT)).long()


def _units(probability: float) -> int:
    """At least 1: nothing comes before the first token, which always stays."""
    return max(1, int(probability / UNIT))


def _float32(bits: Tensor) -> Tensor:
    return bits.contiguous().view(torch.float64).to(torch.float32)


def noise_key(row: Row) -> int:
    """A signed 64-bit key of (seed, completion index)."""
    return _signed(_mix(_mix(row.seed) + row.completion_index * GOLDEN_GAMMA))


def exponential_noise(key: Tensor, token_ids: Tensor) -> Tensor:
    """Exp(1) draws that depend on (key, token id) alone.

    key: [num_rows, 1] int64; token_ids: [num_rows, width] int64; returns float32 of that shape
    Source: SplitMix64 as a counter (Steele, Lea, Flood, OOPSLA 2014).
    """
    bits = _mix_tensor(key + (token_ids + 1) * _signed(GOLDEN_GAMMA))
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
