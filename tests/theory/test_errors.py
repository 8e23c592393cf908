"""Does `require` name the field, the value and what is allowed?"""

from dataclasses import dataclass

import pytest

from theory.errors import InputError, require


@dataclass(frozen=True)
class Lamp:
    watts: float = 5.0
    colour: str = "red"

    def __post_init__(self) -> None:
        checks = {
            "watts": (self.watts > 0, "a number above 0"),
            "colour": (self.colour in ("red", "green"), "one of red, green"),
        }
        require(self, "lamp", checks)


def test_valid_fields_pass() -> None:
    assert Lamp(watts=1.0, colour="green").colour == "green"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"watts": -1.0}, "lamp.watts is -1.0: give a number above 0"),
        ({"colour": "blue"}, "lamp.colour is 'blue': give one of red, green"),
        ({"watts": 0.0, "colour": "blue"}, "lamp.watts is 0.0: give a number above 0"),
    ],
)
def test_the_first_invalid_field_is_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as raised:
        Lamp(**fields)  # type: ignore[arg-type]
    assert str(raised.value) == message
