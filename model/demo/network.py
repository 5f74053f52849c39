"""The model's forward over dense batches, on transformers' own parameters.

transformers runs one picture at a time through ragged attention; training needs batches. Every
picture of a batch has the same grid here, so vision and text are plain dense attention. A test
holds this forward to transformers' own.
"""

import math
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextModel,
    Qwen3VLVisionBlock,
    Qwen3VLVisionModel,
)

from model.demo.labels import OCCUPANCY_SIDE, TOKEN_LABELS
from model.demo.pixels import MERGE, PATCH

Grid: TypeAlias = tuple[int, int]

_ROPE_THETA: Final = 10_000.0


class AuxiliaryHeads(nn.Module):
    """Linear probes that teach the vision tower what there is to see; dropped after training."""

    def __init__(self, vision_size: int, text_size: int) -> None:
        super().__init__()
        self.occupancy = nn.Linear(vision_size, OCCUPANCY_SIDE**2)
        self.tokens = nn.Linear(text_size, sum(TOKEN_LABELS.values()))
        self.deep_tokens = nn.Linear(text_size, sum(TOKEN_LABELS.values()))


class VisionOutput:
    """first: [batch, patches, hidden] after block one; visual, deepstack: [batch, tokens, text]."""

    def __init__(self, first: Tensor, visual: Tensor, deepstack: list[Tensor]) -> None:
        self.first = first
        self.visual = visual
        self.deepstack = deepstack


def see(model: Qwen3VLForConditionalGeneration, patches: Tensor, grid: Grid) -> VisionOutput:
    """Run the vision tower.

    patches: [batch, num_patches, 3 * 16 * 16] in -1..1, one frame, in the merger's order
    grid: (rows, columns) in visual tokens
    """
    vision: Qwen3VLVisionModel = model.model.visual
    # A still picture is two equal frames: their filters can be summed before the product.
    weight = vision.patch_embed.proj.weight.sum(2).flatten(1)
    hidden = F.linear(patches, weight, vision.patch_embed.proj.bias)
    indices, weights, cos, sin = _vision_positions(vision, grid, patches.device)
    hidden = hidden + (vision.pos_embed(indices) * weights[:, :, None]).sum(1)
    first, deepstack = hidden, []
    for number, block in enumerate(vision.blocks):
        hidden = _vision_block(block, hidden, cos, sin)
        if number == 0:
            first = hidden
        if number in vision.deepstack_visual_indexes:
            merger = vision.deepstack_merger_list[vision.deepstack_visual_indexes.index(number)]
            deepstack.append(_tokens(merger(hidden), hidden))
    return VisionOutput(first, _tokens(vision.merger(hidden), hidden), deepstack)


def _tokens(merged: Tensor, hidden: Tensor) -> Tensor:
    return merged.view(hidden.shape[0], -1, merged.shape[-1])


@lru_cache(maxsize=64)
def _vision_positions(
    vision: Qwen3VLVisionModel, grid: Grid, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each patch in the merger's order: the four learned positions around it and their weights
    ([num_patches, 4] each), the cosines and sines of its rotary angles ([num_patches, head_dim]).
    """
    rows, columns = grid[0] * MERGE, grid[1] * MERGE
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    tiles = (grid[0], MERGE, grid[1], MERGE)
    y, x = (axis.reshape(tiles).transpose(1, 2).flatten().float() for axis in (y, x))

    side = vision.num_grid_per_side
    at_y, at_x = y * (side - 1) / (rows - 1), x * (side - 1) / (columns - 1)
    top, left = at_y.floor(), at_x.floor()
    down, right = at_y - top, at_x - left
    bottom, end = (top + 1).clamp_max(side - 1), (left + 1).clamp_max(side - 1)
    indices = torch.stack(
        [top * side + left, top * side + end, bottom * side + left, bottom * side + end], dim=1
    )
    weights = torch.stack(
        [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], dim=1
    )

    quarter = vision.config.hidden_size // vision.config.num_heads // 4
    frequencies = _ROPE_THETA ** (-torch.arange(quarter) / quarter)
    angles = torch.cat([y[:, None] * frequencies, x[:, None] * frequencies], dim=1)
    angles = torch.cat([angles, angles], dim=1)
    found = (indices.long(), weights, angles.cos(), angles.sin())
    return tuple(tensor.to(device) for tensor in found)  # type: ignore[return-value]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def _vision_block(block: Qwen3VLVisionBlock, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch, length, size = hidden.shape
    attn = block.attn
    qkv = attn.qkv(block.norm1(hidden)).view(batch, length, 3, attn.num_heads, attn.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
    hidden = hidden + attn.proj(mixed.transpose(1, 2).reshape(batch, length, size))
    refined: Tensor = block.mlp(block.norm2(hidden))
    return hidden + refined


def read(
    model: Qwen3VLForConditionalGeneration,
    seen: VisionOutput,
    token_ids: Tensor,
    segments: Tensor,
    positions: Tensor,
) -> Tensor:
    """Run the text model over packed rows: [batch, length, hidden], before the output layer.

    token_ids, segments: [batch, length]; positions: [batch, 3, length]; see `batches.Row`
    """
    text: Qwen3VLTextModel = model.model.language_model
    is_visual = token_ids == model.config.image_token_id
    hidden = _place(text.embed_tokens(token_ids), is_visual, seen.visual)
    cos, sin = text.rotary_emb(hidden, positions.transpose(0, 1))
    mask = packed_mask(segments)[:, None]
    for number, layer in enumerate(text.layers):
        hidden = _text_layer(layer, hidden, cos[:, None], sin[:, None], mask)
        if number < len(seen.deepstack):
            zeros = torch.zeros_like(hidden)
            hidden = hidden + _place(zeros, is_visual, seen.deepstack[number])
    return _rms_norm(text.norm, hidden)


def _place(hidden: Tensor, is_visual: Tensor, visual: Tensor) -> Tensor:
    return hidden.masked_scatter(is_visual[..., None], visual)


def packed_mask(segments: Tensor) -> Tensor:
    """Who may look at whom: [batch, length, length] bool, causal within and before a segment."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    queries, keys = segments[:, :, None], segments[:, None, :]
    return causal & ((keys == 0) | (keys == queries))


def _rms_norm(norm: nn.Module, x: Tensor) -> Tensor:
    weight, eps = norm.weight, norm.variance_epsilon
    assert isinstance(weight, Tensor)
    assert isinstance(eps, float)
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _text_layer(
    layer: Qwen3VLTextDecoderLayer, hidden: Tensor, cos: Tensor, sin: Tensor, mask: Tensor
) -> Tensor:
    batch, length, _ = hidden.shape
    attn = layer.self_attn
    normed = _rms_norm(layer.input_layernorm, hidden)
    shape = (batch, length, -1, attn.head_dim)
    q = _rms_norm(attn.q_norm, attn.q_proj(normed).view(shape)).transpose(1, 2)
    k = _rms_norm(attn.k_norm, attn.k_proj(normed).view(shape)).transpose(1, 2)
    v = attn.v_proj(normed).view(shape).transpose(1, 2)
    k = _rotate(k, cos, sin).repeat_interleave(attn.num_key_value_groups, dim=1)
    v = v.repeat_interleave(attn.num_key_value_groups, dim=1)
    mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), k, v, attn_mask=mask)
    hidden = hidden + attn.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))
    normed = _rms_norm(layer.post_attention_layernorm, hidden)
    mlp = layer.mlp
    refined: Tensor = mlp.down_proj(F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    return hidden + refined


def initialise(model: Qwen3VLForConditionalGeneration, sample: Tensor, seed: int) -> None:
    """Fan-in initialisation, and patch filters that already see edges and colours.

    sample: [num_patches, 3 * 16 * 16] in -1..1, to scale the filters by
    """
    generator = torch.Generator().manual_seed(seed)
    depth = {"o_proj": 4, "down_proj": 4, "attn.proj": 4, "mlp.linear_fc2": 4}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                layers = next((n for end, n in depth.items() if name.endswith(end)), 1)
                std = 1 / math.sqrt(module.in_features * layers)
                module.weight.normal_(0, std, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.05, generator=generator)
        model.model.language_model.embed_tokens.weight.normal_(0, 0.06, generator=generator)
        proj = model.model.visual.patch_embed.proj
        filters = torch.from_numpy(cosine_filters(proj.out_channels))
        responses = sample @ filters.T
        gain = 1 / responses.std(0).clamp_min(0.1)
        weight = (filters * gain[:, None]).view(-1, 3, 1, PATCH, PATCH) / proj.weight.shape[2]
        proj.weight.copy_(weight.expand_as(proj.weight))
        assert proj.bias is not None
        proj.bias.copy_(-(responses.mean(0) * gain))


def cosine_filters(count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The `count` lowest-frequency 2-D cosines of a patch: [count, 3 * 16 * 16], unit length.

    Half of them on brightness, a quarter each on the two colour differences.
    """
    opponents: Final = ((1, 1, 1), (1, -1, 0), (0.5, 0.5, -1))
    steps = np.cos(np.pi * np.outer(np.arange(PATCH), np.arange(PATCH) + 0.5) / PATCH)
    order = sorted(np.ndindex(PATCH, PATCH), key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))
    filters = []
    for color, share in zip(
        opponents, (count - 2 * (count // 4), count // 4, count // 4), strict=True
    ):
        for u, v in order[:share]:
            full = np.multiply.outer(color, np.multiply.outer(steps[u], steps[v]))
            filters.append(full.ravel() / np.linalg.norm(full))
    return np.asarray(filters, dtype=np.float32)
