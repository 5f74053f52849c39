"""Loading: what from_pretrained reads is read the same, and every broken folder is named."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration as Oracle

from model.checkpoint import CheckpointError
from model.runner import loader
from model.runner.loader import INDEX_FILE, SINGLE_FILE, LoadProgress, load_model
from tests.checkpoints import Shape, make_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")
EMBEDDING = "model.language_model.embed_tokens.weight"
SMALL = Shape(num_layers=1, vision_depth=1, deepstack_layers=(0,))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("whole"), SMALL)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_checkpoint(tmp_path_factory.mktemp("sharded"), SMALL, max_shard_size="100KB")
    assert (path / INDEX_FILE).is_file()
    return path


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 150 MB in bfloat16, so that what a process holds besides is small."""
    shape = replace(SMALL, hidden_size=1024, intermediate_size=4096, num_layers=6)
    path = tmp_path_factory.mktemp("wide")
    return make_checkpoint(path, shape, dtype=torch.bfloat16, max_shard_size="40MB")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.fixture
def sharded_copy(sharded: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sharded, tmp_path / "sharded")


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a single-file folder."""
    tensors = load_file(path / SINGLE_FILE)
    change(tensors)
    save_file(tensors, path / SINGLE_FILE)


def assert_equals_from_pretrained(path: Path, dtype: torch.dtype = torch.float32) -> None:
    model = load_model(path, CPU, dtype)
    oracle = Oracle.from_pretrained(path, dtype=dtype)
    expected = dict(oracle.named_parameters(remove_duplicate=False))
    actual = dict(model.named_parameters(remove_duplicate=False))
    assert actual.keys() == expected.keys()
    for name, parameter in actual.items():
        assert parameter.dtype == dtype
        assert not parameter.requires_grad
        assert torch.equal(parameter, expected[name]), name
    for name, buffer in oracle.named_buffers():
        mine = model.get_buffer(name)
        assert mine.dtype == buffer.dtype == torch.float32
        assert torch.equal(mine, buffer), name
    assert not model.training
    tied = model.config.tie_word_embeddings
    assert (model.lm_head.weight is model.model.language_model.embed_tokens.weight) == tied


@pytest.mark.parametrize("max_shard_size", ["5GB", "100KB"], ids=["one file", "sharded"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_loads_what_from_pretrained_loads(tmp_path: Path, tied: bool, max_shard_size: str) -> None:
    make_checkpoint(tmp_path, Shape(tied=tied), max_shard_size=max_shard_size)
    assert_equals_from_pretrained(tmp_path)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_any_float_format_becomes_any_other(
    tmp_path: Path, saved: torch.dtype, wanted: torch.dtype
) -> None:
    make_checkpoint(tmp_path, SMALL, dtype=saved)
    assert_equals_from_pretrained(tmp_path, wanted)


def test_bare_model_without_the_leading_prefix_loads(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["tie_word_embeddings"] = True
    (copy / "config.json").write_text(json.dumps(config))

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["lm_head.weight"]
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    rewrite(copy, strip)
    assert_equals_from_pretrained(copy)


def test_tied_embedding_saved_twice_is_held_once(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, Shape(tied=True))
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING].clone()}))
    assert_equals_from_pretrained(tmp_path)


def test_tied_head_that_differs_is_kept_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_checkpoint(tmp_path, Shape(tied=True))
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1}))
    model = load_model(tmp_path, CPU, torch.float32)
    assert not torch.equal(model.lm_head.weight, model.model.language_model.embed_tokens.weight)
    assert "differ" in caplog.text


def drop_tensor(path: Path) -> None:
    rewrite(path, lambda t: t.pop(EMBEDDING))


def add_tensor(path: Path) -> None:
    rewrite(path, lambda t: t.update(surplus=torch.zeros(2)))


def reshape_tensor(path: Path) -> None:
    rewrite(path, lambda t: t.update({EMBEDDING: torch.zeros(7, 64)}))


def integer_tensor(path: Path) -> None:
    rewrite(path, lambda t: t.update({EMBEDDING: torch.zeros((320, 64), dtype=torch.int8)}))


def twice(path: Path) -> None:
    rewrite(path, lambda t: t.update({EMBEDDING.removeprefix("model."): t[EMBEDDING].clone()}))


def cut_file(path: Path) -> None:
    file = path / SINGLE_FILE
    file.write_bytes(file.read_bytes()[:-1000])


def empty_file(path: Path) -> None:
    (path / SINGLE_FILE).write_bytes(b"")


def no_weights(path: Path) -> None:
    (path / SINGLE_FILE).unlink()


def only_pickle(path: Path) -> None:
    (path / SINGLE_FILE).rename(path / "pytorch_model.bin")


def quantized(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (path / "config.json").write_text(json.dumps(config))


def impossible_config(path: Path) -> None:
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["hidden_size"] = "large"
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            drop_tensor, rf"1 of \d+ tensors are missing, first '{EMBEDDING}'", id="missing tensor"
        ),
        pytest.param(
            add_tensor, r"model\.safetensors: unexpected tensor 'surplus'", id="surplus tensor"
        ),
        pytest.param(
            reshape_tensor, rf"'{EMBEDDING}' has shape \[7, 64\]; .* \[320, 64\]", id="wrong shape"
        ),
        pytest.param(
            integer_tensor, rf"'{EMBEDDING}' is saved as I8; expected one of", id="integers"
        ),
        pytest.param(twice, rf"both hold '{EMBEDDING}'", id="one parameter under two names"),
        pytest.param(cut_file, r"model\.safetensors \(\d+ bytes\) is no complete", id="cut short"),
        pytest.param(empty_file, r"model\.safetensors \(0 bytes\) is no complete", id="empty file"),
        pytest.param(no_weights, r"has neither model\.safetensors nor", id="no weights"),
        pytest.param(only_pickle, r"only pickled weights \(pytorch_model\.bin\)", id="pickle only"),
        pytest.param(quantized, r"quantization_config 'fp8'; .* --quantization", id="quantised"),
        pytest.param(impossible_config, r"config\.json describes no usable model", id="bad sizes"),
    ],
)
def test_broken_folder_is_refused_in_one_sentence(
    copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(copy, CPU, torch.float32)
    assert str(copy) in str(caught.value)


def missing_shard(path: Path) -> None:
    next(path.glob("model-00002-*")).unlink()


def broken_index(path: Path) -> None:
    (path / INDEX_FILE).write_text("{")


def mapless_index(path: Path) -> None:
    (path / INDEX_FILE).write_text("{}")


def outside_index(path: Path) -> None:
    (path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))


def pickle_index(path: Path) -> None:
    (path / INDEX_FILE).write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))


def lying_index(path: Path) -> None:
    index = json.loads((path / INDEX_FILE).read_text())
    index["weight_map"]["ghost"] = next(iter(index["weight_map"].values()))
    (path / INDEX_FILE).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(
            missing_shard, r"names \d+ files, of which 1 are missing: model-00002-", id="no shard"
        ),
        pytest.param(broken_index, r"index\.json is not readable", id="index is no JSON"),
        pytest.param(mapless_index, r"index\.json is not readable", id="index without a map"),
        pytest.param(
            outside_index, r"names '\.\./other\.safetensors'; it may name", id="path outside"
        ),
        pytest.param(
            pickle_index, r"names 'pytorch_model\.bin'; it may name", id="index of pickles"
        ),
        pytest.param(lying_index, r"has no tensor 'ghost', which", id="tensor not where promised"),
    ],
)
def test_broken_index_is_refused_in_one_sentence(
    sharded_copy: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(sharded_copy)
    with pytest.raises(CheckpointError, match=message):
        load_model(sharded_copy, CPU, torch.float32)


def test_progress_counts_every_byte_of_the_files_tensors(sharded: Path) -> None:
    progress = LoadProgress()
    load_model(sharded, CPU, torch.float32, progress)
    index = json.loads((sharded / INDEX_FILE).read_text())
    assert progress.loaded_bytes == progress.total_bytes == index["metadata"]["total_size"]
    assert progress.seconds > 0


def test_progress_is_logged_where_there_is_no_terminal(
    whole: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "LOG_SECONDS", 0.0)
    caplog.set_level(logging.INFO, logger=loader.__name__)
    load_model(whole, CPU, torch.float32)
    line = r"weights: \d+% of \d\.\d\d GiB, \d+ MiB/s, \d+ s left"
    assert re.fullmatch(line, caplog.messages[0])
    assert "100%" in caplog.messages[-1]


# The kernel hands a parent's ru_maxrss down to its children; VmHWM starts anew with each program.
MEASURE = """
import re, sys, torch
from pathlib import Path
from model.runner.loader import load_model
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
path, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
load_model(Path(sys.argv[3]), torch.device("cpu"), dtype)
before = peak()
model = load_model(path, torch.device("cpu"), dtype)
print((peak() - before) / sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "wanted",
    [pytest.param("bfloat16", id="kept as saved"), pytest.param("float32", id="widened")],
)
def test_weights_are_not_held_twice(whole: Path, wide: Path, wanted: str) -> None:
    arguments = [sys.executable, "-c", MEASURE, str(wide), wanted, str(whole)]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    print(f"peak over weights: {output}")
    # One copy, and the mapped pages of the file being read: a second copy would make it 2.
    assert 0.9 < float(output) < 1.6
