"""What does the theory's mixture of experts compute? All training seeds, experts and tokens in one batch.

The model is that of theory/setting.py, with other routings and types of expert beside it. Only T = d + V distinct
tokens exist. A table holds every expert's output on each of them, and the output of an input is a sum of entries of
the table, with the gates as weights:

    f(X) = sum_s sum_t gate_{s,t}(X) table_{s,t}

Shapes: S training seeds, k experts, m neurons of each, T distinct tokens in d dimensions, N inputs of n tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import silu

from synthetic.data import Task, dictionary, stream
from theory.errors import InputError, require
from theory.score import maxnn_score
from theory.setting import Setting
from theory.strict_json import is_finite, is_whole

Routing = Literal["expert_choice", "token_choice"]
Expert = Literal["one_layer", "two_layer", "gated"]
Router = Literal["specialised", "random"]

SPECIALIST = 6.0  # score that a specialised router gives to its own token
ROUTER_NOISE = 0.3  # standard deviation of the router's coordinates that are not set


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and initialisation of a model; the default is the reference instance.

    specialists: N_1 ... N_V, experts of each sign for every kind of sample; k is twice their sum.
    m: neurons of an expert.
    routing: "expert_choice" if every expert chooses tokens, "token_choice" if every token chooses experts.
    selected: how many are chosen: the l of the theory under expert choice.
    expert: what an expert makes of a token x. The signs a_s are fixed; w, v and g are trained.
        "one_layer": a_s (1/m) sum_r ReLU(w_r . x)
        "two_layer": (1/m) sum_r v_r ReLU(w_r . x)
        "gated": (1/m) sum_r v_r silu(g_r . x) (w_r . x)
    router: "specialised" for rows 6 a_s o_j plus noise off the discriminative directions, "random" for noise alone.
    init_std: standard deviation of the experts' initial weights.
    """

    specialists: tuple[int, ...] = (2, 2)
    m: int = 8
    routing: Routing = "expert_choice"
    selected: int = 4
    expert: Expert = "one_layer"
    router: Router = "specialised"
    init_std: float = 1e-4

    def __post_init__(self) -> None:
        object.__setattr__(self, "specialists", tuple(self.specialists))
        whole = "a whole number of at least 1"
        checks = {
            "specialists": (
                self.specialists != () and all(is_whole(count) and count >= 0 for count in self.specialists),
                "one whole number of at least 0 for each kind",
            ),
            "m": (is_whole(self.m) and self.m >= 1, whole),
            "routing": (self.routing in get_args(Routing), f"one of {', '.join(get_args(Routing))}"),
            "selected": (is_whole(self.selected) and self.selected >= 1, whole),
            "expert": (self.expert in get_args(Expert), f"one of {', '.join(get_args(Expert))}"),
            "router": (self.router in get_args(Router), f"one of {', '.join(get_args(Router))}"),
            "init_std": (is_finite(self.init_std) and self.init_std > 0, "a finite number above 0"),
        }
        require(self, "model", checks)
        if not self.experts:
            raise InputError(f"model.specialists is {self.specialists}: give at least one expert")
        if self.routing == "token_choice" and self.selected > self.experts:
            raise InputError(f"model.selected is {self.selected}: a token has at most {self.experts} experts")

    @classmethod
    def of(cls, setting: Setting) -> "ModelConfig":
        """The network of a formal setting."""
        return cls((setting.N_F, setting.N_R), setting.m, selected=setting.l)

    @property
    def experts(self) -> int:
        """k, the number of experts of both signs together."""
        return 2 * sum(self.specialists)

    @property
    def kinds(self) -> Int[Tensor, "experts"]:
        """The kind j - 1 that each expert specialises in: kind by kind, positive experts of a kind first."""
        counts = torch.tensor(self.specialists)
        return torch.arange(len(counts)).repeat_interleave(2 * counts)

    @property
    def signs(self) -> Int[Tensor, "experts"]:
        """The signs a_s. If output weights are trained, a_s is the sign of the expert's router alone."""
        counts = torch.tensor(self.specialists).repeat_interleave(2)
        return torch.tensor([1, -1]).repeat(len(self.specialists)).repeat_interleave(counts)


@dataclass(frozen=True)
class MoE:
    """The models of S training seeds.

    tokens: each seed's own dictionary.
    router: the router's rows, one for each expert.
    weights: `up` (m, d); also `gate` (m, d) for gated experts; also `down` (1, m) if output weights are trained.
    """

    config: ModelConfig
    tokens: Float[Tensor, "seeds tokens d"]
    router: Float[Tensor, "seeds experts d"]
    weights: Mapping[str, Float[Tensor, "seeds experts out in"]]

    @cached_property
    def output_signs(self) -> Float[Tensor, "experts"]:
        """Factor of each expert's table: the fixed sign a_s, or 1 where output weights are trained."""
        signs = self.config.signs.to(self.router)
        return signs if self.config.expert == "one_layer" else torch.ones_like(signs)

    @cached_property
    def own_tokens(self) -> Int[Tensor, "experts"]:
        """Index of a_s o_j, the token that each expert specialises in."""
        return (2 * self.config.kinds + (self.config.signs < 0)).to(self.router.device)

    def scores(self) -> Float[Tensor, "seeds experts tokens"]:
        """Score that the router gives to every distinct token, for each expert."""
        return self.router @ self.tokens.mT

    def table(self) -> Float[Tensor, "seeds experts tokens"]:
        """Every expert's output on every distinct token, the fixed signs a_s included."""
        received = {name: product(self.weights[name], self.tokens) for name in self.input_names}
        return self.read_out(self.hidden(received), self.weights.get("down"))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the matrices that are applied to tokens."""
        return ("up", "gate") if self.config.expert == "gated" else ("up",)

    def hidden(self, received: Mapping[str, Tensor]) -> Float[Tensor, "*batch experts m tokens"]:
        """Output of every neuron, given what it receives from each distinct token by each of `input_names`."""
        return silu(received["gate"]) * received["up"] if "gate" in received else received["up"].relu()

    def read_out(
        self, hidden: Float[Tensor, "*batch experts m tokens"], down: Tensor | None
    ) -> Float[Tensor, "*batch experts tokens"]:
        """The table, given the neurons' outputs: their mean times the fixed sign, or weighted by `down` (1, m)."""
        if down is None:
            return self.output_signs[:, None] * hidden.mean(-2)
        return (down @ hidden).squeeze(-2) / self.config.m

    def route(
        self, inputs: Int[Tensor, "seeds inputs n"]
    ) -> tuple[Int[Tensor, "seeds experts l inputs"], Float[Tensor, "seeds experts l inputs"]]:
        """The distinct tokens that each expert reads of each input, and their gates; a token may occur repeatedly.

        Expert choice: an expert reads the `selected` tokens with the highest scores. Their gates are the softmax of
            these scores.
        Token choice: an expert reads all n tokens. A token has gates for its `selected` best experts, the softmax
            of their scores, and 0 for the others. Among equal scores the expert with the lower index comes first.
        """
        count, n = self.config.selected, inputs.shape[2]
        scores = self.scores()
        if self.config.routing == "token_choice":
            index = inputs.mT[:, None].expand(-1, scores.shape[1], -1, -1)
            return index, _look_up(_softmax_of_best(scores, count), index)
        if count > n:
            raise InputError(f"model.selected is {count}: an input has only {n} tokens")
        # Only the order of the scores matters for the choice, and all scores of an expert are in its table.
        order = scores.argsort(dim=-1, stable=True)
        ranks = order.argsort(-1).to(torch.int32)
        chosen = _largest(_look_up(ranks, inputs[:, None].expand(-1, scores.shape[1], -1, -1)), count)
        index = _look_up(order, chosen.mT.long())
        return index, _look_up(scores, index).softmax(2)

    def gates(self, inputs: Int[Tensor, "seeds inputs n"]) -> Float[Tensor, "seeds inputs experts tokens"]:
        """The gate of every distinct token, summed over the token's repetitions in the input."""
        index, gates = self.route(inputs)
        seeds, experts, _, count = index.shape
        dense = gates.new_zeros(seeds, experts, self.tokens.shape[1], count).scatter_add(2, index, gates)
        return dense.permute(0, 3, 1, 2).contiguous()

    def forward(self, inputs: Int[Tensor, "seeds inputs n"]) -> Float[Tensor, "seeds inputs"]:
        """The output f(X) of every input; its sign is the predicted label."""
        index, gates = self.route(inputs)
        return (gates * _look_up(self.table(), index)).sum((1, 2))

    def maxnn(self) -> Float[Tensor, "seeds experts"]:
        """MaxNNScore: the norm of an expert's largest neuron, multiplied over its matrices; nu_s for one matrix."""
        return maxnn_score(list(self.weights.values()))

    def with_weights(self, weights: Mapping[str, Tensor], router: Tensor | None = None) -> "MoE":
        """The same model with other weights and, if given, another router."""
        return replace(self, weights=dict(weights), router=self.router if router is None else router)

    def seed(self, number: int) -> "MoE":
        """The model of the training seed at this position, with a seed axis of length 1."""
        part = slice(number, number + 1)
        weights = {name: weight[part] for name, weight in self.weights.items()}
        return MoE(self.config, self.tokens[part], self.router[part], weights)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "MoE":
        weights = {name: weight.to(device, dtype) for name, weight in self.weights.items()}
        return MoE(self.config, self.tokens.to(device, dtype), self.router.to(device, dtype), weights)


def initialise(
    task: Task,
    config: ModelConfig,
    seeds: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MoE:
    """Untrained models of several seeds. Each model depends on one seed alone.

    InputError if the task has another number of kinds, or fewer tokens than an expert takes.
    """
    if len(config.specialists) != task.kinds:
        raise InputError(
            f"model.specialists is {config.specialists}: give one number for each of the task's {task.kinds} kinds"
        )
    if config.routing == "expert_choice" and config.selected > task.n:
        raise InputError(f"model.selected is {config.selected}: an input has only {task.n} tokens")
    shapes = {"up": (config.experts, config.m, task.d)}
    if config.expert == "gated":
        shapes["gate"] = shapes["up"]
    if config.expert != "one_layer":
        shapes["down"] = (config.experts, 1, config.m)
    tokens, routers, weights = [], [], []
    for seed in seeds:
        rng = stream(seed, "init")
        tokens.append(dictionary(task, seed))
        coordinates = torch.from_numpy(ROUTER_NOISE * rng.standard_normal((config.experts, task.d)))
        if config.router == "specialised":
            coordinates[:, : task.kinds] = 0
            coordinates[torch.arange(config.experts), config.kinds] = SPECIALIST * config.signs.double()
        # Coordinates are along directions: each counts once, though a discriminative direction makes two tokens.
        routers.append(
            coordinates @ torch.cat((tokens[-1][: 2 * task.kinds : 2], tokens[-1][2 * task.kinds :]))
        )
        weights.append(
            {
                name: torch.from_numpy(config.init_std * rng.standard_normal(shape))
                for name, shape in shapes.items()
            }
        )
    stacked = {name: torch.stack([each[name] for each in weights]) for name in shapes}
    return MoE(config, torch.stack(tokens), torch.stack(routers), stacked).to(device, dtype)


def product(
    weight: Float[Tensor, "*batch experts m d"], tokens: Float[Tensor, "*batch tokens d"]
) -> Float[Tensor, "*batch experts m tokens"]:
    """The products w_r . x of every neuron and distinct token, by one matrix product for each seed."""
    return (weight.flatten(-3, -2) @ tokens.mT).unflatten(-2, weight.shape[-3:-1])


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """The entries table[s, k, index[s, k, ...]], in the shape of `index`."""
    return table.gather(-1, index.flatten(2)).view(index.shape)


def _largest(values: Int[Tensor, "*batch n"], count: int) -> Int[Tensor, "*batch count"]:
    """The `count` largest values of each row, in any order. On rows this short topk takes three times as long."""
    if values.is_cuda:
        return values.topk(count, sorted=False).values
    return torch.from_numpy(np.partition(values.numpy(), -count)[..., -count:])


def _softmax_of_best(scores: Float[Tensor, "seeds experts tokens"], count: int) -> Tensor:
    """Softmax over each token's `count` best experts, 0 for the other experts."""
    best, experts = scores.sort(dim=1, descending=True, stable=True)
    gates = best[:, :count].softmax(1)
    return torch.zeros_like(scores).scatter(1, experts[:, :count], gates)
