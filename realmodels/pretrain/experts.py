"""How are experts computed in training? As by transformers' grouped_mm, but rows move by gathers in both directions.

The backward pass of transformers' moves adds into rows by index, which sorts, or adds in no fixed order. Here each
move is a permutation, which is undone by its inverse.
"""

from typing import Any, Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME: Final = "gathered_grouped_mm"  # for `experts_implementation`


class _Spread(torch.autograd.Function):
    """Each row as often as it is used, in an order whose inverse is known."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor, times: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.times = times
        return rows[order // times]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return gradient[inverse].unflatten(0, (-1, ctx.times)).sum(1), None, None, None


class _Reorder(torch.autograd.Function):
    """Rows in an order whose inverse is known."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return rows[order]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (inverse,) = ctx.saved_tensors
        return gradient[inverse], None, None


def gathered_grouped_mm(
    self: Any,
    hidden: Float[Tensor, "tokens hidden"],
    chosen: Int[Tensor, "tokens top_k"],
    weights: Float[Tensor, "tokens top_k"],
) -> Float[Tensor, "tokens hidden"]:
    """The output of gated fused experts with concatenated gate and up projections."""
    times = chosen.shape[1]
    # A sort of short keys takes fewer passes.
    keys = chosen.flatten().to(torch.int16 if self.num_experts <= 2**15 else torch.int32)
    numbers, order = keys.sort(stable=True)
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    experts = torch.arange(self.num_experts, device=hidden.device, dtype=numbers.dtype)
    ends = torch.searchsorted(numbers, experts, right=True).int()
    rows = _Spread.apply(hidden, order, inverse, times)
    gate, up = F.grouped_mm(rows, self.gate_up_proj.mT, offs=ends).chunk(2, -1)
    outputs = F.grouped_mm(self.act_fn(gate) * up, self.down_proj.mT, offs=ends)
    outputs = _Reorder.apply(outputs, inverse, order).unflatten(0, (-1, times))
    return (outputs * weights[..., None]).sum(1).to(hidden.dtype)


ALL_EXPERTS_FUNCTIONS.register(NAME, gathered_grouped_mm)
