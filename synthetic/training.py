"""How are the theory's models trained, and until when? Several seeds as one batch, each on fresh samples of its own."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from synthetic.data import Samples, Task, sample, stack, stream
from synthetic.model import ModelConfig, MoE, initialise, product
from theory.errors import InputError, require
from theory.setting import Setting
from theory.strict_json import is_finite, is_whole

Optimiser = Literal["sgd", "momentum", "adamw"]
Loss = Literal["hinge", "logistic"]

MOMENTUM = 0.9  # factor of the optimiser "momentum"; AdamW has torch's defaults
SAMPLES_AT_ONCE = 16_384  # samples that are drawn ahead for each seed


@dataclass(frozen=True)
class Training:
    """How models are trained; the default is the reference instance's training.

    optimiser: "sgd", "momentum" or "adamw".
    loss: "hinge" or "logistic".
    learning_rate: learning rate of the experts.
    router_rate: learning rate of the routers, 0 for frozen routers.
    weight_decay: L2 penalty on everything that is trained; in AdamW it is decoupled from the gradient.
    batch: samples of a step.
    stop_margin: stop a seed when the mean margin y f(X) of the most frequent kind in the batch reaches this value
        (the stop rule); None to train for `max_steps`.
    max_steps: stop a seed after this number of steps in any case.
    """

    optimiser: Optimiser = "sgd"
    loss: Loss = "hinge"
    learning_rate: float = 0.2
    router_rate: float = 0.0
    weight_decay: float = 0.0
    batch: int = 1024
    stop_margin: float | None = 0.9
    max_steps: int = 2000

    def __post_init__(self) -> None:
        not_negative, whole = "a finite number of at least 0", "a whole number of at least 1"
        positive = "a finite number above 0"
        checks = {
            "optimiser": (self.optimiser in get_args(Optimiser), f"one of {', '.join(get_args(Optimiser))}"),
            "loss": (self.loss in get_args(Loss), f"one of {', '.join(get_args(Loss))}"),
            "learning_rate": (is_finite(self.learning_rate) and self.learning_rate > 0, positive),
            "router_rate": (is_finite(self.router_rate) and self.router_rate >= 0, not_negative),
            "weight_decay": (is_finite(self.weight_decay) and self.weight_decay >= 0, not_negative),
            "batch": (is_whole(self.batch) and self.batch >= 1, whole),
            "stop_margin": (
                self.stop_margin is None or (is_finite(self.stop_margin) and self.stop_margin > 0),
                f"{positive}, or None to train for max_steps",
            ),
            "max_steps": (is_whole(self.max_steps) and self.max_steps >= 1, whole),
        }
        require(self, "training", checks)

    @classmethod
    def of(cls, setting: Setting) -> "Training":
        """SGD with the learning rate of a formal setting."""
        return cls(learning_rate=setting.eta)


@dataclass(frozen=True)
class History:
    """Records of the models every `record_every` steps and at the end, taken before the step's update.

    A finished seed keeps its last values.
    steps: number of updates before the record.
    own_weights: component of each neuron (a row of `up`) along its expert's own token.
    norms: length of each neuron.
    margins: mean y f(X) by kind and sign (positive first) over the step's batch, NaN where the batch has no such
        sample.
    """

    steps: Int[Tensor, "records"]
    own_weights: Float[Tensor, "records seeds experts m"]
    norms: Float[Tensor, "records seeds experts m"]
    margins: Float[Tensor, "records seeds kinds 2"]


@dataclass(frozen=True)
class Trained:
    """The trained models.

    steps: updates that each seed has had.
    stopped: True if the seed reached the stop margin.
    """

    model: MoE
    steps: Int[Tensor, "seeds"]
    stopped: Bool[Tensor, "seeds"]
    history: History


def train(
    task: Task,
    config: ModelConfig,
    training: Training,
    seeds: Sequence[int],
    *,
    record_every: int = 10,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """Train a model for each seed. The result of a seed does not depend on the other seeds.

    task, config, training: what is learnt, by which model, and how.
    seeds: training seeds, each given once.
    record_every: steps between two records of the history.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds is {seeds!r}: give at least one, each once")
    if not is_whole(record_every) or record_every < 1:
        raise InputError(f"record_every is {record_every!r}: give a whole number of at least 1")
    model = initialise(task, config, seeds, device=device, dtype=dtype)
    parameters = {**model.weights, "router": model.router}
    trained = [name for name in parameters if name != "router" or training.router_rate > 0]
    for name in trained:
        parameters[name].requires_grad_()
    optimiser = _optimiser(training, parameters, trained)
    batches = _batches(task, training, seeds, device)
    final = {name: parameters[name].detach().clone() for name in trained}
    running = torch.ones(len(seeds), dtype=torch.bool, device=device)
    steps = torch.zeros(len(seeds), dtype=torch.int64, device=device)
    common = int(np.argmax(task.frequencies))
    records: list[tuple[int, Tensor, Tensor, Tensor]] = []
    margins_by_kind = torch.full((len(seeds), task.kinds, 2), torch.nan, dtype=dtype, device=device)
    for step in range(training.max_steps + 1):
        batch = next(batches)
        margins = batch.labels * model.forward(batch.tokens)
        latest = _by_kind_and_sign(margins.detach(), batch, task.kinds)
        margins_by_kind = torch.where(running[:, None, None], latest, margins_by_kind)
        # Everything above is a function of the weights before this step's update.
        for name in trained:
            final[name][running] = parameters[name].detach()[running]
        steps[running] = step
        if training.stop_margin is not None:
            chosen = batch.kinds == common
            mean = (margins.detach() * chosen).sum(1) / chosen.sum(1)
            running = running & ~(mean >= training.stop_margin)
        last = step == training.max_steps or not running.any()
        if last or step % record_every == 0:
            records.append((step, *_neurons(model, final["up"]), margins_by_kind))
        if last:
            break
        loss = (1 - margins).relu() if training.loss == "hinge" else softplus(-margins)
        optimiser.zero_grad()
        loss.mean(1).sum().backward()
        optimiser.step()
    columns = list(zip(*records, strict=True))
    history = History(torch.tensor(columns[0]), *(torch.stack(column).cpu() for column in columns[1:]))
    weights = {name: final[name] for name in model.weights}
    finished = model.with_weights(weights, final.get("router"))
    return Trained(model=finished, steps=steps.cpu(), stopped=~running.cpu(), history=history)


def _optimiser(
    training: Training, parameters: dict[str, Tensor], trained: list[str]
) -> torch.optim.Optimizer:
    """The optimiser of all seeds together. It acts on each weight by itself, so the seeds stay independent."""
    groups = [
        {
            "params": [parameters[name]],
            "lr": training.router_rate if name == "router" else training.learning_rate,
            "weight_decay": training.weight_decay,
        }
        for name in trained
    ]
    if training.optimiser == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM if training.optimiser == "momentum" else 0.0)


def _batches(
    task: Task, training: Training, seeds: Sequence[int], device: torch.device | str
) -> Iterator[Samples]:
    """Batches (seeds, batch) without end, drawn from each seed's own stream."""
    generators = [stream(seed, "train") for seed in seeds]
    ahead = max(1, SAMPLES_AT_ONCE // training.batch)
    while True:
        drawn = stack([sample(task, ahead * training.batch, rng) for rng in generators]).to(device)
        for start in range(0, ahead * training.batch, training.batch):
            part = slice(start, start + training.batch)
            yield Samples(drawn.tokens[:, part], drawn.labels[:, part], drawn.kinds[:, part])


def _neurons(model: MoE, up: Float[Tensor, "seeds experts m d"]) -> tuple[Tensor, Tensor]:
    """Component along the expert's own token, and length, of every neuron."""
    along = product(up, model.tokens).detach()
    own = model.own_tokens[None, :, None, None].expand(*along.shape[:3], 1)
    return along.gather(-1, own).squeeze(-1), up.detach().norm(dim=-1)


def _by_kind_and_sign(
    margins: Float[Tensor, "seeds batch"], batch: Samples, kinds: int
) -> Float[Tensor, "seeds kinds 2"]:
    """Mean margin of each kind and sign (positive first), NaN for one that does not occur in the batch."""
    cell = 2 * batch.kinds + (batch.labels < 0)
    sums = margins.new_zeros(len(margins), 2 * kinds).scatter_add(1, cell, margins)
    counts = margins.new_zeros(len(margins), 2 * kinds).scatter_add(1, cell, torch.ones_like(margins))
    return (sums / counts).unflatten(1, (kinds, 2))
