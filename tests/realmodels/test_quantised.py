"""Quantised checkpoints become the numbers that their formats define, or are refused in one line."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from refusals import refusal
from safetensors.torch import load_file, save_file
from small_models import OTHER_CONFIGS, TEXTS, network_of, save, small_network
from torch import Tensor
from transformers import GptOssConfig
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from realmodels import evaluate, load
from realmodels.quantised import Dequantised, blockwise, dequantised, experts_of_mxfp4, method_of

BLOCK = (16, 20)  # neither divides all sizes of the small network, though both counts of blocks do
WEIGHTS = "model.safetensors"

# ------------------------------------------------------------------------------------------- the formats, bit by bit


def e4m3(byte: int) -> float:
    """OFP8 E4M3: bias 7, no infinity, NaN where all bits but the sign are 1 [OCP 8-bit Floating Point 1.0]."""
    sign, exponent, mantissa = (-1) ** (byte >> 7), byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    return sign * (mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def e2m1(bits: int) -> float:
    """FP4: bias 1, no infinity, no NaN."""
    sign, exponent, mantissa = (-1) ** (bits >> 3), bits >> 1 & 3, bits & 1
    return sign * (mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1))


def e8m0(byte: int) -> float:
    return math.nan if byte == 255 else 2.0 ** (byte - 127)


def reference_blockwise(stored: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    """(out, in) in fp32, weight by weight."""
    result = np.empty(stored.shape, np.float32)
    for row, column in np.ndindex(*stored.shape):
        scale = scales[row // block[0], column // block[1]]
        result[row, column] = np.float32(e4m3(int(stored[row, column]))) * np.float32(scale)
    return result


def reference_mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(experts, in, out) in fp64, weight by weight."""
    experts, out, groups, _ = blocks.shape
    result = np.empty((experts, groups * 32, out))
    for expert, column, row in np.ndindex(*result.shape):
        byte = int(blocks[expert, row, column // 32, column % 32 // 2])
        bits = byte >> 4 if column % 2 else byte & 15
        result[expert, column, row] = e2m1(bits) * e8m0(int(scales[expert, row, column // 32]))
    return result


def random_bytes(seed: int, *shape: int, most: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, most, shape, dtype=np.uint8)


def same(found: Tensor, wanted: np.ndarray) -> bool:
    """Bit for bit, signs of zeros included; all NaN are one."""
    ours, theirs = found.double().numpy(), wanted.astype(np.float64)
    return np.array_equal(ours, theirs, equal_nan=True) and np.array_equal(
        np.signbit(ours[~np.isnan(ours)]), np.signbit(theirs[~np.isnan(theirs)])
    )


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 20),
    block=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    seed=st.integers(0, 10**6),
    exponents=st.booleans(),
)
def test_every_fp8_weight(
    rows: int, columns: int, block: tuple[int, int], seed: int, exponents: bool
) -> None:
    stored = random_bytes(seed, rows, columns)
    grid = -(-rows // block[0]), -(-columns // block[1])
    scales: Any = random_bytes(seed + 1, *grid)
    if exponents:
        numbers = np.array([[e8m0(int(byte)) for byte in row] for row in scales])
    else:
        scales = numbers = np.random.default_rng(seed).lognormal(-5, 3, grid).astype(np.float32)
    found = blockwise(torch.from_numpy(stored).view(torch.float8_e4m3fn), torch.from_numpy(scales), block)
    with np.errstate(over="ignore", invalid="ignore"):
        assert found.dtype == torch.float32 and same(found, reference_blockwise(stored, numbers, block))


@given(experts=st.integers(1, 3), out=st.integers(1, 4), groups=st.integers(1, 2), seed=st.integers(0, 10**6))
def test_every_mxfp4_weight(experts: int, out: int, groups: int, seed: int) -> None:
    """Exact in bf16, but beyond its largest number."""
    blocks, scales = (
        random_bytes(seed, experts, out, groups, 16),
        random_bytes(seed + 1, experts, out, groups),
    )
    found = experts_of_mxfp4(torch.from_numpy(blocks), torch.from_numpy(scales))
    wanted = reference_mxfp4(blocks, scales)
    wanted[np.abs(wanted) > torch.finfo(torch.bfloat16).max] *= math.inf
    assert found.dtype == torch.bfloat16 and same(found, wanted)


def test_experts_in_one_tensor() -> None:
    stored = torch.from_numpy(random_bytes(0, 3, 5, 7, most=127)).view(torch.float8_e4m3fn)
    scales = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))
    each = [blockwise(*pair, (4, 3)) for pair in zip(stored, scales, strict=True)]
    assert torch.equal(blockwise(stored, scales, (4, 3)), torch.stack(each))


def test_all_values_of_the_formats() -> None:
    """Each byte and each scale once."""
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    one = np.ones((1, 1), np.float32)
    found = blockwise(torch.from_numpy(every).view(torch.float8_e4m3fn), torch.from_numpy(one), (16, 16))
    assert same(found, reference_blockwise(every, one, (16, 16)))
    scales = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    blocks = np.tile(every.reshape(16, 16), (16, 1)).reshape(1, 256, 1, 16)
    wanted = reference_mxfp4(blocks, scales)
    wanted[np.abs(wanted) > torch.finfo(torch.bfloat16).max] *= math.inf
    assert same(experts_of_mxfp4(torch.from_numpy(blocks), torch.from_numpy(scales)), wanted)


def test_transformers_agrees_where_it_is_right() -> None:
    """Where blocks divide the sizes, and scales are in range."""
    stored = torch.from_numpy(random_bytes(0, 48, 60)).view(torch.float8_e4m3fn)
    scales = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    theirs = Fp8Dequantize(None)._dequantize_one(stored, scales, torch.float32)
    assert torch.equal(theirs.nan_to_num(), blockwise(stored, scales, (16, 20)).nan_to_num())
    packed = torch.from_numpy(random_bytes(0, 8, 32)).view(torch.int8)
    powers = torch.from_numpy(random_bytes(1, 8, 2) // 4 + 96)
    theirs = Fp8Dequantize(None)._dequantize_one(packed, powers, torch.float32)
    assert torch.equal(theirs, blockwise(packed, powers, (1, 32), packed=True))
    blocks, powers = (
        torch.from_numpy(random_bytes(2, 3, 6, 2, 16)),
        torch.from_numpy(random_bytes(3, 3, 6, 2) // 2 + 64),
    )
    assert torch.equal(convert_moe_packed_tensors(blocks, powers), experts_of_mxfp4(blocks, powers))


# ------------------------------------------------------------------------------------------- checkpoints


def quantise(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """e4m3 with the scale of each block, its largest weight becoming 448."""
    rows, columns = weight.shape
    grid = -(-rows // block[0]), -(-columns // block[1])
    scales = torch.empty(grid)
    for row, column in np.ndindex(*grid):
        part = weight[row * block[0] :, column * block[1] :][: block[0], : block[1]]
        scales[row, column] = part.abs().max() / 448
    factor = scales.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return (weight / factor).to(torch.float8_e4m3fn), scales


Rename = Callable[[str], str]


def is_quantised(name: str, weight: Tensor) -> bool:
    return (
        weight.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name and "mlp.gate." not in name
    )


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def fp8_of(
    plain: Path,
    folder: Path,
    block: tuple[int, int] = BLOCK,
    scale_name: str = "weight_scale_inv",
    **settings: Any,
) -> tuple[Path, Path]:
    """The FP8 checkpoint of the plain one, and the plain checkpoint of the numbers that it stands for."""
    numbers = shutil.copytree(plain, folder / "numbers")
    quantised = shutil.copytree(plain, folder / "fp8")
    stored, exact = {}, {}
    for name, weight in load_file(plain / WEIGHTS).items():
        stored[name] = exact[name] = weight
        if is_quantised(name, weight):
            stored[name], scales = quantise(weight.float(), block)
            module = name.removesuffix("weight")
            stored[module + scale_name] = scales
            stored[module + "activation_scale"] = torch.tensor(0.5)
            exact[name] = torch.from_numpy(
                reference_blockwise(stored[name].view(torch.uint8).numpy(), scales.numpy(), block)
            )
    save_file(stored, quantised / WEIGHTS, metadata={"format": "pt"})
    save_file(exact, numbers / WEIGHTS, metadata={"format": "pt"})
    about = {
        "quant_method": "fp8",
        "weight_block_size": list(block),
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
    }
    change_config(quantised, quantization_config=about | settings)
    return quantised, numbers


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_network(), tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def fp8(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return fp8_of(plain, tmp_path_factory.mktemp("fp8"))


@pytest.fixture
def copy(fp8: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(fp8[0], tmp_path / "copy")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_checkpoint(
    fp8: tuple[Path, Path], dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is the model of its numbers, rounded once, and says so in one line; on disk, too."""
    quantised, numbers = fp8
    wanted = load(numbers, dtype=dtype)
    assert not caplog.records
    model = load(quantised, dtype=dtype)
    (record,) = caplog.records
    assert "44 of its 57 weights were quantised" in record.getMessage() and "\n" not in record.getMessage()
    assert model.weights_hash == wanted.weights_hash
    found = model.network.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in wanted.network.state_dict().items())
    split = load(quantised, "auto", dtype, max_memory={"cpu": 0}, offload_folder=tmp_path)
    assert split.weights_hash == wanted.weights_hash


def test_tied_weights_on_disk(tmp_path: Path) -> None:
    plain = save(small_network(tie_word_embeddings=True), tmp_path / "plain")
    quantised, numbers = fp8_of(plain, tmp_path)
    split = load(quantised, "auto", max_memory={"cpu": 0}, offload_folder=tmp_path / "rest")
    wanted = load(numbers, "auto", max_memory={"cpu": 0}, offload_folder=tmp_path / "other")
    assert split.weights_hash == wanted.weights_hash
    assert evaluate(split, TEXTS[:1], block_tokens=16) == evaluate(wanted, TEXTS[:1], block_tokens=16)


def test_a_gpu_beside_changes_nothing(fp8: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers decides by these two whether it dequantises."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: (9, 0))
    assert load(fp8[0]).weights_hash == load(fp8[1]).weights_hash


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"weight_block_size": None}, {"block": (512, 512)}),
        ({"modules_to_not_convert": ["lm_head"]}, {}),
        ({}, {"scale_name": "scale"}),
        ({}, {"scale_name": "qscale_weight"}),
    ],
)
def test_other_layouts_of_fp8(settings: dict[str, Any], options: Any, plain: Path, tmp_path: Path) -> None:
    quantised, numbers = fp8_of(plain, tmp_path, **options, **settings)
    assert load(quantised).weights_hash == load(numbers).weights_hash


def test_one_scale_for_a_matrix(plain: Path, tmp_path: Path) -> None:
    quantised, numbers = fp8_of(plain, tmp_path, block=(512, 512), weight_block_size=None)
    tensors = load_file(quantised / WEIGHTS)
    for number, name in enumerate(sorted(name for name in tensors if name.endswith("_scale_inv"))):
        tensors[name] = tensors[name].reshape(() if number % 2 else (1,))
    save_file(tensors, quantised / WEIGHTS, metadata={"format": "pt"})
    assert load(quantised).weights_hash == load(numbers).weights_hash


def test_the_text_part_of_a_model_may_be_what_is_quantised() -> None:
    about = {"quant_method": "fp8"}
    assert method_of({"text_config": {"quantization_config": about}}) == ("fp8", about)
    assert method_of({"text_config": {"quantization_config": None}, "quantization_config": None}) is None


def gpt_oss(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """An MXFP4 checkpoint, as gpt-oss is published, and the plain one of its numbers."""
    config = OTHER_CONFIGS["gpt_oss"].to_dict() | {"intermediate_size": 64}
    numbers = save(network_of(GptOssConfig(**config)), folder / "numbers")
    quantised = shutil.copytree(numbers, folder / "mxfp4")
    exact, stored = load_file(numbers / WEIGHTS), {}
    for name, weight in exact.items():
        if not name.endswith("_proj") or weight.ndim != 3:
            stored[name] = weight
            continue
        experts, inputs, out = weight.shape
        blocks = random_bytes(seed, experts, out, inputs // 32, 16)
        scales = random_bytes(seed, experts, out, inputs // 32, most=4) + 120
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = (
            torch.from_numpy(blocks),
            torch.from_numpy(scales),
        )
        exact[name] = torch.from_numpy(reference_mxfp4(blocks, scales).astype(np.float32))
    save_file(exact, numbers / WEIGHTS, metadata={"format": "pt"})
    save_file(stored, quantised / WEIGHTS, metadata={"format": "pt"})
    change_config(
        quantised, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    )
    return quantised, numbers


def test_mxfp4_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    quantised, numbers = gpt_oss(tmp_path)
    wanted = load(numbers)
    assert load(quantised).weights_hash == wanted.weights_hash
    assert "4 of its 37 weights were quantised" in caplog.text
    split = load(quantised, "auto", max_memory={"cpu": 0}, offload_folder=tmp_path / "rest")
    assert split.weights_hash == wanted.weights_hash
    assert (
        load(quantised, dtype=torch.bfloat16).weights_hash == load(numbers, dtype=torch.bfloat16).weights_hash
    )


def test_nothing_is_read_before_it_is_needed() -> None:
    """A large checkpoint is never in memory twice."""

    class Unread:
        def __init__(self, dtype: str, *shape: int) -> None:
            self.dtype, self.shape, self.reads = dtype, shape, 0

        def get_dtype(self) -> str:
            return self.dtype

        def get_shape(self) -> list[int]:
            return list(self.shape)

        def __getitem__(self, _: Any) -> Tensor:
            self.reads += 1
            dtype = torch.float8_e4m3fn if self.dtype == "F8_E4M3" else torch.float32
            return torch.ones(self.shape).to(dtype)

    stored = {
        "a.weight": Unread("F8_E4M3", 4, 6),
        "a.weight_scale_inv": Unread("F32", 1, 1),
        "b": Unread("F32", 3),
    }
    weights = dequantised(stored, "fp8", {})
    assert [each.reads for each in stored.values()] == [0, 0, 0] and weights.keys() == {"a.weight", "b"}
    assert weights["a.weight"][...].shape == (4, 6)
    assert [each.reads for each in stored.values()] == [1, 1, 0]
    assert isinstance(weights["a.weight"], Dequantised) and weights["b"] is stored["b"]


# ------------------------------------------------------------------------------------------- what is refused


METHODS: dict[str, Any] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes 4 bits": {"load_in_4bit": True, "quant_method": "bitsandbytes"},
    "bitsandbytes 8 bits": {"load_in_8bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8"},
    "torchao": {"quant_method": "torchao"},
    "a_method_of_tomorrow": {"quant_method": "a_method_of_tomorrow"},
    "by no method that it names": {},
    "by no method": 7,
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", ["quantization_config", "compression_config", "text_config"])
def test_other_methods(name: str, where: str, plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "copy")
    change_config(
        folder, **{where: {"quantization_config": METHODS[name]} if where == "text_config" else METHODS[name]}
    )
    message = refusal(folder)
    assert f"its weights are quantised ({name}" in message and "dequantise them first" in message


SCALE = "model.layers.0.self_attn.q_proj.weight_scale_inv"


def of_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def of_settings(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        about = json.loads((folder / "config.json").read_text())["quantization_config"]
        change_config(folder, quantization_config=about | changes)

    return change


BROKEN_FP8: dict[str, tuple[Callable[[Path], None], str]] = {
    "no scales": (of_tensors(lambda tensors: tensors.pop(SCALE)), "q_proj.weight is FP8 without scales"),
    "scales of another shape": (
        of_tensors(lambda tensors: tensors.update({SCALE: torch.ones(3, 2)})),
        "q_proj.weight of shape (32, 32) has scales of shape (3, 2) and dtype F32, not (2, 2), for blocks of 16 x 20",
    ),
    "scales of another dtype": (
        of_tensors(lambda tensors: tensors.update({SCALE: torch.ones(2, 2, dtype=torch.int32)})),
        "dtype I32, not (2, 2)",
    ),
    "another block": (of_settings(weight_block_size=[128, 128]), "not (1, 1), for blocks of 128 x 128"),
    "block of three": (of_settings(weight_block_size=[1, 2, 3]), "weight_block_size [1, 2, 3]: give two whole"),
    "block of nothing": (of_settings(weight_block_size=[0, 2]), "weight_block_size [0, 2]"),
    "block of a fraction": (of_settings(weight_block_size=[1.5, 2]), "weight_block_size [1.5, 2]"),
    "block of words": (of_settings(weight_block_size="ab"), "weight_block_size 'ab'"),
    "a vector": (
        of_tensors(
            lambda tensors: tensors.update(
                {"x.weight": torch.ones(4).to(torch.float8_e4m3fn), "x.weight_scale_inv": torch.ones(1)}
            )
        ),
        "x.weight is quantised and has shape (4,): only matrices",
    ),
    "a byte": (
        of_tensors(
            lambda tensors: tensors.update(
                {"x.weight": torch.tensor(1, dtype=torch.uint8), "x.scale": torch.tensor(1, dtype=torch.uint8)}
            )
        ),
        "x.weight is quantised and has shape (): only matrices",
    ),
    "NaN": (
        of_tensors(lambda tensors: tensors[SCALE].fill_(math.nan)),
        "q_proj.weight has values that are not finite",
    ),
    "scales that nobody needs": (
        of_tensors(lambda tensors: tensors.update({"y.weight_scale_inv": torch.ones(1)})),
        "y.weight_scale_inv is superfluous",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_FP8)
def test_broken_fp8(name: str, copy: Path) -> None:
    damage, message = BROKEN_FP8[name]
    damage(copy)
    assert message in refusal(copy)


GATE = "model.layers.0.mlp.experts.gate_up_proj"
BROKEN_MXFP4: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "no scales": (lambda tensors: tensors.pop(f"{GATE}_scales"), f"{GATE} is MXFP4 without scales"),
    "fewer scales": (
        lambda tensors: tensors.update({f"{GATE}_scales": tensors[f"{GATE}_scales"][:, :-1].clone()}),
        "scales of shape (6, 127, 1): (experts, out, in/32, 16)",
    ),
    "other blocks": (
        lambda tensors: tensors.update({f"{GATE}_blocks": tensors[f"{GATE}_blocks"][..., :8].clone()}),
        "bytes of shape (6, 128, 1, 8)",
    ),
    "scales that are numbers": (
        lambda tensors: tensors.update({f"{GATE}_scales": tensors[f"{GATE}_scales"].float()}),
        "has MXFP4 bytes of shape",
    ),
    "NaN": (
        lambda tensors: tensors[f"{GATE}_scales"].fill_(255),
        "gate_up_proj has values that are not finite",
    ),
    "another width": (
        lambda tensors: tensors.update(
            {f"{GATE}_{end}": tensors[f"{GATE}_{end}"][:, :64].clone() for end in ("blocks", "scales")}
        ),
        "gate_up_proj is (6, 32, 64), not (6, 32, 128)",
    ),
}


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt_oss(tmp_path_factory.mktemp("gpt-oss"))[0]


@pytest.mark.parametrize("name", BROKEN_MXFP4)
def test_broken_mxfp4(name: str, mxfp4: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(mxfp4, tmp_path / "copy")
    damage, message = BROKEN_MXFP4[name]
    of_tensors(damage)(copy)
    assert message in refusal(copy)
