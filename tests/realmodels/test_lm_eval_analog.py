"""lm-eval knows a deployed model, and its numbers are those of the project's own path."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager
from small_models import TEXTS, save, small_network

from realmodels import deploy, expected_damage, load, save_chip, scores, tasks
from realmodels.lm_eval_analog import AnalogLM
from realmodels.plan import plan
from realmodels.tasks import CONTINUATION, FOLDER, evaluate_tasks
from realmodels.text import read_text
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import place

QUESTIONS = 12
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model whose context is long enough for a question, and a text to calibrate with."""
    folder = tmp_path_factory.mktemp("analog")
    save(small_network(max_position_embeddings=512), folder)
    (folder / "text").write_text("\n\n".join(TEXTS))
    return folder


def test_scores_are_those_of_our_own_path(folder: Path) -> None:
    model = load(folder)
    texts = read_text(folder / "text")
    damage = expected_damage(model, texts, Hardware(c=2.5))
    placement = place(damage, 0.5, analog_modules=["attention"])
    deploy(model, placement, Hardware(c=2.5, tile_size=16), texts, seed=7)
    wanted = evaluate_tasks(model, [CONTINUATION], QUESTIONS)[CONTINUATION]
    arguments = {
        "pretrained": str(folder),
        "hardware": "paper",
        "tile_size": 16,
        "score": "expected_damage",
        "digital_fraction": 0.5,
        "analog_modules": "attention",
        "calibration": str(folder / "text"),
        "seed": 7,
        "device": "cpu",
    }
    with tasks._quiet_lm_eval():
        count = len(tasks._load(CONTINUATION)[CONTINUATION].task_docs)
        chosen = [place for _, place in tasks._chosen({CONTINUATION: count}, QUESTIONS)]
        found: Any = lm_eval.simple_evaluate(
            model="analog",
            model_args=arguments,
            tasks=[CONTINUATION],
            task_manager=TaskManager(include_path=FOLDER, include_defaults=False),
            samples={CONTINUATION: chosen},
            bootstrap_iters=0,
        )
    by_question = {each["doc_id"]: each["acc"] for each in found["samples"][CONTINUATION]}
    assert [by_question[place] for place in sorted(by_question)] == [
        dict(zip(chosen, wanted.correct, strict=True))[place] for place in sorted(chosen)
    ]
    assert found["results"][CONTINUATION]["acc,none"] == pytest.approx(wanted.accuracy)
    on = model.deployment
    assert on is not None
    chip = found["config"]["chip"]
    assert (chip["seed"], chip["hardware"]["c"], chip["hardware"]["tile_size"]) == (7, 2.5, 16)
    assert chip["placement"]["digital_experts"] == on.placement.digital_experts
    assert found["config"]["model_weights_hash"] == model.weights_hash


def test_a_kept_chip_and_a_kept_placement(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    texts = read_text(folder / "text")
    placement = place(scores(model), 0.5)
    placement.save(tmp_path / "placement.json", model)
    deploy(model, placement, Hardware(), texts, seed=0)
    save_chip(model, tmp_path / "chip")
    tokens = torch.arange(40)[None]
    kept = AnalogLM(str(folder), chip=str(tmp_path / "chip"), device="cpu")
    placed = AnalogLM(
        str(folder),
        placement=str(tmp_path / "placement.json"),
        calibration=str(folder / "text"),
        device="cpu",
    )
    for each in (kept, placed):
        assert torch.equal(each.model(tokens).logits, model.network(tokens).logits)
        assert each.get_model_info()["chip"]["seed"] == 0


def test_a_plan_names_placement_and_hardware(folder: Path, tmp_path: Path) -> None:
    model = load(folder)
    texts = read_text(folder / "text")
    hardware = Hardware(c=1.5, tile_size=16)
    found = plan(model, hardware, texts=TEXTS[6:], calibration=TEXTS[:6], draws=2, digital_parameters="30%")
    (tmp_path / "plan.json").write_text(found.to_json())
    planned = AnalogLM(
        str(folder), plan=str(tmp_path / "plan.json"), calibration=str(folder / "text"), seed=3, device="cpu"
    )
    deploy(model, found.placement, hardware, texts, seed=3)
    tokens = torch.arange(40)[None]
    assert torch.equal(planned.model(tokens).logits, model.network(tokens).logits)
    with pytest.raises(InputError, match=r"plan file .* is of the model .*, not of tiny-olmoe"):
        AnalogLM("tiny-olmoe", plan=str(tmp_path / "plan.json"), device="cpu")


def test_a_placement_that_names_hardware_is_on_it(folder: Path, tmp_path: Path) -> None:
    """Unless an argument names some."""
    file, model = tmp_path / "placement.json", load(folder)
    place(scores(model), 0.5).save(file, model, hardware=Hardware(c=1.5, tile_size=16))
    usual: dict[str, Any] = {
        "placement": str(file),
        "calibration": str(folder / "text"),
        "device": "cpu",
    }
    cases: tuple[tuple[dict[str, Any], float], ...] = (
        ({}, 1.5),
        ({"hardware": "paper"}, 2.5),
        ({"c": 0.5}, 0.5),
    )
    for arguments, c in cases:
        chip = AnalogLM(str(folder), **usual, **arguments).get_model_info()["chip"]
        assert chip["hardware"]["c"] == c and (chip["hardware"]["tile_size"] == 16) == (not arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pretrained": "no-such-model"}, "model no-such-model: neither a folder"),
        ({"hardware": "pmc"}, "did you mean pcm?"),
        ({"tile": 64}, "'tile' is no field of hardware; give some of programming"),
        ({"c": "much"}, "hardware.c is 'much'"),
        ({"score": "best"}, "score is 'best': give one of maxnn"),
        ({"digital_fraction": 2}, "digital_fraction is 2: give a number from 0 to 1"),
        ({"analog_modules": "atention"}, "matches no dense module"),
        ({"chip": "a", "seed": 0}, "chip and seed: the former says the latter; leave one of them out"),
        ({"chip": "a", "placement": "b"}, "chip and placement:"),
        ({"placement": "b", "score": "maxnn"}, "placement and score:"),
        ({"plan": "a", "c": 2}, "plan and c:"),
        ({"plan": "a", "placement": "b"}, "plan and placement:"),
        ({"plan": "missing.json"}, "plan file missing.json cannot be read"),
        ({"placement": "missing.json"}, "placement file missing.json cannot be read"),
        ({"chip": "missing"}, "chip file missing"),
        ({"chip": 5}, "chip file 5"),
        ({"placement": 5}, "placement file 5 cannot be read"),
        ({"hardware": 5}, "hardware '5': give one of pcm"),
        ({"analog_modules": 5}, "matches no dense module"),
        ({"calibration": "missing"}, "text file missing cannot be read"),
        ({"dtype": "int64"}, "dtype is 'int64'"),
        ({"dtype": "save"}, "dtype is 'save'"),
        ({"seed": 0.5}, "seed is 0.5: give a whole number"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder: Path, arguments: dict[str, Any], said: str) -> None:
    usual = {"pretrained": str(folder), "calibration": str(folder / "text"), "device": "cpu"}
    if "chip" in arguments:
        del usual["calibration"]
    with pytest.raises(InputError) as caught:
        AnalogLM(**usual | arguments)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "realmodels.lm_eval_analog", "--model", "analog", "--model_args"]
    rest = ["--tasks", CONTINUATION, "--include_path", str(FOLDER), "--limit", "4", "--device", "cpu"]
    arguments = f"pretrained={folder},calibration={folder / 'text'},hardware=hermes,c=2"

    def run(arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*command, arguments, *rest, "--output_path", str(tmp_path / "results.json")],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    ran = run(arguments)
    assert ran.returncode == 0, ran.stderr
    assert CONTINUATION in ran.stdout and "analog" in ran.stdout
    (file,) = tmp_path.rglob("results*.json")
    hardware = json.loads(file.read_text())["config"]["chip"]["hardware"]
    assert (hardware["programming"], hardware["c"], hardware["w_max"]) == ("hermes", 2.0, "column")
    refused = run(f"{arguments},tile=3")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "error: 'tile' is no field of hardware" in refused.stderr.splitlines()[-1]
