"""Table 1: its units, its verdicts on data with known answers, and its drawing."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from committed import assert_as_committed
from matplotlib.patches import Rectangle

from figures.drawings import table_1 as drawing
from realmodels.analog import LayerCalibration
from realmodels.calibrate import Calibration, Method
from realmodels.experiments.rig import GRANULARITIES
from realmodels.experiments.table_1 import MODELS, Config, grid, measure, scaled, summarise
from theory.errors import InputError
from theory.hardware import Hardware

BLOCKS = 12
FACTORS = (0.5, 1.0, 2.0)
COSTS = {
    8: (0.002, 0.01),
    6: (0.02, 0.1),
    4: (0.2, 1.0),
}  # loss increase, experts and everything analog
Cells = dict[tuple[float, float], float]


def records(
    costs: dict[int, tuple[float, float]] = COSTS,
    of_model: dict[int, tuple[float, float]] = COSTS,
    cells: Cells | None = None,
    models: tuple[str, ...] = MODELS,
) -> tuple[list[Config], list[dict[str, Any]]]:
    """costs, of_model: with kappa and lam of every layer, and with one of each for the whole model.

    cells: loss increases of the heat map, 0.01 at the calibrated point and 0.1 elsewhere if not given.
    """
    generator = np.random.default_rng(0)
    text = 2 + generator.random(BLOCKS)  # blocks differ far more than placements do

    def found(increase: float) -> dict[str, list[float]]:
        noise = 1e-4 * generator.standard_normal(BLOCKS)
        loss = text + increase + noise - noise.mean()
        accuracy = 0.5 - increase / 10 + 0 * text
        return {"loss": loss.tolist(), "accuracy": accuracy.tolist(), "documents": list(range(BLOCKS))}

    configs, results = [], []
    for name in models:
        first = Config(
            name, "h", "t", "th", "cpu", BLOCKS, 32, "table", ("nothing",), "tile", 8, "layer", 1.0, 1.0
        )
        configs.append(first)
        results.append({"nothing": found(0.0)})
        both: dict[Method, dict[int, tuple[float, float]]] = {"layer": costs, "model": of_model}
        for calibration, w_max in product(both, GRANULARITIES):
            for bits, (experts, everything) in both[calibration].items():
                part = replace(first, calibration=calibration, w_max=w_max, bits=bits)
                configs.append(replace(part, analog=("experts", "everything")))
                results.append({"experts": found(experts), "everything": found(everything)})
        configs.append(replace(first, part="heat map"))
        results.append({"nothing": found(0.0)})
        for kappa in FACTORS:
            for lam in FACTORS:
                cell = replace(first, part="heat map", analog=("everything",))
                configs.append(replace(cell, kappa_factor=kappa, lam_factor=lam))
                usual = 0.01 if kappa == lam == 1 else 0.1
                results.append({"everything": found((cells or {}).get((kappa, lam), usual))})
    return configs, results


def verdicts(claim: str, **changes: Any) -> list[str]:
    findings = summarise(*records(models=("m",), **changes)).findings
    return [finding.verdict for finding in findings if finding.claim.startswith(claim)]


# Findings on one kind of calibration depend on its costs alone.
CALIBRATIONS = pytest.mark.parametrize(
    ("start", "which"), [("", "costs"), ("one kappa and lambda: ", "of_model")]
)


@CALIBRATIONS
@pytest.mark.parametrize(("experts", "verdict"), [(0.002, "holds"), (0.02, "fails"), (0.01, "inconclusive")])
def test_converters_on_experts_cost_little(experts: float, verdict: str, start: str, which: str) -> None:
    costs = {which: COSTS | {8: (experts, 0.05)}}
    assert verdicts(f"{start}converters on the experts alone cost little", **costs) == [verdict, verdict]


@CALIBRATIONS
@pytest.mark.parametrize(
    ("everything", "verdict"), [(0.01, "holds"), (0.003, "fails"), (0.004, "inconclusive")]
)
def test_dense_modules_cost_more_than_experts(
    everything: float, verdict: str, start: str, which: str
) -> None:
    costs = {which: COSTS | {8: (0.002, everything)}}
    assert verdicts(f"{start}dense modules on analog hardware cost more", **costs) == [verdict] * 2


@CALIBRATIONS
@pytest.mark.parametrize(("six", "verdict"), [(0.1, "holds"), (0.005, "fails"), (0.01, "inconclusive")])
def test_fewer_bits_cost_more(six: float, verdict: str, start: str, which: str) -> None:
    costs = {which: COSTS | {6: (0.02, six)}}
    found = [verdicts(f"{start}{fewer} bits cost more", **costs) for fewer in (4, 6)]
    assert found == [["holds"] * 2, [verdict] * 2]  # against 6, against 8


@pytest.mark.parametrize(
    ("of_model", "expected"),
    [
        ((0.003, 0.012), ["holds", "holds"]),
        ((0.001, 0.009), ["fails", "fails"]),
        ((0.002, 0.012), ["inconclusive", "holds"]),
        ((0.003, 0.01), ["holds", "inconclusive"]),
    ],
)
def test_ranges_of_every_layer_cost_less_than_those_of_the_whole_model(
    of_model: tuple[float, float], expected: list[str]
) -> None:
    found = verdicts("kappa and lambda of every layer cost less", of_model=COSTS | {8: of_model})
    assert found == expected * 2


@pytest.mark.parametrize(("best", "verdict"), [(0.1, "holds"), (0.009, "holds"), (0.004, "fails")])
def test_the_calibrated_point_is_the_best_of_the_heat_map(best: float, verdict: str) -> None:
    assert verdicts("calibration finds the best of the heat map", cells={(2.0, 0.5): best}) == [verdict]


def test_the_best_cell_is_judged_on_text_that_did_not_choose_it() -> None:
    configs, found = records(models=("m",))
    place = next(i for i, config in enumerate(configs) if config.kappa_factor == 0.5)
    centre = next(
        i
        for i, config in enumerate(configs)
        if config.part == "heat map"
        and config.analog == ("everything",)
        and config.kappa_factor == 1
        and config.lam_factor == 1
    )
    # Much better on the half that chooses, as good on the other.
    loss = np.array(found[centre]["everything"]["loss"])
    loss[::2] -= 0.5
    loss[1::2] += np.resize([1e-4, -1e-4], BLOCKS // 2)
    found[place] = {"everything": found[centre]["everything"] | {"loss": loss.tolist()}}
    finding = next(each for each in summarise(configs, found).findings if "heat map" in each.claim)
    assert (
        finding.estimate == pytest.approx(0, abs=1e-12)
        and finding.verdict == "holds"
        and finding.n == BLOCKS // 2
    )
    assert "kappa x 0.5" in finding.statistic


def test_factors_multiply_every_layer_and_nothing_else() -> None:
    one, other = LayerCalibration(2.0, 3.0, 4.0), LayerCalibration(5.0, 3.0, 4.0)
    hardware = Hardware(c=0.0)
    found = scaled(Calibration({"a": one, "b": (one, other)}, hardware), 0.5, 4.0)
    assert found.layers == {
        "a": LayerCalibration(2.0, 1.5, 16.0),
        "b": (LayerCalibration(2.0, 1.5, 16.0), LayerCalibration(5.0, 1.5, 16.0)),
    }
    assert found.hardware == hardware


def test_the_picture_and_the_rows_hold_published_numbers_beside_ours() -> None:
    result = summarise(*records())
    assert_as_committed("table-1", result)
    configs, found = records()
    configs = [replace(each, blocks=3) if each.part == "heat map" else each for each in configs]
    counted = summarise(configs, found).data
    assert (counted["blocks"], counted["heat_map_blocks"]) == (BLOCKS, 3)
    rows = drawing.table(result)
    published = [row for row in rows if row["whose"] == "published"]
    assert [row["accuracy_change"] for row in published] == pytest.approx(
        [-0.0071, -0.0163, -0.0025, -0.0624]
    )
    ours = [row for row in rows if row["whose"] == "ours" and row["part"] == "table"]
    assert len(ours) == 2 * 2 * 2 * 3 * 2 and {row["model"] for row in ours} == set(MODELS)
    assert [row["calibration"] for row in ours] == (["layer"] * 12 + ["model"] * 12) * 2
    assert [row["loss_change"] for row in ours[:2]] == pytest.approx([0.002, 0.01], abs=5e-4)
    assert sum(row["part"] == "heat map" for row in rows) == 2 * len(FACTORS) ** 2
    assert len({tuple(row) for row in rows}) == 1  # all have the same columns
    figure = drawing.draw(result)
    text = {cell.get_text().get_text() for cell in figure.axes[0].tables[0].get_celld().values()}
    assert {"published: OLMoE", "\N{MINUS SIGN}0.71", "ours: tiny-olmoe"} <= text
    curves = drawing.PARTS["bits"][0](
        summarise(*records(of_model={bits: (2 * cost, 3 * more) for bits, (cost, more) in COSTS.items()}))
    ).axes
    ends = np.array([[np.asarray(line.get_ydata())[-1] for line in axis.lines[::3]] for axis in curves])
    assert np.allclose(ends[0], ends[1], atol=1e-3) and np.allclose(ends[2], ends[3], atol=1e-3)
    assert np.allclose(ends[2] / ends[0], [2, 3, 2, 3], rtol=0.01)  # at 4 bits
    heat_map = drawing.PARTS["heat-map"][0](result).axes[0]
    (marked,) = heat_map.patches
    assert isinstance(marked, Rectangle) and marked.get_xy() == (1, 1)
    assert heat_map.texts[4].get_text() == "0.010"


def test_units_on_a_model(small_model_folder: Path) -> None:
    units = grid("quick", model=str(small_model_folder))
    assert {unit.model for unit in units} == {str(small_model_folder)}
    digital, eight, four, eight_of_model, four_of_model, reference, *cells = units
    assert [unit.bits for unit in (eight, four)] == [8, 4] and len(cells) == 9
    assert eight_of_model == replace(eight, calibration="model") != eight
    assert four_of_model == replace(four, calibration="model") != four
    assert reference.analog == digital.analog == ("nothing",)
    nothing, fine, coarse = measure(digital)["nothing"], measure(eight), measure(four)
    assert fine["experts"]["loss"] != fine["everything"]["loss"] != nothing["loss"]
    # Few bits distort more.
    distance = [
        np.abs(np.subtract(found["everything"]["loss"], nothing["loss"])).mean() for found in (fine, coarse)
    ]
    assert distance[0] < distance[1]
    # The calibrated point of the heat map is the table's; measuring leaves the model digital.
    of_model = measure(eight_of_model)
    assert of_model["everything"]["loss"] != fine["everything"]["loss"]
    assert of_model["experts"]["loss"] != fine["experts"]["loss"]
    assert measure(cells[4])["everything"] == fine["everything"] != measure(cells[0])["everything"]
    assert measure(digital)["nothing"] == nothing


def test_too_little_text_is_refused(small_model_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("noise on analog tiles hurts dense modules more than most experts. " * 8)
    with pytest.raises(InputError, match="give at least 4"):
        grid("quick", model=str(small_model_folder), text=str(text))
