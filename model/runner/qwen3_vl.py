"""The text model over a flat batch: tokens of all sequences side by side, KV in pages.

The reference path: transformers' own modules with the paged attention beneath. Only
`language_model` is called: `Qwen3VLModel.forward` keeps the last prompt's rope_deltas for the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.engine.batch import nothing
from model.runner import attention
from model.runner.attention import build_attention_metadata

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel

    from model.engine.batch import ScheduledSequence
    from model.runner.attention import AttentionMetadata
    from model.runner.kernels import Metadata
    from model.runner.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class ImageRows:
    """The image tokens among a flat batch.

    rows: [num_image_tokens] int64, into the batch
    tokens: [num_image_tokens, hidden_size]; deepstack: such a tensor for each of the first layers
    """

    rows: Tensor
    tokens: Tensor
    deepstack: tuple[Tensor, ...]

    def add_deepstack(self, layer: int, update: Tensor) -> None:
        """Add to a layer's output what DeepStack has for it; update: [num_tokens, hidden_size]."""
        if layer < len(self.deepstack):
            update.index_add_(0, self.rows, self.deepstack[layer])


@dataclass(frozen=True, slots=True)
class TextInputs:
    """One step's flat batch.

    token_ids: [num_tokens] int64; positions: [3, num_tokens] int64
    attention: what the text model's own `metadata` made of the batch
    sample_rows: [num_samples] int64, ascending; rows whose logits choose a token, or tell of one
    computing: called before the layers are; see Runner
    """

    token_ids: Tensor
    positions: Tensor
    attention: Metadata
    images: ImageRows | None
    sample_rows: Tensor
    computing: Callable[[], None] = nothing


class TextModel:
    """Embedding, decoder layers and head of a Qwen3-VL."""

    def __init__(self, model: PreTrainedModel, block_size: int) -> None:
        self._head = model.lm_head
        self._block_size = block_size
        self._layers = model.model.language_model
        attention.register()
        self._layers.set_attn_implementation(attention.ATTENTION_NAME)

    def metadata(self, shares: Seq[ScheduledSequence]) -> AttentionMetadata:
        """Where a step's tokens lie in the cache."""
        weight = self._head.weight
        return build_attention_metadata(shares, self._block_size, weight.device, weight.dtype)

    def logits(self, inputs: TextInputs, cache: KVCache) -> Tensor:
        """Run a step; writes the batch's KV. Returns [num_samples, vocab_size] float32."""
        return self.head(self.hidden(inputs, cache))

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of what `hidden` gives: [num_rows, vocab_size] float32."""
        logits: Tensor = self._head(hidden)
        return logits.to(torch.float32)

    def hidden(self, inputs: TextInputs, cache: KVCache) -> Tensor:
        """Run a step's layers; writes the batch's KV. Returns [num_samples, hidden_size]."""
        hidden = self._layers.embed_tokens(inputs.token_ids)
        visual: dict[str, Any] = {}
        if inputs.images is not None:
            hidden.index_copy_(0, inputs.images.rows, inputs.images.tokens)
            visual = _dense_deepstack(inputs.images, hidden)
        inputs.computing()
        output: Tensor = self._layers(
            inputs_embeds=hidden[None],
            position_ids=inputs.positions[:, None],
            use_cache=False,
            kv_cache=cache,
            attention_metadata=inputs.attention,
            **visual,
        ).last_hidden_state[0]
        return output.index_select(0, inputs.sample_rows)


def _dense_deepstack(images: ImageRows, hidden: Tensor) -> dict[str, Any]:
    """Additions for every row, zero where no image token is: the batch alone shapes them."""
    dense = []
    for layer in images.deepstack:
        addition = torch.zeros_like(hidden)
        addition.index_copy_(0, images.rows, layer)
        dense.append(addition)
    everywhere = torch.ones((1, len(hidden)), dtype=torch.bool, device=hidden.device)
    return {"visual_pos_masks": everywhere, "deepstack_visual_embeds": dense}
