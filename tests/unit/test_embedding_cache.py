"""The embedding cache: what it keeps, and that a picture is encoded once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from model.runner.embeddings import EmbeddingCache
from model.runner.vision import ImageEmbeddings
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Driver, make_request
from tests.unit.test_runner_parity import runner_for

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq
    from pathlib import Path

    from model.request import ImageInput
    from model.runner.runner import TorchRunner


def embeddings(num_tokens: int) -> ImageEmbeddings:
    """So many times 32 bytes."""
    return ImageEmbeddings(torch.zeros(num_tokens, 4), (torch.zeros(num_tokens, 4),))


def key(name: str) -> tuple[bytes, bytes, int, int]:
    return (b"", name.encode(), 2, 2)


def test_the_least_recently_used_goes_first() -> None:
    cache = EmbeddingCache(max_bytes=96)
    for name in "abc":
        cache.put(key(name), embeddings(1))
    assert cache.get(key("a")) is not None
    cache.put(key("d"), embeddings(1))
    assert [cache.get(key(name)) is not None for name in "abcd"] == [True, False, True, True]
    assert (len(cache), cache.num_bytes) == (3, 96)


@pytest.mark.parametrize("max_bytes", [0, 63], ids=["off", "one byte short"])
def test_what_is_larger_than_the_cache_is_not_kept(max_bytes: int) -> None:
    cache = EmbeddingCache(max_bytes)
    cache.put(key("a"), embeddings(2))
    assert (len(cache), cache.num_bytes) == (0, 0)


def test_putting_again_counts_once() -> None:
    cache = EmbeddingCache(max_bytes=100)
    cache.put(key("a"), embeddings(1))
    cache.put(key("a"), embeddings(1))
    assert cache.num_bytes == 32


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TorchRunner:
    runner = runner_for(make_checkpoint(tmp_path, Shape()))
    encode = runner.vision.encode
    runner.encoded = []  # type: ignore[attr-defined]

    def counting(images: Seq[ImageInput]) -> list[ImageEmbeddings]:
        runner.encoded.extend(images)  # type: ignore[attr-defined]
        return encode(images)

    monkeypatch.setattr(runner.vision, "encode", counting)
    return runner


@pytest.mark.parametrize("together", [True, False], ids=["in one step", "one after the other"])
def test_a_picture_is_encoded_once_and_read_the_same(runner: TorchRunner, together: bool) -> None:
    requests = [make_request(name, [3, (2, 3), 7], seed=5) for name in ("one", "two")]
    driver = Driver(runner)
    if together:
        first, second = driver.generate(requests, 8)
    else:
        first, second = (driver.generate([request], 8)[0] for request in requests)
    assert first == second
    assert len(runner.encoded) == 1  # type: ignore[attr-defined]


def test_without_the_cache_the_tokens_are_the_same(runner: TorchRunner) -> None:
    request = make_request("one", [3, (2, 3), 7], seed=5)
    cached = [Driver(runner).generate([request], 8) for _ in range(2)]
    runner.embedding_cache.max_bytes = 0
    runner.embedding_cache._kept.clear()
    assert Driver(runner).generate([request], 8) == cached[0] == cached[1]
    assert len(runner.encoded) == 2  # type: ignore[attr-defined]
