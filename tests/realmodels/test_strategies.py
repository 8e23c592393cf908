"""Figures 4 and 5: their units, their verdicts on data with known answers, and their drawing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from figures import strategies as drawing
from realmodels.experiments import shared, strategies
from realmodels.experiments.strategies import FRACTIONS, RULE_C, STRATEGIES, Config, grid, measure, summarise
from realmodels.load import load
from theory.errors import InputError
from theory.evidence import Finding, Result
from theory.placement import Strategy

BLOCKS, DRAWS = 6, 4
DAMAGE: dict[Strategy, float] = dict.fromkeys(STRATEGIES, 0.08) | {"none": 0.1, "maxnn": 0.05, "minnn": 0.09}


def records(
    damage: dict[Strategy, float], spread: float = 0.0005, seed: int = 0
) -> tuple[list[Config], list[dict[str, Any]]]:
    """Units whose loss increase is c * damage on average, with effects of draw and block."""
    generator = np.random.default_rng(seed)
    digital = 2 + generator.random(BLOCKS)
    reference = Config("m", "h", "t", "th", "cpu", BLOCKS, 32, "tile", None, 1.0, 0.0, 0)
    configs, found = [reference], [{"loss": list(digital), "accuracy": [0.5] * BLOCKS}]
    for w_max in shared.GRANULARITIES:
        for strategy, fraction in [("none", 0.0), *((each, f) for f in FRACTIONS for each in STRATEGIES)]:
            for c in (1.0, RULE_C):
                for draw in range(DRAWS):
                    noise = spread * (generator.standard_normal(BLOCKS) + generator.standard_normal())
                    configs.append(
                        replace(
                            reference,
                            w_max=w_max,
                            strategy=strategy,
                            digital_fraction=fraction,
                            c=c,
                            seed=draw,
                        )
                    )
                    increase = c * (damage[strategy] + noise)
                    found.append({"loss": list(digital + increase), "accuracy": [0.5 - 0.1 * c] * BLOCKS})
    return configs, found


def about(result: Result, words: str) -> list[Finding]:
    return [finding for finding in result.findings if words in finding.claim]


@pytest.mark.parametrize(
    ("maxnn", "verdict"), [(0.05, "holds"), (0.09, "fails"), (0.1 * (1 - 1 / 3), "inconclusive")]
)
def test_the_verdict_on_the_recovered_loss(maxnn: float, verdict: str) -> None:
    findings = about(summarise(*records(DAMAGE | {"maxnn": maxnn}, spread=0.001)), "recovers a third")
    assert [finding.verdict for finding in findings] == [verdict] * 4  # two granularities, two budgets
    for finding in findings:
        assert finding.estimate == pytest.approx(1 - maxnn / 0.1, abs=0.05) and finding.n == DRAWS


@pytest.mark.parametrize(("baseline", "verdict"), [(0.08, "holds"), (0.03, "fails"), (0.05, "inconclusive")])
def test_the_verdict_on_a_baseline(baseline: float, verdict: str) -> None:
    findings = about(summarise(*records(DAMAGE | {"router_norm": baseline})), "router norm")
    assert [finding.verdict for finding in findings] == [verdict] * 4
    for finding in findings:
        assert finding.estimate == pytest.approx(RULE_C * (0.05 - baseline), abs=0.01)


def test_every_baseline_and_the_reverse_are_judged() -> None:
    claims = [finding.claim for finding in summarise(*records(DAMAGE)).findings]
    assert len(claims) == len(set(claims)) == 2 * len(FRACTIONS) * len(STRATEGIES)
    assert sum("its own reverse" in claim and claim.startswith("[ours]") for claim in claims) == 4


def test_the_picture_shows_every_curve_and_the_papers_claim() -> None:
    result = summarise(*records(DAMAGE))
    figure = drawing.draw(result)
    assert len(figure.axes) == 2 * len(FRACTIONS) * 3
    labels = list(drawing.LABELS.values())
    for row in range(4):
        loss, accuracy, recovered = figure.axes[3 * row : 3 * row + 3]
        for axis, expected in ((loss, labels), (accuracy, labels), (recovered, labels[1:])):
            assert [line.get_label() for line in axis.lines] == expected
        assert np.asarray(loss.lines[0].get_xdata()).tolist() == [1.0, RULE_C]
        assert np.asarray(recovered.lines[0].get_ydata())[-1] == pytest.approx(0.5, abs=0.05)
    assert "Published" in figure.get_suptitle()
    rows = drawing.table(result)
    assert len(rows) == len(result.data["curves"]) and all(len(row) == len(rows[0]) for row in rows)


# On a model


@pytest.fixture(scope="module")
def units(small_model_folder: Path) -> list[Config]:
    return grid("quick", model=str(small_model_folder), seeds=2)


def test_the_grid_shares_everything_but_what_is_compared(units: list[Config]) -> None:
    assert len(set(units)) == len(units) == 1 + 2 * 2 * (1 + len(FRACTIONS) * len(STRATEGIES))
    reference = units[0]
    assert reference.strategy is None and all(unit.strategy is not None for unit in units[1:])
    for unit in units[1:]:
        same: dict[str, Any] = {
            "w_max": reference.w_max,
            "strategy": None,
            "digital_fraction": 1.0,
            "c": 0.0,
            "seed": 0,
        }
        assert replace(unit, **same) == reference


def test_every_rule_is_judged_at_every_preset() -> None:
    for settings in strategies.PRESETS.values():
        assert RULE_C in settings.magnitudes
    assert strategies.PRESETS["full"].draws >= 16


def test_digital_experts_are_the_ones_that_the_strategy_ranks_first(
    units: list[Config], monkeypatch: pytest.MonkeyPatch, small_model_folder: Path
) -> None:
    """Statistics are of calibration text; random ones differ between draws; none means none."""
    placements: dict[Config, Any] = {}
    real = strategies.deployed

    def spy(model: Any, placement: Any, *arguments: Any, **options: Any) -> Any:
        placements[unit] = placement.digital_experts
        return real(model, placement, *arguments, **options)

    monkeypatch.setattr(strategies, "deployed", spy)
    chosen = [unit for unit in units if unit.w_max == "tile" and unit.digital_fraction in (0.0, 0.25)]
    for unit in chosen:
        measure(unit)
    model = load(small_model_folder)
    by_strategy: dict[Any, list[Any]] = {}
    for unit, placed in placements.items():
        by_strategy.setdefault(unit.strategy, []).append(placed)
    assert by_strategy["none"] == [((),) * len(model.map.moe_layers)] * 2
    assert by_strategy["random"][0] != by_strategy["random"][1]
    assert by_strategy["maxnn"][0] != by_strategy["minnn"][0]
    texts = model.texts("calibration")
    for strategy in ("maxnn", "activation_frequency", "activation_weight", "router_norm"):
        first, second = by_strategy[strategy]
        assert first == second
        for row, digital in zip(shared.statistics.scores(model, strategy, texts), first, strict=True):
            rest = [expert for expert in range(len(row)) if expert not in digital]
            assert len(digital) == len(row) // 4 and row[list(digital)].min() >= row[rest].max()


def test_units_are_reproducible_and_leave_the_model_digital(units: list[Config]) -> None:
    reference, noisy = measure(units[0]), measure(units[1])
    assert noisy["loss"] != reference["loss"]
    assert measure(units[0]) == reference and measure(units[1]) == noisy


def test_one_draw_is_refused(small_model_folder: Path) -> None:
    with pytest.raises(InputError, match="--seeds 1: .*at least 2"):
        grid("quick", model=str(small_model_folder), seeds=1)
