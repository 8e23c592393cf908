"""How do many placements of a model's experts compare under the same programming noise?

All dense modules stay digital. A placement decides only which of two outputs a token gets from an expert. So all
experts are programmed once, and a batch holds the text once for each placement: every MoE layer computes its digital
and its analog output, and each row takes from both what its placement says. `deploy` gives the same numbers one
placement at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from realmodels.analog import AnalogExperts
from realmodels.calibrate import Calibration
from realmodels.deploy import deployed
from realmodels.devices import device_of
from realmodels.evaluate import block_results, blocks_per_batch
from realmodels.model import Model
from realmodels.record import Hook, hooked
from theory.errors import InputError
from theory.hardware import Hardware
from theory.placement import Choice, Placement


def as_mask(choice: Choice, experts: int) -> Bool[Tensor, "layers experts"]:
    """True for each expert that a choice [theory.placement.rank] makes digital."""
    mask = torch.zeros(len(choice), experts, dtype=torch.bool)
    for row, digital in zip(mask, choice, strict=True):
        row[list(digital)] = True
    return mask


def losses(
    model: Model,
    digital: Bool[Tensor, "placements layers experts"],
    hardware: Hardware,
    calibration: Calibration,
    seed: int,
    tokens: Int[Tensor, "blocks tokens_plus_1"],
    *,
    mirrored: bool = False,
    copied: Bool[Tensor, "placements layers experts"] | None = None,
    copy_seed: int | None = None,
    shift: Float[Tensor, "layers experts hidden"] | None = None,
) -> Float[Tensor, "placements blocks"]:
    """Mean loss of every block, in nats per token, fp64 on the CPU, for every placement.

    seed: seed of the programming noise, as `deploy` draws it.
    mirrored: take the opposite noise.
    copied: analog experts that are programmed twice, with independent noise, and averaged.
    copy_seed: seed of the second programming, which has to be another one; for `copied`.
    shift: `mean_shift`, subtracted from the output of every expert that is analog and not copied.
    InputError if the model is deployed, the placements do not have its shape, or copies get the noise of the originals.
    """
    shape = _shape(model)
    if (copied is None) != (copy_seed is None) or copy_seed == seed:
        raise InputError(
            f"copy_seed is {copy_seed}: copied experts need one that is not {seed}, the first chip's"
        )
    for name, given in (("digital", digital), ("copied", copied)):
        if given is not None and (tuple(given.shape[1:]) != shape or given.dtype != torch.bool):
            raise InputError(
                f"{name} is {given.dtype} of shape {tuple(given.shape)}: give bools (placements, *{shape})"
            )
    copies = torch.zeros_like(digital) if copied is None else copied
    at_once = max(1, blocks_per_batch(model.network, tokens) // len(tokens))
    found = []
    with _switched(model, hardware, calibration, seed, mirrored, copy_seed, shift) as layers:
        for placed, twice in zip(digital.split(at_once), copies.split(at_once), strict=True):
            for number, layer in enumerate(layers):
                layer.digital, layer.copied = (
                    each[:, number].to(device_of(layer.original)) for each in (placed, twice)
                )
            blocks, _ = block_results(model.network, tokens.repeat(len(placed), 1))
            found.append(blocks.view(len(placed), len(tokens)))
    return torch.cat(found)


def expert_damage(
    model: Model,
    hardware: Hardware,
    calibration: Calibration,
    seeds: Sequence[int],
    tokens: Int[Tensor, "blocks tokens_plus_1"],
    *,
    digital: Bool[Tensor, "layers experts"] | None = None,
) -> Float[Tensor, "layers experts"]:
    """Cost of moving one expert alone: mean over draws, their mirror images and blocks, in nats per token.

    A digital expert is made analog, and its number is the loss that this adds. An analog expert is made digital, and
    its number is the loss that this takes away. Blocks are shared out among the draws, as in `mean_losses`.

    digital: the digital experts to start from; default: all.
    """
    layers, experts = _shape(model)
    start = torch.ones(layers, experts, dtype=torch.bool) if digital is None else digital
    changes = torch.eye(layers * experts, dtype=torch.bool).view(-1, layers, experts)
    variants = torch.cat([start[None], start ^ changes])
    total = mean_losses(model, variants, hardware, calibration, seeds, tokens)
    change = (total[1:] - total[0]).view(layers, experts)
    return torch.where(start, change, -change)


def mean_losses(
    model: Model,
    digital: Bool[Tensor, "placements layers experts"],
    hardware: Hardware,
    calibration: Calibration,
    seeds: Sequence[int],
    tokens: Int[Tensor, "blocks tokens_plus_1"],
) -> Float[Tensor, " placements"]:
    """Mean of `losses` over draws, their mirror images and blocks, for comparing placements with each other.

    Every draw reads equally many blocks of its own, which averages over more text for the same work.
    InputError if the blocks cannot be shared out evenly.
    """
    if not seeds or len(tokens) % len(seeds):
        raise InputError(f"{len(tokens)} blocks for {len(seeds)} draws: give a multiple of the draws")
    own = tokens.split(len(tokens) // len(seeds))
    each = [
        losses(model, digital, hardware, calibration, seed, blocks, mirrored=mirrored).mean(1)
        for seed, blocks in zip(seeds, own, strict=True)
        for mirrored in (False, True)
    ]
    return torch.stack(each).mean(0)


@torch.no_grad()
def mean_shift(
    model: Model,
    hardware: Hardware,
    calibration: Calibration,
    seed: int,
    tokens: Int[Tensor, "blocks tokens_plus_1"],
) -> Float[Tensor, "layers experts hidden"]:
    """Mean of each expert's analog minus digital output over the tokens routed to it; 0 without any token.

    The inputs are the digital model's, and the chip is the one that `seed` programs.
    """
    names = [layer.experts for layer in model.map.moe_layers]
    inputs: dict[str, list[tuple[Tensor, ...]]] = {
        name: [] for name in names
    }  # block_results may need several batches

    def keep(name: str) -> Hook:
        return lambda module, given, named, output: inputs[name].append(given[:2])

    with hooked(model.network, {name: keep(name) for name in names}):
        block_results(model.network, tokens)
    layers, experts = _shape(model)
    device = device_of(model.network)
    sums = torch.zeros(layers, experts, model.network.config.hidden_size, device=device)
    counts = torch.zeros(layers, experts, 1, device=device)
    programmed = _programmed(model, hardware, calibration, seed)
    for name, analog, layer_sums, layer_counts in zip(names, programmed, sums, counts, strict=True):
        digital = model.network.get_submodule(name)
        for hidden, index in inputs[name]:
            rows = hidden.repeat_interleave(index.shape[1], 0)
            each, once = index.reshape(-1, 1), hidden.new_ones(len(rows), 1)
            difference = analog(rows, each, once) - digital(rows, each, once)
            each = each[:, 0].to(device)
            layer_sums.index_add_(0, each, difference.float().to(device))
            layer_counts.index_add_(0, each, once.float().to(device))
    return sums / counts.clamp(min=1)


class _Switched(nn.Module):
    """Experts with a digital and an analog output; the placement of a row says which of the two the row takes.

    digital, copied: (placements, experts). A batch holds the rows of the first placement, then of the second ...
    """

    digital: Bool[Tensor, "placements experts"]
    copied: Bool[Tensor, "placements experts"]

    def __init__(
        self,
        original: nn.Module,
        analog: AnalogExperts,
        second: AnalogExperts | None,
        shift: Float[Tensor, "experts hidden"] | None,
    ) -> None:
        super().__init__()
        self.original, self.analog, self.second, self.shift = original, analog, second, shift

    def forward(
        self,
        hidden: Float[Tensor, "rows hidden"],
        index: Int[Tensor, "rows k"],
        weights: Float[Tensor, "rows k"],
    ) -> Float[Tensor, "rows hidden"]:
        placements = len(self.digital)
        placement = torch.arange(placements, device=hidden.device)
        placement = placement.repeat_interleave(len(hidden) // placements)[:, None]
        digital, copied = self.digital[placement, index], self.copied[placement, index]
        own = weights * ~digital
        parts = [
            (self.original, weights * digital),
            (self.analog, own * torch.where(copied, 0.5, 1.0).to(own.dtype)),
        ]
        if self.second is not None:
            parts.append((self.second, own * copied * 0.5))
        output = torch.zeros_like(hidden)
        for experts, shares in parts:
            rows = shares.any(1).nonzero()[:, 0]  # most need only one of them
            if len(rows):
                output[rows] += experts(hidden[rows], index[rows], shares[rows])
        if self.shift is not None:
            shares = own.new_zeros(len(own), len(self.shift)).scatter_add(1, index, own * ~copied)
            output = output - shares @ self.shift.to(own.dtype)
        return output


@contextmanager
def _switched(
    model: Model,
    hardware: Hardware,
    calibration: Calibration,
    seed: int,
    mirrored: bool,
    copy_seed: int | None,
    shift: Float[Tensor, "layers experts hidden"] | None,
) -> Iterator[list[_Switched]]:
    analog = _programmed(model, hardware, calibration, seed, mirrored)
    second: Sequence[AnalogExperts | None] = [None] * len(analog)
    if copy_seed is not None:
        second = _programmed(model, hardware, calibration, copy_seed, mirrored)
    layers = []
    for number, layer in enumerate(model.map.moe_layers):
        original = model.network.get_submodule(layer.experts)
        own = None if shift is None else shift[number].to(device_of(original))
        layers.append(_Switched(original, analog[number], second[number], own))
    names = [layer.experts for layer in model.map.moe_layers]
    try:
        for name, switched in zip(names, layers, strict=True):
            model.network.set_submodule(name, switched)
        yield layers
    finally:
        for name, switched in zip(names, layers, strict=True):
            model.network.set_submodule(name, switched.original)


def _programmed(
    model: Model, hardware: Hardware, calibration: Calibration, seed: int, mirrored: bool = False
) -> list[AnalogExperts]:
    """All experts of every layer on analog hardware, beside the model, which stays digital."""
    layers, _ = _shape(model)
    nothing = Placement(model.map.num_experts, ((),) * layers)
    with deployed(model, nothing, hardware, calibration, seed, mirrored=mirrored):
        modules = [model.analog_modules[layer.experts] for layer in model.map.moe_layers]
    return [module for module in modules if isinstance(module, AnalogExperts)]


def _shape(model: Model) -> tuple[int, int]:
    sizes = set(model.map.num_experts)
    if len(sizes) != 1:
        raise InputError(f"{model.name} has {model.map.num_experts} experts: layers of one size are needed")
    return len(model.map.num_experts), sizes.pop()
