"""How do fused experts store their weights, gate their activations and multiply?

transformers 5 holds all experts of a layer in 3-D parameters. `fused_layout` reads from a module how these are laid
out; `apply_gate` and `grouped_matmul` compute with them digitally, all experts of a layer at once.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

from realmodels.devices import weights_of
from theory.errors import InputError


class Pairs(NamedTuple):
    """Pairs of tokens and experts, grouped by expert; those of expert e end before ends[e]."""

    expert: Int[Tensor, " pairs"]
    token: Int[Tensor, " pairs"]
    weight: Float[Tensor, " pairs"]
    ends: Int[Tensor, " experts"]


class Routing(NamedTuple):
    """What fused experts read, by token. The number of an expert without weights is beyond those of all others."""

    hidden: Float[Tensor, "tokens hidden"]
    chosen: Int[Tensor, "tokens k"]
    weights: Float[Tensor, "tokens k"]

    def by_expert(self, experts: int) -> Pairs:
        """The pairs of tokens and experts, those without weights left out."""
        expert, order = self.chosen.flatten().sort()
        ends = torch.searchsorted(expert, torch.arange(experts, device=expert.device), right=True)
        expert, order = (each[: int(ends[-1])] for each in (expert, order))
        weights = self.weights.flatten()[order]
        return Pairs(expert, order // self.chosen.shape[1], weights, ends.int())


@dataclass(frozen=True)
class FusedLayout:
    """How a fused experts module stores its weights, and how it is called; `fused_layout` finds it.

    All other code works on views (experts, matrices, out, in). The matrices of the first weight are gate and up, or up
    alone; down_proj has one matrix.

    transposed: weights are (experts, in, out), not (experts, out, in).
    interleaved: the outputs of gate_up_proj are gate 0, up 0, gate 1, up 1, ..., not all of gate before all of up.
    biased: there are gate_up_proj_bias (experts, 2 * inner) and down_proj_bias (experts, hidden).
    gated: the first weight is gate_up_proj; else up_proj, followed by an activation without a gate.
    identities: there are so many more experts, without weights of their own, that return what they read. gate_up_proj
        has rows for them, which nobody reads.
    weighted_inputs: the module is given an input for every expert and token, which is weighted already, or zero where
        the token is not routed to the expert.
    """

    transposed: bool = False
    interleaved: bool = False
    biased: bool = False
    gated: bool = True
    identities: int = 0
    weighted_inputs: bool = False

    @property
    def weights(self) -> tuple[str, str]:
        """Names of the two weights, in the order in which an expert uses them."""
        return "gate_up_proj" if self.gated else "up_proj", "down_proj"

    @property
    def biases(self) -> tuple[str, ...]:
        return tuple(f"{name}_bias" for name in self.weights) if self.biased else ()

    def shapes(self, experts: int, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by name."""
        first, down = self.weights
        sizes = {first: (2 * inner if self.gated else inner, hidden), down: (hidden, inner)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, size in sizes.items():
            held = experts if name == down else experts + self.identities
            shapes[name] = (held, *(size[::-1] if self.transposed else size))
            if self.biased:
                shapes[f"{name}_bias"] = (held, size[0])
        return shapes

    def rows(self, name: str, weight: Float[Tensor, "held rows columns"]) -> Float[Tensor, "experts out in"]:
        """A view of the parameter `name` with neurons as rows, in the order of the outputs of the stored product."""
        held = weight if name == "down_proj" else weight[: len(weight) - self.identities]
        return held.mT if self.transposed else held

    def matrices(
        self, name: str, weight: Float[Tensor, "held rows columns"]
    ) -> Float[Tensor, "experts matrices out in"]:
        """A view of the parameter `name`."""
        rows = self.rows(name, weight)
        if name == "down_proj" or not self.gated:
            return rows.unsqueeze(1)
        return rows.unflatten(1, (-1, 2)).transpose(1, 2) if self.interleaved else rows.unflatten(1, (2, -1))

    def stored(
        self, name: str, matrices: Float[Tensor, "experts matrices out in"]
    ) -> Float[Tensor, "experts rows columns"]:
        """The inverse of `matrices`, contiguous as the parameter is, without rows that nobody reads."""
        interleaved = self.interleaved and name != "down_proj"
        rows = (matrices.transpose(1, 2) if interleaved else matrices).flatten(1, 2)
        return (rows.mT if self.transposed else rows).contiguous()

    def stored_order(self, outputs: Float[Tensor, "rows twice_inner"]) -> Float[Tensor, "rows twice_inner"]:
        """Outputs of gate, then outputs of up, brought into the order that the module's gating expects."""
        return outputs.unflatten(1, (2, -1)).mT.flatten(1) if self.interleaved else outputs

    def gate_then_up(self, outputs: Float[Tensor, "rows twice_inner"]) -> Float[Tensor, "rows twice_inner"]:
        """The inverse of `stored_order`."""
        return outputs.unflatten(1, (-1, 2)).mT.flatten(1) if self.interleaved else outputs

    def routing(self, inputs: Sequence[Tensor], experts: int) -> Routing:
        """What a call of the module with these inputs reads; the number of what needs no weights is >= `experts`."""
        if not self.weighted_inputs:
            hidden, chosen, weights = inputs[:3]
            return Routing(hidden, chosen, weights)
        (hidden,) = inputs
        number = torch.arange(experts, device=hidden.device).repeat_interleave(len(hidden) // experts)
        chosen = number.where(hidden.any(1), experts)[:, None]
        return Routing(hidden, chosen, hidden.new_ones(len(hidden), 1))


def fused_layout(experts: nn.Module) -> FusedLayout:
    """The layout of a fused experts module; InputError if it is not known.

    Shapes tell if weights are transposed and biased. The module itself declares if gate and up are interleaved, as
    transformers' own modules do. Whatever else a module declares has to agree with its parameters.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in experts.named_parameters()}
    number, *size = shapes["down_proj"]
    interleaved = not getattr(experts, "is_concatenated", True)
    gated = "up_proj" not in shapes
    identities = getattr(experts, "zero_expert_num", 0)
    weighted_inputs = isinstance(experts, Llama4TextExperts)
    candidates = (
        FusedLayout(transposed, interleaved, biased, gated, identities, weighted_inputs)
        for transposed, biased in product((False, True), repeat=2)
    )
    layouts = [
        layout
        for layout in candidates
        if shapes == layout.shapes(number, *(reversed(size) if layout.transposed else size))
    ]
    if len(layouts) > 1:  # without a gate, shapes alone do not tell
        layouts = [each for each in layouts if each.transposed == getattr(experts, "is_transposed", False)]
    declared = {"has_gate": gated, "has_post_expert_norm": False, "_is_expert_parallel": False}
    for layout in layouts:
        declared |= {"is_transposed": layout.transposed, "has_bias": layout.biased}
    problems = [
        f"{name}={getattr(experts, name)}"
        for name, value in declared.items()
        if getattr(experts, name, value) != value
    ]
    if not ((gated and hasattr(experts, "_apply_gate")) or hasattr(experts, "act_fn")):
        problems.append("no _apply_gate and no act_fn" if gated else "no act_fn")
    if not (weighted_inputs or _takes_routing(experts)):
        problems.append("a forward that does not take hidden states, experts and weights of each token")
    if not layouts or problems:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"{type(experts).__name__} has {', '.join([found, *problems])}: this layout of experts is not supported;"
            " gate_up_proj (experts, 2 * inner, hidden) or up_proj (experts, inner, hidden) and down_proj (experts,"
            " hidden, inner) are, or both transposed, without or with biases"
        )
    return layouts[0]


def _takes_routing(experts: nn.Module) -> bool:
    """True if the module can be called with hidden states, indices of experts and routing weights."""
    try:
        inspect.signature(experts.forward).bind(None, None, None)
    except TypeError:
        return False
    return True


def outputs(
    experts: nn.Module, hidden: Float[Tensor, "tokens hidden"], pairs: Pairs
) -> Float[Tensor, "pairs hidden"]:
    """What each expert makes of each of its tokens, without routing weights."""
    layout, rows = fused_layout(experts), hidden[pairs.token]
    weights = weights_of(experts)
    for number, name in enumerate(layout.weights):
        rows = apply_gate(experts, rows) if number else rows
        rows = grouped_matmul(rows, layout.rows(name, weights[name]), pairs.ends)
        if layout.biased:
            rows = rows + weights[f"{name}_bias"][pairs.expert]
    return rows


def apply_gate(experts: Any, gate_up: Float[Tensor, "rows outputs"]) -> Float[Tensor, "rows inner"]:
    """The activation of `experts`, between their two products."""
    if hasattr(experts, "up_proj"):
        return experts.act_fn(gate_up)
    if hasattr(experts, "_apply_gate"):
        return experts._apply_gate(gate_up)
    gate, up = gate_up.chunk(2, dim=-1)
    return experts.act_fn(gate) * up


def grouped_matmul(
    rows: Float[Tensor, "rows in"], weight: Float[Tensor, "groups out in"], ends: Int[Tensor, " groups"]
) -> Float[Tensor, "rows out"]:
    """Multiply the rows of each group by the transpose of the group's matrix; the group ends before row ends[group]."""
    aligned = all(size * weight.element_size() % 16 == 0 for size in weight.shape[1:])
    if aligned and _grouped_mm_takes(weight.dtype, weight.device.type):
        return F.grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    # Instead, pad every group at its front to the size of the largest group.
    row = torch.arange(rows.shape[0], device=rows.device)
    group = torch.searchsorted(ends, row, right=True)
    sizes = ends.diff(prepend=ends.new_zeros(1))
    place = row - ends[group]
    padded = rows.new_zeros(len(ends), int(sizes.max()), rows.shape[1])
    padded[group, place] = rows
    return torch.bmm(padded, weight.transpose(1, 2))[group, place]


@cache
def _grouped_mm_takes(dtype: torch.dtype, device: str) -> bool:
    """True if F.grouped_mm takes the dtype there. No documentation says so, and releases differ: try it."""
    matrices = torch.zeros(1, 16, 16, dtype=dtype, device=device)
    try:
        F.grouped_mm(matrices[0], matrices, offs=torch.full((1,), 16, dtype=torch.int32, device=device))
    except RuntimeError:
        return False
    return True
