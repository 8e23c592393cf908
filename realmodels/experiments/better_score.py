"""Better scores: which experts should be digital, when the quantity that theory says is ranked?

MaxNNScore and the routing statistics are compared with the expected damage [(D), docs/theory.md; realmodels.damage].
The damage's first form needs the weights and the routing of a batch of text; the second form needs one backward pass
more. A score ranks either inside each layer, as the paper does, or the experts of all layers together, so that the
budget goes where the damage is. Every placement has the same number of digital experts, which are of one size, and
digital dense modules.

A reference tells how good any placement can be; it is too costly to be a method. Single-expert damages are measured,
the best of all placements here is taken, and then pairs of experts are exchanged as long as that lowers the loss. (A
first version of the reference, on 8 blocks under 4 draws, was no better than the closed form, and sometimes worse.
There are more blocks and draws now, and every draw has blocks of its own.) Scores, reference and the mean output shift
see calibration text and noise of seeds of their own [theory.separation], at c = 2.5 for all magnitudes; each draw comes
with its mirror image, so that what is of first order in the noise cancels. What is reported is on evaluation text and
other seeds.

Two remedies that need no digital expert: programming the most damaging experts twice and averaging, and subtracting
each expert's mean output shift, measured on calibration text after programming.

Other budgets, magnitudes, programming noises (at the magnitude whose root mean square over all experts' weights is
that of pcm) and converters than the rules' are in the data, without a finding.

Rules: rules/figure-better-score.md, rules/figure-better-score-deepseek.md, and rules/figure-better-score-smol-moe.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from realmodels.compare import as_mask, expert_damage, losses, mean_losses, mean_shift
from realmodels.damage import expected_damage
from realmodels.devices import device_of
from realmodels.evaluate import block_results, token_blocks
from realmodels.experiments import rig
from realmodels.experiments.rig import Evaluated
from realmodels.load import DEFAULT_MODEL, Model
from theory.evidence import (
    Direction,
    Finding,
    Result,
    grouped,
    judged,
    mean_finding,
    mean_interval,
    ratio_interval,
    two_way_interval,
)
from theory.hardware import Granularity, Hardware
from theory.paper import DIGITAL_EXPERTS, RECOVERED_AT
from theory.placement import Strategy, num_digital, rank
from theory.separation import apart, evaluation_seeds, seed

Placements = dict[tuple[str, float], Bool[Tensor, "layers experts"]]  # by label and digital fraction

# Placement strategies by label. Each ranks within a layer and across layers, except random.
SCORES = ("maxnn", "activation_weight", "activation_frequency", "damage", "damage with gradient", "measured")
ACROSS = " across layers"
STRATEGIES = (*(score + form for score in SCORES for form in ("", ACROSS)), "random")
REFERENCE, NONE = "reference", "none"
CLOSED_FORMS = ("damage" + ACROSS, "damage with gradient" + ACROSS)
DAMAGE_CLAIM = "D"  # the expected damage, an id of theory/claims.py
RULE_C, RULE_FRACTIONS = RECOVERED_AT.value, DIGITAL_EXPERTS.value
RULE_SHARE = 0.8  # share of the reference's gain
PAIRS = 8  # at most so many pairs of experts are exchanged in one round


@dataclass(frozen=True)
class Config(Evaluated):
    """One kind of hardware.

    magnitudes: values of c, as pcm has it; another noise gets the c that is as noisy.
    seeds: noise draws on which losses are measured.
    search_draws, search_blocks: noise draws and blocks on which scores and reference are measured.
    rounds: at most so many rounds of exchange.
    """

    w_max: Granularity
    programming: str
    bits: int
    magnitudes: tuple[float, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    search_draws: int
    search_blocks: int
    rounds: int

    @property
    def judged(self) -> bool:
        """True if the rules are about this hardware."""
        return self.programming == "pcm" and self.bits == 8

    @property
    def hardware(self) -> tuple[Hardware, ...]:
        """What the analog experts are on, at each of the magnitudes; each is as noisy as pcm there."""
        pcm = Hardware(c=1.0, w_max=self.w_max, dac_bits=self.bits, adc_bits=self.bits)
        unit = rig.as_noisy(rig.model(self.model, self.device), pcm, self.programming)
        return tuple(replace(unit, c=c * unit.c) for c in self.magnitudes)


@dataclass(frozen=True)
class Preset:
    """How much is computed; `others`: True if noises and converters that no rule is about are measured, too."""

    granularities: tuple[Granularity, ...]
    magnitudes: tuple[float, ...]
    fractions: tuple[float, ...]
    draws: int
    blocks: int
    block_tokens: int
    search_draws: int
    search_blocks: int
    rounds: int
    others: bool = False


PRESETS = {
    "quick": Preset(
        granularities=("tile",),
        magnitudes=(2.5,),
        fractions=RULE_FRACTIONS,
        draws=2,
        blocks=4,
        block_tokens=64,
        search_draws=1,
        search_blocks=2,
        rounds=0,
    ),
    "default": Preset(
        granularities=("tile", "column"),
        magnitudes=(2.5,),
        fractions=RULE_FRACTIONS,
        draws=4,
        blocks=8,
        block_tokens=128,
        search_draws=2,
        search_blocks=4,
        rounds=1,
    ),
    "full": Preset(
        granularities=("tile", "column"),
        magnitudes=(0.5, 1.5, 2.5, 4.0),
        fractions=(0.03125, 0.0625, 0.125, 0.25, 0.5),
        draws=16,
        blocks=32,
        block_tokens=256,
        search_draws=8,
        search_blocks=64,
        rounds=2,
        others=True,
    ),
}
# A full run on a model of hundreds of millions of parameters, whose single-expert damages cost most.
LARGE = replace(PRESETS["default"], draws=8, blocks=32)


def grid(
    preset: str,
    model: str = DEFAULT_MODEL,
    text: str | None = None,
    device: str = "cpu",
    seeds: int | None = None,
    first_seed: int | None = None,
    large: bool = False,
) -> list[Config]:
    """The units of work; `seeds` noise draws from `first_seed` on, `text` a UTF-8 file to evaluate on.

    large: the preset full is LARGE.
    """
    chosen = LARGE if large and preset == "full" else PRESETS[preset]
    config = Config(
        **rig.evaluated(model, text, device, chosen.blocks, chosen.block_tokens),
        w_max=chosen.granularities[0],
        programming="pcm",
        bits=8,
        magnitudes=chosen.magnitudes,
        fractions=chosen.fractions,
        seeds=tuple(evaluation_seeds(seeds, chosen.draws, first_seed, "noise draws")),
        search_draws=chosen.search_draws,
        search_blocks=chosen.search_blocks,
        rounds=chosen.rounds,
    )
    judged = [replace(config, w_max=w_max) for w_max in chosen.granularities]
    if not chosen.others:
        return judged
    other = replace(
        config,
        magnitudes=(RULE_C,),
        fractions=RULE_FRACTIONS,
        search_draws=max(1, chosen.search_draws // 2),
        search_blocks=chosen.search_blocks // 2,
        rounds=1,
    )
    return [
        *judged,
        *(replace(other, programming=programming) for programming in ("hermes", "proportional", "constant")),
        *(replace(other, bits=bits) for bits in (6, 4)),
    ]


def measure(config: Config) -> dict[str, Any]:
    """Loss of every draw and block, for every magnitude and placement; and how scores and damages agree."""
    model, tokens = rig.model(config.model, config.device), rig.tokens(config)
    search = _Search(config, model)
    digital, _ = block_results(model.network, tokens)
    damage = search.measured()
    ranked = {**search.scores(), "measured": damage}
    placements: Placements = {(NONE, 0.0): torch.zeros(damage.shape, dtype=torch.bool)}
    for fraction in config.fractions:
        by_label = {
            score + form: as_mask(rank(values, fraction, across_layers=bool(form)), damage.shape[1])
            for score, values in ranked.items()
            for form in ("", ACROSS)
        }
        placements |= {(label, fraction): mask for label, mask in by_label.items()}
        placements[REFERENCE, fraction] = search.reference(list(by_label.values()))
    found: list[dict[str, Any]] = []
    for c in config.magnitudes:
        found += _losses(
            search, lambda draw: placements | _random(damage.shape, config.fractions, draw), c, tokens
        )
        if c == RULE_C and config.judged:
            found += _remedies(search, ranked["damage"], c, tokens)
    return {
        "digital": digital.tolist(),
        "documents": rig.documents(config),
        "losses": found,
        "magnitudes": {str(c): search.hardware(c).c for c in config.magnitudes},
        "agreement": {
            score: [_spearman(values[layer], damage[layer]) for layer in range(len(damage))]
            + [_spearman(values.flatten(), damage.flatten())]
            for score, values in ranked.items()
            if score != "measured"
        },
        "damage": damage.tolist(),
    }


class _Search:
    """What is known about a model without evaluation text: scores, measured damages, the reference."""

    def __init__(self, config: Config, model: Model) -> None:
        self.config, self.model = config, model
        texts = model.texts("calibration")
        blocks = token_blocks(model, texts, config.block_tokens, config.search_blocks, purpose="calibration")
        self.tokens = blocks.tokens.to(device_of(model.network))
        own = [seed("search", index) for index in range(config.search_draws)]
        self.seeds, self.evaluation = apart(own, config.seeds, seed=int)
        pcm = Hardware(c=1.0, w_max=config.w_max, dac_bits=config.bits, adc_bits=config.bits)
        self._unit = rig.as_noisy(model, pcm, config.programming)
        self.calibration = rig.calibration(config.model, config.device, self._unit)

    def hardware(self, c: float) -> Hardware:
        """The hardware at the magnitude that is as noisy as pcm at c."""
        return replace(self._unit, c=c * self._unit.c)

    def scores(self) -> dict[str, Float[Tensor, "layers experts"]]:
        texts = self.model.texts("calibration")
        strategies: tuple[Strategy, ...] = ("maxnn", "activation_weight", "activation_frequency")
        found = {str(name): rig.scores(self.config.model, self.config.device, name) for name in strategies}
        hardware = self.hardware(RULE_C)
        found["damage"] = expected_damage(self.model, texts, hardware)
        found["damage with gradient"] = expected_damage(self.model, texts, hardware, gradient=True)
        return found

    def measured(
        self, digital: Bool[Tensor, "layers experts"] | None = None
    ) -> Float[Tensor, "layers experts"]:
        return expert_damage(
            self.model, self.hardware(RULE_C), self.calibration, self.seeds, self.tokens, digital=digital
        )

    def losses(self, masks: Sequence[Bool[Tensor, "layers experts"]]) -> Float[Tensor, " placements"]:
        hardware, stacked = self.hardware(RULE_C), torch.stack(list(masks))
        return mean_losses(self.model, stacked, hardware, self.calibration, self.seeds, self.tokens)

    def reference(self, masks: Sequence[Bool[Tensor, "layers experts"]]) -> Bool[Tensor, "layers experts"]:
        """The best of the placements, and then pairs of experts exchanged while that lowers the loss.

        Each round measures anew what every expert changes from here. It then tries the 1 to PAIRS pairs that promise
        most, and takes the best number of them.
        """
        found = self.losses(masks)
        best, loss = masks[int(found.argmin())], float(found.min())
        for _ in range(self.config.rounds):
            change = self.measured(best).flatten()
            inside, outside = best.flatten().nonzero()[:, 0], (~best).flatten().nonzero()[:, 0]
            least = inside[change[inside].argsort()]
            most = outside[change[outside].argsort(descending=True)]
            exchanged = []
            for pairs in range(1, 1 + min(PAIRS, len(least), len(most))):
                mask = best.flatten().clone()
                mask[least[:pairs]], mask[most[:pairs]] = False, True
                exchanged.append(mask.view_as(best))
            found = self.losses(exchanged)
            if not found.min() < loss:
                break
            best, loss = exchanged[int(found.argmin())], float(found.min())
        return best


def _losses(
    search: _Search,
    placements: Callable[[int], Placements],
    c: float,
    tokens: Int[Tensor, "blocks tokens_plus_1"],
    *,
    copied: Bool[Tensor, "placements layers experts"] | None = None,
    shift: Callable[[int], Float[Tensor, "layers experts hidden"]] | None = None,
) -> list[dict[str, Any]]:
    """Losses of each placement, (draws, blocks).

    placements, shift: by seed of the noise draw.
    copied: experts that are programmed twice and averaged, by placement; second copies have seeds of their own.
    """
    tables = [
        losses(
            search.model,
            torch.stack(list(placements(draw).values())),
            search.hardware(c),
            search.calibration,
            draw,
            tokens,
            copied=copied,
            copy_seed=None if copied is None else seed("copies", draw),
            shift=None if shift is None else shift(draw),
        )
        for draw in search.evaluation
    ]
    return [
        {"label": label, "fraction": fraction, "c": c, "loss": table.tolist()}
        for (label, fraction), table in zip(
            placements(search.evaluation[0]), torch.stack(tables, 1), strict=True
        )
    ]


def _random(shape: torch.Size, fractions: Sequence[float], draw: int) -> Placements:
    """Random placements, nested over fractions and new for every draw."""
    order = torch.randperm(shape.numel(), generator=torch.Generator().manual_seed(draw))
    found = {}
    for fraction in fractions:
        mask = torch.zeros(shape.numel(), dtype=torch.bool)
        mask[order[: num_digital(fraction, shape.numel())]] = True
        found["random", fraction] = mask.view(shape)
    return found


def _remedies(
    search: _Search, damage: Float[Tensor, "layers experts"], c: float, tokens: Tensor
) -> list[dict[str, Any]]:
    """Losses with the most damaging experts copied, with digital ones and copies of the next, and with the mean shift
    subtracted.
    """
    nothing = torch.zeros(damage.shape, dtype=torch.bool)
    placements, copied = {}, []
    corrected = {("shift subtracted", 0.0): nothing}
    for fraction in RULE_FRACTIONS:
        first, both = (
            as_mask(rank(damage, part, across_layers=True), damage.shape[1])
            for part in (fraction, 2 * fraction)
        )
        placements["copied", fraction], placements["digital and copied", fraction] = nothing, first
        copied += [first, both & ~first]
        corrected["digital, shift subtracted", fraction] = first

    def shift(draw: int) -> Float[Tensor, "layers experts hidden"]:
        return mean_shift(search.model, search.hardware(c), search.calibration, draw, search.tokens)

    return [
        *_losses(search, lambda _: placements, c, tokens, copied=torch.stack(copied)),
        *_losses(search, lambda _: corrected, c, tokens, shift=shift),
    ]


def _spearman(first: Tensor, second: Tensor) -> float:
    return float(stats.spearmanr(first, second).statistic)


def summarise(configs: Sequence[Config], records: Sequence[dict[str, Any]]) -> Result:
    """Loss, recovered part and share of the reference's gain of every placement; the findings by the rules."""
    rows: list[dict[str, Any]] = []
    findings: list[Finding] = []
    agreement = []
    for config, record in zip(configs, records, strict=True):
        documents = record["documents"]
        tables = {  # each (draws, documents)
            (each["label"], each["fraction"], each["c"]): grouped(
                np.array(each["loss"]) - np.array(record["digital"]), documents
            )
            for each in record["losses"]
        }
        where = {"w_max": config.w_max, "programming": config.programming, "bits": config.bits}
        agreement.append({**where, "spearman": record["agreement"]})
        for (label, fraction, c), table in tables.items():
            none, best = tables[NONE, 0.0, c], tables.get((REFERENCE, fraction, c))
            rows.append(
                {
                    **where,
                    "label": label,
                    "fraction": fraction,
                    "c": c,
                    "magnitude": record["magnitudes"][str(c)],
                    "draws": len(table),
                    "loss_change": float(table.mean()),
                    "loss_change_interval": two_way_interval(table),
                    "recovered": float((none - table).mean() / none.mean()),
                    "recovered_interval": ratio_interval(none - table, none),
                    "share": None if best is None else float((none - table).mean() / (none - best).mean()),
                    "share_interval": None if best is None else ratio_interval(none - table, none - best),
                }
            )
        if config.judged and RULE_C in config.magnitudes:
            setting = f"{config.model}, w_max per {config.w_max}"
            findings += _findings(setting, lambda *key, t=tables: t[*key, RULE_C])
    first, documents = configs[0], records[0]["documents"]
    return Result(
        data={
            "digital": {
                "mean": float(np.mean(records[0]["digital"])),
                "interval": mean_interval(grouped(records[0]["digital"], documents)),
            },
            "rows": rows,
            "agreement": agreement,
            "model": first.model,
            "text": first.text,
            "blocks": first.blocks,
            "block_tokens": first.block_tokens,
            "documents": len(set(documents)),
        },
        findings=tuple(findings),
    )


def _findings(setting: str, of: Callable[..., NDArray[np.float64]]) -> list[Finding]:
    """The rules, for one granularity."""
    found: list[Finding] = []

    def difference(
        claim: str,
        statistic: str,
        table: NDArray[np.float64],
        direction: Direction,
        family: str,
        *,
        of_damage: bool = False,
    ) -> None:
        found.append(
            mean_finding(
                claim,
                f"{statistic} at c = {RULE_C:g}, nats per token",
                table,
                direction=direction,
                origin="ours",
                family=family,
                statement=DAMAGE_CLAIM if of_damage else None,
            )
        )

    none = of(NONE, 0.0)
    for fraction in RULE_FRACTIONS:
        where = f"{setting}, {fraction:.1%} of experts digital"
        for score in CLOSED_FORMS:
            for baseline in ("maxnn", "activation_weight"):
                difference(
                    f"expected {score} loses less than {_words(baseline)}; {where}",
                    f"loss of {score} - loss of {_words(baseline)}",
                    of(score, fraction) - of(baseline, fraction),
                    "below",
                    "less than baselines",
                    of_damage=True,
                )
        best = of(REFERENCE, fraction)
        for score in ("maxnn", *CLOSED_FORMS):
            gain = none - of(score, fraction)
            found.append(
                judged(
                    claim=f"{_words(score)} finds nearly all that a placement can gain; {where}",
                    origin="ours",
                    statement=DAMAGE_CLAIM if score in CLOSED_FORMS else None,
                    statistic=f"share of the reference's gain at c = {RULE_C:g}",
                    estimate=float(gain.mean() / (none - best).mean()),
                    interval=partial(ratio_interval, gain, none - best),
                    n=min(none.shape),
                    threshold=RULE_SHARE,
                    family="share of the reference",
                )
            )
        difference(
            f"a digital expert buys more than a second copy of it; {setting}, {fraction:.1%} of experts",
            "loss with copies - loss with the same experts digital",
            of("copied", fraction) - of("damage" + ACROSS, fraction),
            "above",
            "second copy",
        )
    difference(
        f"subtracting each expert's mean output shift helps; {setting}, no digital expert",
        "loss with the shift subtracted - loss without",
        of("shift subtracted", 0.0) - none,
        "below",
        "mean shift",
    )
    return found


def _words(label: str) -> str:
    return label.replace("maxnn", "MaxNNScore").replace("_", " ")
