"""Energy and area of an analog-to-digital converter, from its bits, its rate and its technology.

A regression on B. Murmann's survey of published converters: T. Andrulis, R. Chen, H.-S. Lee, J. S. Emer, V. Sze,
"Modeling Analog-Digital-Converter Energy and Area for Compute-In-Memory Accelerator Design", arXiv 2404.06553 (2024).
The coefficients are those of their package hwcomponents-adc 1.0.21 (MIT), adc_data/model.yaml, in which logarithms are
natural, rates in Hz, technologies in nm, energies in pJ and areas in um^2. The package itself needs Python 3.12, so it
cannot be a dependency. The estimates are of good designs, not of average ones. Bits are effective bits.
"""

import math

from theory.errors import InputError
from theory.strict_json import is_finite, is_whole

FEWEST_BITS, MOST_BITS = 4, 20  # of the model: fewer bits are outside it, more outside the survey

# Schreier's figure of merit, dB: bounded by the rate, and by the bits.
MERIT, MERIT_PER_LOG_RATE = 213.7806687348118, -2.8719030399529957
MERIT_OF_BITS, MERIT_PER_BIT = 128.3068287398817, 3.220511510977559
# Log of the energy beside what the figure of merit gives.
ENERGY, ENERGY_PER_LOG_TECHNOLOGY, ENERGY_PER_LOG_BITS = (
    26.0496215686518 - 1.4702022133784405,  # intercept, and the residual of a good design
    1.8800369206815004,
    -2.8291256050594527,
)
# Log of the area.
AREA, AREA_PER_LOG_TECHNOLOGY = 1.3461916439910742, 0.9932794744745022
AREA_PER_LOG_RATE, AREA_PER_LOG_ENERGY = 0.18071538424508238, 0.29912426192653485


def adc_energy(bits: int, rate: float, technology: float) -> float:
    """Energy of one conversion, J.

    bits: effective bits, a whole number from 4 to 20.
    rate: conversions per second.
    technology: feature size, nm.
    InputError for other values.
    """
    valid = {
        "bits": (bits, is_whole(bits) and FEWEST_BITS <= bits <= MOST_BITS, "a whole number from 4 to 20"),
        "rate": (rate, is_finite(rate) and rate > 0, "conversions per second, above 0"),
        "technology": (technology, is_finite(technology) and technology > 0, "nanometres, above 0"),
    }
    for name, (value, fits, allowed) in valid.items():
        if not fits:
            raise InputError(f"the ADC's {name} is {value!r}: give {allowed}")
    merit = min(MERIT + MERIT_PER_LOG_RATE * math.log(rate), MERIT_OF_BITS + MERIT_PER_BIT * bits)
    signal_to_noise = 20 * bits * math.log10(2) + 10 * math.log10(1.5)  # dB, of a sine wave of all levels
    picojoules = 0.5 * 10 ** ((signal_to_noise - merit) / 10)
    picojoules *= math.exp(
        ENERGY + ENERGY_PER_LOG_TECHNOLOGY * math.log(technology) + ENERGY_PER_LOG_BITS * math.log(bits)
    )
    return picojoules * 1e-12


def adc_area(bits: int, rate: float, technology: float) -> float:
    """Area of one converter, m^2; arguments and errors are those of `adc_energy`."""
    picojoules = adc_energy(bits, rate, technology) * 1e12
    square_micrometres = math.exp(
        AREA
        + AREA_PER_LOG_TECHNOLOGY * math.log(technology)
        + AREA_PER_LOG_RATE * math.log(rate)
        + AREA_PER_LOG_ENERGY * math.log(picojoules)
    )
    return square_micrometres * 1e-12
