"""What is done to logits before a token is chosen from them: penalties, biases, bans, grammars.

Each is one gather and one scatter over all rows that ask for it; no row's result depends on another
row. Order: repetition penalty, presence and frequency penalties, logit bias, min_tokens' ban or the
grammar's mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.runner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from numpy.typing import NDArray

    from model.runner.rows import Row

BITS = 8


def adjust(logits: Tensor, rows: Seq[Row]) -> None:
    """Apply what the rows ask for, in place; logits: [num_rows, vocab_size] float32."""
    members = [(i, row) for i, row in enumerate(rows) if not row.plain]
    if members:
        _penalise(logits, members)
        _add_bias(logits, members)
        _ban(logits, members)
        _mask(logits, members)


def _penalise(logits: Tensor, members: Seq[tuple[int, Row]]) -> None:
    """Repetition: positive logits divided, others multiplied, of any token that came before.

    Presence and frequency: taken once, and for each time, of tokens in the completion.
    Source: Keskar et al., CTRL, 2019, section 4.1; OpenAI's API reference.
    """
    penalised = [(i, row, row.history) for i, row in members if row.history is not None]
    if not penalised:
        return
    where = _places([(i, history.ids) for i, _, history in penalised], logits)
    sizes = [len(history.ids) for _, _, history in penalised]
    factors = np.repeat([row.repetition_penalty for _, row, _ in penalised], sizes)
    lowered = np.concatenate([_lowered(row, history.counts) for _, row, history in penalised])
    amounts = on_device(np.stack([factors, lowered]).astype(np.float32), logits.device)
    values = logits[where]
    values = torch.where(values > 0, values / amounts[0], values * amounts[0]) - amounts[1]
    logits[where] = values


def _lowered(row: Row, counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """What presence and frequency penalty take from each id of a history."""
    return row.frequency_penalty * counts + row.presence_penalty * (counts > 0)


def _add_bias(logits: Tensor, members: Seq[tuple[int, Row]]) -> None:
    biased = [(i, row.bias) for i, row in members if row.bias is not None]
    if biased:
        where = _places([(i, bias.ids) for i, bias in biased], logits)
        amounts = on_device(np.concatenate([bias.amounts for _, bias in biased]), logits.device)
        # Ids of a row differ, so nothing is added to the same place twice.
        logits[where] = logits[where] + amounts


def _ban(logits: Tensor, members: Seq[tuple[int, Row]]) -> None:
    vocab_size = logits.shape[1]
    banned = [
        (i, np.array([token_id for token_id in row.banned if token_id < vocab_size], np.int64))
        for i, row in members
        if row.banned
    ]
    if banned:
        logits[_places(banned, logits)] = float("-inf")


def _mask(logits: Tensor, members: Seq[tuple[int, Row]]) -> None:
    """Leave only what the rows' grammars allow."""
    masked = [(i, row.mask) for i, row in members if row.mask is not None]
    if not masked:
        return
    index = on_device(np.array([i for i, _ in masked]), logits.device)
    # In bytes rather than words: unpacked, they are a quarter of the size.
    packed = on_device(np.stack([mask for _, mask in masked]).view(np.uint8), logits.device)
    shifts = torch.arange(BITS, dtype=torch.uint8, device=logits.device)
    bits = ((packed[:, :, None] >> shifts) & 1).flatten(1)[:, : logits.shape[1]]
    assert bits.shape[1] == logits.shape[1], "a mask has a bit for each id"
    kept = logits.index_select(0, index).masked_fill(bits == 0, float("-inf"))
    logits.index_copy_(0, index, kept)


def _places(ids: Seq[tuple[int, NDArray[np.int64]]], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of every id, over all rows, in one transfer to the device."""
    rows = np.repeat([i for i, _ in ids], [len(row_ids) for _, row_ids in ids])
    places = np.stack([rows, np.concatenate([row_ids for _, row_ids in ids])])
    row, column = on_device(places.astype(np.int64), logits.device)
    return row, column
