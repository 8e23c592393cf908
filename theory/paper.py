"""What does the paper publish? Every number and statement of it that is used here, with its table or figure.

The paper's full text was not at hand: what stands here is what the abstract and public summaries tell. Whatever else
an experiment needs is a choice of ours and stands in that experiment; what we infer from Table 2 stands in
`realmodels/cost.py`. Nothing of the paper's stands in another module, so that one page can be held against the paper.
"""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T = TypeVar("T")
Analog = Literal["nothing", "experts", "everything"]

TITLE = (
    "Robust Heterogeneous Analog-Digital Computing for Mixture-of-Experts Models with Theoretical Generalization"
    " Guarantees"
)
AUTHORS = ("Chowdhury", "Tsai", "Burr", "El Maghraoui", "Liu", "Wang")
ARXIV = "2603.02633"
DATE = "March 2026"


@dataclass(frozen=True, kw_only=True)
class Published(Generic[T]):
    """A number, or several, as the paper states it.

    value: what code computes with.
    said: how the paper has it, in words.
    unit: what the value counts.
    source: table or figure of the paper.
    """

    value: T
    said: str
    unit: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A claim of the paper in words that follow "Published: ...", and its table or figure."""

    text: str
    source: str

    @property
    def cited(self) -> str:
        """The statement with its source, as captions have it."""
        return f"Published (arXiv {ARXIV}, {self.source}): {self.text}."


@dataclass(frozen=True, kw_only=True)
class PlacementRow:
    """A row of Table 2; accuracies in %, digital_parameters in % of all.

    accuracy_error: what the paper prints after +-; None where it is not known to us.
    """

    placement: str
    dense_digital: bool
    digital_experts: float
    digital_parameters: float
    tokens_per_second: float
    tokens_per_joule: float
    accuracy: float
    accuracy_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a model that the paper deploys, from the model's published configuration.

    layers: transformer layers. The first `dense_layers` have no experts but a network of `dense_width`.
    experts, top_k, expert_width: routed experts of a layer, how many of them a token uses, inner width of one.
    shared_experts: experts of that same width that every token uses.
    """

    name: str
    hub: str
    layers: int
    hidden: int
    vocabulary: int
    experts: int
    top_k: int
    expert_width: int
    shared_experts: int = 0
    dense_layers: int = 0
    dense_width: int = 0

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers


# ---------------------------------------------------------------------------------------------- method and setup

METHOD = Statement(
    text="without any retraining, the dense modules stay digital, experts are ranked inside each layer by MaxNNScore,"
    " the top fraction of them stays digital, too, and all others go to analog hardware",
    source="abstract",
)
SCORE = Statement(
    text="MaxNNScore of an expert is the product over its linear layers of the largest L2 norm of a neuron",
    source="method",
)
DIGITAL_EXPERTS = Published(
    value=(0.125, 0.25),
    said="12.5 % or 25 %",
    unit="fraction of the experts of a layer that stay digital",
    source="Figs. 4 and 5",
)
TILE_SIZE = Published(
    value=512,
    said="at most 512 x 512",
    unit="rows and columns of an analog tile",
    source="hardware model",
)
CONVERTER_BITS = Published(
    value=8,
    said="8 bits each",
    unit="bits of a DAC and of an ADC",
    source="hardware model",
)
MAGNITUDES = Published(
    value=(0.0, 2.5),
    said="0 to 2.5",
    unit="smallest and largest c, which multiplies the standard deviation of programming noise",
    source="Figs. 4 and 5",
)
SIMULATOR = Statement(text="analog hardware is simulated by AIHWKIT-Lightning", source="hardware model")
BASELINES = Published(
    value=("activation_frequency", "activation_weight", "router_norm"),
    said="activation frequency, activation weight, router norm",
    unit="strategies that MaxNNScore is compared with, named as in theory/placement.py",
    source="Figs. 4 and 5",
)
TASKS = Published(
    value=("PIQA", "ARC-easy", "ARC-challenge", "BoolQ", "HellaSwag", "WinoGrande", "MathQA", "MMLU"),
    said="eight tasks, zero-shot accuracy",
    unit="names of the tasks",
    source="Table 1",
)
OLMOE = ModelShape(
    name="OLMoE-1B-7B",
    hub="allenai/OLMoE-1B-7B-0924",
    layers=16,
    hidden=2048,
    vocabulary=50304,
    experts=64,
    top_k=8,
    expert_width=1024,
)
DEEPSEEK_MOE = ModelShape(
    name="deepseek-moe-16b-base",
    hub="deepseek-ai/deepseek-moe-16b-base",
    layers=28,
    hidden=2048,
    vocabulary=102400,
    experts=64,
    top_k=6,
    expert_width=1408,
    shared_experts=2,
    dense_layers=1,
    dense_width=10944,
)

# ------------------------------------------------------------------------------------------------------- results

TABLE_1: Published[dict[str, dict[Analog, float]]] = Published(
    value={
        "OLMoE": {"nothing": 63.17, "experts": 62.46, "everything": 61.54},
        "DeepSeekMoE": {"nothing": 61.28, "experts": 61.03, "everything": 55.04},
    },
    said="FP16; experts analog; experts and dense modules analog",
    unit="average accuracy of the eight tasks, in %, by what is analog, with converters and no programming noise",
    source="Table 1",
)
DENSE_SHARE = Published(
    value=0.05,
    said="about 5 %",
    unit="share of the dense modules in the parameters",
    source="Fig. 3",
)
EXPERTS_THAT_HURT_LESS = Published(
    value=(0.8, 0.9),
    said="80-90 %",
    unit="fraction of the experts whose move to analog hardware hurts less than that of the dense modules",
    source="Fig. 3",
)
DENSE_HURTS_MORE = Statement(
    text=f"putting the dense modules, {DENSE_SHARE.said} of the parameters, on analog hardware hurts more than"
    f" putting {EXPERTS_THAT_HURT_LESS.said} of the experts there",
    source="Fig. 3",
)
RECOVERED_AT = Published(
    value=2.5,
    said="c = 2.5",
    unit="magnitude c at which RECOVERED is stated",
    source="Figs. 4 and 5",
)
RECOVERED = Published(
    value=(1 / 3, 1 / 2),
    said="a third to more than a half",
    unit="fraction of the accuracy lost by analog experts that digital experts by MaxNNScore give back",
    source="Figs. 4 and 5",
)
MAXNN_IS_BEST = Statement(
    text=f"MaxNNScore is best, and recovers {RECOVERED.said} of the loss of accuracy at {RECOVERED_AT.said}",
    source="Figs. 4 and 5",
)
FREQUENT_TOKENS = Statement(
    text='experts with high scores serve frequent tokens ("the", "a", "and"), those with low scores rare ones',
    source="Fig. 6",
)
TABLE_2 = Published(
    value=(
        PlacementRow(
            placement="all analog",
            dense_digital=False,
            digital_experts=0.0,
            digital_parameters=0,
            tokens_per_second=768,
            tokens_per_joule=23949,
            accuracy=58.45,
        ),
        PlacementRow(
            placement="dense digital",
            dense_digital=True,
            digital_experts=0.0,
            digital_parameters=5.37,
            tokens_per_second=49781,
            tokens_per_joule=123.92,
            accuracy=60.73,
            accuracy_error=0.10,
        ),
        PlacementRow(
            placement="dense + 25 % of experts digital",
            dense_digital=True,
            digital_experts=0.25,
            digital_parameters=28.65,
            tokens_per_second=14513,
            tokens_per_joule=36.25,
            accuracy=61.82,
            accuracy_error=0.06,
        ),
        PlacementRow(
            placement="all digital",
            dense_digital=True,
            digital_experts=1.0,
            digital_parameters=100,
            tokens_per_second=4220,
            tokens_per_joule=10.55,
            accuracy=63.17,
        ),
    ),
    said="throughput, energy and accuracy of OLMoE by placement",
    unit="tokens/s, tokens/(W s), average accuracy of the eight tasks in %",
    source="Table 2",
)
TABLE_2_BATCH = Published(value=32, said="batch 32", unit="sequences", source="Table 2")
TABLE_2_C = Published(value=1.5, said="c = 1.5", unit="magnitude c of programming noise", source="Table 2")
MORE_DIGITAL_IS_BETTER = Statement(text="more digital is more accurate, row by row", source="Table 2")

THEOREM = Statement(
    text="for binary classification by one MoE layer under expert-choice routing, experts specialised on frequent"
    " tokens end up with larger neurons, and making them digital raises the tolerable magnitude of noise by a factor"
    " Omega(1/gamma), gamma being how much rarer the rare tokens are",
    source="theorem",
)

# Questions about the setup that the sources leave open; each exhibit says which answer it has.
OPEN = (
    "Which weight the noise is scaled by, the largest of a matrix, of a tile or of a tile's column.",
    "Which of two published models of programming noise is meant, `pcm` or `hermes` of theory/hardware.py.",
    "Whether a converter's kappa and lambda are one number for the whole model or one for each layer.",
    "Whether zero-shot accuracy is lm-eval's acc or acc_norm.",
    "The assumptions of the theorem: statements of theory/claims.py are reconstructions.",
)


def published() -> dict[str, Published[object] | Statement | ModelShape]:
    """All that stands above, by the name of its constant, in order."""
    kinds = (Published, Statement, ModelShape)
    return {name: value for name, value in globals().items() if isinstance(value, kinds)}
