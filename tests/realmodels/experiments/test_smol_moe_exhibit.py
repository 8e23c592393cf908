"""The exhibit of smol-moe: its units, its verdicts on answers that are known, and its drawing."""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from committed import assert_as_committed
from small_models import save, small_network

from figures.drawings import smol_moe as drawing
from realmodels.deploy import Chip
from realmodels.experiments import rig, smol_moe
from realmodels.experiments.smol_moe import (
    CURVES,
    DENSE_ANALOG,
    DIGITAL,
    EVERYTHING,
    NOTHING,
    PLACEMENTS,
    PRESETS,
    RULE_4_C,
    RULE_C,
    Config,
    Placed,
    summarise,
)
from realmodels.load import load
from realmodels.tasks import CONTINUATION, evaluate_tasks
from theory.evidence import Finding, Result

QUESTIONS, DRAWS, RIGHT = 200, 6, 0.6
TASKS = ("piqa", "boolq", "arc_easy", "hellaswag")
KNOWN = " on three tasks"
MAXNN = {fraction: Placed("maxnn", fraction) for fraction in (0.125, 0.25)}
REFERENCE = Config("smol-moe", "h", "cpu", "float32", TASKS, QUESTIONS, rig.NOISES[0], DIGITAL, 0.0, 0)
# Shares of the questions that become wrong: with no digital expert, with the dense modules analog, with others.
LOST = {NOTHING: 0.2, DENSE_ANALOG: 0.15, EVERYTHING: 0.004, MAXNN[0.125]: 0.1, MAXNN[0.25]: 0.05}
OTHERS, CONVERTERS = 0.12, 0.004


def answers(lost: float, seed: int) -> dict[str, Any]:
    """A unit in which so many of the digital model's right answers, other ones for each seed, are wrong."""
    generator, found = np.random.default_rng(seed), {}
    for task in TASKS:
        correct = np.arange(QUESTIONS) < RIGHT * QUESTIONS
        correct[generator.permutation(int(RIGHT * QUESTIONS))[: round(lost * QUESTIONS)]] = False
        found[task] = correct.astype(int).tolist()
    return {"tasks": found, "task_units": {task: list(range(QUESTIONS)) for task in TASKS}}


def made(
    lost: Mapping[Placed, float] = LOST, converters: float = CONVERTERS
) -> tuple[list[Config], list[dict[str, Any]]]:
    configs, records = [REFERENCE], [answers(0.0, 0)]

    def add(share: float, **changes: Any) -> None:
        configs.append(replace(REFERENCE, **changes))
        records.append(answers(share, changes.get("seed", 0)))

    for noise in rig.NOISES[:2]:
        add(converters, noise=noise, placed=NOTHING)
        add(converters, noise=noise, placed=EVERYTHING)
    for noise in rig.NOISES:
        for c in RULE_4_C:
            for seed in range(DRAWS):
                for placed in PLACEMENTS:
                    add(lost.get(placed, OTHERS), noise=noise, placed=placed, c=c, seed=seed)
    return configs, records


def summarised(lost: Mapping[Placed, float] = LOST, converters: float = CONVERTERS) -> Result:
    return summarise(*made(lost, converters))


def about(result: Result, *words: str) -> list[Finding]:
    """Findings on all tasks, unless words say otherwise."""
    return [
        each
        for each in result.findings
        if all(word in each.claim for word in words) and (KNOWN in words or KNOWN not in each.claim)
    ]


def test_every_rule_has_its_findings_once() -> None:
    result = summarised()
    assert_as_committed("figure-smol-moe", result)
    found = Counter(each.family for each in about(result))
    assert found == {
        "recovers": 2 * 3,
        "against baselines": 4 * 2 * 3,
        "control": 2 * 3,
        "dense against experts": 2 * 3,
        "converters": 2,
        "cost of noise": 3,
    }
    ours = {each.family for each in about(result) if each.origin == "ours"}
    assert ours == {"control", "cost of noise"}
    again = about(result, KNOWN)
    assert {each.origin for each in again} == {"ours"}
    assert Counter(each.family for each in again) == {
        family + KNOWN: number for family, number in found.items()
    }


@pytest.mark.parametrize(
    ("fraction", "lost", "verdict"),
    [(0.125, 0.1, "holds"), (0.25, 0.19, "fails"), (0.25, 0.2, "inconclusive")],
)
def test_the_verdict_on_what_is_recovered(fraction: float, lost: float, verdict: str) -> None:
    result = summarised({**LOST, MAXNN[fraction]: lost})
    found = about(result, "recovers", f"{fraction:.1%}")
    assert [each.verdict for each in found] == [verdict] * 3
    for each in found:
        assert each.estimate == pytest.approx((0.2 - lost) / 0.2)
        assert each.n == DRAWS


@pytest.mark.parametrize(("maxnn", "verdict"), [(0.02, "holds"), (0.19, "fails"), (OTHERS, "inconclusive")])
def test_the_verdicts_against_others(maxnn: float, verdict: str) -> None:
    result = summarised({**LOST, MAXNN[0.25]: maxnn})
    found = about(result, "MaxNNScore is better", "25.0%")
    assert len(found) == 5 * 3
    assert {each.verdict for each in found} == {verdict}
    assert found[0].estimate == pytest.approx(OTHERS - maxnn)


@pytest.mark.parametrize(("dense", "verdict"), [(0.25, "holds"), (0.02, "fails")])
def test_the_verdict_on_dense_modules(dense: float, verdict: str) -> None:
    found = about(summarised({**LOST, DENSE_ANALOG: dense}), "dense modules on analog hurt more")
    assert [each.verdict for each in found] == [verdict] * 6
    assert found[0].estimate == pytest.approx(dense - LOST[MAXNN[0.125]])


@pytest.mark.parametrize(
    ("converters", "verdict"), [(0.0, "holds"), (0.005, "inconclusive"), (0.05, "fails")]
)
def test_the_verdict_on_converters(converters: float, verdict: str) -> None:
    found = about(summarised(converters=converters), "converters")
    if converters:
        assert [each.verdict for each in found] == [verdict] * 2
        assert found[0].n == len(TASKS) * QUESTIONS
    assert found[0].estimate == pytest.approx(converters)


def test_noise_that_takes_nothing_has_nothing_to_recover() -> None:
    result = summarised(dict.fromkeys(PLACEMENTS, 0.0))
    assert {each.verdict for each in about(result, "costs accuracy")} == {"inconclusive"}
    assert {(each.estimate, each.interval) for each in about(result, "recovers")} == {(0.0, None)}


def test_curves_are_paired() -> None:
    for curve in summarised().data["curves"]:
        change = curve["accuracy"] - RIGHT
        assert curve["accuracy_change"] == pytest.approx(change)
        low, high = curve["accuracy_change_interval"]
        assert low <= change + 1e-12 and high >= change - 1e-12
        assert curve["accuracy"] == pytest.approx(np.mean(list(curve["each"].values())))
        if curve["strategy"] == "none" and curve["digital_fraction"] == 0 and curve["dense"]:
            assert curve["gain"] == 0.0


def test_three_tasks_are_judged_alone() -> None:
    """What is lost on the other task is nothing to them."""
    configs, records = made()
    changed = copy.deepcopy(records)
    for each in changed[1:]:
        each["tasks"]["boolq"] = [0] * QUESTIONS
    before, after = summarise(configs, records), summarise(configs, changed)
    assert [each.estimate for each in about(before, KNOWN)] == [each.estimate for each in about(after, KNOWN)]
    assert about(before, "costs accuracy")[0].estimate < about(after, "costs accuracy")[0].estimate
    assert about(before, KNOWN, "costs accuracy")[0].estimate == pytest.approx(LOST[NOTHING])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_grid(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chip serves all placements in turn; converters alone have no draws; the reference comes first."""

    class Loaded:
        weights_hash = "h"

    monkeypatch.setattr(rig, "_model", lambda name, device, dtype: Loaded)
    monkeypatch.setattr(smol_moe, "named_tasks", lambda tasks: TASKS)
    configs = smol_moe.grid(preset, seeds=3)
    settings = PRESETS[preset]
    assert configs[0].placed == DIGITAL
    assert len(set(configs)) == len(configs)
    alone = [each for each in configs[1:] if each.c == 0]
    assert [each.placed for each in alone] == [NOTHING, EVERYTHING] * len({n.w_max for n in settings.noises})
    noisy = [each for each in configs if each.c]
    chips = groupby(noisy, key=lambda each: (each.noise, each.c, each.seed))
    served = {chip: tuple(each.placed for each in units) for chip, units in chips}
    assert sum(map(len, served.values())) == len(noisy)  # no chip is made twice
    for (_, c, _), placed in served.items():
        assert placed == (PLACEMENTS if c == RULE_C else CURVES)
    at_rule = {each.seed for each in noisy if each.c == RULE_C}
    assert len(at_rule) == 3
    assert {each.seed for each in noisy} == at_rule


def test_the_pictures_and_the_table() -> None:
    result = summarised()
    assert len(drawing.draw(result).axes) == 3
    for draw, _ in drawing.PARTS.values():
        figure = draw(result)
        assert figure is not None and len(figure.axes) == 3
    assert drawing.draw_known(replace(result, data={**result.data, "curves on three tasks": None})) is None
    rows = drawing.table(result)
    assert len(rows) == len(result.data["curves"])
    assert set(TASKS) < rows[0].keys()


# On a model


def test_units_are_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The placement, the noise and the answers of the config, and a digital model afterwards."""
    folder = save(small_network(num_experts=8, max_position_embeddings=512), tmp_path)
    seen: list[Any] = []
    real = Chip.placed

    def spy(chip: Chip, placement: Any) -> Any:
        seen.append((placement, chip.hardware, chip.seed))
        return real(chip, placement)

    monkeypatch.setattr(Chip, "placed", spy)
    units = [
        replace(unit, questions=6)
        for unit in smol_moe.grid("quick", model=str(folder), seeds=2, tasks=CONTINUATION)
    ]
    chosen = {unit.placed: unit for unit in units if unit.c in (0.0, RULE_C)}
    assert chosen.keys() == {DIGITAL, EVERYTHING, *PLACEMENTS}
    digital = smol_moe.measure(chosen[DIGITAL])
    assert not seen
    plain = evaluate_tasks(load(folder), [CONTINUATION], 6)[CONTINUATION]
    assert digital == {
        "tasks": {CONTINUATION: [int(each) for each in plain.correct]},
        "task_units": {CONTINUATION: list(plain.units)},
    }
    for placed in (NOTHING, DENSE_ANALOG, EVERYTHING, MAXNN[0.25]):
        smol_moe.measure(chosen[placed])
        placement, hardware, seed = seen[-1]
        unit = chosen[placed]
        assert (hardware.c, hardware.w_max, hardware.programming) == (
            unit.c,
            unit.noise.w_max,
            unit.noise.programming,
        )
        assert seed == unit.seed
        assert [len(each) for each in placement.digital_experts] == [round(8 * placed.digital_fraction)] * 2
        assert bool(placement.analog_modules) == (not placed.dense)
    assert smol_moe.measure(chosen[DIGITAL]) == digital
