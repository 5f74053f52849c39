"""All decoder layers of a step in one call of the compiled library.

Between two products nothing waits for Python's lock: beside a busy event loop that took a fifth of
a decode step.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from model.runner import huge_pages
from model.runner.native import NativeKernels, compiled
from model.runner.native.compiled import FLOAT, INTEGER, POINTER, fields
from model.runner.native.wide import WideLinear

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    import torch
    from torch import Tensor

    from model.runner.fast_text import DecoderLayer
    from model.runner.kernels import Rotation, TextGeometry, TextKernels
    from model.runner.kv_cache import KVCache
    from model.runner.native import NativeMetadata
    from model.runner.qwen3_vl import TextInputs


class _Layer(ctypes.Structure):
    """`struct layer`."""

    _fields_ = fields(
        POINTER,
        *("input_norm", "qkv", "qk_norm", "out", "post_norm", "gate_up", "down"),
        *("keys", "values"),
    )


class _Model(ctypes.Structure):
    """`struct model`."""

    _fields_ = (
        *fields(
            INTEGER,
            *("num_layers", "hidden_size", "num_heads", "num_kv_heads", "head_dim"),
            *("intermediate_size", "block_size"),
        ),
        *fields(FLOAT, "eps", "scaling"),
        *fields(POINTER, "final_norm"),
    )


class _Step(ctypes.Structure):
    """`struct step`."""

    _fields_ = (
        *fields(
            INTEGER,
            *("num_tokens", "num_decodes", "table_size", "heads_of_task", "num_spans"),
            *("chunk", "num_image_rows", "num_deepstack", "num_samples", "trims"),
        ),
        *fields(
            POINTER,
            *("hidden", "normal", "qkv", "attended", "gated", "cos", "sin", "slots"),
            *("decode_rows", "contexts", "tables", "spans", "span_tables", "layout"),
            *("image_rows", "deepstack", "sample_rows"),
        ),
    )


class NativeLayers:
    """The decoder layers and the norm after them, over packed weights."""

    def __init__(
        self, layers: Seq[DecoderLayer], final_norm: Tensor, kernels: NativeKernels
    ) -> None:
        self._held = layers, final_norm  # the structures below only have addresses
        self._kernels = kernels
        self._geometry: TextGeometry = kernels.geometry
        first = layers[0]
        assert isinstance(first.gated, WideLinear), "asked before"
        self._hidden_size = len(final_norm)
        self._intermediate_size = first.gated.out_features
        self._structures = (_Layer * len(layers))(*map(_addresses, layers))
        self._model = self._described(len(layers), final_norm)
        self._run = compiled.function("run_layers", final_norm.dtype)
        self._cache: KVCache | None = None
        self._rooms = Rooms(final_norm.dtype)

    @classmethod
    def of(
        cls, layers: Seq[DecoderLayer], final_norm: Tensor, kernels: TextKernels
    ) -> NativeLayers | None:
        """None where a part of them is not the compiled library's."""
        if not isinstance(kernels, NativeKernels) or not all(map(_is_wide, layers)):
            return None
        return cls(layers, final_norm, kernels)

    def __call__(
        self, hidden: Tensor, rotation: Rotation, inputs: TextInputs, cache: KVCache, *, trims: bool
    ) -> Tensor:
        """Run a step; writes the batch's KV, and into `hidden`.

        hidden: [num_tokens, hidden_size]
        trims: the last layer computes sampled rows alone
        returns the last norm, [num_samples or num_tokens, hidden_size]: valid until the next call
        """
        geometry, metadata = self._geometry, inputs.attention
        if cache is not self._cache:
            self._attach(cache)
        num_tokens = len(hidden)
        attended_size = geometry.num_heads * geometry.head_dim
        kv_size = geometry.num_kv_heads * geometry.head_dim
        normal = self._rooms.room("normal", num_tokens, self._hidden_size)
        qkv = self._rooms.room("qkv", num_tokens, attended_size + 2 * kv_size)
        attended = self._rooms.room("attended", num_tokens, attended_size)
        gated = self._rooms.room("gated", num_tokens, self._intermediate_size)
        step = _Step(
            num_tokens=num_tokens,
            num_samples=len(inputs.sample_rows),
            trims=trims,
            hidden=hidden.data_ptr(),
            normal=normal.data_ptr(),
            qkv=qkv.data_ptr(),
            attended=attended.data_ptr(),
            gated=gated.data_ptr(),
            cos=rotation.cos.data_ptr(),
            sin=rotation.sin.data_ptr(),
            slots=metadata.slots.data_ptr(),
            sample_rows=inputs.sample_rows.data_ptr(),
        )
        self._set_decodes(step, metadata)
        # What the structure points to must live as long as the call.
        held = self._set_spans(step, metadata, qkv, attended), _set_images(step, inputs)
        self._run(ctypes.addressof(self._model), self._structures, ctypes.addressof(step))
        del held
        return normal[: len(inputs.sample_rows)] if trims else normal

    def _attach(self, cache: KVCache) -> None:
        """Take a cache's addresses: asking for them at every step takes longer than a norm."""
        for structure, keys, values in zip(self._structures, cache.keys, cache.values, strict=True):
            structure.keys, structure.values = keys.data_ptr(), values.data_ptr()
        self._cache = cache

    def _set_decodes(self, step: _Step, metadata: NativeMetadata) -> None:
        step.num_decodes = len(metadata.decode_rows)
        if step.num_decodes:
            step.table_size = metadata.tables.shape[1]
            step.heads_of_task = self._kernels.heads_of_task(step.num_decodes)
            step.decode_rows = metadata.decode_rows.data_ptr()
            step.contexts = metadata.contexts.data_ptr()
            step.tables = metadata.tables.data_ptr()

    def _set_spans(self, step: _Step, metadata: NativeMetadata, qkv: Tensor, out: Tensor) -> object:
        spans, geometry = metadata.wide_spans, self._geometry
        if spans is None:
            return None
        layout = spans.layout_of_pages(qkv, out, geometry)
        step.num_spans = len(spans.rows)
        step.chunk = spans.chunk(geometry.num_kv_heads, geometry.num_heads // geometry.num_kv_heads)
        step.spans, step.span_tables = spans.rows.data_ptr(), spans.tables.data_ptr()
        step.layout = ctypes.addressof(layout)
        return layout

    def _described(self, num_layers: int, final_norm: Tensor) -> _Model:
        geometry = self._geometry
        return _Model(
            num_layers=num_layers,
            hidden_size=self._hidden_size,
            num_heads=geometry.num_heads,
            num_kv_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            intermediate_size=self._intermediate_size,
            block_size=self._kernels.block_size,
            eps=geometry.eps,
            scaling=geometry.scaling,
            final_norm=final_norm.data_ptr(),
        )


class Rooms:
    """Memory for a step's results, kept for the next: fresh pages are not free."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._rooms: dict[str, Tensor] = {}

    def room(self, name: str, num_rows: int, size: int) -> Tensor:
        """[num_rows, size], holding anything; the same memory at every call."""
        room = self._rooms.get(name)
        if room is None or len(room) < num_rows:
            room = self._rooms[name] = huge_pages.empty((num_rows, size), self._dtype)
        return room[:num_rows]


def _set_images(step: _Step, inputs: TextInputs) -> object:
    images = inputs.images
    if images is None:
        return None
    layers = tuple(layer.contiguous() for layer in images.deepstack)
    pointers = (POINTER * len(layers))(*(layer.data_ptr() for layer in layers))
    step.num_image_rows, step.num_deepstack = len(images.rows), len(layers)
    step.image_rows, step.deepstack = images.rows.data_ptr(), ctypes.addressof(pointers)
    return layers, pointers


def _is_wide(layer: DecoderLayer) -> bool:
    parts = (layer.qkv, layer.out, layer.gated, layer.down)
    return all(isinstance(part, WideLinear) and part.bias is None for part in parts)


def _addresses(layer: DecoderLayer) -> _Layer:
    def packed(part: Any) -> int:  # noqa: ANN401 - a WideLinear, asked before
        return int(part.weight.data_ptr())

    return _Layer(
        input_norm=layer.input_norm.data_ptr(),
        qkv=packed(layer.qkv),
        qk_norm=layer.qk_norm.data_ptr(),
        out=packed(layer.out),
        post_norm=layer.post_norm.data_ptr(),
        gate_up=packed(layer.gated),
        down=packed(layer.down),
    )
