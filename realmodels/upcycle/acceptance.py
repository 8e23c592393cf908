"""Is the healed mixture of experts good enough: near the dense model, on tasks too, and with all experts in use?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from realmodels.families import ModelMap
from realmodels.model import Model
from realmodels.pretrain.tokens import write_json
from realmodels.scores import scores
from realmodels.tasks import METRICS, evaluate_tasks
from realmodels.upcycle.conversion import max_neuron_spread
from realmodels.upcycle.healing import Distillation
from realmodels.upcycle.recipe import Recipe
from theory.evidence import Interval, interval_of_mean, mean_interval

LEAST_SHARE: Final = 0.25  # of a fair share, for every expert
MOST_LOST: Final = 0.02  # of the dense model's accuracy, mean over tasks
CHANCE: Final[Mapping[str, float]] = {"piqa": 0.5, "arc_easy": 0.25, "hellaswag": 0.25}
LEAST_ABOVE_CHANCE: Final = 0.08  # on each of these
BLOCKS_PER_PASS: Final = {"cuda": 32}  # elsewhere 2


@dataclass(frozen=True)
class OnTask:
    """Accuracies on a task. Intervals are at 95 % over questions, that of the loss over paired ones.

    lost: the dense model's accuracy minus the mixture's.
    """

    metric: str
    questions: int
    dense: float
    dense_interval: Interval
    mixture: float
    mixture_interval: Interval
    lost: float
    lost_interval: Interval


@dataclass(frozen=True)
class Check:
    """What is known about a healed model.

    divergence: KL(dense || mixture) in nats per token.
    smallest_share, largest_share: of the choices in a layer, for each layer, relative to the fair share.
    starved: how many experts of all layers get less than LEAST_SHARE.
    max_neuron_spread: relative standard deviation of MaxNNScore among copies of a slice, and among slices.
    tasks: by task; empty if none was asked for.
    """

    recipe_hash: str
    tokens: int
    divergence: float
    smallest_share: tuple[float, ...]
    largest_share: tuple[float, ...]
    starved: int
    max_neuron_spread: dict[str, float]
    tasks: dict[str, OnTask] = field(default_factory=dict)

    @property
    def lost(self) -> float:
        """Mean over tasks of the accuracy that the dense model has more."""
        return float(np.mean([each.lost for each in self.tasks.values()]))

    @property
    def lost_interval(self) -> Interval:
        """At 95 %, of `lost` [interval_of_mean]."""
        each = self.tasks.values()
        return interval_of_mean([task.lost for task in each], [task.lost_interval for task in each])

    @property
    def refused(self) -> tuple[str, ...]:
        """Why the model is not good enough, in words; tasks that were not asked for count for nothing."""
        found = []
        if self.starved:
            found.append(f"{self.starved} experts get less than {LEAST_SHARE} of a fair share")
        if self.tasks and self.lost > MOST_LOST:
            found.append(f"the mean over tasks is {self.lost:.1%} below the dense model's")
        found += [
            f"{task} is {self.tasks[task].mixture - chance:.1%} above chance"
            for task, chance in CHANCE.items()
            if task in self.tasks and self.tasks[task].mixture - chance < LEAST_ABOVE_CHANCE
        ]
        return tuple(found)

    def __str__(self) -> str:
        lost = []
        if self.tasks:
            low, high = self.lost_interval
            lost = [("mean over tasks: lost", f"{self.lost:.1%} [{low:.1%}, {high:.1%}]")]
        rows = [
            ("recipe", self.recipe_hash[:16]),
            ("tokens of held-out text", str(self.tokens)),
            ("KL to the dense model, nats per token", f"{self.divergence:.4f}"),
            ("smallest share of an expert, 1 is fair", f"{min(self.smallest_share):.3f}"),
            ("largest share of an expert, 1 is fair", f"{max(self.largest_share):.3f}"),
            (f"experts below {LEAST_SHARE}", str(self.starved)),
            ("MaxNNScore: spread among copies of a slice", f"{self.max_neuron_spread['copies']:.4f}"),
            ("MaxNNScore: spread among slices", f"{self.max_neuron_spread['slices']:.4f}"),
            *(
                (
                    f"{task} ({each.metric}), {each.questions} questions: dense, mixture",
                    f"{each.dense:.1%}, {each.mixture:.1%}",
                )
                for task, each in self.tasks.items()
            ),
            *lost,
            ("verdict", "refused: " + "; ".join(self.refused) if self.refused else "accepted"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def check(
    model: Model,
    dense: LlamaForCausalLM,
    recipe: Recipe,
    blocks: Int[Tensor, "blocks context"],
    tasks: Sequence[str] = (),
    questions: int | None = None,
) -> Check:
    """Compare a mixture with the dense model that it comes from, on blocks of held-out text and on tasks.

    tasks, questions: as `realmodels.tasks.evaluate_tasks` takes them; no tasks by default.
    """
    distillation = Distillation(dense, model.network, compiled=False)
    device = model.network.device
    found = distillation.measure(blocks.to(device), BLOCKS_PER_PASS.get(device.type, 2))
    relative: Float[Tensor, "layers experts"] = found.load.cpu() * recipe.experts
    return Check(
        recipe_hash=recipe.hash(),
        tokens=blocks.numel(),
        divergence=found.divergence.item(),
        smallest_share=tuple(relative.amin(1).tolist()),
        largest_share=tuple(relative.amax(1).tolist()),
        starved=int((relative < LEAST_SHARE).sum()),
        max_neuron_spread=dict(max_neuron_spread(scores(model), recipe)),
        tasks=_on_tasks(model, dense, tasks, questions) if tasks else {},
    )


def _on_tasks(
    model: Model, dense: LlamaForCausalLM, tasks: Sequence[str], questions: int | None
) -> dict[str, OnTask]:
    nothing = ModelMap((), {}, {})
    as_model = Model("the dense model", dense, model.tokenizer, nothing, "")
    ours, dense_ones = (evaluate_tasks(each, tasks, questions).tasks for each in (model, as_model))
    found = {}
    for mixture, other in zip(ours, dense_ones, strict=True):
        lost: Any = np.array(other.correct) - np.array(mixture.correct)
        found[mixture.task] = OnTask(
            METRICS[mixture.task],
            len(lost),
            other.accuracy,
            other.interval,
            mixture.accuracy,
            mixture.interval,
            float(lost.mean()),
            mean_interval(lost),
        )
    return found


def write(found: Check, folder: Path) -> None:
    """Write what was found beside the model, as check.json."""
    write_json(folder / "check.json", asdict(found) | {"refused": found.refused})
