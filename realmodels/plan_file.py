"""A plan that was made: all that it was chosen by, as an object and as the file plan.json."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from realmodels.budgets import Budgets, in_nats
from realmodels.decline import Decline
from realmodels.items import AXES, MAXNN, RANDOM, Kind, Outcome
from realmodels.model import Model
from theory.errors import InputError, shown
from theory.files import read_regular
from theory.hardware import Hardware
from theory.placement import Placement
from theory.strict_json import dumps, fields_of, is_finite, is_whole, loads

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
            (
                f"predicted loss increase: {in_nats(found.predicted, self.digital_loss)}; by closed forms alone"
                f" {found.closed:.4f}"
            ),
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

    def check(self) -> None:
        """InputError for what no plan is like: a part is missing, or parts are of other experts or other places."""
        for found, needed, what in (
            (self.outcomes, (THE_PLAN,), "outcomes"),
            (self.frontiers, (self.score, MAXNN, RANDOM), "frontiers"),
            *((axes, AXES, f"frontiers.{score}") for score, axes in self.frontiers.items()),
        ):
            for name in needed:
                if not found.get(name):
                    raise InputError(f"{what} lacks {shown(name)}")
        sizes = self.placement.num_experts
        for name in ("ranking", "damage", "maxnn", "load"):
            if tuple(map(len, getattr(self, name))) != sizes:
                raise InputError(f"{name} is not of the experts of the plan's placement")
        if any(each.placement.num_experts != sizes for each in self.outcomes.values()):
            raise InputError("outcomes has placements of different experts")
        if self.digital_loss <= 0:
            raise InputError(f"digital_loss is {self.digital_loss}: not above 0")

    def to_json(self) -> str:
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str = "plan") -> "Plan":
        """The plan that `to_json` wrote; InputError naming `source` for anything else."""
        try:
            read: Plan = _read(cls, loads(text), "it")
            read.check()
        except ValueError as error:
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


def _read(kind: Any, value: Any, where: str) -> Any:
    """The content of a JSON file as what an annotation says; InputError naming `where` for anything else."""
    if kind in (Hardware, Budgets, Placement):  # which check their fields
        return kind(**fields_of(kind, value, where.removeprefix("it.")))
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        own = fields_of(kind, value, where)  # type: ignore[arg-type]  # a type, not a record
        return kind(**{name: _read(kinds[name], each, f"{where}.{name}") for name, each in own.items()})  # type: ignore[operator]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None
        return None if value is None else _read(inner[0], value, where)
    if origin is Mapping and isinstance(value, dict):
        return {name: _read(inner[1], each, f"{where}.{name}") for name, each in value.items()}
    if origin is tuple and isinstance(value, list):
        parts = inner[:1] * len(value) if Ellipsis in inner else inner
        if len(parts) == len(value):
            pairs = enumerate(zip(parts, value, strict=True))
            return tuple(_read(own, each, f"{where}[{index}]") for index, (own, each) in pairs)
    if kind is float and is_finite(value):
        return float(value)
    if (kind is int and is_whole(value) and is_finite(value)) or (
        kind in (str, bool) and type(value) is kind
    ):
        return value
    raise InputError(
        f"{where} is {shown(value)}: no {getattr(origin or kind, '__name__', kind)} as plan writes it"
    )
