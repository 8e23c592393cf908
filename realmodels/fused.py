"""How do fused experts store their weights, gate their activations and multiply?

transformers 5 holds all experts of a layer in 3-D parameters. `fused_layout` reads from a module how these are laid
out; `apply_gate` and `grouped_matmul` compute with them digitally, all experts of a layer at once.
"""

import inspect
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from theory.errors import InputError

FUSED_WEIGHTS = ("gate_up_proj", "down_proj")


@dataclass(frozen=True)
class FusedLayout:
    """How a fused experts module stores its weights; `fused_layout` finds it.

    All other code works on views (experts, matrices, out, in). The matrices of gate_up_proj are gate and up; down_proj
    has one matrix.

    transposed: weights are (experts, in, out), not (experts, out, in).
    interleaved: the outputs of gate_up_proj are gate 0, up 0, gate 1, up 1, ..., not all of gate before all of up.
    biased: there are gate_up_proj_bias (experts, 2 * inner) and down_proj_bias (experts, hidden).
    """

    transposed: bool = False
    interleaved: bool = False
    biased: bool = False

    @property
    def biases(self) -> tuple[str, ...]:
        return tuple(f"{name}_bias" for name in FUSED_WEIGHTS) if self.biased else ()

    def shapes(self, experts: int, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by name."""
        sizes = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}
        shapes: dict[str, tuple[int, ...]] = {}
        for name, size in sizes.items():
            shapes[name] = (experts, *(size[::-1] if self.transposed else size))
            if self.biased:
                shapes[f"{name}_bias"] = (experts, size[0])
        return shapes

    def rows(self, weight: Float[Tensor, "experts rows columns"]) -> Float[Tensor, "experts out in"]:
        """A view of a parameter with neurons as rows, in the order of the outputs of the stored product."""
        return weight.mT if self.transposed else weight

    def matrices(
        self, name: str, weight: Float[Tensor, "experts rows columns"]
    ) -> Float[Tensor, "experts matrices out in"]:
        """A view of the parameter `name`."""
        rows = self.rows(weight)
        if name == "down_proj":
            return rows.unsqueeze(1)
        return rows.unflatten(1, (-1, 2)).transpose(1, 2) if self.interleaved else rows.unflatten(1, (2, -1))

    def stored(
        self, name: str, matrices: Float[Tensor, "experts matrices out in"]
    ) -> Float[Tensor, "experts rows columns"]:
        """The inverse of `matrices`, contiguous as the parameter is."""
        interleaved = self.interleaved and name != "down_proj"
        rows = (matrices.transpose(1, 2) if interleaved else matrices).flatten(1, 2)
        return self.rows(rows).contiguous()

    def stored_order(self, outputs: Float[Tensor, "rows twice_inner"]) -> Float[Tensor, "rows twice_inner"]:
        """Outputs of gate, then outputs of up, brought into the order that the module's gating expects."""
        return outputs.unflatten(1, (2, -1)).mT.flatten(1) if self.interleaved else outputs

    def gate_then_up(self, outputs: Float[Tensor, "rows twice_inner"]) -> Float[Tensor, "rows twice_inner"]:
        """The inverse of `stored_order`."""
        return outputs.unflatten(1, (-1, 2)).mT.flatten(1) if self.interleaved else outputs


def fused_layout(experts: nn.Module) -> FusedLayout:
    """The layout of a fused experts module; InputError if it is not known.

    Shapes tell if weights are transposed and biased. The module itself declares if gate and up are interleaved, as
    transformers' own modules do. Whatever else a module declares has to agree with its parameters.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in experts.named_parameters()}
    number, *size = shapes["down_proj"]
    interleaved = not getattr(experts, "is_concatenated", True)
    candidates = (
        FusedLayout(transposed, interleaved, biased)
        for transposed, biased in product((False, True), repeat=2)
    )
    layouts = [
        layout
        for layout in candidates
        if shapes == layout.shapes(number, *(reversed(size) if layout.transposed else size))
    ]
    declared = {"has_gate": True, "has_post_expert_norm": False, "_is_expert_parallel": False}
    for layout in layouts:
        declared |= {"is_transposed": layout.transposed, "has_bias": layout.biased}
    problems = [
        f"{name}={getattr(experts, name)}"
        for name, value in declared.items()
        if getattr(experts, name, value) != value
    ]
    if not (hasattr(experts, "_apply_gate") or hasattr(experts, "act_fn")):
        problems.append("no _apply_gate and no act_fn")
    if not _takes_routing(experts):
        problems.append("a forward that does not take hidden states, experts and weights of each token")
    if not layouts or problems:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise InputError(
            f"{type(experts).__name__} has {', '.join([found, *problems])}: this layout of experts is not supported;"
            " gate_up_proj (experts, 2 * inner, hidden) and down_proj (experts, hidden, inner) are, or both"
            " transposed, without or with gate_up_proj_bias and down_proj_bias"
        )
    return layouts[0]


def _takes_routing(experts: nn.Module) -> bool:
    """True if the module can be called with hidden states, indices of experts and routing weights."""
    try:
        inspect.signature(experts.forward).bind(None, None, None)
    except TypeError:
        return False
    return True


def apply_gate(experts: Any, gate_up: Float[Tensor, "rows twice_inner"]) -> Float[Tensor, "rows inner"]:
    """The activation of `experts`, between their two products."""
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
