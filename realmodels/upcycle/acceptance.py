"""Is the healed mixture of experts good enough: near the dense model, and with all experts in use?"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from realmodels.model import Model
from realmodels.pretrain.tokens import write_json
from realmodels.scores import scores
from realmodels.upcycle.conversion import max_neuron_spread
from realmodels.upcycle.healing import Distillation
from realmodels.upcycle.recipe import Recipe

LEAST_SHARE: Final = 0.25  # of a fair share, for every expert
BLOCKS_PER_PASS: Final = {"cuda": 32}  # elsewhere 2


@dataclass(frozen=True)
class Check:
    """What is known about a healed model.

    divergence: KL(dense || mixture) in nats per token.
    smallest_share, largest_share: of the choices in a layer, for each layer, relative to the fair share.
    starved: how many experts of all layers get less than LEAST_SHARE.
    max_neuron_spread: relative standard deviation of MaxNNScore among copies of a slice, and among slices.
    """

    recipe_hash: str
    tokens: int
    divergence: float
    smallest_share: tuple[float, ...]
    largest_share: tuple[float, ...]
    starved: int
    max_neuron_spread: dict[str, float]

    @property
    def accepted(self) -> bool:
        return min(self.smallest_share) >= LEAST_SHARE

    def __str__(self) -> str:
        rows = [
            ("recipe", self.recipe_hash[:16]),
            ("tokens of held-out text", str(self.tokens)),
            ("KL to the dense model, nats per token", f"{self.divergence:.4f}"),
            ("smallest share of an expert, 1 is fair", f"{min(self.smallest_share):.3f}"),
            ("largest share of an expert, 1 is fair", f"{max(self.largest_share):.3f}"),
            (f"experts below {LEAST_SHARE}", str(self.starved)),
            ("MaxNNScore: spread among copies of a slice", f"{self.max_neuron_spread['copies']:.4f}"),
            ("MaxNNScore: spread among slices", f"{self.max_neuron_spread['slices']:.4f}"),
            ("every expert in use", "accepted" if self.accepted else "refused"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def check(
    model: Model, dense: LlamaForCausalLM, recipe: Recipe, blocks: Int[Tensor, "blocks context"]
) -> Check:
    """Compare a mixture with the dense model that it comes from, on blocks of held-out text."""
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
    )


def write(found: Check, folder: Path) -> None:
    """Write what was found beside the model, as check.json."""
    write_json(folder / "check.json", asdict(found) | {"accepted": found.accepted})
