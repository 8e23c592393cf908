"""The exhibit of tasks: its units, its verdicts on data with known answers, and its drawing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from committed import assert_as_committed
from small_models import save, small_network

from figures.drawings import tasks as drawing
from realmodels.deploy import Chip
from realmodels.experiments import rig, tasks
from realmodels.experiments.rig import Noise
from realmodels.experiments.tasks import PLACEMENTS, RULE_C, Config, grid, measure, summarise
from realmodels.load import load
from realmodels.tasks import CONTINUATION, evaluate_tasks
from realmodels.text import held_out, text_hash
from theory.errors import InputError
from theory.evidence import Finding, Result, mean_interval, two_way_interval

QUESTIONS, DRAWS = 400, 6
DIGITAL = 0.7
LOSS = {("none", 0.0): 0.2, ("maxnn", 0.125): 0.1, ("maxnn", 0.25): 0.05, ("random", 0.25): 0.15}
REFERENCE = Config("tiny-olmoe", "h", "t", "cpu", QUESTIONS, rig.NOISES[0], None, 1.0, 0.0, 0)
PAPER = "MaxNNScore"


def records(
    loss: dict[Any, float], digital: float = DIGITAL, noises: Sequence[Noise] = rig.NOISES[:1]
) -> tuple[list[Config], list[dict[str, Any]]]:
    """Units that lose a share of the questions that the digital model gets right: `loss` at RULE_C, .01 elsewhere.

    Each noise after the first one costs half as much as the one before.
    """
    right = int(digital * QUESTIONS)

    def correct(wrong: float, seed: int) -> dict[str, Any]:
        answers = np.arange(QUESTIONS) < right
        lost = np.random.default_rng(seed).permutation(right)[: round(wrong * QUESTIONS)]
        answers[lost] = False
        return {"correct": answers.astype(int).tolist(), "documents": list(range(QUESTIONS))}

    configs, found = [REFERENCE], [correct(0.0, 0)]
    for (number, noise), (strategy, fraction), c in product(enumerate(noises), PLACEMENTS, (1.5, RULE_C)):
        for draw in range(DRAWS):
            placed = replace(REFERENCE, strategy=strategy, digital_fraction=fraction, c=c)
            configs.append(replace(placed, noise=noise, seed=draw))
            found.append(correct(0.5**number * loss[strategy, fraction] if c == RULE_C else 0.01, draw))
    return configs, found


def about(result: Result, words: str) -> list[Finding]:
    return [finding for finding in result.findings if words in finding.claim]


@pytest.mark.parametrize(("digital", "verdict"), [(0.7, "holds"), (0.15, "fails"), (0.26, "inconclusive")])
def test_the_verdict_on_chance(digital: float, verdict: str) -> None:
    result = summarise(*records(dict.fromkeys(PLACEMENTS, 0.0), digital, rig.NOISES))
    assert_as_committed("figure-tasks", result)
    (finding,) = about(result, "better than chance")
    assert (finding.verdict, finding.n) == (verdict, QUESTIONS)
    assert finding.estimate == pytest.approx(digital, abs=1 / QUESTIONS)


@pytest.mark.parametrize(("none", "verdict"), [(0.2, "holds"), (0.0, "inconclusive")])
def test_the_verdict_on_the_cost_of_noise(none: float, verdict: str) -> None:
    (finding,) = about(summarise(*records({**LOSS, ("none", 0.0): none})), "noise on all experts costs")
    assert (finding.verdict, finding.n) == (verdict, DRAWS)
    assert finding.estimate == pytest.approx(none)


@pytest.mark.parametrize(
    ("maxnn", "gains", "third"),
    [
        (0.05, "holds", "holds"),
        (0.19, "holds", "fails"),
        (0.2, "inconclusive", "inconclusive"),  # the same answers: without any spread nothing is decided
        (0.3, "fails", "fails"),
    ],
)
def test_the_verdicts_on_the_recovered_accuracy(maxnn: float, gains: str, third: str) -> None:
    """Each budget of digital experts has verdicts of its own; those of the other budget stay."""
    for fraction, share in ((0.125, "12.5%"), (0.25, "25.0%")):
        result = summarise(*records({**LOSS, ("maxnn", fraction): maxnn}))
        recovers, ratio = (
            finding for finding in about(result, f"{PAPER} recovers") if share in finding.claim
        )
        assert (recovers.verdict, ratio.verdict) == (gains, third)
        assert recovers.estimate == pytest.approx(0.2 - maxnn)
        assert ratio.estimate == pytest.approx((0.2 - maxnn) / 0.2)


@pytest.mark.parametrize(("random", "verdict"), [(0.15, "holds"), (0.0025, "fails"), (0.05, "inconclusive")])
def test_the_verdict_on_random_choice(random: float, verdict: str) -> None:
    (finding,) = about(
        summarise(*records({**LOSS, ("random", 0.25): random, ("maxnn", 0.25): 0.05})), "random choice"
    )
    assert finding.verdict == verdict and finding.estimate == pytest.approx(random - 0.05)


def test_each_noise_is_judged_by_itself() -> None:
    findings = about(summarise(*records(LOSS, noises=rig.NOISES)), "noise on all experts costs")
    assert [finding.estimate for finding in findings] == pytest.approx([0.2, 0.1, 0.05])
    for finding, noise in zip(findings, rig.NOISES, strict=True):
        assert finding.claim.endswith(f"; tiny-olmoe, {noise}")
    assert len(summarise(*records(LOSS, noises=rig.NOISES)).findings) == 1 + 6 * len(rig.NOISES)


def test_nothing_lost_bounds_no_ratio() -> None:
    findings = about(summarise(*records(dict.fromkeys(PLACEMENTS, 0.0))), "a third")
    assert [(finding.verdict, finding.interval) for finding in findings] == [("inconclusive", None)] * 2
    assert [finding.estimate for finding in findings] == [0.0, 0.0]


def test_curves_are_paired_over_draws_and_questions() -> None:
    configs, found = records(LOSS)
    result = summarise(configs, found)
    digital = np.array(found[0]["correct"])

    def table(strategy: str, fraction: float) -> Any:
        return np.array(
            [
                record["correct"]
                for config, record in zip(configs, found, strict=True)
                if (config.strategy, config.digital_fraction, config.c) == (strategy, fraction, RULE_C)
            ]
        )

    none = table("none", 0.0)
    curves = {
        (curve["strategy"], curve["digital_fraction"]): curve
        for curve in result.data["curves"]
        if curve["c"] == RULE_C
    }
    assert curves.keys() == set(PLACEMENTS) and len(result.data["curves"]) == 2 * len(PLACEMENTS)
    for key, curve in curves.items():
        values = table(*key)
        for name, expected in (
            ("accuracy", values),
            ("accuracy_change", values - digital),
            ("gain", values - none),
        ):
            assert curve[name] == pytest.approx(expected.mean())
            assert curve[f"{name}_interval"] == pytest.approx(two_way_interval(expected))
    assert result.data["digital"]["accuracy_interval"] == list(mean_interval(digital))
    assert (result.data["questions"], result.data["chance"]) == (QUESTIONS, 0.25)


def test_documents_are_the_units_of_questions() -> None:
    """The same question asked twice of every document tells nothing new."""
    configs, found = records(LOSS)
    twice = [{name: value * 2 for name, value in record.items()} for record in found]
    one, two = (summarise(configs, each).findings for each in (found, twice))
    for mine, theirs in zip(one, two, strict=True):
        assert (mine.claim, mine.n, mine.verdict) == (theirs.claim, theirs.n, theirs.verdict)
        assert mine.interval == pytest.approx(theirs.interval, rel=1e-9)


def test_three_documents_decide_nothing() -> None:
    """However many questions and draws there are."""
    configs, found = records(LOSS)
    few = [record | {"documents": [number % 3 for number in record["documents"]]} for record in found]
    for finding in summarise(configs, few).findings:
        assert (finding.n, finding.verdict) == (3, "inconclusive")


def test_the_picture_shows_every_placement_and_the_papers_claim() -> None:
    result = summarise(*records(LOSS, noises=rig.NOISES))
    figure = drawing.draw(result)
    assert len(figure.axes) == 2 * len(rig.NOISES)
    change, gain, weaker, _ = figure.axes[:4]
    half = np.asarray(weaker.containers[0].lines[0].get_ydata())  # type: ignore[attr-defined]
    assert half[-1] == pytest.approx(-0.1)  # the second noise's
    assert set(drawing.LABELS) == set(PLACEMENTS)
    labels = list(drawing.LABELS.values())
    assert [each.get_label() for each in change.containers] == labels
    assert [each.get_label() for each in gain.containers] == labels[1:]
    for axis, start, expected in ((change, 0, [-0.2, -0.1, -0.05, -0.15]), (gain, 1, [0.1, 0.15, 0.05])):
        for container, value in zip(axis.containers, expected, strict=True):
            points = np.asarray(container.lines[0].get_ydata())  # type: ignore[attr-defined]
            assert points[-1] == pytest.approx(value), start
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["c = 1.5", "c = 2.5"]
    assert "Published" in drawing.CAPTION
    assert any(f"{QUESTIONS} questions" in text.get_text() for text in figure.texts)
    rows = drawing.table(result)
    assert len(rows) == len(result.data["curves"]) and all(row.keys() == rows[0].keys() for row in rows)
    assert all(row["gain_low"] <= row["gain"] <= row["gain_high"] for row in rows)


# On a model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model whose context holds the questions."""
    return save(
        small_network(num_experts=8, max_position_embeddings=512), tmp_path_factory.mktemp("small model")
    )


@pytest.fixture(scope="module")
def units(folder: Path) -> list[Config]:
    return grid("quick", model=str(folder), seeds=2)


def test_the_grid_shares_everything_but_what_is_compared(units: list[Config]) -> None:
    assert len(set(units)) == len(units) == 1 + 2 * len(PLACEMENTS)
    reference = units[0]
    assert reference.strategy is None and reference.text_hash == text_hash(held_out("evaluation"))
    for unit in units[1:]:
        assert unit.strategy is not None
        assert replace(unit, strategy=None, digital_fraction=1.0, c=0.0, seed=0) == reference


def test_every_rule_is_judged_at_every_preset(folder: Path) -> None:
    for preset, settings in tasks.PRESETS.items():
        assert RULE_C in settings.magnitudes
        made = grid(preset, model=str(folder))
        noises = len(settings.noises)
        assert len(made) == 1 + len(PLACEMENTS) * len(settings.magnitudes) * settings.draws * noises
        assert {unit.questions for unit in made} == {settings.questions}
    assert tasks.PRESETS["full"].draws >= 8 and tasks.PRESETS["full"].questions is None


def test_units_are_what_they_say(units: list[Config], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The placement and the noise of the config, lm-eval's answers, and a digital model afterwards."""
    seen: dict[Config, Any] = {}
    real = Chip.placed

    def spy(chip: Chip, placement: Any) -> Any:
        seen[unit] = (placement.digital_experts, chip.hardware, chip.seed)
        return real(chip, placement)

    monkeypatch.setattr(Chip, "placed", spy)
    small = [replace(unit, questions=6) for unit in units]
    small[-1] = replace(small[-1], noise=rig.NOISES[-1])
    answers = {}
    for unit in small:
        answers[unit] = measure(unit)
    assert measure(small[0]) == answers[small[0]]
    plain = evaluate_tasks(load(folder), [CONTINUATION], 6)[CONTINUATION].correct
    assert answers[small[0]]["correct"] == [int(each) for each in plain]
    assert all(set(each["correct"]) <= {0, 1} and len(each["correct"]) == 6 for each in answers.values())
    model = load(folder)
    score = rig.scores_of(model, "maxnn")
    for unit, (digital, hardware, seed) in seen.items():
        assert seed == unit.seed
        assert (hardware.c, Noise(hardware.programming, hardware.w_max)) == (unit.c, unit.noise)
        for row, chosen in zip(score, digital, strict=True):
            assert len(chosen) == round(unit.digital_fraction * len(row))
            if unit.strategy == "maxnn":
                rest = [expert for expert in range(len(row)) if expert not in chosen]
                assert row[list(chosen)].min() >= row[rest].max()
    random = [digital for unit, (digital, *_) in seen.items() if unit.strategy == "random"]
    assert len(seen) == len(units) - 1 and random[0] != random[1]


def test_one_draw_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="--seeds 1: .*at least 2"):
        grid("quick", model=str(folder), seeds=1)
