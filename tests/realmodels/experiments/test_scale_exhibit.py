"""The exhibit `scale`: its verdicts on models with known answers, how runs join, its drawing, what a unit measures."""

import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from committed import assert_thresholds
from matplotlib.figure import Figure
from small_models import save, small_network
from test_rig import CACHED, HELD_OUT, PROSE

from figures.answers import DENSE_HURT_MORE, by_size, of_sizes, sizes, starting
from figures.catalogue import EXHIBITS, find
from figures.drawings import scale as drawing
from figures.rules import OPTIONAL, read
from realmodels import text
from realmodels.compare import as_mask, expert_damage, losses
from realmodels.damage import expected_damage
from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments import figure_3, rig, scale
from realmodels.experiments.rig import GRANULARITIES
from realmodels.experiments.scale import (
    ANOTHER_RECIPE,
    AXES,
    FRACTIONS,
    QUANTITIES,
    RULE_C,
    SHORT,
    Config,
    Unit,
    grid,
    joined,
    judge,
    judged_again,
    measure,
    models,
    on_ladder,
    summarise,
)
from realmodels.experiments.trainings import spearman
from realmodels.pretrain.ladder import LADDER, TOKENS_PER_ACTIVE_PARAMETER
from realmodels.record import calibration_tokens, record
from realmodels.scores import scores
from realmodels.statistics import choices
from theory.errors import InputError
from theory.evidence import LEAST_UNITS, Finding, Result
from theory.hardware import Hardware
from theory.placement import rank
from theory.separation import seed

MADE = {name: rung.seeds for name, rung in LADDER.items()}
PARAMETERS = {name: rung.parameters for name, rung in LADDER.items()}
RECOVERS = {
    "maxnn": 0.4,
    "activation_frequency": 0.3,
    "activation_weight": 0.3,
    "router_norm": 0.2,
    "random": 0.1,
    "damage across layers": 0.5,
    "damage with gradient across layers": 0.6,
}


def units(model: str, number: int, **changes: Any) -> list[Unit]:
    """What was measured of a model.

    changes: `recovers` by score; `excess` of the dense modules and loss, by log10 of parameters over 16M; `spread`.
    """
    rng = np.random.default_rng([*model.encode(), number])
    parameters = PARAMETERS.get(model, 8_000_000)
    decades = np.log10(parameters / 16e6)
    recovers = RECOVERS | changes.get("recovers", {})
    excess, spread = changes.get("excess", lambda decades: 0.5)(decades), changes.get("spread", 0.004)
    found = []
    for name in ("evaluation", "prose"):
        for w_max in GRANULARITIES:
            about, other = 1 + spread * rng.standard_normal(2)
            parts = {
                f"{label}, c = {c:g}": {
                    "loss": loss * about,
                    "accuracy": -loss / 9 * about,
                    "parameters": count,
                }
                for c in (1.5, 2.5)
                for label, loss, count in (
                    ("all dense modules", other + excess, 1e6),
                    ("87.5 % of experts", 1.0, 8e6),
                )
            }
            for label in ("100 % of experts", "everything"):
                parts[f"{label}, c = 0"] = {"loss": 0.01 * about, "accuracy": -0.001, "parameters": 9e6}
            placements = {"none": 2.0} | {
                f"{score}, {fraction:.1%}": 2 - 2 * share * about
                for fraction in FRACTIONS
                for score, share in recovers.items()
            }
            found.append(
                {
                    "model": f"{model}-{number}" if model in LADDER else model,
                    "weights": f"hash of {model}-{number}",
                    "text": name,
                    "text_hash": f"hash of {name}",
                    "w_max": w_max,
                    "draws": 8,
                    "blocks": 32,
                    "block_tokens": 256,
                    "parameters": parameters,
                    "digital": {"loss": (3 - 0.4 * decades) * about, "accuracy": 0.5},
                    "parts": parts,
                    "placements": placements,
                    "spearman": {"frequency": 0.3 * about, "load": 0.2 * about, "damage": 0.5 * about},
                    "outliers": {"median": (9 + decades) * about, "largest": 30 * about},
                }
            )
    return found


def ladder(made: dict[str, int] = MADE, **changes: Any) -> list[Unit]:
    return [
        unit for name, seeds in made.items() for seed in range(seeds) for unit in units(name, seed, **changes)
    ]


def of_family(result: Result, family: str, words: str = "") -> list[Finding]:
    return [each for each in result.findings if each.family == family and words in each.claim]


def test_findings_are_of_the_families_and_thresholds_of_the_rules() -> None:
    result = judge(ladder())
    assert {finding.family for finding in result.findings} == set(
        read(find("figure-scale", EXHIBITS)).families
    )
    # A result of a part of the ladder can be committed, too.
    assert all(map(OPTIONAL.search, read(find("figure-scale", EXHIBITS)).families.values()))
    claims = [finding.claim for finding in result.findings]
    assert len(set(claims)) == len(claims)
    assert_thresholds("figure-scale", [finding.rule for finding in result.findings])
    assert {finding.origin for finding in of_family(result, "the paper's claims")} == {"paper"}
    assert {finding.statement for finding in of_family(result, "expected damage")} == {"D"}
    assert not result.data["missing"]


@pytest.mark.parametrize(("made", "expected"), [(5, {"holds"}), (4, set())])
def test_a_rung_needs_five_models(made: int, expected: set[str]) -> None:
    """Of fewer models there is no finding; the 64M ones have three."""
    result = judge(ladder({"olmoe-16m": made, "olmoe-64m": 3}))
    for family in ("the paper's claims", "expected damage"):
        found = of_family(result, family)
        assert {finding.verdict for finding in found} == expected
        assert all("olmoe-16m," in finding.claim and finding.n == LEAST_UNITS for finding in found)
    assert not of_family(result, "trend with parameters") and not any(
        each["lines"] for each in result.data["series"]
    )


@pytest.mark.parametrize("rung", ["olmoe-4m", "deepseek-16m", "olmoe-16m-muon"])
def test_claims_hold_and_fail(rung: str) -> None:
    suffix = "" if rung.count("-") == 1 else ANOTHER_RECIPE
    worst = {
        "maxnn": 0.1,
        "activation_weight": 0.3,
        "random": 0.3,
        "router_norm": 0.3,
        "activation_frequency": 0.3,
    }
    worse = worst | dict.fromkeys(RECOVERS.keys() - worst.keys(), 0.05)
    for verdict, changes in (("holds", {}), ("fails", {"recovers": worse, "excess": lambda _: -0.5})):
        result = judge(ladder({rung: 5}, **changes))
        paper, ours = (of_family(result, name + suffix) for name in ("the paper's claims", "expected damage"))
        assert len(paper) == 2 * (2 + 2 + 2 * 4) and len(ours) == 2 * 2 * 2 * 2
        assert len(result.findings) == len(paper) + len(ours)
        assert {finding.verdict for finding in (*paper, *ours)} == {verdict}
    estimates = {each.claim.partition(";")[0]: each.estimate for each in (*paper, *ours)}
    assert estimates["dense modules on analog hurt more than 80-90 % of the experts"] == pytest.approx(
        -0.5, rel=0.02
    )
    assert estimates["MaxNNScore is better than random"] == pytest.approx(-0.2, rel=0.02)
    assert estimates["expected damage across layers is better than activation weight"] == pytest.approx(
        -0.25, rel=0.02
    )


def test_trends_are_slopes_over_models_without_the_short_training() -> None:
    """The excess rises by .2 in ten times the parameters up to 256M. That of 1B is elsewhere, and outside."""
    rises = judge(ladder(excess=lambda decades: 0.5 + 0.2 * decades if decades < 1.5 else 9.0))
    (trend,) = of_family(rises, "trend with parameters", "c = 2.5, nats per token; OLMoE, w_max per tile")
    assert trend.estimate == pytest.approx(0.2, abs=0.01) and trend.verdict == "holds"
    assert trend.n == 5 + 5 + 3 + 2
    for rung, verdict in (("olmoe-256m", "holds"), ("olmoe-1b", "fails")):
        family = "predictions of a shorter training" if rung in SHORT else "predictions"
        (found,) = of_family(rises, family, f"c = 2.5, nats per token; {rung}, w_max per tile")
        assert found.verdict == verdict and found.n is None
    falls = judge(ladder(excess=lambda decades: 0.5 - 0.2 * decades))
    (trend,) = of_family(
        falls, "trend with parameters", "c = 2.5, nats per token; DeepSeekMoE, w_max per column"
    )
    assert trend.verdict == "fails" and trend.n == 13
    (loss,) = of_family(
        falls,
        "trend with parameters",
        "falls with the number of parameters: loss on held-out text, nats per token; OLMoE",
    )
    assert loss.verdict == "holds" and loss.estimate == pytest.approx(-0.4, abs=0.02)


def test_a_trend_with_tokens_is_over_three_lengths() -> None:
    found = of_family(judge(ladder()), "trend with tokens", "loss on held-out text")
    assert [finding.n for finding in found] == [15] and "OLMoE of 16M" in found[0].claim


def test_a_line_needs_five_models_of_three_rungs() -> None:
    for made, lines in (
        ({"olmoe-4m": 2, "olmoe-16m": 2, "olmoe-64m": 1}, True),
        ({"olmoe-4m": 2, "olmoe-16m": 1, "olmoe-64m": 1}, False),
        ({"olmoe-4m": 5, "olmoe-16m": 5, "olmoe-1b": 1}, False),
    ):
        assert any(each["lines"] for each in judge(ladder(made)).data["series"]) == lines


def test_predictions_rest_on_models_up_to_64m_alone() -> None:
    """Whatever larger models say, the line and what it says of 7B and 16B are the same."""

    def lines(result: Result) -> list[Any]:
        return [
            line["fitted"] for each in result.data["series"] for line in each["lines"] if "fitted" in line
        ]

    bent = judge(ladder(excess=lambda decades: 0.5 if decades < 1 else 5.0))
    assert lines(bent) == lines(judge(ladder()))
    name = "loss that the dense modules cost more than 87.5 % of experts at c = 2.5, nats per token"
    series = next(each for each in bent.data["series"] if (each["quantity"], each["w_max"]) == (name, "tile"))
    extrapolations = series["lines"][0]["extrapolations"]
    assert [(each["model"], each["parameters"]) for each in extrapolations] == [
        ("OLMoE", 7e9),
        ("DeepSeekMoE", 16e9),
    ]
    for each in extrapolations:
        low, high = each["interval"]
        assert low < each["value"] < high and each["value"] == pytest.approx(0.5, abs=0.05)
        assert "above 0" in each["published"]


def test_what_is_predicted_beforehand_is_what_is_judged() -> None:
    """The intervals stand in the data before a larger model is measured, and are those of its findings."""
    small = {"olmoe-4m": 5, "olmoe-16m": 5, "olmoe-64m": 3}
    name = "loss on held-out text, nats per token"

    def rows(result: Result) -> list[Any]:
        series = next(each for each in result.data["series"] if each["quantity"] == name)
        return [each for line in series["lines"] for each in line["predictions"]]

    before, after = judge(ladder(small)), judge(ladder({**small, "olmoe-256m": 2, "olmoe-1b": 1}))
    assert rows(before) == rows(after)
    assert [(each["rung"], each["trainings"]) for each in rows(before)] == [
        ("olmoe-256m", 2),
        ("olmoe-1b", 1),
    ]
    found = [each for each in after.findings if each.claim.startswith(f"models up to 64M predict the {name}")]
    for finding, row in zip(found, rows(before), strict=True):
        assert row["rung"] in finding.claim
        assert finding.interval == pytest.approx(
            row["interval"], rel=1e-3
        )  # the models' sizes are rounded here


def test_what_changes_sign_is_first() -> None:
    result = judge(ladder(excess=lambda decades: 0.3 * decades))
    changing = [any(line["changes_sign"] for line in each["lines"]) for each in result.data["series"]]
    assert any(changing) and changing == sorted(changing, reverse=True)
    assert "dense modules" in result.findings[0].claim
    assert not any(line["changes_sign"] for each in judge(ladder()).data["series"] for line in each["lines"])
    # A line that passes 0 between intervals that hold it changes no sign.
    noisy = judge(ladder(excess=lambda decades: 0.001 * decades, spread=0.05))
    assert not any(line["changes_sign"] for each in noisy.data["series"] for line in each["lines"])


@pytest.mark.parametrize("lost", [0.0, -0.1])
def test_a_model_without_a_value_is_left_out_of_that_quantity(lost: float) -> None:
    found = ladder()
    for unit in found:
        if unit["model"] == "olmoe-4m-0" and unit["text"] == "prose":
            unit["placements"]["none"] = lost
    result = judge(found)
    recovered = [finding for finding in result.findings if "MaxNNScore recovers a third" in finding.claim]
    assert {finding.n for finding in recovered if "olmoe-16m," in finding.claim} == {5}
    assert not any("olmoe-4m," in finding.claim for finding in recovered)


def test_the_value_of_a_model_is_the_mean_over_its_texts() -> None:
    found = ladder({"olmoe-4m": 1})
    by_name = {(each["quantity"], each["w_max"]): each["values"] for each in judge(found).data["series"]}
    losses = [unit["digital"]["loss"] for unit in found]
    parts = [unit["parts"] for unit in found if unit["w_max"] == "column"]
    labels = ("87.5 % of experts, c = 2.5", "all dense modules, c = 2.5")
    fewer = [each[labels[0]]["accuracy"] - each[labels[1]]["accuracy"] for each in parts]
    name = "top-1 accuracy that the dense modules cost more than 87.5 % of experts at c = 2.5"
    assert by_name[name, "column"]["olmoe-4m-0"] == pytest.approx(np.mean(fewer))
    assert by_name["loss on held-out text, nats per token", None]["olmoe-4m-0"] == pytest.approx(
        np.mean(losses)
    )
    own = [unit["spearman"]["damage"] for unit in found if unit["w_max"] == "tile"]
    name = "Spearman's correlation of MaxNNScore and measured damage"
    assert by_name[name, "tile"]["olmoe-4m-0"] == pytest.approx(np.mean(own))
    assert by_name[
        "log10 of what a dense parameter costs over what one of 87.5 % of experts does at c = 2.5", "tile"
    ]["olmoe-4m-0"] == pytest.approx(np.log10(1.5 * 8), abs=0.01)


def run_of(found: list[Unit], commit: str = "a") -> Result:
    here = {
        "date": "2026-12-01",
        "git": {"commit": commit, "dirty": False},
        "device": "a GPU",
        "versions": {},
    }
    return replace(judge(found), exhibit="figure-scale", preset="full", provenance=here)


def test_runs_join_and_each_model_keeps_where_it_was_measured(caplog: pytest.LogCaptureFixture) -> None:
    first = joined(run_of(ladder({"olmoe-4m": 5, "tiny-olmoe": 1}), "a"), None)
    with caplog.at_level(logging.WARNING):
        both = joined(run_of(ladder({"olmoe-16m": 5, "tiny-olmoe": 1}), "b"), first)
    assert "not measured: olmoe-64m, olmoe-256m" in caplog.text and "olmoe-4m" not in caplog.text
    measured = {unit["model"]: unit["measured"]["git"]["commit"] for unit in both.data["units"]}
    assert {name: commit for name, commit in measured.items() if name.endswith(("-0", "olmoe"))} == {
        "olmoe-4m-0": "a",
        "olmoe-16m-0": "b",
        "tiny-olmoe": "b",
    }
    assert len(both.data["units"]) == 4 * 11
    assert both.findings == judge(ladder({"olmoe-4m": 5, "olmoe-16m": 5, "tiny-olmoe": 1})).findings
    assert (both.exhibit, both.preset, both.provenance["git"]["commit"]) == ("figure-scale", "full", "b")
    assert judged_again(both) == both == Result.from_json(both.to_json())
    copy = [unit | {"model": "a-copy"} for unit in ladder({"olmoe-4m": 1})]
    renamed = {unit["model"] for unit in joined(run_of(copy), both).data["units"]}
    assert "a-copy" in renamed and "olmoe-4m-0" not in renamed  # one model does not count twice
    other = ladder({"deepseek-4m": 1})
    for unit in other:
        unit["text_hash"] += " as it is now"
    assert "left out" not in caplog.text
    assert {unit["model"] for unit in joined(run_of(other), both).data["units"]} == {"deepseek-4m-0"}
    assert (
        "left out of what was measured earlier: 44 of 44 units, on other texts, draws or blocks"
        in caplog.text
    )


@pytest.mark.parametrize("change", [{"draws": 2}, {"blocks": 4}, {"block_tokens": 64}])
def test_a_run_of_another_preset_stands_alone(change: Unit, caplog: pytest.LogCaptureFixture) -> None:
    full = joined(run_of(ladder({"olmoe-4m": 5})), None)
    quick = [unit | change for unit in ladder({"deepseek-4m": 1})]
    with caplog.at_level(logging.WARNING):
        assert {unit["model"] for unit in joined(run_of(quick), full).data["units"]} == {"deepseek-4m-0"}
    assert "left out of what was measured earlier: 20 of 20 units" in caplog.text


def test_what_is_followed_is_as_the_rules_have_it() -> None:
    """25 % of experts digital, or c = 2.5; claimed to rise or fall, of each w_max or of none, published or not."""
    dense, budget = (
        "the dense modules cost more than 87.5 % of experts at c = 2.5",
        ", 25.0% of experts digital",
    )
    more = "fraction of the loss that {} recovers more than {}" + budget
    baselines = ("activation frequency", "activation weight", "router norm", "random")
    forms = ("expected damage across layers", "expected damage with gradient across layers")
    expected = {
        f"loss that {dense}, nats per token": (True, True, True),
        f"top-1 accuracy that {dense}": (True, True, True),
        "log10 of what a dense parameter costs over what one of 87.5 % of experts does at c = 2.5": (
            True,
            True,
            False,
        ),
        f"fraction of the loss that MaxNNScore recovers{budget}": (True, True, True),
        **{more.format("MaxNNScore", other): (True, True, True) for other in baselines},
        **{
            more.format(form, other): (True, True, False)
            for form in forms
            for other in ("MaxNNScore", baselines[1])
        },
        "loss that 8-bit converters alone cost with experts analog, nats per token": (False, True, True),
        "loss that 8-bit converters alone cost with everything analog, nats per token": (False, True, True),
        "Spearman's correlation of MaxNNScore and token frequency": (True, False, True),
        "Spearman's correlation of MaxNNScore and load": (True, False, False),
        "Spearman's correlation of MaxNNScore and measured damage": (True, True, False),
        "largest input over the standard deviation of inputs, median layer": (True, False, False),
        "loss on held-out text, nats per token": (False, False, False),
    }
    followed = [quantity for quantity in QUANTITIES if quantity.followed]
    assert {each.name: (each.rises, each.of_noise, bool(each.published)) for each in followed} == expected
    published = {each.name: each.published for each in followed}
    assert published["loss that 8-bit converters alone cost with everything analog, nats per token"] == {
        "OLMoE": "1.63 points of accuracy",
        "DeepSeekMoE": "6.24 points of accuracy",
    }


def test_the_ladder_is_as_the_rules_have_it() -> None:
    """What is left out of the trends is what was trained for another number of tokens."""
    sizes = [name for axis in AXES if axis.along == "parameters" for name in axis.rungs]
    assert sizes == [name for name in LADDER if name.count("-") == 1]
    per_parameter = {name: LADDER[name].tokens / LADDER[name].active_parameters for name in LADDER}
    usual = pytest.approx(TOKENS_PER_ACTIVE_PARAMETER, rel=0.05)
    assert [name for name in sizes if per_parameter[name] != usual] == list(SHORT)
    lengths = next(axis.rungs for axis in AXES if axis.along == "tokens")
    assert [per_parameter[name] / 16 for name in lengths] == pytest.approx([1, 1 / 4, 4], rel=0.05)
    assert all(
        (count > scale.LARGEST_FITTED) == (name in ("olmoe-256m", "olmoe-1b"))
        for name, count in PARAMETERS.items()
    )


@pytest.mark.parametrize(
    "made", [MADE, {"tiny-olmoe": 1, "tiny-deepseek-moe": 1}, {"olmoe-16m": 5, "olmoe-16m-muon": 5}]
)
def test_the_drawing_has_every_model(made: dict[str, int]) -> None:
    result = judge(ladder(made))
    figure = drawing.draw(result)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == drawing.PANELS and set(drawing.SHOWN) <= {quantity.name for quantity in QUANTITIES}
    points = [line for line in shown[0].lines if len(line.get_xdata()) == 1]  # type: ignore[arg-type]
    sizes = {name: number for name, number in made.items() if name not in LADDER or name.count("-") == 1}
    assert len([line for line in points if line.get_markersize() < 9]) == 2 * sum(sizes.values())
    rows = drawing.table(result)
    assert len(rows) == len(made) * len(result.data["series"])
    assert all((row["low"] is None) == (row["models"] == 1) for row in rows)
    assert isinstance(drawing.draw_extrapolations(result), Figure) == (made == MADE)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        ({"olmoe-4m": 5}, {"w_max per tile", "w_max per tile column", "OLMoE"}),
        ({"tiny-olmoe": 1, "deepseek-4m": 1}, {"w_max per tile", "w_max per tile column", "DeepSeekMoE", "shipped"}),
        ({"olmoe-16m-muon": 2}, {"w_max per tile", "w_max per tile column", "Muon"}),
    ],
)  # fmt: skip
def test_the_legend_has_what_is_drawn(made: dict[str, int], expected: set[str]) -> None:
    figure = drawing.draw(judge(ladder(made)))
    assert {text.get_text() for text in figure.legends[0].get_texts()} == expected


def test_lengths_of_training_have_a_picture() -> None:
    """Of one size alone, with Muon's models beside those that the line is fitted to."""
    made = {
        "olmoe-16m": 5,
        "olmoe-16m-quarter": 5,
        "olmoe-16m-fourfold": 1,
        "olmoe-16m-muon": 2,
        "olmoe-4m": 5,
    }
    assert drawing.draw_lengths(judge(ladder({"olmoe-16m": 5, "olmoe-16m-muon": 5}))) is None
    result = judge(ladder(made))
    figure = drawing.draw_lengths(result)
    assert figure is not None and len(figure.axes) == drawing.PANELS
    assert set(drawing.SHOWN_OF_LENGTHS) <= {quantity.name for quantity in QUANTITIES}
    drawn = [
        np.array(line.get_data(), float) for line in figure.axes[0].lines if line.get_color() == drawing.BLUE
    ]
    assert len([each for each in drawn if each.shape[1] == 1]) == 5 + 5 + 1 + 2
    ((places, heights),) = (each for each in drawn if each.shape[1] == 2)
    (line,) = (
        line
        for each in result.data["series"]
        if each["quantity"] == drawing.SHOWN_OF_LENGTHS[0] and each["w_max"] == "tile"
        for line in each["lines"]
        if line["along"] == "tokens"
    )
    assert np.diff(heights) / np.diff(np.log10(places)) == pytest.approx(line["slope"])
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["14M", "56M", "223M"]
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"w_max per tile", "w_max per tile column", "OLMoE", "Muon"}


def test_predictions_that_held_and_failed_are_in_the_legend() -> None:
    bent = judge(ladder(excess=lambda decades: 0.5 if decades < 1 else 5.0))
    for result, failed in ((bent, True), (judge(ladder()), False)):
        labels = [text.get_text() for text in drawing.draw(result).legends[0].get_texts()]
        assert "predicted" in labels and ("not predicted" in labels) == failed


def test_answers_name_every_size_and_count_each() -> None:
    """Other recipes are no sizes, and a size of fewer than five trainings has no verdict of its own."""
    one = ladder({"olmoe-4m": 5})
    worse = ladder({"olmoe-16m": 5}, recovers={"maxnn": 0.1}, excess=lambda _: -0.5)
    more = ladder({"olmoe-16m-muon": 5, "olmoe-64m": 3, "tiny-olmoe": 1})
    alone, several = judge(one), judge(one + worse + more)
    assert sizes(alone) == "`olmoe-4m` (4.8M, 5)"
    assert sizes(several) == "`olmoe-4m` (4.8M, 5), `olmoe-16m` (16.9M, 5), `olmoe-64m` (63.3M, 3)"
    dense = of_sizes(DENSE_HURT_MORE, several)
    assert by_size(of_sizes(DENSE_HURT_MORE, alone)) == "4 of 4 comparisons over 5 trainings of olmoe-4m"
    assert by_size(dense) == "4 of 8 comparisons over 10 trainings of 2 sizes"
    assert len(starting(DENSE_HURT_MORE, several)) == len(dense) + 4


def test_models_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "TRAINED", tmp_path / "ladder")
    assert models(None) == ["tiny-deepseek-moe", "tiny-olmoe"]
    folders = [str(save(small_network(), tmp_path / "ladder" / f"olmoe-4m-{seed}")) for seed in (0, 1)]
    assert models(None)[2:] == models(str(tmp_path / "ladder")) == folders
    assert models(folders[0]) == folders[:1] and models("tiny-olmoe") == ["tiny-olmoe"]
    with pytest.raises(InputError, match="there is no model in this folder"):
        models(str(tmp_path / "ladder" / "..").replace("ladder/..", ""))


def test_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "TRAINED", tmp_path)
    found = grid("default", model="tiny-olmoe", first_seed=7)
    assert [(each.text, each.w_max) for each in found] == [
        (text, w_max) for text in ("evaluation", "prose") for w_max in GRANULARITIES
    ]
    assert {each.seeds for each in found} == {(7, 8)}
    assert {each.model for each in grid("quick", seeds=3)} == {"tiny-olmoe", "tiny-deepseek-moe"}
    assert {each.text for each in grid("quick", model="tiny-olmoe", text="prose")} == {"prose"}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Config]]:
    """Units of three small checkpoints on small held-out texts."""
    for module in (text, rig):
        monkeypatch.setattr(module, "held_out", HELD_OUT.__getitem__)
    monkeypatch.setattr(text, "prose", lambda: PROSE)
    for each in (rig._model, *CACHED):
        each.cache_clear()
    sizes = {"olmoe-4m-0": 24, "olmoe-16m-3": 32, "olmoe-64m-1": 40}
    for name, inner in sizes.items():
        folder = save(small_network(num_experts=8, intermediate_size=inner), tmp_path / name)
        rung, _, number = name.rpartition("-")
        recipe = replace(LADDER[rung].recipe, seed=int(number))
        (folder / "recipe.json").write_text(json.dumps(asdict(recipe)))
    found = grid("quick", model=str(tmp_path), seeds=2, first_seed=7)
    yield [replace(each, search_draws=2, search_blocks=4) for each in found]
    for each in (rig._model, *CACHED):
        each.cache_clear()


def test_small_checkpoints_are_measured_and_drawn(small: list[Config]) -> None:
    assert [(Path(each.model).name, each.text) for each in small[:3]] == [
        ("olmoe-16m-3", "evaluation"), ("olmoe-16m-3", "prose"), ("olmoe-4m-0", "evaluation"),
    ]  # fmt: skip
    result = summarise(small, [measure(config) for config in small])
    facts = [(each["name"], each["rung"], each["seed"], each["tokens"]) for each in result.data["models"]]
    assert ("olmoe-4m-0", "olmoe-4m", 0, LADDER["olmoe-4m"].tokens) in facts and len(facts) == 3
    assert len({each["parameters"] for each in result.data["models"]}) == 3
    for unit in result.data["units"]:
        # One placement, measured in two ways with the same draws.
        alone = unit["parts"]["87.5 % of experts, c = 2.5"]["loss"]
        assert unit["placements"]["maxnn, 12.5%"] == pytest.approx(alone, rel=1e-3)
        assert (
            unit["parts"]["everything, c = 0"]["parameters"]
            > unit["parts"]["all dense modules, c = 1.5"]["parameters"]
        )
        assert "/" not in unit["model"]
    assert result.findings == () and len(result.data["missing"]) == len(LADDER)
    assert len(drawing.table(result)) == sum(len(each["values"]) for each in result.data["series"])
    assert drawing.draw(result).axes


def test_a_unit_is_what_was_measured(small: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config, used = small[0], []

    def noted(*arguments: Any) -> torch.Tensor:
        used.append(arguments)
        return expert_damage(*arguments)

    monkeypatch.setattr(scale, "expert_damage", noted)
    found, model = measure(config), rig.model(config.model, "cpu")
    # Experts' damages see calibration text, and seeds that no verdict rests on.
    ((_, hardware, calibration, seeds, searched),) = used
    assert seeds == [seed("search", 0), seed("search", 1)] and not {*seeds} & {*config.seeds}
    assert searched.equal(token_blocks(model, HELD_OUT["calibration"], config.block_tokens, 4).tokens)
    maxnn, tokens = scores(model), rig.tokens(config)
    damage = expert_damage(model, hardware, calibration, seeds, searched)
    assert found["spearman"]["damage"] == pytest.approx(spearman(maxnn, damage))
    chosen = [torch.bincount(index.flatten(), minlength=8).double() for index, _ in choices(model, tokens)]
    assert found["spearman"]["load"] == pytest.approx(spearman(maxnn, torch.stack(chosen)))
    # Placements: the expected damage ranks across layers, others within one; random anew for each draw.
    assert hardware == Hardware(c=RULE_C, w_max=config.w_max)
    calibrating = HELD_OUT["calibration"]
    own = {
        "router_norm, 25.0%": rank(scores(model, "router_norm"), 0.25),
        "activation_weight, 25.0%": rank(scores(model, "activation_weight", calibrating), 0.25),
        "damage across layers, 12.5%": rank(
            expected_damage(model, calibrating, hardware), 0.125, across_layers=True
        ),
        "damage with gradient across layers, 25.0%": rank(
            expected_damage(model, calibrating, hardware, gradient=True), 0.25, across_layers=True
        ),
        "none": ((), ()),
    }
    masks = [as_mask(choice, 8) for choice in own.values()]
    digital = block_results(model.network, tokens)[0].mean()
    assert found["digital"]["loss"] == pytest.approx(float(digital))
    drawn = torch.stack(
        [
            losses(model, torch.stack(masks), hardware, calibration, draw, tokens).mean(1)
            for draw in config.seeds
        ]
    )
    for label, loss in zip(own, drawn.mean(0) - digital, strict=True):
        assert found["placements"][label] == pytest.approx(float(loss), rel=1e-4)
    random = [
        as_mask(rank(maxnn, 0.25, "random", generator=torch.Generator().manual_seed(draw)), 8)
        for draw in config.seeds
    ]
    expected = [
        float(losses(model, mask[None], hardware, calibration, draw, tokens).mean() - digital)
        for mask, draw in zip(random, config.seeds, strict=True)
    ]
    assert found["placements"]["random, 25.0%"] == pytest.approx(np.mean(expected), rel=1e-4)
    # Outliers: of the inputs of the LM head, the attention's and the experts' layers.
    names = [*model.map.linears, "model.layers.0.mlp.experts", "model.layers.1.mlp.experts"]
    calls = record(model, names, calibration_tokens(model, calibrating))
    ratios = [float(each[0].inputs[0].abs().max() / each[0].inputs[0].std()) for each in calls.values()]
    assert found["outliers"]["largest"] == pytest.approx(max(ratios))
    assert min(ratios) < found["outliers"]["median"] < max(ratios)


def test_analog_parts_are_those_of_figure_3(small: list[Config]) -> None:
    config = small[0]
    parts = measure(config)["parts"]
    shared = {name: getattr(config, name) for name in rig.Evaluated.__dataclass_fields__}
    reference = figure_3.Config(**shared, noise=rig.Noise("pcm", config.w_max), part=None, c=0.0, seed=0)
    digital, known = figure_3.measure(reference), figure_3.parts(rig.model(config.model, "cpu"))
    for label, c, draws in (("all dense modules", 1.5, config.seeds), ("100 % of experts", 0.0, (1,))):
        part = next(each for each in known if each.label == label)
        analog = [figure_3.measure(replace(reference, part=part, c=c, seed=draw)) for draw in draws]
        for quantity in ("loss", "accuracy"):
            change = np.mean([each[quantity] for each in analog]) - np.mean(digital[quantity])
            assert parts[f"{label}, c = {c:g}"][quantity] == pytest.approx(change, abs=1e-6)
        assert parts[f"{label}, c = {c:g}"]["parameters"] == analog[0]["analog_parameters"]
    assert len(parts) == 2 * 2 + 2


def test_a_model_of_another_recipe_is_not_of_the_ladder(small: list[Config]) -> None:
    folder = Path(small[0].model)
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps(recipe | {"steps": 7}))
    with pytest.raises(
        InputError, match=r"recipe.json has steps 7, and the ladder's olmoe-16m \d+: give the model"
    ):
        grid("quick", model=str(folder))
    for content in (b"[]", b"\xff", b"{", b'{"steps": 1, "steps": 2}'):
        (folder / "recipe.json").write_bytes(content)
        with pytest.raises(InputError, match=r"recipe\.json"):
            grid("quick", model=str(folder))
    folder.rename(folder.with_name("my-16m-3"))
    assert len(grid("quick", model=str(folder.with_name("my-16m-3")))) == 2


@pytest.mark.parametrize("number", ["00", "03", "²", "٣", "-1", ""])
def test_a_number_that_no_training_has_is_no_seed(number: str) -> None:
    assert on_ladder(f"olmoe-4m-{number}") is None
    assert on_ladder("olmoe-4m-30") == ("olmoe-4m", 30)


def test_one_model_does_not_count_twice(small: list[Config]) -> None:
    folder = Path(small[0].model)
    shutil.copytree(folder, folder.with_name("a-copy"))
    with pytest.raises(InputError, match=r"models .*a-copy and .*olmoe-16m-3 have the same name or the same"):
        grid("quick", model=str(folder.parent))
    shutil.rmtree(folder.with_name("a-copy"))
    assert len(grid("quick", model=str(folder.parent))) == len(small)
