"""Figure 3: its units, its verdicts on data with known answers, and its drawing."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from committed import assert_as_committed
from hypothesis import given, settings
from hypothesis import strategies as st

from figures.drawings import figure_3 as drawing
from realmodels.deploy import Chip
from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments import figure_3, rig
from realmodels.experiments.figure_3 import Config, Part, grid, measure, summarise
from realmodels.load import load
from theory.errors import InputError
from theory.evidence import Finding, Result

PARTS = {
    "attention": Part("attention", ("attention",), 0.0),
    "dense": Part(figure_3.DENSE, ("attention", "lm_head"), 0.0),
    "experts": Part(figure_3.RULE_1_EXPERTS, (), 0.875),
    "everything": Part(figure_3.EVERYTHING, ("attention", "lm_head"), 1.0),
}
PARAMETERS = {"attention": 1_000_000, "dense": 2_000_000, "experts": 7_000_000, "everything": 10_000_000}
BLOCKS, DRAWS = 6, 6
UNITS = list(range(BLOCKS))  # every block a document of its own


def records(
    damage: dict[str, float],
    converters: float = 0.001,
    spread: float = 0.01,
    seed: int = 0,
    noises: Sequence[rig.Noise] = rig.PCM,
) -> tuple[list[Config], list[dict[str, Any]]]:
    """Units whose loss increase at c is c * damage[part] on average, with effects of draw and block."""
    generator = np.random.default_rng(seed)
    digital = 2 + generator.random(BLOCKS)
    reference = Config("tiny-olmoe", "h", "t", "th", "cpu", BLOCKS, 32, rig.PCM[0], None, 0.0, 0)
    configs, found = (
        [reference],
        [{"loss": list(digital), "accuracy": [0.5] * BLOCKS, "documents": UNITS, "analog_parameters": 0}],
    )
    for kind in noises:
        for name, part in PARTS.items():
            for c in (0.0, 1.5, 2.5):
                for draw in range(DRAWS if c else 1):
                    noise = spread * generator.standard_normal(BLOCKS) + spread * generator.standard_normal()
                    increase = c * (damage[name] + noise) if c else converters + 0.1 * spread * noise
                    configs.append(replace(reference, noise=kind, part=part, c=c, seed=draw))
                    found.append(
                        {
                            "loss": list(digital + increase),
                            "accuracy": [0.5 - 0.1 * c] * BLOCKS,
                            "documents": UNITS,
                            "analog_parameters": PARAMETERS[name],
                        }
                    )
    return configs, found


DAMAGE = {"attention": 0.3, "dense": 0.5, "experts": 0.2, "everything": 0.8}


def by_kind(result: Result, start: str) -> list[Finding]:
    return [finding for finding in result.findings if finding.claim.startswith(start)]


@pytest.mark.parametrize(
    ("dense", "experts", "verdict", "ratio_verdict"),
    [
        (0.5, 0.2, "holds", "holds"),
        (0.2, 0.5, "fails", "holds"),  # less in all, but more per parameter: .1 against .0714
        (0.05, 0.5, "fails", "fails"),
        (0.2, 0.2, "inconclusive", "holds"),
    ],
)
def test_verdicts_follow_the_data(dense: float, experts: float, verdict: str, ratio_verdict: str) -> None:
    result = summarise(*records(DAMAGE | {"dense": dense, "experts": experts}, spread=0.002))
    paper, ratio = by_kind(result, "dense modules on"), by_kind(result, "a dense")
    assert len(paper) == len(ratio) == 4  # two granularities at two magnitudes
    assert {finding.origin for finding in paper} == {"paper"} and {finding.origin for finding in ratio} == {
        "ours"
    }
    assert_as_committed("figure-3", result)
    assert {finding.verdict for finding in paper} == {verdict}
    assert {finding.verdict for finding in ratio} == {ratio_verdict}
    for finding, c in zip(paper, [1.5, 2.5] * 2, strict=True):
        assert finding.n == DRAWS and f"c = {c:g}" in finding.claim
        # Noise of the estimate: (draw + block) effects of both parts, over 6 draws, times c.
        assert finding.estimate == pytest.approx(
            c * (dense - experts), abs=6 * c * 0.002 * math.sqrt(2 / DRAWS)
        )
    for finding in ratio:
        assert finding.estimate == pytest.approx(dense / 2 / (experts / 7), rel=0.1)


@pytest.mark.parametrize(
    ("cost", "verdict"), [(0.001, "holds"), (0.1, "fails"), (figure_3.RULE_3_NATS, "inconclusive")]
)
def test_the_verdict_on_converters(cost: float, verdict: str) -> None:
    findings = by_kind(summarise(*records(DAMAGE, converters=cost)), "calibrated")
    assert [finding.verdict for finding in findings] == [verdict] * 2
    assert all(finding.n == BLOCKS for finding in findings)


def test_documents_are_the_units_of_text() -> None:
    """A second block of each document that says the same as the first one tells nothing new."""
    configs, found = records(DAMAGE, spread=0.1)
    twice = [
        {name: value * 2 if isinstance(value, list) else value for name, value in record.items()}
        for record in found
    ]
    one, two = (summarise(configs, each) for each in (found, twice))
    for mine, theirs in zip(one.findings, two.findings, strict=True):
        assert (mine.claim, mine.n, mine.verdict) == (theirs.claim, theirs.n, theirs.verdict)
        assert mine.interval == pytest.approx(theirs.interval, rel=1e-9)
    for mine, theirs in zip(one.data["curves"], two.data["curves"], strict=True):
        assert mine["loss_change_interval"] == pytest.approx(theirs["loss_change_interval"], rel=1e-9)


def test_three_documents_decide_nothing() -> None:
    """However many blocks and draws there are."""
    configs, found = records(DAMAGE)
    few = [record | {"documents": [unit // 2 for unit in UNITS]} for record in found]
    for finding in summarise(configs, few).findings:
        assert (finding.n, finding.verdict) == (3, "inconclusive")


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), shift=st.floats(-1, 1))
def test_only_changes_count(seed: int, shift: float) -> None:
    """A constant added to every loss, digital or not, changes nothing; nor does the order of units."""
    configs, found = records(DAMAGE, seed=seed)
    moved = [record | {"loss": [loss + shift for loss in record["loss"]]} for record in found]
    order = np.random.default_rng(seed).permutation(np.arange(1, len(configs)))
    mixed = summarise([configs[0], *(configs[i] for i in order)], [found[0], *(found[i] for i in order)])
    for other in (summarise(configs, moved), mixed):
        for mine, theirs in zip(summarise(configs, found).findings, other.findings, strict=True):
            assert (mine.claim, mine.verdict) == (theirs.claim, theirs.verdict)
            assert mine.estimate == pytest.approx(theirs.estimate, rel=1e-9, abs=1e-12)


def test_curves_hold_every_part_magnitude_and_granularity() -> None:
    result = summarise(*records(DAMAGE))
    assert len(result.data["curves"]) == 2 * len(PARTS) * 3
    curve = next(
        each
        for each in result.data["curves"]
        if (each["programming"], each["w_max"], each["part"], each["c"])
        == ("pcm", "column", "attention", 2.5)
    )
    assert curve["analog_millions"] == 1.0 and curve["draws"] == DRAWS
    assert curve["accuracy_change"] == pytest.approx(-0.25)
    low, high = curve["loss_change_interval"]
    assert low < curve["loss_change"] < high


def test_the_picture_shows_every_curve_and_the_papers_claim() -> None:
    result = summarise(*records(DAMAGE))
    pictures = [drawing.draw(result), *(draw(result) for draw, _ in drawing.PARTS.values())]
    loss, _, per_parameter = (picture.axes for picture in pictures)
    panels = [panel for picture in pictures for panel in picture.axes]
    assert len(panels) == 2 * 3
    for panel in panels:
        assert [line.get_label() for line in panel.lines] == [part.label for part in PARTS.values()]
    tile_loss, tile_per_million = loss[0].lines, per_parameter[0].lines
    for line, per_million, name in zip(tile_loss, tile_per_million, PARTS, strict=True):
        assert np.asarray(line.get_xdata()).tolist() == [0.0, 1.5, 2.5]
        expected = np.asarray(line.get_ydata()) / (PARAMETERS[name] / 1e6)
        assert np.asarray(per_million.get_ydata()) == pytest.approx(expected)
    assert all("Published" in caption for caption in (drawing.CAPTION, drawing.PARTS["accuracy"][1]))
    rows = drawing.table(result)
    assert len(rows) == len(result.data["curves"]) and all(len(row) == len(rows[0]) for row in rows)


def test_hermes_is_judged_by_the_same_rules_and_has_a_panel_of_its_own() -> None:
    """And what is said of pcm stays as it is without hermes."""
    pcm, both = (summarise(*records(DAMAGE, noises=noises)) for noises in (rig.PCM, rig.NOISES))
    assert len(both.findings) == len(pcm.findings) * 3 / 2
    claims = {finding.claim for finding in both.findings}
    assert claims.issuperset(finding.claim for finding in pcm.findings)
    assert sum("w_max per column, hermes" in claim for claim in claims) == len(pcm.findings) / 2
    titles = [axis.get_title(loc="left") for axis in drawing.draw(both).axes]
    assert titles == ["pcm, w_max per tile", "pcm, per tile column", "hermes, per tile column"]
    assert {(row["programming"], row["w_max"]) for row in drawing.table(both)} == {
        (noise.programming, noise.w_max) for noise in rig.NOISES
    }


# On a model


@pytest.fixture(scope="module")
def units(small_model_folder: Path) -> list[Config]:
    return grid("quick", model=str(small_model_folder), seeds=2)


def test_the_grid_shares_everything_but_what_is_compared(units: list[Config]) -> None:
    assert len(set(units)) == len(units)
    reference = units[0]
    assert reference.part is None and all(unit.part is not None for unit in units[1:])
    for unit in units[1:]:
        varied = replace(unit, noise=reference.noise, part=None, c=0.0, seed=0)
        assert varied == reference
    draws: dict[tuple[Any, ...], list[int]] = {}
    for unit in units[1:]:
        draws.setdefault((unit.noise, unit.part, unit.c), []).append(unit.seed)
    for (_, _, c), seeds in draws.items():
        assert seeds == ([1000, 1001] if c else [1000])
    labels = [part.label for part in dict.fromkeys(unit.part for unit in units[1:]) if part]
    assert labels == [
        "attention",
        "LM head",
        "all dense modules",
        *(f"{percent} % of experts" for percent in ("25", "50", "75", "87.5", "100")),
        "everything",
    ]


def test_every_rule_is_judged_at_the_default_and_full_preset() -> None:
    for preset in ("default", "full"):
        settings = figure_3.PRESETS[preset]
        assert set(figure_3.RULE_1_C) <= set(settings.magnitudes) and settings.draws >= 8


def test_units_are_reproducible_and_leave_the_model_digital(
    units: list[Config], small_model_folder: Path
) -> None:
    reference = measure(units[0])
    model = load(small_model_folder)
    tokens = token_blocks(model, model.texts("evaluation"), units[0].block_tokens, units[0].blocks).tokens
    losses, hits = block_results(model.network, tokens)
    assert (reference["loss"], reference["accuracy"]) == (losses.tolist(), hits.tolist())
    everything = [unit for unit in units if unit.part and unit.part.label == figure_3.EVERYTHING and unit.c]
    first, other = measure(everything[0]), measure(everything[1])
    assert first["loss"] != reference["loss"] != other["loss"] != first["loss"]
    assert measure(everything[0]) == first
    assert measure(units[0]) == reference
    sizes = {
        unit.part.label: measure(unit)["analog_parameters"] for unit in units if unit.part and not unit.c
    }
    assert sizes["all dense modules"] == sizes["attention"] + sizes["LM head"]
    assert sizes["everything"] == sizes["all dense modules"] + sizes["100 % of experts"]
    assert sizes["25 % of experts"] * 4 == sizes["100 % of experts"]


def test_experts_with_the_lowest_scores_are_analog_first(
    units: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    placements = []
    real = Chip.placed

    def spy(chip: Chip, placement: Any) -> Any:
        placements.append(placement)
        return real(chip, placement)

    monkeypatch.setattr(Chip, "placed", spy)
    quarter = next(unit for unit in units if unit.part and unit.part.analog_experts == 0.25)
    measure(quarter)
    score = rig.scores(quarter.model, "cpu", "maxnn")
    for row, digital in zip(score, placements[0].digital_experts, strict=True):
        analog = torch.tensor([expert for expert in range(len(row)) if expert not in digital])
        assert len(analog) == len(row) // 4
        assert row[analog].max() <= row[torch.tensor(digital)].min()


def test_a_failing_unit_leaves_the_model_digital(
    units: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no result")

    monkeypatch.setattr(rig, "block_results", fail)
    with pytest.raises(RuntimeError, match="no result"):
        measure(units[-1])
    monkeypatch.undo()
    assert measure(units[-1])["analog_parameters"] > 0


def test_one_draw_is_refused(small_model_folder: Path) -> None:
    with pytest.raises(InputError, match="--seeds 1: .*at least 2"):
        grid("quick", model=str(small_model_folder), seeds=1)


def test_our_own_text_is_the_default_and_a_file_is_known_by_its_hash(
    tmp_path: Path, small_model_folder: Path
) -> None:
    file = tmp_path / "text"
    file.write_text("Some words of my own, repeated often enough to fill two blocks. " * 100)
    first = grid("quick", model=str(small_model_folder), text=str(file))[0]
    assert first.text == str(file)
    rig._documents.cache_clear()
    file.write_text("Some other words, repeated often enough to fill two blocks as well. " * 100)
    second = grid("quick", model=str(small_model_folder), text=str(file))[0]
    assert replace(second, text_hash=first.text_hash) == first and second.text_hash != first.text_hash
