"""Figure 3 on the peers: its units, its verdicts on data with known answers, and its drawing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from committed import assert_as_committed
from hypothesis import given, settings
from hypothesis import strategies as st

from figures.drawings import peers as drawing
from realmodels.experiments import figure_3, peers, rig
from realmodels.experiments.figure_3 import DENSE, EVERYTHING, RULE_1_EXPERTS, Part
from realmodels.experiments.peers import SIMULATORS, Config, grid, measure, summarise
from theory.errors import InputError
from theory.evidence import Finding, Result

PARTS = {
    DENSE: Part(DENSE, ("attention", "lm_head"), 0.0),
    RULE_1_EXPERTS: Part(RULE_1_EXPERTS, (), 0.875),
    EVERYTHING: Part(EVERYTHING, ("attention", "lm_head"), 1.0),
}
PARAMETERS = {DENSE: 2_000_000, RULE_1_EXPERTS: 7_000_000, EVERYTHING: 10_000_000}
DAMAGE = {DENSE: 0.5, RULE_1_EXPERTS: 0.2}  # loss increase at c = 1
CONVERTERS, BLOCKS, DRAWS = 0.001, 6, 6
UNITS = list(range(BLOCKS))  # every block a document of its own


def records(
    share: float = 0.0, converters: float = 0.0, spread: float = 0.0005, seed: int = 0
) -> tuple[list[Config], list[dict[str, Any]]]:
    """On lightning the increase differs from ours by the fraction `share`, and at c = 0 by `converters`.

    The draws themselves differ a hundred times more than the simulators do on one draw.
    """
    generator = np.random.default_rng(seed)
    digital = 2 + generator.random(BLOCKS)
    reference = Config("tiny-olmoe", "h", "t", "th", "cpu", BLOCKS, 32, rig.PCM[0], None, 0.0, 0, "ours", "")
    configs = [reference]
    found = [
        {
            "loss": list(digital),
            "accuracy": [0.5] * BLOCKS,
            "documents": UNITS,
            "analog_parameters": 0,
        }
    ]
    effects = 100 * spread * generator.standard_normal(DRAWS)
    for simulator in SIMULATORS:
        for kind in rig.PCM:
            for label, part in PARTS.items():
                for c in (0.0,) if label == EVERYTHING else (1.5, 2.5):
                    for draw in range(DRAWS if c else 1):
                        increase = c * DAMAGE[label] + effects[draw] if c else CONVERTERS
                        if simulator == "lightning":
                            increase += share * c * DAMAGE[label] if c else converters
                        noise = spread * generator.standard_normal(BLOCKS)
                        configs.append(
                            replace(
                                reference,
                                noise=kind,
                                part=part,
                                c=c,
                                seed=draw,
                                simulator=simulator,
                                version="" if simulator == "ours" else "9.9",
                            )
                        )
                        found.append(
                            {
                                "loss": list(digital + increase + noise),
                                "accuracy": [0.4] * BLOCKS,
                                "documents": UNITS,
                                "analog_parameters": PARAMETERS[label],
                            }
                        )
    return configs, found


def of_peer(result: Result, simulator: str) -> list[Finding]:
    return [each for each in result.findings if each.claim.startswith(f"{simulator} finds")]


@pytest.mark.parametrize(
    ("share", "verdict"),
    [
        (0.0, "holds"),
        (0.01, "holds"),
        (-0.01, "holds"),
        (0.02, "inconclusive"),
        (0.03, "fails"),
        (-0.03, "fails"),
    ],
)
def test_a_difference_is_judged_relative_to_the_increase(share: float, verdict: str) -> None:
    result = summarise(*records(share=share))
    assert_as_committed("figure-peers", result)
    with_noise = [each for each in of_peer(result, "lightning") if "c = 0" not in each.claim]
    assert len(with_noise) == 8  # granularities, parts, magnitudes
    assert {each.verdict for each in with_noise} == {verdict}
    for each in with_noise:
        assert each.estimate == pytest.approx(share, abs=0.003) and each.n == DRAWS
    assert {each.verdict for each in of_peer(result, "aihwkit")} == {"holds"}


@pytest.mark.parametrize(
    ("converters", "verdict"), [(0.0, "holds"), (0.005, "inconclusive"), (0.008, "fails"), (-0.008, "fails")]
)
def test_without_noise_a_difference_is_judged_in_nats(converters: float, verdict: str) -> None:
    findings = [
        each
        for each in of_peer(summarise(*records(converters=converters)), "lightning")
        if "c = 0" in each.claim
    ]
    assert [each.verdict for each in findings] == [verdict] * 2
    for each in findings:
        assert each.n == BLOCKS and each.estimate == pytest.approx(converters, abs=0.001)


def test_draws_are_paired() -> None:
    """Effects that the draws have in common drop out: the interval is of the difference between simulators."""
    for each in of_peer(summarise(*records()), "aihwkit"):
        assert each.interval is not None and each.interval[1] - each.interval[0] < 0.01


def test_three_documents_decide_nothing() -> None:
    """However many blocks and draws there are."""
    configs, found = records()
    few = [record | {"documents": [unit // 2 for unit in UNITS]} for record in found]
    for finding in summarise(configs, few).findings:
        assert (finding.n, finding.verdict) == (3, "inconclusive")


def test_figure_3s_rules_are_applied_on_each_simulator() -> None:
    configs, found = records()
    result = summarise(configs, found)
    assert len(result.findings) == 3 * 10 + 2 * 10
    for simulator in SIMULATORS:
        mine = [
            (config, record)
            for config, record in zip(configs, found, strict=True)
            if config.part is None or config.simulator == simulator
        ]
        expected = figure_3.summarise(*zip(*mine, strict=True)).findings
        on = [each for each in result.findings if each.claim.endswith(f"; on {simulator}")]
        assert [replace(each, claim=each.claim.removesuffix(f"; on {simulator}")) for each in on] == list(
            expected
        )
    assert result.data["versions"] == {"ours": "", "aihwkit": "9.9", "lightning": "9.9"}


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), shift=st.floats(-1, 1))
def test_only_changes_count_and_the_order_of_units_does_not(seed: int, shift: float) -> None:
    configs, found = records(share=0.01, seed=seed)
    moved = [record | {"loss": [loss + shift for loss in record["loss"]]} for record in found]
    order = np.random.default_rng(seed).permutation(len(configs))
    mixed = summarise([configs[i] for i in order], [found[i] for i in order])
    first = {each.claim: each for each in summarise(configs, found).findings}
    for other in (summarise(configs, moved), mixed):
        assert len(other.findings) == len(first)
        for each in other.findings:
            assert each.verdict == first[each.claim].verdict
            assert each.estimate == pytest.approx(first[each.claim].estimate, rel=1e-9, abs=1e-12)


def points(axis: Any) -> list[int]:
    """Number of points drawn for each simulator."""
    return [len(bars.lines[0].get_xdata()) for bars in axis.containers]


def words(figure: Any) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def test_the_picture_shows_every_simulator_and_how_many_verdicts_agree() -> None:
    result = summarise(*records())
    figures = [drawing.draw(result), *(draw(result) for draw, _ in drawing.PARTS.values())]
    drawn = [[points(axis) for axis in figure.axes] for figure in figures]
    assert drawn == [2 * [[4, 4]], 2 * [[4, 4, 4]], 2 * [[1, 1, 1]]]
    figure = figures[1]
    title = words(figure)
    assert "10 of 10 of figure 3's findings have the same verdict" in title and "6 blocks of 32" in title
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["this project", "aihwkit 9.9", "aihwkit-lightning 9.9"]
    # On lightning, converters alone cost more than figure 3's rule allows: two verdicts differ.
    title = words(drawing.draw(summarise(*records(converters=0.05))))
    assert "8 of 10 of figure 3's findings have the same verdict" in title


def test_an_unbounded_interval_is_a_point_without_a_bar() -> None:
    result = summarise(*records(spread=0.02))
    unbounded = [each for each in result.data["differences"] if each["c"] and each["share_interval"] is None]
    assert unbounded
    assert points(drawing.draw(result).axes[0]) == [4, 4]


def test_the_table_has_a_row_for_every_curve() -> None:
    rows = drawing.table(summarise(*records()))
    assert len(rows) == 3 * 2 * 5
    for row in rows:
        assert row["loss_change_low"] < row["loss_change"] < row["loss_change_high"]


# On a model


@pytest.fixture(scope="module")
def units(small_model_folder: Path) -> list[Config]:
    pytest.importorskip("aihwkit")
    return grid("quick", model=str(small_model_folder), seeds=2)


def test_the_simulators_share_everything(units: list[Config]) -> None:
    assert units[0].part is None and len(set(units)) == len(units) == 1 + 3 * 2 * (2 * 2 + 1)
    by_simulator = {
        simulator: [
            replace(unit, simulator="ours", version="") for unit in units[1:] if unit.simulator == simulator
        ]
        for simulator in SIMULATORS
    }
    assert by_simulator["ours"] == by_simulator["aihwkit"] == by_simulator["lightning"]
    assert {(unit.part.label, unit.c) for unit in units[1:] if unit.part} == {
        (DENSE, 2.5),
        (RULE_1_EXPERTS, 2.5),
        (EVERYTHING, 0.0),
    }
    assert {unit.noise for unit in units} == set(rig.PCM)
    assert {unit.seed for unit in units if unit.c} == {1000, 1001}
    assert all(bool(unit.version) == (unit.simulator != "ours") for unit in units)


def test_every_rule_is_judged_at_the_default_and_full_preset() -> None:
    for preset in ("default", "full"):
        settings = peers.PRESETS[preset]
        assert settings.magnitudes == figure_3.RULE_1_C and settings.draws >= 8


def test_units_are_measured_on_their_simulator(units: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    reference = measure(units[0])
    fields = {name: getattr(units[0], name) for name in figure_3.Config.__dataclass_fields__}
    assert reference == figure_3.measure(figure_3.Config(**fields))
    noisy = [unit for unit in units if unit.c and unit.noise == rig.PCM[1] and unit.seed == 1001]
    dense = {unit.simulator: measure(unit) for unit in noisy if unit.part and unit.part.label == DENSE}
    assert len(dense) == 3
    increase = np.mean(dense["ours"]["loss"]) - np.mean(reference["loss"])
    for name in ("aihwkit", "lightning"):
        assert dense[name]["analog_parameters"] == dense["ours"]["analog_parameters"]
        difference = np.mean(dense[name]["loss"]) - np.mean(dense["ours"]["loss"])
        assert abs(difference) < 0.2 * abs(increase)
    assert measure(units[0]) == reference  # the model is digital again
    from realmodels import peers as simulators

    asked = []
    real = simulators.deployed_on

    def spy(simulator: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(simulator)
        return real(simulator, *arguments, **options)

    monkeypatch.setattr(simulators, "deployed_on", spy)
    for unit in noisy:
        measure(unit)
    assert asked == ["aihwkit", "aihwkit", "lightning", "lightning"]


def test_a_missing_package_is_named(small_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PACKAGES, "lightning", "no-such-package")
    with pytest.raises(InputError, match=r"--figure peers: the package .* is missing; `make install`"):
        grid("quick", model=str(small_model_folder))


def test_one_draw_is_refused(units: list[Config]) -> None:
    with pytest.raises(InputError, match="--seeds 1: .*at least 2"):
        grid("quick", model=units[0].model, seeds=1)
