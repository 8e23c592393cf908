"""The exhibit `rivals`: its verdicts on records with known answers, its drawing, what a unit measures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from committed import assert_as_committed

from figures.catalogue import EXHIBITS, find
from figures.drawings import rivals as drawing
from figures.rules import read
from realmodels.compare import as_mask, losses
from realmodels.damage import expected_damage
from realmodels.experiments import rig, rivals
from realmodels.experiments.rivals import (
    ACROSS,
    LABELS,
    OTHERS,
    RULE_C,
    RULE_FRACTIONS,
    Config,
    grid,
    measure,
    summarise,
)
from realmodels.scores import scores
from theory.errors import InputError
from theory.evidence import Result
from theory.hardware import Hardware
from theory.other_scores import mc_score
from theory.placement import rank

BLOCKS, DRAWS = 6, 5
CONFIG = Config(
    "tiny-olmoe", "h", "t", "th", "cpu", BLOCKS, 32,
    w_max="tile", fractions=RULE_FRACTIONS, seeds=tuple(range(DRAWS)),
)  # fmt: skip
LOSSES = dict.fromkeys(LABELS, 0.15)
FAMILIES = [("MaxNNScore against others", "maxnn", ""), ("expected damage against others", "damage", ACROSS)]


def record(increases: dict[str, float], fraction_of_own: float = 1.0) -> dict[str, Any]:
    """Losses by label; at the larger fraction, those times `fraction_of_own`."""
    rng = np.random.default_rng(0)
    digital = 2 + rng.random(BLOCKS)
    common = 0.02 * (rng.standard_normal((DRAWS, 1)) + rng.standard_normal(BLOCKS))
    return {
        "digital": digital.tolist(),
        "documents": list(range(BLOCKS)),
        "losses": [
            {
                "label": label,
                "fraction": fraction,
                "loss": (digital + times * value * (1 + common)).tolist(),
            }
            for fraction, times in zip(RULE_FRACTIONS, (1.0, fraction_of_own), strict=True)
            for label, value in increases.items()
        ],
    }


def result(increases: dict[str, float] = LOSSES, **changes: Any) -> Result:
    configs = [replace(CONFIG, w_max=w_max, **changes) for w_max in ("tile", "column")]
    return summarise(configs, [record(increases) for _ in configs])


@pytest.mark.claim("D")
@pytest.mark.parametrize(("family", "own", "form"), FAMILIES)
@pytest.mark.parametrize("other", OTHERS)
def test_scores_of_others_win_and_lose_against_what_they_are_compared_with(
    family: str, own: str, form: str, other: str
) -> None:
    """Losses of all other placements, the other score's other form among them, change no verdict."""
    for ours, theirs, verdict in ((0.11, 0.13, "holds"), (0.13, 0.11, "fails")):
        increases = dict.fromkeys(LABELS, 0.12) | {own + form: ours, other + form: theirs}
        of_family = [finding for finding in result(increases).findings if finding.family == family]
        assert len(of_family) == 2 * 2 * len(OTHERS)
        judged = [each for each in of_family if f"less than {OTHERS[other]}{form};" in each.claim]
        assert len(judged) == 2 * 2 and {finding.verdict for finding in judged} == {verdict}
        for finding in judged:
            assert finding.estimate == pytest.approx(ours - theirs, abs=0.002) and finding.n == DRAWS
            assert finding.statement == ("D" if own == "damage" else None) and finding.origin == "ours"


@pytest.mark.parametrize("name", ["figure-rivals", "figure-rivals-deepseek"])
def test_findings_are_of_the_families_and_thresholds_of_the_rules(name: str) -> None:
    exhibit = find(name, EXHIBITS)
    made = result(model=exhibit.defaults.get("model", CONFIG.model))
    found = made.findings
    assert {finding.family for finding in found} == set(read(exhibit).families)
    assert len({finding.claim for finding in found}) == len(found) == 2 * 2 * 2 * len(OTHERS)
    assert_as_committed(name, made)


def test_a_finding_is_of_its_own_budget() -> None:
    found = summarise([CONFIG], [record(LOSSES | {"maxnn": 0.1}, fraction_of_own=3.0)]).findings
    mine = {finding.claim.partition("tile, ")[2]: finding for finding in found if "MaxNN" in finding.claim}
    assert mine["12.5% of experts digital"].estimate == pytest.approx(-0.05, abs=0.002)
    assert mine["25.0% of experts digital"].estimate == pytest.approx(-0.15, abs=0.006)


def test_documents_are_the_units_of_text() -> None:
    few = record(LOSSES | {"maxnn": 0.1}) | {"documents": [0, 0, 1, 1, 2, 2]}
    for finding in summarise([CONFIG], [few]).findings:
        assert (finding.n, finding.verdict) == (3, "inconclusive")


def test_the_drawing_is_that_of_the_findings() -> None:
    found = result(LOSSES | {"maxvar": 0.3, "damage" + ACROSS: 0.11})
    figure = drawing.draw(found)
    assert len(figure.axes) == 2 * 2
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == list(OTHERS.values()) == list(drawing.OTHERS)
    for axis in figure.axes:
        maxnn, damage = (bars[0].get_xdata() for bars in axis.containers)
        assert maxnn == pytest.approx([0.15 - 0.3, 0, 0, 0], abs=0.003)
        assert damage == pytest.approx([0.11 - 0.15] * 4, abs=0.003)
    assert len(drawing.table(found)) == len(found.data["rows"]) == 2 * 2 * len(LABELS)
    assert drawing.C == RULE_C
    assert Result.from_json(replace(found, exhibit="figure-x", preset="quick").to_json()).data == found.data


def test_the_grid() -> None:
    full = grid("full")
    assert [config.w_max for config in full] == ["tile", "column"] and len(full[0].seeds) == 16
    assert grid("quick", seeds=2, first_seed=7)[0].seeds == (7, 8)
    with pytest.raises(InputError, match="--seeds 1"):
        grid("quick", seeds=1)
    assert {config.model for config in grid("quick", model="tiny-deepseek-moe")} == {"tiny-deepseek-moe"}


@pytest.mark.slow
def test_a_real_unit() -> None:
    """Losses are those of the placements of each score, in the form in which it is compared, on evaluation text."""
    (config,) = grid("quick", seeds=2, first_seed=7)
    config = replace(config, fractions=(0.25,))
    model, hardware = rig.model(config.model, "cpu"), Hardware(c=RULE_C, w_max="tile")
    texts = model.texts("calibration")
    damage = expected_damage(model, texts, hardware)
    own = {
        "maxnn": scores(model),
        "alphaq across layers": scores(model, "alphaq"),
        "msan": scores(model, "msan", texts),
        "mc across layers": mc_score(
            scores(model, "activation_frequency", texts), scores(model, "activation_weight", texts), damage
        ),
        "damage across layers": damage,
    }
    masks = [
        as_mask(rank(each, 0.25, across_layers="across" in label), damage.shape[1])
        for label, each in own.items()
    ]
    found = measure(config)
    assert [each["label"] for each in found["losses"]] == list(LABELS)
    measured = {each["label"]: each["loss"] for each in found["losses"]}
    calibration = rig.calibration(config.model, "cpu", Hardware(w_max="tile"))
    for number, draw in enumerate(config.seeds):
        expected = losses(model, torch.stack(masks), hardware, calibration, draw, rig.tokens(config))
        for label, loss in zip(own, expected, strict=True):
            assert measured[label][number] == pytest.approx(loss.tolist(), rel=1e-4)
    assert found["documents"] == rig.documents(config)
    assert np.mean(found["digital"]) < min(np.mean(each) for each in measured.values())
    assert ("maxnn", *OTHERS, "damage" + ACROSS, *(other + ACROSS for other in OTHERS)) == rivals.LABELS
