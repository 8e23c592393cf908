"""How does the adapter in a model's folder get into its weights? peft merges it when the model is loaded.

LoRA alone [Hu et al., arXiv 2106.09685]: W + alpha/r B A. Settings under which peft would do something else when it
loads an adapter are refused, and so are patterns, which whoever wrote them could make run without end.
"""

import json
import re
import warnings
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from realmodels.checkpoint import ADAPTER, ADAPTER_CONFIG, no_larger_than
from theory.errors import InputError

# Settings that are passed on.
PASSED = (
    "r", "lora_alpha", "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "use_rslora",
    "rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out",
)  # fmt: skip
# Settings that change no merged weight; the others must have their defaults.
WITHOUT_EFFECT = (
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "lora_dropout", "megatron_core", "qalora_group_size", "loftq_config", "ensure_weight_tying",
)  # fmt: skip
INITIAL = (True, False, "gaussian")  # the others change the model's own weights
NAME = re.compile(r"[\w.]+")


def merge_adapter(network: Any, folder: Path) -> None:
    """Merge the adapter of the folder into the weights of the network, a transformers model.

    InputError if peft is not installed, or if it would not read all of the adapter as LoRA.
    """
    try:
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    except ImportError:
        raise InputError(
            f"{ADAPTER_CONFIG} stands beside the model: `pip install peft`, which merges the adapter, or merge it where"
            " that is installed, or take its files out"
        ) from None
    settings = _settings(folder / ADAPTER_CONFIG, LoraConfig().to_dict())
    try:
        tensors = load_file(folder / ADAPTER)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{ADAPTER} is no intact safetensors file ({error}): get an intact copy") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with no_larger_than(shapes), torch.device("meta"):
                adapted: Any = get_peft_model(network, LoraConfig(**settings), low_cpu_mem_usage=True)
            report: Any = set_peft_model_state_dict(adapted, tensors, low_cpu_mem_usage=True)
            left = [name for name, weight in adapted.named_parameters() if weight.is_meta]
            if not (misfits := sorted([*report.unexpected_keys, *left])):
                adapted.merge_and_unload()
    except InputError:  # of what grew too large
        raise InputError(
            f"{ADAPTER_CONFIG} describes more than {ADAPTER} holds: get the complete adapter"
        ) from None
    except Exception as error:  # of peft, which may raise about anything
        reason = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        raise InputError(
            f"peft cannot merge its adapter ({reason}): get the adapter of this model"
        ) from error
    if misfits:
        raise InputError(
            f"{len(misfits)} of the adapter's tensors do not fit, first {misfits[0]}: get the adapter of this model"
        )


def _settings(path: Path, defaults: dict[str, Any]) -> dict[str, Any]:
    """What is passed to peft; InputError for settings that are more than plain LoRA."""
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is no usable JSON ({error}): get an intact copy") from None
    if not isinstance(given, dict) or given.get("peft_type") != "LORA":
        raise InputError(f"{path.name} is no LoRA adapter: merge it where it was made, and save the result")
    for name, value in given.items():
        if name == "init_lora_weights":
            usable = value in INITIAL
        elif name in PASSED:
            usable = _is_plain(value)
        else:
            usable = name in WITHOUT_EFFECT or value == defaults.get(name) or not value
        if not usable:
            raise InputError(
                f"{path.name} has {name} {str(value)[:60]!r}: merge the adapter where it was made, and save the result"
            )
    return {name: given[name] for name in PASSED if name in given}


def _is_plain(value: Any) -> bool:
    """True for numbers, and lists and tables of names: a text by itself would be a pattern."""
    if isinstance(value, list):
        return all(
            isinstance(each, int) or (isinstance(each, str) and NAME.fullmatch(each)) for each in value
        )
    if isinstance(value, dict):
        return all(NAME.fullmatch(name) and isinstance(each, int | float) for name, each in value.items())
    return value is None or isinstance(value, int | float)
