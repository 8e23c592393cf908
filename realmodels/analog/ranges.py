"""Between which bounds do the converters of a layer work?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

from theory.errors import InputError
from theory.hardware import Hardware


@dataclass(frozen=True)
class LayerCalibration:
    """Calibrated converter ranges of one linear layer [hardware model, docs/paper.md].

    input_std: standard deviation of the layer's inputs.
    kappa: DAC bound, in units of input_std.
    lam: ADC bound, in units of DAC bound times w_max.
    """

    input_std: float
    kappa: float
    lam: float

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(
                    f"LayerCalibration.{field.name} is {value}; it must be finite and > 0: calibrate on text"
                    " that reaches this layer"
                )

    def bounds(self, hardware: Hardware) -> tuple[float, float]:
        """DAC bound, in units of the inputs, and lam; `hardware.kappa` and `hardware.lam` win where they are given."""
        kappa = self.kappa if hardware.kappa is None else hardware.kappa
        return self.input_std * kappa, self.lam if hardware.lam is None else hardware.lam


# Experts that read the same inputs share one calibration; other experts have one each.
Ranges = LayerCalibration | Sequence[LayerCalibration]


def for_experts(ranges: Ranges, num_experts: int) -> tuple[LayerCalibration, ...]:
    """The calibration of each expert."""
    each = (ranges,) * num_experts if isinstance(ranges, LayerCalibration) else tuple(ranges)
    if len(each) != num_experts:
        raise InputError(f"{len(each)} calibrations: give one for all {num_experts} experts, or one for each")
    return each


def ranges_as_json(ranges: Ranges) -> list[Any]:
    """Three numbers for a calibration, a list of threes for several."""
    if isinstance(ranges, LayerCalibration):
        return list(astuple(ranges))
    return [list(astuple(each)) for each in ranges]


def ranges_from_json(content: list[Any]) -> Ranges:
    """What `ranges_as_json` was given."""
    if isinstance(content[0], list):
        return tuple(LayerCalibration(*each) for each in content)
    return LayerCalibration(*content)


@dataclass(frozen=True)
class Calibration:
    """Converter ranges of a whole model.

    layers: by parameter name ("lm_head.weight", "model.layers.0.mlp.experts.down_proj").
    hardware: the hardware that they were searched for.
    """

    layers: Mapping[str, Ranges]
    hardware: Hardware

    def __getitem__(self, parameter: str) -> Ranges:
        if parameter not in self.layers:
            raise InputError(
                f"calibration has no {parameter}: it is of another model, or this one never calls that module;"
                " calibrate this very model, or keep the module digital"
            )
        return self.layers[parameter]
