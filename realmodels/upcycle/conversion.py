"""How does a dense Llama become a mixture of experts that at first computes the same?

Each FFN is copied, each copy is cut into experts, and a token uses as many experts as a copy has. The rows of the
router are equal within a copy, so that a copy is chosen whole. Mixtral makes the weights of the chosen experts add up
to one: each is 1/slices, so down projections are multiplied by `slices`. This is upcycling [Komatsuzaki et al., 2023]
with fine-grained experts [He et al., 2024].
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
) -> MixtralForCausalLM:
    """The mixture of experts, on the CPU in the dense model's dtype.

    It computes what the dense model does if both perturbations of the recipe are 0.
    blocks: tokens of calibration text, on which router logits have mean 0 and, in each copy, standard deviation 1.
    InputError for a Llama with biases, or whose FFNs cannot be cut.
    """
    config = dense.config
    if config.attention_bias or config.mlp_bias:
        raise InputError("the dense model has biases, which Mixtral has not: give one without")
    network = MixtralForCausalLM(_config(config, recipe))
    cast_parameters(network, dense.dtype)
    own = dict(network.named_parameters())
    for name, weight in dense.named_parameters():
        if ".mlp." not in name:
            own.pop(name).copy_(weight)
    for number, (inputs, layer) in enumerate(_ffn_inputs(dense, blocks)):
        groups = neuron_groups(inputs, layer.mlp, recipe, number)
        name = f"model.layers.{number}.mlp."
        gate, up = (each.weight[groups] for each in (layer.mlp.gate_proj, layer.mlp.up_proj))
        down = layer.mlp.down_proj.weight.T[groups].mT * recipe.slices
        noise = _generator(recipe, NOISE, number)
        own.pop(f"{name}gate.weight").copy_(_router(inputs, recipe, number))
        for tensor, slices in (("gate_up_proj", torch.cat([gate, up], 1)), ("down_proj", down)):
            fused = slices.float().cpu().repeat(recipe.copies, 1, 1)
            fused += recipe.weight_perturbation * fused.std() * torch.randn(fused.shape, generator=noise)
            own.pop(f"{name}experts.{tensor}").copy_(fused)
    assert not own, f"nothing was written to {sorted(own)}"
    return network


def _config(dense: Any, recipe: Recipe) -> MixtralConfig:
    return MixtralConfig(
        **{name: getattr(dense, name) for name in SAME},
        intermediate_size=recipe.expert_width(dense.intermediate_size),
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.slices,
        sliding_window=None,
        output_router_logits=False,
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
    return copies.repeat_interleave(recipe.slices, 0) + recipe.router_perturbation * experts


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
) -> Int[Tensor, "slices width"]:
    """Which neurons of an FFN share an expert."""
    weights = [each.weight.float().cpu() for each in (ffn.gate_proj, ffn.up_proj)]
    neurons, generator = len(weights[0]), _generator(recipe, GROUPS, layer)
    if recipe.construction == "random":
        return torch.randperm(neurons, generator=generator).view(recipe.slices, -1)
    gate, up = (F.linear(inputs, weight) for weight in weights)
    return balanced_clusters((ffn.act_fn(gate) * up).abs().T, recipe.slices, generator)


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
    """Relative standard deviation of MaxNNScore, averaged over layers.

    copies: among the copies of a slice, averaged over slices, too. slices: among the means of slices over copies.
    """
    cut = scores.double().unflatten(1, (recipe.copies, recipe.slices))
    slices = cut.mean(1)
    return {
        "copies": (cut.std(1) / slices).mean().item(),
        "slices": (slices.std(1) / slices.mean(1)).mean().item(),
    }


def _generator(recipe: Recipe, purpose: int, number: int) -> torch.Generator:
    seed = np.random.SeedSequence((recipe.seed, purpose, number)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)
