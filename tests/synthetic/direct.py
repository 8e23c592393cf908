"""What must the batched model equal? The mixture of experts written out: one input, expert and token at a time."""

import torch
from torch import Tensor

from synthetic.model import ModelConfig, MoE

# Relative and absolute: sums of some hundred float64 terms of order one, and a few steps of training.
ROUNDING = 1e-10


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Assert that two tensors are equal but for rounding."""
    torch.testing.assert_close(actual, expected, rtol=ROUNDING, atol=ROUNDING)


def direct_forward(model: MoE, seed: int, inputs: Tensor) -> Tensor:
    """The outputs f(X) of one training seed for inputs (N, n), from token vectors, differentiable in all parameters."""
    return torch.stack([_output(model, seed, tokens) for tokens in inputs.tolist()])


def direct_expert(config: ModelConfig, expert: int, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The output of one expert, of weights (out, in), on the token vector x (d,), with the expert's fixed sign."""
    total = x.new_zeros(())
    for neuron in range(config.m):
        received = weights["up"][neuron] @ x
        if config.expert == "gated":
            gate = weights["gate"][neuron] @ x
            sent = gate / (1 + (-gate).exp()) * received
        else:
            sent = received if received > 0 else 0 * received
        scale = int(config.signs[expert]) if config.expert == "one_layer" else weights["down"][0, neuron]
        total = total + scale * sent / config.m
    return total


def _output(model: MoE, seed: int, tokens: list[int]) -> Tensor:
    config, router = model.config, model.router[seed]
    vectors = [model.tokens[seed, token] for token in tokens]
    scores = [[row @ x for x in vectors] for row in router]  # by expert and position
    experts, positions = range(config.experts), range(len(tokens))
    if config.routing == "expert_choice":
        chosen = [(s, p) for s in experts for p in _best([scores[s][p] for p in positions], config.selected)]
    else:
        chosen = [(s, p) for p in positions for s in _best([scores[s][p] for s in experts], config.selected)]
    total = vectors[0].new_zeros(())
    for s, p in chosen:
        # The rivals in the softmax: positions of the same expert, or experts of the same position.
        same = [
            pair for pair in chosen if (pair[0] == s if config.routing == "expert_choice" else pair[1] == p)
        ]
        largest = max(scores[i][j].item() for i, j in same)
        gate = (scores[s][p] - largest).exp() / sum((scores[i][j] - largest).exp() for i, j in same)
        weights = {name: weight[seed, s] for name, weight in model.weights.items()}
        total = total + gate * direct_expert(config, s, weights, vectors[p])
    return total


def _best(scores: list[Tensor], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: -scores[index].item())[:count]
