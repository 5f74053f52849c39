"""Logprobs of the tokens a step chose, and of those that were most probable.

They are the model's own: of the logits before any penalty, mask, filter or temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from model.request import TokenLogprobs
from model.runner.transfer import on_device

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from model.runner.rows import Row

MASK_31 = (1 << 31) - 1
MASK_32 = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of the rows that asked, on the device.

    members: which rows; num_top: how many tokens each wants
    table: [num_members, vocab_size]; top_ids, top: [num_members, largest num_top]
    """

    members: list[int]
    num_top: list[int]
    table: Tensor
    top_ids: Tensor
    top: Tensor

    def of(self, token_ids: Tensor) -> dict[int, TokenLogprobs]:
        """By row, for the tokens that all rows chose; token_ids: [num_rows] int64."""
        index = on_device(np.array(self.members), token_ids.device)
        chosen = self.table.gather(1, token_ids.index_select(0, index)[:, None])[:, 0]
        columns = (chosen.tolist(), self.top_ids.tolist(), self.top.tolist())
        return {
            member: TokenLogprobs(logprob, tuple(zip(ids[:most], values[:most], strict=True)))
            for member, most, logprob, ids, values in zip(
                self.members, self.num_top, *columns, strict=True
            )
        }


def raw_logprobs(logits: Tensor, rows: Seq[Row]) -> Logprobs | None:
    """Of logits as the model gave them, [num_rows, vocab_size] float32; None where no row asks."""
    members = [i for i, row in enumerate(rows) if row.num_top is not None]
    if not members:
        return None
    index = on_device(np.array(members), logits.device)
    table = logits.index_select(0, index).log_softmax(-1)
    num_top = [rows[i].num_top or 0 for i in members]
    width = min(max(num_top), logits.shape[1])
    top_ids = _ranks(table).topk(width).indices if width else table.new_empty((len(members), 0))
    return Logprobs(members, num_top, table, top_ids.long(), table.gather(1, top_ids.long()))


def known_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> list[TokenLogprobs]:
    """Of tokens that are known already, with their ranks; one for each row of logits.

    logits: [num_rows, vocab_size] float32; token_ids: [num_rows] int64
    """
    table = logits.log_softmax(-1)
    ranks = _ranks(table)
    own = token_ids[:, None]
    places = (ranks > ranks.gather(1, own)).sum(-1) + 1
    top_ids = ranks.topk(min(num_top, logits.shape[1])).indices
    columns = (table.gather(1, own)[:, 0], top_ids, table.gather(1, top_ids), places)
    return [
        TokenLogprobs(logprob, tuple(zip(ids, values, strict=True)), place)
        for logprob, ids, values, place in zip(*(one.tolist() for one in columns), strict=True)
    ]


def _ranks(table: Tensor) -> Tensor:
    """Integers in the order of the logprobs, of equal ones the smaller id larger: no two alike.

    Rows of bfloat16 models are full of equal logits, whose order topk leaves open.
    """
    # As integers, floats of one sign are in order; adding 0.0 makes of two zeros one.
    bits = (table + 0.0).view(torch.int32).long()
    ordered = bits ^ ((bits >> 31) & MASK_31)
    ids = torch.arange(table.shape[1], device=table.device)
    return (ordered << 32) | (MASK_32 - ids)
