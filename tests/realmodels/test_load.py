"""Loading: what comes out is the checkpoint, and whatever is wrong with one is said in one line."""

import importlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from refusals import refusal
from safetensors.torch import load_file, save_file
from small_models import (
    CONTEXT,
    EXPERTS,
    LAYERS,
    OTHER_CONFIGS,
    REFUSED_CONFIGS,
    TEXTS,
    VOCABULARY,
    network_of,
    save,
    small_network,
    small_tokenizer,
)
from torch import Tensor

import realmodels
from realmodels import load
from realmodels.checkpoint import LARGEST_CONFIG, LARGEST_TABLE
from realmodels.load import CHECKPOINTS, DEFAULT_MODEL
from realmodels.pretrain import train_tokenizer
from theory.errors import InputError

ROOT = Path(__file__).parents[2]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
EMBEDDED = CHECKPOINTS / DEFAULT_MODEL


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bf16, as the shipped one is."""
    return save(small_network().to(torch.bfloat16), tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A folder to be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "copy")


Damage = Callable[[Path], object]


def change_config(**changes: object) -> Damage:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(config))

    return change


def change_tensors(change: Callable[[dict[str, Tensor]], object]) -> Damage:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


# ------------------------------------------------------------------------------------------- good input


def test_public_names() -> None:
    assert realmodels.__all__ == [
        "Chip",
        "calibrate",
        "dense_damage",
        "deploy",
        "evaluate",
        "expected_damage",
        "load",
        "load_chip",
        "plan",
        "reprogram",
        "save_chip",
        "scores",
        "withdraw",
    ]
    assert all(callable(getattr(realmodels, name)) for name in realmodels.__all__)


@pytest.mark.parametrize("name", ["calibrate", "deploy", "evaluate", "load", "scores"])
def test_a_module_never_hides_the_function_of_its_name(name: str) -> None:
    module = importlib.import_module(f"realmodels.{name}")
    assert getattr(realmodels, name) is getattr(module, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_is_the_checkpoints(checkpoint: Path, dtype: torch.dtype) -> None:
    model = load(checkpoint, dtype=dtype)
    expected = small_network().to(torch.bfloat16).to(dtype).state_dict()
    assert model.network.state_dict().keys() == expected.keys()
    for name, parameter in model.network.state_dict().items():
        assert parameter.dtype == dtype and torch.equal(parameter, expected[name]), name
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_a_finer_checkpoint_is_rounded(tmp_path: Path) -> None:
    loaded = load(save(small_network(), tmp_path), dtype=torch.bfloat16).network.state_dict()
    for name, parameter in small_network().state_dict().items():
        assert torch.equal(loaded[name], parameter.to(torch.bfloat16)), name


def test_all_of_a_model(checkpoint: Path) -> None:
    """The name may be a `Path` or a `str`, with a `~` or without."""
    model = load(checkpoint)
    assert model.name == str(checkpoint) and model.context == CONTEXT
    assert model.map.num_experts == (EXPERTS,) * LAYERS
    assert model.tokenizer(TEXTS[0])["input_ids"] == small_tokenizer()(TEXTS[0])["input_ids"]
    assert model.tokenizer.eos_token_id == small_tokenizer().eos_token_id
    assert model.analog_modules == {}
    again = load(str(checkpoint))
    assert (again.name, again.map, again.weights_hash) == (model.name, model.map, model.weights_hash)


def test_home_and_working_directory(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    expected = load(checkpoint).weights_hash
    assert load(f"~/{checkpoint.name}").weights_hash == expected
    monkeypatch.chdir(checkpoint)
    monkeypatch.setattr(importlib.import_module("realmodels.load"), "CHECKPOINTS", checkpoint.parent / "none")
    assert load(".").weights_hash == expected


def test_embedded_models_go_by_their_name(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(importlib.import_module("realmodels.load"), "CHECKPOINTS", checkpoint.parent)
    assert load(checkpoint.name).weights_hash == load(checkpoint).weights_hash
    assert checkpoint.name in refusal("no-such-name")  # the names to choose from
    for name in (".", ".."):  # mean what they mean everywhere, not a folder among the embedded ones
        assert "no config.json" in refusal(name)


def test_sharded_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    folder = save(small_network().to(torch.bfloat16), tmp_path, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    sharded, whole = load(folder).network.state_dict(), load(checkpoint).network.state_dict()
    assert all(torch.equal(sharded[name], parameter) for name, parameter in whole.items())
    assert load(folder).weights_hash == load(checkpoint).weights_hash  # the model, not its files


def test_tied_checkpoint(tmp_path: Path) -> None:
    network = load(save(small_network(tie_word_embeddings=True), tmp_path)).network
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


@pytest.mark.parametrize("name", OTHER_CONFIGS)
def test_other_architectures(name: str, tmp_path: Path) -> None:
    network = network_of(OTHER_CONFIGS[name])
    loaded = load(save(network, tmp_path)).network.state_dict()
    assert all(torch.equal(loaded[key], parameter) for key, parameter in network.state_dict().items())


def rename(*pairs: tuple[str, str]) -> Damage:
    def change(folder: Path) -> None:
        for old, new in pairs:
            (folder / old).rename(folder / new)

    return change


def without_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def shards_of_a_variant(folder: Path) -> None:
    without_index(folder)
    for path in folder.glob("model-*"):
        path.rename(folder / path.name.replace("model-", "model.fp16-"))


OTHER_NAMES: dict[str, Damage] = {
    "shards without an index": without_index,
    "shards of a variant": shards_of_a_variant,
    "a variant": rename((WEIGHTS, "model.fp16.safetensors")),
    "another name": rename((WEIGHTS, "weights.safetensors")),
    "the usual name beside a variant": write("model.fp16.safetensors", b"not even read"),
}


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_files_of_other_names(name: str, checkpoint: Path, tmp_path: Path) -> None:
    size = {"max_shard_size": "20KB"} if name.startswith("shards") else {}
    folder = save(small_network().to(torch.bfloat16), tmp_path, **size)
    OTHER_NAMES[name](folder)
    assert load(folder).weights_hash == load(checkpoint).weights_hash


@pytest.mark.skipif(not EMBEDDED.is_dir(), reason="tiny-olmoe is not there yet")
def test_tiny_olmoe() -> None:
    model = load()
    assert model.name == DEFAULT_MODEL and model.weights_hash == load(EMBEDDED).weights_hash
    assert len(model.map.num_experts) >= 4 and min(model.map.num_experts) >= 32
    assert model.network.config.num_experts_per_tok == 4 and not model.network.config.tie_word_embeddings
    stored = [tensor for file in EMBEDDED.glob("*.safetensors") for tensor in load_file(file).values()]
    assert {tensor.dtype for tensor in stored} == {torch.bfloat16}
    assert sum(file.stat().st_size for file in EMBEDDED.glob("*.safetensors")) <= 16 * 2**20


# ------------------------------------------------------------------------------------------- the hash


def rename_token(folder: Path) -> None:
    """Two tokens of the vocabulary change places."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[40:42]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def change_tokenizer(**changes: object) -> Damage:
    def change(folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            content = json.loads((folder / name).read_text())
            content |= {key: value for key, value in changes.items() if (key in content) or name[9] == "_"}
            (folder / name).write_text(json.dumps(content))

    return change


def next_value(place: int) -> Damage:
    """The weight at this place of some tensor becomes the next number of its dtype."""

    def change(tensors: dict[str, Tensor]) -> None:
        tensor = tensors[sorted(tensors)[place % len(tensors)]]
        flat = tensor.view(torch.int16).view(-1)
        flat[place % len(flat)] ^= 1

    return change_tensors(change)


def rename_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    change_config(transformers_weights="other.safetensors")(folder)


DECIDES: dict[str, Damage] = {
    "a weight": next_value(12345),
    "the last weight": next_value(-1),
    "epsilon": change_config(rms_norm_eps=1e-4),
    "top-k": change_config(num_experts_per_tok=1),
    "two tokens": rename_token,
    "normaliser": change_tokenizer(normalizer={"type": "Lowercase"}),
    "end of text": change_tokenizer(eos_token="a"),
    "special tokens in texts": change_tokenizer(split_special_tokens=True),
}
DECIDES_NOTHING: dict[str, Damage] = {
    "a model card": lambda folder: (folder / "README.md").write_text(
        "what a model card says changes no result"
    ),
    "white space": lambda folder: (folder / "config.json").write_text(
        "\n" + (folder / "config.json").read_text() + "\n"
    ),
    "the release that saved it": change_config(transformers_version="5.0.0"),
    "names of files": rename_weights,
    "kernel of the hub": change_config(attn_implementation="someone/kernel"),
    "kernel of the hub by its other name": change_config(_attn_implementation="someone/kernel:x"),
    "kernel of the hub for a part": change_config(attn_implementation={"": "someone/kernel"}),
    "another implementation": change_config(attn_implementation="flash_attention_2"),
    "slow attention": change_config(attn_implementation="eager"),
    "experts of the hub": change_config(experts_implementation="someone/kernel"),
    "cache of keys": change_config(use_cache=False),
    "an index of weights that were not fetched": write(
        "model.fp16.safetensors.index.json", b'{"weight_map": {"a": "model.fp16-1.safetensors"}}'
    ),
    "weights that nobody names": write("lora.safetensors", b""),
    "the index of files in another format": write("pytorch_model.bin.index.json", b"{}"),
    "where its tokenizer once was": change_tokenizer(special_tokens_map_file="/home/someone/map.json"),
}


@pytest.mark.parametrize("name", [*DECIDES, *DECIDES_NOTHING])
def test_hash_knows_all_that_decides_a_result(name: str, checkpoint: Path, copy: Path) -> None:
    (DECIDES | DECIDES_NOTHING)[name](copy)
    assert (load(copy).weights_hash != load(checkpoint).weights_hash) == (name in DECIDES)


@settings(max_examples=30)
@given(place=st.integers(0, 10**6))
def test_hash_knows_every_weight(checkpoint: Path, place: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        other = shutil.copytree(checkpoint, Path(folder) / "copy")
        next_value(place)(other)
        assert load(other).weights_hash != load(checkpoint).weights_hash


# ------------------------------------------------------------------------------------------- bad checkpoints


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) - 100])


def pickle_instead(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def spoil(value: float) -> Damage:
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    return change_tensors(lambda tensors: tensors[name][0, 0].fill_(value))


def other_tokenizer(folder: Path) -> None:
    """The tokenizer has more tokens than the model has rows for."""
    words = " ".join(f"{number:x}" for number in range(2000))
    train_tokenizer([words], VOCABULARY + 100).save_pretrained(folder)


def link(name: str, target: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def fifo(name: str) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def name_weights(content: str, name: str = "", index: str = "") -> Damage:
    """config.json names weights, or an index of the name says where they are."""

    def change(folder: Path) -> None:
        weights = {"weight_map": dict.fromkeys(load_file(folder / WEIGHTS), content)}
        if index:
            (folder / index).write_text(json.dumps(weights))
        change_config(transformers_weights=name or content)(folder)

    return change


def pickle_beside(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    change_config(transformers_weights="adapter_model.bin")(folder)


def sparse(name: str, size: int) -> Damage:
    def change(folder: Path) -> None:
        with (folder / name).open("ab") as file:
            file.truncate(size + 1)

    return change


DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
ONLY_HERE = "only safetensors files of the same folder are read"
TOO_MANY = "more than its weights have tensors or rows.*get the complete checkpoint"

# Whoever made the folder means harm: files from elsewhere, code, and loads that never end.
HOSTILE: dict[str, tuple[Damage, str]] = {
    "weights outside": (name_weights("../copy/model.safetensors"), ONLY_HERE),
    "absolute weights": (name_weights("/etc/passwd"), ONLY_HERE),
    "weights that are a pickle": (pickle_beside, f"adapter_model.bin.*{ONLY_HERE}"),
    "weights of no name": (change_config(transformers_weights=7), ONLY_HERE),
    "weights that are not there": (name_weights("none.safetensors"), ONLY_HERE),
    "index of files outside": (
        name_weights("../copy/model.safetensors", "x.safetensors.index.json", "x.safetensors.index.json"),
        f"x.safetensors.index.json names .*{ONLY_HERE}",
    ),
    "index of a pickle": (
        name_weights("pytorch_model.bin", "x.safetensors.index.json", "x.safetensors.index.json"),
        f"pytorch_model.bin.*{ONLY_HERE}",
    ),
    "index that nobody names": (
        write("other.safetensors.index.json", b"{}"),
        "other.safetensors.index.json is not a weight index",
    ),
    "adapter without weights": (
        write("adapter_config.json", b"{}"), "belongs to an adapter, but adapter_model.safetensors is not there"
    ),
    **{f"fifo for {name}": (fifo(name), f"{name} is no regular file") for name in (
        "config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, INDEX, "generation_config.json", "x"
    )},
    "device": (link("config.json", "/dev/zero"), "config.json is no regular file"),
    "links in a loop": (link("config.json", "config.json"), "no config.json"),
    "a billion layers": (change_config(num_hidden_layers=10**9), f"num_hidden_layers 1000000000, {TOO_MANY}"),
    "a billion experts": (change_config(num_experts=10**9), f"num_experts 1000000000, {TOO_MANY}"),
    "a billion heads": (change_config(num_attention_heads=10**9), TOO_MANY),
    "a layer for each row": (change_config(num_hidden_layers=VOCABULARY), "describes more .* than the weights"),
    "wide": (change_config(hidden_size=2**20), "describes more parameters than the weights hold"),
    "wide experts": (change_config(intermediate_size=2**40), "describes more|cannot load it"),
    "many words": (change_config(vocab_size=10**12), "describes more|cannot load it"),
    "deep": (write("config.json", b"[" * 10**6), "config.json is no usable JSON"),
    "epsilon that is no number": (change_config(rms_norm_eps=float("nan")), "rms_norm_eps NaN: give a number"),
    "negative epsilon": (change_config(rms_norm_eps=-1e9), "a forward pass gives NaN; get a config.json that"),
    "negative top-k": (change_config(num_experts_per_tok=-1), "num_experts_per_tok -1: give at least 1"),
    "no experts for a token": (change_config(num_experts_per_tok=0), "num_experts_per_tok 0: give at least 1"),
    "more experts for a token": (change_config(num_experts_per_tok=EXPERTS + 1), "forward pass fails"),
    "no answer": (change_config(return_dict=False), "forward pass fails|cannot load"),
    "no context": (change_config(max_position_embeddings=-1), "max_position_embeddings -1: get a config"),
    "context of a fraction": (change_config(max_position_embeddings=0.5), "max_position_embeddings"),
    "a billion labels": (change_config(num_labels=10**9), TOO_MANY),
    "tokens without end": (change_tokenizer(extra_ids=10**9), "adds more than 20000 tokens"),
    "many tokens": (change_tokenizer(additional_special_tokens=["x"] * 30_000), "adds more than 20000 tokens"),
    **{
        f"large {name}": (sparse(name, size), f"{name} has more than {size} bytes: get an intact copy")
        for name, size in (
            ("config.json", LARGEST_CONFIG), ("generation_config.json", LARGEST_CONFIG),
            ("added_tokens.json", LARGEST_CONFIG), ("chat_template.jinja", LARGEST_CONFIG),
            ("tokenizer.json", LARGEST_TABLE), ("x.safetensors.index.json", LARGEST_TABLE),
        )
    },
    "tokenizer that reads elsewhere": (
        change_tokenizer(vocab_file="/etc/passwd"),
        "tokenizer_config.json names vocab_file '/etc/passwd': only files of the same folder",
    ),
    "one tokenizer for each release": (
        change_tokenizer(fast_tokenizer_files=["../tokenizer.5.0.json"]),
        "names fast_tokenizer_files '../tokenizer.5.0.json'",
    ),
    "tokenizer that doubles every letter 60 times": (
        change_tokenizer(normalizer={"type": "Sequence", "normalizers": [DOUBLE] * 60}),
        "needs more than|cannot load its tokenizer",
    ),
    "tokenizer's config of garbage": (write("tokenizer_config.json", b"{"), "tokenizer_config.json is no usable"),
}  # fmt: skip

DAMAGE: dict[str, tuple[Damage, str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json.*give a folder"),
    "config of garbage": (write("config.json", b"{\xff"), "config.json"),
    "config of no object": (write("config.json", b"[1]"), "model_type"),
    "config with a text for a number": (change_config(hidden_size="wide"), "hidden_size.*int.*wide"),
    "config that makes transformers divide by zero": (change_config(num_attention_heads=0), "ZeroDivision"),
    "unknown model type": (change_config(model_type="mystery"), "mystery.*give a folder that it can"),
    "pickle": (pickle_instead, "pytorch_model.bin, a pickle.*convert.*safetensors"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "no weights.*safetensors"),
    "adapter alone": (
        lambda folder: (
            (folder / WEIGHTS).rename(folder / "adapter_model.safetensors"),
            (folder / "config.json").rename(folder / "adapter_config.json"),
        ),
        "it is an adapter of another model: put it into the folder of that model",
    ),
    "gguf": (
        lambda folder: (folder / WEIGHTS).rename(folder / "model.gguf"),
        "only model.gguf, another format: convert.*safetensors",
    ),
    "two variants": (
        lambda folder: (
            shutil.copy(folder / WEIGHTS, folder / "model.fp32.safetensors"),
            (folder / WEIGHTS).rename(folder / "model.fp16.safetensors"),
        ),
        "it holds 2 sets of weights, as model.fp16.safetensors and model.fp32.safetensors: keep one",
    ),
    "truncated": (truncate, f"{WEIGHTS} is no intact safetensors file.*get an intact copy"),
    "empty weights": (write(WEIGHTS, b""), "no intact safetensors file"),
    "garbage weights": (write(WEIGHTS, b"garbage" * 100), "no intact safetensors file"),
    "weights that are a folder": (lambda folder: (folder / "x.safetensors").mkdir(), "x.safetensors is no"),
    "index of garbage": (write(INDEX, b"\xff"), f"{INDEX} is not a weight index"),
    "index without a map": (write(INDEX, b"{}"), f"{INDEX} is not a weight index"),
    "index of no object": (write(INDEX, b"[1]"), f"{INDEX} is not a weight index"),
    "index of other things than names": (write(INDEX, b'{"weight_map": {"a": []}}'), f"{INDEX} is not a"),
    "missing tensor": (
        change_tensors(lambda tensors: tensors.pop("model.layers.1.self_attn.q_norm.weight")),
        "1 of its tensors.*model.layers.1.self_attn.q_norm.weight is missing.*get the complete checkpoint",
    ),
    "missing expert": (
        change_tensors(lambda tensors: tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight")),
        r"conversion of the weights\.\); give a folder that it can",
    ),
    "superfluous tensor": (
        change_tensors(lambda tensors: tensors.update(extra=torch.zeros(1))),
        "extra is superfluous",
    ),
    "another width": (change_config(intermediate_size=32), r"down_proj is \(6, 32, 24\), not \(6, 32, 32\)"),
    "another depth": (change_config(num_hidden_layers=LAYERS + 1), "model.layers.2.* is missing"),
    "nan": (spoil(float("nan")), r"layers.1.mlp.experts.gate_up_proj.*not finite.*get an intact copy"),
    "infinity": (spoil(float("inf")), r"layers.1.mlp.experts.gate_up_proj.*not finite"),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        "no tokenizer.json, or .*merges.txt: save the",
    ),
    "tokenizer of garbage": (
        write("tokenizer.json", b"{}"),
        "cannot load its tokenizer .*get an intact copy",
    ),
    "another tokenizer": (other_tokenizer, f"tokenizer has 4.. tokens, its embedding {VOCABULARY}.*get the"),
}


@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoint(name: str, offloaded: bool, copy: Path, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    damage(copy)
    options: dict[str, Any] = {}
    if offloaded:
        options = {"device": "auto", "max_memory": {"cpu": 0}, "offload_folder": tmp_path / "rest"}
    assert re.search(message, refusal(copy, **options))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_folder(
    name: str, copy: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line within seconds, whatever the folder asks for."""
    monkeypatch.setattr(importlib.import_module("realmodels.checkpoint"), "TOKENIZER_SECONDS", 3)
    damage, message = HOSTILE[name]
    damage(copy)
    begin, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert re.search(message, refusal(copy))
    assert time.monotonic() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2**19  # KiB
    assert capfd.readouterr().err == ""


def test_missing_shard(tmp_path: Path) -> None:
    folder = save(small_network(), tmp_path, max_shard_size="20KB")
    shard = max(folder.glob("*.safetensors"))
    shard.unlink()
    assert f"{shard.name} is missing: get the complete checkpoint" in refusal(folder)
    without_index(folder)
    assert f"{shard.name} is missing: get the complete checkpoint" in refusal(folder)


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_models_that_are_not_supported(name: str, tmp_path: Path) -> None:
    message = refusal(save(network_of(REFUSED_CONFIGS[name]), tmp_path))
    assert {"llama": "has no fused experts", "gpt_oss": "gate_up_proj_bias"}[name] in message


@pytest.mark.parametrize("model_type", ["mystery", "olmoe"])
def test_code_in_a_checkpoint_never_runs(model_type: str, copy: Path) -> None:
    """A known architecture loads as transformers has it; an unknown one is refused."""
    mark = copy / "executed"
    classes = "".join(f"class {name}: ...\n" for name in ("Config", "Model", "Tokenizer"))
    (copy / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n{classes}")
    automatic = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change_config(model_type=model_type, auto_map=automatic)(copy)
    tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    if model_type == "olmoe":
        assert type(load(copy).network).__module__.startswith("transformers.")
    else:
        assert "custom code" in refusal(copy)
    assert not mark.exists()


# ------------------------------------------------------------------------------------------- bad names


@pytest.mark.parametrize(
    "name", ["no-such-model", "/no/such/folder", "./folder", "a/b/c", "~nobody-at-all/x"]
)
def test_names_of_nothing(name: str) -> None:
    assert "neither a folder, nor a hub id" in refusal(name)


@pytest.mark.parametrize("name", ["a" * 300, "a/" + "b" * 300])
def test_names_too_long_for_a_file(name: str) -> None:
    refusal(name)


def test_a_file_is_no_folder(checkpoint: Path) -> None:
    for name in (WEIGHTS, "config.json"):
        assert "it is a file: give the folder that it is in" in refusal(checkpoint / name)


@pytest.mark.parametrize("name", ["owner/no--such", "owner/name"])
def test_hub_id_out_of_reach(name: str) -> None:
    """`tests/conftest.py` forbids the network; the first is an id that the hub's client itself refuses."""
    assert f"hf download {name} --local-dir FOLDER" in refusal(name)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_device_that_is_not_there(device: str, checkpoint: Path) -> None:
    with pytest.raises(InputError, match=f"device {device}.*give cpu or cuda") as caught:
        load(checkpoint, device=device)
    assert "\n" not in str(caught.value)


SCRIPT = """
import sys, time
from realmodels import load
from realmodels.checkpoint import LARGEST_CONFIG, LARGEST_TABLE
from theory.errors import InputError

good, bad = sys.argv[1:]
load(good)
begin = time.monotonic()
for name in (bad, "owner/name"):
    try:
        load(name)
    except InputError as error:
        print(error)
assert time.monotonic() - begin < 20, "no network is no reason to wait"
from transformers.utils import logging
assert logging.get_verbosity() == logging.WARNING and logging.is_progress_bar_enabled()
"""


def test_silence(checkpoint: Path, copy: Path) -> None:
    """No character of progress bars or tables is on stderr, and nothing waits long where nobody answers."""
    change_config(intermediate_size=32)(copy)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(copy), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(copy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    shapes, download = done.stdout.splitlines()
    assert "do not fit" in shapes and "hf download owner/name" in download
