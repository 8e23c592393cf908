"""Does nothing that calibrates or scores a model take the text that verdicts rest on?"""

from collections.abc import Callable
from typing import Any

import pytest
from small_models import TEXTS, small_model

from realmodels.calibrate import calibrate
from realmodels.damage import expected_damage
from realmodels.deploy import deploy
from realmodels.evaluate import token_blocks
from realmodels.model import Model
from realmodels.scores import scores
from realmodels.statistics import routing
from realmodels.text import Documents
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import Placement


def nothing_digital(model: Model) -> Placement:
    return Placement(model.map.num_experts, ((),) * len(model.map.num_experts))


USERS: dict[str, Callable[[Model, Any], Any]] = {
    "calibrate": lambda model, texts: calibrate(model, texts, Hardware()),
    "deploy": lambda model, texts: deploy(model, nothing_digital(model), Hardware(), texts),
    "expected_damage": lambda model, texts: expected_damage(model, texts, Hardware()),
    "frequency": lambda model, texts: scores(model, "activation_frequency", texts),
    "weight": lambda model, texts: scores(model, "activation_weight", texts),
    "routing": routing,
}


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("every", [1, 2])
def test_evaluation_text_is_refused(user: str, every: int) -> None:
    model = small_model()
    with pytest.raises(InputError, match="calibration is asked for, but this is evaluation text"):
        USERS[user](model, Documents(TEXTS, "evaluation")[::every])
    assert not model.analog_modules


@pytest.mark.parametrize("user", USERS)
def test_calibration_text_and_own_text_are_taken(user: str) -> None:
    for texts in (Documents(TEXTS, "calibration"), TEXTS, list(Documents(TEXTS, "evaluation"))):
        USERS[user](small_model(), texts)


def test_blocks_for_evaluation_are_not_of_calibration_text() -> None:
    model = small_model()
    token_blocks(model, Documents(TEXTS, "calibration"))  # without a purpose
    token_blocks(model, Documents(TEXTS, "evaluation"), purpose="evaluation")
    with pytest.raises(InputError, match="evaluation is asked for, but this is calibration text"):
        token_blocks(model, Documents(TEXTS, "calibration"), purpose="evaluation")


def test_the_texts_of_a_model_know_their_split() -> None:
    model = small_model()
    for split in ("calibration", "evaluation"):
        assert model.texts(split).split == split
