"""Which experts and dense modules should be digital, for a model, its hardware and a budget? What will that cost?

1. Every expert and every dense linear layer has an expected damage, what its noise should add to the loss [(D),
   (D-dense); realmodels.damage], and a number of parameters.
2. The closed forms have the order of a loss increase, and err by kind of module: they take squares of the gradient for
   second derivatives, and know no converters. So each kind is put on analog hardware alone, all others digital, on
   calibration text, and its closed forms are multiplied by measured/closed. Where the interval of what was measured
   contains 0, nothing is multiplied.
3. Damages add up while they are small [(D-sum)]. Beyond that the increase is taken to be S + b S^2, S being the sum of
   damages: pairs of modules interact in proportion to the product of their damages. b is such that everything analog,
   measured on the same text and noise, comes out right.
4. Among all choices the best is found exactly [theory.knapsack]. Experts are of one size, so that for each number of
   digital experts the most damaging ones are best, and for each number of digital dense parameters a choice on the
   frontier of dense modules is. Budgets on resources bound the two numbers; a budget on the loss asks for the fewest
   parameters. b changes no ranking, as S + b S^2 rises with S.
   Energy and throughput [realmodels.cost] depend on the loads of the digital experts, too. So under these budgets the
   choice is the best of those that take the most damaging experts first. More digital dense parameters can cost less,
   as analog dense modules take tokens in turn: then the bound on them is from below, and a choice that the frontier
   drops can be best.
5. The choice, and the paper's, are measured on held-out text under the same noise.

A step of 2 has noise of seeds of its own, and every draw comes with its mirror image, so that what is of first order in
the noise cancels.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from realmodels.calibrate import calibrate
from realmodels.cost import BYTES_PER_PARAMETER, Machine, Shape, cost
from realmodels.damage import dense_damage, expected_damage
from realmodels.deploy import Chip
from realmodels.evaluate import BLOCK_TOKENS, TokenBlocks, block_results, token_blocks
from realmodels.model import Model
from realmodels.progress import Advance, progress
from realmodels.scores import parameters, scores
from realmodels.statistics import routing
from realmodels.text import shared_paragraphs, text_hash
from theory import paper
from theory.errors import InputError, shown
from theory.evidence import Interval, grouped, mean_interval, two_way_interval
from theory.files import read_regular
from theory.hardware import Hardware
from theory.knapsack import Frontier, frontier
from theory.placement import Placement, as_choice, place
from theory.separation import evaluation_seeds, seed
from theory.strict_json import dumps, fields_of, is_finite, is_whole, loads

DRAWS, BLOCKS, TOKENS = 8, 32, BLOCK_TOKENS // 2  # noise draws, blocks of text, predictions in a block
POINTS = 101  # of a frontier
LARGEST_FILE = 2**26  # bytes
THE_PLAN = "plan"
DAMAGE, MAXNN, RANDOM = "expected damage", "MaxNNScore", "random"
AXES = ("share", "energy", "throughput")
# Work in tokens that a digital model reads in the same time, as measured on tiny-olmoe on one core.
_READING, _CALIBRATING, _CLOSED_FORMS, _ROUTING = 140_000, 70_000, 40_000, 20_000
_PASS = BLOCKS * TOKENS
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12} | {
    f"{letter}i": 2 ** (10 * power) for power, letter in enumerate("kmgt", 1)
}
Share = float | int | str


@dataclass(frozen=True)
class Budgets:
    """What a placement may cost; at least one is given.

    digital_experts, digital_parameters: a share of all (.1 or "10%"), or a whole number.
    digital_memory: bytes of all digital weights at 2 bytes each, with those that no placement touches; or "1.5 GB".
    energy: J per generated token, at most.
    throughput: generated tokens/s, at least.
    loss_increase: nats per token (.03), or a share of the digital loss ("1%"), at most.
    """

    digital_experts: Share | None = None
    digital_parameters: Share | None = None
    digital_memory: Share | None = None
    energy: float | None = None
    throughput: float | None = None
    loss_increase: float | str | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise InputError(f"plan needs a budget: give one or several of {', '.join(BUDGETS)}")
        for name in ("energy", "throughput"):
            value = getattr(self, name)
            if value is not None and (not is_finite(value) or value <= 0):
                raise InputError(f"budget {name} is {shown(value)}: give a number above 0")
        for name in ("digital_experts", "digital_parameters"):
            if (value := getattr(self, name)) is not None:
                _count(name, value, None)
        if self.digital_memory is not None:
            _bytes(self.digital_memory)
        if self.loss_increase is not None:
            self.nats(1.0)

    @property
    def given(self) -> dict[str, Any]:
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    def nats(self, digital_loss: float) -> float:
        """The budget of the loss, infinite if there is none."""
        value = self.loss_increase
        if value is None:
            return math.inf
        percent = _percent(value)
        found = value if percent is None else float(percent) * digital_loss
        if not is_finite(found) or found < 0:
            raise InputError(
                f"budget loss_increase is {shown(value)}: give nats (.03) or per cent (1%), of at least 0"
            )
        return float(found)


BUDGETS = tuple(field.name for field in fields(Budgets))


@dataclass(frozen=True)
class Kind:
    """Modules of one kind, all of them analog and all others digital.

    closed: sum of the closed forms, nats per token. measured, interval: on calibration text, over noise draws.
    factor: what the closed forms are multiplied by.
    """

    closed: float
    measured: float
    interval: Interval
    factor: float


@dataclass(frozen=True)
class Outcome:
    """A placement, what it costs, and what it is expected and measured to do.

    digital_parameters: by placement, without embeddings, norms and routers, which are always digital; share: of all the
        model's parameters, as in the paper's Table 2.
    memory: bytes of all digital weights.
    energy: J per token. throughput: tokens/s.
    predicted: loss increase, nats per token. measured, interval: on held-out text, over noise draws and documents.
    """

    placement: Placement
    digital_experts: int
    digital_parameters: int
    share: float
    memory: int
    energy: float
    throughput: float
    predicted: float
    measured: float
    interval: Interval


@dataclass(frozen=True)
class Dense:
    """A dense linear layer; damage: what its noise should add to the loss, corrected, nats per token."""

    kind: str
    parameters: int
    damage: float
    digital: bool


@dataclass(frozen=True)
class Plan:
    """The best placement within budgets, and all that it was chosen by; JSON round trip.

    weights_hash: of the digital model. texts: hash of the evaluation and of the calibration text.
    draws: noise draws of what is measured. batch: sequences that are generated at once.
    digital_loss: on the evaluation text, nats per token.
    damage, maxnn, load: (layers, experts) what noise on an expert should add to the loss, corrected; MaxNNScore; the
        share of tokens that are routed to it.
    kinds: by kind of module. interaction: b, per nat.
    outcomes: the plan and the paper's placements, by name.
    frontiers: by score and axis, pairs of a budget (share of digital parameters; J per token; tokens/s) and the least
        loss increase that is predicted within it.
    """

    model: str
    weights_hash: str
    date: str
    hardware: Hardware
    budgets: Budgets
    texts: Mapping[str, str]
    draws: int
    batch: int
    parameters: int
    digital_loss: float
    damage: tuple[tuple[float, ...], ...]
    maxnn: tuple[tuple[float, ...], ...]
    load: tuple[tuple[float, ...], ...]
    dense: Mapping[str, Dense]
    kinds: Mapping[str, Kind]
    interaction: float
    outcomes: Mapping[str, Outcome]
    frontiers: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]]

    @property
    def outcome(self) -> Outcome:
        return self.outcomes[THE_PLAN]

    @property
    def placement(self) -> Placement:
        return self.outcome.placement

    @property
    def error(self) -> float:
        """How far the prediction was off, nats per token: predicted minus measured."""
        return self.outcome.predicted - self.outcome.measured

    def __str__(self) -> str:
        found, (low, high) = self.outcome, self.outcome.interval
        total = sum(map(len, self.damage))
        analog = sum(not each.digital for each in self.dense.values())
        inside = "inside" if low <= found.predicted <= high else "outside"
        lines = (
            (
                f"{self.model}: {found.digital_experts} of {total} experts and {len(self.dense) - analog} of"
                f" {len(self.dense)} dense modules digital, {found.share:.2%} of the parameters"
            ),
            f"predicted loss increase: {_nats(found.predicted, self.digital_loss)}",
            f"measured on held-out text: {found.measured:.4f} [{low:.4f}, {high:.4f}], {self.draws} noise draws",
            f"the prediction is off by {self.error:+.4f} nats, {inside} the 95 % interval",
            (
                f"{found.energy:.3g} J per token, {found.throughput:,.0f} tokens/s at a batch of {self.batch},"
                f" {found.memory:,} bytes of digital weights"
            ),
        )
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each expert: layer, expert, score (expected damage), maxnn, load, digital."""
        return [
            {
                "layer": layer,
                "expert": expert,
                "score": self.damage[layer][expert],
                "maxnn": self.maxnn[layer][expert],
                "load": self.load[layer][expert],
                "digital": expert in digital,
            }
            for layer, digital in enumerate(self.placement.digital_experts)
            for expert in range(len(self.damage[layer]))
        ]

    def to_json(self) -> str:
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> "Plan":
        """The plan that `to_json` wrote; InputError naming `source` for anything else."""
        try:
            found = fields_of(cls, loads(text), "it")
            found |= {
                "hardware": Hardware(**fields_of(Hardware, found["hardware"], "hardware")),
                "budgets": Budgets(**fields_of(Budgets, found["budgets"], "budgets")),
                "dense": _each(Dense, found["dense"], "dense"),
                "kinds": _each(Kind, found["kinds"], "kinds"),
                "outcomes": _each(Outcome, found["outcomes"], "outcomes"),
                "frontiers": {
                    score: {axis: tuple((float(x), float(y)) for x, y in axes[axis]) for axis in AXES}
                    for score, axes in found["frontiers"].items()
                },
            }
            tables = {name: found[name] for name in ("damage", "maxnn", "load")}
            found |= {name: tuple(tuple(map(float, row)) for row in rows) for name, rows in tables.items()}
            read = cls(**found)
            str(read), read.rows()  # what is shown of it can be
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{source}: {error}; give a plan.json that plan wrote") from None
        return read


def read_plan(file: str | Path) -> Plan:
    """The plan that a file holds; InputError if it holds none."""
    try:
        text = read_regular(Path(file).expanduser(), LARGEST_FILE).decode()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise InputError(
            f"plan file {file} cannot be read ({getattr(error, 'strerror', None) or error}): give a plan.json that plan"
            " wrote"
        ) from None
    return Plan.from_json(text, f"plan file {file}")


def _each(cls: type, content: Any, where: str) -> dict[str, Any]:
    found = {}
    for name, value in content.items():
        own = dict(fields_of(cls, value, f"{where}.{name}"))
        own |= {each.name: each.type(own[each.name]) for each in fields(cls) if each.type in (int, float)}
        if cls is Outcome:
            own["placement"] = Placement(
                **fields_of(Placement, own["placement"], f"{where}.{name}.placement")
            )
        if "interval" in own:
            low, high = own["interval"]
            own["interval"] = (float(low), float(high))
        found[name] = cls(**own)
    return found


def plan(
    model: Model,
    hardware: Hardware,
    *,
    texts: Sequence[str] | None = None,
    calibration: Sequence[str] | None = None,
    draws: int = DRAWS,
    first_seed: int | None = None,
    batch: int = paper.TABLE_2_BATCH.value,
    machine: Machine | None = None,
    **budgets: Any,
) -> Plan:
    """The placement with the least expected loss within the budgets, or the cheapest within that of the loss.

    texts: held-out documents that losses are measured on; default: ours.
    calibration: documents for ranges, scores and corrections, none of which is in `texts`; default: ours.
    draws, first_seed: noise draws of what is measured, at least 2.
    batch, machine: as `realmodels.cost.cost` takes them.
    budgets: fields of Budgets.
    InputError if the budgets cannot be met together; the line says what can be.
    """
    wanted = _budgets(budgets)
    model.require_digital()
    if not hardware.c:
        raise InputError(
            "hardware.c is 0: without programming noise there is nothing to choose by; give c above 0"
        )
    seeds = evaluation_seeds(draws, DRAWS, first_seed, "noise draws")
    kinds = {kind: names for kind, names in model.map.dense.items() if names}
    passes = 2 * (len(kinds) + 2) + draws * (1 + len(paper.DIGITAL_EXPERTS.value))
    with progress(_READING + _CALIBRATING + _CLOSED_FORMS + _ROUTING + passes * _PASS) as advance:
        advance("reading text", 0)
        own_texts = model.texts("evaluation") if texts is None else texts
        known = model.texts("calibration") if calibration is None else calibration
        if (texts is not None or calibration is not None) and (shared := shared_paragraphs(known, own_texts)):
            raise InputError(
                f"calibration: {shared} of its paragraphs are in the evaluation text: leave them out"
            )
        blocks = blocks_of(model, own_texts, "evaluation")
        digital, _ = block_results(model.network, blocks.tokens)
        advance("reading text", _READING)
        items, found_kinds = items_of(model, hardware, known, batch, machine, advance)
        chosen = items.best(wanted, float(digital.mean()))
        maxnn = scores(model)
        compared = {THE_PLAN: chosen} | {
            f"dense + {100 * fraction:g} % {MAXNN}": place(maxnn, fraction)
            for fraction in paper.DIGITAL_EXPERTS.value
        }
        tables = increases_of(model, hardware, items.ranges, compared, seeds, blocks, digital, advance)
    outcomes = {}
    for name, table in tables.items():
        units = grouped(table, blocks.documents)
        outcomes[name] = items.outcome(compared[name], float(table.mean()), two_way_interval(units))
    return Plan(
        model=Path(model.name).name,
        weights_hash=model.weights_hash,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        hardware=hardware,
        budgets=wanted,
        texts={"evaluation": text_hash(own_texts), "calibration": text_hash(known)},
        draws=draws,
        batch=batch,
        parameters=items.total,
        digital_loss=float(digital.mean()),
        damage=_rows(items.experts),
        maxnn=_rows(maxnn),
        load=_rows(items.load),
        dense={
            name: Dense(
                kind, items.sizes[name], items.dense.get(name, 0.0), name not in chosen.analog_modules
            )
            for kind, names in kinds.items()
            for name in names
        },
        kinds=found_kinds,
        interaction=items.interaction,
        outcomes=outcomes,
        frontiers=items.frontiers(maxnn),
    )


def _budgets(given: Mapping[str, Any]) -> Budgets:
    for name in given:
        if name not in BUDGETS:
            raise InputError(f"{name} is no budget: give some of {', '.join(BUDGETS)}")
    return Budgets(**given)


def _rows(table: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, np.asarray(table).tolist()))


# What there is to choose from


@dataclass(frozen=True)
class Running:
    """Seconds and joules of a step, in which every sequence gets a token: linear in the digital dense parameters.

    A row stands for a number of digital experts, the most damaging ones. Row 0: everything analog, and the digital
    device is off. Row n + 1: n experts, and the device is on.

    seconds, joules: (rows, 2) with no (in row 1: nearly no) and with all dense modules digital. Both can fall from left
        to right: analog dense modules take tokens in turn.
    dense: number of parameters of all dense modules.
    """

    seconds: NDArray[np.float64]
    joules: NDArray[np.float64]
    dense: int

    @classmethod
    def of(
        cls,
        shape: Shape,
        placements: Sequence[Placement],
        batch: int,
        machine: Machine | None,
        load: NDArray[np.float64],
    ) -> "Running":
        """placements: with 0, 1, ... digital experts. load: (layers, experts) as `realmodels.cost.cost` takes it."""

        def step(placement: Placement, share: float) -> NDArray[np.float64]:
            found = cost(shape, placement, batch, machine, dense_digital=share, loads=load)
            return np.array([found.seconds, found.joules])

        rows = [[step(placements[0], 0.0)] * 2]
        for placement in placements:
            half, every = step(placement, 0.5), step(placement, 1.0)
            rows.append([2 * half - every, every])
        seconds, joules = np.moveaxis(np.array(rows), -1, 0)
        return cls(seconds, joules, shape.dense_parameters)

    def room(self, ends: NDArray[np.float64], most: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fewest and most digital dense parameters for which a row costs at most so much; the most is -1 for none."""
        rise = ends[:, 1] - ends[:, 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            border = (most - ends[:, 0]) / rise * self.dense
        low = np.where(rise < 0, np.clip(np.ceil(border), 0, self.dense + 1), 0)
        high = np.where(rise > 0, np.minimum(np.floor(border), self.dense), self.dense)
        return low, np.where(ends.min(axis=1) > most, -1, high)


@dataclass(frozen=True)
class Choice:
    """Digital experts, the most damaging ones, and digital dense modules, with the damage of what stays analog.

    experts: their number. dense: indices of modules. damage: nats per token.
    """

    experts: int
    dense: tuple[int, ...]
    damage: float


@dataclass(frozen=True)
class Items:
    """The experts and dense modules of a model, which `best` chooses among.

    shape: what running costs depend on; its dense parameters are those of modules that can be analog.
    experts: (layers, experts) expected damage, nats per token. size: parameters of an expert.
    load: (layers, experts) share of the tokens that are routed to an expert.
    dense: expected damage of each dense module that can be analog. sizes: parameters of each dense module.
    total: parameters of the model.
    """

    model: Model
    shape: Shape
    ranges: Any
    experts: NDArray[np.float64]
    load: NDArray[np.float64]
    size: int
    dense: Mapping[str, float]
    sizes: Mapping[str, int]
    total: int
    batch: int
    machine: Machine | None = None
    interaction: float = 0.0

    @cached_property
    def order(self) -> list[int]:
        """Experts, counted through all layers, the most damaging first."""
        return np.argsort(-self.experts.ravel(), kind="stable").tolist()

    @cached_property
    def left(self) -> NDArray[np.float64]:
        """Damage of the analog experts, by the number of digital ones."""
        rising = self.experts.ravel()[self.order][::-1]
        return np.concatenate([[0.0], np.cumsum(rising)])[::-1]

    @cached_property
    def names(self) -> list[str]:
        return list(self.dense)

    @cached_property
    def front(self) -> Frontier:
        """Of the choices of digital dense modules."""
        return self._frontier(every=False)

    @cached_property
    def every(self) -> Frontier:
        """The same with the choices that others beat: needed where more digital parameters cost less."""
        return self._frontier(every=True)

    def _frontier(self, every: bool) -> Frontier:
        return frontier(list(self.dense.values()), [self.sizes[name] for name in self.names], every=every)

    @cached_property
    def running(self) -> Running:
        placements = [self._placement(number, ()) for number in range(self.experts.size + 1)]
        return Running.of(self.shape, placements, self.batch, self.machine, self.load)

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """Digital experts of the rows of `running`."""
        return np.array([0, *range(self.experts.size + 1)])

    def uncorrected(self, kinds: Mapping[str, Kind]) -> "Items":
        """The same with the closed forms as they are, and their plain sum."""
        of = {
            name: kinds[kind]
            for kind, names in self.model.map.dense.items()
            for name in names
            if kind in kinds
        }
        return replace(
            self,
            interaction=0.0,
            experts=self.experts / kinds["experts"].factor,
            dense={name: damage / of[name].factor for name, damage in self.dense.items()},
        )

    @property
    def fixed(self) -> int:
        """Parameters that are digital whatever the placement."""
        return self.total - self.size * self.experts.size - sum(self.sizes[name] for name in self.names)

    def increase(self, damage: Any) -> Any:
        """Expected loss increase, of a sum of damages."""
        return damage + self.interaction * damage**2

    def room(self, caps: Mapping[str, float]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Fewest and most digital dense parameters within caps, by the rows of `running`; none where low > high."""
        low, high = np.zeros(len(self.numbers)), np.full(len(self.numbers), float(self.running.dense))
        high[0] = 0  # row 1 has this choice, too, as if it cost more
        if "experts" in caps:
            high[self.numbers > caps["experts"]] = -1
        if "parameters" in caps:
            high = np.minimum(high, caps["parameters"] - self.numbers * self.size)
        for name in {"seconds", "joules"} & set(caps):
            fewest, most = self.running.room(getattr(self.running, name), caps[name])
            low, high = np.maximum(low, fewest), np.minimum(high, most)
        return low.astype(np.int64), np.floor(high).astype(np.int64)

    def least(self, caps: Mapping[str, float]) -> Choice | None:
        """The choice of least damage within caps, None for none; of equal ones the one with the fewest parameters."""
        low, high = self.room(caps)
        table, found = self.front, self.front.within(high)
        if (table.costs[found] < low)[low <= high].any():
            table, found = self.every, self.every.between(low, high)
        damage, costs = self._of(table, found)
        fits = (low <= high) & (found >= 0)
        row = int(np.lexsort((costs, np.where(fits, damage, math.inf)))[0])
        return self._choice(row, table, found, damage) if fits[row] else None

    def cheapest(self, caps: Mapping[str, float], nats: float) -> Choice | None:
        """The choice of fewest parameters within caps whose expected increase is at most `nats`, None for none."""
        (low, high), slack = self.room(caps), 1e-12 * (self.left[0] + self.front.worths[-1])
        needed = self.left[self.numbers] + self._all_dense - self.sum_of(nats) - slack
        table, found = self.front, self.front.worth(needed)
        found[found == len(table.costs)] = -1
        if ((table.costs[found] < low) & (found >= 0))[low <= high].any():
            table, found = self.every, self.every.worth_between(low, high, needed)
        damage, costs = self._of(table, found)
        fits = (found >= 0) & (low <= table.costs[found]) & (table.costs[found] <= high)
        row = int(np.lexsort((damage, np.where(fits, costs, np.iinfo(np.int64).max)))[0])
        return self._choice(row, table, found, damage) if fits[row] else None

    def _of(self, table: Frontier, found: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Damage of what is analog, and digital parameters, by row, of choices in a table."""
        damage = self.left[self.numbers] + self._all_dense - table.worths[found]
        return damage, table.costs[found] + self.size * self.numbers

    def _choice(
        self, row: int, table: Frontier, found: NDArray[np.int64], damage: NDArray[np.float64]
    ) -> Choice:
        return Choice(int(self.numbers[row]), tuple(table.items(int(found[row]))), float(damage[row]))

    @property
    def _all_dense(self) -> float:
        return sum(self.dense.values())

    def sum_of(self, nats: float) -> float:
        """The sum of damages that is expected to add so much to the loss: the inverse of `increase`."""
        b = self.interaction
        if not b or not math.isfinite(nats):
            return nats
        under = 1 + 4 * b * nats
        return math.inf if under < 0 else (math.sqrt(under) - 1) / (2 * b)

    def _placement(self, experts: int, dense: Sequence[int]) -> Placement:
        digital = {self.names[index] for index in dense}
        return Placement(
            self.model.map.num_experts,
            as_choice(self.order[:experts], *self.experts.shape),
            tuple(name for name in self.names if name not in digital),
        )

    def placement(self, choice: Choice) -> Placement:
        return self._placement(choice.experts, choice.dense)

    def caps(self, budgets: Budgets) -> dict[str, dict[str, float]]:
        """Bounds on experts, parameters, and seconds and joules of a step, by the budget that they come from."""
        found: dict[str, dict[str, float]] = {}
        if budgets.digital_experts is not None:
            count = _count("digital_experts", budgets.digital_experts, self.experts.size)
            found["digital_experts"] = {"experts": count}
        if budgets.digital_parameters is not None:
            count = _count("digital_parameters", budgets.digital_parameters, self.total)
            found["digital_parameters"] = {"parameters": count}
        if budgets.digital_memory is not None:
            weights = _bytes(budgets.digital_memory) // BYTES_PER_PARAMETER
            found["digital_memory"] = {"parameters": weights - self.fixed}
        if budgets.energy is not None:
            found["energy"] = {"joules": budgets.energy * self.batch}
        if budgets.throughput is not None:
            found["throughput"] = {"seconds": self.batch / budgets.throughput}
        return found

    def best(self, budgets: Budgets, digital_loss: float) -> Placement:
        """The placement within all budgets; InputError with what can be had if there is none."""
        each = self.caps(budgets)
        caps: dict[str, float] = {}
        for name, own in each.items():
            if self.least(own) is None:
                raise InputError(self._unreachable(name, budgets))
            caps |= {bound: min(value, caps.get(bound, math.inf)) for bound, value in own.items()}
        least, nats = self.least(caps), budgets.nats(digital_loss)
        if least is None:
            raise InputError(
                f"budgets {' and '.join(each)} cannot be met together, though each can alone: relax one of them"
            )
        if not math.isfinite(nats):
            return self.placement(least)
        found = self.cheapest(caps, nats)
        if found is None:
            needed, near = self.cheapest({}, nats), self.outcome(self.placement(least))
            assert needed is not None  # with everything digital the increase is 0
            needs = self.outcome(self.placement(needed))
            raise InputError(
                f"a loss increase of {_nats(nats, digital_loss)} needs {needs.share:.1%} of the parameters digital"
                f" ({needs.energy:.3g} J per token, {needs.throughput:,.0f} tokens/s); the nearest within"
                f" the budget of {' and '.join(each)} is {_nats(near.predicted, digital_loss)} at {near.share:.1%}"
            )
        return self.placement(found)

    def _unreachable(self, name: str, budgets: Budgets) -> str:
        value = shown(getattr(budgets, name))
        seconds, joules = float(self.running.seconds.min()), float(self.running.joules.min())
        return {
            "digital_memory": f"budget digital_memory is {value}: what no placement touches (embeddings, norms,"
            f" routers) alone takes {self.fixed * BYTES_PER_PARAMETER:,} bytes; give more",
            "energy": f"budget energy is {value} J per token: the least is {joules / self.batch:.3g}; give more",
            "throughput": f"budget throughput is {value} tokens/s: the most is {self.batch / seconds:,.0f} at a batch"
            f" of {self.batch}; give less",
        }[name]

    def outcome(
        self, placement: Placement, measured: float = math.nan, interval: Interval = (math.nan, math.nan)
    ) -> Outcome:
        """What a placement costs and is expected to do, beside what was measured."""
        analog = set(self.model.map.resolve(placement.analog_modules))
        mask = np.ones(self.experts.shape, dtype=bool)
        for row, digital in zip(mask, placement.digital_experts, strict=True):
            row[list(digital)] = False
        experts = int((~mask).sum())
        dense = sum(size for name, size in self.sizes.items() if name not in analog)
        weights = sum(self.sizes[name] for name in self.names if name not in analog)
        step = cost(
            self.shape,
            placement,
            self.batch,
            self.machine,
            dense_digital=weights / self.shape.dense_parameters,
            loads=self.load,
        )
        damage = float(self.experts[mask].sum()) + sum(self.dense.get(name, 0.0) for name in analog)
        return Outcome(
            placement=placement,
            digital_experts=experts,
            digital_parameters=dense + experts * self.size,
            share=(dense + experts * self.size) / self.total,
            memory=(self.fixed + experts * self.size + weights) * BYTES_PER_PARAMETER,
            energy=step.joules / self.batch,
            throughput=step.tokens_per_second,
            predicted=float(self.increase(damage)),
            measured=measured,
            interval=interval,
        )

    def frontiers(self, maxnn: torch.Tensor) -> dict[str, dict[str, tuple[tuple[float, float], ...]]]:
        """By score and axis; MaxNNScore and random choice as in the paper: in each layer, dense modules digital."""
        layers, each = self.experts.shape
        numbers = range(each + 1)
        placed = [self.outcome(place(maxnn, number / each)) for number in numbers]
        steps = [cost(self.shape, (number,) * layers, self.batch, self.machine) for number in numbers]
        left = self.experts.sum() * (1 - np.arange(each + 1) / each)  # of random choice, on average
        energies = [step.joules / self.batch for step in steps]
        points = {
            MAXNN: [(one.share, one.energy, one.throughput, one.predicted) for one in placed],
            RANDOM: [
                (one.share, energy, step.tokens_per_second, increase)
                for one, energy, step, increase in zip(
                    placed, energies, steps, self.increase(left).tolist(), strict=True
                )
            ],
        }
        return {DAMAGE: self._best_by_axis()} | {
            score: {axis: tuple((one[index], one[-1]) for one in own) for index, axis in enumerate(AXES)}
            for score, own in points.items()
        }

    def _best_by_axis(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """The least expected increase at POINTS budgets along each axis."""
        seconds, joules, most = self.running.seconds, self.running.joules, self.total - self.fixed
        budgets = {
            "share": ("parameters", np.linspace(0, most, POINTS), lambda cap: cap / self.total),
            "energy": (
                "joules",
                np.geomspace(joules.min(), joules.max(), POINTS),
                lambda cap: cap / self.batch,
            ),
            "throughput": (
                "seconds",
                np.geomspace(seconds.min(), seconds.max(), POINTS),
                lambda cap: self.batch / cap,
            ),
        }
        found = {}
        for axis, (bound, caps, shown_as) in budgets.items():
            points = [(float(shown_as(cap)), self.least({bound: float(cap) * (1 + 1e-12)})) for cap in caps]
            found[axis] = tuple(
                (x, float(self.increase(best.damage))) for x, best in points if best is not None
            )
        return found


def items_of(
    model: Model,
    hardware: Hardware,
    texts: Sequence[str],
    batch: int,
    machine: Machine | None,
    advance: Advance,
) -> tuple[Items, dict[str, Kind]]:
    """What there is to choose from, with damages that were corrected on calibration text."""
    shape = Shape.of(model)
    sizes = parameters(model).unique().tolist()
    if len(sizes) != 1:
        raise InputError(
            f"{model.name} has experts of {' and '.join(map(str, sizes))} parameters: plan needs experts of one size;"
            " use theory.placement.knapsack"
        )
    advance("converter ranges", 0)
    searched = sum(len(names) for names in model.map.dense.values()) + 2 * len(model.map.moe_layers)

    def each(_: str, search: Callable[[], Any]) -> Any:
        found = search()
        advance("converter ranges", _CALIBRATING / searched)
        return found

    ranges = calibrate(model, texts, hardware, each=each)
    advance("expected damage", 0)
    experts = expected_damage(model, texts, hardware, gradient=True).numpy()
    advance("expected damage", _CLOSED_FORMS * 2 / 3)
    dense = {
        name: damage
        for name, damage in dense_damage(model, texts, hardware).items()
        if f"{name}.weight" in ranges.layers  # a network may have parts that it does not call
    }
    advance("expected damage", _CLOSED_FORMS / 3)
    kinds = {
        kind: own
        for kind, names in model.map.dense.items()
        if (own := tuple(name for name in names if name in dense))
    }
    closed = {"experts": float(experts.sum())} | {
        kind: sum(dense[name] for name in names) for kind, names in kinds.items()
    }
    measured = _alone(model, hardware, ranges, kinds, texts, advance)
    found = {kind: _corrected(closed[kind], measured[kind]) for kind in closed}
    advance("load of experts", 0)
    load = routing(model, texts, BLOCKS).frequency.numpy()
    advance("load of experts", _ROUTING)
    network = model.network
    linears = {name: network.get_parameter(f"{name}.weight").numel() for name in model.map.linears}
    items = Items(
        model=model,
        shape=replace(shape, dense_parameters=sum(linears[name] for name in dense)),
        ranges=ranges,
        experts=experts * found["experts"].factor,
        load=load,
        size=sizes[0],
        dense={name: dense[name] * found[kind].factor for kind, names in kinds.items() for name in names},
        sizes=linears,
        total=sum(each.numel() for each in network.parameters()),
        batch=batch,
        machine=machine,
    )
    every = float(items.left[0]) + sum(items.dense.values())
    return replace(items, interaction=_interaction(every, float(np.mean(measured[_EVERYTHING])))), found


_EVERYTHING = "everything"


def _alone(
    model: Model,
    hardware: Hardware,
    ranges: Any,
    kinds: Mapping[str, Sequence[str]],
    texts: Sequence[str],
    advance: Advance,
) -> dict[str, list[float]]:
    """What each kind costs alone, and everything together, nats per token: one number for each noise draw.

    Each draw, with its mirror image, reads blocks of calibration text of its own.
    """
    sizes = model.map.num_experts
    every, none = tuple(tuple(range(size)) for size in sizes), ((),) * len(sizes)
    placements = {kind: Placement(sizes, every, tuple(names)) for kind, names in kinds.items()}
    placements["experts"] = Placement(sizes, none)
    placements[_EVERYTHING] = Placement(
        sizes, none, tuple(name for names in kinds.values() for name in names)
    )
    tokens = blocks_of(model, texts, "calibration").tokens
    draws = min(DRAWS, len(tokens))
    found: dict[str, list[float]] = {kind: [] for kind in placements}
    for index, part in enumerate(tokens.tensor_split(draws)):
        digital, _ = block_results(model.network, part)
        each = dict.fromkeys(placements, 0.0)
        for mirrored in (False, True):
            chip = Chip(model, hardware, ranges, seed("search", index), mirrored=mirrored)
            for kind, placement in placements.items():
                with chip.placed(placement):
                    losses, _ = block_results(model.network, part)
                each[kind] += float((losses - digital).mean()) / 2
                advance(f"noise on {kind}", _PASS * len(part) / len(tokens))
        for kind, increase in each.items():
            found[kind].append(_finite(model, increase))
    return found


def _corrected(closed: float, measured: Sequence[float]) -> Kind:
    """A kind with the factor of its closed forms: 1 where the measured increase may as well be 0."""
    mean, interval = float(np.mean(measured)), mean_interval(measured)
    factor = mean / closed if closed > 0 and interval[0] > 0 else 1.0
    return Kind(closed, mean, interval, factor)


def _interaction(total: float, measured: float) -> float:
    """b of S + b S^2, so that the sum of all damages gives what everything together was measured to cost.

    Not so far below 0 that the increase would fall with S.
    """
    if total <= 0:
        return 0.0
    return max((measured - total) / total**2, -1 / (2 * total))


def increases_of(
    model: Model,
    hardware: Hardware,
    ranges: Any,
    placements: Mapping[str, Placement],
    seeds: Sequence[int],
    blocks: TokenBlocks,
    digital: torch.Tensor,
    advance: Advance,
) -> dict[str, NDArray[np.float64]]:
    """Loss increase of every placement under the same noise, (draws, blocks)."""
    found: dict[str, list[Any]] = {name: [] for name in placements}
    for each in seeds:
        chip = Chip(model, hardware, ranges, each)
        for name, placement in placements.items():
            with chip.placed(placement):
                losses, _ = block_results(model.network, blocks.tokens)
            _finite(model, float(losses.mean()))
            found[name].append((losses - digital).numpy())
            advance("measuring", _PASS)
    return {name: np.stack(rows) for name, rows in found.items()}


def blocks_of(model: Model, texts: Sequence[str], purpose: Any) -> TokenBlocks:
    return token_blocks(model, texts, min(TOKENS, model.context), BLOCKS, purpose=purpose)


def _finite(model: Model, loss: float) -> float:
    if not math.isfinite(loss):
        raise InputError(f"the loss of {model.name} is {loss}: check its weights and the hardware's settings")
    return loss


# Budgets as they are written


def _percent(value: object) -> Fraction | None:
    """The share that a text such as "10%" says; None for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*%\s*", value) if isinstance(value, str) else None
    return Fraction(found[1]) / 100 if found else None


def _count(name: str, value: object, total: int | None) -> int:
    """The whole number that a share or a number stands for; total: None where only the form is checked."""
    share = _percent(value)
    if share is None and isinstance(value, float) and 0 <= value <= 1:
        share = Fraction(str(value))
    if share is not None and share <= 1:
        return int(share * (total or 0))
    if is_whole(value) and value >= 0:
        if total is not None and value > total:
            raise InputError(
                f"budget {name} is {value}: the model has {total}; give at most so many, or a share"
            )
        return value
    raise InputError(f"budget {name} is {shown(value)}: give a share (.1 or 10%) or a whole number")


def _bytes(value: object) -> int:
    """Bytes that a number or a text such as "1.5 GB" stands for."""
    if is_whole(value) and value >= 0:
        return value
    found = (
        re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)([kmgt]?i?)b?", value.strip().lower().replace(" ", ""))
        if isinstance(value, str)
        else None
    )
    if not found or found[2] not in _BYTES:
        raise InputError(
            f'budget digital_memory is {shown(value)}: give bytes (1500000) or a text such as "1.5 GB"'
        )
    return int(Fraction(found[1]) * _BYTES[found[2]])


def _nats(value: float, digital_loss: float) -> str:
    return f"{value:.4f} nats ({value / digital_loss:.2%})"
