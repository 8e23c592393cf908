"""A plan that was made: all that it was chosen by, as an object and as the file plan.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from realmodels.budgets import Budgets, in_nats
from realmodels.decline import Decline, Drop
from realmodels.items import AXES, MAXNN, RANDOM, Kind, Outcome
from realmodels.model import Model
from theory.errors import InputError, shown
from theory.files import read_regular
from theory.hardware import Hardware
from theory.placement import Placement
from theory.strict_json import dumps, fields_of, loads

LARGEST_FILE = 2**26  # bytes
THE_PLAN = "plan"
Table = tuple[tuple[float, ...], ...]


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
    score, ranking: what experts are ranked by; its values, (layers, experts).
    decline: how accuracy falls with the loss, if tasks were given.
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
    score: str
    ranking: Table
    decline: Decline | None
    damage: Table
    maxnn: Table
    load: Table
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
            f"predicted loss increase: {in_nats(found.predicted, self.digital_loss)}",
            f"measured on held-out text: {found.measured:.4f} [{low:.4f}, {high:.4f}], {self.draws} noise draws",
            f"the prediction is off by {self.error:+.4f} nats, {inside} the 95 % interval",
            *(
                [f"points of accuracy lost on {', '.join(self.decline.tasks)}: {found.accuracy}"]
                if self.decline and found.accuracy
                else []
            ),
            (
                f"{found.energy:.3g} J per token, {found.throughput:,.0f} tokens/s at a batch of {self.batch},"
                f" {found.memory:,} bytes of digital weights"
            ),
        )
        return "\n".join(lines)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each expert: layer, expert, score, damage, maxnn, load, digital."""
        return [
            {
                "layer": layer,
                "expert": expert,
                "score": self.ranking[layer][expert],
                "damage": self.damage[layer][expert],
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
                "decline": _decline(found["decline"]),
                "frontiers": {
                    score: {axis: tuple((float(x), float(y)) for x, y in axes[axis]) for axis in AXES}
                    for score, axes in found["frontiers"].items()
                },
            }
            tables = {name: found[name] for name in ("ranking", "damage", "maxnn", "load")}
            found |= {name: tuple(tuple(map(float, row)) for row in rows) for name, rows in tables.items()}
            read = cls(**found)
            (
                str(read),
                read.rows(),
                [read.frontiers[each] for each in (read.score, MAXNN, RANDOM)],
            )  # can be shown
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{source}: {error}; give a plan.json that plan wrote") from None
        return read


def read_plan(file: str | Path, model: Model | None = None) -> Plan:
    """The plan that a file holds; InputError if it holds none, or one of other weights than the model's."""
    try:
        text = read_regular(Path(file).expanduser(), LARGEST_FILE).decode()
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        raise InputError(
            f"plan file {file} cannot be read ({getattr(error, 'strerror', None) or error}): give a plan.json that plan"
            " wrote"
        ) from None
    found = Plan.from_json(text, f"plan file {file}")
    if model is not None and found.weights_hash != model.weights_hash:
        raise InputError(
            f"plan file {file} is of the model {shown(found.model)} with the weights {found.weights_hash[:12]}, not of"
            f" {model.name} with {model.weights_hash[:12]}: load that model, or plan for this one"
        )
    return found


def _each(cls: type, content: Any, where: str) -> dict[str, Any]:
    found = {}
    for name, value in content.items():
        own = dict(fields_of(cls, value, f"{where}.{name}"))
        own |= {each.name: each.type(own[each.name]) for each in fields(cls) if each.type in (int, float)}
        if cls is Outcome:
            own["placement"] = Placement(
                **fields_of(Placement, own["placement"], f"{where}.{name}.placement")
            )
        if own.get("accuracy"):
            own["accuracy"] = _each(Drop, {"accuracy": own["accuracy"]}, f"{where}.{name}")["accuracy"]
        for pair in {"interval", "expected"} & set(own):
            low, high = own[pair]
            own[pair] = (float(low), float(high))
        found[name] = cls(**own)
    return found


def _decline(content: Any) -> Decline | None:
    if content is None:
        return None
    found: Decline = _each(Decline, {"decline": content}, "it")["decline"]
    return replace(found, tasks=tuple(map(str, found.tasks)))
