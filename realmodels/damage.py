"""What is programming noise on each expert or dense module expected to cost a model, in closed form [docs/theory.md]?

For experts (D) this is the fast form of `theory.damage.expected_damage`: all fused experts of a layer at once, on the
text that the router sends them. It needs one forward pass, and one backward pass for the form that knows the loss. An
expert without a gate has one matrix before its activation, which is what (D) says with one slope instead of two.

Dense modules (D-dense) are linear layers. Damages in nats can be compared, and add up while they are small (D-sum).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from realmodels.devices import weights_of
from realmodels.families import MoELayer
from realmodels.fused import apply_gate, fused_layout, grouped_matmul
from realmodels.model import Model, require_model
from realmodels.record import Call, Hook, calibration_tokens, hooked, record
from theory.damage import linear_damage, product_variance
from theory.errors import InputError
from theory.hardware import Hardware, programming_sigma, require_hardware


@torch.inference_mode(False)  # slopes are gradients, in whatever mode the caller is
def expected_damage(
    model: Model, texts: Sequence[str], hardware: Hardware, *, gradient: bool = False
) -> Float[Tensor, "layers experts"]:
    """Expected damage of each expert, a mean over tokens of `texts`: scores for `theory.placement.rank`.

    The tokens are `record.calibration_tokens`. The result is fp64 on the CPU.

    gradient: True for what the noise adds to the loss, in nats per token; False for the squared error of the layer's
        output.
    InputError if the model is deployed, or if experts in an `nn.ModuleList` are more than linear layers that read the
    expert's inputs, an elementwise function of their outputs, and a linear layer.
    """
    require_model(model)
    require_hardware(hardware)
    model.require_digital()
    tokens = calibration_tokens(model, texts)
    layers = model.map.moe_layers
    names = [name for layer in layers for name in layer.modules]
    calls = record(model, names, tokens, gradient=gradient)
    weights = {} if gradient else _routing_weights(model, tokens)
    damages = []
    for layer in layers:
        if layer.linears:
            each = [
                _of_list(model, layer, expert, calls, weights, hardware)
                for expert in range(layer.num_experts)
            ]
            damages.append(torch.stack(each))
            continue
        experts = model.network.get_submodule(layer.experts)
        damages.append(torch.stack([_fused(experts, call, hardware) for call in calls[layer.experts]]).sum(0))
    return torch.stack([each.cpu() for each in damages]) / tokens[:, 1:].numel()


@torch.inference_mode(False)
def dense_damage(model: Model, texts: Sequence[str], hardware: Hardware) -> dict[str, float]:
    """What noise on each dense linear layer is expected to add to the loss, by name, in nats per token of `texts`.

    It is to be compared with, or added to, `expected_damage(..., gradient=True)`, which reads the same tokens. Squared
    errors could not be: dense layers have different outputs. A layer on which the loss does not depend has 0.
    InputError if the model is deployed.
    """
    require_model(model)
    require_hardware(hardware)
    model.require_digital()
    tokens = calibration_tokens(model, texts)

    def weigh(linear: nn.Module, inputs: tuple[Tensor, ...], gradient: Tensor) -> float:
        rows, slopes = (each.flatten(0, -2).float() for each in (inputs[0], gradient))
        return float(linear_damage(rows, weights_of(linear)["weight"], hardware, slopes))

    calls = record(model, model.map.linears, tokens, weigh=weigh)
    return {
        name: sum(call.seen or 0.0 for call in calls.get(name, ())) / tokens[:, 1:].numel()
        for name in model.map.linears
    }


def _fused(experts: nn.Module, call: Call, hardware: Hardware) -> Float[Tensor, " experts"]:
    """Expected damage of each expert, summed over the tokens of a call."""
    layout = fused_layout(experts)
    first, _ = layout.weights
    own_weights = {name: each.float() for name, each in weights_of(experts).items()}
    into, down = (layout.matrices(name, own_weights[name]) for name in layout.weights)
    routing = layout.routing(call.inputs, len(down))
    pairs = routing.by_expert(len(down))
    rows = routing.hidden.float()[pairs.token]
    with torch.enable_grad():
        before = grouped_matmul(rows, into.flatten(1, 2), pairs.ends)
        if layout.biased:
            bias = own_weights[f"{first}_bias"]
            before = before + (layout.gate_then_up(bias) if layout.gated else bias)[pairs.expert]
        before.requires_grad_()
        inner = apply_gate(experts, layout.stored_order(before) if layout.gated else before)
        (slopes,) = torch.autograd.grad(inner.sum(), before)  # inner j depends on gate j and up j alone
    own = None
    if call.gradient is not None:
        own = call.gradient.reshape(len(routing.hidden), -1)[pairs.token] * pairs.weight[:, None]
    each = _damage(rows, into, slopes, inner, down.squeeze(1), pairs.ends, own, hardware)
    if own is None:
        each *= pairs.weight.double().square()
    return each.new_zeros(len(down)).index_add_(0, pairs.expert, each)


@torch.no_grad()
def _damage(
    rows: Float[Tensor, "rows in"],
    into: Float[Tensor, "experts matrices inner in"],
    slopes: Float[Tensor, "rows matrices_inner"],
    inner: Float[Tensor, "rows inner"],
    down: Float[Tensor, "experts out inner"],
    ends: Int[Tensor, " experts"],
    own: Float[Tensor, "rows out"] | None,
    hardware: Hardware,
) -> Float[Tensor, " rows"]:
    """Expected damage of each row, which reads the expert whose rows end next, without its routing weight.

    into: the matrices before the activation, whose outputs `inner` depends on with the slopes `slopes`.
    own: gradient of the loss at the row's output; None for the squared error.
    """
    sigma, sigma_down = (programming_sigma(each, hardware) for each in (into, down))
    received = grouped_matmul(rows.square(), sigma.flatten(1, 2).square(), ends)
    variance = (slopes.square() * received).unflatten(1, (into.shape[1], -1)).sum(1)
    if own is None:
        expert = torch.searchsorted(ends, torch.arange(len(rows), device=rows.device), right=True)
        weight, noise = (each.square().sum(1).sqrt()[expert] for each in (down, sigma_down))
    else:
        weight = grouped_matmul(own.float(), down.mT.contiguous(), ends)
        noise = grouped_matmul(own.float().square(), sigma_down.square().mT.contiguous(), ends).sqrt()
    each = product_variance(weight, noise, inner, variance).double().sum(1)
    return each if own is None else each / 2


def _of_list(
    model: Model,
    layer: MoELayer,
    expert: int,
    calls: Mapping[str, list[Call]],
    weights: Mapping[str, list[Tensor]],
    hardware: Hardware,
) -> Float[Tensor, ""]:
    """Expected damage of one expert of an `nn.ModuleList`, summed over tokens.

    weights: routing weights of the rows of each call, unless calls have gradients, which contain them.
    """
    name = f"{layer.experts}.{expert}"
    module = model.network.get_submodule(name)
    linears = {each: model.network.get_submodule(each) for each in layer.linears[expert]}
    total = torch.zeros((), dtype=torch.float64)
    for number, call in enumerate(calls.get(name, [])):
        rows = call.inputs[0].flatten(0, -2)
        read, made = dict[str, Tensor](), dict[str, Tensor]()
        with torch.enable_grad(), hooked(model.network, {each: _leaf(each, read, made) for each in linears}):
            module(rows)
            *first, last = made
            inner = read[last]
            if (
                not first
                or any(not torch.equal(read[each], rows) for each in first)
                or len(made) < len(linears)
            ):
                raise InputError(
                    f"{name} of {model.name} is no expert that expected_damage knows: linear layers that read its"
                    " inputs, an elementwise function of their outputs, and one linear layer; rank experts by maxnn"
                )
            slopes = torch.autograd.grad(inner.sum(), [made[each] for each in first])
        matrices = {each: weights_of(linear)["weight"].float() for each, linear in linears.items()}
        own = None if call.gradient is None else call.gradient.flatten(0, -2)
        into = torch.stack([matrices[each] for each in first])[None]
        ends = torch.tensor([len(rows)], dtype=torch.int32, device=rows.device)
        both = torch.cat(slopes, -1).float()
        each = _damage(
            rows.float(), into, both, inner.detach().float(), matrices[last][None], ends, own, hardware
        )
        if own is None:
            each *= weights[name][number].to(each.device).square()
        total += each.sum().cpu()
    return total


def _leaf(name: str, read: dict[str, Tensor], made: dict[str, Tensor]) -> Hook:
    """Keeps what the linear layer reads, and what it makes, of which the gradient is wanted."""

    def keep(_: nn.Module, given: tuple[Any, ...], __: dict[str, Any], output: Tensor) -> Tensor:
        read[name], made[name] = given[0], output.detach().requires_grad_()
        return made[name]

    return keep


def _routing_weights(model: Model, tokens: Int[Tensor, "blocks tokens_plus_1"]) -> dict[str, list[Tensor]]:
    """The routing weights of the rows of every call of an expert in an `nn.ModuleList`, fp64.

    A block is linear in the outputs of its experts: its slope there is the routing weight.
    """
    leaves: dict[str, list[Tensor]] = {}
    found: dict[str, list[Tensor]] = {}

    def answer(name: str) -> Hook:
        def keep(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Tensor) -> Tensor:
            leaves.setdefault(name, []).append(output.detach().requires_grad_())
            return leaves[name][-1]

        return keep

    def collect(_: nn.Module, __: tuple[Any, ...], ___: dict[str, Any], output: Any) -> Any:
        result = output if isinstance(output, Tensor) else output[0]
        for name, each in leaves.items():
            slopes = torch.autograd.grad(result[..., 0].sum(), each, retain_graph=True)
            found.setdefault(name, []).extend(
                slope[..., 0].flatten().double() for slope in slopes if slope.numel()
            )
        leaves.clear()
        return output

    lists = [layer for layer in model.map.moe_layers if layer.linears]
    hooks = {name: answer(name) for layer in lists for name in layer.modules}
    if not lists:
        return found
    with torch.enable_grad(), hooked(model.network, hooks | {layer.block: collect for layer in lists}):
        model.network(input_ids=tokens[:, :-1], use_cache=False)
    return found
