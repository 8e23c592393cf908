"""How does a broken-apart mixture of experts learn to answer as the dense model does?

The loss is the KL divergence of the dense model's next-token distribution from the mixture's, in nats per token, plus
`balance` times the load-balancing losses of the layers. On a GPU the models are in bf16, with fp32 masters for AdamW.
On several GPUs each takes its share of the passes of a step, and gradients are summed.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from realmodels.pretrain.optimisers import BETAS
from realmodels.pretrain.processes import Group
from realmodels.pretrain.runs import alone_in, proceed, require_finite, save_finished
from realmodels.pretrain.training import (
    LARGEST_GRADIENT_NORM,
    Masters,
    cast_parameters,
    layer_pass,
    require_same_text,
    through,
)
from realmodels.upcycle.recipe import FILE, Recipe
from theory.errors import InputError

TOKENS_PER_CHUNK: Final = 4096  # whose logits exist at once
HELD_OUT_BLOCKS: Final = 32  # the last ones, which are not trained on
STEPS_PER_ENTRY: Final = 20


def divergence(
    logits: Float[Tensor, "tokens vocabulary"], target: Float[Tensor, "tokens vocabulary"]
) -> tuple[Tensor, Tensor]:
    """Sum over tokens of KL(target || logits) in nats, fp32, and its gradient at the logits, in their dtype."""
    own, wanted = logits.float().log_softmax(-1), target.float().log_softmax(-1)
    probabilities = wanted.exp()
    slope = own.exp() - probabilities
    return (probabilities * (wanted - own)).sum(), slope.to(logits.dtype)


class HeadDivergence(torch.autograd.Function):
    """Mean KL divergence of two heads' logits, of which only a chunk exists at a time.

    The gradient at a chunk's logits is known with its loss, so that nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, target: Tensor, target_head: Tensor, loss: Callable[..., Any]
    ) -> Tensor:
        """hidden, target: (tokens, hidden). head, target_head: (vocabulary, hidden). loss: as `divergence`."""
        total = torch.zeros((), device=hidden.device)
        at_hidden, at_head = torch.empty_like(hidden), torch.zeros_like(head, dtype=torch.float32)
        for start in range(0, len(hidden), TOKENS_PER_CHUNK):
            chunk = slice(start, start + TOKENS_PER_CHUNK)
            nats, slope = loss(F.linear(hidden[chunk], head), F.linear(target[chunk], target_head))
            total += nats
            at_hidden[chunk] = slope @ head
            at_head += slope.T @ hidden[chunk]
        ctx.save_for_backward(at_hidden, at_head)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        at_hidden, at_head = ctx.saved_tensors
        scale = gradient / len(at_hidden)
        return (
            (at_hidden * scale).to(at_hidden.dtype),
            (at_head * scale).to(at_hidden.dtype),
            None,
            None,
            None,
        )


class Pass(NamedTuple):
    """What a pass over some blocks gives.

    divergence: in nats per token. balance: sum of the layers' load-balancing losses. load: (layers, experts), rows add
    up to one.
    """

    divergence: Tensor
    balance: Tensor
    load: Tensor


class Distillation:
    """The two models and what a pass computes with them. Layers are compiled alone: one compilation serves all."""

    def __init__(self, dense: LlamaForCausalLM, network: PreTrainedModel, compiled: bool) -> None:
        self.dense: Any = dense.requires_grad_(False)
        self.network: Any = network
        wrap: Callable[..., Any] = torch.compile if compiled else lambda function: function
        self.layer, self.loss = wrap(layer_pass), wrap(divergence)

    def __call__(self, tokens: Int[Tensor, "blocks context"]) -> Pass:
        with torch.no_grad():
            target = self.dense.model.norm(through(self.dense, tokens, self.layer)[0])
        hidden, balances, loads = through(self.network, tokens, self.layer)
        mean = HeadDivergence.apply(
            self.network.model.norm(hidden).flatten(0, 1),
            self.network.lm_head.weight,
            target.flatten(0, 1),
            self.dense.lm_head.weight,
            self.loss,
        )
        return Pass(mean, torch.stack(balances).sum(), torch.stack(loads).detach())

    @torch.no_grad()
    def measure(self, blocks: Int[Tensor, "blocks context"], blocks_per_pass: int) -> Pass:
        """The means over all blocks."""
        parts = [(len(part), self(part)) for part in blocks.split(blocks_per_pass)]
        columns = zip(*(each for _, each in parts), strict=True)
        shares = torch.tensor([count for count, _ in parts], device=blocks.device) / len(blocks)
        return Pass(*(torch.tensordot(shares, torch.stack(column), 1) for column in columns))


def shares(load: Float[Tensor, "layers experts"]) -> tuple[float, float]:
    """The smallest and the largest load of an expert, relative to the fair one."""
    return load.min().item() * load.shape[1], load.max().item() * load.shape[1]


class Healing:
    """The state of a run. Masters, gradients and moments are one flat fp32 tensor each."""

    def __init__(
        self,
        recipe: Recipe,
        dense: LlamaForCausalLM,
        network: PreTrainedModel,
        blocks: UInt16[np.ndarray, "blocks context"],
        group: Group,
        compiled: bool,
    ) -> None:
        group.require_shares(recipe.batch_tokens // recipe.micro_tokens, "batch_tokens / micro_tokens")
        if len(blocks) <= HELD_OUT_BLOCKS + recipe.batch_tokens // recipe.context:
            raise InputError(
                f"there are {len(blocks)} blocks: generate more than {HELD_OUT_BLOCKS} beyond those of one step"
            )
        self.recipe, self.step, self.group, self.device = recipe, 0, group, network.device
        self.text = {"blocks": len(blocks), "sha256": hashlib.sha256(blocks.tobytes()).hexdigest()}
        self.blocks, held_out = blocks[:-HELD_OUT_BLOCKS], blocks[-HELD_OUT_BLOCKS:]
        self.held_out = self._on_device(held_out)
        self.distillation = Distillation(dense, network, compiled)
        self.network = network
        self.masters = Masters(network)
        self.gradient = self.masters.weights.grad = self.masters.gradient
        # Without weight decay: norms are what the model is made for.
        self.optimiser = torch.optim.AdamW(
            [self.masters.weights], lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0, fused=True
        )

    def _on_device(self, blocks: UInt16[np.ndarray, "blocks context"]) -> Tensor:
        return torch.from_numpy(blocks.astype(np.int64)).to(self.device)

    def advance(self) -> Pass:
        """Take one step; the means over its passes, left on the device."""
        passes = self.recipe.batch_tokens // self.recipe.micro_tokens
        chosen = step_blocks(len(self.blocks), self.recipe, self.step)
        mine = chosen.reshape(passes, -1)[self.group.rank :: self.group.size]
        means: list[Tensor] = []
        self.gradient.zero_()
        for rows in mine:
            found = self.distillation(self._on_device(self.blocks[rows]))
            ((found.divergence + self.recipe.balance * found.balance) / passes).backward()
            self.masters.collect()
            part = [each.detach().float() / passes for each in found]
            means = [a + b for a, b in zip(means, part, strict=True)] if means else part
        self.group.sum(self.gradient, *means)
        nn.utils.clip_grad_norm_([self.masters.weights], LARGEST_GRADIENT_NORM)
        self.optimiser.param_groups[0]["lr"] = self.recipe.learning_rate * self.recipe.rate(self.step)
        self.optimiser.step()
        self.masters.copy_back()
        self.step += 1
        return Pass(*means)

    def state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "text": self.text,
            "step": self.step,
            "master": self.masters.weights,
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        require_same_text(state, self.text)
        self.step = state["step"]
        self.masters.weights.copy_(state["master"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.masters.copy_back()


@lru_cache(maxsize=2)
def _epoch(blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(blocks)


def step_blocks(blocks: int, recipe: Recipe, step: int) -> Int[np.ndarray, " batch"]:
    """Which blocks a step reads. Each epoch reads all in another order; nothing but recipe and step decides."""
    batch = recipe.batch_tokens // recipe.context
    places = np.arange(step * batch, (step + 1) * batch)
    epochs, rest = places // blocks, places % blocks
    return np.array(
        [_epoch(blocks, recipe.seed, int(e))[r] for e, r in zip(epochs, rest, strict=True)], dtype=np.int64
    )


def heal(
    healing: Healing, tokenizer: PreTrainedTokenizerBase, out: Path, minutes: float | None = None
) -> bool:
    """Train to the recipe's end and save to OUT, or stop after so many minutes; go on from OUT's checkpoint, if any.

    True if the model is finished. Every log entry is one line of OUT/log.jsonl.
    """
    recipe = healing.recipe

    def ends(done: int) -> Iterator[int]:
        return (
            min(each + STEPS_PER_ENTRY, recipe.steps) for each in range(done, recipe.steps, STEPS_PER_ENTRY)
        )

    def advance(end: int) -> Pass:
        total = healing.advance()
        while healing.step < end:
            total = Pass(*(a + b for a, b in zip(total, healing.advance(), strict=True)))
        return Pass(*(each.cpu() for each in total))

    def entry(total: Pass, steps: int, speed: float) -> dict[str, Any]:
        divergence, balance, load = (each / steps for each in total)
        require_finite(divergence.item(), healing.step)
        held_out = healing.distillation.measure(
            healing.held_out, max(recipe.micro_tokens // recipe.context, 1)
        )
        smallest, largest = shares(load)
        return {
            "divergence": divergence.item(),
            "held_out_divergence": held_out.divergence.item(),
            "balance_loss": balance.item() / len(load),
            "smallest_share": smallest,
            "largest_share": largest,
            "learning_rate": recipe.learning_rate * recipe.rate(healing.step - 1),
        }

    until = math.inf if minutes is None else time.perf_counter() + 60 * minutes
    with alone_in(out, healing.group):
        finished = proceed(healing, out, ends, advance, entry, until)
        if finished and healing.group.rank == 0:
            save(healing.network, tokenizer, recipe, out, text=healing.text)
    return finished


def save(
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    out: Path,
    **known: dict[str, Any],
) -> None:
    """Write the model in bf16, its tokenizer, its recipe, and what else is known of how it was made."""
    cast_parameters(network, torch.bfloat16)
    network.config.dtype = torch.bfloat16
    told = {"recipe": asdict(recipe), "hash": recipe.hash(), **known}
    save_finished(network, tokenizer, out, **{Path(FILE).stem: told})
