"""Does the mutation test change every formula, verdict and separation, and is nothing left uncaught?"""

import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from inspect import getmembers, isfunction
from pathlib import Path

import pytest
from mutants import DECIDING, EQUIVALENT, EXHIBITS, FORMULAS, MODULES, Mutant, judge_all, mutants

from theory.claims import CLAIMS

OF_A_FUNCTION = 4  # mutants of each function that this test judges; `python tests/mutants.py` judges all
OF_ALL_VERDICTS = 24
LEAST = 60


@cache
def every_mutant() -> list[Mutant]:
    return [mutant for module in MODULES for mutant in mutants(module)]


def mutant(name: str) -> Mutant:
    return next(each for each in every_mutant() if each.name == name)


def test_every_claim_has_mutants_and_every_mutant_is_one_of_its_own() -> None:
    found = every_mutant()
    assert {claim for each in found for claim in each.claims} == {claim.id for claim in CLAIMS}
    assert len({each.name for each in found}) == len({each.source for each in found}) == len(found)
    assert set(EQUIVALENT) <= {each.name for each in found}


@pytest.mark.parametrize("module", ["theory.moments", "theory.growth"])
def test_no_formula_is_left_out(module: str) -> None:
    def own(value: object) -> bool:
        return isfunction(value) and value.__module__ == module

    assert set(FORMULAS[module]) == {name for name, _ in getmembers(import_module(module), own)}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "theory.growth.growth_rate: eta * gate * frequency / (2 * m) -> eta * gate * frequency",
            "    return (eta * gate * frequency)",
        ),
        ("theory.growth.dead_probability: 2 ** m -> 2", "    return 1 / (2)"),
        (
            "theory.growth.norm_ratio: 1 + leaked ** 2 -> 1 - leaked ** 2",
            "    return own_ratio / sqrt((1 - leaked ** 2))",
        ),
        ("theory.growth.own_token_weight: rate * steps -> steps", "    return initial + (steps)"),
    ],
)
def test_a_mutant_differs_in_what_its_name_says(name: str, line: str) -> None:
    source = Path(import_module("theory.growth").__file__ or "").read_text().splitlines()
    assert [each for each in mutant(name).source.splitlines() if each not in source] == [line]


@pytest.mark.parametrize("module", [*DECIDING, *EXHIBITS])
def test_verdicts_are_made_in_functions_that_have_mutants(module: str) -> None:
    found = [each for each in every_mutant() if each.module == module and not each.claims]
    assert len(found) >= 5 and all(each.tests and each.seconds for each in found)


@pytest.mark.parametrize(
    "name",
    [
        "realmodels.experiments.better_score._losses: 'copies' -> 'evaluation'",
        "realmodels.experiments.better_score._Search.__init__: 'search' -> 'evaluation'",
        "realmodels.experiments.better_score._Search.scores: 'calibration' -> 'evaluation'",
        "realmodels.experiments.rig._calibrated_by: 'calibration' -> 'evaluation'",
        "realmodels.experiments.rig._documents: 'evaluation' -> 'calibration'",
        "realmodels.experiments.figure_6.CLEAR: 0.5 -> 0.55",
        "synthetic.experiments.placement.measure: 'search' -> 'evaluation'",
    ],
)
def test_separations_and_thresholds_have_mutants(name: str) -> None:
    assert any(each.name == name for each in every_mutant())


@pytest.mark.slow
def test_what_catches_a_mutant() -> None:
    by_step, by_test, unseen = (
        mutant(name)
        for name in (
            "theory.growth.growth_rate: 2 -> 3",
            "theory.moments._ratio: sigma != 0 -> sigma == 0",
            "theory.growth.weight_ratio: 1 -> 2",
        )
    )
    broken = Mutant("no program", "theory.growth", ("G",), "1 / 0")
    same = Mutant(
        "no mutant",
        "theory.growth",
        ("G-token",),
        Path(import_module("theory.growth").__file__ or "").read_text(),
    )
    caught = {each.name: by for each, by in judge_all([by_step, by_test, unseen, broken, same], workers=2)}
    assert caught[by_step.name].startswith("step: -E dL/dw")
    assert caught[by_test.name].endswith("test_moments.py::test_without_noise_tensors_are_certain")
    assert caught[unseen.name] == caught[same.name] == ""
    assert caught[broken.name] == "does not load: ZeroDivisionError: division by zero"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_are_caught() -> None:
    command = [sys.executable, str(Path(__file__).with_name("mutants.py"))]
    command += ["--most", str(OF_A_FUNCTION), "--verdicts", str(OF_ALL_VERDICTS)]
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root}
    shown = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stdout[-4000:] + shown.stderr
    summary = shown.stdout.splitlines()[-1]
    assert summary.startswith("all: ") and int(summary.split()[1]) >= LEAST, summary
