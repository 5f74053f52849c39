"""Several devices: where layers are put, and that a model split over places says the same.

Sizes of devices are made up and every place is the CPU: copies between real GPUs are not shown.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from model.checkpoint import read_checkpoint
from model.runner import placement as placement_module
from model.runner.device import UnusableSetting
from model.runner.kv_cache import KVShape
from model.runner.load import load_runner
from model.runner.loader import empty_model, load_model
from model.runner.placement import Placement, choose_placement, place_layers, resolve_devices
from model.runner.quantize import QuantizedLinear
from model.runner.spread import MovableMetadata, SpreadKVCache, SpreadTextModel, num_spread_blocks
from model.settings import Dtype, EngineSettings, ModelSettings, Quantization, Settings
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Driver, Part, make_request

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from model.runner.runner import TorchRunner

MIB = 1 << 20
NUM_LAYERS = 8
PROMPTS: list[list[Part]] = [[9], [3, (2, 3), 7], [20, (5, 2), (1, 3), 2]]
GPUS = tuple(torch.device("cuda", index) for index in range(3))


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Shape(num_layers=NUM_LAYERS, intermediate_size=512, tied=request.param)
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), shape)


@pytest.fixture
def empty(folder: Path) -> PreTrainedModel:
    return empty_model(folder, torch.float32)


def bytes_on(model: PreTrainedModel, placement: Placement) -> list[int]:
    """Of weights on each device."""
    held = dict.fromkeys(placement.devices, 0)
    for name, parameter in model.named_parameters():
        held[placement.of(name)] += parameter.nbytes
    return list(held.values())


@pytest.mark.parametrize("num_devices", [2, 3])
def test_layers_are_balanced_over_devices_of_any_size(
    empty: PreTrainedModel, num_devices: int
) -> None:
    placed = place_layers(empty, GPUS[:num_devices], [100 * MIB] * num_devices, torch.float32)
    assert list(placed.layers) == sorted(placed.layers)
    assert set(placed.layers) == set(range(num_devices))
    held = bytes_on(empty, placed)
    layer = sum(p.nbytes for p in empty.model.language_model.layers[0].parameters())
    assert max(held) - min(held) <= 2 * layer


def test_ends_lie_at_the_ends_and_a_shared_embedding_is_not_split(empty: PreTrainedModel) -> None:
    placed = place_layers(empty, GPUS, [100 * MIB] * 3, torch.float32)
    assert placed.of("model.visual.blocks.0.attn.qkv.weight") == GPUS[0]
    assert placed.of("model.language_model.embed_tokens.weight") == GPUS[0]
    assert placed.of("model.language_model.rotary_emb") == GPUS[0]
    assert placed.of("model.language_model.layers.7.mlp.up_proj.weight") == GPUS[2]
    assert placed.of("model.language_model.norm.weight") == GPUS[2]
    tied = empty.config.tie_word_embeddings
    assert placed.of("lm_head.weight") == GPUS[0 if tied else 2]


def test_no_device_is_given_more_than_it_has_room_for(empty: PreTrainedModel) -> None:
    whole = sum(parameter.nbytes for parameter in empty.parameters())
    rooms = [int(0.55 * whole), int(0.2 * whole), whole]
    placed = place_layers(empty, GPUS, rooms, torch.float32)
    assert all(held <= room for held, room in zip(bytes_on(empty, placed), rooms, strict=True))
    assert set(placed.layers) == {0, 1, 2}


def test_fewer_bytes_a_weight_are_counted(folder: Path) -> None:
    quantized = empty_model(folder, torch.float32, Quantization.BITSANDBYTES_4BIT)
    model = empty_model(folder, torch.float32)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    rooms = [int(0.4 * whole), int(0.3 * whole)]
    with pytest.raises(UnusableSetting):
        place_layers(model, GPUS[:2], rooms, torch.float32)
    place_layers(model, GPUS[:2], rooms, torch.bfloat16)
    place_layers(quantized, GPUS[:2], rooms, torch.float32)


@pytest.mark.parametrize("rooms", [[MIB // 2, MIB // 2], [1000, 100 * MIB], [0, 0]])
def test_too_large_a_model_is_refused_with_the_numbers(
    empty: PreTrainedModel, rooms: list[int]
) -> None:
    with pytest.raises(UnusableSetting, match=r"the model's \d MiB of weights do not fit 2 dev"):
        place_layers(empty, GPUS[:2], rooms, torch.float32)


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> dict[torch.device, int]:
    """Bytes free on each of three made-up GPUs, for the test to change."""
    free = dict.fromkeys(GPUS, 100 * MIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 100 * MIB))
    return free


def test_auto_takes_the_first_device_where_the_model_fits_it(
    empty: PreTrainedModel,
    three_gpus: dict[torch.device, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=placement_module.__name__)
    placed = choose_placement(empty, "auto", torch.float32, memory_ratio=0.9)
    assert placed == Placement.on(GPUS[0], NUM_LAYERS)
    assert str(placed) == "cuda:0"
    assert "3 CUDA devices; the model's 4 MiB fit cuda:0" in caplog.text


def test_auto_spreads_a_model_too_large_for_one_device(
    empty: PreTrainedModel, three_gpus: dict[torch.device, int]
) -> None:
    whole = sum(parameter.nbytes for parameter in empty.parameters())
    # Of what is free, a tenth of the whole device stays free, and weights take 80 % of the rest.
    three_gpus.update(dict.fromkeys(GPUS, 10 * MIB + whole))
    placed = choose_placement(empty, "auto", torch.float32, memory_ratio=0.9)
    assert placed.devices == GPUS
    assert set(placed.layers) == {0, 1, 2}


def test_named_devices_are_all_used(
    empty: PreTrainedModel, three_gpus: dict[torch.device, int]
) -> None:
    placed = choose_placement(empty, "cuda:2, cuda:0", torch.float32, memory_ratio=0.9)
    assert placed.devices == (GPUS[2], GPUS[0])
    assert str(placed).startswith("cuda:2 (")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cpu,tpu", "must be auto, cpu, cuda or cuda:N"),
        ("cuda:0,cuda:3", "'cuda:3'; this machine offers 3 CUDA devices"),
        ("cuda:0,cpu", "must be of one kind"),
        ("cuda:0,", "must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_unusable_lists_are_refused(
    three_gpus: dict[torch.device, int], name: str, message: str
) -> None:
    with pytest.raises(UnusableSetting, match=message):
        resolve_devices(name)


class Poisonable:
    """What the driver writes NaN into, where there is no single storage."""

    def __init__(self, cache: SpreadKVCache) -> None:
        self.layers = cache.layers

    def fill_(self, value: float) -> None:
        for layer in self.layers:
            layer.fill_(value)

    def __setitem__(self, index: Any, value: float) -> None:
        for layer in self.layers:
            layer[index[1:]] = value


def runner_of(
    path: Path, device: str, quantization: Quantization = Quantization.NONE
) -> TorchRunner:
    model = ModelSettings(device=device, dtype=Dtype.FLOAT32, quantization=quantization)
    engine = EngineSettings(kv_cache_bytes=2 * MIB, reference=True)
    runner = load_runner(Settings(model=model, engine=engine), read_checkpoint(path))
    if isinstance(runner.cache, SpreadKVCache):
        runner.cache.storage = Poisonable(runner.cache)  # type: ignore[assignment]
    return runner


@pytest.fixture
def split(folder: Path) -> TorchRunner:
    runner = runner_of(folder, "cpu,cpu")
    assert set(runner.placement.layers) == {0, 1}
    assert isinstance(runner.cache, SpreadKVCache)
    return runner


@pytest.mark.cuda
def test_model_split_over_cuda_devices_chooses_the_same_tokens(folder: Path) -> None:
    """With a single device, two places on it; with more, real copies between them."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    expected = Driver(runner_of(folder, "cpu")).generate(requests, 12)
    last = torch.cuda.device_count() - 1
    split = runner_of(folder, f"cuda:0,cuda:{last}")
    assert Driver(split).generate(requests, 12) == expected


@pytest.mark.parametrize("chunk_size", [5, 1 << 20])
def test_split_model_chooses_the_same_tokens(
    folder: Path, split: TorchRunner, chunk_size: int
) -> None:
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    expected = Driver(runner_of(folder, "cpu")).generate(requests, 12)
    assert Driver(split, chunk_size).generate(requests, 12) == expected


def test_split_quantized_model_chooses_the_same_tokens(folder: Path) -> None:
    four = Quantization.BITSANDBYTES_4BIT
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    one, two = (runner_of(folder, device, four) for device in ("cpu", "cpu,cpu"))
    assert isinstance(two.model.model.language_model.layers[7].mlp.up_proj, QuantizedLinear)
    assert Driver(two).generate(requests, 8) == Driver(one).generate(requests, 8)


def test_split_cache_takes_the_same_memory(folder: Path, split: TorchRunner) -> None:
    one = runner_of(folder, "cpu")
    assert split.memory() == one.memory()
    assert isinstance(split.cache, SpreadKVCache)
    assert sum(layer.nbytes for layer in split.cache.layers) == split.cache.num_bytes


def test_every_layer_is_given_metadata_on_its_own_device(folder: Path) -> None:
    """The hooks ask for each layer's device; made-up places stand for the devices."""
    model = load_model(folder, torch.device("cpu"), torch.float32)
    cpu, other = torch.device("cpu"), torch.device("cpu", 0)
    layers = (0,) * 3 + (1,) * 5
    SpreadTextModel(model, 16, Placement((cpu, other), layers, head=1))
    parts = [*model.model.language_model.layers, model.model.language_model.norm, model.lm_head]
    asked = [part._hf_hook.execution_device for part in parts]
    assert asked == [cpu] * 3 + [other] * 7


def test_metadata_is_moved_once_to_a_device(split: TorchRunner) -> None:
    moved: list[MovableMetadata] = []

    def record(_module: object, _arguments: object, named: dict[str, Any]) -> None:
        moved.append(named["attention_metadata"])

    for layer in split.model.model.language_model.layers:
        layer.self_attn.register_forward_pre_hook(record, with_kwargs=True)
    Driver(split).generate([make_request("r", [5, (2, 2), 3])], 2)
    assert len(moved) == 2 * NUM_LAYERS
    assert len({id(metadata) for metadata in moved}) == 2


def test_metadata_keeps_its_parts_on_the_way() -> None:
    mapping = torch.arange(3)
    here = torch.device("cpu")
    metadata = MovableMetadata(mapping, (), ())
    there = metadata.to(here)
    assert torch.equal(there.slot_mapping, mapping)
    assert there.to(here) is there is metadata.to(here)


def test_blocks_are_those_of_the_fullest_device() -> None:
    shape = KVShape(num_layers=5, num_kv_heads=1, head_dim=4, block_size=2, dtype=torch.float32)
    placement = Placement(GPUS, (0, 0, 2, 2, 2), head=2)
    room = dict(zip(GPUS, (1280, 0, 1152), strict=True))
    sizes = []

    def size(part: KVShape, device: torch.device) -> int:
        sizes.append((device, part.num_layers))
        return room[device] // part.block_bytes

    assert num_spread_blocks(shape, placement, size) == 6
    assert sizes == [(GPUS[0], 2), (GPUS[2], 3)]
