"""A chip that is kept: the same outputs bit for bit, in any process; nothing else is taken for one."""

import hashlib
import json
import logging
import os
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_models import MODELS, TEXTS, as_model, network_named, save, small_model, small_network
from torch import Tensor

from realmodels import Chip, deploy, load, load_chip, reprogram, save_chip, scores, withdraw
from realmodels.model import Deployment, Model
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import Placement, place

TILED = Hardware(c=1.5, tile_size=16)
PACKED = Hardware(c=1.5, tile_size=512, w_max="column", kappa=3.0)
PLAIN = Hardware(c=1.5, dac_bits=None, adc_bits=None)
ROOT = Path(__file__).parents[2]


def outputs(model: Model) -> Tensor:
    logits: Tensor = model.network(input_ids=torch.arange(40)[None]).logits
    return logits


def placed(model: Model, fraction: float = 0.34) -> Placement:
    return place(scores(model), fraction, analog_modules=("attention",))


def deployed(hardware: Hardware = TILED, seed: int = 3, **changes: Any) -> Model:
    model = small_model(**changes)
    deploy(model, placed(model), hardware, TEXTS, seed)
    return model


def refusal(file: Path, model: Model | None = None) -> str:
    """The line of `load_chip`, which has to leave the model as it is."""
    model = model or small_model()
    before = outputs(model)
    with pytest.raises(InputError) as caught:
        load_chip(model, file)
    assert model.deployment is None and torch.equal(outputs(model), before)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message and len(message) < 1000
    return message


def test_numbers_of_a_file_are_aligned(tmp_path: Path) -> None:
    """Larger numbers come first, after a header of a multiple of 8 bytes."""
    save_chip(deployed(), tmp_path / "chip")
    raw = (tmp_path / "chip").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    sizes = [int(entry["dtype"][1:]) for name, entry in header.items() if name != "__metadata__"]
    assert size % 8 == 0 and raw[size : 8 + size].strip() and set(sizes) == {64, 32}
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("hardware", [TILED, PACKED, PLAIN, Hardware(c=0.0, adc_bits=None)], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_kept_chip_is_the_same_chip(tmp_path: Path, name: str, hardware: Hardware) -> None:
    first, second = (as_model(network_named(name)) for _ in range(2))
    digital = outputs(first)
    report = deploy(first, placed(first), hardware, TEXTS, seed=3)
    save_chip(first, tmp_path / "chip")
    assert load_chip(second, tmp_path / "chip") == report
    assert torch.equal(outputs(second), outputs(first)) and not torch.equal(outputs(first), digital)
    assert second.deployment == first.deployment == Deployment(placed_of(first), hardware, 3)
    save_chip(second, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "chip").read_bytes()
    for model in (first, second):
        reprogram(model, 4, mirrored=True)
        assert model.deployment == Deployment(placed_of(first), hardware, 4, mirrored=True)
    assert torch.equal(outputs(second), outputs(first))
    withdraw(second)
    assert second.deployment is None and torch.equal(outputs(second), digital)


def placed_of(model: Model) -> Placement:
    assert model.deployment is not None
    return model.deployment.placement


def test_large_tiles_are_packed_and_kept(tmp_path: Path) -> None:
    """The small models' tiles are too small for oneDNN's own layout."""
    changes = {"hidden_size": 256, "intermediate_size": 300, "num_hidden_layers": 1}
    model = deployed(PACKED, **changes)
    packed = [each for module in model.analog_modules.values() for each in module.crossbars.values()]
    assert any(each.packed for each in packed)
    save_chip(model, tmp_path / "chip")
    other = small_model(**changes)
    load_chip(other, tmp_path / "chip")
    assert torch.equal(outputs(other), outputs(model))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_chip_of_all_experts_or_none(tmp_path: Path, fraction: float) -> None:
    model, other = small_model(), small_model()
    deploy(model, place(scores(model), fraction), TILED, TEXTS)
    save_chip(model, tmp_path / "chip")
    load_chip(other, tmp_path / "chip")
    assert torch.equal(outputs(other), outputs(model))
    assert (other.deployment is None, other.deployment) == (False, model.deployment)


def test_a_placement_of_a_chip_for_many(tmp_path: Path) -> None:
    """Such a chip holds experts that its placement keeps digital; they stay on it."""
    model, other = small_model(), small_model()
    chip = Chip(model, TILED, TEXTS, seed=5)
    with chip.placed(place(scores(model), 0.0)):
        pass
    with chip.placed(placed(model)):
        wanted = outputs(model)
        save_chip(model, tmp_path / "chip")
    load_chip(other, tmp_path / "chip")
    assert torch.equal(outputs(other), wanted)
    experts = other.analog_modules["model.layers.0.mlp.experts"]
    experts.keep_digital([])  # type: ignore[operator]


def test_a_merged_adapter_is_part_of_the_model(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folder = save(small_network(), tmp_path / "model")
    adapted = peft.get_peft_model(small_network(), peft.LoraConfig(target_modules=["q_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.1)
    adapted.save_pretrained(folder)
    model = load(folder)
    deploy(model, placed(model), TILED, TEXTS)
    save_chip(model, tmp_path / "chip")
    again = load(folder)
    load_chip(again, tmp_path / "chip")
    assert torch.equal(outputs(again), outputs(model))
    for file in folder.glob("adapter*"):
        file.unlink()
    assert "is a chip of the model 'model' with the weights" in refusal(tmp_path / "chip", load(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-olmoe", "tiny-deepseek-moe"])
def test_shipped_models(tmp_path: Path, name: str) -> None:
    model = load(name)
    wanted = outputs(model)
    deploy(model, placed(model, 0.25), Hardware(c=1.5, kappa=3.0, lam=1.0), model.texts("calibration")[:20])
    analog = outputs(model)
    save_chip(model, tmp_path / "chip")
    withdraw(model)
    load_chip(model, tmp_path / "chip")
    assert torch.equal(outputs(model), analog)
    withdraw(model)
    assert torch.equal(outputs(model), wanted)


ELSEWHERE = """
import hashlib, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import test_chip
from realmodels import load_chip, save_chip
model = test_chip.deployed()
save_chip(model, sys.argv[3])
other = test_chip.small_model()
load_chip(other, sys.argv[4])
for each in (model, other):
    print(hashlib.sha256(test_chip.outputs(each).numpy().tobytes()).hexdigest())
"""


def test_the_same_seed_is_the_same_chip_in_another_process(tmp_path: Path) -> None:
    model = deployed()
    save_chip(model, tmp_path / "here")
    command = [sys.executable, "-c", ELSEWHERE, str(ROOT), str(Path(__file__).parent)]
    run = subprocess.run(
        [*command, str(tmp_path / "there"), str(tmp_path / "here")],
        env=os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) == {hashlib.sha256(outputs(model).numpy().tobytes()).hexdigest()}
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()


def test_what_is_saved_as_usual_is_digital_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = deployed()
    for each in (1, 2):
        reprogram(model, each)
    with caplog.at_level(logging.WARNING):
        model.network.save_pretrained(tmp_path / "model")
    assert caplog.messages == [
        "model small is deployed: its digital weights are saved; save_chip(model, file) keeps the chip"
    ]
    caplog.clear()
    withdraw(model)
    model.network.save_pretrained(tmp_path / "digital")
    assert not caplog.messages
    saved = (load_file(tmp_path / each / "model.safetensors") for each in ("model", "digital"))
    assert all(torch.equal(*each) for each in zip(*(tensors.values() for tensors in saved), strict=True))


def test_a_chip_says_what_it_is() -> None:
    on = deployed().deployment
    assert str(on).startswith(
        "4 of 12 experts digital, attention analog; hardware: programming pcm, c 1.5, w_max"
    )
    assert str(on).endswith("kappa None, lam None; seed 3")
    assert str(replace(on, mirrored=True)).endswith("seed 3, opposite noise")  # type: ignore[type-var]


def test_a_digital_model_has_no_chip(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model small is not deployed: call deploy first"):
        save_chip(small_model(), tmp_path / "chip")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path: Path) -> None:
    model = deployed()
    os.mkfifo(fifo := tmp_path / "fifo")  # a device is the same
    for file in (tmp_path, tmp_path / "no" / "chip", "~no such home/chip", fifo):
        with pytest.raises(InputError, match="chip file .* cannot be written"):
            save_chip(model, file)
    assert list(tmp_path.iterdir()) == [fifo] and fifo.is_fifo()


def test_weights_are_written_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No list of all of them is made."""
    from realmodels import chip

    alive, most = 0, 0

    class Counted(bytes):
        def __new__(cls, content: Any) -> "Counted":
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, content)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    bytes_of = chip._bytes
    monkeypatch.setattr(chip, "_bytes", lambda tensor: Counted(bytes_of(tensor)))
    save_chip(deployed(), tmp_path / "chip")
    assert 0 < most <= 2
    load_chip(small_model(), tmp_path / "chip")


# ------------------------------------------------------------------------------------------------- hostile files


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_chip(deployed(), tmp_path / "chip")
    other = replace(small_model(), name="other", weights_hash="0123456789abcdef")
    assert (
        "is a chip of the model 'small' with the weights hash, not of other with 0123456789ab: load that model"
    ) in refusal(tmp_path / "chip", other).replace("it is", "is")
    with pytest.raises(InputError, match="deployed already"):
        load_chip(deployed(), tmp_path / "chip")


@settings(max_examples=60, deadline=None)
@given(st.integers(0), st.integers(1, 255), st.sampled_from(["flip", "cut", "add"]))
def test_damage_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int, how: str
) -> None:
    content = bytearray(_kept(tmp_path_factory))
    place %= len(content)
    if how == "flip":
        content[place] ^= change
    elif how == "cut":
        del content[place:]
    else:
        content += bytes([change])
    file = tmp_path_factory.mktemp("damaged") / "chip"
    file.write_bytes(content)
    refusal(file)


_KEPT: list[bytes] = []


def _kept(factory: pytest.TempPathFactory) -> bytes:
    if not _KEPT:
        file = factory.mktemp("kept") / "chip"
        save_chip(deployed(), file)
        _KEPT.append(file.read_bytes())
    return _KEPT[0]


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> Path:
    """The chip of the small model as somebody would forge it, with the right hash."""
    save_chip(deployed(), file)
    with safe_open(file, framework="pt") as opened:
        metadata = dict(opened.metadata())
    content, tensors = json.loads(metadata["chip"]), load_file(file)
    change(content, tensors)
    metadata = {"format": metadata["format"], "chip": json.dumps(content), "sha256": "0" * 64}
    save_file(tensors, file, metadata)
    raw = file.read_bytes()
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    assert raw[:size].count(b'"sha256":"' + b"0" * 64) == 1
    # As the library writes it, without a blank, so that the header has to be written anew.
    header = json.dumps(json.loads(raw[8:size])).encode()
    header += b" " * (-len(header) % 8)
    raw = struct.pack("<Q", len(header)) + header + raw[size:]
    digest = hashlib.sha256(raw).hexdigest().encode()
    file.write_bytes(raw.replace(b'"sha256": "' + b"0" * 64, b'"sha256": "' + digest))
    return file


def test_a_forged_chip_that_is_sound_is_loaded(tmp_path: Path) -> None:
    """So that what is refused below is refused for what it holds."""
    model = small_model()
    load_chip(model, rewritten(tmp_path / "chip", lambda content, tensors: None))
    assert torch.equal(outputs(model), outputs(deployed()))


EXPERTS, DOWN = "model.layers.0.mlp.experts", "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content, tensors: content.pop("seed"), "the chip lacks the key 'seed'"),
        (lambda content, tensors: content.update(code="import os"), "the unknown key 'code'"),
        (lambda content, tensors: content.update(seed=1.5), "seed is no whole number"),
        (lambda content, tensors: content.update(mirrored=1), "mirrored is no bool"),
        (lambda content, tensors: content.update(model=["small"]), "model is no str"),
        (lambda content, tensors: content.update(modules=[]), "modules is no dict"),
        (lambda content, tensors: content["modules"].pop(EXPERTS), "modules are not those of its placement"),
        (
            lambda content, tensors: content["modules"].update(evil=[0]),
            "modules are not those of its placement",
        ),
        (lambda content, tensors: content["modules"].update({EXPERTS: "all"}), "whole numbers are needed"),
        (
            lambda content, tensors: content["modules"].update({EXPERTS: [0, 99]}),
            "experts that it does not have",
        ),
        (
            lambda content, tensors: content["modules"].update({EXPERTS: [1, 1]}),
            "experts that it does not have",
        ),
        (lambda content, tensors: content["modules"].update({EXPERTS: []}), "on no crossbar"),
        (
            lambda content, tensors: content["modules"].update({"model.layers.0.self_attn.q_proj": []}),
            "is programmed where its placement says it is digital, or not programmed",
        ),
        (lambda content, tensors: content["hardware"].update(c=-1), "hardware.c is -1"),
        (
            lambda content, tensors: content["hardware"].update(extra=1),
            "hardware has the unknown key 'extra'",
        ),
        (lambda content, tensors: content["hardware"].update(tile_size=8), "where the model here stores F32"),
        (lambda content, tensors: content["placement"].update(num_experts=[6]), "placement"),
        (lambda content, tensors: content["placement"].update(num_experts=[9, 9]), "placement.num_experts"),
        (
            lambda content, tensors: content["placement"].update(analog_modules=["x"]),
            "matches no dense module",
        ),
        (lambda content, tensors: tensors.pop(f"{DOWN}.lam"), f"it lacks {DOWN}.lam"),
        (lambda content, tensors: tensors.pop(f"{DOWN}.weight"), f"it lacks {DOWN}.weight"),
        (lambda content, tensors: tensors.update(evil=torch.zeros(1)), "it holds 'evil'"),
        (lambda content, tensors: tensors[f"{DOWN}.lam"].zero_(), "lam is not from 1e-15 to 1e"),
        (lambda content, tensors: tensors[f"{DOWN}.lam"].fill_(torch.inf), "not finite"),
        (lambda content, tensors: tensors[f"{DOWN}.lam"].fill_(1e308), "lam is not from 1e-15 to 1e"),
        (lambda content, tensors: tensors[f"{DOWN}.input_bound"].fill_(5e-324), "input_bound is not from"),
        (
            lambda content, tensors: tensors[f"{DOWN}.input_bound"].fill_(-1),
            "input_bound is not from 1e-15 to 1e",
        ),
        (lambda content, tensors: tensors[f"{DOWN}.weight"].view(-1)[-1].fill_(torch.nan), "not finite"),
        (
            lambda content, tensors: tensors.update({f"{DOWN}.weight": tensors[f"{DOWN}.weight"].half()}),
            "F16",
        ),
        (
            lambda content, tensors: tensors.update(
                {f"{DOWN}.weight": tensors[f"{DOWN}.weight"][:, :1].contiguous()}
            ),
            "load the model on the kind of device that the chip was programmed on",
        ),
    ],
)
def test_a_forged_chip_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object], said: str
) -> None:
    assert said in refusal(rewritten(tmp_path / "chip", change))


def test_what_is_no_chip_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing")
    assert "No such file" in refusal(Path("~no such home/chip"))
    assert "no regular file" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "no regular file" in refusal(tmp_path / "fifo")
    save_file({"x": torch.zeros(2)}, tmp_path / "other")
    assert "it is no chip of this project's" in refusal(tmp_path / "other")
    noise = random.Random(0).randbytes(1000)
    for content in (
        b"",
        b"x",
        noise,
        b"\xff" * 16,
        struct.pack("<Q", 2**26) + b"{}",
        b"\x02" + 7 * b"\0" + b"{}",
    ):
        (tmp_path / "noise").write_bytes(content)
        refusal(tmp_path / "noise")

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "pickle").write_bytes(pickle.dumps(Bomb()))
    refusal(tmp_path / "pickle")
    assert not (tmp_path / "executed").exists()
