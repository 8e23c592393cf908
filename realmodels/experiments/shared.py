"""What the units of one process share: a model is loaded, scored and calibrated once."""

from functools import lru_cache
from typing import Protocol

from torch import Tensor

from realmodels import statistics
from realmodels.calibrate import Calibration, calibrate
from realmodels.evaluate import token_blocks
from realmodels.load import Model, load
from realmodels.text import held_out, read_text
from theory.hardware import Granularity, Hardware
from theory.placement import Strategy

GRANULARITIES: tuple[Granularity, ...] = ("tile", "column")
OUR_TEXT = "evaluation"  # the split of our own corpus, as the text of a config


class Evaluated(Protocol):
    """What a config says about the text that its unit is evaluated on."""

    @property
    def model(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def blocks(self) -> int: ...
    @property
    def block_tokens(self) -> int: ...


@lru_cache(maxsize=1)
def model(name: str, device: str) -> Model:
    return load(name, device)


def documents(text: str | None) -> tuple[str, ...]:
    """Of a UTF-8 file, or of our own evaluation text."""
    return _documents(text or OUR_TEXT)


def tokens(config: Evaluated) -> Tensor:
    return _tokens(config.model, config.device, config.text, config.block_tokens, config.blocks)


@lru_cache(maxsize=len(statistics.STRATEGIES))
def scores(name: str, device: str, strategy: Strategy) -> Tensor:
    """Routing statistics are those of calibration text."""
    loaded = model(name, device)
    return statistics.scores(loaded, strategy, loaded.texts("calibration"))


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
