"""What is a loaded model, for everything that works with one?"""

from dataclasses import asdict, dataclass
from typing import get_args

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realmodels import text
from realmodels.analog import AnalogExperts, AnalogLinear
from realmodels.families import ModelMap
from theory.errors import InputError, require_kind, shown
from theory.hardware import Hardware
from theory.placement import Placement


@dataclass(frozen=True)
class Deployment:
    """What a deployed model is on: one chip. Printed, it says so in a line.

    seed, mirrored: of the programming noise.
    fp32: as `deploy` takes it.
    """

    placement: Placement
    hardware: Hardware
    seed: int
    mirrored: bool = False
    fp32: bool = False

    def __str__(self) -> str:
        fields = ", ".join(f"{name} {value}" for name, value in asdict(self.hardware).items())
        opposite = ", opposite noise" if self.mirrored else ""
        return f"{self.placement}; hardware: {fields}; seed {self.seed}{opposite}"


@dataclass(frozen=True)
class Model:
    """A loaded model.

    name: as it was given to `load`.
    network: the transformers model.
    map: where the parts of the network are.
    weights_hash: SHA-256 of config, tokenizer and weights as loaded [load.loaded_hash].
    """

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    map: ModelMap
    weights_hash: str

    @property
    def context(self) -> int:
        """Longest input, in tokens."""
        config = self.network.config.get_text_config(decoder=True)
        longest = getattr(config, "max_position_embeddings", None) or getattr(
            config, "model_max_length", None
        )
        return int(longest or self.tokenizer.model_max_length)

    @property
    def analog_modules(self) -> dict[str, AnalogLinear | AnalogExperts]:
        """The modules of the network that are deployed now, by name."""
        return {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, AnalogLinear | AnalogExperts)
        }

    @property
    def deployment(self) -> Deployment | None:
        """What chip the model is on; None if it is digital."""
        modules = self.analog_modules
        return next(iter(modules.values())).deployment if modules else None

    def require_digital(self) -> None:
        """InputError if the model is deployed."""
        if self.analog_modules:
            raise InputError(f"model {self.name} is deployed already: call withdraw(model) first")

    def texts(self, split: text.HeldOut) -> text.Documents:
        """Documents of the offline corpus [realmodels.text] that no shipped model was trained on.

        What calibrates or scores a model refuses documents of the evaluation split.
        """
        if split not in get_args(text.HeldOut):
            raise InputError(f"split is {shown(split)}: give one of {', '.join(get_args(text.HeldOut))}")
        return text.held_out(split)


def require_model(value: object) -> None:
    """InputError for what is no Model, such as its network or its name."""
    require_kind(value, Model, "model", "as load returns it")
