"""What is programming noise on each expert expected to cost a model, in closed form [(D), docs/theory.md]?

This is the fast form of `theory.damage.expected_damage`: all experts of a layer at once, on the text that the router
sends them. It needs one forward pass, and one backward pass for the form that knows the loss.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from realmodels.devices import weights_of
from realmodels.fused import apply_gate, fused_layout, grouped_matmul
from realmodels.model import Model
from realmodels.record import Call, calibration_tokens, record
from theory.damage import product_variance
from theory.errors import InputError
from theory.hardware import Hardware, programming_sigma


@torch.inference_mode(False)  # slopes are gradients, in whatever mode the caller is
def expected_damage(
    model: Model, texts: Sequence[str], hardware: Hardware, *, gradient: bool = False
) -> Float[Tensor, "layers experts"]:
    """Expected damage of each expert, a mean over tokens of `texts`: scores for `theory.placement.rank`.

    The tokens are `record.calibration_tokens`. The result is fp64 on the CPU.

    gradient: True for what the noise adds to the loss, in nats per token; False for the squared error of the layer's
        output.
    InputError if the model is deployed or its experts are not fused.
    """
    model.require_digital()
    if any(layer.linears for layer in model.map.moe_layers):
        raise InputError(f"{model.name} has experts in an nn.ModuleList: expected_damage takes fused ones")
    tokens = calibration_tokens(model, texts)
    names = [layer.experts for layer in model.map.moe_layers]
    calls = record(model, names, tokens, gradient=gradient)
    damages = [
        torch.stack([_layer(model.network.get_submodule(name), call, hardware) for call in calls[name]])
        for name in names
    ]
    return torch.stack([each.sum(0).cpu() for each in damages]) / tokens[:, 1:].numel()


def _layer(experts: nn.Module, call: Call, hardware: Hardware) -> Float[Tensor, " experts"]:
    """Expected damage of each expert, summed over the tokens of a call."""
    layout = fused_layout(experts)
    first, _ = layout.weights
    own_weights = {name: each.float() for name, each in weights_of(experts).items()}
    into, down = (layout.matrices(name, own_weights[name]) for name in layout.weights)
    down = down.squeeze(1)
    routing = layout.routing(call.inputs, len(down))
    expert, token, routing_weight, ends = routing.by_expert(len(down))
    rows = routing.hidden.float()[token]
    with torch.enable_grad():
        before = grouped_matmul(rows, into.flatten(1, 2), ends)
        if layout.biased:
            bias = own_weights[f"{first}_bias"]
            before = before + (layout.gate_then_up(bias) if layout.gated else bias)[expert]
        before.requires_grad_()
        inner = apply_gate(experts, layout.stored_order(before) if layout.gated else before)
        (slopes,) = torch.autograd.grad(inner.sum(), before)  # inner j depends on gate j and up j alone
    with torch.no_grad():
        sigma = programming_sigma(into, hardware).flatten(1, 2)
        received = grouped_matmul(rows.square(), sigma.square(), ends)
        variance = (slopes.square() * received).unflatten(1, (into.shape[1], -1)).sum(1)
        sigma_down = programming_sigma(down, hardware)
        if call.gradient is None:
            weight, noise = (each.square().sum(1).sqrt()[expert] for each in (down, sigma_down))
        else:
            own = call.gradient.reshape(len(routing.hidden), -1).float()[token]
            weight = grouped_matmul(own, down.mT.contiguous(), ends)
            noise = grouped_matmul(own.square(), sigma_down.square().mT.contiguous(), ends).sqrt()
        each = product_variance(weight, noise, inner, variance).double().sum(1)
        each *= routing_weight.double().square()
        total = each.new_zeros(len(down)).index_add_(0, expert, each)
    return total if call.gradient is None else total / 2
