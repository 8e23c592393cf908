"""The ladder: how does what other exhibits find on two small models change with size, and with length of training?

Each model is measured as those exhibits measure theirs: dense modules against 87.5 % of the experts (figure 3), what
each choice of digital experts gives back (figures 4, 5, better-score), what MaxNNScore follows (figure 6), what 8-bit
converters cost (table 1). All models share noise draws and texts. Here a model counts as one number, the mean over
draws, blocks and texts: a training seed is the unit, and intervals are over models.

Models too large to ship are measured where they were trained. A result keeps what was measured of each model, with
commit and machine, and the next run puts its own models beside those of the committed result [`joined`].

Rules: rules/figure-scale.md.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from realmodels.compare import as_mask, expert_damage, losses
from realmodels.damage import expected_damage
from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments import figure_3, figure_4, figure_6, rig
from realmodels.experiments.better_score import CLOSED_FORMS, DAMAGE_CLAIM, NONE
from realmodels.experiments.rig import Evaluated, Noise
from realmodels.experiments.trainings import spearman, spearman_with_frequency
from realmodels.load import CHECKPOINTS, checkpoint_folder
from realmodels.model import Model
from realmodels.pretrain.ladder import LADDER
from realmodels.pretrain.tokens import read_object
from realmodels.record import calibration_tokens, record
from realmodels.statistics import choices
from theory.errors import InputError
from theory.evidence import LEAST_UNITS, Finding, Origin, Result, judged, mean_finding
from theory.hardware import Granularity, Hardware
from theory.kept import kept
from theory.paper import (
    EXPERTS_THAT_HURT_LESS,
    RECOVERED,
    TABLE_1,
    Analog,
)
from theory.placement import rank
from theory.separation import seed
from theory.trend import Line, fit, prediction

TRAINED = Path(__file__).parents[2] / "results" / "ladder"  # where models of the ladder are trained
STRATEGIES = figure_4.STRATEGIES[:-1]  # without the reverse
FRACTIONS, RULE_C = figure_4.FRACTIONS, figure_4.RULE_C
DENSE, MOST_EXPERTS, EVERYTHING = figure_3.DENSE, figure_3.RULE_1_EXPERTS, figure_3.EVERYTHING
ALL_EXPERTS = "100 % of experts"  # label of a part of figure 3
CONVERTERS: Mapping[str, Analog] = {ALL_EXPERTS: "experts", EVERYTHING: "everything"}
LARGEST_FITTED = 128e6  # parameters: models of 64M have fewer, those of 256M more
LEAST_RUNGS = 3  # of a line
SHORT = ("olmoe-1b",)  # trained for fewer tokens per parameter than the other sizes
LENGTHS = ("olmoe-16m", "olmoe-16m-quarter", "olmoe-16m-fourfold")
PAPER_MODELS = {"OLMoE": 7e9, "DeepSeekMoE": 16e9}  # and their parameters, as their names round them
FAMILIES = {"olmoe": "OLMoE", "deepseek": "DeepSeekMoE"}
ANOTHER_RECIPE = " with another recipe"  # what families of findings on other rungs end with
ALIKE = ("text", "text_hash", "draws", "blocks", "block_tokens")  # in units that are compared
_LOG = logging.getLogger(__name__)

Unit = dict[str, Any]  # what is known of a model on a text, for one w_max
Masks = dict[str, Bool[Tensor, "layers experts"]]  # by label

# --------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True)
class Config(Evaluated):
    """A model on a text, with programming noise pcm and 8-bit converters.

    seeds: noise draws.
    search_draws, search_blocks: noise draws and blocks of calibration text on which experts' damages are measured.
    """

    w_max: Granularity
    seeds: tuple[int, ...]
    search_draws: int
    search_blocks: int


@dataclass(frozen=True)
class Preset(rig.Preset):
    """How much is computed; magnitudes are those of the rules."""

    search_draws: int = 1
    search_blocks: int = 2


PRESETS = {
    "quick": Preset((RULE_C,), draws=2, blocks=4, block_tokens=64, noises=rig.PCM[:1]),
    "default": Preset(figure_3.RULE_1_C, draws=2, blocks=8, block_tokens=64),
    "full": Preset(figure_3.RULE_1_C, draws=8, blocks=32, block_tokens=256, search_draws=2, search_blocks=8),
}


def grid(
    preset: str,
    model: str | None = None,
    text: str | None = None,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
) -> list[Config]:
    """The units of work.

    model: a model, or a folder of models; default: those that ship and those in TRAINED.
    text: the only text; default: all of rig.OUR_TEXTS.
    seeds, first_seed: number of noise draws, and the first.
    """
    chosen = PRESETS[preset]
    draws, names = tuple(chosen.seeds(seeds, first_seed)), models(model)
    for name in names:
        _require_recipe(name)
    found = [
        Config(
            **chosen.evaluated(name, each, device),
            w_max=noise.w_max,
            seeds=draws,
            search_draws=chosen.search_draws,
            search_blocks=chosen.search_blocks,
        )
        for name in names
        for each in (rig.OUR_TEXTS if text is None else (text,))
        for noise in chosen.noises
    ]
    _require_distinct(found)
    return found


def _require_distinct(configs: Sequence[Config]) -> None:
    """InputError if two models have one name, or are one model, which would count twice."""
    for own in (lambda config: Path(config.model).name, lambda config: config.weights):
        known: dict[str, str] = {}
        for config in configs:
            other = known.setdefault(own(config), config.model)
            if other != config.model:
                raise InputError(
                    f"models {other} and {config.model} have the same name or the same weights: leave one out"
                )


def models(given: str | None) -> list[str]:
    """Names of the models that `--model` stands for; InputError for a folder without any."""
    if given is None:
        return [path.parent.name for path in _checkpoints(CHECKPOINTS)] + [
            str(path.parent) for path in _checkpoints(TRAINED)
        ]
    folder = Path(given)
    if not folder.is_dir() or (folder / "config.json").exists():
        return [given]
    if not (found := _checkpoints(folder)):
        raise InputError(
            f"--model {given}: there is no model in this folder; give a model, or a folder of some"
        )
    return [str(path.parent) for path in found]


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/config.json"))


def on_ladder(name: str) -> tuple[str, int] | None:
    """Rung and seed of the model that is called so; None if it is not of the ladder."""
    rung, _, number = name.rpartition("-")
    known = rung in LADDER and number.isdecimal() and number == str(int(number))
    return (rung, int(number)) if known else None


def _require_recipe(model: str) -> None:
    """InputError if a model has the name of one of the ladder, and was trained by another recipe."""
    if (place := on_ladder(Path(model).name)) is None:
        return
    rung, number = place
    file = checkpoint_folder(model) / "recipe.json"
    own = read_object(file) if file.is_file() else {}
    for entry, value in asdict(replace(LADDER[rung].recipe, seed=number)).items():
        if own.get(entry) != value:
            raise InputError(
                f"model {model}: its recipe.json has {entry} {own.get(entry)!r}, and the ladder's {rung} {value!r}:"
                " give the model another name, and it is no part of the ladder"
            )


def measure(config: Config) -> dict[str, Any]:
    """Means over draws and blocks: what analog parts and placements add to the loss, correlations, outliers."""
    model = rig.model(config.model, config.device)
    hardware = Hardware(c=RULE_C, w_max=config.w_max)
    parts, placements = _parts(config, model), _placements(config, model, hardware)
    return {
        "parameters": sum(each.numel() for each in model.network.parameters()),
        **parts,
        "placements": placements,
        "spearman": _correlations(config, model, hardware),
        "outliers": _outliers(model),
    }


def _parts(config: Config, model: Model) -> dict[str, Any]:
    """Loss and top-1 accuracy all digital, and by how much a part on analog hardware changes both."""
    shared = {field.name: getattr(config, field.name) for field in fields(Evaluated)}
    reference = figure_3.Config(**shared, noise=Noise("pcm", config.w_max), part=None, c=0.0, seed=0)
    digital = figure_3.measure(reference)
    known = {part.label: part for part in figure_3.parts(model)}
    found: dict[str, dict[str, list[float]]] = {}
    for c in (0.0, *figure_3.RULE_1_C):
        for draw in config.seeds if c else config.seeds[:1]:
            for label in (DENSE, MOST_EXPERTS) if c else CONVERTERS:  # innermost: they share a chip
                analog = figure_3.measure(replace(reference, part=known[label], c=c, seed=draw))
                own = found.setdefault(_part(label, c), {})
                for quantity in ("loss", "accuracy"):
                    change = mean(analog[quantity]) - mean(digital[quantity])
                    own.setdefault(quantity, []).append(change)
                own["parameters"] = [analog["analog_parameters"]]
    return {
        "digital": {quantity: mean(digital[quantity]) for quantity in ("loss", "accuracy")},
        "parts": {label: {name: mean(each) for name, each in own.items()} for label, own in found.items()},
    }


def _part(label: str, c: float) -> str:
    return f"{label}, c = {c:g}"


def _placements(config: Config, model: Model, hardware: Hardware) -> dict[str, float]:
    """What noise at RULE_C adds to the loss, by what is digital beside the dense modules, in nats per token."""
    texts, tokens = model.texts("calibration"), rig.tokens(config)
    calibration = rig.calibration(config.model, config.device, Hardware(w_max=config.w_max))
    damages = {
        score: expected_damage(model, texts, hardware, gradient="gradient" in score) for score in CLOSED_FORMS
    }
    digital = float(block_results(model.network, tokens)[0].mean())
    found: dict[str, list[float]] = {}
    for draw in config.seeds:
        masks = _masks(config, damages, draw)
        each = losses(model, torch.stack(list(masks.values())), hardware, calibration, draw, tokens).mean(1)
        for label, loss in zip(masks, each.tolist(), strict=True):
            found.setdefault(label, []).append(loss - digital)
    return {label: mean(each) for label, each in found.items()}


def _masks(config: Config, damages: Mapping[str, Float[Tensor, "layers experts"]], draw: int) -> Masks:
    """The placements that are compared. The paper's scores rank within a layer, the expected damage across layers."""
    by_strategy = {name: rig.scores(config.model, config.device, name) for name in STRATEGIES}
    layers, experts = by_strategy["maxnn"].shape
    masks: Masks = {NONE: torch.zeros(layers, experts, dtype=torch.bool)}
    for fraction in FRACTIONS:
        for name, scores in by_strategy.items():
            generator = torch.Generator().manual_seed(draw)
            masks[_placed(name, fraction)] = as_mask(
                rank(scores, fraction, name, generator=generator), experts
            )
        for score, damage in damages.items():
            masks[_placed(score, fraction)] = as_mask(rank(damage, fraction, across_layers=True), experts)
    return masks


def _placed(score: str, fraction: float) -> str:
    return f"{score}, {fraction:.1%}"


def _correlations(config: Config, model: Model, hardware: Hardware) -> dict[str, float]:
    """Spearman's correlation of MaxNNScore with what it may follow, mean over layers."""
    maxnn, tokens = rig.scores(config.model, config.device, "maxnn"), rig.tokens(config)
    counts = [
        torch.bincount(index.flatten(), minlength=maxnn.shape[1]) for index, _ in choices(model, tokens)
    ]
    frequency = figure_6.log_frequency(model, model.texts("calibration"))
    return {
        "frequency": spearman_with_frequency(model, maxnn, frequency, tokens),
        "load": spearman(maxnn, torch.stack(counts).double()),
        "damage": spearman(maxnn, _measured_damage(config, model, hardware)),
    }


def _measured_damage(config: Config, model: Model, hardware: Hardware) -> Float[Tensor, "layers experts"]:
    """The damage of each expert alone, on calibration text and seeds of its own; both texts share it."""
    seeds = [seed("search", index) for index in range(config.search_draws)]
    texts, length = model.texts("calibration"), config.block_tokens
    tokens = token_blocks(model, texts, length, config.search_blocks, purpose="calibration").tokens
    calibration = rig.calibration(config.model, config.device, Hardware(w_max=config.w_max))
    decided_by = {
        "weights": model.weights_hash,
        "device": config.device,
        "hardware": asdict(hardware),
        "seeds": seeds,
        "blocks": list(tokens.shape),
    }
    found = kept(
        "measured damage",
        decided_by,
        lambda: expert_damage(model, hardware, calibration, seeds, tokens).tolist(),
    )
    return torch.tensor(found, dtype=torch.float64)


def _outliers(model: Model) -> dict[str, float]:
    """The largest input over the standard deviation of inputs, of linear layers and layers of experts."""
    names = [*model.map.linears, *(name for layer in model.map.moe_layers for name in layer.modules)]
    calls = record(model, names, calibration_tokens(model, model.texts("calibration")), gradient=False)
    inputs = [torch.cat([call.inputs[0].flatten() for call in each]) for each in calls.values()]
    ratios = torch.stack([each.abs().max() / each.std() for each in inputs])
    return {"median": float(ratios.median()), "largest": float(ratios.max())}


# ------------------------------------------------------------------------------------------------ quantities


@dataclass(frozen=True)
class Quantity:
    """What is followed along the ladder.

    name: what is measured, with its unit.
    of: its value, from what was measured of a model on a text; None where there is none.
    rises: True if it is claimed to rise along the ladder, False if to fall.
    claim: what is claimed of each rung: that the quantity is above `threshold`; "" where nothing is.
    condition: of the claim.
    followed: True if the rules 1 and 2 are about it.
    of_noise: False if noise and w_max play no part.
    published: what the paper says of its models, by their names.
    """

    name: str
    of: Callable[[Unit], float | None]
    rises: bool = True
    claim: str = ""
    condition: str = ""
    threshold: float = 0.0
    origin: Origin = "paper"
    family: str = "the paper's claims"
    statement: str | None = None
    followed: bool = True
    of_noise: bool = True
    published: Mapping[str, str] = field(default_factory=dict)


def _excess(c: float, quantity: str, sign: int, unit: Unit) -> float:
    dense, experts = (unit["parts"][_part(label, c)][quantity] for label in (DENSE, MOST_EXPERTS))
    return float(sign * (dense - experts))


def _per_parameter(c: float, unit: Unit) -> float | None:
    dense, experts = (unit["parts"][_part(label, c)] for label in (DENSE, MOST_EXPERTS))
    each = [part["loss"] / part["parameters"] for part in (dense, experts)]
    return math.log10(each[0] / each[1]) if min(each) > 0 else None


def _gain(own: str, other: str, unit: Unit) -> float | None:
    """How much less one placement loses than another, in parts of what is lost without any digital expert."""
    losses, none = unit["placements"], unit["placements"][NONE]
    return (losses[other] - losses[own]) / none if none > 0 else None


def _value(group: str, name: str, unit: Unit) -> float:
    return float(unit[group][name])


def _cost(label: str, unit: Unit) -> float:
    return float(unit["parts"][_part(label, 0.0)]["loss"])


def _quantities() -> list[Quantity]:
    nats = "nats per token"
    found = []
    for c in figure_3.RULE_1_C:
        found += [
            Quantity(
                f"loss that the dense modules cost more than 87.5 % of experts at c = {c:g}, {nats}",
                partial(_excess, c, "loss", 1),
                claim=f"dense modules on analog hurt more than {EXPERTS_THAT_HURT_LESS.said} of the experts",
                condition=f"c = {c:g}",
                followed=c == RULE_C,
                published=dict.fromkeys(PAPER_MODELS, "above 0, in accuracy"),
            ),
            Quantity(
                f"top-1 accuracy that the dense modules cost more than 87.5 % of experts at c = {c:g}",
                partial(_excess, c, "accuracy", -1),
                followed=c == RULE_C,
                published=dict.fromkeys(PAPER_MODELS, "above 0, in accuracy on tasks"),
            ),
            Quantity(
                f"log10 of what a dense parameter costs over what one of 87.5 % of experts does at c = {c:g}",
                partial(_per_parameter, c),
                followed=c == RULE_C,
            ),
        ]
    for fraction in FRACTIONS:
        budget, last = f"{fraction:.1%} of experts digital", fraction == FRACTIONS[-1]
        found += [
            Quantity(
                f"fraction of the loss that {_words(score)} recovers, {budget}",
                partial(_gain, _placed(score, fraction), NONE),
                followed=last and score == "maxnn",
                claim=f"MaxNNScore recovers {RECOVERED.said} of the loss" if score == "maxnn" else "",
                condition=budget,
                threshold=RECOVERED.value[0],
                published=dict.fromkeys(PAPER_MODELS, RECOVERED.said) if score == "maxnn" else {},
            )
            for score in (*STRATEGIES, *CLOSED_FORMS)
        ]
        found += [
            Quantity(
                f"fraction of the loss that MaxNNScore recovers more than {_words(other)}, {budget}",
                partial(_gain, _placed("maxnn", fraction), _placed(other, fraction)),
                followed=last,
                claim=f"MaxNNScore is better than {_words(other)}",
                condition=budget,
                published=dict.fromkeys(PAPER_MODELS, "above 0, in accuracy"),
            )
            for other in figure_4.BASELINES
        ]
        found += [
            Quantity(
                f"fraction of the loss that {_words(score)} recovers more than {_words(other)}, {budget}",
                partial(_gain, _placed(score, fraction), _placed(other, fraction)),
                followed=last,
                claim=f"{_words(score)} is better than {_words(other)}",
                condition=budget,
                origin="ours",
                family="expected damage",
                statement=DAMAGE_CLAIM,
            )
            for score in CLOSED_FORMS
            for other in ("maxnn", "activation_weight")
        ]
    for label, analog in CONVERTERS.items():
        found.append(
            Quantity(
                f"loss that 8-bit converters alone cost with {analog} analog, {nats}",
                partial(_cost, label),
                rises=False,
                published={
                    name: f"{row['nothing'] - row[analog]:.2f} points of accuracy"
                    for name, row in TABLE_1.value.items()
                },
            )
        )
    names = {"frequency": "token frequency", "load": "load", "damage": "measured damage"}
    for name, words in names.items():
        found.append(
            Quantity(
                f"Spearman's correlation of MaxNNScore and {words}",
                partial(_value, "spearman", name),
                of_noise=name == "damage",
                published=dict.fromkeys(PAPER_MODELS, "above 0") if name == "frequency" else {},
            )
        )
    return [
        *found,
        *(
            Quantity(
                f"largest input over the standard deviation of inputs, {name} layer",
                partial(_value, "outliers", name),
                followed=name == "median",
                of_noise=False,
            )
            for name in ("median", "largest")
        ),
        Quantity(
            f"loss on held-out text, {nats}", partial(_value, "digital", "loss"), rises=False, of_noise=False
        ),
    ]


def _words(score: str) -> str:
    named = {"maxnn": "MaxNNScore"} | {form: f"expected {form}" for form in CLOSED_FORMS}
    return named.get(score, score.replace("_", " "))


QUANTITIES = tuple(_quantities())

# ------------------------------------------------------------------------------------------------- summarise


@dataclass(frozen=True)
class Member:
    """A model; rung, seed and tokens of training are of the ladder, None for another model."""

    name: str
    parameters: int
    rung: str | None = None
    seed: int | None = None
    tokens: int | None = None

    @classmethod
    def of(cls, unit: Unit) -> "Member":
        place = on_ladder(unit["model"])
        known = () if place is None else (*place, LADDER[place[0]].tokens)
        return cls(unit["model"], unit["parameters"], *known)


@dataclass(frozen=True)
class Axis:
    """What a line is fitted along: rungs of the ladder that differ in one thing."""

    name: str
    rungs: tuple[str, ...]
    along: Literal["parameters", "tokens"]

    def x(self, member: Member) -> float:
        return math.log10(getattr(member, self.along))


AXES = (
    *(
        Axis(name, tuple(rung for rung in LADDER if rung.split("-")[:-1] == [family]), "parameters")
        for family, name in FAMILIES.items()
    ),
    Axis("OLMoE of 16M", LENGTHS, "tokens"),
)
SIZES = tuple(rung for axis in AXES if axis.along == "parameters" for rung in axis.rungs)


@dataclass(frozen=True)
class Series:
    """A quantity of all models that have it, for one w_max, or None where that plays no part."""

    quantity: Quantity
    w_max: Granularity | None
    values: Mapping[Member, float]

    def of(self, rung: str) -> list[float]:
        return [value for member, value in self.values.items() if member.rung == rung]

    def points(self, axis: Axis, most: float = math.inf) -> dict[Member, float]:
        """The models of at most so many parameters that a line along the axis is fitted to; none if too few."""
        found = {
            member: value
            for member, value in self.values.items()
            if member.rung in axis.rungs and member.rung not in SHORT and member.parameters <= most
        }
        enough = len(found) >= LEAST_UNITS and len({member.rung for member in found}) >= LEAST_RUNGS
        return found if enough else {}

    def line(self, axis: Axis, most: float = math.inf) -> Line | None:
        points = self.points(axis, most)
        return fit([axis.x(member) for member in points], list(points.values())) if points else None

    def changes_sign(self, axis: Axis) -> bool:
        """True if the line is clearly above 0 at one end of the measured models, and clearly below at the other."""
        if (line := self.line(axis)) is None:
            return False
        places = [axis.x(member) for member in self.points(axis)]
        low, high = sorted(line.interval(end(places)) for end in (min, max))
        return low[1] < 0 < high[0]

    def where(self, *parts: str) -> str:
        return ", ".join(part for part in (*parts, self.w_max and f"w_max per {self.w_max}") if part)


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """What was measured, and the findings by the rules."""
    return judge(
        [
            {
                "model": Path(config.model).name,
                "weights": config.weights,
                "text": config.text,
                "text_hash": config.text_hash,
                "w_max": config.w_max,
                "draws": len(config.seeds),
                "blocks": config.blocks,
                "block_tokens": config.block_tokens,
                **measured,
            }
            for config, measured in zip(configs, records, strict=True)
        ]
    )


def joined(result: Result, earlier: Result | None) -> Result:
    """The result of a run together with the models of the committed result that it has not, measured alike."""
    here = {name: result.provenance[name] for name in ("date", "git", "device", "versions")}
    own = [unit | {"measured": here} for unit in result.data["units"]]
    known = {unit[key] for unit in own for key in ("model", "weights")}
    alike = {tuple(unit[name] for name in ALIKE) for unit in own}
    units = [] if earlier is None else earlier.data["units"]
    before = [unit for unit in units if tuple(unit[name] for name in ALIKE) in alike]
    if len(before) < len(units):
        _LOG.warning(
            "left out of what was measured earlier: %d of %d units, on other texts, draws or blocks (--preset)",
            len(units) - len(before),
            len(units),
        )
    before = [unit for unit in before if not known & {unit["model"], unit["weights"]}]
    whole = judged_again(replace(result, data={"units": before + own}))
    if whole.data["missing"]:
        _LOG.warning("not measured: %s", ", ".join(whole.data["missing"]))
    return whole


def judged_again(result: Result) -> Result:
    again = judge(result.data["units"])
    return replace(result, data=again.data, findings=again.findings)


def judge(units: Sequence[Unit]) -> Result:
    """Lines along the axes, predictions and findings, from what was measured of each model."""
    members = {unit["model"]: Member.of(unit) for unit in units}
    found = [
        Series(quantity, w_max, values)
        for quantity in QUANTITIES
        for w_max in (rig.GRANULARITIES if quantity.of_noise else (None,))
        if (values := _values(units, members, quantity, w_max))
    ]
    # What changes sign is shown first.
    found.sort(key=lambda series: not any(map(series.changes_sign, AXES)))
    count = Counter(member.rung for member in members.values())
    return Result(
        data={
            "units": list(units),
            "models": [asdict(member) for member in members.values()],
            "series": [
                {
                    "quantity": series.quantity.name,
                    "w_max": series.w_max,
                    "followed": series.quantity.followed,
                    "values": {member.name: value for member, value in series.values.items()},
                    "lines": [row for axis in AXES for row in _line(series, axis)],
                }
                for series in found
            ],
            "missing": [
                f"{name} ({count[name]} of {rung.seeds})" if count[name] else name
                for name, rung in LADDER.items()
                if count[name] < rung.seeds
            ],
        },
        findings=tuple(
            finding
            for series in found
            for rule in (_trends, _predictions, _claims)
            for finding in rule(series)
        ),
    )


def _values(
    units: Sequence[Unit], members: Mapping[str, Member], quantity: Quantity, w_max: Granularity | None
) -> dict[Member, float]:
    """Means over texts, of the models that have a value on each."""
    found = {}
    for name, member in members.items():
        own = [unit for unit in units if unit["model"] == name and w_max in (None, unit["w_max"])]
        values = [value for unit in own if (value := quantity.of(unit)) is not None]
        if own and len(values) == len(own):
            found[member] = mean(values)
    return found


def _line(series: Series, axis: Axis) -> Iterator[dict[str, Any]]:
    """The line along an axis; along parameters that of the smaller models is `fitted`, with what it says of larger."""
    if (line := series.line(axis)) is None:
        return
    row = {
        "axis": axis.name,
        "along": axis.along,
        "models": line.points,
        "slope": line.slope,
        "slope_interval": line.slope_interval(),
        "changes_sign": series.changes_sign(axis),
    }
    if axis.along == "tokens":
        row["fitted"] = asdict(line)
    elif (small := series.line(axis, LARGEST_FITTED)) is not None:
        row |= {"fitted": asdict(small), "largest": LARGEST_FITTED}
        row["predictions"] = [
            {
                "rung": name,
                "trainings": rung.seeds,
                "value": small.at(math.log10(rung.parameters)),
                "interval": small.prediction_interval(math.log10(rung.parameters), rung.seeds),
            }
            for name, rung in ((name, LADDER[name]) for name in axis.rungs)
            if rung.parameters > LARGEST_FITTED
        ]
        row["extrapolations"] = [
            {
                "model": name,
                "parameters": parameters,
                "value": small.at(math.log10(parameters)),
                "interval": small.prediction_interval(math.log10(parameters)),
                "published": series.quantity.published.get(name) if series.quantity.followed else None,
            }
            for name, parameters in PAPER_MODELS.items()
        ]
    yield row


def _trends(series: Series) -> Iterator[Finding]:
    """Rule 1."""
    quantity = series.quantity
    for axis in AXES if quantity.followed else ():
        if (line := series.line(axis)) is not None:
            yield judged(
                f"{'rises' if quantity.rises else 'falls'} with the number of {axis.along}: {quantity.name};"
                f" {series.where(axis.name)}",
                f"change of the {quantity.name}, for ten times the {axis.along}",
                line.slope,
                line.slope_interval,
                line.points,
                direction="above" if quantity.rises else "below",
                origin="ours",
                family=f"trend with {axis.along}",
            )


def _predictions(series: Series) -> Iterator[Finding]:
    """Rule 2."""
    for axis in AXES if series.quantity.followed else ():
        line = series.line(axis, LARGEST_FITTED) if axis.along == "parameters" else None
        for rung in axis.rungs if line is not None else ():
            large = {
                member: value
                for member, value in series.values.items()
                if member.rung == rung and member.parameters > LARGEST_FITTED
            }
            if large and line is not None:
                yield prediction(
                    f"models up to 64M predict the {series.quantity.name}; {series.where(rung)}",
                    f"{series.quantity.name}, mean of {len(large)}; the interval is what {line.points} models predict",
                    line,
                    mean(map(axis.x, large)),
                    list(large.values()),
                    origin="ours",
                    family="predictions of a shorter training" if rung in SHORT else "predictions",
                )


def _claims(series: Series) -> Iterator[Finding]:
    """Rules 3 and 4."""
    quantity = series.quantity
    for rung in LADDER if quantity.claim else ():
        if len(values := series.of(rung)) >= LEAST_UNITS:
            yield mean_finding(
                f"{quantity.claim}; {series.where(rung, quantity.condition)}",
                quantity.name,
                values,
                quantity.threshold,
                origin=quantity.origin,
                family=quantity.family + ("" if rung in SIZES else ANOTHER_RECIPE),
                statement=quantity.statement,
            )
