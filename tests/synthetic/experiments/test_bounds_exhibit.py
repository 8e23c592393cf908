"""Does the exhibit `bounds` count right, judge data with known answers right, and draw them?"""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from committed import assert_as_committed
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from scipy import stats

from figures.catalogue import EXHIBITS, find
from figures.drawings import bounds as drawing
from figures.rules import read
from synthetic.data import evaluation_samples
from synthetic.experiments import bounds
from synthetic.experiments.bounds import BOUNDS, DELTAS, PLACEMENTS, Case, Config, grid, measure, summarise
from synthetic.model import ModelConfig, MoE, initialise
from synthetic.robustness import Programmed, noisy_outputs, program
from theory.errors import InputError
from theory.evidence import Finding, Result
from theory.hardware import PROGRAMMING_NOISE, Hardware
from theory.separation import FIRST_FRESH_SEED
from theory.setting import Setting

DRAWS = 1000
INPUTS = 6
SEEDS = 5


def units(
    rate: float = 0.1, upper_rate: float = 3.0, tightness: float = 3.0, cases: tuple[Case, ...] = (Case(),)
) -> tuple[list[Config], list[dict[str, Any]]]:
    """Units whose cells all have the failure rate `rate` delta, or `upper_rate` delta for U; all inputs are rare."""
    configs = [Config(case, seed, DRAWS, INPUTS, INPUTS) for case in cases for seed in range(SEEDS)]
    rows = []
    for placement in PLACEMENTS:
        for delta in DELTAS:
            for bound in BOUNDS:
                count = round(min(1.0, (upper_rate if bound == "U" else rate) * delta) * DRAWS)
                cells = {"Bu": 1, "U": len(bounds.BEYOND) * INPUTS}.get(bound, INPUTS)
                rows.append(
                    {
                        "placement": placement,
                        "delta": delta,
                        "bound": bound,
                        "failures": [count] * cells,
                        "silent": 0,
                        "tightness": {"rare": [tightness] * INPUTS},
                    }
                )
    records = [json.loads(json.dumps({"rows": rows})) for _ in configs]
    for config, record in zip(configs, records, strict=True):
        for row in record["rows"]:
            row["tightness"]["rare"] = [1.01**config.seed * ratio for ratio in row["tightness"]["rare"]]
    return configs, records


def validity(result: Result, words: str = "errs") -> dict[str, Finding]:
    return {f.claim.partition(":")[0]: f for f in result.findings if words in f.claim}


def test_verdicts_on_validity_follow_the_counts() -> None:
    for rate, verdict in ((0.1, "holds"), (2.0, "fails"), (1.0, "inconclusive")):
        found = validity(summarise(*units(rate)))
        assert set(found) == set(BOUNDS)
        for bound in bounds.LOWER:
            assert found[bound].verdict == verdict
            assert found[bound].estimate == pytest.approx(rate)
            cells = SEEDS * len(PLACEMENTS) * len(DELTAS) * (1 if bound == "Bu" else INPUTS)
            assert found[bound].n == DRAWS
            violations = cells if verdict == "fails" else 0
            assert (
                f"{cells} cells, {violations} violations in {cells * DRAWS} pairs" in found[bound].statistic
            )
        assert found["U"].verdict == "holds"
    for rate, verdict in ((3.0, "holds"), (0.3, "fails"), (1.0, "inconclusive")):
        found = validity(summarise(*units(upper_rate=rate)))
        assert (found["U"].verdict, found["B"].verdict) == (verdict, "holds")


@pytest.mark.parametrize(("bound", "count"), [("B-mean", 150), ("U", 5)])  # 15 % or .5 % for 5 %
def test_one_cell_in_hundreds_is_enough(bound: str, count: int) -> None:
    configs, records = units()
    row = next(row for row in records[1]["rows"] if row["bound"] == bound and row["delta"] == 0.05)
    row["failures"][2] = count
    found = validity(summarise(configs, records))
    assert {name for name, finding in found.items() if finding.verdict == "fails"} == {bound}
    assert found[bound].estimate == pytest.approx(count / 50)
    assert "1 violations" in found[bound].statistic


def test_limits_are_clopper_and_pearsons() -> None:
    configs, records = units(0.5)
    row = next(row for row in summarise(configs, records).data["by_delta"] if row["bound"] == "B")
    cells = SEEDS * len(PLACEMENTS) * INPUTS
    exact = stats.binomtest(25, DRAWS).proportion_ci(1 - 0.05 / cells, method="exact")
    assert row["interval"] == pytest.approx([exact.low / 0.05, exact.high / 0.05])
    for counts, interval in (
        ([0], (0.0, 1 - 0.025 ** (1 / DRAWS))),
        ([DRAWS], (0.025 ** (1 / DRAWS), 1.0)),
    ):
        cell = bounds._Cells(Case(), 0, DRAWS, "none", 0.5, "B", counts, 0, {})
        worst = bounds._Worst.of([cell])
        assert worst is not None
        assert worst.interval(0.95) == pytest.approx([2 * limit for limit in interval])


def test_p_is_where_the_simultaneous_interval_begins_to_decide() -> None:
    result = summarise(*units(0.6))
    finding = validity(result)["B"]
    assert finding.family == "validity, theory's noise" and 1e-12 < finding.p < 1
    cells = [
        bounds._Cells(Case(), 0, DRAWS, "none", delta, "B", [round(0.6 * delta * DRAWS)] * 90, 0, {})
        for delta in DELTAS
    ]
    worst = bounds._Worst.of(cells)
    assert worst is not None and worst.interval(1 - finding.p)[1] == pytest.approx(1, abs=1e-4)


def test_verdicts_on_tightness_follow_the_ratios() -> None:
    for tightness, verdict in ((3.0, "holds"), (30.0, "fails")):
        found = validity(summarise(*units(tightness=tightness)), "order of magnitude")
        assert len(found) == len(BOUNDS)
        assert {finding.verdict for finding in found.values()} == {verdict}
        for finding in found.values():
            assert finding.estimate == pytest.approx(1.01**2 * tightness)
            assert finding.n == SEEDS and finding.family == "tightness"


def test_families_are_those_of_the_rules() -> None:
    rules = read(find("figure-bounds", EXHIBITS))
    assert {
        finding.family for finding in summarise(*units(cases=(Case(), Case(w_max="column")))).findings
    } == set(rules.families)


def test_claims_are_those_that_are_committed() -> None:
    cases = (Case(), Case(w_max="column"), Case(programming="pcm"), Case(bits=6))
    # U knows no ADC: no unit measures it there, but these records have it everywhere.
    new = ["U: an input errs more often than stated; 6-bit"]
    assert_as_committed("figure-bounds", summarise(*units(cases=cases)), new=new)


def test_other_hardware_is_judged_in_groups() -> None:
    cases = (
        Case(),
        Case(w_max="column"),
        Case(programming="pcm"),
        Case(programming="pcm", w_max="column"),
        Case(bits=6),
    )
    result = summarise(*units(cases=cases))
    groups = {row["group"]: len(row["bounds"]) for row in result.data["validity"] if row["bounds"] != ["U"]}
    assert groups == {"theory": 1, "w_max per neuron": 4, "pcm noise": 4, "6-bit converters": 4}
    pcm = next(row for row in result.data["validity"] if row["group"] == "pcm noise")
    assert pcm["cells"] == 2 * SEEDS * len(PLACEMENTS) * len(DELTAS) * (3 * INPUTS + 1)


def test_cells_that_say_nothing_are_left_out_and_counted() -> None:
    configs, records = units()
    for record in records:
        for row in record["rows"]:
            if row["bound"] == "Bu":
                row.update(failures=[], silent=1, tightness={"rare": []})
    result = summarise(configs, records)
    assert not [finding for finding in result.findings if finding.claim.startswith("Bu")]
    assert {row["stated"] for row in result.data["tightness"] if row["bound"] == "Bu"} == {0}
    assert {row["stated"] for row in result.data["tightness"] if row["bound"] != "Bu"} == {1}
    for draw in (drawing.draw, *(draw for draw, _ in drawing.PARTS.values())):
        assert isinstance(draw(result), Figure)
    assert drawing.table(result)[0]["rare_median"] is None or drawing.table(result)[0]["bound"] != "Bu"


# What is counted


def untrained(
    dictionary: Any, hardware: Hardware, draws: int = 64
) -> tuple[MoE, Programmed, Any, torch.Tensor]:
    """A network with weights of order one, so that no ReLU is far from its kink."""
    setting = Setting(d=12, n=6, l=3, m=4)
    task = replace(bounds._task(0.1, dictionary), d=setting.d, n=setting.n)
    model = initialise(task, replace(ModelConfig.of(setting), init_std=1.0), (3,))
    samples = evaluation_samples(task, 16, (3,))
    gates = model.gates(samples.tokens)
    return model, program(model, hardware, draws, (3,)), gates, samples.labels


@settings(max_examples=20, deadline=None)
@given(
    c=st.floats(0.01, 10),
    analog=st.lists(st.booleans(), min_size=8, max_size=8),
    programming=st.sampled_from(sorted(PROGRAMMING_NOISE)),
    bits=st.sampled_from([None, 4, 8]),
)
def test_errors_are_those_of_the_whole_network(
    c: float, analog: list[bool], programming: str, bits: int | None
) -> None:
    """If all inputs have the same c, the errors that are counted are those of the network at this c."""
    hardware = Hardware(programming=programming, w_max="layer", dac_bits=bits, adc_bits=bits)
    _, programmed, gates, labels = untrained("rotated", hardware)
    mask = torch.tensor(analog)
    read = bounds._Read.of(programmed, gates[0], labels[0])
    outputs = labels * noisy_outputs(programmed, gates, c, mask)
    counted = read.failures(mask, torch.full((16,), c))
    near = (outputs.abs() < 1e-4).sum(0)[0]  # sums in another order may differ in sign
    assert ((counted - (outputs <= 0).sum(0)[0]).abs() <= near).all()


@pytest.mark.parametrize("bits", [None, 8, 6, 4])
@pytest.mark.parametrize("programming", sorted(PROGRAMMING_NOISE))
@pytest.mark.parametrize("w_max", ["layer", "column"])
def test_theory_is_asked_about_the_network_that_is_programmed(
    bits: int | None, programming: str, w_max: Any
) -> None:
    """Means, deviations and converter bounds are the same numbers in theory's view and in the simulation."""
    hardware = Hardware(programming=programming, w_max=w_max, dac_bits=bits, adc_bits=bits)
    model, programmed, _, _ = untrained("rotated", hardware)
    network = bounds._network(programmed, hardware, torch.ones(8, dtype=torch.bool))
    up = programmed.received["up"]
    torch.testing.assert_close(network.preactivations.float(), up.target[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.token_noise.float(), up.deviation[0], rtol=1e-5, atol=1e-6)
    if bits is None:
        assert network.adc_bound is None
        return
    assert network.adc_bound is not None and network.adc_step is not None
    sizes = network.weights.abs()
    largest = sizes.amax(-1) if w_max == "column" else sizes.amax((1, 2))[:, None].expand(-1, 4)
    ratio = network.adc_bound / largest
    assert ratio.max() / ratio.min() == pytest.approx(1, rel=1e-5)  # lam times the DAC's bound
    torch.testing.assert_close(network.adc_step * (2 ** (bits - 1) - 1), network.adc_bound)
    clean = model.weights["up"][0] @ model.tokens[0].T
    assert (
        clean.abs() <= network.adc_bound[..., None] * (1 + 1e-5)
    ).all()  # calibrated: nothing clean saturates


@given(st.lists(st.floats(-11, 5), min_size=1, max_size=5))
def test_the_empirical_c_is_found(logarithms: list[float]) -> None:
    edge = 2 ** torch.tensor(logarithms, dtype=torch.float64)
    found = bounds._bisected(lambda c: c <= edge, len(edge))
    assert (found <= edge).all() and (edge <= 1.026 * found).all()
    assert bounds._bisected(lambda c: c > math.inf, 1) == 0
    assert bounds._bisected(lambda c: c > 0, 1) == math.inf


def small(case: Case, seed: int = 0) -> Config:
    return Config(case, seed, draws=512, inputs=4, many=16)


def test_a_false_bound_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment says that B fails if it is too large, and U if it is too small."""
    lower, upper = bounds.pointwise_bound, bounds.upper_bound
    monkeypatch.setattr(bounds, "pointwise_bound", lambda *given: 12 * lower(*given))
    monkeypatch.setattr(bounds, "upper_bound", lambda *given: upper(*given) / 8)
    found = validity(summarise([small(Case())], [measure(small(Case()))]))
    assert (found["B"].verdict, found["U"].verdict) == ("fails", "fails")
    assert found["B-exp"].verdict == found["Bu"].verdict == "holds"


def test_units_of_every_kind_of_hardware_are_measured_and_drawn() -> None:
    cases = (Case(), Case(programming="hermes", w_max="column"), Case(bits=8, dictionary="rotated"))
    configs = [*map(small, cases), small(Case(), seed=1)]
    records = [json.loads(json.dumps(measure(config))) for config in configs]
    for config, record in zip(configs, records, strict=True):
        bounds_of = {row["bound"] for row in record["rows"]}
        assert bounds_of == set(BOUNDS) - ({"U"} if config.case.bits else set())
        assert len(record["rows"]) == len(PLACEMENTS) * len(DELTAS) * len(bounds_of)
        for row in record["rows"]:
            ratios = [ratio for each in row["tightness"].values() for ratio in each]
            cells = len(row["failures"]) / (2 if row["bound"] == "U" else 1)  # at c_U and 4 c_U
            assert cells + row["silent"] == (1 if row["bound"] == "Bu" else config.inputs)
            if row["bound"] == "U":
                assert min(ratios, default=1) > 0.9  # the empirical c is one of 256 draws
            elif ratios:
                assert min(ratios) > 0.9
    result = Result.from_json(summarise(configs, records).to_json())
    assert not [f for f in result.findings if f.verdict == "fails" and "errs" in f.claim]
    theory, other = drawing.draw(result).axes
    labels = [[label.get_text() for label in axis.get_yticklabels()] for axis in (theory, other)]
    assert labels[0][0] == "all inputs at once (Bu)" and "8-bit converters" in labels[1]
    keys = [[bars.get_label() for bars in axis.containers] for axis in (theory, other)]
    assert keys[0][0] == "δ = 0.05" and "all lower bounds (Bu, B, B-mean, B-exp)" in keys[1]
    assert [len(draw(result).axes) for draw, _ in drawing.PARTS.values()] == [3, 1]
    rows = drawing.table(result)
    assert len(rows) == len(PLACEMENTS) * len(DELTAS) * (2 * len(BOUNDS) + len(bounds.LOWER))
    low, middle, high = np.array(
        [
            [row[f"rare_{name}"] for name in ("low", "median", "high")]
            for row in rows
            if row["rare_low"] is not None
        ]
    ).T
    assert (low <= middle).all() and (middle <= high).all()


def test_the_grid_covers_what_is_claimed() -> None:
    configs = grid("full")
    assert len(configs) == len(set(configs))
    cases = {config.case for config in configs}
    theory = {case for case in cases if case.group == "theory"}
    assert {case.alpha for case in theory} == {0.02, 0.05, 0.1, 0.15, 0.2, 0.25}
    assert {case.m for case in theory} == {2, 8, 32}
    assert {case.programming for case in cases} == set(PROGRAMMING_NOISE)
    assert {case.bits for case in cases} == {None, 8, 6, 4}
    assert all((case.dictionary == "rotated") == (case.bits is not None) for case in cases)
    assert len({config.seed for config in configs}) >= 10
    assert {config.seed for config in configs} == set(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + 10))
    assert {config.seed for config in grid("quick", seeds=3, first_seed=0)} == {0, 1, 2}
    with pytest.raises(InputError, match="--seeds 1"):
        grid("quick", seeds=1)
