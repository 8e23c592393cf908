"""How were the tokenizer and the models of `checkpoints/` trained?

    python -m realmodels.pretrain tokenize TEXTS TOKENS --vocabulary 2048
    python -m realmodels.pretrain train TOKENS OUT [--recipe FILE] [KEY=VALUE ...] [--dense] [--seconds S]

TEXTS is the folder that `realmodels.pretrain.corpus` writes. TOKENS is small enough to be carried to a machine with a
GPU: the tokenizer and the token streams of the three splits. OUT receives the model as transformers saves it,
`recipe.json` and `log.jsonl`. A run that was stopped goes on when it is started again. Choices are made by the loss on
calibration text. Training never reads the evaluation split, which is there for the baselines.

Numbers are bf16 on a GPU, with fp32 master weights for the optimiser, and fp32 on a CPU.

    recipe       what decides which model is trained
    corpus       training text, `corpus.json` and `wide_corpus.json` (python -m realmodels.pretrain.corpus)
    packages     the pinned packages that it comes from
    readers      prose in the files of Debian's packages
    questions    what must not be in training text, since it is asked later
    tokens       tokenizer and token streams
    optimisers   Muon, SGD, and AdamW with one second moment for a tensor
    training     one step of a run, and the loss on held-out text
    runs         log, checkpoints, resuming
    baselines    what a model has to beat (python -m realmodels.pretrain.baselines)
"""

from realmodels.pretrain.optimisers import SGD, Muon, OneRmsAdamW
from realmodels.pretrain.recipe import Recipe
from realmodels.pretrain.runs import steps_within, train
from realmodels.pretrain.tokens import END_OF_TEXT, TokenFolder, encode, tokenize, train_tokenizer
from realmodels.pretrain.training import BiasedRouter, Routing, Training

__all__ = [
    "END_OF_TEXT",
    "SGD",
    "BiasedRouter",
    "Muon",
    "OneRmsAdamW",
    "Recipe",
    "Routing",
    "TokenFolder",
    "Training",
    "encode",
    "steps_within",
    "tokenize",
    "train",
    "train_tokenizer",
]
