"""Figure 6: do experts with high MaxNNScores serve frequent tokens, and those with low scores rare ones?

The tokens of an expert are those at the positions of evaluation text that the router sends to it. An expert's mean
log frequency is the mean, over these positions, of the log of how frequent the token at the position is.

A deviation: frequencies should be those of the training text, which is not shipped with the models. Frequencies are
those of the calibration text instead, which is used for nothing else here: other modules of the packages that the
evaluation text comes from. A token seen n times in it counts as n + 1 (add-one smoothing), so that unseen tokens have a
logarithm. Evaluation text is routed, with all modules digital.

Correlations are Spearman's, between the experts in use of one layer, and their plain mean over layers. Intervals are
percentiles of RESAMPLES bootstrap samples. Each draws anew, with replacement: the experts of every layer; the documents
of evaluation text, with which load and the tokens served change; and the documents of calibration text, with which
frequencies change. The experts are those of one model, which was trained once: an interval says what other experts of
such a model, reading other text of the kind, would give, and nothing about another training.

Rules: rules/figure-6.md. The correlation with the mean routing weight is shown, not judged.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
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
RESAMPLES = 1000  # bootstrap samples

PRESETS = {"quick": (8, 256), "default": (64, 256), "full": (256, 256)}  # blocks, tokens of a block


def grid(
    preset: str, model: str | None = None, text: str | None = None, device: str = "cpu"
) -> list[Evaluated]:
    """One unit for each model: `model` alone or, without it, both of ours; `text` a UTF-8 file to route."""
    return [
        Evaluated(**rig.evaluated(name, text, device, *PRESETS[preset]))
        for name in (MODELS if model is None else (model,))
    ]


def measure(config: Evaluated) -> dict[str, Any]:
    """For each layer: scores, use of the experts, tokens of extreme ones, correlations and their bootstrap samples.

    Use is summed over all text (experts,): `count` of tokens, `log_frequency` of nats, `weight` of routing weights.
    """
    model, tokens = rig.model(config.model, config.device), rig.tokens(config)
    calibration = model.texts("calibration")
    frequency, generator = log_frequency(model, calibration), np.random.default_rng(0)
    inputs = tokens[:, :-1]
    occurring, token = inputs.flatten().unique(return_inverse=True)
    unit = torch.tensor(rig.documents(config)).unique(return_inverse=True)[1]
    weights = torch.from_numpy(_weights(int(unit.max()) + 1, generator))
    frequencies = resampled_frequencies(model, calibration, generator)[:, occurring]
    layers = []
    for score, (index, weight) in zip(
        rig.scores(config.model, config.device, "maxnn"), choices(model, tokens), strict=True
    ):
        top_k, experts = index.shape[1], len(score)
        served = inputs.flatten().repeat_interleave(top_k)  # the token of every choice of an expert
        whose = unit.repeat_interleave(inputs.shape[1] * top_k) * experts + index.flatten()
        # What each expert serves in each unit of text: how often every token, and with what weight.
        counts = torch.bincount(
            whose * len(occurring) + token.repeat_interleave(top_k),
            minlength=weights.shape[1] * experts * len(occurring),
        ).view(-1, experts, len(occurring))
        mass = torch.bincount(whose, weight.flatten().double(), weights.shape[1] * experts).view(-1, experts)
        total = {
            "count": counts.sum((0, 2)).double(),
            "log_frequency": counts.sum(0).double() @ frequency[occurring].double(),
            "weight": mass.sum(0),
        }
        nats = torch.einsum("ru,uer->re", weights, counts.double() @ frequencies.T)
        again = {"count": weights @ counts.sum(2).double(), "log_frequency": nats, "weight": weights @ mass}
        order = score.argsort(descending=True, stable=True).tolist()
        extremes = [
            {"expert": expert, "tokens": most_served(model, served[index.flatten() == expert], inputs)}
            for expert in order[:EXTREMES] + order[-EXTREMES:]
        ]
        used = (total["count"] > 0).numpy()
        now, then = _quantities(total), _quantities(again)
        drawn = generator.integers(int(used.sum()), size=(RESAMPLES, int(used.sum())))
        of_layer = score.double().numpy()[used]
        layers.append(
            {
                "score": score.tolist(),
                **{name: values.tolist() for name, values in total.items()},
                "extremes": extremes,
                "spearman": {name: spearman(of_layer, now[name][used]) for name in QUANTITIES},
                "resampled": {
                    name: resampled_spearman(of_layer, then[name][:, used], drawn).tolist()
                    for name in QUANTITIES
                },
            }
        )
    return {"layers": layers, "units": weights.shape[1]}


def _weights(units: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """How often each unit is drawn, (RESAMPLES, units)."""
    return generator.multinomial(units, np.full(units, 1 / units), RESAMPLES).astype(np.float64)


def _quantities(use: Mapping[str, Tensor]) -> dict[str, NDArray[np.float64]]:
    """QUANTITIES of the experts, from what they serve; an expert that serves nothing has log frequency 0."""
    count = use["count"].numpy()
    mean = np.divide(use["log_frequency"].numpy(), count, out=np.zeros_like(count), where=count > 0)
    return {"log_frequency": mean, "load": count, "weight": use["weight"].numpy()}


def resampled_frequencies(
    model: Model, texts: Sequence[str], generator: np.random.Generator
) -> Float[Tensor, "resamples vocabulary"]:
    """`log_frequency` in texts whose documents are drawn anew, with replacement."""
    vocabulary = len(model.network.get_input_embeddings().get_parameter("weight"))
    encoded = model.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    eos = model.tokenizer.eos_token_id
    counts = torch.stack(
        [torch.bincount(torch.tensor([eos, *each]), minlength=vocabulary) for each in encoded]
    )
    total = torch.from_numpy(_weights(len(counts), generator)) @ counts.double() + 1
    return (total / total.sum(1, keepdim=True)).log()


def resampled_spearman(
    score: Float[np.ndarray, " experts"],
    values: Float[np.ndarray, "resamples experts"],
    drawn: Int[np.ndarray, "resamples experts"],
) -> Float[np.ndarray, " resamples"]:
    """Spearman's correlation of score and values between the experts that each bootstrap sample draws.

    A sample whose experts are all alike has none: 0.
    """
    ranks = [
        rankdata(each, axis=1) - (drawn.shape[1] + 1) / 2
        for each in (score[drawn], np.take_along_axis(values, drawn, 1))
    ]
    product, *squares = ((one * other).sum(1) for one, other in (ranks, (ranks[0],) * 2, (ranks[1],) * 2))
    length = np.sqrt(squares[0] * squares[1])
    found: NDArray[np.float64] = np.divide(product, length, out=np.zeros_like(length), where=length > 0)
    return found


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


def percentiles(samples: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Percentile interval of bootstrap samples (n,); None where its tails are below 1/(n + 1)."""
    values, tail = np.asarray(samples, dtype=np.float64), (1 - confidence) / 2
    if tail * (len(values) + 1) < 1:
        return None
    low, high = np.quantile(values, (tail, 1 - tail))
    return float(low), float(high)


def summarise(configs: Sequence[Evaluated], records: Sequence[dict[str, Any]]) -> Result:
    """Experts, correlations by layer and over all, tokens of the extremes, and the findings by the rules."""
    models, findings = [], []
    for config, record in zip(configs, records, strict=True):
        layers = record["layers"]
        tokens = config.blocks * config.block_tokens
        models.append(
            {
                "model": config.model,
                "text": config.text,
                "blocks": config.blocks,
                "block_tokens": config.block_tokens,
                "documents": record["units"],
                "correlations": {quantity: _correlations(layers, quantity) for quantity in QUANTITIES},
                "experts": [
                    {
                        "layer": number,
                        "expert": expert,
                        "score": score,
                        "log_frequency": layer["log_frequency"][expert] / count if count else None,
                        "load": count / tokens,
                        "weight": layer["weight"][expert] / tokens,
                    }
                    for number, layer in enumerate(layers)
                    for expert, (score, count) in enumerate(zip(layer["score"], layer["count"], strict=True))
                ],
                "extremes": [layer["extremes"] for layer in layers],
            }
        )
        findings += _findings(config.model, record)
    return Result(data={"models": models, "resamples": RESAMPLES}, findings=tuple(findings))


def _in_use(layer: Mapping[str, Any]) -> int:
    return sum(count > 0 for count in layer["count"])


def _correlations(layers: Sequence[Mapping[str, Any]], quantity: str) -> list[dict[str, Any]]:
    """Correlations of MaxNNScore with a quantity: a row for each layer, and a last one, layer None, for all layers."""
    parts: list[tuple[int | None, Sequence[Mapping[str, Any]]]] = [
        *((number, [layer]) for number, layer in enumerate(layers)),
        (None, layers),
    ]
    return [
        {
            "layer": number,
            "spearman": float(np.mean([layer["spearman"][quantity] for layer in part])),
            "interval": percentiles(np.mean([layer["resampled"][quantity] for layer in part], axis=0)),
            "experts": sum(map(_in_use, part)),
        }
        for number, part in parts
    ]


def _findings(model: str, record: Mapping[str, Any]) -> list[Finding]:
    """The rules, for one model."""
    findings, layers = [], record["layers"]
    readings: tuple[tuple[str, Origin, str, str], ...] = (
        ("log_frequency", "paper", "serve frequent tokens", "frequent tokens"),
        ("load", "ours", "serve many tokens", "load"),
    )
    for quantity, origin, what, family in readings:
        samples = np.mean([layer["resampled"][quantity] for layer in layers], axis=0)
        for threshold, reading in ((CLEAR, "a clear relation"), (ANY, "any relation")):
            findings.append(
                judged(
                    claim=f"experts with high MaxNNScores {what}, {reading}; {model}",
                    origin=origin,
                    statistic="Spearman's correlation of MaxNNScore with the experts'"
                    f" {'mean log token frequency' if quantity == 'log_frequency' else 'load'},"
                    f" mean over {len(layers)} layers",
                    estimate=float(np.mean([layer["spearman"][quantity] for layer in layers])),
                    interval=partial(percentiles, samples),
                    n=min(sum(map(_in_use, layers)), record["units"]),
                    threshold=threshold,
                    family=family,
                )
            )
    return findings
