"""What is a transformers MoE model made of: which modules are experts, routers and dense, and what is never analog?

Structure decides. Fused experts are found by their 3-D parameters, experts in an `nn.ModuleList` by the router beside
the list. A linear layer is an `nn.Linear`. It is of the kind

- attention: in an attention module;
- mixer: in a module that mixes tokens in another way, with a convolution (Mamba, linear attention), or in an attention
  module of a layer that the config declares to be linear;
- shared_experts: beside the experts, or in a module whose name says "shared";
- lm_head, or dense_ffn: any other.

Never analog are embeddings, norms, biases; routers, and the gate of a shared expert; indexers, which choose what sparse
attention reads; and, as "other", whatever is no linear layer: convolutions, states, scales. Every parameter of the
model ends up in exactly one kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from realmodels.devices import weights_of
from realmodels.fused import FusedLayout, fused_layout
from theory.errors import InputError

DENSE_KINDS = ("attention", "mixer", "lm_head", "shared_experts", "dense_ffn")
NEVER_ANALOG_KINDS = ("embeddings", "norms and biases", "routers", "indexers", "other")
LINEAR_ATTENTION = ("linear_attention", "mamba", "conv")  # as configs call layers
ATTENTION = ("Attention", "MLA")  # in names of types
READ = "dt_proj"  # of Mamba, the linear layer whose weight is read, and which is never called
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@dataclass(frozen=True)
class MoELayer:
    """Names of the modules of one MoE layer, and how many experts it has.

    linears: for experts in an `nn.ModuleList`, the names of each expert's `nn.Linear` modules; empty for fused experts.
    layout: of fused experts.
    """

    experts: str
    router: str
    num_experts: int
    linears: tuple[tuple[str, ...], ...] = ()
    layout: FusedLayout = FusedLayout()  # noqa: RUF009, it is frozen

    @property
    def block(self) -> str:
        """Name of the module that holds the router and the experts, and calls them."""
        return self.experts.rpartition(".")[0]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that compute experts: one, or each expert's."""
        return tuple(f"{self.experts}.{number}" for number in range(len(self.linears))) or (self.experts,)

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the experts' weights."""
        if self.linears:
            return tuple(f"{linear}.weight" for expert in self.linears for linear in expert)
        return tuple(f"{self.experts}.{name}" for name in self.layout.weights)


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
    """The map of an undeployed model; InputError if it has no experts, or such as are not known."""
    layouts = {
        name: fused_layout(module) for name, module in network.named_modules() if _is_fused_experts(module)
    }
    classes = _router_classes(network)
    layers = tuple(
        layer
        for name, module in network.named_modules()
        if (layer := _moe_layer(network, name, module, layouts, classes))
    )
    if not layers:
        raise InputError(
            f"{type(network).__name__} has no fused experts (3-D gate_up_proj and down_proj) and no nn.ModuleList of"
            " experts with a router beside it: give a mixture-of-experts model such as OLMoE, as transformers 5"
            " loads it"
        )
    parts = _Parts.of(network, layers)
    dense: dict[str, list[str]] = {kind: [] for kind in DENSE_KINDS}
    never: dict[str, list[str]] = {kind: [] for kind in NEVER_ANALOG_KINDS}
    known = {weight for layer in layers for weight in layer.weights}
    never["norms and biases"] += [
        f"{name}.{bias}" for name, layout in layouts.items() for bias in layout.biases
    ]
    for name, module in network.named_modules():
        if _is_linear(module) and f"{name}.weight" not in known and (kind := parts.kind(name, module)):
            dense[kind].append(name)
            known.add(f"{name}.weight")
        elif isinstance(module, nn.Embedding):
            never["embeddings"].append(f"{name}.weight")
    known.update(name for names in never.values() for name in names)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name in known:
            continue
        if parameter.ndim > 1 and _below(name, tuple(layer.experts for layer in layers)):
            raise InputError(
                f"parameter {name} {tuple(parameter.shape)} is of an expert, and in no linear layer: this architecture"
                " is not supported"
            )
        never[parts.never_analog_kind(name, parameter)].append(name)
    return ModelMap(
        layers,
        {kind: tuple(names) for kind, names in dense.items()},
        {kind: tuple(names) for kind, names in never.items()},
    )


def router_rows(network: nn.Module, layer: MoELayer) -> Float[Tensor, "experts in"]:
    """The rows of router weights of the layer's experts, the last ones before the choice.

    Experts without weights, and shared ones, may have further rows.
    """
    router = network.get_submodule(layer.router)
    weights = [
        weight
        for module in router.modules()
        for weight in weights_of(module).values()
        if weight.ndim == 2 and weight.shape[0] >= layer.num_experts
    ]
    return weights[-1][: layer.num_experts]


@dataclass(frozen=True)
class _Parts:
    """Names of the modules that say what the linear layers below them are for.

    blocks: of experts, unless attention or a mixer is in them, too, as in a decoder layer.
    """

    head: nn.Module | None
    routers: tuple[str, ...]
    indexers: tuple[str, ...]
    attention: tuple[str, ...]
    mixers: tuple[str, ...]
    blocks: tuple[str, ...]

    @classmethod
    def of(cls, network: nn.Module, layers: tuple[MoELayer, ...]) -> "_Parts":
        linear = _linear_layers(network)
        modules = dict(network.named_modules())
        attention, mixers = list[str](), list[str]()
        for name, module in modules.items():
            attends = any(word in type(module).__name__ for word in ATTENTION)
            if (_below(name, linear) and attends) or any(
                isinstance(each, CONVOLUTIONS) for each in module.children()
            ):
                mixers.append(name)
            elif attends:
                attention.append(name)
        mixing = (*attention, *mixers)
        return cls(
            _output_embeddings(network),
            tuple(layer.router for layer in layers),
            tuple(name for name, module in modules.items() if "Indexer" in type(module).__name__),
            tuple(attention),
            tuple(mixers),
            tuple(
                layer.block for layer in layers if not any(_below(name, (layer.block,)) for name in mixing)
            ),
        )

    def kind(self, name: str, module: nn.Linear) -> str | None:
        """The kind of a linear layer; None for one that is never analog."""
        if self.never_analog_kind(f"{name}.weight", module.weight) in ("routers", "indexers"):
            return None
        if name.endswith(READ) and _below(name, self.mixers):
            return None
        if module is self.head:
            return "lm_head"
        if _below(name, self.attention):
            return "attention"
        if _below(name, self.mixers):
            return "mixer"
        shared = _below(name, self.blocks) or any(part.startswith("shared") for part in name.split("."))
        return "shared_experts" if shared else "dense_ffn"

    def never_analog_kind(self, name: str, parameter: Tensor) -> str:
        """The kind of a parameter that is in no layer of a dense kind."""
        block, _, part = name.rpartition(".")[0].rpartition(".")
        gates = block in self.blocks and parameter.shape[0] == 1 and "gate" in part
        if gates or _below(name, self.routers):
            return "routers"
        if _below(name, self.indexers):
            return "indexers"
        return "norms and biases" if parameter.ndim < 2 else "other"


def _linear_layers(network: nn.Module) -> tuple[str, ...]:
    """Names of the decoder layers that the config declares to mix tokens without attention over all of them."""
    config: Any = getattr(network, "config", None)
    text = config.get_text_config(decoder=True) if config is not None else None
    kinds = getattr(text, "layer_types", None) or ()
    return tuple(
        f"{name}.{number}"
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == len(kinds)
        for number, kind in enumerate(kinds)
        if kind in LINEAR_ATTENTION
    )


def _is_linear(module: nn.Module) -> bool:
    """True for an `nn.Linear`, or what computes as one: a subclass may compute something else."""
    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def _is_fused_experts(module: nn.Module) -> bool:
    """True if the module looks like fused experts (a 3-D `down_proj`); `fused_layout` then checks the layout."""
    own = dict(module.named_parameters(recurse=False))
    return "gate_proj" not in own and "down_proj" in own and own["down_proj"].ndim == 3


def _moe_layer(
    network: nn.Module,
    name: str,
    module: nn.Module,
    layouts: Mapping[str, FusedLayout],
    classes: tuple[type[nn.Module], ...],
) -> MoELayer | None:
    """The MoE layer of an experts module, None for any other module.

    classes: of routers, as the network declares them. The router is the sibling of such a class, else the one with one
        row of weights per expert.
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
    siblings = dict(network.get_submodule(block).named_children())
    siblings.pop(name.rpartition(".")[2])
    routers = _routers(siblings, num_experts, classes)
    if name not in layouts and not (routers and any(linears)):
        return None  # any other list of modules
    if len(routers) != 1:
        raise InputError(
            f"{block} has {len(routers)} candidates for the router of its {num_experts} experts: one is needed;"
            " this architecture is not supported"
        )
    if linears and any(each != shapes[0] for each in shapes):
        raise InputError(f"{name} holds experts of different shapes: this architecture is not supported")
    return MoELayer(name, f"{block}.{routers[0]}", num_experts, linears, layouts.get(name, FusedLayout()))


def _router_classes(network: nn.Module) -> tuple[type[nn.Module], ...]:
    """The classes that parts of the network declare to give router logits."""
    recorded = [getattr(module, "_can_record_outputs", None) or {} for module in network.modules()]
    declared = {getattr(each.get("router_logits"), "target_class", None) for each in recorded}
    return tuple(each for each in declared if each is not None)


def _routers(
    siblings: Mapping[str, nn.Module], experts: int, classes: tuple[type[nn.Module], ...]
) -> list[str]:
    """Names of the siblings of `experts` experts that may be their router."""
    declared = [name for name, module in siblings.items() if isinstance(module, classes)]
    return declared or [
        name
        for name, module in siblings.items()
        if isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.ndim == 2
        and weight.shape[0] == experts
        and not isinstance(module, nn.Embedding)
    ]


def _output_embeddings(network: nn.Module) -> nn.Module | None:
    getter = getattr(network, "get_output_embeddings", None)
    return getter() if getter else None


def _below(name: str, parents: tuple[str, ...]) -> bool:
    return any(name.startswith(parent + ".") for parent in parents)
