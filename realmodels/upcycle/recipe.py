"""What decides which mixture of experts a dense model is turned into?"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from realmodels.pretrain.recipe import ALIGNMENT, check_types, entries_hash
from realmodels.pretrain.tokens import read_object
from theory.errors import InputError, require

FILE: Final = "recipe.json"  # in every folder that a recipe made
# Entries that recipes lacked at first. They are hashed only where they are not 0, so that earlier hashes stay.
LATER: Final = ("shared_experts", "dense_layers")
# Entries that decide what `convert` makes.
OF_CONVERSION: Final = (
    "copies",
    "slices",
    "shared_experts",
    "dense_layers",
    "construction",
    "calibration_tokens",
    "router_perturbation",
    "weight_perturbation",
    "context",
    "seed",
)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides which model comes out of a dense one, except for the machine's rounding."""

    # Each FFN is cut into slices of equal width. All that are not shared are copied: a slice of a copy is an expert,
    # and a token uses as many experts as a copy has.
    copies: int = 8
    slices: int = 8
    # Slices that every token uses, with the neurons that add most to the FFN's output. 0: the result is a Mixtral.
    # More: a DeepSeekMoE, whose first `dense_layers` keep their FFN.
    shared_experts: int = 0
    dense_layers: int = 0
    # Which neurons share an expert: those of one slice of a random permutation, or those that are active together.
    construction: Literal["random", "coactivation"] = "random"
    calibration_tokens: int = 8192  # of the text on which routers are centred and activity is measured
    # Standard deviations of the normal noise that breaks copies apart: of router logits, where those of copies have 1,
    # and of the experts' weights, relative to that of the fused tensor.
    router_perturbation: float = 0.1
    weight_perturbation: float = 0.03
    context: int = 512  # tokens of a block of text
    rows: int = 2048  # blocks that are generated at once
    generated_tokens: int = 50_331_648
    bare: float = 0.25  # share of the prompts that are beginnings of a text, rather than requests
    healing_tokens: int = 65_536_000
    batch_tokens: int = 65536  # of one step
    micro_tokens: int = 16384  # of one pass; a balance loss is of one pass
    learning_rate: float = 5e-4
    warmup: float = 0.03  # share of the steps in which the rate rises from 0; then it falls along a cosine
    balance: float = 0.2  # weight of a layer's load-balancing loss beside the KL divergence in nats per token
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        together = {
            "bare": (self.bare <= 1, "a share, from 0 to 1"),
            "warmup": (self.warmup <= 1, "a share, from 0 to 1"),
            # The router of DeepSeekMoE gives an only expert its probability as a weight, and not 1.
            "shared_experts": (
                not self.shared_experts or self.used > 1,
                f"at most slices - 2 = {max(self.slices - 2, 0)}",
            ),
            "dense_layers": (
                not self.dense_layers or self.shared_experts > 0,
                "0, or shared_experts of at least 1: Mixtral has no dense layers",
            ),
        }
        require(self, "recipe", together)
        for name, divisor in (
            ("context", ALIGNMENT),
            ("generated_tokens", self.rows * self.context),
            ("micro_tokens", self.context),
            ("batch_tokens", self.micro_tokens),
            ("healing_tokens", self.batch_tokens),
        ):
            require(self, "recipe", {name: (getattr(self, name) % divisor == 0, f"a multiple of {divisor}")})

    @property
    def used(self) -> int:
        """How many routed experts a token uses."""
        return self.slices - self.shared_experts

    @property
    def experts(self) -> int:
        """How many routed experts a layer has."""
        return self.copies * self.used

    @property
    def rounds(self) -> int:
        """How often `rows` blocks are generated."""
        return self.generated_tokens // (self.rows * self.context)

    @property
    def steps(self) -> int:
        return self.healing_tokens // self.batch_tokens

    def rate(self, step: int) -> float:
        """The learning rate at a step (from 0), as a share of the recipe's."""
        rising = (step + 1) / max(self.warmup * self.steps, 1)
        return min(rising, (1 + math.cos(math.pi * step / self.steps)) / 2)

    def hash(self) -> str:
        """SHA-256 of the entries."""
        return entries_hash(
            {name: value for name, value in asdict(self).items() if value or name not in LATER}
        )

    def require_converted(self, folder: Path) -> None:
        """InputError unless the mixture of experts in the folder was converted by this recipe."""
        made = read_recipe_of(folder)
        for name in OF_CONVERSION:
            if getattr(made, name) != getattr(self, name):
                raise InputError(
                    f"recipe.{name} is {getattr(self, name)}, but {folder} was made with {getattr(made, name)}: give"
                    " the recipe that it was made with, or convert anew"
                )

    def expert_width(self, ffn_width: int) -> int:
        if ffn_width % (self.slices * ALIGNMENT):
            raise InputError(
                f"recipe.slices is {self.slices}: the dense FFN has {ffn_width} neurons; experts need a multiple of"
                f" {ALIGNMENT} each"
            )
        return ffn_width // self.slices


def read_recipe_of(folder: Path) -> Recipe:
    """The recipe in a folder that a recipe made."""
    try:
        return Recipe(**read_object(folder / FILE)["recipe"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / FILE} is no recipe ({error}): make the folder anew") from None
