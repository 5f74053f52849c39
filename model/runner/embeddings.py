"""Embeddings of pictures seen lately, so that the same picture is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from model.request import GenerateRequest, ImageInput
    from model.runner.vision import ImageEmbeddings

Key: TypeAlias = tuple[bytes, bytes, int, int]


def embedding_key(request: GenerateRequest, image: ImageInput) -> Key:
    """What an embedding depends on, and who may share it; a process has one model only."""
    return (request.cache_salt, image.digest, image.grid_height, image.grid_width)


class EmbeddingCache:
    """Least recently used go first; sequences hold references of their own, so nothing is lost.

    max_bytes: of all embeddings kept; 0 keeps none
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._kept: OrderedDict[Key, ImageEmbeddings] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> ImageEmbeddings | None:
        """The embeddings kept under a key, now the most recently used."""
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: Key, embeddings: ImageEmbeddings) -> None:
        """Keep embeddings in place of the least recently used; too large ones are not kept."""
        if key in self._kept or embeddings.num_bytes > self.max_bytes:
            return
        self._kept[key] = embeddings
        self.num_bytes += embeddings.num_bytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.num_bytes -= dropped.num_bytes

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()
        self.num_bytes = 0
