"""The vision tower as a layer loop of our own, over the checkpoint's weights: the path that serves.

All pictures of a call side by side; what depends on their sizes is known on the host, so that
nothing waits for the device. Equal to transformers' tower up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm, scaled_dot_product_attention

from model.runner.kernels import Rotation, rotate
from model.runner.native.blocks import NativeBlocks
from model.runner.packed import Activation, make_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Seq

    from transformers import PreTrainedModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import (
        Qwen3VLVisionBlock,
        Qwen3VLVisionPatchMerger,
    )

    from model.runner.packed import Linear

# (height, width) of a picture in patches.
Grid: TypeAlias = tuple[int, int]
# From [num_patches, 3 * num_heads * head_dim] and num_heads to [num_patches, num_heads * head_dim].
_Attention: TypeAlias = "Callable[[Tensor, int], Tensor]"


class VisionKernels(Protocol):
    """What a device can do faster than torch's operations one by one."""

    def add_layer_norm(
        self, hidden: Tensor, addition: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        """Add in place to hidden, and return the sum's norm; all [num_rows, width]."""
        ...

    def rotate_in_place(self, qkv: Tensor, cos: Tensor, sin: Tensor, num_heads: int) -> None:
        """Turn queries and keys by their patches' angles; values stay.

        qkv: [num_patches, 3 * num_heads * head_dim]; cos, sin: [num_patches, head_dim / 2]
        """
        ...


class FastVisionTower:
    """Patch embedding, blocks and mergers; takes the tower's layers apart.

    kernels: a device's own; without, torch's operations do what they would
    """

    def __init__(self, tower: PreTrainedModel, kernels: VisionKernels | None = None) -> None:
        self._kernels = kernels
        config = tower.config
        assert config.hidden_act == "gelu_pytorch_tanh", "every Qwen3-VL has it"
        self._merge_size: int = config.spatial_merge_size
        self._patch_embed = _patch_embed(tower.patch_embed.proj)
        side = tower.num_grid_per_side
        # [1, hidden_size, side, side]: a picture that `interpolate` can resize.
        table = tower.pos_embed.weight.detach().to(torch.float32)
        self._position_table = table.view(1, side, side, -1).permute(0, 3, 1, 2)
        self._inverse_frequencies = tower.rotary_pos_emb.inv_freq.to(torch.float32)
        taps = [*config.deepstack_visual_indexes, config.depth - 1]
        mergers = [*tower.deepstack_merger_list, tower.merger]
        self._blocks: list[Block] = []
        self._taps = taps
        self._mergers = [_Merger.take(merger) for merger in mergers]
        for index in range(config.depth):
            self._blocks.append(Block.take(tower.blocks[index], config.num_heads))
            # The copies made for the device are all that is used: let go of the originals.
            tower.blocks[index] = nn.Identity()
        tower.deepstack_merger_list, tower.merger = nn.ModuleList(), nn.Identity()
        # A device's own kernels are not for the CPU.
        self._native = NativeBlocks.of(self._blocks, taps) if kernels is None else None

    def __call__(self, patches: Tensor, grids: Seq[Grid]) -> list[Tensor]:
        """Embeddings for the text model, then one such tensor for each DeepStack layer.

        patches: [sum of height * width, 3 * patch_size ** 2], in the order the merger takes them
        returns tensors of [num_patches / merge_size ** 2, out_hidden_size]
        """
        positions = self._positions(grids, patches.device)
        hidden = self._patch_embed(patches, plus=positions.embedding.to(patches.dtype))
        rotation = Rotation(positions.cos.to(patches.dtype), positions.sin.to(patches.dtype))
        sums = self._sums(hidden, rotation, grids)
        outputs = [merger.run(one) for merger, one in zip(self._mergers, sums, strict=True)]
        return [outputs[-1], *outputs[:-1]]

    def _sums(self, hidden: Tensor, rotation: Rotation, grids: Seq[Grid]) -> Iterator[Tensor]:
        """What each merger takes: the sum after its block; valid until the next is asked for."""
        if self._native is not None:
            sizes = [height * width for height, width in grids]
            yield from self._native(hidden, rotation, sizes)
            return
        attend = attention_over(rotation, spans_of(grids), self._kernels)
        stream = Stream(hidden, self._kernels)
        for index, block in enumerate(self._blocks):
            block.run(stream, attend)
            for _ in range(self._taps.count(index)):
                yield stream.value()

    def _positions(self, grids: Seq[Grid], device: torch.device) -> _Positions:
        """What patches know of their places; equal neighbours are computed once."""
        parts = []
        for (height, width), members in groupby(grids):
            one = self._grid_positions(height, width, device)
            parts += [one] * len(list(members))
        if len(parts) == 1:
            return parts[0]
        return _Positions(*(torch.cat(layer) for layer in zip(*map(_layers, parts), strict=True)))

    def _grid_positions(self, height: int, width: int, device: torch.device) -> _Positions:
        resized = interpolate(
            self._position_table, size=(height, width), mode="bilinear", align_corners=True
        )[0]
        rows = torch.arange(height, device=device, dtype=torch.float32)[:, None].expand(-1, width)
        columns = torch.arange(width, device=device, dtype=torch.float32).expand(height, -1)
        places = self._in_windows(torch.stack([rows, columns]))
        angles = (places[:, :, None] * self._inverse_frequencies).flatten(1)
        return _Positions(self._in_windows(resized), angles.cos(), angles.sin())

    def _in_windows(self, planes: Tensor) -> Tensor:
        """[channels, height, width] → [height * width, channels], merge window by merge window."""
        channels, height, width = planes.shape
        merge = self._merge_size
        windows = planes.view(channels, height // merge, merge, width // merge, merge)
        return windows.permute(1, 3, 2, 4, 0).reshape(height * width, channels)


@dataclass(frozen=True, slots=True)
class _Positions:
    """embedding: [num_patches, hidden_size]; cos, sin: [num_patches, head_dim / 2]; float32."""

    embedding: Tensor
    cos: Tensor
    sin: Tensor


def _layers(positions: _Positions) -> tuple[Tensor, Tensor, Tensor]:
    return positions.embedding, positions.cos, positions.sin


@dataclass(frozen=True, slots=True)
class Span:
    """num_images equal grids side by side: rows [start, end) of the call."""

    start: int
    end: int
    num_images: int


def spans_of(grids: Seq[Grid]) -> list[Span]:
    """The pictures of a call, neighbours of one size together."""
    spans: list[Span] = []
    start = 0
    for (height, width), members in groupby(grids):
        num_images = len(list(members))
        end = start + num_images * height * width
        spans.append(Span(start, end, num_images))
        start = end
    return spans


@dataclass(frozen=True, slots=True)
class _Norm:
    """A layer norm's parameters; weight, bias: [hidden_size]."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def take(cls, norm: nn.LayerNorm) -> _Norm:
        return cls(norm.weight, norm.bias, norm.eps)

    def __call__(self, rows: Tensor) -> Tensor:
        return layer_norm(rows, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block; hidden rows are [num_patches, hidden_size]."""

    num_heads: int
    attention_norm: _Norm
    qkv: Linear
    out: Linear
    mlp_norm: _Norm
    up: Linear
    down: Linear

    @classmethod
    def take(cls, block: Qwen3VLVisionBlock, num_heads: int) -> Block:
        """Of transformers' block, whose weights are packed where the device has a form for it."""
        return cls(
            num_heads=num_heads,
            attention_norm=_Norm.take(block.norm1),
            qkv=make_linear(block.attn.qkv),
            out=make_linear(block.attn.proj),
            mlp_norm=_Norm.take(block.norm2),
            up=make_linear(block.mlp.linear_fc1, Activation.GELU_TANH),
            down=make_linear(block.mlp.linear_fc2),
        )

    def run(self, stream: Stream, attend: _Attention) -> None:
        """Add to the stream; each picture attends to itself alone."""
        attended = attend(self.qkv(stream.normal(self.attention_norm)), self.num_heads)
        stream.add(self.out, attended)
        stream.add(self.down, self.up(stream.normal(self.mlp_norm)))


class Stream:
    """The sum that blocks add to: [num_patches, hidden_size].

    Without kernels a product adds to it; with them the norm after it does, in the same pass.
    """

    def __init__(self, hidden: Tensor, kernels: VisionKernels | None) -> None:
        self._hidden = hidden
        self._kernels = kernels
        self._pending: Tensor | None = None

    def add(self, linear: Linear, rows: Tensor) -> None:
        """Add the product of rows, [num_patches, linear's in_features]."""
        if self._kernels is None:
            self._hidden = linear(rows, plus=self._hidden)
        else:
            assert self._pending is None, "a norm or a value comes between two sums"
            self._pending = linear(rows)

    def normal(self, norm: _Norm) -> Tensor:
        """The sum's norm."""
        if self._kernels is None or self._pending is None:
            return norm(self._hidden)
        pending, self._pending = self._pending, None
        return self._kernels.add_layer_norm(self._hidden, pending, norm.weight, norm.bias, norm.eps)

    def value(self) -> Tensor:
        """The sum itself."""
        if self._pending is not None:
            self._hidden.add_(self._pending)
            self._pending = None
        return self._hidden


def attention_over(
    rotation: Rotation, spans: Seq[Span], kernels: VisionKernels | None
) -> _Attention:
    """Attention of pictures side by side, each to itself alone; the same in every block.

    rotation: of all their patches
    """

    def attend(qkv: Tensor, num_heads: int) -> Tensor:
        heads = qkv.view(len(qkv), 3 * num_heads, -1)
        turned, value = heads[:, : 2 * num_heads], heads[:, 2 * num_heads :]
        if kernels is None:
            turned = rotate(turned, rotation)
        else:
            kernels.rotate_in_place(qkv, rotation.cos, rotation.sin, num_heads)
        query, key = turned.chunk(2, dim=1)
        attended = [_attend(query, key, value, span) for span in spans]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    return attend


def _attend(query: Tensor, key: Tensor, value: Tensor, span: Span) -> Tensor:
    """Every patch to all patches of its picture; [num_patches, heads, head_dim] each.

    returns [rows of the span, heads * head_dim]
    """
    num_rows = (span.end - span.start) // span.num_images
    shape = (span.num_images, num_rows, *query.shape[1:])
    queries, keys, values = (
        tensor[span.start : span.end].view(shape).transpose(1, 2) for tensor in (query, key, value)
    )
    attended = scaled_dot_product_attention(queries, keys, values)
    return attended.transpose(1, 2).reshape(span.end - span.start, -1)


@dataclass(frozen=True, slots=True)
class _Merger:
    """A window of patches becomes one token.

    width: of a joined window; joins_first: windows are joined before the norm
    """

    norm: _Norm
    width: int
    joins_first: bool
    up: Linear
    down: Linear

    @classmethod
    def take(cls, merger: Qwen3VLVisionPatchMerger) -> _Merger:
        return cls(
            norm=_Norm.take(merger.norm),
            width=merger.hidden_size,
            joins_first=merger.use_postshuffle_norm,
            up=make_linear(merger.linear_fc1, Activation.GELU),
            down=make_linear(merger.linear_fc2),
        )

    def run(self, hidden: Tensor) -> Tensor:
        """[num_patches, hidden_size] → [num_patches / merge_size ** 2, out_hidden_size]."""
        rows = hidden.view(-1, self.width) if self.joins_first else hidden
        return self.down(self.up(self.norm(rows).view(-1, self.width)))


def _patch_embed(proj: nn.Conv3d) -> Linear:
    """The patch embedding as one matrix product: stride and kernel are equal.

    A still is a clip whose frames are equal, so the weights of the frames are added up.
    As Conv3d it took a tenth of the tower's time on a CPU.
    """
    weight = proj.weight.to(torch.float32).sum(2).flatten(1).to(proj.weight.dtype)
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    assert proj.bias is not None, "every Qwen3-VL has it"
    layer.bias = nn.Parameter(proj.bias, requires_grad=False)
    return make_linear(layer)
