"""What is a transformers MoE model made of: which modules are experts, routers and dense, and what is never analog?

Structure decides. Fused experts are found by their 3-D parameters, experts in an `nn.ModuleList` by the router beside
the list, dense modules by where their `nn.Linear` layers are. Every parameter of the model ends up in exactly one
kind, or the model is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from realmodels.fused import FUSED_WEIGHTS, FusedLayout, fused_layout
from theory.errors import InputError

DENSE_KINDS = ("attention", "lm_head", "shared_experts", "dense_ffn")
NEVER_ANALOG_KINDS = ("embeddings", "norms and biases", "routers")


@dataclass(frozen=True)
class MoELayer:
    """Names of the modules of one MoE layer, and how many experts it has.

    linears: for experts in an `nn.ModuleList`, the names of each expert's `nn.Linear` modules; empty for fused experts.
    """

    experts: str
    router: str
    num_experts: int
    linears: tuple[tuple[str, ...], ...] = ()

    @property
    def block(self) -> str:
        """Name of the module that holds the router and the experts, and calls them."""
        return self.experts.rpartition(".")[0]

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the experts' weights."""
        if self.linears:
            return tuple(f"{linear}.weight" for expert in self.linears for linear in expert)
        return tuple(f"{self.experts}.{name}" for name in FUSED_WEIGHTS)


@dataclass(frozen=True)
class ModelMap:
    """Where the parts of a model are.

    moe_layers: in the order of the model.
    dense: the names of the `nn.Linear` modules of each kind.
    never_analog: the names of the parameters of each kind that no placement touches.
    """

    moe_layers: tuple[MoELayer, ...]
    dense: Mapping[str, tuple[str, ...]]
    never_analog: Mapping[str, tuple[str, ...]]

    @property
    def num_experts(self) -> tuple[int, ...]:
        return tuple(layer.num_experts for layer in self.moe_layers)

    @property
    def dense_kinds(self) -> tuple[str, ...]:
        """The kinds of dense modules that this model has."""
        return tuple(kind for kind, names in self.dense.items() if names)

    @cached_property
    def linears(self) -> tuple[str, ...]:
        return tuple(name for names in self.dense.values() for name in names)

    def resolve(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The `nn.Linear` modules that kinds ("attention") and names of modules stand for.

        InputError for a name that matches none: a placement must not be ignored in silence.
        """
        found: set[str] = set()
        for name in names:
            matches = self.dense.get(name) or [
                linear for linear in self.linears if linear == name or linear.startswith(name + ".")
            ]
            if not matches:
                kinds = ", ".join(kind for kind, linears in self.dense.items() if linears)
                raise InputError(
                    f"placement.analog_modules has {name!r}, which matches no dense module of this model; give"
                    f" one of {kinds}, or the name of an nn.Linear such as {self.linears[0]}"
                )
            found.update(matches)
        return tuple(linear for linear in self.linears if linear in found)


def describe(network: nn.Module) -> ModelMap:
    """The map of an undeployed model; InputError if it has no experts, or a part of no known kind."""
    layouts = {
        name: fused_layout(module) for name, module in network.named_modules() if _is_fused_experts(module)
    }
    layers = tuple(
        layer
        for name, module in network.named_modules()
        if (layer := _moe_layer(network, name, module, layouts))
    )
    if not layers:
        raise InputError(
            f"{type(network).__name__} has no fused experts (3-D gate_up_proj and down_proj) and no nn.ModuleList of"
            " experts with a router beside it: give a mixture-of-experts model such as OLMoE, as transformers 5"
            " loads it"
        )
    blocks = tuple(layer.block for layer in layers)
    attention = tuple(
        name for name, module in network.named_modules() if "Attention" in type(module).__name__
    )
    head = _output_embeddings(network)
    dense: dict[str, list[str]] = {kind: [] for kind in DENSE_KINDS}
    never: dict[str, list[str]] = {kind: [] for kind in NEVER_ANALOG_KINDS}
    known = {weight for layer in layers for weight in layer.weights}
    expert_biases = {f"{name}.{bias}" for name, layout in layouts.items() for bias in layout.biases}
    for layer in layers:
        never["routers"] += [
            f"{layer.router}.{name}" for name, _ in network.get_submodule(layer.router).named_parameters()
        ]
    routers = {layer.router for layer in layers}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and name not in routers and f"{name}.weight" not in known:
            if module is head:
                kind = "lm_head"
            elif _below(name, attention):
                kind = "attention"
            else:
                kind = "shared_experts" if _below(name, blocks) else "dense_ffn"
            dense[kind].append(name)
            known.add(f"{name}.weight")
        elif isinstance(module, nn.Embedding):
            never["embeddings"].append(f"{name}.weight")
    known.update(never["embeddings"], never["routers"])
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name in known:
            continue
        if parameter.ndim > 1 and name not in expert_biases:
            raise InputError(
                f"parameter {name} {tuple(parameter.shape)} belongs to no known kind (experts, router, attention, FFN,"
                " LM head, embedding, norm): this architecture is not supported"
            )
        never["norms and biases"].append(name)
    return ModelMap(
        layers,
        {kind: tuple(names) for kind, names in dense.items()},
        {kind: tuple(names) for kind, names in never.items()},
    )


def _is_fused_experts(module: nn.Module) -> bool:
    """True if the module looks like fused experts (a 3-D `down_proj`); `fused_layout` then checks the layout."""
    down = dict(module.named_parameters(recurse=False)).get("down_proj")
    return down is not None and down.ndim == 3


def _moe_layer(
    network: nn.Module, name: str, module: nn.Module, layouts: Mapping[str, FusedLayout]
) -> MoELayer | None:
    """The MoE layer of an experts module, None for any other module.

    The router is the sibling with one row of weights per expert.
    """
    linears: tuple[tuple[str, ...], ...] = ()
    if name in layouts:
        num_experts = module.get_parameter("down_proj").shape[0]
    elif isinstance(module, nn.ModuleList) and len(module) > 1:
        num_experts = len(module)
        parts = [
            {part: each for part, each in expert.named_modules() if isinstance(each, nn.Linear)}
            for expert in module
        ]
        linears = tuple(
            tuple(f"{name}.{number}.{part}".rstrip(".") for part in each) for number, each in enumerate(parts)
        )
        shapes = [{part: linear.weight.shape for part, linear in each.items()} for each in parts]
    else:
        return None
    block = name.rpartition(".")[0]
    routers = [
        f"{block}.{child}"
        for child, sibling in network.get_submodule(block).named_children()
        if isinstance(weight := getattr(sibling, "weight", None), torch.Tensor)
        and weight.ndim == 2
        and weight.shape[0] == num_experts
        and not isinstance(sibling, nn.Embedding)
    ]
    if name not in layouts and not (routers and any(linears)):
        return None  # any other list of modules
    if len(routers) != 1:
        raise InputError(
            f"{block} has {len(routers)} candidates for the router of its {num_experts} experts: one is needed;"
            " this architecture is not supported"
        )
    if linears and any(each != shapes[0] for each in shapes):
        raise InputError(f"{name} holds experts of different shapes: this architecture is not supported")
    return MoELayer(name, routers[0], num_experts, linears)


def _output_embeddings(network: nn.Module) -> nn.Module | None:
    getter = getattr(network, "get_output_embeddings", None)
    return getter() if getter else None


def _below(name: str, parents: tuple[str, ...]) -> bool:
    return any(name.startswith(parent + ".") for parent in parents)
