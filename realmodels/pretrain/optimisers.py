"""Which steps do Muon, SGD and AdamW with one second moment for a tensor take?"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

BETAS: Final = (0.9, 0.95)
EPSILON: Final = 1e-8  # torch's of AdamW
MOMENTUM: Final = 0.95
NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)  # [Jordan et al., 2024]: singular values end near 1
NEWTON_SCHULZ_STEPS: Final = 5
ADAM_UPDATE_SIZE: Final = (
    0.2  # root mean square of AdamW's updates; Muon's are scaled to it [Liu et al., 2025]
)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Approximately U V^T of each matrix U S V^T, in bf16, as the result is coarse.

    matrices: (batch, rows, columns) with rows <= columns.
    """
    a, b, c = NEWTON_SCHULZ
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()  # singular values <= 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates [Jordan et al., 2024], for tensors (..., rows, columns).

    Unlike torch.optim.Muon, this one takes stacks of matrices, such as the experts of a layer, and orthogonalises all
    matrices of one shape at once. Updates are as large as AdamW's, so that both take similar rates.
    """

    def __init__(self, params: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape = defaultdict(list)
            for parameter in group["params"]:
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                update = parameter.grad.lerp(momentum, MOMENTUM)
                stack = update.reshape(-1, *update.shape[-2:])
                tall = stack.shape[1] > stack.shape[2]
                stack = stack.mT if tall else stack
                same_shape[stack.shape[1:]].append((parameter, tall, stack))
            for shape, members in same_shape.items():
                size = ADAM_UPDATE_SIZE * math.sqrt(max(shape))
                updates = orthogonalise(torch.cat([stack for _, _, stack in members]))
                updates = updates.split([len(stack) for _, _, stack in members])
                for (parameter, tall, _), stack in zip(members, updates, strict=True):
                    update = (stack.mT if tall else stack).reshape(parameter.shape).to(parameter.dtype)
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * size)


class SGD(torch.optim.Optimizer):
    """SGD with momentum as torch's, and with AdamW's weight decay [SGDW, Loshchilov & Hutter, 2019].

    A step is b <- MOMENTUM b + gradient, p <- (1 - lr weight_decay) p - lr b.
    """

    def __init__(self, params: Sequence[dict[str, Any]]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.mul_(MOMENTUM).add_(parameter.grad)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(momentum, alpha=-group["lr"])


class OneRmsAdamW(torch.optim.Optimizer):
    """AdamW with one second moment for a tensor, the mean over the tensor's entries.

    AdamW divides each weight's step by that weight's own second moment, which makes all steps alike. Here large
    gradients make large steps, as under SGD, and the tensor as a whole moves as fast as under AdamW.
    """

    def __init__(self, params: Sequence[dict[str, Any]]) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                state, gradient = self.state[parameter], parameter.grad
                momentum = state.setdefault("momentum", torch.zeros_like(parameter))
                square = state.setdefault("square", parameter.new_zeros(()))
                state["step"] = state.get("step", 0) + 1
                momentum.lerp_(gradient, 1 - BETAS[0])
                square.lerp_(gradient.square().mean(), 1 - BETAS[1])
                first, second = (1 - beta ** state["step"] for beta in BETAS)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(momentum / first / ((square / second).sqrt() + EPSILON) * group["lr"])
