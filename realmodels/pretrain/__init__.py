"""How were the tokenizer and the models of `checkpoints/` trained, and how are the ladder's?

    python -m realmodels.pretrain tokenize TEXTS TOKENS --vocabulary 2048 [--documents SHARE] [--pieces N] [--seed S]
    python -m realmodels.pretrain train TOKENS OUT [KEY=VALUE ...] [--recipe FILE] [--dense] [--seconds S]
    python -m realmodels.pretrain speed TOKENS [KEY=VALUE ...] [--recipe FILE]
    python -m realmodels.pretrain ladder TOKENS OUT [NAME ...] [--seeds S ...] [--minutes M]

TEXTS is the folder that `realmodels.pretrain.corpus` writes. TOKENS is small enough to be carried to a machine with a
GPU: the tokenizer and the token streams of the three splits and of prose. OUT receives the model as transformers saves
it, `recipe.json` and `log.jsonl`. A run that was stopped goes on when it is started again. Choices are made by the loss
on calibration text. Training never reads the evaluation texts: baselines do, and a finished model of the ladder.
`--recipe` also takes the name of a model of the ladder (docs/ladder.md).

Numbers are bf16 on a GPU, with fp32 master weights for the optimiser, and fp32 on a CPU. Under torchrun, `train` and
`speed` use several GPUs.

    recipe       what decides which model is trained
    corpus       training text, `corpus.json` and `wide_corpus.json` (python -m realmodels.pretrain.corpus)
    packages     the pinned packages that it comes from
    readers      prose in the files of Debian's packages
    questions    what must not be in training text, since it is asked later
    tokens       tokenizer and token streams
    transfer     rates and initial weights at other widths
    optimisers   Muon, SGD, and AdamW with one second moment for a tensor
    experts      the experts' products, for training on a GPU
    processes    several GPUs for one model
    training     one step of a run, and the loss on held-out text
    runs         log, checkpoints, resuming, speed
    size         how many parameters a recipe has, and uses for a token
    ladder       models that differ in size
    host         many models on the GPUs of a host
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
