"""What the units of one process share: a model is loaded, scored and calibrated once."""

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from realmodels import scores as scores_of
from realmodels.calibrate import Calibration, calibrate
from realmodels.devices import weights_of
from realmodels.evaluate import token_blocks
from realmodels.fused import FUSED_WEIGHTS, fused_layout
from realmodels.load import Model, load
from realmodels.text import held_out, read_text, text_hash
from theory.evidence import seed_count
from theory.hardware import Granularity, Hardware, programming_sigma
from theory.placement import STRATEGIES, Strategy

GRANULARITIES: tuple[Granularity, ...] = ("tile", "column")
OUR_TEXT = "evaluation"  # the split of our own corpus, as the text of a config


@dataclass(frozen=True)
class Evaluated:
    """A model, and the text that it is evaluated on: what the configs of all exhibits have."""

    model: str
    weights: str  # hash
    text: str
    text_hash: str
    device: str
    blocks: int
    block_tokens: int


@dataclass(frozen=True)
class Preset:
    """magnitudes: values of c; draws: of the noise; blocks of block_tokens predictions each."""

    magnitudes: tuple[float, ...]
    draws: int
    blocks: int
    block_tokens: int

    def seeds(self, given: int | None) -> range:
        """Of the noise draws; given: their number, if not the preset's, at least 2."""
        return range(seed_count(given, self.draws, "noise draws"))


def as_noisy(model: Model, hardware: Hardware, programming: str) -> Hardware:
    """The hardware with another programming noise of the same root mean square over all experts' weights."""
    other = replace(hardware, programming=programming)
    if programming == hardware.programming or not hardware.c:
        return other
    squares = [0.0, 0.0]
    for layer in model.map.moe_layers:
        experts = model.network.get_submodule(layer.experts)
        for name in FUSED_WEIGHTS:
            weight = fused_layout(experts).matrices(name, weights_of(experts)[name])
            for number, each in enumerate((hardware, other)):
                squares[number] += float(programming_sigma(weight, each).double().square().sum())
    return replace(other, c=hardware.c * math.sqrt(squares[0] / squares[1]))


def evaluated(
    name: str, text: str | None, device: str, most_blocks: int | None, most_tokens: int
) -> dict[str, Any]:
    """The fields of `Evaluated` for a model and a UTF-8 file, or None for our own evaluation text.

    most_blocks: of the text, evenly spread, None for all of it; most_tokens: of a block.
    """
    loaded, found = model(name, device), _documents(text or OUR_TEXT)
    length = min(most_tokens, loaded.context)
    return asdict(
        Evaluated(
            model=name,
            weights=loaded.weights_hash,
            text=text or OUR_TEXT,
            text_hash=text_hash(found),
            device=device,
            blocks=len(token_blocks(loaded, found, length, most_blocks).tokens),
            block_tokens=length,
        )
    )


@lru_cache(maxsize=1)
def model(name: str, device: str) -> Model:
    return load(name, device)


def tokens(config: Evaluated) -> Tensor:
    return _tokens(config.model, config.device, config.text, config.block_tokens, config.blocks)


@lru_cache(maxsize=len(STRATEGIES))
def scores(name: str, device: str, strategy: Strategy) -> Tensor:
    """Routing statistics are those of calibration text."""
    loaded = model(name, device)
    return scores_of(loaded, strategy, loaded.texts("calibration"))


@lru_cache(maxsize=len(GRANULARITIES))
def calibration(name: str, device: str, w_max: Granularity) -> Calibration:
    loaded = model(name, device)
    return calibrate(loaded, loaded.texts("calibration"), Hardware(w_max=w_max))


@lru_cache(maxsize=1)
def _documents(text: str) -> tuple[str, ...]:
    return tuple(held_out("evaluation") if text == OUR_TEXT else read_text(text))


@lru_cache(maxsize=1)
def _tokens(name: str, device: str, text: str, block_tokens: int, blocks: int) -> Tensor:
    return token_blocks(model(name, device), _documents(text), block_tokens, blocks).tokens
