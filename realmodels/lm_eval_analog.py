"""How do lm-eval's own tasks and reports see a deployed model? As its model `analog`.

    python -m realmodels.lm_eval_analog --model analog --model_args pretrained=tiny-olmoe,hardware=paper --tasks NAMES

is lm-eval's command line, which finds no models but its own; here it knows one more. In Python, importing this module
is enough. It needs the extra `lm-eval`. Answers are those of `realmodels.tasks`, but for rounding.
"""

import copy
import logging
import sys
from dataclasses import asdict
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from realmodels.chip import load_chip
from realmodels.damage import expected_damage
from realmodels.deploy import deploy
from realmodels.load import DEFAULT_MODEL, load
from realmodels.model import Model
from realmodels.plan_file import read_plan
from realmodels.scores import scores
from realmodels.text import read_text, text_hash
from theory.errors import InputError, run
from theory.hardware import Hardware
from theory.hardware_files import checked, named_fields
from theory.placement import STRATEGIES, Placement, place, read_placement

_LOG = logging.getLogger(__name__)
DAMAGE = "expected_damage"  # the one score that is no strategy


@register_model("analog")
class AnalogLM(HFLM):  # type: ignore[misc]  # lm-eval ships no types
    """A model on analog hardware.

    pretrained: as `realmodels.load` takes it.
    hardware: a name or file of theory.hardware_files; further arguments are fields of Hardware and override it.
    digital_fraction, score: how many experts of each layer are digital, and by which score: a strategy of
        theory.placement, or expected_damage.
    analog_modules: kinds of dense modules that are analog, with + between them.
    placement: a file that `Placement.save` wrote, in the place of the three above. If it names hardware and no argument
        does, that is it.
    plan: the plan.json of the command `plan`, in the place of these and of hardware.
    chip: a file that `save_chip` wrote, in the place of all of these and of hardware and seed.
    calibration: a UTF-8 file for ranges and scores; default: our own text.
    seed: of the programming noise.
    device, dtype, batch_size, max_batch_size: lm-eval's.
    InputError for what cannot be used.
    """

    def __init__(
        self,
        pretrained: str = DEFAULT_MODEL,
        hardware: str | None = None,
        digital_fraction: float | None = None,
        score: str | None = None,
        analog_modules: str | None = None,
        placement: str | None = None,
        plan: str | None = None,
        chip: str | None = None,
        calibration: str | None = None,
        seed: int | None = None,
        device: str | None = None,
        dtype: str = "float32",
        batch_size: int | str | None = 1,
        max_batch_size: int | None = 64,
        **fields: Any,
    ) -> None:
        # lm-eval turns a text of digits into a number.
        hardware, analog_modules, placement, plan, chip, calibration = (
            None if each is None else str(each)
            for each in (hardware, analog_modules, placement, plan, chip, calibration)
        )
        chosen: dict[str, Any] = {
            "digital_fraction": digital_fraction,
            "score": score,
            "analog_modules": analog_modules,
        }
        on = {"hardware": hardware, **fields}
        read = {"calibration": calibration, "seed": seed}
        for name, given, others in (
            ("chip", chip, {**chosen, **on, **read, "placement": placement, "plan": plan}),
            ("plan", plan, {**chosen, **on, "placement": placement}),
            ("placement", placement, chosen),
        ):
            for other, value in others.items():
                if given is not None and value is not None:
                    raise InputError(f"{name} and {other}: the former says the latter; leave one of them out")
        found = getattr(torch, str(dtype), None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise InputError(f"dtype is {dtype!r}: give float32, bfloat16 or float16")
        model = load(str(pretrained), device or ("cuda" if torch.cuda.is_available() else "cpu"), found)
        if chip is not None:
            load_chip(model, chip)
        else:
            texts = model.texts("calibration") if calibration is None else read_text(calibration)
            if plan is not None:
                planned = read_plan(plan, model)
                named, where = planned.hardware, planned.placement
                if text_hash(texts) != planned.texts["calibration"]:
                    _LOG.warning(
                        "plan file %s was calibrated on another text: give that as calibration for the same chip",
                        plan,
                    )
            else:
                named = Hardware(**(named_fields(hardware or "pcm") | checked(fields)))
                if placement is not None and hardware is None and not fields:
                    named = read_placement(placement).hardware or named
                where = _placement(model, placement, named, texts, **chosen)
            deploy(model, where, named, texts, 0 if seed is None else seed)
        self.deployed = model
        super().__init__(
            pretrained=model.network,
            tokenizer=copy.deepcopy(model.tokenizer),  # lm-eval gives it a padding token
            backend="causal",
            softmax_dtype="float32",
            batch_size=batch_size,
            max_batch_size=max_batch_size,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval's report says of the model: the whole chip."""
        model = self.deployed
        assert model.deployment is not None  # since __init__
        return {
            "model_name": model.name,
            "model_weights_hash": model.weights_hash,
            "model_dtype": str(model.network.dtype),
            "chip": asdict(model.deployment),
        }


def _placement(
    model: Model,
    file: str | None,
    hardware: Hardware,
    texts: Any,
    *,
    digital_fraction: float | None,
    score: str | None,
    analog_modules: str | None,
) -> Placement:
    if file is not None:
        return Placement.load(file, model)
    name: Any = "maxnn" if score is None else score
    if name != DAMAGE and name not in STRATEGIES:
        raise InputError(f"score is {name!r}: give one of {', '.join((*STRATEGIES, DAMAGE))}")
    found = expected_damage(model, texts, hardware) if name == DAMAGE else scores(model, name, texts)
    return place(
        found,
        0.25 if digital_fraction is None else digital_fraction,
        "maxnn" if name == DAMAGE else name,
        analog_modules=analog_modules.split("+") if analog_modules else (),
        generator=torch.Generator().manual_seed(0),
    )


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    if "--help" in sys.argv:
        print(__doc__)
    run(main)
