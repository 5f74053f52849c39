"""Quantized decoder layers: how much they take, how close they stay, and what is refused."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from torch.nn.functional import linear

from model.checkpoint import read_checkpoint
from model.demo import CHECKPOINT_DIR, SAMPLES_DIR
from model.demo.evaluate import Answerer, Prompt
from model.runner import quantize
from model.runner.device import UnusableSetting
from model.runner.fast_text import fuse
from model.runner.load import load_runner
from model.runner.loader import load_model
from model.runner.quantize import QuantizedLinear, check_quantization
from model.serving.arguments import SettingsError, parse_settings
from model.settings import Dtype, EngineSettings, ModelSettings, Quantization, Settings
from tests.checkpoints import Shape, make_checkpoint
from tests.unit.runner_driver import Driver, Part, make_request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from model.runner.kv_cache import KVCache
    from model.runner.qwen3_vl import TextInputs
    from model.runner.runner import TorchRunner

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
NONE, EIGHT, FOUR = Quantization
LAYERS = "model.language_model.layers."
SHAPE = Shape(hidden_size=256, intermediate_size=768, num_heads=8, head_dim=32)
SHAPE = replace(SHAPE, mrope_section=(6, 5, 5), tied=True)
PROMPTS: list[list[Part]] = [[9], [3, (2, 3), 7], [20, (5, 2), (1, 3), 2]]
both = pytest.mark.parametrize("quantization", [EIGHT, FOUR])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), SHAPE)


def is_quantized(name: str) -> bool:
    return name.startswith(LAYERS) and "proj" in name


def num_bytes(model: PreTrainedModel, *, quantized: bool) -> int:
    """Of real storage: each one once, all of it."""
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for name, parameter in model.named_parameters()
        if is_quantized(name) == quantized
    }
    return sum(storages.values())


# Bytes a weight: one, or a half with 4 of scale for 64; an int8 row's one scale is all but nothing.
@pytest.mark.parametrize(
    ("quantization", "dtype", "ratio"),
    [
        pytest.param(EIGHT, torch.float32, 1 / 4, id="8 bits of float32"),
        pytest.param(EIGHT, torch.bfloat16, 1 / 2, id="8 bits of bfloat16"),
        pytest.param(FOUR, torch.float32, 0.5625 / 4, id="4 bits of float32"),
        pytest.param(FOUR, torch.bfloat16, 0.5625 / 2, id="4 bits of bfloat16"),
    ],
)
@pytest.mark.parametrize("path", ["random", "bundled"])
def test_decoder_layers_take_their_share_and_nothing_else_changes(
    folder: Path, path: str, quantization: Quantization, dtype: torch.dtype, ratio: float
) -> None:
    source = folder if path == "random" else CHECKPOINT_DIR
    whole = load_model(source, CPU, dtype)
    model = load_model(source, CPU, dtype, quantization=quantization)
    taken = num_bytes(model, quantized=True) / num_bytes(whole, quantized=True)
    assert ratio <= taken < 1.02 * ratio
    assert num_bytes(model, quantized=False) == num_bytes(whole, quantized=False)
    actual = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in whole.named_parameters(remove_duplicate=False):
        if not is_quantized(name):
            assert torch.equal(actual[name], parameter), name
            assert actual[name].dtype == dtype


@both
def test_memory_before_and_after_is_told(
    folder: Path, quantization: Quantization, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=quantize.__name__)
    whole = load_model(folder, CPU, torch.float32)
    assert not caplog.messages
    model = load_model(folder, CPU, torch.float32, quantization=quantization)
    number = r"([\d.]+)"
    line = (
        rf"quantized  28 linears to [48] bits: {number} → {number} MiB \({number}%\); "
        rf"all weights: {number} → {number} MiB \({number}%\)"
    )
    found = re.fullmatch(line, caplog.messages[0])
    assert found is not None
    layers, all_weights = (
        [sum(num_bytes(m, quantized=part) for part in parts) / quantize.MIB for m in (whole, model)]
        for parts in ((True,), (True, False))
    )
    expected = [*layers, 100 * layers[1] / layers[0]]
    expected += [*all_weights, 100 * all_weights[1] / all_weights[0]]
    assert [float(text) for text in found.groups()] == pytest.approx(expected, abs=0.5)


def quantized_linear(weight: torch.Tensor, bits: int) -> QuantizedLinear:
    made = QuantizedLinear(weight.shape[1], weight.shape[0], bits, weight.dtype, bias=False)
    made.fill(weight)
    return made


# Gaussian weights: half a step of 127 a row, and NF4's published error.
@pytest.mark.parametrize(("bits", "bound"), [(8, 0.01), (4, 0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_product_is_close_to_the_whole_weights(
    bits: int, bound: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "CHUNK", 1000)  # the weight is quantized in several parts
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((96, 320), generator=generator).to(dtype)
    rows = torch.randn((2, 3, 320), generator=generator).to(dtype)
    exact = linear(rows.float(), weight.float())
    product = quantized_linear(weight, bits)(rows)
    assert product.dtype == dtype
    error = (product.float() - exact).norm() / exact.norm()
    print(f"{bits} bits, {dtype}: {error:.4f}")
    assert 0 < error < bound


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [1, 7, 300])
@both
def test_cuda_computes_what_the_cpu_does(
    quantization: Quantization, num_rows: int, dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device("cuda")
    check_quantization(quantization, device, dtype)
    weight = torch.randn((96, 320)).to(dtype)
    rows = torch.randn((num_rows, 320)).to(dtype)
    bits = quantize.BITS[quantization]
    expected = quantized_linear(weight, bits)(rows).float()
    product = quantized_linear(weight.to(device), bits)(rows.to(device)).float().cpu()
    # A weight midway between two steps may be rounded either way.
    assert (product - expected).norm() < 0.01 * expected.norm()


def test_4_bits_equal_bitsandbytes_own_layer() -> None:
    import bitsandbytes

    weight = torch.randn((128, 192), generator=torch.Generator().manual_seed(0))
    rows = torch.randn((5, 192), generator=torch.Generator().manual_seed(1))
    packed, state = bitsandbytes.functional.quantize_4bit(weight, quant_type="nf4")
    expected = bitsandbytes.matmul_4bit(rows, packed, state)
    assert torch.equal(quantized_linear(weight, 4)(rows), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_zeros_and_of_large_weights_survive(bits: int) -> None:
    weight = torch.ones((3, 64))
    weight[1], weight[2] = 0, 1e6  # the last is past float16
    product = quantized_linear(weight, bits)(torch.ones((1, 64)))
    torch.testing.assert_close(product, torch.tensor([[64, 0, 64e6]]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_fused_layers_are_their_parts_side_by_side_and_held_once(bits: int) -> None:
    weights = torch.randn((7, 64)), torch.randn((3, 64))
    parts = [quantized_linear(weight, bits) for weight in weights]
    rows = torch.randn((5, 64))
    expected = torch.cat([part(rows) for part in parts], dim=-1)
    fused = fuse(parts)
    torch.testing.assert_close(fused(rows), expected)
    assert torch.equal(torch.cat([part(rows) for part in parts], dim=-1), expected)
    for name in ("weight", "scale"):
        start, storage = fused.get_parameter(name).data_ptr(), fused.get_parameter(name).nbytes
        assert all(0 <= p.get_parameter(name).data_ptr() - start < storage for p in parts)


def runner_of(
    folder: Path, quantization: Quantization, dtype: Dtype = Dtype.FLOAT32, reference: bool = False
) -> TorchRunner:
    engine = EngineSettings(kv_cache_bytes=4 << 20, reference=reference)
    model = ModelSettings(device="cpu", dtype=dtype, quantization=quantization)
    return load_runner(Settings(model=model, engine=engine), read_checkpoint(folder))


def first_logits(runner: TorchRunner) -> torch.Tensor:
    """Logits of each prompt's last token."""
    logits: list[torch.Tensor] = []
    run = runner._text.logits

    def recording(inputs: TextInputs, cache: KVCache) -> torch.Tensor:
        logits.append(run(inputs, cache))
        return logits[-1].clone()

    runner._text.logits = recording  # type: ignore[method-assign]
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    Driver(runner).generate(requests, num_tokens=1)
    return logits[0]


# Measured 0.028 and 0.40: random layers amplify each product's 0.007 and 0.093, trained ones damp.
@pytest.mark.parametrize(("quantization", "bound"), [(EIGHT, 0.05), (FOUR, 0.6)])
@pytest.mark.parametrize("reference", [False, True], ids=["serving path", "reference path"])
def test_logits_stay_close(
    folder: Path, quantization: Quantization, bound: float, reference: bool
) -> None:
    exact = first_logits(runner_of(folder, NONE, reference=reference))
    rounded = first_logits(runner_of(folder, quantization, reference=reference))
    error = (rounded - exact).norm() / exact.norm()
    print(f"relative error: {error:.4f}")
    assert 0 < error < bound


@pytest.mark.parametrize("quantization", [NONE, EIGHT, FOUR])
def test_both_paths_compute_the_same(folder: Path, quantization: Quantization) -> None:
    serving, reference = (
        first_logits(runner_of(folder, quantization, reference=path)) for path in (False, True)
    )
    assert (serving - reference).norm() < 1e-5 * reference.norm()


@both
def test_tokens_depend_neither_on_the_batch_nor_on_the_run(
    folder: Path, quantization: Quantization
) -> None:
    requests = [make_request(f"r{i}", parts, seed=i) for i, parts in enumerate(PROMPTS)]
    together = Driver(runner_of(folder, quantization)).generate(requests, 12)
    assert Driver(runner_of(folder, quantization), chunk_size=5).generate(requests, 12) == together
    driver = Driver(runner_of(folder, quantization))
    assert [driver.generate([request], 12)[0] for request in requests] == together


@both
def test_runner_counts_true_bytes(folder: Path, quantization: Quantization) -> None:
    model = load_model(folder, CPU, torch.float32, quantization=quantization)
    held = sum(num_bytes(model, quantized=part) for part in (True, False))
    assert runner_of(folder, quantization).memory().weight_bytes == held


def sample_prompts() -> list[Prompt]:
    captions = (SAMPLES_DIR / "captions.jsonl").read_text().splitlines()
    return [
        Prompt(Image.open(SAMPLES_DIR / c["image"]).convert("RGB"), c["prompt"], c["answer"], ())
        for c in map(json.loads, captions)
    ]


# Measured 0.0019 and 0.034 in float32, 0.0044 and 0.036 in bfloat16.
@pytest.mark.parametrize(("quantization", "bound"), [(EIGHT, 0.01), (FOUR, 0.08)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bundled_model_stays_close_and_describes_every_sample(
    quantization: Quantization, bound: float, dtype: torch.dtype
) -> None:
    answerer = Answerer(CHECKPOINT_DIR, dtype=str(dtype).removeprefix("torch."))
    prompts = sample_prompts()
    inputs = answerer.inputs(prompts)
    model = load_model(CHECKPOINT_DIR, CPU, dtype, quantization=quantization)
    model.generation_config = answerer._model.generation_config
    with torch.inference_mode():
        exact, rounded = (m(**inputs).logits[:, -1].float() for m in (answerer._model, model))
    assert 0 < (rounded - exact).norm() < bound * exact.norm()
    answerer._model = model
    assert answerer.answer(prompts) == [prompt.answer for prompt in prompts]


@both
def test_missing_package_is_told_in_one_sentence(
    folder: Path, quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    message = rf"model\.quantization is {quantization}, .* pip install bitsandbytes$"
    with pytest.raises(UnusableSetting, match=message):
        runner_of(folder, quantization)
    runner_of(folder, NONE)


def test_device_that_cannot_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image is available\nmore lines")

    monkeypatch.setattr(QuantizedLinear, "forward", fail)
    with pytest.raises(UnusableSetting) as caught:
        check_quantization(FOUR, CPU, torch.float32)
    assert str(caught.value) == (
        "model.quantization is bitsandbytes-4bit, which does not run on cpu in torch.float32: "
        "no kernel image is available"
    )


def test_device_that_computes_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuantizedLinear, "forward", lambda _, rows: rows * float("nan"))
    with pytest.raises(UnusableSetting, match=r"computes wrongly on cpu in torch\.float32"):
        check_quantization(FOUR, CPU, torch.float32)


def test_rows_that_split_a_block_are_refused_in_4_bits(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, replace(SHAPE, intermediate_size=96))
    with pytest.raises(UnusableSetting, match=r"mlp\.down_proj has 96 inputs, .* multiple of 64"):
        runner_of(tmp_path, FOUR)
    runner_of(tmp_path, EIGHT)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], NONE),
        (["--quantization", "bitsandbytes"], FOUR),
        (["-q", "bitsandbytes-4bit"], FOUR),
        (["--quantization", "bitsandbytes-8bit"], EIGHT),
        (["--model.quantization", "bitsandbytes"], FOUR),
        (["--model.quantization", "none"], NONE),
    ],
)
def test_flag_names(arguments: list[str], expected: Quantization) -> None:
    settings, unused = parse_settings(arguments, {})
    assert settings.model.quantization is expected
    assert not unused


def test_variable_names_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_MODEL__QUANTIZATION", "bitsandbytes")
    assert Settings().model.quantization is FOUR


def test_unknown_method_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"--model\.quantization is 'gptq'"):
        parse_settings(["--model.quantization", "gptq"], {})


# VmHWM starts anew with each program.
MEASURE = """
import re, sys, torch
from pathlib import Path
from model.runner.loader import load_model
from model.runner.quantize import check_quantization
from model.settings import Quantization
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
quantization = Quantization(sys.argv[3])
check_quantization(quantization, torch.device("cpu"), torch.float32)
load_model(Path(sys.argv[2]), torch.device("cpu"), torch.float32, quantization=quantization)
before = peak()
load_model(Path(sys.argv[1]), torch.device("cpu"), torch.float32, quantization=quantization)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@both
def test_whole_weights_are_never_held_together(
    folder: Path, tmp_path: Path, quantization: Quantization
) -> None:
    shape = Shape(hidden_size=1024, intermediate_size=4096, num_layers=6, vision_depth=1)
    make_checkpoint(
        tmp_path,
        replace(shape, deepstack_layers=(0,)),
        dtype=torch.bfloat16,
        max_shard_size="40MB",
    )
    whole = num_bytes(load_model(tmp_path, CPU, torch.float32), quantized=True)
    arguments = [sys.executable, "-c", MEASURE, str(tmp_path), str(folder), quantization.value]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    print(f"peak over whole weights: {int(output) / whole:.2f}")
    # A quarter or less of float32, one tensor being quantized, and the mapped file's pages.
    assert int(output) < 0.65 * whole
