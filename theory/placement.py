"""Which experts and dense modules are digital? The placement, and the strategies that choose it.

Scores are (layers, experts), one row for each MoE layer of the model in order; higher means digital first. They are
only ranked here: `realmodels.scores` computes them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from theory.errors import InputError, shown
from theory.files import from_home, read_regular, write_whole
from theory.hardware import Hardware, require_hardware
from theory.knapsack import frontier
from theory.strict_json import dumps, fields_of, is_finite, is_whole, loads

Strategy = Literal[
    "maxnn",
    "balanced_maxnn",
    "activation_frequency",
    "activation_weight",
    "router_norm",
    "maxvar",
    "alphaq",
    "msan",
    "random",
    "minnn",
    "none",
    "all",
]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Scores = Float[Tensor, "layers experts"]
Choice = tuple[tuple[int, ...], ...]
LARGEST_FILE = 2**24  # bytes


class Named(Protocol):
    """A model, as far as a file names it [realmodels.model.Model]."""

    @property
    def name(self) -> str: ...
    @property
    def weights_hash(self) -> str: ...


@dataclass(frozen=True)
class Placement:
    """The digital experts; all other experts are on analog hardware.

    num_experts: how many experts each MoE layer has, in the order of the layers.
    digital_experts: for each MoE layer the indices of its digital experts, kept in ascending order.
    analog_modules: dense modules that are on analog hardware too, as kinds ("attention", "lm_head", ...) or names of
        modules of the model. Other dense modules are digital, which is the paper's method.
    """

    num_experts: tuple[int, ...]
    digital_experts: Choice
    analog_modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = tuple(
            _index(size, f"placement.num_experts[{layer}]", 1)
            for layer, size in enumerate(_sequence(self.num_experts, "placement.num_experts"))
        )
        layers = _sequence(self.digital_experts, "placement.digital_experts")
        if len(layers) != len(sizes):
            raise InputError(
                f"placement.digital_experts has {len(layers)} layers: give one list for each of the"
                f" {len(sizes)} layers of placement.num_experts"
            )
        chosen = []
        for layer, (experts, size) in enumerate(zip(layers, sizes, strict=True)):
            where = f"placement.digital_experts[{layer}]"
            indices = [_index(expert, where, 0, size - 1) for expert in _sequence(experts, where)]
            chosen.append(tuple(sorted(_distinct(indices, where))))
        modules = _sequence(self.analog_modules, "placement.analog_modules")
        for module in modules:
            if not isinstance(module, str) or not module:
                raise InputError(f"placement.analog_modules has {shown(module)}: give names of modules")
        object.__setattr__(self, "num_experts", sizes)
        object.__setattr__(self, "digital_experts", tuple(chosen))
        object.__setattr__(
            self, "analog_modules", tuple(sorted(_distinct(modules, "placement.analog_modules")))
        )

    def __str__(self) -> str:
        digital, every = sum(map(len, self.digital_experts)), sum(self.num_experts)
        dense = f", {' and '.join(self.analog_modules)} analog" if self.analog_modules else ""
        return f"{digital} of {every} experts digital{dense}"

    def save(
        self, file: str | Path, model: "Named", *, score: str = "", hardware: Hardware | None = None
    ) -> None:
        """Write the placement as JSON, with what it is of: the model, the score and the hardware that it was chosen by.

        InputError, before anything is written, for other arguments, or if the file cannot be written.
        """
        date = datetime.now(UTC).isoformat(timespec="seconds")
        name, weights_hash = _named(model)
        saved = SavedPlacement(Path(name).name, weights_hash, score, hardware, date, self)  # not where it was
        with write_whole(from_home(file), "placement file") as out:
            # What is no Unicode, as names of files may be, is an escape of JSON.
            out.write(dumps(asdict(saved)).encode(errors="backslashreplace"))

    @classmethod
    def load(cls, file: str | Path, model: "Named") -> "Placement":
        """The placement that `save` wrote for this model; InputError for another model's, or any other file."""
        name, weights_hash = _named(model)
        saved = read_placement(file)
        if saved.weights_hash != weights_hash:
            raise InputError(
                f"placement file {file} is of the model {shown(saved.model)} with the weights"
                f" {saved.weights_hash[:12]}, not of {name} with {weights_hash[:12]}: load that model, or place"
                " this one"
            )
        return saved.placement

    def to_json(self) -> str:
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Placement":
        """The placement written by `to_json`; InputError naming the field for anything else."""
        try:
            return cls(**fields_of(cls, loads(text), "placement"))
        except InputError as error:
            raise InputError(f"{error}; restore the placement file or make it again") from None


@dataclass(frozen=True)
class SavedPlacement:
    """A placement and what it is of; the fields of a file.

    weights_hash: of the digital model [realmodels.load.loaded_hash].
    score: what experts were ranked by, "" if that is not known. hardware: what for, None if that is not known.
    date: when it was saved, as ISO 8601.
    """

    model: str
    weights_hash: str
    score: str
    hardware: Hardware | None
    date: str
    placement: Placement

    def __post_init__(self) -> None:
        for name in ("model", "weights_hash", "score", "date"):
            if not isinstance(value := getattr(self, name), str):
                raise InputError(f"{name} is {shown(value)}: give a text")
        if self.hardware is not None:
            require_hardware(self.hardware)


def read_placement(file: str | Path) -> SavedPlacement:
    """What `Placement.save` wrote, whatever the model; InputError for any other file."""
    where, advice = f"placement file {file}", "give a file that Placement.save wrote"
    try:
        text = read_regular(Path(file).expanduser(), LARGEST_FILE).decode()
        saved = fields_of(SavedPlacement, loads(text), "it")
        hardware = saved["hardware"]
        if hardware is not None:
            hardware = Hardware(**fields_of(Hardware, hardware, "hardware"))
        placement = Placement(**fields_of(Placement, saved["placement"], "placement"))
        return SavedPlacement(**{**saved, "hardware": hardware, "placement": placement})
    except UnicodeDecodeError:
        raise InputError(f"{where} is no text: {advice}") from None
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{where} cannot be read ({getattr(error, 'strerror', None) or error}): {advice}"
        ) from None
    except InputError as error:
        raise InputError(f"{where}: {error}; {advice}") from None


def _named(model: object) -> tuple[str, str]:
    """Name and hash of the weights of a model."""
    name, weights_hash = (getattr(model, field, None) for field in ("name", "weights_hash"))
    if not isinstance(name, str) or not isinstance(weights_hash, str):
        raise InputError(f"model is {shown(model)}: give a Model, as realmodels.load returns it")
    return name, weights_hash


def num_digital(digital_fraction: float, experts: int) -> int:
    """Number of digital experts: round-half-up(digital_fraction * experts), in decimal. .29 of 50 is 14.5, gives 15."""
    if not is_finite(digital_fraction) or not 0 <= digital_fraction <= 1:
        raise InputError(f"digital_fraction is {digital_fraction!r}: give a number from 0 to 1")
    return int((Decimal(str(digital_fraction)) * experts).to_integral_value(ROUND_HALF_UP))


def rank(
    scores: Scores,
    digital_fraction: float,
    strategy: Strategy = "maxnn",
    *,
    across_layers: bool = False,
    signs: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
) -> Choice:
    """The digital experts of every layer: the first num_digital(digital_fraction, experts) of a ranking.

    across_layers: True for one ranking of all layers' experts together, so that the budget goes where scores are
        highest. Among equal scores a layer comes before the next one.
    signs: +1 or -1 for each expert; for `balanced_maxnn`.
    generator: for `random`.

    The highest score comes first, and the lower index among equal scores, but for these strategies:
    - `minnn` ranks the lowest score first;
    - `random` ranks in an order drawn from `generator`;
    - `balanced_maxnn` takes experts of the two output signs in turn, beginning with the sign of the highest score,
      until one sign is used up;
    - `none` and `all` do as they say.
    A larger fraction only adds experts.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}: give one of {', '.join(STRATEGIES)}")
    _check(scores)
    layers, experts = scores.shape
    if across_layers and layers:
        if strategy == "balanced_maxnn":
            raise InputError(
                "across_layers: 'balanced_maxnn' balances the signs of a layer; give another strategy"
            )
        (chosen,) = rank(scores.reshape(1, -1), digital_fraction, strategy, generator=generator)
        return as_choice(chosen, layers, experts)
    if strategy == "random":
        if generator is None:
            raise InputError("strategy 'random' needs a generator: give a seeded torch.Generator")
        device = generator.device
        orders = [torch.randperm(experts, generator=generator, device=device).tolist() for _ in range(layers)]
    else:
        orders = scores.sort(dim=1, descending=strategy != "minnn", stable=True).indices.tolist()
    if strategy == "balanced_maxnn":
        orders = [_in_turn(order, sign) for order, sign in zip(orders, _signs(signs, scores), strict=True)]
    count = {"none": 0, "all": experts}.get(strategy, num_digital(digital_fraction, experts))
    return tuple(tuple(sorted(order[:count])) for order in orders)


def knapsack(values: Scores, costs: Int[Tensor, "layers experts"], budget: int) -> Choice:
    """The digital experts of every layer that are worth most together, over all layers, and cost at most the budget.

    values: what it is worth that an expert is digital, such as its expected damage. None of value 0 or less is chosen.
    costs: what a digital expert costs, whole numbers above 0, such as its weights [realmodels.scores.parameters].
    budget: what all digital experts may cost, a whole number.

    This is the 0/1 knapsack, solved exactly [theory.knapsack]. If all costs are equal and all values above 0, it is
    `rank` across layers, up to ties.
    """
    _check(values)
    if not isinstance(costs, Tensor) or costs.shape != values.shape or costs.is_floating_point():
        raise InputError(f"costs: give whole numbers of shape {tuple(values.shape)}, one for each expert")
    if (costs < 1).any():
        raise InputError(f"costs: the least is {int(costs.min())}: give whole numbers above 0")
    if not is_whole(budget) or budget < 0:
        raise InputError(f"budget is {budget!r}: give a whole number of at least 0, in units of the costs")
    found = frontier(values.flatten().double().cpu().numpy(), costs.flatten().cpu().numpy(), budget)
    return as_choice(found.items(-1), *values.shape)


def as_choice(indices: Iterable[int], layers: int, experts: int) -> Choice:
    """The experts of every layer, of indices that count through all layers."""
    each: list[list[int]] = [[] for _ in range(layers)]
    for index in sorted(indices):
        each[index // experts].append(index % experts)
    return tuple(map(tuple, each))


def place(
    scores: Scores,
    digital_fraction: float,
    strategy: Strategy = "maxnn",
    *,
    analog_modules: Sequence[str] = (),
    across_layers: bool = False,
    signs: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
) -> Placement:
    """The placement that `rank` chooses. Dense modules are digital but for `analog_modules`."""
    chosen = rank(
        scores, digital_fraction, strategy, across_layers=across_layers, signs=signs, generator=generator
    )
    modules = analog_modules if isinstance(analog_modules, str) else tuple(analog_modules)
    return Placement((scores.shape[1],) * scores.shape[0], chosen, modules)  # type: ignore[arg-type]  # refused there


def _check(scores: Scores) -> None:
    if not isinstance(scores, Tensor) or scores.ndim != 2 or not scores.shape[1]:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"scores of shape {shape}: give a tensor (layers, experts) with at least one expert")
    if not torch.isfinite(scores).all():
        raise InputError("scores: some are not finite; check the model's weights")


def _in_turn(order: list[int], sign: Sequence[int]) -> list[int]:
    same = [expert for expert in order if sign[expert] == sign[order[0]]]
    other = [expert for expert in order if sign[expert] != sign[order[0]]]
    return [expert for pair in zip_longest(same, other) for expert in pair if expert is not None]


def _signs(signs: Sequence[Sequence[int]] | None, scores: Scores) -> Sequence[Sequence[int]]:
    if signs is None or [len(each) for each in signs] != [scores.shape[1]] * scores.shape[0]:
        raise InputError(
            f"strategy 'balanced_maxnn' needs signs of shape {tuple(scores.shape)}: give each expert's"
        )
    if any(sign not in (1, -1) for each in signs for sign in each):
        raise InputError(f"signs are {signs}: give +1 or -1 for each expert")
    return signs


def _sequence(value: object, where: str) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} is {shown(value)}: give a list")
    return value


def _index(value: object, where: str, low: int, high: float = math.inf) -> int:
    if not is_whole(value) or not low <= value <= high:
        allowed = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        raise InputError(f"{where} has {shown(value)}: give whole numbers {allowed}")
    return value


def _distinct(values: Sequence[Any], where: str) -> Sequence[Any]:
    for value in values:
        if values.count(value) > 1:
            raise InputError(f"{where} has {shown(value)} twice: give it once")
    return values
