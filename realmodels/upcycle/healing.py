"""How does a broken-apart mixture of experts learn to answer as the dense model does?

The loss is the KL divergence of the dense model's next-token distribution from the mixture's, in nats per token, plus
`balance` times the load-balancing losses of the layers. On a GPU the models are in bf16, with fp32 masters for AdamW.
On several GPUs each takes its share of the passes of a step, and gradients are summed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from transformers import (
    LlamaForCausalLM,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from realmodels.pretrain.optimisers import BETAS
from realmodels.pretrain.runs import CHECKPOINT, resume, save_checkpoint
from realmodels.pretrain.tokens import write_json
from realmodels.pretrain.training import (
    LARGEST_GRADIENT_NORM,
    cast_parameters,
    decoder_layer,
    embed,
)
from realmodels.upcycle.recipe import FILE, Recipe
from theory.errors import InputError

TOKENS_PER_CHUNK: Final = 4096  # whose logits exist at once
HELD_OUT_BLOCKS: Final = 32  # the last ones, which are not trained on
STEPS_PER_ENTRY: Final = 20
CHECKPOINT_SECONDS: Final = 240  # at least so long between two checkpoints


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


def routed_layer(
    layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The output of a layer with experts, its load-balancing loss, and its load."""
    hidden, routing = decoder_layer(layer, hidden, rotation)
    assert routing is not None
    return hidden, routing.balance_loss(), routing.load()


def dense_layer(layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    return decoder_layer(layer, hidden, rotation)[0]


class Distillation:
    """The two models and what a pass computes with them. Layers are compiled alone: one compilation serves all."""

    def __init__(self, dense: LlamaForCausalLM, network: PreTrainedModel, compiled: bool) -> None:
        self.dense: Any = dense.requires_grad_(False)
        self.network: Any = network
        wrap: Callable[..., Any] = torch.compile if compiled else lambda function: function
        self.routed_layer, self.dense_layer = wrap(routed_layer), wrap(dense_layer)
        self.loss = wrap(divergence)

    def __call__(self, tokens: Int[Tensor, "blocks context"]) -> Pass:
        with torch.no_grad():
            target, rotation = embed(self.dense, tokens)
            for layer in self.dense.model.layers:
                target = self.dense_layer(layer, target, rotation)
            target = self.dense.model.norm(target)
        hidden, rotation = embed(self.network, tokens)
        balances, loads = [], []
        for layer in self.network.model.layers:
            hidden, balance, load = self.routed_layer(layer, hidden, rotation)
            balances.append(balance)
            loads.append(load)
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


class Group(NamedTuple):
    """The processes of a run, one for each GPU; a run without torchrun has one."""

    rank: int
    size: int

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes."""
        for tensor in tensors if self.size > 1 else ():
            distributed.all_reduce(tensor)

    def agree(self, value: bool, device: torch.device) -> bool:
        """True if it is true in the first process."""
        told = torch.tensor(float(value and self.rank == 0), device=device)
        self.sum(told)
        return bool(told.item())


@contextmanager
def processes(device: torch.device) -> Iterator[tuple[Group, torch.device]]:
    """The processes that torchrun started, and the device of this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Group(0, 1), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Group(distributed.get_rank(), size), device
    finally:
        distributed.destroy_process_group()


class Healing:
    """The state of a run. Masters, gradients and moments are one flat fp32 tensor each."""

    def __init__(
        self,
        recipe: Recipe,
        dense: LlamaForCausalLM,
        network: MixtralForCausalLM,
        blocks: UInt16[np.ndarray, "blocks context"],
        group: Group,
        compiled: bool,
    ) -> None:
        if recipe.batch_tokens // recipe.micro_tokens % group.size:
            raise InputError(
                f"a step has {recipe.batch_tokens // recipe.micro_tokens} passes, batch_tokens / micro_tokens of the"
                f" recipe: give a number that {group.size} processes can share"
            )
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
        self.parameters = list(network.parameters())
        self.master = torch.cat([each.detach().flatten().float() for each in self.parameters])
        self.gradient = self.master.grad = torch.zeros_like(self.master)
        self.pieces = self._pieces(self.master)
        self.gradients = self._pieces(self.gradient)
        # Without weight decay: norms are what the model is made for.
        self.optimiser = torch.optim.AdamW(
            [self.master], lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0, fused=True
        )

    def _on_device(self, blocks: UInt16[np.ndarray, "blocks context"]) -> Tensor:
        return torch.from_numpy(blocks.astype(np.int64)).to(self.device)

    def _pieces(self, flat: Tensor) -> list[Tensor]:
        sizes = [each.numel() for each in self.parameters]
        return [part.view_as(each) for part, each in zip(flat.split(sizes), self.parameters, strict=True)]

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
            for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
                if parameter.grad is not None:
                    gradient.add_(parameter.grad)
                parameter.grad = None
            part = [each.detach().float() / passes for each in found]
            means = [a + b for a, b in zip(means, part, strict=True)] if means else part
        self.group.sum(self.gradient, *means)
        nn.utils.clip_grad_norm_([self.master], LARGEST_GRADIENT_NORM)
        self.optimiser.param_groups[0]["lr"] = self.recipe.learning_rate * self.recipe.rate(self.step)
        self.optimiser.step()
        self._copy_masters()
        self.step += 1
        return Pass(*means)

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for parameter, piece in zip(self.parameters, self.pieces, strict=True):
            parameter.copy_(piece)

    def state(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "text": self.text,
            "step": self.step,
            "master": self.master,
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        if state.get("text") != self.text:
            raise InputError("the checkpoint was trained on other text: give its blocks, or another folder")
        self.step = state["step"]
        self.master.copy_(state["master"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._copy_masters()


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
    recipe, group, device = healing.recipe, healing.group, healing.device
    first = group.rank == 0
    if (out / "model.safetensors").exists() or (out / "model.safetensors.index.json").exists():
        raise InputError(f"{out} holds a finished model: give another folder")
    out.mkdir(parents=True, exist_ok=True)
    seconds = resume(healing, out, log=first)
    begun = saved = time.perf_counter()
    while healing.step < recipe.steps:
        start = time.perf_counter()
        end = min(healing.step + STEPS_PER_ENTRY, recipe.steps)
        count = end - healing.step
        total = healing.advance()
        while healing.step < end:
            total = Pass(*(a + b for a, b in zip(total, healing.advance(), strict=True)))
        nats, balance = total.divergence.item() / count, total.balance.item() / count
        spent = time.perf_counter() - start
        seconds += spent
        if not np.isfinite(nats):
            raise InputError(f"the loss is {nats} at step {end}: lower recipe.learning_rate")
        held_out = healing.distillation.measure(
            healing.held_out, max(recipe.micro_tokens // recipe.context, 1)
        )
        smallest, largest = shares(total.load / count)
        entry = {
            "step": end,
            "tokens": end * recipe.batch_tokens,
            "divergence": nats,
            "held_out_divergence": held_out.divergence.item(),
            "balance_loss": balance / len(total.load),
            "smallest_share": smallest,
            "largest_share": largest,
            "learning_rate": recipe.learning_rate * recipe.rate(end - 1),
            "seconds": seconds,
            "tokens_per_second": count * recipe.batch_tokens / spent,
        }
        now = time.perf_counter()
        stop = healing.step < recipe.steps and minutes is not None and now - begun >= 60 * minutes
        stop = group.agree(stop, device)
        if first:
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
            if stop or now - saved >= CHECKPOINT_SECONDS:
                save_checkpoint(healing, out, seconds)
                saved = now
        if stop:
            return False
    if first:
        save(healing.network, tokenizer, recipe, out, text=healing.text)
        (out / CHECKPOINT).unlink(missing_ok=True)
    return True


def save(
    network: MixtralForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    out: Path,
    **known: dict[str, Any],
) -> None:
    """Write the model in bf16, its tokenizer, its recipe, and what else is known of how it was made."""
    cast_parameters(network, torch.bfloat16)
    network.config.dtype = torch.bfloat16
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_json(out / FILE, {"recipe": asdict(recipe), "hash": recipe.hash(), **known})
