"""How does a dense Llama become a mixture of experts that at first computes the same?

Each FFN is copied, each copy is cut into experts, and a token uses as many experts as a copy has. The rows of the
router are equal within a copy, so that a copy is chosen whole. The weights of the chosen experts add up to one: each is
1/used, so down projections are multiplied by `used`. This is upcycling [Komatsuzaki et al., 2023] with fine-grained
experts [He et al., 2024]. Shared experts are neurons that are not copied.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from realmodels.deepseek_moe import DeepseekConfig, DeepseekForCausalLM
from realmodels.pretrain.training import cast_parameters, decoder_layer, embed
from realmodels.upcycle.recipe import Recipe
from theory.errors import InputError

LARGEST_ROUNDS: Final = 10  # of balanced k-means; it stops as soon as no neuron moves
# Entries of the config that both models have.
SAME: Final = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
# Purposes of a seed's generators.
ROUTER, GROUPS, NOISE = range(3)


@torch.no_grad()
def convert(
    dense: LlamaForCausalLM, recipe: Recipe, blocks: Int[Tensor, "blocks context"]
) -> MixtralForCausalLM | DeepseekForCausalLM:
    """The mixture of experts, on the CPU in the dense model's dtype.

    It computes what the dense model does if both perturbations of the recipe are 0.
    blocks: tokens of calibration text, on which router logits have mean 0 and, in each copy, standard deviation 1.
    InputError for another model than a Llama, or one with biases, whose FFNs cannot be cut, or with too few layers.
    """
    config = dense.config
    if config.model_type != "llama":
        raise InputError(f"the dense model is a {config.model_type}: give a llama")
    if config.attention_bias or config.mlp_bias:
        raise InputError("the dense model has biases, which mixtures here have not: give one without")
    if recipe.dense_layers >= config.num_hidden_layers:
        raise InputError(
            f"recipe.dense_layers is {recipe.dense_layers}: the dense model has {config.num_hidden_layers} layers;"
            " give fewer"
        )
    network = _empty(config, recipe)
    cast_parameters(network, dense.dtype)
    own = dict(network.named_parameters())
    for name, weight in dense.named_parameters():
        if name in own:  # all but the FFNs that become experts
            own.pop(name).copy_(weight)
    for number, (inputs, layer) in enumerate(_ffn_inputs(dense, blocks)):
        if number < recipe.dense_layers:
            continue
        shared, groups = neuron_groups(inputs, layer.mlp, recipe, number)
        name = f"model.layers.{number}.mlp."
        gate, up, down = (
            each.weight for each in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj)
        )
        for projection, weight in (("gate", gate[shared]), ("up", up[shared]), ("down", down[:, shared])):
            if len(shared):
                own.pop(f"{name}shared_experts.{projection}_proj.weight").copy_(weight)
        noise = _generator(recipe, NOISE, number)
        own.pop(f"{name}gate.weight").copy_(_router(inputs, recipe, number))
        fused_up = torch.cat([gate[groups], up[groups]], 1)
        fused_down = down.T[groups].mT * recipe.used
        for tensor, slices in (("gate_up_proj", fused_up), ("down_proj", fused_down)):
            fused = slices.float().cpu().repeat(recipe.copies, 1, 1)
            fused += recipe.weight_perturbation * fused.std() * torch.randn(fused.shape, generator=noise)
            own.pop(f"{name}experts.{tensor}").copy_(fused)
    assert not own, f"nothing was written to {sorted(own)}"
    return network


def _empty(dense: Any, recipe: Recipe) -> MixtralForCausalLM | DeepseekForCausalLM:
    """The mixture of experts with other weights. dense: the dense model's config."""
    same: dict[str, Any] = {name: getattr(dense, name) for name in SAME}
    same["num_experts_per_tok"] = recipe.used
    width = recipe.expert_width(dense.intermediate_size)
    if not recipe.shared_experts:
        config = MixtralConfig(
            **same,
            intermediate_size=width,
            num_local_experts=recipe.experts,
            sliding_window=None,
            output_router_logits=False,
        )
        return MixtralForCausalLM(config)
    return DeepseekForCausalLM(
        DeepseekConfig(
            **same,
            intermediate_size=dense.intermediate_size,
            moe_intermediate_size=width,
            n_routed_experts=recipe.experts,
            n_shared_experts=recipe.shared_experts,
            first_k_dense_replace=recipe.dense_layers,
            norm_topk_prob=True,
        )
    )


def _ffn_inputs(
    dense: LlamaForCausalLM, blocks: Int[Tensor, "blocks context"]
) -> Iterator[tuple[Float[Tensor, "tokens hidden"], Any]]:
    """For each layer the inputs of its FFN in fp32 on the CPU, and the layer."""
    hidden, rotation = embed(dense, blocks.to(dense.device))
    for layer in dense.model.layers:
        seen: list[Tensor] = []
        handle = layer.mlp.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        hidden, _ = decoder_layer(layer, hidden, rotation)
        handle.remove()
        yield seen[0].float().cpu(), layer


def _router(
    inputs: Float[Tensor, "tokens hidden"], recipe: Recipe, layer: int
) -> Float[Tensor, "experts hidden"]:
    """A random row for each copy, plus a smaller one for each of its experts."""
    generator = _generator(recipe, ROUTER, layer)
    copies, experts = (_rows(inputs, count, generator) for count in (recipe.copies, recipe.experts))
    return copies.repeat_interleave(recipe.used, 0) + recipe.router_perturbation * experts


def _rows(
    inputs: Float[Tensor, "tokens hidden"], count: int, generator: torch.Generator
) -> Float[Tensor, "count hidden"]:
    """Random rows whose products with the inputs have mean 0 and standard deviation 1.

    Hidden states share a large mean, by which otherwise a few experts would be chosen for all tokens.
    """
    rows = torch.randn(count, inputs.shape[1], generator=generator)
    mean = inputs.mean(0)
    rows -= torch.outer(rows @ mean, mean) / mean.square().sum()
    return rows / (inputs @ rows.T).std(0)[:, None]


def neuron_groups(
    inputs: Float[Tensor, "tokens hidden"], ffn: Any, recipe: Recipe, layer: int
) -> tuple[Int[Tensor, " shared"], Int[Tensor, "used width"]]:
    """The neurons of an FFN that are shared, and which of the others share an expert."""
    gate, up, down = (each.weight.float().cpu() for each in (ffn.gate_proj, ffn.up_proj, ffn.down_proj))
    activity = ffn.act_fn(F.linear(inputs, gate)) * F.linear(inputs, up)
    # The mean square of what a neuron adds to the output.
    added = activity.square().mean(0) * down.square().sum(0)
    width = recipe.expert_width(len(gate))
    shared, others = added.argsort(descending=True).split(
        [recipe.shared_experts * width, recipe.used * width]
    )
    others, generator = others.sort().values, _generator(recipe, GROUPS, layer)
    if recipe.construction == "random":
        return shared, others[torch.randperm(len(others), generator=generator)].view(recipe.used, -1)
    return shared, others[balanced_clusters(activity[:, others].abs().T, recipe.used, generator)]


def balanced_clusters(
    activity: Float[Tensor, "neurons tokens"], clusters: int, generator: torch.Generator
) -> Int[Tensor, "clusters width"]:
    """Neurons in clusters of equal size, such that those of a cluster are active on the same tokens.

    k-means on the cosine between the neurons' activities, where each round assigns all neurons optimally
    [Malinen & Franti, 2014], as MoEfication does [Zhang et al., 2022].
    """
    rows = F.normalize(activity - activity.mean(1, keepdim=True))
    similarity = (rows @ rows.T).double().numpy()  # enough: centres are sums of rows
    neurons = len(rows)
    width = neurons // clusters
    members = torch.randperm(neurons, generator=generator).view(clusters, width).numpy()
    for _ in range(LARGEST_ROUNDS):
        to_centre = np.stack([similarity[:, each].sum(1) for each in members], 1)
        to_centre /= np.sqrt([similarity[np.ix_(each, each)].sum() for each in members])
        _, seat = linear_sum_assignment(np.repeat(to_centre, width, axis=1), maximize=True)
        found = np.argsort(seat // width, kind="stable").reshape(clusters, width)
        if (found == members).all():
            break
        members = found
    return torch.from_numpy(members)


def max_neuron_spread(scores: Float[Tensor, "layers experts"], recipe: Recipe) -> Mapping[str, float]:
    """Relative standard deviation of MaxNNScore, averaged over layers; 0 among a single one.

    copies: among the copies of a slice, averaged over slices, too. slices: among the means of slices over copies.
    """
    cut = scores.double().unflatten(1, (recipe.copies, recipe.used))
    slices = cut.mean(1)

    def spread(values: Tensor) -> float:
        return (values.std(1) / values.mean(1)).mean().item() if values.shape[1] > 1 else 0.0

    return {"copies": spread(cut), "slices": spread(slices)}


def _generator(recipe: Recipe, purpose: int, number: int) -> torch.Generator:
    seed = np.random.SeedSequence((recipe.seed, purpose, number)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)
