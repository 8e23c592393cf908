"""The exhibit `better-score`: its verdicts on records with known answers, its search, its drawing, one real unit."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from committed import assert_as_committed
from hypothesis import given
from hypothesis import strategies as st

from figures.drawings import better_score as drawing
from realmodels.experiments import better_score, rig
from realmodels.experiments.better_score import (
    ACROSS,
    CLOSED_FORMS,
    LARGE,
    NONE,
    REFERENCE,
    RULE_C,
    RULE_FRACTIONS,
    STRATEGIES,
    Config,
    grid,
    measure,
    summarise,
)
from realmodels.load import load
from theory.errors import InputError
from theory.evidence import Finding, Result
from theory.hardware import PROGRAMMING_NOISE, Hardware, programming_sigma

BLOCKS, DRAWS = 6, 5
CONFIG = Config(
    "tiny-olmoe", "h", "t", "th", "cpu", BLOCKS, 32,
    w_max="tile", programming="pcm", bits=8, magnitudes=(1.0, RULE_C), fractions=RULE_FRACTIONS,
    seeds=tuple(range(DRAWS)),
    search_draws=1, search_blocks=2, rounds=1,
)  # fmt: skip
NOTHING = 0.2
LOSSES = dict.fromkeys(STRATEGIES, 0.15) | {
    CLOSED_FORMS[0]: 0.11,
    CLOSED_FORMS[1]: 0.12,
    REFERENCE: 0.1,
    "copied": 0.16,
    "digital and copied": 0.1,
}


def record(config: Config, losses: dict[str, float], shifted: float = 0.18, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    digital = 2 + rng.random(BLOCKS)
    common = 0.02 * (rng.standard_normal((DRAWS, 1)) + rng.standard_normal(BLOCKS))

    def table(increase: float, c: float) -> list[list[float]]:
        own = 1e-4 * rng.standard_normal((DRAWS, BLOCKS))
        return (digital + c / RULE_C * (increase + increase * common) + own).tolist()

    values = [(NONE, 0.0, NOTHING), ("shift subtracted", 0.0, shifted)]
    values += [(label, fraction, value) for label, value in losses.items() for fraction in config.fractions]
    return {
        "digital": digital.tolist(),
        "documents": list(range(BLOCKS)),
        "losses": [
            {"label": label, "fraction": fraction, "c": c, "loss": table(value, c)}
            for label, fraction, value in values
            for c in config.magnitudes
        ],
        "magnitudes": {str(c): c for c in config.magnitudes},
        "agreement": {"maxnn": [0.1, 0.2, 0.15], "damage": [0.7, 0.8, 0.75]},
        "damage": [[0.0]],
    }


def result(losses: dict[str, float] = LOSSES, shifted: float = 0.18, model: str = CONFIG.model) -> Result:
    configs = [CONFIG, replace(CONFIG, w_max="column"), replace(CONFIG, bits=4, magnitudes=(RULE_C,))]
    configs = [replace(config, model=model) for config in configs]
    return summarise(configs, [record(config, losses, shifted) for config in configs])


def about(found: Result, words: str) -> list[Finding]:
    return [finding for finding in found.findings if words in finding.claim]


@pytest.mark.claim("D")
def test_a_score_that_loses_less_is_better() -> None:
    found = result()
    assert_as_committed("figure-better-score", found)
    assert_as_committed("figure-better-score-deepseek", result(model="tiny-deepseek-moe"))
    better = about(found, "loses less than")
    assert len(better) == 2 * 2 * 2 * 2 and {finding.verdict for finding in better} == {"holds"}
    for finding in better:
        expected = LOSSES[CLOSED_FORMS["gradient" in finding.claim]] - 0.15
        assert finding.estimate == pytest.approx(expected, abs=0.002) and finding.n == DRAWS
    worse = result(LOSSES | dict.fromkeys(CLOSED_FORMS, 0.16))
    assert {finding.verdict for finding in about(worse, "loses less than")} == {"fails"}


def test_shares_are_of_the_references_gain() -> None:
    found = result()
    shares = about(found, "finds nearly all")
    assert len(shares) == 2 * 2 * 3 and {finding.n for finding in shares} == {DRAWS}
    by_score = {finding.claim.split(" finds")[0]: finding for finding in shares}
    assert by_score["MaxNNScore"].estimate == pytest.approx(0.5, abs=0.01)
    assert by_score["MaxNNScore"].verdict == "fails"
    assert by_score[CLOSED_FORMS[0]].estimate == pytest.approx(0.9, abs=0.01)
    assert by_score[CLOSED_FORMS[0]].verdict == "holds"
    rows = [row for row in found.data["rows"] if row["label"] == REFERENCE]
    assert rows and all(row["share"] == pytest.approx(1) for row in rows)
    (row,) = (
        row
        for row in found.data["rows"]
        if (row["label"], row["fraction"], row["c"], row["w_max"], row["bits"])
        == ("random", 0.25, 1.0, "tile", 8)
    )
    assert row["recovered"] == pytest.approx(0.25, abs=0.02) and row["share"] == pytest.approx(0.5, abs=0.02)


def test_documents_are_the_units_of_text() -> None:
    """A second block of each document that says the same as the first one tells nothing new."""
    once = record(CONFIG, LOSSES)
    twice = once | {
        "digital": once["digital"] * 2,
        "documents": once["documents"] * 2,
        "losses": [each | {"loss": [draw * 2 for draw in each["loss"]]} for each in once["losses"]],
    }
    one, two = (summarise([CONFIG], [each]).findings for each in (once, twice))
    for mine, theirs in zip(one, two, strict=True):
        assert (mine.claim, mine.n, mine.verdict) == (theirs.claim, theirs.n, theirs.verdict)
        assert mine.interval == pytest.approx(theirs.interval, rel=1e-9)


def test_three_documents_decide_nothing() -> None:
    few = record(CONFIG, LOSSES) | {"documents": [0, 0, 1, 1, 2, 2]}
    for finding in summarise([CONFIG], [few]).findings:
        assert (finding.n, finding.verdict) == (3, "inconclusive")


def test_remedies_can_win_and_lose() -> None:
    found = result()
    assert {finding.verdict for finding in about(found, "more than a second copy")} == {"holds"}
    assert {finding.verdict for finding in about(found, "mean output shift helps")} == {"holds"}
    other = result(LOSSES | {"copied": 0.08}, shifted=0.22)
    assert {finding.verdict for finding in about(other, "more than a second copy")} == {"fails"}
    assert {finding.verdict for finding in about(other, "mean output shift helps")} == {"fails"}


def test_only_the_hardware_of_the_rules_is_judged() -> None:
    found = result()
    assert not any("4" in finding.claim and "bit" in finding.claim for finding in found.findings)
    assert len(found.findings) == 2 * (2 * (4 + 3 + 1) + 1)
    assert {row["bits"] for row in found.data["rows"]} == {8, 4}


def test_the_grid() -> None:
    full = grid("full")
    assert len(full) == len(set(full))
    assert {config.programming for config in full} == set(PROGRAMMING_NOISE)
    assert {config.bits for config in full} == {8, 6, 4}
    assert {config.w_max for config in full if config.judged} == {"tile", "column"}
    assert all(len(config.seeds) >= 16 for config in full)
    judged = next(config for config in full if config.judged)
    assert min(judged.fractions) < 0.04 and max(judged.fractions) == 0.5
    assert min(judged.magnitudes) == 0.5 and max(judged.magnitudes) == 4
    large = grid("full", large=True)
    assert [config.w_max for config in large] == ["tile", "column"] and all(config.judged for config in large)
    assert {(len(config.seeds), config.blocks) for config in large} == {(LARGE.draws, LARGE.blocks)}
    assert grid("quick", large=True) == grid("quick")
    assert grid("quick", seeds=3)[0].seeds == (1000, 1001, 1002)
    assert grid("quick", seeds=2, first_seed=7)[0].seeds == (7, 8)
    with pytest.raises(InputError, match="--seeds 1"):
        grid("quick", seeds=1)
    assert {config.model for config in grid("quick", model="tiny-deepseek-moe")} == {"tiny-deepseek-moe"}


class Additive(better_score._Search):
    """A model whose loss is the sum of the damages of its analog experts, known exactly."""

    def __init__(self, damage: torch.Tensor, rounds: int) -> None:
        self.config, self.damage = replace(CONFIG, rounds=rounds), damage

    def measured(self, digital: torch.Tensor | None = None) -> torch.Tensor:
        return self.damage

    def losses(self, masks: Any) -> torch.Tensor:
        return torch.stack([(self.damage * ~mask).sum() for mask in masks])


@given(st.integers(0, 2**20), st.integers(1, 23))
def test_the_exchange_ends_at_the_best_placement_of_an_additive_model(seed: int, count: int) -> None:
    damage = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed + 1))
    start = torch.zeros(24, dtype=torch.bool)
    start[order[:count]] = True
    best = Additive(damage, rounds=24).reference([start.view(4, 6)])
    assert best.sum() == count
    assert float((damage * best).sum()) == pytest.approx(float(damage.flatten().topk(count).values.sum()))


def test_without_rounds_the_best_candidate_is_the_reference() -> None:
    damage = torch.arange(24.0).view(4, 6)
    candidates = [torch.zeros(4, 6, dtype=torch.bool) for _ in range(3)]
    for mask, expert in zip(candidates, (3, 23, 11), strict=True):
        mask.view(-1)[expert] = True
    assert torch.equal(Additive(damage, rounds=0).reference(candidates), candidates[1])


@pytest.mark.parametrize("programming", sorted(PROGRAMMING_NOISE))
def test_other_noises_are_as_large_as_pcm(programming: str) -> None:
    model = load("tiny-olmoe")
    pcm = Hardware(c=2.0, w_max="column")
    other = rig.as_noisy(model, pcm, programming)
    assert replace(other, c=pcm.c, programming="pcm") == pcm
    mean_squares = []
    for hardware in (pcm, other):
        total = torch.zeros((), dtype=torch.float64)
        for layer in model.map.moe_layers:
            experts = model.network.get_submodule(layer.experts)
            for matrix in (
                *experts.get_parameter("gate_up_proj").chunk(2, 1),
                experts.get_parameter("down_proj"),
            ):
                total += programming_sigma(matrix.detach(), hardware).double().square().sum()
        mean_squares.append(float(total))
    assert mean_squares[1] == pytest.approx(mean_squares[0], rel=1e-6)
    assert rig.as_noisy(model, replace(pcm, c=0.0), programming).c == 0


@pytest.mark.slow
@pytest.mark.claim("D")
def test_a_real_unit() -> None:
    """Placements are of one size, digital experts help, and the closed form knows what measuring finds."""
    (config,) = grid("quick")
    found = measure(config)
    none = next(each for each in found["losses"] if each["label"] == NONE)
    digital = np.array(found["digital"])
    labels = {(each["label"], each["fraction"]) for each in found["losses"]}
    assert len(labels) == len(found["losses"]) == 1 + 2 * (len(STRATEGIES) + 1) + 2 * 2 + 1 + 2
    for label in (REFERENCE, CLOSED_FORMS[0]):
        for fraction in RULE_FRACTIONS:
            (each,) = (e for e in found["losses"] if (e["label"], e["fraction"]) == (label, fraction))
            assert digital.mean() < np.mean(each["loss"]) < np.mean(none["loss"])
    # Three standard deviations of Spearman's correlation between unrelated ranks; one draw measures little more.
    assert found["agreement"]["damage"][-1] > 3 / math.sqrt(np.size(found["damage"]) - 1)


def test_the_drawing_shows_every_kind_of_hardware() -> None:
    found = result()
    assert len(drawing.draw(found).axes) == 2 * 2
    figure = drawing.PARTS["hardware"][0](found)
    texts = [text.get_text() for axis in figure.axes for text in axis.get_xticklabels()]
    assert any("4 bit" in text for text in texts) and any("column" in text for text in texts)
    assert len(drawing.table(found)) == len(found.data["rows"])
    assert Result.from_json(replace(found, exhibit="figure-x", preset="quick").to_json()).data == found.data
    assert ACROSS == drawing.ACROSS
