"""How is JSON read back only if it is exactly what was written? No key may be unknown, missing or repeated."""

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeGuard

from theory.errors import InputError, shown

LARGEST = sys.float_info.max


def loads(text: str) -> Any:
    """Content of a JSON text; InputError if the text is no JSON or repeats a key."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond what Python reads
        raise InputError(f"not JSON: {error}") from None


def dumps(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def fields_of(cls: type, value: Any, where: str) -> dict[str, Any]:
    """`value` if it is an object with exactly the fields of the dataclass `cls`."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is {shown(value)}: an object is needed")
    names = [entry.name for entry in fields(cls)]
    for key in value:
        if key not in names:
            raise InputError(f"{where} has the unknown key {shown(key)}; allowed: {', '.join(names)}")
    for name in names:
        if name not in value:
            raise InputError(f"{where} lacks the key {name!r}")
    return value


def plain(value: Any, where: str) -> Any:
    """`value` as JSON holds it (tuples become lists); InputError naming the first entry that it cannot."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return number(value, where)
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InputError(f"{where} has the key {key!r}: give a string")
        return {key: plain(entry, f"{where}.{key}") for key, entry in value.items()}
    raise InputError(f"{where} is a {type(value).__name__}: give numbers, strings, lists, dicts or None")


def number(value: Any, where: str) -> float:
    if not is_finite(value):
        raise InputError(f"{where} is {value!r}: give a finite number")
    return float(value)


def is_finite(value: object) -> TypeGuard[int | float]:
    """True if the value is a number that a float can hold; bools are no numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def is_whole(value: object) -> TypeGuard[int]:
    """True if the value is a whole number; bools are no numbers."""
    return isinstance(value, int) and not isinstance(value, bool)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise InputError(f"the key {shown(key)} occurs twice")
        found[key] = value
    return found
