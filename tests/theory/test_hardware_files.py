"""Hardware is named, written and read back whole; what is none is refused in one line that names the file."""

import os
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from figures.options import HARDWARE_OPTIONS, flag
from theory.errors import InputError
from theory.hardware import (
    PROGRAMMING_NOISE,
    Hardware,
    ProgrammingNoise,
    allowed,
    program,
    relative_output_error,
)
from theory.hardware_files import (
    FIELDS,
    HARDWARE,
    LARGEST_FILE,
    checked,
    field_from_text,
    load_hardware,
    named_fields,
    save_hardware,
)

SUFFIXES = pytest.mark.parametrize("suffix", [".json", ".toml"])
bits = st.none() | st.integers(2, 16)
above = st.none() | st.floats(1e-5, 1e5)
any_hardware = st.builds(
    Hardware,
    programming=st.sampled_from(sorted(PROGRAMMING_NOISE)),
    c=st.floats(0, 1e5),
    w_max=st.sampled_from(["tile", "column", "layer"]),
    tile_size=st.integers(1, 10**9),
    dac_bits=bits,
    adc_bits=bits,
    kappa=above,
    lam=above,
)


def refusal(source: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        load_hardware(source)
    message = str(caught.value)
    assert "\n" not in message and str(source) in message and len(message) < 1000
    return message


@SUFFIXES
@given(hardware=any_hardware)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, hardware: Hardware
) -> None:
    file = tmp_path_factory.mktemp("hardware") / f"mine{suffix}"
    save_hardware(hardware, file)
    assert load_hardware(file) == hardware
    assert named_fields(file) == asdict(hardware)


def test_names() -> None:
    assert load_hardware("pcm") == Hardware()
    assert load_hardware("hermes") == Hardware("hermes", 1.0, "column")
    assert load_hardware("ideal") == Hardware(c=0.0, dac_bits=None, adc_bits=None)
    assert load_hardware("paper") == Hardware(c=2.5)
    assert list(HARDWARE) == ["pcm", "hermes", "ideal", "paper"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("mine.json", '{"c": 2, "dac_bits": null}'), ("mine.toml", 'c = 2\ndac_bits = "none"')],
)
def test_a_file_may_name_some_fields(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert named_fields(tmp_path / name) == {"c": 2.0, "dac_bits": None}
    assert type(named_fields(tmp_path / name)["c"]) is float
    assert load_hardware(tmp_path / name) == Hardware(c=2.0, dac_bits=None)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "not JSON"),
        ("a.json", "[1]", "holds no table"),
        ("a.json", '{"c": 1, "c": 2}', "'c' occurs twice"),
        ("a.json", '{"tile": 1}', "'tile' is no field of hardware; give some of programming, c,"),
        ("a.json", '{"tilesize": 1}', "did you mean tile_size?"),
        ("a.json", '{"c": "2"}', "hardware.c is '2': give a number from 0 to 100000"),
        ("a.json", '{"c": true}', "hardware.c is True"),
        ("a.json", '{"c": NaN}', "hardware.c is nan"),
        ("a.json", '{"c": 1e999}', "hardware.c is inf"),
        ("a.json", '{"c": ' + "9" * 400 + "}", "give a number from 0 to 100000"),
        ("a.json", '{"c": ' + "9" * 5000 + "}", "not JSON"),
        ("a.json", '{"c": 1e308}', "hardware.c is 1e+308: give a number from 0 to 100000"),
        (
            "a.json",
            '{"kappa": 5e-324}',
            "hardware.kappa is 5e-324: give a number from 1e-05 to 100000, or None",
        ),
        ("a.json", '{"lam": 1e7}', "hardware.lam is 10000000.0: give a number from 1e-05 to 100000, or None"),
        ("a.json", '{"w_max": ["tile"]}', "hardware.w_max is ['tile']: give one of"),
        ("a.json", '{"programming": {"pcm": 1}}', "give one of pcm"),
        ("a.json", '{"programming": "' + "x" * 60000 + '"}', "..."),
        ("a.json", '{"tile_size": "none"}', "give a whole number from 1 to 4611686018427387904"),
        ("a.json", '{"tile_size": 4611686018427387905}', "give a whole number from 1 to 4611686018427387904"),
        ("a.json", '{"dac_bits": 1}', "give 2 to 16, or None"),
        ("a.json", "[" * 100_000, "than 65536 bytes"),
        ("a.json", "[" * 60_000, "not JSON"),
        ("a.toml", "c = [[", "Invalid"),
        ("a.toml", "c = 1\nc = 2", "give a table"),
        ("a.toml", "c = nan", "hardware.c is nan"),
        ("a.toml", "c = 2026-11-30", "give a number from 0 to 100000"),
        ("a.toml", "[c]\nvalue = 1", "give a number from 0 to 100000"),
        ("a.toml", "c = " + "[" * 20_000, "hardware file"),
        ("a.yaml", "c: 1", "a file whose name ends in .json or .toml"),
    ],
)
def test_what_is_no_hardware_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    assert said in refusal(tmp_path / name)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.json")
    (tmp_path / "folder.json").mkdir()
    assert "cannot be read" in refusal(tmp_path / "folder.json")
    os.mkfifo(tmp_path / "fifo.json")
    assert "no regular file" in refusal(tmp_path / "fifo.json")
    (tmp_path / "large.json").write_bytes(b" " * (LARGEST_FILE + 1))
    assert f"more than {LARGEST_FILE} bytes" in refusal(tmp_path / "large.json")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "utf-8" in refusal(tmp_path / "binary.toml")
    assert "give one of pcm, hermes, ideal, paper" in refusal("hermess")
    assert "did you mean hermes?" in refusal("hermess")
    assert "home" in refusal("~nobody-of-this-name/a.json")


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "mine.yaml", tmp_path / "no" / "mine.json", tmp_path):
        with pytest.raises(InputError, match="hardware file"):
            save_hardware(Hardware(), file)
    assert not list(tmp_path.iterdir())


def test_what_is_no_hardware_or_no_path_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="hardware is 'pcm': give a Hardware, as load_hardware makes it of a name"
    ):
        save_hardware("pcm", tmp_path / "mine.toml")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="file is None: give a path"):
        save_hardware(Hardware(), None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "a.json").symlink_to(tmp_path / "precious")
    save_hardware(Hardware(c=2.0), tmp_path / "a.json")
    assert (tmp_path / "precious").read_text() == "mine"
    assert load_hardware(tmp_path / "a.json").c == 2.0


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("c", "2", 2.0),
        ("programming", "hermes", "hermes"),
        ("w_max", "column", "column"),
        ("tile_size", "64", 64),
        ("dac_bits", "none", None),
        ("adc_bits", "6", 6),
        ("kappa", "3.5", 3.5),
        ("lam", "none", None),
    ],
)
def test_fields_from_text(name: str, text: str, value: Any) -> None:
    found = field_from_text(name, text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c", "none"),
        ("c", "-1"),
        ("c", "inf"),
        ("c", "1e308"),
        ("kappa", "5e-324"),
        ("lam", "1.1e5"),
        ("c", "1_0"),
        ("tile_size", "5_12"),
        ("c", "\u0661"),
        ("c", ""),
        ("tile_size", "1.5"),
        ("tile_size", "0"),
        ("dac_bits", "8.0"),
        ("adc_bits", "17"),
        ("kappa", "0"),
        ("programming", "PCM"),
    ],
)
def test_other_text_is_refused(name: str, text: str) -> None:
    with pytest.raises(InputError, match=f"{text!r} is not allowed: give ") as caught:
        field_from_text(name, text)
    assert "None" not in str(caught.value)


def test_every_field_is_known() -> None:
    assert tuple(field.name for field in fields(Hardware)) == FIELDS == tuple(allowed())


@given(any_hardware, st.sampled_from(FIELDS), any_hardware)
def test_a_checked_field_replaces_that_field_alone(one: Hardware, name: str, other: Hardware) -> None:
    field = checked({name: getattr(other, name)})
    assert Hardware(**(asdict(one) | field)) == replace(one, **field)


def test_the_page_has_every_field_and_name_as_it_is() -> None:
    """docs/own-model.md: what is allowed, the default, the option; and the names."""
    page = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("`"): cells[1:]
        for line in page.partition("## Hardware")[2].partition("## A chip")[0].splitlines()
        if line.startswith("| `") and (cells := [cell.strip() for cell in line.strip("|").split("|")])
    }
    options = {fields: name for name, (fields, *_) in HARDWARE_OPTIONS.items()}
    for name in FIELDS:
        option, unit, values, default, _ = rows.pop(name)
        assert option == f"`{flag(options[name,])}`"
        assert values == allowed()[name]
        assert default == f"`{getattr(Hardware(), name)!r}`"
        assert unit or name in ("programming", "w_max")
    assert list(rows) == list(HARDWARE)


@pytest.mark.parametrize(
    ("noise", "said"),
    [
        (lambda: ProgrammingNoise(()), r"pieces of programming noise are \(\): give one or two polynomials"),
        (lambda: ProgrammingNoise(({0: 1.0},)), "powers from 0 to 3, or a function"),
        (lambda: ProgrammingNoise(({4: 1.0},)), "powers from 0 to 3, or a function"),
        (lambda: ProgrammingNoise(({1: 1.0, -1: 1.0},)), "powers from 0 to 3"),
        (lambda: ProgrammingNoise(3 * ({1: 1.0},)), "one or two polynomials"),
        (
            lambda: ProgrammingNoise(({1: 1.0},), function=lambda r: r),
            "give () for the pieces".replace("()", r"\(\)"),
        ),
        (lambda: ProgrammingNoise(({0: 1.0, 1: -2.0},)), "standard deviation -0.02 at r = 0.51"),
        (
            lambda: ProgrammingNoise((), function=lambda r: 1 / r),
            "standard deviation inf at r = 0: it has to be finite",
        ),
        (lambda: ProgrammingNoise((), function=lambda r: r - 0.005), "standard deviation -0.005 at r = 0"),
        (lambda: ProgrammingNoise((), function=lambda r: r * torch.nan), "standard deviation nan"),
    ],
)
def test_what_is_no_noise_is_refused(noise: Callable[[], ProgrammingNoise], said: str) -> None:
    with pytest.raises(InputError, match=said):
        noise()


def test_a_noise_is_as_precise_as_what_it_is_asked_for() -> None:
    noise = ProgrammingNoise((), function=lambda r: r.double() * 0.1)
    assert noise.sigma(torch.ones(2)).dtype == torch.float32


def test_a_function_of_r_is_a_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same chip as of the polynomial that it is; and one value serves for all weights."""
    cubic = ProgrammingNoise(({0: 0.01, 3: 0.05},))
    for name, noise in {
        "cubic": cubic,
        "function": ProgrammingNoise((), function=lambda r: 0.01 + 0.05 * r**3),
        "value": ProgrammingNoise((), function=lambda r: 0.02),
        "identity": ProgrammingNoise((), function=lambda r: r, dead_zone=0.1),
        "linear": ProgrammingNoise(({1: 1.0},), dead_zone=0.1),
    }.items():
        monkeypatch.setitem(PROGRAMMING_NOISE, name, noise)
    weight = torch.randn(3, 40, 48, generator=torch.Generator().manual_seed(0))

    def programmed(name: str) -> torch.Tensor:
        hardware = Hardware(programming=name, tile_size=16, c=2.0)
        return program(weight, hardware, torch.Generator().manual_seed(1))

    assert torch.allclose(programmed("function"), programmed("cubic"), rtol=1e-6)
    assert torch.equal(programmed("identity"), programmed("linear"))
    units = (programmed("value") - weight) / (programmed("cubic") - weight)
    assert units.isfinite().all() and not torch.equal(programmed("value"), programmed("cubic"))
    assert relative_output_error(Hardware(programming="identity", tile_size=16)) == pytest.approx(
        relative_output_error(Hardware(programming="linear", tile_size=16))
    )
