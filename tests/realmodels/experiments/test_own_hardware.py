"""A user's own hardware and calibration text reach every unit of exhibits that take them, and no rule judges them."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.figure import Figure
from small_models import TEXTS

import paper_repro
from figures.catalogue import EXHIBITS, Exhibit
from figures.drawings import figure_3 as drawing_3
from figures.drawings import figure_4 as drawing_4
from figures.drawings import table_2 as drawing_t2
from figures.drawings.style import other_hardware
from figures.run import _hardware, understood
from realmodels.calibrate import calibrate
from realmodels.deploy import Chip
from realmodels.experiments import figure_3, figure_4, rig, table_1, table_2
from realmodels.load import load
from realmodels.text import read_text
from theory.errors import InputError
from theory.hardware import Hardware
from theory.hardware_files import HARDWARE

OWN: dict[str, Any] = {"programming": "constant", "c": 0.25, "tile_size": 16, "dac_bits": 6, "lam": 2.0}
TAKING = {
    "figure-3",
    "figure-4",
    "figure-5",
    "table-2",
    "figure-3-smol-moe",
    "figure-4-smol-moe",
    "figure-4-coactivation",
    "table-2-smol-moe",
}
exhibits = pytest.mark.parametrize(
    ("experiment", "drawing"), [(figure_3, drawing_3), (figure_4, drawing_4), (table_2, drawing_t2)]
)


@pytest.fixture
def text(tmp_path: Path) -> Iterator[Path]:
    """Calibration text; what was made of another test's file of this name is forgotten."""
    file = tmp_path / "calibration"
    file.write_text("\n\n".join(TEXTS))
    yield file
    for each in (rig._model, rig.scores, rig.calibration, rig._chip, rig._cut, rig._prefix):
        each.cache_clear()


@exhibits
def test_every_unit_is_on_the_given_hardware(
    experiment: ModuleType,
    drawing: ModuleType,
    small_model_folder: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments: dict[str, Any] = {"model": str(small_model_folder), "seeds": 2}
    units = experiment.grid("quick", hardware=OWN, calibration=str(text), **arguments)
    chips: list[Chip] = []
    real = Chip.__init__

    def spy(chip: Chip, *positional: Any) -> None:
        real(chip, *positional)
        chips.append(chip)

    monkeypatch.setattr(Chip, "__init__", spy)
    records = [experiment.measure(unit) for unit in units]
    assert units[0].hardware == ()
    for unit in units[1:]:
        (hardware,) = unit.hardware
        assert hardware == Hardware(**OWN | {"w_max": unit.noise.w_max, "c": unit.c}) and unit.c in (0, 0.25)
    assert {chip.hardware for chip in chips} == {unit.hardware[0] for unit in units[1:]}
    assert {unit.noise for unit in units[1:]} == {rig.Noise("constant", each) for each in rig.GRANULARITIES}
    for chip in chips:
        ranges = calibrate(load(small_model_folder), read_text(text), chip.hardware)
        assert chip._calibration.layers == ranges.layers
    result = experiment.summarise(units, records)
    on_chips = [each for each in result.findings if each.family != "cost model"]
    assert on_chips and all(each.exploratory for each in on_chips)
    assert any("c = 0.25" in each.claim + each.statistic for each in on_chips)
    assert not any("c = 1.5" in each.claim + each.statistic or "c = 2.5" in each.claim for each in on_chips)
    result = replace(result, provenance={"hardware": _hardware(units)})
    assert result.provenance["hardware"][-1].keys() == asdict(Hardware()).keys()
    assert other_hardware(result) == "; tile_size 16; dac_bits 6; lam 2.0"
    drawn = [drawing.draw(result), *(draw(result) for draw, _ in drawing.PARTS.values())]
    words = " ".join(
        each.get_text() for figure in drawn if isinstance(figure, Figure) for each in figure.texts
    )
    assert "dac_bits 6" in " ".join(words.split())

    usual = experiment.grid("quick", **arguments)
    assert {unit.own for unit in usual} == {None} and {unit.calibrated_on for unit in usual} == {rig.OURS}
    assert {unit.hardware[0] for unit in usual[1:]} == {
        Hardware(c=unit.c, **asdict(unit.noise)) for unit in usual[1:]
    }
    assert len(usual) == len(units)


@exhibits
def test_what_is_not_given_is_the_exhibits_own(
    experiment: ModuleType, drawing: ModuleType, small_model_folder: Path
) -> None:
    def units(**given: Any) -> list[Any]:
        found: list[Any] = experiment.grid("full", model=str(small_model_folder), seeds=2, hardware=given)
        return found

    bits = units(adc_bits=4)
    assert {unit.noise for unit in bits} == set(rig.NOISES)
    magnitudes = {unit.c for unit in experiment.grid("full", model=str(small_model_folder), seeds=2)}
    assert {unit.c for unit in bits} == magnitudes
    assert {unit.hardware[0].adc_bits for unit in bits[1:]} == {4}
    assert {unit.noise for unit in units(w_max="column")} == {rig.PCM[1], rig.NOISES[2]}
    assert {unit.noise for unit in units(programming="hermes")[1:]} == {
        rig.Noise("hermes", "tile"),
        rig.NOISES[2],
    }
    assert len(set(units(c=0.0))) == len(units(c=0.0))


def test_hardware_that_does_not_err_loses_nothing(small_model_folder: Path, text: Path) -> None:
    ideal = asdict(HARDWARE["ideal"])
    units = figure_4.grid(
        "quick", model=str(small_model_folder), seeds=2, hardware=ideal, calibration=str(text)
    )
    result = figure_4.summarise(units, [figure_4.measure(unit) for unit in units])
    assert {curve["recovered"] for curve in result.data["curves"]} == {0.0}
    assert {curve["loss_change"] for curve in result.data["curves"]} == {0.0}
    assert {each.verdict for each in result.findings} == {"inconclusive"}


def test_table_1_takes_a_text_and_no_hardware(small_model_folder: Path, text: Path) -> None:
    units = table_1.grid("quick", model=str(small_model_folder), calibration=str(text))
    unit = next(each for each in units if "experts" in each.analog)
    ours = replace(unit, calibrated_on=rig.OURS)
    assert table_1.measure(unit) != table_1.measure(ours)
    assert unit.hardware == (Hardware(c=0.0, w_max="tile", dac_bits=unit.bits, adc_bits=unit.bits),)


def test_calibration_text_may_not_be_evaluated_on(small_model_folder: Path, tmp_path: Path) -> None:
    evaluated = "A line of a text that is evaluated on, in words of mine.\n" * 40
    (tmp_path / "text").write_text(evaluated)
    (tmp_path / "shared").write_text(f"Something else, of other words.\n\n{evaluated.splitlines()[0]}")
    with pytest.raises(
        InputError, match=r"--calibration .*shared: 1 of its paragraphs are in the evaluation text"
    ):
        figure_3.grid(
            "quick",
            model=str(small_model_folder),
            text=str(tmp_path / "text"),
            calibration=str(tmp_path / "shared"),
        )


def test_calibration_text_that_was_changed_is_refused(small_model_folder: Path, text: Path) -> None:
    unit = figure_4.grid("quick", model=str(small_model_folder), seeds=2, calibration=str(text))[1]
    text.write_text("Other words than before, and enough of them.")
    for each in (rig.scores, rig.calibration, rig._chip):
        each.cache_clear()
    with pytest.raises(InputError, match="was changed after the run began; run it again"):
        figure_4.measure(unit)


def test_which_exhibits_take_hardware() -> None:
    assert {each.name for each in EXHIBITS if "hardware" in understood(each)} == TAKING
    assert {each.name for each in EXHIBITS if "calibration" in understood(each)} == TAKING | {
        "table-1",
        "table-1-smol-moe",
    }


@pytest.mark.parametrize(
    "exhibit", [each for each in EXHIBITS if each.name not in TAKING], ids=lambda each: each.name
)
def test_the_others_say_so_in_one_line(
    exhibit: Exhibit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [*exhibit.option.split(), "--preset", "quick", "--c", "1", "--out", str(tmp_path)]
    assert paper_repro.main(line) == 2
    without = "figure-6" in (exhibit.name, exhibit.like) or exhibit.name in (
        "figure-growth",
        "figure-balance",
    )
    why = "does not use it" if without else "fixes the hardware by its rules"
    assert capsys.readouterr().err == (
        f"paper_repro.py: error: --hardware, or a field of it: {exhibit.option} {why}; leave it out\n"
    )
