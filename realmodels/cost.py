"""How much throughput does a placement have, and how much energy does it take [Table 2, docs/paper.md]?

The paper publishes four rows for OLMoE at a batch of 32 and no formula. The formula and the constants here are our
inference from those rows. Generating a token is bound by reading digital weights from memory. Experts on analog
hardware work beside the digital ones. Power is that of the digital device plus that of the analog products. This model
gives the last three rows within 1 %. The energy of the first row has set the energy of analog products; the throughput
of the first row, 768 tokens/s with everything analog, is not explained.
"""

from dataclasses import dataclass, fields

from realmodels.model import Model
from theory import paper
from theory.errors import InputError, require
from theory.strict_json import is_finite, is_whole

BYTES_PER_PARAMETER = 2  # fp16 and bf16
MATRICES = 3  # up, gate and down of an expert
OPERATIONS_PER_PARAMETER = 2  # a multiplication and an addition for each token


@dataclass(frozen=True)
class Machine:
    """What the two kinds of hardware can do; the defaults are inferred from the paper's Table 2.

    bandwidth: effective bandwidth of the digital device's memory for weights, bytes/s.
    power: power of the digital device, W.
    layer_seconds: time that the analog experts of a layer take for `layer_batch` tokens. More tokens take
        proportionally longer, fewer tokens as long; the one published batch does not tell.
    operations_per_joule: operations of analog matrix products per joule.
    """

    bandwidth: float = 1.78e12
    power: float = 400.0
    layer_seconds: float = 14.1e-6
    layer_batch: int = paper.TABLE_2_BATCH.value
    operations_per_joule: float = 56.4e12

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        valid = {name: is_finite(value) and value > 0 for name, value in given.items()}
        require(self, "machine", {name: (each, "a finite number above 0") for name, each in valid.items()})


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that the cost depends on.

    moe_layers: MoE layers.
    experts: routed experts of a layer.
    top_k: routed experts that a token uses.
    expert_parameters: parameters of one routed expert.
    dense_parameters: parameters of all other matrices that a token is multiplied with: without embeddings, norms and
        routers.
    """

    moe_layers: int
    experts: int
    top_k: int
    expert_parameters: int
    dense_parameters: int

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        valid = {name: is_whole(value) and value >= 1 for name, value in given.items()}
        require(self, "shape", {name: (each, "a whole number of at least 1") for name, each in valid.items()})
        if self.top_k > self.experts:
            raise InputError(f"shape.top_k is {self.top_k}: a token uses at most the {self.experts} experts")

    @classmethod
    def of(cls, model: Model) -> "Shape":
        """The shape of a loaded model. Biases do not count: they stay digital.

        InputError if the layers have different numbers of experts.
        """
        numbers = set(model.map.num_experts)
        if len(numbers) != 1:
            raise InputError(
                f"{model.name} has layers of {sorted(numbers)} experts: they have to be equally many"
            )
        network, first = model.network, model.map.moe_layers[0]
        return cls(
            moe_layers=len(model.map.moe_layers),
            experts=first.num_experts,
            top_k=network.config.num_experts_per_tok,
            expert_parameters=sum(network.get_parameter(name).numel() for name in first.weights)
            // first.num_experts,
            dense_parameters=sum(
                network.get_parameter(f"{name}.weight").numel() for name in model.map.linears
            ),
        )


def _shape(model: paper.ModelShape) -> Shape:
    """Shape of one of the paper's models; all heads have keys and values, and embeddings are not tied to the head."""
    attention = model.layers * 4 * model.hidden**2
    head = model.vocabulary * model.hidden
    always_used = model.dense_layers * model.dense_width
    always_used += model.moe_layers * model.shared_experts * model.expert_width
    return Shape(
        moe_layers=model.moe_layers,
        experts=model.experts,
        top_k=model.top_k,
        expert_parameters=MATRICES * model.hidden * model.expert_width,
        dense_parameters=attention + head + MATRICES * model.hidden * always_used,
    )


OLMOE = _shape(paper.OLMOE)
DEEPSEEK_MOE = _shape(paper.DEEPSEEK_MOE)


@dataclass(frozen=True)
class Cost:
    """The cost of a step, which gives every sequence of the batch one token.

    seconds: duration of the step.
    joules: energy of the step.
    """

    batch: int
    seconds: float
    joules: float

    @property
    def tokens_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def tokens_per_joule(self) -> float:
        """Energy efficiency: the paper's tokens/(W s)."""
        return self.batch / self.joules


def used(shape: Shape, batch: int) -> float:
    """Expected fraction of a layer's experts that a batch uses, if tokens choose evenly and independently."""
    return 1 - (1 - shape.top_k / shape.experts) ** batch


def cost(
    shape: Shape,
    digital_experts: float,
    batch: int = paper.TABLE_2_BATCH.value,
    machine: Machine | None = None,
    *,
    dense_digital: bool = True,
) -> Cost:
    """The cost of a step with this fraction of every layer's experts digital.

    dense_digital: False for analog dense modules. Then only energy is known: the published throughput is not explained.
    """
    machine = machine or Machine()
    if not is_finite(digital_experts) or not 0 <= digital_experts <= 1:
        raise InputError(f"digital_experts is {digital_experts!r}: give a fraction from 0 to 1")
    if not is_whole(batch) or batch < 1:
        raise InputError(f"batch is {batch!r}: give a whole number of at least 1")
    all_experts = shape.moe_layers * shape.experts * shape.expert_parameters

    def reading(parameters: float) -> float:
        return parameters * BYTES_PER_PARAMETER / machine.bandwidth

    analog = 0.0
    if digital_experts < 1:
        analog = shape.moe_layers * machine.layer_seconds * max(1, batch / machine.layer_batch)
    dense = reading(shape.dense_parameters) if dense_digital else 0.0
    digital = reading(all_experts * digital_experts * used(shape, batch))
    seconds = dense + max(digital, analog)
    products = all_experts * (1 - digital_experts) * shape.top_k / shape.experts
    if not dense_digital:
        products += shape.dense_parameters
    joules = batch * products * OPERATIONS_PER_PARAMETER / machine.operations_per_joule
    if dense_digital or digital_experts > 0:
        joules += seconds * machine.power
    return Cost(batch, seconds, joules)
