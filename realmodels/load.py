"""Loading models: the embedded one, a local folder, or a hub id. safetensors only, never remote code."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from realmodels import text
from realmodels.families import ModelMap, describe
from theory.errors import InputError

DEFAULT_MODEL = "tiny-olmoe"
CHECKPOINTS = Path(__file__).with_name("checkpoints")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ("*.json", "*.safetensors", "*.model", "*.txt")


@dataclass(frozen=True)
class Model:
    """A loaded model: the transformers network, its tokenizer, where its parts are, and its weights' hash."""

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    map: ModelMap
    weights_hash: str

    @property
    def context(self) -> int:
        """Longest input, in tokens."""
        return int(self.network.config.max_position_embeddings)

    def texts(self, split: Literal["calibration", "evaluation"]) -> Sequence[str]:
        """Documents of the offline corpus [realmodels.text] that no shipped model was trained on."""
        return text.held_out(split)


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Model:
    """A causal MoE language model, ready for inference.

    name_or_path: the name of an embedded checkpoint, a folder with config.json, tokenizer and *.safetensors, or
    a hub id, which needs a network or hub cache. dtype: of all parameters; converters compute in fp32 anyway.
    """
    name = str(name_or_path)
    folder = checkpoint_folder(name)
    _check_weight_files(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        network, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"model {name}: transformers cannot load it ({_first_line(error)}); give a folder that it can"
        ) from error
    problems = {
        key: sorted(map(str, report[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    for key, names in problems.items():
        if names:
            raise InputError(
                f"model {name}: {len(names)} {key.replace('_', ' ')} in its weights, first {names[0]}: get the complete"
                " checkpoint of this architecture"
            )
    for parameter_name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            raise InputError(
                f"model {name}: parameter {parameter_name} has values that are not finite: get an intact copy"
            )
    model_map = describe(network)
    return Model(
        name, network.to(device).eval().requires_grad_(False), tokenizer, model_map, weights_hash(folder)
    )


def checkpoint_folder(name: str) -> Path:
    """The folder that a model's name, path or hub id stands for, fetched from the hub if it is such an id."""
    embedded = CHECKPOINTS / name
    if re.fullmatch(r"[\w.-]+", name) and embedded.is_dir():
        return embedded
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"model {name}: the folder has no config.json: give a folder that save_pretrained wrote"
            )
        return path
    if path.exists() or not HUB_ID.fullmatch(name):
        known = ", ".join(sorted(folder.name for folder in CHECKPOINTS.glob("*/")))
        raise InputError(f"model {name}: neither a folder, nor a hub id (owner/name), nor one of: {known}")
    from huggingface_hub import snapshot_download  # here: the embedded model needs no hub

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except OSError as error:
        raise InputError(
            f"model {name}: cannot be fetched from the hub ({_first_line(error)}); where there is a network, run"
            f" `hf download {name} --local-dir FOLDER` and pass that folder with --model FOLDER"
        ) from error


def weights_hash(folder: Path) -> str:
    """SHA-256 over the checkpoint's config and weight files."""
    digest = hashlib.sha256()
    for path in (folder / "config.json", *sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _check_weight_files(folder: Path) -> None:
    """The weight files are complete safetensors, before anything else looks at them."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern)
        )
        found = f"only {pickles[0]}, a pickle, which can run any code" if pickles else "no weights"
        raise InputError(f"model {folder}: {found}: convert them to safetensors with save_pretrained")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            needed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError):
            raise InputError(
                f"model {folder}: {index.name} is not a weight index: get an intact copy"
            ) from None
        if missing := sorted(needed - {path.name for path in files}):
            raise InputError(f"model {folder}: {missing[0]} is missing: get the complete checkpoint")
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"model {folder}: {path.name} is no intact safetensors file ({error}): get an intact copy"
            ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
