"""How far an fp32 implementation of analog hardware may be from theory.hardware in fp64: in counted flips.

An ADC code is the rounding of u = sum_k q_k W'_k, q being integer DAC codes. Computed in fp32 by a dot
product in any order, with at most EXTRA_ROUNDINGS more roundings per term (scales folded into the weights,
divisions by a step), u is off by at most gamma_n * sum_k |q_k W'_k|, gamma_n = n u / (1 - n u), n = terms +
EXTRA_ROUNDINGS, u = 2^-24 [Higham, Accuracy and Stability of Numerical Algorithms, section 3.1]. So a code
may be off by one where u is that near to a half integer, and nowhere else.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from realmodels.analog import LayerCalibration
from theory.hardware import Hardware, analog_matmul, largest_weights

EXTRA_ROUNDINGS = 12
UNIT_ROUNDOFF = 2.0**-24


def gamma(roundings: int) -> float:
    return roundings * UNIT_ROUNDOFF / (1 - roundings * UNIT_ROUNDOFF)


@dataclass(frozen=True)
class Reference:
    """The output (rows, out) in fp64, and what rounding of sums (floats) and flipped codes (flips) may add to it."""

    output: Tensor
    floats: Tensor
    flips: Tensor
    doubtful_codes: int

    def assert_agrees(self, output: Tensor) -> None:
        error = (output.double() - self.output).abs()
        assert (error <= self.floats + self.flips).all(), (error - self.floats - self.flips).max()

    def count_flips(self, output: Tensor) -> int:
        return int(((output.double() - self.output).abs() > self.floats).sum())


def by_slice(calibration: LayerCalibration, inputs: int, hardware: Hardware) -> LayerCalibration:
    """The calibration with another range in every input slice."""
    (std,), slices = calibration.stds, math.ceil(inputs / hardware.tile_size)
    return replace(
        calibration, input_std=tuple(std * (0.7, 1.9, 1.1)[number % 3] for number in range(slices))
    )


def settled(x: Tensor, hardware: Hardware, calibration: LayerCalibration) -> Tensor:
    """x with 0 for inputs so near to the border between two DAC codes that fp32 may take either."""
    if hardware.dac_bits is None:
        return x
    in_codes = x.double() * _levels(hardware.dac_bits) / _input_bounds(hardware, calibration, x.shape[1])
    doubtful = _distance_to_half(in_codes) <= gamma(EXTRA_ROUNDINGS) * in_codes.abs()
    return torch.where(doubtful, 0, x)


def reference(
    x: Tensor, target: Tensor, programmed: Tensor, hardware: Hardware, calibration: LayerCalibration
) -> Reference:
    """analog_matmul in fp64 of settled inputs (rows, in) and one matrix (out, in), with the doubtful codes."""
    x, target, programmed = x.double(), target.double(), programmed.double()
    output = analog_matmul(x, target, hardware, programmed=programmed, **vars(calibration)).output
    bounds = _input_bounds(hardware, calibration, x.shape[1])
    if hardware.dac_bits is not None:
        levels = _levels(hardware.dac_bits)
        x = (x * levels / bounds).round().clamp(-levels, levels) * bounds / levels
    if hardware.adc_bits is None:
        floats = gamma(x.shape[1] + EXTRA_ROUNDINGS) * (x.abs() @ programmed.abs().T)
        return Reference(output, floats, torch.zeros_like(output), 0)
    levels = _levels(hardware.adc_bits)
    lam = calibration.lam if hardware.lam is None else hardware.lam
    bound = bounds[:: hardware.tile_size]  # of every slice
    steps = largest_weights(target, hardware) * lam * bound / levels  # (out, slices)
    flips, magnitude, doubtful_codes = torch.zeros_like(output), torch.zeros_like(output), 0
    for number, start in enumerate(range(0, x.shape[1], hardware.tile_size)):
        part = slice(start, start + hardware.tile_size)
        step = steps[:, number]
        inverse = torch.where(step > 0, 1 / step, 0)
        product = x[:, part] @ programmed[:, part].T * inverse
        error = gamma(hardware.tile_size + EXTRA_ROUNDINGS) * (
            x[:, part].abs() @ programmed[:, part].abs().T * inverse
        )
        doubtful = (_distance_to_half(product) <= error) & (product.abs() <= levels + error)
        flips += doubtful * step
        magnitude += product.round().clamp(-levels, levels).abs() * step + doubtful * step
        doubtful_codes += int(doubtful.sum())
    return Reference(output, gamma(steps.shape[1] + EXTRA_ROUNDINGS) * magnitude, flips, doubtful_codes)


def _distance_to_half(values: Tensor) -> Tensor:
    return (values - values.floor() - 0.5).abs()


def _levels(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def _input_bounds(hardware: Hardware, calibration: LayerCalibration, inputs: int) -> Tensor:
    """The DAC bound of every input."""
    kappa = calibration.kappa if hardware.kappa is None else hardware.kappa
    bounds = kappa * torch.tensor(calibration.stds, dtype=torch.float64)
    if len(bounds) == 1:
        return bounds.expand(inputs)
    return torch.cat([each.expand(hardware.tile_size) for each in bounds])[:inputs]
