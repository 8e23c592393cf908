"""How does an exhibit get a model onto analog hardware? A process loads, scores and calibrates a model once."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from realmodels.analog import Ranges
from realmodels.analog.ranges import ranges_as_json, ranges_from_json
from realmodels.calibrate import Calibration, Method, calibrate
from realmodels.deploy import Chip, DeploymentReport
from realmodels.devices import weights_of
from realmodels.evaluate import TokenBlocks, block_results, token_blocks
from realmodels.fused import fused_layout
from realmodels.load import Model, load
from realmodels.prefix import Prefix
from realmodels.scores import scores as scores_of
from realmodels.text import evaluation_text, held_out, read_text, shared_paragraphs, text_hash
from theory.errors import InputError
from theory.evidence import Finding
from theory.hardware import Granularity, Hardware, programming_sigma
from theory.kept import kept
from theory.placement import STRATEGIES, Strategy, place
from theory.separation import evaluation_seeds

Deployer = Callable[..., AbstractContextManager[DeploymentReport]]

GRANULARITIES: tuple[Granularity, ...] = ("tile", "column")


@dataclass(frozen=True)
class Noise:
    """A model of programming noise [theory.hardware.PROGRAMMING_NOISE], and whose largest weight it is relative to."""

    programming: str
    w_max: Granularity

    def __str__(self) -> str:
        other = "" if self.programming == "pcm" else f", {self.programming}"
        return f"w_max per {self.w_max}{other}"


PCM = tuple(Noise("pcm", w_max) for w_max in GRANULARITIES)
# What the paper cites fits both models; hermes was published for w_max per column.
NOISES = (*PCM, Noise("hermes", "column"))


def those_of(keys: Iterable[tuple[Any, ...]]) -> list[Noise]:
    """The noises that keys begin with, those of NOISES in its order, a user's own last."""
    found = dict.fromkeys(key[0] for key in keys)
    return [noise for noise in dict.fromkeys((*NOISES, *found)) if noise in found]


DTYPE = "float32"  # of a model's parameters, where an exhibit names no other
OUR_TEXT = "evaluation"  # what a config names where the text is that split of our own corpus
# What a config names where `--text` has the name of one of our texts.
OUR_TEXTS = {"docstrings": OUR_TEXT, "prose": "prose"}
OURS = "ours", ""  # and, with a hash, where the text that ranges and scores come from is of our own corpus


@dataclass(frozen=True)
class Evaluated:
    """A model and the text that it is evaluated on: the fields that configs share.

    weights, text_hash: hashes of the model's weights and of the text.
    blocks, block_tokens: number of blocks of text, predictions in each.
    calibrated_on: the text that ranges and scores come from, and its hash.
    own: the user's hardware, of which a unit has all but the fields that it names itself; None for that of the rules.
    """

    model: str
    weights: str
    text: str
    text_hash: str
    device: str
    blocks: int
    block_tokens: int
    calibrated_on: tuple[str, str] = field(default=OURS, kw_only=True)
    own: Hardware | None = field(default=None, kw_only=True)

    def on(self, c: float, noise: Noise) -> Hardware:
        """The whole hardware at this magnitude and noise."""
        return replace(self.own or Hardware(), c=c, **asdict(noise))


@dataclass(frozen=True)
class Preset:
    """How much of an exhibit is computed.

    magnitudes: values of c.
    draws: number of noise draws.
    blocks, block_tokens: at most so many blocks of text, of at most so many predictions each.
    noises: models of programming noise.
    """

    magnitudes: tuple[float, ...]
    draws: int
    blocks: int
    block_tokens: int
    noises: tuple[Noise, ...] = PCM

    def seeds(self, given: int | None, first: int | None) -> range:
        """Seeds of the noise draws [evaluation_seeds]; `given` (at least 2) overrides the preset's number."""
        return evaluation_seeds(given, self.draws, first, "noise draws")

    def evaluated(self, name: str, text: str | None, device: str, **own: Any) -> dict[str, Any]:
        """What `evaluated` says of a model and a text, with the preset's blocks; own: its other arguments."""
        return evaluated(name, text, device, self.blocks, self.block_tokens, **own)

    def on(self, given: Mapping[str, Any] | None) -> "Preset":
        """The same on a user's hardware: the fields that are given, with the preset's magnitudes and noises else."""
        given = given or {}
        fields = {name: given[name] for name in ("programming", "w_max") if name in given}
        noises = tuple(dict.fromkeys(replace(noise, **fields) for noise in self.noises))
        return replace(self, magnitudes=(given["c"],) if "c" in given else self.magnitudes, noises=noises)


def at_rule(magnitudes: Iterable[float], *of_rules: float) -> list[float]:
    """Where findings are judged: at the magnitudes of the rules that there are, or else at the largest one."""
    found = set(magnitudes)
    return [c for c in of_rules if c in found] or [max(found)]


def judged_on(own: Hardware | None, findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings; exploratory on a user's own hardware, which no rule was written for."""
    return tuple(each if own is None else replace(each, exploratory=True) for each in findings)


def as_noisy(model: Model, hardware: Hardware, programming: str) -> Hardware:
    """The hardware with another programming noise of the same root mean square over all experts' weights."""
    other = replace(hardware, programming=programming)
    if programming == hardware.programming or not hardware.c:
        return other
    squares = [0.0, 0.0]
    for layer in model.map.moe_layers:
        experts = model.network.get_submodule(layer.experts)
        layout = fused_layout(experts)
        for name in layout.weights:
            weight = layout.matrices(name, weights_of(experts)[name])
            for number, each in enumerate((hardware, other)):
                squares[number] += float(programming_sigma(weight, each).double().square().sum())
    return replace(other, c=hardware.c * math.sqrt(squares[0] / squares[1]))


def evaluated(
    name: str,
    text: str | None,
    device: str,
    most_blocks: int | None,
    most_tokens: int,
    *,
    calibration: str | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The fields of `Evaluated` for a model and a text: one of EVALUATION_TEXTS or a UTF-8 file; None: docstrings.

    most_blocks: at most so many blocks, spread evenly over the text; None for the whole text.
    most_tokens: predictions in a block, or fewer if the model's context is shorter.
    calibration: a UTF-8 file of calibration text; None for ours.
    hardware: the fields of hardware that the user gave, if any.
    InputError if calibration text is evaluated on.
    """
    if text is None or text in OUR_TEXTS:
        text = OUR_TEXTS[text or "docstrings"]
    elif text == OUR_TEXT:
        text = f"./{text}"  # a file that is called so
    loaded, found = model(name, device), _documents(text)
    calibrated = {}
    if calibration is not None:
        own = read_text(calibration)
        if shared := shared_paragraphs(own, found):
            raise InputError(
                f"--calibration {calibration}: {shared} of its paragraphs are in the evaluation text: leave them out"
            )
        calibrated = {"calibrated_on": (calibration, text_hash(own))}
    length = min(most_tokens, loaded.context)
    return vars(
        Evaluated(
            model=name,
            weights=loaded.weights_hash,
            text=text,
            text_hash=text_hash(found),
            device=device,
            blocks=len(token_blocks(loaded, found, length, most_blocks).tokens),
            block_tokens=length,
            own=None if hardware is None else Hardware(**hardware),
            **calibrated,
        )
    )


def model(name: str, device: str, dtype: str = DTYPE) -> Model:
    """The loaded model, kept until another one is asked for."""
    return _model(name, device, dtype)


@lru_cache(maxsize=1)
def _model(name: str, device: str, dtype: str) -> Model:
    return load(name, device, getattr(torch, dtype))


def tokens(config: Evaluated) -> Tensor:
    """The evaluation text in blocks of tokens: (blocks, block_tokens + 1)."""
    return _blocks(config).tokens


def documents(config: Evaluated) -> list[int]:
    """A label for each block of the evaluation text: blocks of one label are one unit [TokenBlocks]."""
    return list(_blocks(config).documents)


@lru_cache(maxsize=len(STRATEGIES))
def scores(
    name: str, device: str, strategy: Strategy, dtype: str = DTYPE, text: tuple[str, str] = OURS
) -> Tensor:
    """Scores of the experts, (layers, experts). Routing statistics are those of calibration text, ours or a file."""
    loaded, texts, decided_by = _calibrated_by(name, device, dtype, text)
    found = kept(
        "scores",
        decided_by | {"strategy": strategy},
        lambda: scores_of(loaded, strategy, texts).tolist(),
    )
    return torch.tensor(found, dtype=torch.float64)


@lru_cache(maxsize=12)  # two methods by two granularities by three numbers of bits of one model
def calibration(
    name: str,
    device: str,
    hardware: Hardware,
    method: Method = "layer",
    dtype: str = DTYPE,
    text: tuple[str, str] = OURS,
) -> Calibration:
    """Converter ranges from calibration text, ours or a file. Programming noise plays no part."""
    loaded, texts, decided_by = _calibrated_by(name, device, dtype, text)
    decided_by |= {"hardware": asdict(hardware), "method": method}

    def layer(parameter: str, search: Callable[[], Ranges]) -> Ranges:
        of_layer = decided_by | {"parameter": parameter}
        return ranges_from_json(kept("ranges of a layer", of_layer, lambda: ranges_as_json(search())))

    def all_layers() -> dict[str, list[Any]]:
        found = calibrate(loaded, texts, hardware, method, each=layer)
        return {parameter: ranges_as_json(ranges) for parameter, ranges in found.layers.items()}

    found = kept("converter ranges", decided_by, all_layers)
    layers = {parameter: ranges_from_json(ranges) for parameter, ranges in found.items()}
    return Calibration(layers, hardware)


def _calibrated_by(
    name: str, device: str, dtype: str, text: tuple[str, str]
) -> tuple[Model, Sequence[str], dict[str, Any]]:
    """The model, the text that it is scored and calibrated with, and what of both decides the outcome."""
    loaded = model(name, device, dtype)
    texts = loaded.texts("calibration") if text == OURS else read_text(text[0])
    if text != OURS and text_hash(texts) != text[1]:
        raise InputError(f"the text {text[0]} was changed after the run began; run it again")
    return loaded, texts, {"weights": loaded.weights_hash, "text_hash": text_hash(texts), "device": device}


@contextmanager
def placed(
    name: str,
    device: str,
    hardware: Hardware,
    digital_experts: float,
    seed: int,
    *,
    strategy: Strategy = "maxnn",
    analog_modules: Sequence[str] = (),
    dtype: str = DTYPE,
    calibrated_on: tuple[str, str] = OURS,
    deploy: Deployer | None = None,
) -> Iterator[DeploymentReport]:
    """Score, place, calibrate and deploy: within the `with` block `model(name, device)` is on analog hardware.

    digital_experts: fraction of the experts of each layer that stay digital, chosen by `strategy`.
    seed: noise seed, and seed of the choice where the strategy is random.
    analog_modules: kinds of dense modules that are analog, too.
    dtype: of the model's parameters.
    calibrated_on: as in `Evaluated`.
    deploy: what takes the arguments of `realmodels.deploy.deployed`. Without it, units that follow each other and have
        the same hardware and seed share a chip.
    """
    placement = place(
        scores(name, device, strategy, dtype, calibrated_on),
        digital_experts,
        strategy,
        analog_modules=analog_modules,
        generator=torch.Generator().manual_seed(seed),
    )
    if deploy is None:
        with _chip(name, device, dtype, calibrated_on, hardware, seed).placed(placement) as report:
            yield report
        return
    ranges = _ranges(name, device, dtype, calibrated_on, hardware)
    with deploy(model(name, device, dtype), placement, hardware, ranges, seed=seed) as report:
        yield report


def _ranges(name: str, device: str, dtype: str, text: tuple[str, str], hardware: Hardware) -> Calibration:
    any_noise = replace(hardware, programming="pcm", c=1.0, lam=None)
    return calibration(name, device, any_noise, dtype=dtype, text=text)


@lru_cache(maxsize=1)
def _chip(name: str, device: str, dtype: str, text: tuple[str, str], hardware: Hardware, seed: int) -> Chip:
    ranges = _ranges(name, device, dtype, text, hardware)
    return Chip(model(name, device, dtype), hardware, ranges, seed)


def measured(config: Evaluated) -> dict[str, Any]:
    """Mean loss and accuracy of every block of text, of the model as it is now, and the labels of `documents`."""
    blocks, network = _blocks(config), model(config.model, config.device).network
    losses, hits = block_results(network, blocks.tokens, _prefix(*_cut_by(config)))
    return {"loss": losses.tolist(), "accuracy": hits.tolist(), "documents": list(blocks.documents)}


@lru_cache(maxsize=1)
def _documents(text: str) -> Sequence[str]:
    """The documents to evaluate on. InputError if they hold calibration text, which ranges and scores come from."""
    if text == OUR_TEXT:
        return held_out("evaluation")
    if text in OUR_TEXTS.values():
        return evaluation_text(text)
    found = read_text(text)
    if shared := shared_paragraphs(found, held_out("calibration")):
        raise InputError(
            f"--text {text}: {shared} of its paragraphs are in the calibration text, from which ranges and scores come:"
            " leave them out"
        )
    return found


def require_unchanged(config: Any) -> None:
    """InputError if the model or a text is no more what the config says: somebody has changed the files.

    config: with `model`, `weights` and `device`, `dtype` unless it is DTYPE, and `text` and `text_hash` unless the text
        is our own.
    """
    text = getattr(config, "text", OUR_TEXT)
    for _ in range(2):
        same_text = text == OUR_TEXT or text_hash(_documents(text)) == config.text_hash
        loaded = model(config.model, config.device, getattr(config, "dtype", DTYPE))
        if same_text and loaded.weights_hash == config.weights:
            return
        # This process may be older than the files.
        for each in (_model, scores, calibration, _chip, _documents, _cut, _prefix):
            each.cache_clear()
    raise InputError(
        f"the model {config.model} or the text {text} was changed after the run began; run it again"
    )


def _blocks(config: Evaluated) -> TokenBlocks:
    require_unchanged(config)
    return _cut(*_cut_by(config))


def _cut_by(config: Evaluated) -> tuple[str, str, str, int, int]:
    return config.model, config.device, config.text, config.block_tokens, config.blocks


@lru_cache(maxsize=1)
def _prefix(name: str, device: str, text: str, block_tokens: int, blocks: int) -> Prefix:
    tokens = _cut(name, device, text, block_tokens, blocks).tokens
    return Prefix(model(name, device).network, tokens)


@lru_cache(maxsize=1)
def _cut(name: str, device: str, text: str, block_tokens: int, blocks: int) -> TokenBlocks:
    return token_blocks(model(name, device), _documents(text), block_tokens, blocks, purpose="evaluation")
