"""How much throughput does a placement have, and how much energy does it take, component by component?

A step gives every sequence of the batch one token. Layers follow each other. In each, the digital experts and the
analog experts work side by side, and the slower side sets the time.

- Digital: weights are read from memory once a step and multiplied in matrix units. The slower of the two sets the time.
- Analog: each product drives DACs, crossbars and ADCs. Experts that share converters take turns, so that those sharing
  whose experts serve the most tokens of the batch set the time.

Every number has its unit and source in `Machine` and in docs/choices.md. What the model leaves out is `NOT_MODELLED`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr

from realmodels.model import Model, require_model
from theory import paper
from theory.converters import FEWEST_BITS, MOST_BITS, adc_area, adc_energy
from theory.errors import InputError, require, require_kind, shown
from theory.placement import Placement, num_digital
from theory.strict_json import is_finite, is_whole

Array = NDArray[np.float64]

BYTES_PER_PARAMETER = 2  # fp16 and bf16
MATRICES = 3  # up, gate and down of an expert
STAGES = 2  # products of an expert that follow each other: up beside gate, then down
OPERATIONS_PER_PARAMETER = 2  # a multiplication and an addition for each token
EXPERTS_PER_TOKEN = ("num_experts_per_tok", "moe_topk", "top_k_experts")  # as configs call top_k
ROUNDING = 1e-3  # relative, of the sum of a layer's loads
LARGEST_BATCH = 2**16  # whose numbers of tokens fit memory [`busiest`]
# Of what a machine and a shape are told: products of some of them are finite.
SMALLEST, LARGEST, LARGEST_WHOLE = 1e-30, 1e30, 10**15
NOT_MODELLED = (
    "Not modelled: attention over past tokens and its cache, routers, norms and embeddings, transfers between the"
    " devices, programming the weights, energy of analog hardware that waits."
)
# A product with a full tile of 512 x 512 takes 0.1 W for 100 ns: defaults of 3D-CiM-LLM-Inference-Simulator, IBM's, of
# J. Buechel et al., "Efficient scaling of large language models with mixture of experts and 3D analog in-memory
# computing", Nature Computational Science 5 (2025).
TILE_SECONDS, TILE_JOULES = 100e-9, 0.1 * 100e-9
TILE = paper.TILE_SIZE.value
BITS = paper.CONVERTER_BITS.value
# DACs of one bit: 4 mW for 8 x 128 of them, in cycles of 100 ns at 32 nm [A. Shafiee et al., "ISAAC", ISCA 2016].
TECHNOLOGY = 32.0
DAC_BIT_JOULES = 4e-3 * 100e-9 / (8 * 128)
ADC_RATE = 1 / TILE_SECONDS


@dataclass(frozen=True)
class Machine:
    """The components of the digital device and of the analog hardware.

    Digital device, by default an NVIDIA A100 SXM of 80 GB:

    memory_bandwidth: bytes/s; 2,039 GB/s [data sheet].
    memory_efficiency: share of the bandwidth that reading weights reaches; inferred from Table 2, row "all digital".
    memory_energy: J/byte; 3.9 pJ per bit of HBM2 [M. O'Connor et al., "Fine-Grained DRAM", MICRO 2017].
    operation_rate: operations/s of the matrix units; 312 TFLOPS in fp16 [data sheet].
    operation_energy: J per operation; 1.5 pJ for a product and a sum in fp16 at 45 nm [M. Horowitz, ISSCC 2014].
    rest_power: W that the device draws beside memory and matrix units for as long as a step lasts; inferred from
        Table 2, row "all digital", which draws 400 W in all, as the data sheet has it.

    Analog hardware:

    tile_size: rows and columns of a tile [paper].
    product_seconds: s for which a tile integrates one product [Buechel et al. 2025].
    cell_energy: J per weight and product; what Buechel et al.'s 10 nJ for a tile leave beside its converters.
    dac_bits, adc_bits: [paper]; effective bits of the ADC are taken to be all of its bits.
    dac_energy: J per bit of an input [Shafiee et al. 2016].
    adc_rate: conversions/s of an ADC; one in `product_seconds`.
    technology: nm, of the ADCs; that of the DACs' source.
    columns_per_adc: columns of a tile that share an ADC [paper: none do].
    experts_per_adc: experts of a layer that share converters and so take turns; inferred from Table 2, row "dense
        digital".
    """

    memory_bandwidth: float = 2.039e12
    memory_efficiency: float = 0.87
    memory_energy: float = 8 * 3.9e-12
    operation_rate: float = 312e12
    operation_energy: float = 1.5e-12 / 2
    rest_power: float = 337.0
    tile_size: int = TILE
    product_seconds: float = TILE_SECONDS
    cell_energy: float = (
        TILE_JOULES - TILE * (BITS * DAC_BIT_JOULES + adc_energy(BITS, ADC_RATE, TECHNOLOGY))
    ) / TILE**2
    dac_bits: int = BITS
    dac_energy: float = DAC_BIT_JOULES
    adc_bits: int = BITS
    adc_rate: float = ADC_RATE
    technology: float = TECHNOLOGY
    columns_per_adc: int = 1
    experts_per_adc: int = 16

    def __post_init__(self) -> None:
        whole = ("tile_size", "dac_bits", "columns_per_adc", "experts_per_adc")
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        checks = {
            name: (
                is_whole(value) and 1 <= value <= LARGEST_WHOLE,
                f"a whole number from 1 to {LARGEST_WHOLE}",
            )
            if name in whole
            else (
                is_finite(value) and SMALLEST <= value <= LARGEST,
                f"a number from {SMALLEST:g} to {LARGEST:g}",
            )
            for name, value in given.items()
        }
        checks["memory_efficiency"] = (
            checks["memory_efficiency"][0] and self.memory_efficiency <= 1,
            "a share above 0 and of at most 1",
        )
        checks["adc_bits"] = (
            is_whole(self.adc_bits) and FEWEST_BITS <= self.adc_bits <= MOST_BITS,
            f"a whole number from {FEWEST_BITS} to {MOST_BITS}",
        )
        require(self, "machine", checks)

    @property
    def seconds_per_product(self) -> float:
        """Time of one analog product, s: integration, or all conversions of an ADC if these take longer."""
        return max(self.product_seconds, self.columns_per_adc / self.adc_rate)

    @property
    def adc_joules(self) -> float:
        """Energy of a conversion, J."""
        return adc_energy(self.adc_bits, self.adc_rate, self.technology)

    def reading(self, parameters: Array) -> Array:
        """Time to read so many digital parameters, s."""
        return parameters * BYTES_PER_PARAMETER / (self.memory_bandwidth * self.memory_efficiency)

    def multiplying(self, parameters: Array) -> Array:
        """Time to multiply so many parameters with a vector each, s."""
        return parameters * OPERATIONS_PER_PARAMETER / self.operation_rate


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that the cost depends on.

    moe_layers: MoE layers.
    experts: routed experts of a layer.
    top_k: routed experts that a token uses.
    expert_parameters: parameters of one routed expert.
    dense_parameters: parameters of all other matrices that a token is multiplied with: without embeddings, norms and
        routers.
    hidden: width of the residual stream, into which every matrix is taken to read or write. The default fills tiles.
    weightless: further experts that a token can choose, which have no weights and cost nothing.
    """

    moe_layers: int
    experts: int
    top_k: int
    expert_parameters: int
    dense_parameters: int
    hidden: int = TILE
    weightless: int = 0

    def __post_init__(self) -> None:
        checks = {}
        for field in fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "weightless" else 1
            valid = is_whole(value) and least <= value <= LARGEST_WHOLE
            checks[field.name] = (valid, f"a whole number from {least} to {LARGEST_WHOLE}")
        require(self, "shape", checks)
        if self.top_k > self.experts:
            raise InputError(f"shape.top_k is {self.top_k}: a token uses at most the {self.experts} experts")

    @classmethod
    def of(cls, model: Model) -> "Shape":
        """The shape of a loaded model. Biases do not count: they stay digital.

        InputError if the layers have different numbers of experts, or if the config does not say how many a token uses.
        """
        require_model(model)
        numbers = set(model.map.num_experts)
        if len(numbers) != 1:
            raise InputError(
                f"{model.name} has layers of {sorted(numbers)} experts: they have to be equally many"
            )
        network, first = model.network, model.map.moe_layers[0]
        config = network.config.get_text_config(decoder=True)
        given = (getattr(config, name, None) for name in EXPERTS_PER_TOKEN)
        top_k = next((number for number in given if number is not None), None)
        if top_k is None:
            raise InputError(
                f"config of {model.name} has none of {', '.join(EXPERTS_PER_TOKEN)}: give a Shape by its numbers"
            )
        return cls(
            moe_layers=len(model.map.moe_layers),
            experts=first.num_experts,
            top_k=top_k,
            expert_parameters=sum(network.get_parameter(name).numel() for name in first.weights)
            // first.num_experts,
            dense_parameters=sum(
                network.get_parameter(f"{name}.weight").numel() for name in model.map.linears
            ),
            hidden=config.hidden_size,
            weightless=first.layout.identities,
        )

    def expert_analog(self, tile: int) -> tuple[float, float, float]:
        """DACs, cells and ADCs of an expert's tiles: each tile has its own for every row and column in use."""
        width = self.expert_parameters / (MATRICES * self.hidden)
        slices, inner = math.ceil(self.hidden / tile), math.ceil(width / tile)
        up, down = MATRICES - 1, 1
        return (
            up * self.hidden * inner + down * width * slices,
            self.expert_parameters,
            up * width * slices + down * self.hidden * inner,
        )

    def dense_analog(self, tile: int) -> tuple[float, float, float]:
        """The same of all dense modules, taken as one matrix that reads the residual stream."""
        width = self.dense_parameters / self.hidden
        return (
            self.hidden * math.ceil(width / tile),
            self.dense_parameters,
            width * math.ceil(self.hidden / tile),
        )


def _shape(model: paper.ModelShape) -> Shape:
    """Shape of one of the paper's models; all heads have keys and values, and embeddings are not tied to the head."""
    attention = model.layers * 4 * model.hidden**2
    head = model.vocabulary * model.hidden
    always_used = model.dense_layers * model.dense_width
    always_used += model.moe_layers * model.shared_experts * model.expert_width
    return Shape(
        moe_layers=model.moe_layers,
        experts=model.experts,
        top_k=model.top_k,
        expert_parameters=MATRICES * model.hidden * model.expert_width,
        dense_parameters=attention + head + MATRICES * model.hidden * always_used,
        hidden=model.hidden,
    )


OLMOE = _shape(paper.OLMOE)
DEEPSEEK_MOE = _shape(paper.DEEPSEEK_MOE)


@dataclass(frozen=True)
class Part:
    """What one component does in a step.

    seconds: for which it is busy, s. Components work at the same time, so that these do not add up.
    joules: its energy, J. These add up to the step's.
    """

    component: str
    seconds: float
    joules: float


@dataclass(frozen=True)
class Cost:
    """The cost of a step, which gives every sequence of the batch one token.

    seconds: duration of the step.
    joules: energy of the step.
    parts: of every component.
    adc_area: of all ADCs, m^2.
    """

    batch: int
    seconds: float
    joules: float
    parts: tuple[Part, ...] = ()
    adc_area: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def tokens_per_joule(self) -> float:
        """Energy efficiency: the paper's tokens/(W s)."""
        return self.batch / self.joules


def used(served: ArrayLike, batch: int) -> Array:
    """Probability that a batch uses an expert, which serves this share of the tokens, if they choose independently."""
    return 1 - (1 - np.asarray(served, dtype=np.float64)) ** batch


def busiest(loads: Array, batch: int, sharing: int = 1) -> Array:
    """Expected number of tokens of the experts that are busiest in each layer, those that share converters together.

    loads: share of the tokens that each expert serves, (layers, experts); 0 for one that does not count.
    sharing: experts that share converters. They are dealt out by load, so that the sharing are as even as possible.

    The tokens of those who share are taken as binomial and independent of the others', of n trials:
    E max = sum over k < n of (1 - product of P(tokens <= k)).
    """
    layers, experts = loads.shape
    groups = math.ceil(experts / sharing)
    each = math.ceil(experts / groups)
    dealt = np.zeros((layers, each * groups))
    dealt[:, :experts] = -np.sort(-loads, axis=1)
    of_layers = dealt.reshape(layers, each, groups).mean(axis=1).tolist()
    return np.array([_most(tuple(shares), batch * each) for shares in of_layers])


@lru_cache(maxsize=2**12)  # placements that are compared differ in few layers
def _most(shares: tuple[float, ...], trials: int) -> float:
    """Expected largest of independent binomials of these shares."""
    below = bdtr(np.arange(trials), trials, np.array(shares)[:, None])  # P(tokens <= k)
    return float((1 - below.prod(axis=0)).sum())


def cost(
    shape: Shape,
    digital_experts: float | Sequence[int] | Placement | NDArray[np.bool_],
    batch: int = paper.TABLE_2_BATCH.value,
    machine: Machine | None = None,
    *,
    dense_digital: bool | float = True,
    loads: ArrayLike | None = None,
) -> Cost:
    """The cost of a step.

    digital_experts: which experts are digital: a fraction of every layer's, their number in each layer, a placement, of
        which only the experts count, or a (layers, experts) array of bool.
    dense_digital: share of the dense parameters that are digital; True for all, False for none.
    loads: share of the tokens that each expert serves, (layers, experts), as `statistics.routing(...).frequency` has
        it: those of a layer sum to top_k, less what experts without weights serve. Default: all experts serve equally
        many. With it, a placement or an array has to say which experts are digital.
    InputError for other values.
    """
    require_kind(shape, Shape, "shape", "as Shape.of makes it of a model")
    machine = Machine() if machine is None else machine
    require_kind(machine, Machine, "machine", "Machine(adc_bits=6), say")
    if not is_whole(batch) or not 1 <= batch <= LARGEST_BATCH:
        raise InputError(f"batch is {batch!r}: give a whole number from 1 to {LARGEST_BATCH}")
    if not (isinstance(dense_digital, bool) or (is_finite(dense_digital) and 0 <= dense_digital <= 1)):
        raise InputError(f"dense_digital is {dense_digital!r}: give True, False or a share from 0 to 1")
    digital, served = _digital(shape, digital_experts), _served(shape, loads)
    named = isinstance(digital_experts, Placement | np.ndarray)
    if loads is not None and not named and 0 < digital.mean() < 1:
        raise InputError(
            "loads differ between experts: give a placement, which says which of them are digital"
        )
    on_digital, on_analog = np.where(digital, served, 0), np.where(digital, 0, served)
    expert, dense = shape.expert_parameters, shape.dense_parameters * float(dense_digital)
    dense_analog = 1 - float(dense_digital)

    # Of the experts of each layer, and last of the dense modules: parameters that are read, products of a parameter,
    # and analog products that follow each other. A dense module multiplies every token.
    read = np.append(expert * used(on_digital, batch).sum(axis=1), dense)
    multiplied = batch * np.append(expert * on_digital.sum(axis=1), dense)
    turns = np.append(
        STAGES * busiest(on_analog, batch, machine.experts_per_adc),
        batch * (STAGES * shape.moe_layers + 1) * dense_analog,
    )
    reading, multiplying = machine.reading(read), machine.multiplying(multiplied)
    computing, waiting = np.maximum(reading, multiplying), turns * machine.seconds_per_product
    seconds = float(np.maximum(computing, waiting)[:-1].sum() + computing[-1] + waiting[-1])
    on = seconds if dense > 0 or digital.any() else 0.0

    of_expert, of_dense = (
        np.array(one(machine.tile_size)) for one in (shape.expert_analog, shape.dense_analog)
    )
    dacs, cells, adcs = batch * (on_analog.sum() * of_expert + dense_analog * of_dense)
    integrating, converting = machine.product_seconds, machine.columns_per_adc / machine.adc_rate
    parts = tuple(
        Part(component, float(busy), float(spent))
        for component, busy, spent in (
            ("memory", reading.sum(), read.sum() * BYTES_PER_PARAMETER * machine.memory_energy),
            (
                "matrix units",
                multiplying.sum(),
                multiplied.sum() * OPERATIONS_PER_PARAMETER * machine.operation_energy,
            ),
            ("rest of the digital device", on, on * machine.rest_power),
            ("DACs", turns.sum() * integrating, dacs * machine.dac_bits * machine.dac_energy),
            ("crossbars", turns.sum() * integrating, cells * machine.cell_energy),
            ("ADCs", turns.sum() * converting, adcs * machine.adc_joules),
        )
    )
    # Sets of converters that have an expert on them, and those of the analog dense modules.
    sets = np.minimum((~digital).sum(axis=1), math.ceil(shape.experts / machine.experts_per_adc)).sum()
    converters = (sets * of_expert[-1] + dense_analog * of_dense[-1]) / machine.columns_per_adc
    area = converters * adc_area(machine.adc_bits, machine.adc_rate, machine.technology)
    return Cost(batch, seconds, sum(part.joules for part in parts), parts, float(area))


def _digital(
    shape: Shape, chosen: float | Sequence[int] | Placement | NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which experts are digital, (layers, experts); the first ones if only their number is given."""
    places = np.arange(shape.experts)
    if isinstance(chosen, np.ndarray):
        if chosen.shape != (shape.moe_layers, shape.experts) or chosen.dtype != bool:
            raise InputError(
                f"digital_experts is an array of {chosen.dtype} {chosen.shape}: give one of bool"
                f" {(shape.moe_layers, shape.experts)}"
            )
        return chosen
    if isinstance(chosen, Placement):
        if chosen.num_experts != (shape.experts,) * shape.moe_layers:
            raise InputError(
                f"the placement has layers of {chosen.num_experts} experts, the model {shape.moe_layers} layers of"
                f" {shape.experts}: give a placement of this model"
            )
        return np.array([np.isin(places, layer) for layer in chosen.digital_experts])
    if isinstance(chosen, Sequence) and not isinstance(chosen, str):
        if len(chosen) != shape.moe_layers or not all(
            is_whole(n) and 0 <= n <= shape.experts for n in chosen
        ):
            raise InputError(
                f"digital_experts is {shown(list(chosen))}: give for each of {shape.moe_layers} layers a whole number"
                f" from 0 to {shape.experts}"
            )
        return places < np.array(chosen)[:, None]
    if not is_finite(chosen) or not 0 <= chosen <= 1:
        raise InputError(f"digital_experts is {chosen!r}: give a fraction from 0 to 1")
    return np.tile(places < num_digital(chosen, shape.experts), (shape.moe_layers, 1))


def _served(shape: Shape, loads: ArrayLike | None) -> Array:
    """Share of the tokens that each expert serves, (layers, experts)."""
    size = (shape.moe_layers, shape.experts)
    if loads is None:
        return np.full(size, shape.top_k / (shape.experts + shape.weightless))
    try:
        given = np.asarray(loads, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(
            f"loads are {shown(loads)}: give numbers of the shape (layers, experts), {size}"
        ) from None
    if given.shape != size:
        raise InputError(f"loads have the shape {given.shape}: give (layers, experts), {size}")
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError("loads are shares of tokens: give numbers from 0 to 1")
    served = given.sum(axis=1)
    fewest = 0 if shape.weightless else shape.top_k
    wrong = np.flatnonzero((served < fewest * (1 - ROUNDING)) | (served > shape.top_k * (1 + ROUNDING)))
    if len(wrong):
        most = "at most " if shape.weightless else ""
        raise InputError(
            f"loads of layer {wrong[0]} sum to {served[wrong[0]]:.4g}: give the share of the tokens that each expert"
            f" serves; a token uses {shape.top_k} experts, so that they sum to {most}{shape.top_k}"
        )
    return given
