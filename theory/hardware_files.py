"""How is hardware named, kept in a file, and read from one or from text?

A file names some or all fields of `theory.hardware.Hardware`, as JSON or as TOML, by its suffix. TOML and the command
line have no null: they say "none" for no converter and for a range that is calibrated.
"""

import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from theory.errors import InputError, did_you_mean, shown
from theory.files import from_home, read_regular, write_whole
from theory.hardware import Hardware, allowed, require_hardware
from theory.paper import RECOVERED_AT
from theory.strict_json import dumps, is_whole, loads

NONE = "none"
SUFFIXES = (".json", ".toml")
LARGEST_FILE = 2**16  # bytes
# By name: PCM as measured, the HERMES chip as published, tiles that do not err, and the paper's main claim.
HARDWARE = {
    "pcm": Hardware(),
    "hermes": Hardware(programming="hermes", w_max="column"),
    "ideal": Hardware(c=0.0, dac_bits=None, adc_bits=None),
    "paper": Hardware(c=RECOVERED_AT.value),
}
FIELDS = tuple(field.name for field in fields(Hardware))
_OPTIONAL = ("dac_bits", "adc_bits", "kappa", "lam")
_WHOLE, _REAL = ("tile_size", "dac_bits", "adc_bits"), ("c", "kappa", "lam")


def load_hardware(source: str | Path) -> Hardware:
    """The hardware that a name of HARDWARE or a file stands for; fields that a file leaves out have their defaults."""
    return Hardware(**named_fields(source))


def save_hardware(hardware: Hardware, file: str | Path) -> None:
    """Write all fields into a .json or .toml file; InputError if that cannot be done."""
    require_hardware(hardware)
    path, content = from_home(file), asdict(hardware)
    if path.suffix not in SUFFIXES:
        raise InputError(f"hardware file {file}: give a name that ends in {' or '.join(SUFFIXES)}")
    text = dumps(content)
    if path.suffix == ".toml":  # a string or number of JSON is one of TOML, too
        lines = (
            f"{name} = {json.dumps(NONE if value is None else value)}\n" for name, value in content.items()
        )
        text = "".join(lines)
    with write_whole(path, "hardware file") as out:
        out.write(text.encode())


def named_fields(source: str | Path) -> dict[str, Any]:
    """The fields that a name of HARDWARE or a file gives, valid; a name gives all."""
    if str(source) in HARDWARE:
        return asdict(HARDWARE[str(source)])
    path, where = Path(source), f"hardware file {source}"
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"hardware {str(source)!r}: give one of {', '.join(HARDWARE)}, or a file whose name ends in"
            f" {' or '.join(SUFFIXES)}{did_you_mean(str(source), HARDWARE)}"
        )
    try:
        text = read_regular(path.expanduser(), LARGEST_FILE).decode("utf-8-sig")
        content = loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, RuntimeError) as error:  # also of a home that there is not, or of nesting
        raise InputError(
            f"{where} cannot be read ({getattr(error, 'strerror', None) or error}): give a readable file"
        ) from None
    except ValueError as error:
        raise InputError(f"{where}: {error}: give a table of fields of hardware") from None
    if not isinstance(content, dict):
        raise InputError(f"{where} holds no table: give one of fields of hardware")
    try:
        return checked(content)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of hardware, each valid by itself and with its own type; InputError for any other."""
    found = {}
    for name, value in given.items():
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS)
            raise InputError(f"{shown(name)} is no field of hardware; give some of {', '.join(FIELDS)}{hint}")
        chosen: Any = None if name in _OPTIONAL and value == NONE else value
        Hardware(**{name: chosen})
        found[name] = float(chosen) if is_whole(chosen) and name in _REAL else chosen
    return found


def field_from_text(name: str, text: str) -> Any:
    """The value of a field as the command line has it; InputError for one that is not allowed."""
    value: Any = text
    if text.isascii() and "_" not in text:  # which Python's numbers may have
        with suppress(ValueError):  # none, or refused
            value = float(text) if name in _REAL else int(text) if name in _WHOLE else text
    try:
        return checked({name: value})[name]
    except InputError:
        words = allowed()[name].replace("None", NONE)
        raise InputError(f"{shown(text)} is not allowed: give {words}") from None
