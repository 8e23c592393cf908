"""Figure 6: do experts with high MaxNNScores serve frequent tokens, and those with low scores rare ones?

The tokens of an expert are those at the positions of evaluation text that the router sends to it. An expert's mean
log frequency is the mean, over these positions, of the log of how frequent the token at the position is.

A deviation: frequencies should be those of the training text, which is not shipped with the models. Frequencies are
those of the calibration text instead, which is used for nothing else here: other modules of the packages that the
evaluation text comes from. A token seen n times in it counts as n + 1 (add-one smoothing), so that unseen tokens have a
logarithm. Evaluation text is routed, with all modules digital.

Correlations are Spearman's, between the experts in use of one layer. Experts are the sample: for n experts
z = atanh(r) is about normal with variance 1.06/(n - 3) around its own value of the population [Fieller, Hartley and
Pearson, Biometrika 44 (1957), 470-481; shown for 10 to 50 pairs and r up to about .8], so the 95 % interval is
tanh(z -+ 1.96 sqrt(1.06/(n - 3))). Layers count as independent, and as the only ones that are asked about: pooled
over L layers, the estimate is tanh(mean of z_l), and the variance of z is the sum of 1.06/(n_l - 3) over L^2. As
atanh(1) is infinite, r is kept half the smallest step of Spearman's r, 6/(n^3 - n), from -1 and 1. Other text for the
same experts would move the pooled correlation, too: by how much, tells the percentile interval over blocks drawn with
replacement. No rule uses that interval.

Rules, fixed before the first run, for each model:
1. The paper's "experts with high scores serve frequent tokens", read as a clear relation, holds if the pooled interval
   of MaxNNScore with the mean log frequency is above 0.5, fails if it is below.
2. The same words, read as any relation at all: the same rule with 0.
3. Ours: rules 1 and 2 for MaxNNScore with the load, the share of tokens that an expert serves.
The correlation with the mean routing weight is shown, not judged.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from realmodels.evaluate import token_blocks
from realmodels.experiments import rig
from realmodels.experiments.rig import Evaluated
from realmodels.load import Model
from realmodels.statistics import choices, rank_correlation
from realmodels.statistics import log_frequency as log_frequency_of
from theory.errors import InputError
from theory.evidence import Finding, Interval, Origin, Result, judged

MODELS = ("tiny-olmoe", "tiny-deepseek-moe")
QUANTITIES = ("log_frequency", "load", "weight")
CLEAR, ANY = 0.5, 0.0  # the thresholds of rules 1 and 2
EXTREMES = 2  # experts shown at either end of the scores of a layer
TOKENS = 8  # tokens shown of each such expert
RESAMPLES = 400  # bootstrap samples: blocks of text, drawn with replacement
CONFIDENCE = 0.95

PRESETS = {"quick": (8, 256), "default": (64, 256), "full": (None, 512)}  # blocks, tokens of a block


def grid(
    preset: str, model: str | None = None, text: str | None = None, device: str = "cpu"
) -> list[Evaluated]:
    """One unit for each model: `model` alone or, without it, both of ours; `text` a UTF-8 file to route."""
    return [
        Evaluated(**rig.evaluated(name, text, device, *PRESETS[preset]))
        for name in (MODELS if model is None else (model,))
    ]


def measure(config: Evaluated) -> dict[str, Any]:
    """Scores of the experts, sums over the tokens that each expert serves, tokens of extreme experts, for each layer.

    Sums are (blocks, experts): `count` of tokens, `log_frequency` of nats, `weight` of routing weights.
    """
    model, tokens = rig.model(config.model, config.device), rig.tokens(config)
    frequency = log_frequency(model, model.texts("calibration"))
    inputs = tokens[:, :-1]
    block = torch.arange(len(inputs)).repeat_interleave(inputs.shape[1])
    layers = []
    for score, (index, weight) in zip(
        rig.scores(config.model, config.device, "maxnn"), choices(model, tokens), strict=True
    ):
        chosen = inputs.flatten().repeat_interleave(index.shape[1])  # the token of every choice of an expert
        places = block.repeat_interleave(index.shape[1]) * len(score) + index.flatten()
        sums = {
            name: torch.bincount(places, values, len(inputs) * len(score)).view(len(inputs), -1).tolist()
            for name, values in (
                ("count", None),
                ("log_frequency", frequency[chosen]),
                ("weight", weight.flatten()),
            )
        }
        order = score.argsort(descending=True, stable=True).tolist()
        extremes = [
            {"expert": expert, "tokens": most_served(model, chosen[index.flatten() == expert], inputs)}
            for expert in order[:EXTREMES] + order[-EXTREMES:]
        ]
        layers.append({"score": score.tolist(), **sums, "extremes": extremes})
    return {"layers": layers}


def log_frequency(model: Model, texts: Sequence[str]) -> Float[Tensor, " vocabulary"]:
    """Log of the relative frequency of every token in `texts`, in nats, each seen once more than it is."""
    stream = token_blocks(model, texts, block_tokens=1, purpose="calibration").tokens[:, 0]
    return log_frequency_of(stream, len(model.network.get_input_embeddings().get_parameter("weight")))


def most_served(
    model: Model, served: Int[Tensor, " served"], inputs: Int[Tensor, "blocks tokens"]
) -> list[dict[str, Any]]:
    """The most frequent tokens of `served`: text in ASCII with escapes, count, share of all occurrences in `inputs`."""
    token, count = served.unique(return_counts=True)
    return [
        {
            "text": ascii(model.tokenizer.decode([int(token[place])])),
            "count": int(count[place]),
            "share": int(count[place]) / int((inputs == token[place]).sum()),
        }
        for place in count.argsort(descending=True, stable=True)[:TOKENS]
    ]


def spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Spearman's correlation, ties at their mean rank; InputError if there are no ranks to compare."""
    found = rank_correlation(first, second)
    if found is None:
        raise InputError(
            f"a layer has {len(first)} experts in use, or all alike: a correlation needs 4 that differ"
        )
    return found


def pooled(correlations: Sequence[float], experts: Sequence[int]) -> tuple[float, Interval]:
    """Fisher's estimate and 95 % interval for one or more layers, as the module's docstring has it."""
    z, variance = 0.0, 0.0
    for r, n in zip(correlations, experts, strict=True):
        limit = 1 - 6 / (n**3 - n)
        z += math.atanh(min(max(r, -limit), limit)) / len(experts)
        variance += 1.06 / (n - 3) / len(experts) ** 2
    half = float(ndtri((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return math.tanh(z), (math.tanh(z - half), math.tanh(z + half))


def summarise(configs: Sequence[Evaluated], records: Sequence[dict[str, Any]]) -> Result:
    """Experts, correlations by layer and pooled, tokens of the extremes, and the findings by the rules above."""
    models, findings = [], []
    for config, record in zip(configs, records, strict=True):
        layers = [
            {name: np.array(layer[name]) for name in ("score", "count", "log_frequency", "weight")}
            for layer in record["layers"]
        ]
        weights = np.ones(config.blocks)
        used = [_use(layer, weights) for layer in layers]
        correlations = {quantity: _correlations(layers, used, quantity) for quantity in QUANTITIES}
        models.append(
            {
                "model": config.model,
                "text": config.text,
                "blocks": config.blocks,
                "block_tokens": config.block_tokens,
                "correlations": correlations,
                "text_interval": _text_interval(layers, config.blocks),
                "experts": [
                    {
                        "layer": number,
                        "expert": expert,
                        "score": float(score),
                        "log_frequency": float(use["log_frequency"][expert]) if use["load"][expert] else None,
                        "load": float(use["load"][expert]) / config.block_tokens,
                        "weight": float(use["weight"][expert]) / config.block_tokens,
                    }
                    for number, (layer, use) in enumerate(zip(layers, used, strict=True))
                    for expert, score in enumerate(layer["score"])
                ],
                "extremes": [layer["extremes"] for layer in record["layers"]],
            }
        )
        findings += _findings(config.model, correlations)
    return Result(data={"models": models, "resamples": RESAMPLES}, findings=tuple(findings))


def _use(
    layer: dict[str, NDArray[np.float64]], weights: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """Load and routing weight per block, and mean log frequency, of every expert, with blocks of text weighted."""
    sums = {name: weights @ layer[name] / weights.sum() for name in ("count", "log_frequency", "weight")}
    mean = np.divide(
        sums["log_frequency"], sums["count"], out=np.zeros_like(sums["count"]), where=sums["count"] > 0
    )
    return {"log_frequency": mean, "load": sums["count"], "weight": sums["weight"]}


def _layer(
    layer: dict[str, NDArray[np.float64]], use: dict[str, NDArray[np.float64]], quantity: str
) -> float:
    served = use["load"] > 0
    return spearman(layer["score"][served], use[quantity][served])


def _correlations(
    layers: Sequence[dict[str, NDArray[np.float64]]],
    used: Sequence[dict[str, NDArray[np.float64]]],
    quantity: str,
) -> list[dict[str, Any]]:
    """Correlations of MaxNNScore with a quantity: a row for each layer, and a last one, layer None, for all layers."""
    found = [_layer(layer, use, quantity) for layer, use in zip(layers, used, strict=True)]
    experts = [int((use["load"] > 0).sum()) for use in used]
    rows = []
    for layer, part in [
        *((number, slice(number, number + 1)) for number in range(len(found))),
        (None, slice(None)),
    ]:
        estimate, interval = pooled(found[part], experts[part])
        rows.append(
            {"layer": layer, "spearman": estimate, "interval": interval, "experts": sum(experts[part])}
        )
    return rows


def _text_interval(layers: Sequence[dict[str, NDArray[np.float64]]], blocks: int) -> Interval:
    """Interval of the pooled correlation with the mean log frequency, over other text for the same experts."""
    generator = np.random.default_rng(0)
    estimates = []
    for weights in generator.multinomial(blocks, np.full(blocks, 1 / blocks), RESAMPLES):
        used = [_use(layer, weights) for layer in layers]
        estimates.append(_correlations(layers, used, "log_frequency")[-1]["spearman"])
    low, high = np.quantile(estimates, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _findings(model: str, correlations: dict[str, list[dict[str, Any]]]) -> list[Finding]:
    """The rules of the module's docstring, for one model."""
    findings = []
    readings: tuple[tuple[str, Origin, str], ...] = (
        ("log_frequency", "paper", "serve frequent tokens"),
        ("load", "ours", "serve many tokens"),
    )
    for quantity, origin, what in readings:
        whole = correlations[quantity][-1]
        for threshold, reading in ((CLEAR, "a clear relation"), (ANY, "any relation")):
            findings.append(
                judged(
                    claim=f"experts with high MaxNNScores {what}, {reading}; {model}",
                    origin=origin,
                    statistic="Spearman's correlation of MaxNNScore with the experts'"
                    f" {'mean log token frequency' if quantity == 'log_frequency' else 'load'},"
                    f" over {len(correlations[quantity]) - 1} layers",
                    estimate=whole["spearman"],
                    interval=whole["interval"],
                    n=whole["experts"],
                    threshold=threshold,
                )
            )
    return findings
