"""What `load` says of a model that it refuses."""

from pathlib import Path
from typing import Any

import pytest

from realmodels.load import load
from theory.errors import InputError


def refusal(name: str | Path, **options: Any) -> str:
    """The message of `load`, which has to be one line that names the value."""
    with pytest.raises(InputError) as caught:
        load(name, **options)
    message = str(caught.value)
    assert "\n" not in message and str(name) in message
    return message
