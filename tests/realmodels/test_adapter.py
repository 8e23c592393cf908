"""An adapter beside a model is merged into its weights by peft, or refused in one line."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refusal
from safetensors.torch import load_file, save_file
from small_models import EXPERTS, HIDDEN, INNER, LAYERS, save, small_network
from torch import Tensor

from realmodels import load

RANK, ALPHA = 3, 7
CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
ATTENTION = {
    f"model.layers.{layer}.self_attn.{name}_proj": (HIDDEN, HIDDEN)
    for layer in range(LAYERS)
    for name in "qo"
}
EXPERT = {
    f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj": (HIDDEN, INNER)
    if name == "down"
    else (INNER, HIDDEN)
    for layer in range(LAYERS)
    for expert in range(EXPERTS)
    for name in ("gate", "up", "down")
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(small_network(), tmp_path_factory.mktemp("plain"))


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    return shutil.copytree(plain, tmp_path / "adapted")


def write_adapter(folder: Path, targets: dict[str, tuple[int, int]], **settings: Any) -> dict[str, Tensor]:
    """Write the adapter, and give what it adds to each matrix: alpha/r B A."""
    generator = torch.Generator().manual_seed(0)
    tensors, added = {}, {}
    for name, (out, inputs) in targets.items():
        down, up = torch.randn(RANK, inputs, generator=generator), torch.randn(out, RANK, generator=generator)
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        added[f"{name}.weight"] = ALPHA / RANK * up @ down
    save_file(tensors, folder / ADAPTER)
    modules = sorted({name.rpartition(".")[2] for name in targets})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    }
    (folder / CONFIG).write_text(json.dumps(config | settings))
    return added


def test_without_peft(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    write_adapter(folder, ATTENTION)
    assert "adapter_config.json stands beside the model: `pip install peft`" in refusal(folder)


def test_on_many_devices(folder: Path) -> None:
    write_adapter(folder, ATTENTION)
    assert "its adapter can be merged on one device alone" in refusal(folder, device="auto")


def test_a_pickled_adapter(folder: Path) -> None:
    write_adapter(folder, ATTENTION)
    (folder / ADAPTER).rename(folder / "adapter_model.bin")
    assert "belongs to an adapter, but adapter_model.safetensors is not there" in refusal(folder)


@pytest.mark.parametrize(
    "targets", [ATTENTION, EXPERT, ATTENTION | EXPERT], ids=["attention", "experts", "both"]
)
def test_merged(targets: dict[str, tuple[int, int]], folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    added = write_adapter(folder, targets)
    merged = shutil.copytree(folder, tmp_path / "merged")
    for name in (CONFIG, ADAPTER):
        (merged / name).unlink()
    tensors = load_file(merged / "model.safetensors")
    for name, change in added.items():
        tensors[name] += change
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})
    wanted = load(merged).network.state_dict()
    model = load(folder)
    assert model.network.state_dict().keys() == wanted.keys()
    assert type(model.network).__module__.startswith("transformers.")
    for name, weight in model.network.state_dict().items():
        torch.testing.assert_close(weight, wanted[name], msg=name)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "is no LoRA adapter: merge it where it was made"),
    "weights of the model changed": ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa'"),
    "a pattern": ({"target_modules": "(a+)+$"}, "has target_modules '(a+)+$'"),
    "a pattern in a list": ({"target_modules": ["(a+)+$"]}, "has target_modules"),
    "a pattern of ranks": ({"rank_pattern": {"(a+)+$": 4}}, "has rank_pattern"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "has modules_to_save"),
    "biases": ({"bias": "all"}, "has bias 'all'"),
    "a setting of tomorrow": ({"use_magic": True}, "has use_magic 'True'"),
    "another rank": ({"r": 5}, "peft cannot merge its adapter (RuntimeError: Error(s) in loading state_dict"),
    "a billion ranks": (
        {"r": 10**9},
        "adapter_config.json describes more than adapter_model.safetensors holds",
    ),
    "a rank of none": ({"r": 0}, "peft cannot merge its adapter (ValueError"),
    "fewer modules": ({"target_modules": ["q_proj"]}, "do not fit, first base_model"),
    "more modules": ({"target_modules": ["q_proj", "o_proj", "v_proj"]}, "do not fit, first base_model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_lora(name: str, folder: Path) -> None:
    pytest.importorskip("peft")
    settings, message = REFUSED[name]
    write_adapter(folder, ATTENTION, **settings)
    assert message in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 10**5])
def test_a_config_of_garbage(content: str, folder: Path) -> None:
    pytest.importorskip("peft")
    write_adapter(folder, ATTENTION)
    (folder / CONFIG).write_text(content)
    assert CONFIG in refusal(folder)


def test_a_broken_adapter(folder: Path) -> None:
    pytest.importorskip("peft")
    write_adapter(folder, ATTENTION)
    (folder / ADAPTER).write_bytes(b"garbage" * 10)
    assert "adapter_model.safetensors is no intact safetensors file" in refusal(folder)
