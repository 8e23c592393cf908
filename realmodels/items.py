"""What can be digital, what is each worth, and which choice is the best? The experts and dense modules of a model.

For each number of digital experts those of the highest scores are best, as experts are of one size; for each number of
digital dense parameters a choice on the frontier of dense modules is [theory.knapsack]. Budgets bound the two numbers.
Energy and throughput depend on the loads of the digital experts, too: under these budgets the choice is the best of
those that take the highest scores first. There, more digital dense parameters can cost less, as analog dense modules
take tokens in turn: then the bound on them is from below, and a choice that the frontier drops can be best.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from realmodels.budgets import Budgets, bytes_of, count_of, in_nats
from realmodels.cost import BYTES_PER_PARAMETER, Machine, Shape, cost
from realmodels.decline import Decline, Drop
from realmodels.model import Model
from theory.errors import InputError, shown
from theory.evidence import Interval
from theory.knapsack import Frontier, frontier
from theory.placement import Placement, as_choice, place

POINTS = 101  # of a frontier
MAXNN, RANDOM = "MaxNNScore", "random"
AXES = ("share", "energy", "throughput")


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
    predicted: loss increase, nats per token; closed: the same by closed forms alone, before any simulation.
    measured, interval: on held-out text, over noise draws and documents.
    accuracy: how far the accuracy on tasks drops, if tasks were given.
    """

    placement: Placement
    digital_experts: int
    digital_parameters: int
    share: float
    memory: int
    energy: float
    throughput: float
    predicted: float
    closed: float = math.nan
    measured: float = math.nan
    interval: Interval = (math.nan, math.nan)
    accuracy: Drop | None = None


@dataclass(frozen=True)
class Running:
    """Seconds and joules of a step, in which every sequence gets a token: linear in the digital dense parameters.

    A row stands for a number of digital experts, those of the highest scores. Row 0: everything analog, and the digital
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
        order: Sequence[int],
        batch: int,
        machine: Machine | None,
        load: NDArray[np.float64],
    ) -> "Running":
        """order: experts, counted through all layers. load: (layers, experts) as `realmodels.cost.cost` takes it."""

        def step(digital: NDArray[np.bool_], share: float) -> NDArray[np.float64]:
            found = cost(shape, digital, batch, machine, dense_digital=share, loads=load)
            return np.array([found.seconds, found.joules])

        digital = np.zeros(load.shape, dtype=bool)
        rows = [[step(digital, 0.0)] * 2]
        for expert in (None, *order):
            if expert is not None:
                digital.flat[expert] = True
            half, every = step(digital, 0.5), step(digital, 1.0)
            rows.append([2 * half - every, every])
        seconds, joules = np.moveaxis(np.array(rows), -1, 0)
        return cls(seconds, joules, shape.dense_parameters)

    def room(self, ends: NDArray[np.float64], most: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Fewest and most digital dense parameters for which a row costs at most so much; the most is -1 for none."""
        rise = ends[:, 1] - ends[:, 0]
        with np.errstate(all="ignore"):  # a budget may be huge, and a rise 0
            border = (most - ends[:, 0]) / rise * self.dense
        low = np.where(rise < 0, np.clip(np.ceil(border), 0, self.dense + 1), 0)
        high = np.where(rise > 0, np.minimum(np.floor(border), self.dense), self.dense)
        return low, np.where(ends.min(axis=1) > most, -1, high)


@dataclass(frozen=True)
class Choice:
    """Digital experts, those of the highest scores, and digital dense modules, with the damage of what stays analog.

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
    ranking: (layers, experts) scores that experts are ranked by; None: expected damage.
    load: (layers, experts) share of the tokens that are routed to an expert.
    dense: expected damage of each dense module that can be analog. sizes: parameters of each dense module.
    total: parameters of the model.
    tied: dense modules whose weights are also embeddings: those stay digital, and count once for the digital memory.
        A budget of it is met as if they counted twice.
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
    ranking: NDArray[np.float64] | None = None
    tied: frozenset[str] = frozenset()

    @cached_property
    def order(self) -> list[int]:
        """Experts, counted through all layers, the highest score first."""
        scores = self.experts if self.ranking is None else self.ranking
        return np.argsort(-scores.ravel(), kind="stable").tolist()

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
        return Running.of(self.shape, self.order, self.batch, self.machine, self.load)

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
        movable = sum(self.sizes[name] for name in self.names if name not in self.tied)
        return self.total - self.size * self.experts.size - movable

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
        damage = np.maximum(self.left[self.numbers] + self._all_dense - table.worths[found], 0.0)
        return damage, table.costs[found] + self.size * self.numbers

    def _choice(
        self, row: int, table: Frontier, found: NDArray[np.int64], damage: NDArray[np.float64]
    ) -> Choice:
        return Choice(int(self.numbers[row]), tuple(table.items(int(found[row]))), float(damage[row]))

    @property
    def _all_dense(self) -> float:
        return sum(self.dense.values())

    @property
    def everything(self) -> float:
        """Damage of everything analog."""
        return float(self.left[0]) + self._all_dense

    def sum_of(self, nats: float) -> float:
        """The sum of damages that is expected to add so much to the loss: the inverse of `increase`."""
        b = self.interaction
        if not b or not math.isfinite(nats):
            return nats
        under = 1 + 4 * b * nats
        return math.inf if under < 0 else (math.sqrt(under) - 1) / (2 * b)

    def placement(self, choice: Choice) -> Placement:
        digital = {self.names[index] for index in choice.dense}
        return Placement(
            self.model.map.num_experts,
            as_choice(self.order[: choice.experts], *self.experts.shape),
            tuple(name for name in self.names if name not in digital),
        )

    def caps(self, budgets: Budgets) -> dict[str, dict[str, float]]:
        """Bounds on experts, parameters, and seconds and joules of a step, by the budget that they come from."""
        found: dict[str, dict[str, float]] = {}
        if budgets.digital_experts is not None:
            count = count_of("digital_experts", budgets.digital_experts, self.experts.size)
            found["digital_experts"] = {"experts": count}
        if budgets.digital_parameters is not None:
            count = count_of("digital_parameters", budgets.digital_parameters, self.total)
            found["digital_parameters"] = {"parameters": count}
        if budgets.digital_memory is not None:
            weights = min(bytes_of(budgets.digital_memory) // BYTES_PER_PARAMETER, self.total)
            found["digital_memory"] = {"parameters": weights - self.fixed}
        if budgets.energy is not None:
            found["energy"] = {"joules": budgets.energy * self.batch}
        if budgets.throughput is not None:
            found["throughput"] = {"seconds": self.batch / budgets.throughput}
        return found

    def best(self, budgets: Budgets, digital_loss: float, decline: Decline | None = None) -> Placement:
        """The placement within all budgets; InputError with what can be had if there is none.

        decline: what a budget on the accuracy allows the loss.
        """
        each = self.caps(budgets)
        caps: dict[str, float] = {}
        for name, own in each.items():
            if self.least(own) is None:
                raise InputError(self._unreachable(name, budgets))
            caps |= {bound: min(value, caps.get(bound, math.inf)) for bound, value in own.items()}
        least, nats = self.least(caps), budgets.nats(digital_loss)
        wanted = f"a loss increase of {in_nats(nats, digital_loss)}"
        if decline is not None and budgets.accuracy_drop is not None:
            allowed = decline.allowed(budgets.accuracy_drop / 100)
            if allowed <= nats:
                nats = allowed
                wanted = (
                    f"an accuracy drop of {budgets.accuracy_drop:g} points, by prediction a loss increase of"
                    f" {in_nats(nats, digital_loss)},"
                )
        if least is None:
            raise InputError(
                f"budgets {' and '.join(each)} cannot be met together, though each can alone: relax one of them"
                f"{self._nearest(caps)}"
            )
        if budgets.loss_increase is None and budgets.accuracy_drop is None:
            return self.placement(least)
        found = self.cheapest(caps, nats)
        if found is None:
            needed, near = self.cheapest({}, nats), self.outcome(self.placement(least))
            assert needed is not None  # with everything digital the increase is 0
            needs = self.outcome(self.placement(needed))
            raise InputError(
                f"{wanted} needs {needs.share:.1%} of the parameters digital"
                f" ({needs.energy:.3g} J per token, {needs.throughput:,.0f} tokens/s); the nearest within"
                f" the budget of {' and '.join(each)} is {in_nats(near.predicted, digital_loss)} at {near.share:.1%}"
            )
        return self.placement(found)

    def _nearest(self, caps: Mapping[str, float]) -> str:
        """What can be had of energy and throughput within all other caps, as the end of a message."""
        seconds, joules = (
            self._least_cost(bound, {name: cap for name, cap in caps.items() if name != bound})
            if bound in caps
            else math.inf
            for bound in ("seconds", "joules")
        )
        found = [f"the most throughput is {self.batch / seconds:,.0f} tokens/s"] * math.isfinite(seconds)
        found += [f"the least energy is {joules / self.batch:.3g} J per token"] * math.isfinite(joules)
        return "".join(f"; within the others {each}" for each in found)

    def _least_cost(self, bound: str, caps: Mapping[str, float]) -> float:
        """The fewest seconds or joules of a step within caps, infinite for none: a row's are at one of its ends."""
        (low, high), costs = self.room(caps), self.every.costs
        first, last = np.searchsorted(costs, low, "left"), np.searchsorted(costs, high, "right") - 1
        ends = getattr(self.running, bound)
        shares = costs[np.clip([first, last], 0, len(costs) - 1)] / max(self.running.dense, 1)
        found = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * shares
        return float(np.where((low <= high) & (first <= last), found, math.inf).min())

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

    def outcome(self, placement: Placement) -> Outcome:
        """What a placement costs and is expected to do."""
        analog = set(self.model.map.resolve(placement.analog_modules))
        mask = np.ones(self.experts.shape, dtype=bool)
        for row, digital in zip(mask, placement.digital_experts, strict=True):
            row[list(digital)] = False
        experts = int((~mask).sum())
        dense = sum(size for name, size in self.sizes.items() if name not in analog)
        weights = sum(self.sizes[name] for name in self.names if name not in analog)
        twice = sum(self.sizes[name] for name in self.tied - analog)
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
            memory=(self.fixed + experts * self.size + weights - twice) * BYTES_PER_PARAMETER,
            energy=step.joules / self.batch,
            throughput=step.tokens_per_second,
            predicted=float(self.increase(damage)),
        )

    def frontiers(
        self, score: str, maxnn: torch.Tensor
    ) -> dict[str, dict[str, tuple[tuple[float, float], ...]]]:
        """By score and axis; MaxNNScore and random choice as in the paper: in each layer, dense modules digital.

        score: the name of what experts are ranked by.
        """
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
        return {score: self._best_by_axis()} | {
            name: {axis: tuple((one[index], one[-1]) for one in own) for index, axis in enumerate(AXES)}
            for name, own in points.items()
        }

    def _best_by_axis(self) -> dict[str, tuple[tuple[float, float], ...]]:
        """The least expected increase at POINTS budgets along each axis."""
        seconds, joules = self.running.seconds, self.running.joules
        most = self.size * self.experts.size + sum(self.sizes[name] for name in self.names)
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
