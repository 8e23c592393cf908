"""Which small models are trained, on which text, and how do their scores go with load and token frequency?

What the exhibits share that train models of their own: `link-map` and `balance`.
"""

import hashlib
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import current_process
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from realmodels import text as corpus
from realmodels.families import describe
from realmodels.load import CHECKPOINTS, DEFAULT_MODEL
from realmodels.model import Model
from realmodels.pretrain import Recipe, TokenFolder, Training, encode
from realmodels.statistics import choices, log_frequency, rank_correlation
from theory.errors import InputError

# -------------------------------------------------------------------------------------------------- recipes

BASE_RECIPE = Recipe(
    vocabulary=4096,
    expert_width=48,
    batch_tokens=32768,
    steps=300,
    balance=0.05,
    weight_decay=0.1,
)
SMALL_RECIPE = replace(
    BASE_RECIPE,
    hidden=64,
    layers=2,
    heads=2,
    experts=8,
    top_k=2,
    expert_width=32,
    context=128,
    batch_tokens=2048,
)

# In 100 steps of small models, SGD learned most at a rate of .1 (Recipe's), of .03, .1, .3 and 1. Experts alone hardly
# grow at such rates: in 80 steps their norm went from 6.04 to 6.06 at .3, to 6.25 at 1, and at 3 to 20 with dead ones.
EXPERT_SGD_RATE = 1.0

BASE = "muon"
ADAMW = "AdamW"
OPTIMISERS = (BASE, ADAMW, "SGD", "AdamW, experts SGD", "AdamW, experts one RMS")


def _scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with every learning rate multiplied by the factor."""
    return replace(
        recipe,
        matrix_learning_rate=factor * recipe.matrix_learning_rate,
        learning_rate=factor * recipe.learning_rate,
        sgd_learning_rate=factor * recipe.sgd_learning_rate,
    )


# Changes of a recipe by name; each changes one thing.
CHANGES: dict[str, Callable[[Recipe], Recipe]] = {
    BASE: lambda recipe: recipe,
    ADAMW: lambda recipe: replace(recipe, optimiser="adamw"),
    "SGD": lambda recipe: replace(recipe, optimiser="sgd"),
    "AdamW, experts SGD": lambda recipe: replace(
        recipe, optimiser="adamw", expert_optimiser="sgd", sgd_learning_rate=EXPERT_SGD_RATE
    ),
    "AdamW, experts one RMS": lambda recipe: replace(
        recipe, optimiser="adamw", expert_optimiser="adamw_one_rms"
    ),
    "weight decay 0": lambda recipe: replace(recipe, weight_decay=0.0),
    "weight decay .3": lambda recipe: replace(recipe, weight_decay=0.3),
    "no balancing": lambda recipe: replace(recipe, balance=0.0),
    "balancing by bias": lambda recipe: replace(recipe, balance=0.0, balance_bias=0.001),
    "rates / 3": lambda recipe: _scaled(recipe, 1 / 3),
    "rates x 3": lambda recipe: _scaled(recipe, 3.0),
    "16 experts": lambda recipe: replace(recipe, experts=16),
    "64 experts": lambda recipe: replace(recipe, experts=64),
    "vocabulary 2048": lambda recipe: replace(recipe, vocabulary=2048),
    "4 times the steps": lambda recipe: replace(recipe, steps=4 * recipe.steps),
}

# ----------------------------------------------------------------------------------------------------- text


@dataclass(frozen=True)
class Tokens:
    """Training text in tokens, and the hash of tokenizer and tokens."""

    tokenizer: PreTrainedTokenizerFast
    stream: NDArray[np.uint16]
    hash: str

    def log_frequency(self, vocabulary: int) -> Float[Tensor, " vocabulary"]:
        """Log of the relative frequency of every token in the text, each seen once more than it is."""
        return log_frequency(torch.from_numpy(self.stream.astype(np.int64)), vocabulary)


@lru_cache(maxsize=2)
def training_tokens(source: str, vocabulary: int) -> Tokens:
    """The training text of `source` in tokens.

    source: packages with commas between them, whose docstrings are tokenised as for the shipped model; or a folder
        that has a token folder `tokens-VOCABULARY`.
    """
    folder = CHECKPOINTS / DEFAULT_MODEL
    if set(source.split(",")) <= set(corpus.HELD_OUT_PACKAGES):
        documents = training_documents(source)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        stream = encode(tokenizer, documents)
    else:
        folder = Path(source) / f"tokens-{vocabulary}"
        if not (folder / "tokens.json").is_file():
            raise InputError(
                f"--text {source}: it has no {folder.name} with tokens.json; make it with python -m realmodels.pretrain"
                f" tokenize TEXTS {folder} --vocabulary {vocabulary}"
            )
        tokens = TokenFolder.open(folder)
        if tokens.vocabulary != vocabulary:
            raise InputError(
                f"--text {source}: {folder.name} is of {tokens.vocabulary} tokens; give {vocabulary}"
            )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        stream = tokens.stream("training")
    digest = hashlib.sha256((folder / "tokenizer.json").read_bytes() + stream.tobytes())
    return Tokens(tokenizer, stream, digest.hexdigest())


def training_documents(packages: str) -> list[str]:
    """Docstrings and comments of the packages' training modules, each paragraph once.

    Paragraphs that held-out modules have, too, were removed from the held-out texts when the corpus was built.
    """
    keep = corpus.FirstOccurrence()
    return [
        document
        for package in packages.split(",")
        for document in corpus.documents(corpus.package_folder(package), package, keep, "training")
    ]


# --------------------------------------------------------------------------------------------------- models


def device_for(kind: str) -> torch.device:
    """The device of this process: joblib's workers take one GPU each in turn, where there are several."""
    if kind != "cuda":
        return torch.device(kind)
    number = re.search(r"\d+$", current_process().name)
    device = torch.device(kind, int(number[0] if number else 0) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def snapshot(training: Training, tokenizer: PreTrainedTokenizerFast) -> Model:
    """The model as `load` would give it from the checkpoint that training would save: weights of bf16, in fp32."""
    network = deepcopy(training.model)
    for name, parameter in network.named_parameters():
        parameter.data = training.masters[name].view_as(parameter).bfloat16().float()
    network.eval().requires_grad_(False)
    return Model("link-map", network, tokenizer, describe(network), weights_hash="")


# ------------------------------------------------------------------------------------------------- measures

ALIVE = 0.05  # an expert is alive with more than this part of its fair share of the tokens


def spearman(first: Float[Tensor, "layers experts"], second: Float[Tensor, "layers experts"]) -> float:
    """Mean over layers of Spearman's correlation; a layer of fewer than 4 experts, or all alike, counts as 0."""
    total = 0.0
    for one, other in zip(first, second, strict=True):
        total += rank_correlation(one.numpy(), other.numpy()) or 0.0
    return total / len(first)


def off_one(correlations: NDArray[np.float64], experts: int) -> NDArray[np.float64]:
    """Correlations of so many ranks, kept half the smallest step of Spearman's from -1 and 1, for Fisher's scale."""
    limit = 1 - 6 / (experts**3 - experts)
    return np.clip(correlations, -limit, limit)


def spearman_with_frequency(
    model: Model,
    maxnn: Float[Tensor, "layers experts"],
    frequency: Float[Tensor, " vocabulary"],
    tokens: Int[Tensor, "blocks tokens_plus_1"],
) -> float:
    """Mean over layers of Spearman's correlation of MaxNNScore with the mean log frequency of the tokens served.

    frequency: log frequency of every token.
    tokens: text that is routed; experts that serve none of it are left out.
    """
    inputs = tokens[:, :-1].flatten()
    found = []
    for score, (index, _) in zip(maxnn, choices(model, tokens), strict=True):
        count, total = score.new_zeros(len(score)), score.new_zeros(len(score))
        count.index_add_(0, index.flatten(), count.new_ones(index.numel()))
        total.index_add_(0, index.flatten(), frequency[inputs].repeat_interleave(index.shape[1]))
        served = count > 0
        found.append(spearman(score[served][None], (total / count)[served][None]))
    return float(np.mean(found))


def spread(values: Float[Tensor, "layers experts"]) -> float:
    """Largest value over the median, mean over layers."""
    return float((values.amax(1) / values.quantile(0.5, 1)).mean())
