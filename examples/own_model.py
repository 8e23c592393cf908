"""How does my mixture of experts do on analog hardware?  python examples/own_model.py [FOLDER or HUB_ID]

Without an argument: a small random Mixtral, saved as any checkpoint is, with the tokenizer of tiny-olmoe.
"""

import sys
import tempfile

from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM

from realmodels import deploy, evaluate, load, scores, withdraw
from realmodels.load import CHECKPOINTS
from theory.hardware import Hardware
from theory.placement import place


def main(name: str) -> None:
    model = load(name)
    digital = evaluate(model, model.texts("evaluation"), blocks=8)
    placement = place(scores(model, "maxnn"), digital_fraction=0.25)
    report = deploy(model, placement, Hardware(c=1.5), model.texts("calibration"), seed=0)
    analog = evaluate(model, model.texts("evaluation"), blocks=8)
    print(report, f"digital: {digital}", f"analog: {analog}", sep="\n")
    withdraw(model)  # the model is what it was, bit for bit


if len(sys.argv) > 1:
    main(sys.argv[1])
else:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = AutoTokenizer.from_pretrained(CHECKPOINTS / "tiny-olmoe")
        config = MixtralConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, eos_token_id=0)
        config.intermediate_size = 96
        MixtralForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        main(folder)
