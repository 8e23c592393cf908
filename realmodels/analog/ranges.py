"""Between which bounds do the converters of a layer work?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from theory.errors import InputError
from theory.hardware import Hardware


@dataclass(frozen=True)
class LayerCalibration:
    """Calibrated converter ranges of one linear layer [hardware model, docs/paper.md].

    input_std: standard deviation of the layer's inputs: one number, or one for each input slice.
    kappa: DAC bound, in units of input_std.
    lam: ADC bound, in units of DAC bound times w_max.
    """

    input_std: float | tuple[float, ...]
    kappa: float
    lam: float

    def __post_init__(self) -> None:
        for name, values in (("input_std", self.stds), ("kappa", (self.kappa,)), ("lam", (self.lam,))):
            for value in values:
                if not (math.isfinite(value) and value > 0):
                    raise InputError(
                        f"LayerCalibration.{name} is {value}; it must be finite and > 0: calibrate on text"
                        " that reaches this layer"
                    )

    @property
    def stds(self) -> tuple[float, ...]:
        """input_std as a tuple: of one number, or of one for each input slice."""
        return self.input_std if isinstance(self.input_std, tuple) else (self.input_std,)

    def bounds(self, hardware: Hardware) -> tuple[tuple[float, ...], float]:
        """DAC bounds, in units of the inputs, and lam; `hardware.kappa` and `hardware.lam` win where they are given.

        The DAC bounds are one, or one for each input slice.
        """
        kappa = self.kappa if hardware.kappa is None else hardware.kappa
        return tuple(std * kappa for std in self.stds), self.lam if hardware.lam is None else hardware.lam


# Experts that read the same inputs share one calibration; other experts have one each.
Ranges = LayerCalibration | Sequence[LayerCalibration]


def for_experts(ranges: Ranges, num_experts: int) -> tuple[LayerCalibration, ...]:
    """The calibration of each expert."""
    each = (ranges,) * num_experts if isinstance(ranges, LayerCalibration) else tuple(ranges)
    if len(each) != num_experts:
        raise InputError(f"{len(each)} calibrations: give one for all {num_experts} experts, or one for each")
    return each


def ranges_as_json(ranges: Ranges) -> list[Any]:
    """Three values for a calibration, a list of threes for several. Of the three, input_std may be a list."""
    if isinstance(ranges, LayerCalibration):
        std = ranges.input_std
        return [list(std) if isinstance(std, tuple) else std, ranges.kappa, ranges.lam]
    return [ranges_as_json(each) for each in ranges]


def ranges_from_json(content: list[Any]) -> Ranges:
    """What `ranges_as_json` was given."""
    if isinstance(content[-1], list):  # else it is lam
        return tuple(map(_from_json, content))
    return _from_json(content)


def _from_json(content: list[Any]) -> LayerCalibration:
    std, kappa, lam = content
    return LayerCalibration(tuple(std) if isinstance(std, list) else std, kappa, lam)


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
