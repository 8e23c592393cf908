"""How is a model loaded and checked: an embedded one, a local folder, or a hub id?

Weights are read from safetensors only, and remote code is never run.
"""

import hashlib
import json
import logging as standard_logging
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from realmodels import deepseek_moe  # noqa: F401, registers DeepSeekMoE with the Auto classes
from realmodels.adapter import merge_adapter
from realmodels.checkpoint import check_folder, files_hash, no_larger_than
from realmodels.devices import device_of, weights_of
from realmodels.families import describe
from realmodels.hub import HUB_ID, fetched
from realmodels.model import Model
from realmodels.quantised import Dequantised
from theory.errors import InputError, did_you_mean
from theory.strict_json import is_whole

DEFAULT_MODEL = "tiny-olmoe"
CHECKPOINTS = Path(__file__).with_name("checkpoints")
# Too large to ship: `make NAME` writes it [realmodels.upcycle].
MADE = {
    name: Path(__file__).parents[1] / "results" / name / "model"
    for name in ("smol-moe", "smol-moe-coactivation")
}
TRIED_TOKENS = 8
_LOG = standard_logging.getLogger(__name__)
# Names of tensors in a multimodal checkpoint: what becomes of those of its language model, and which they are.
TEXT_NAMES = {r"^language_model\.": "", r"^model\.language_model\.": "model."}
TEXT_PART = re.compile(r"(model\.)?(language_model|lm_head|embed_tokens|layers|norm)\b")
# Of a config.
DECIDES_NOTHING = ("transformers_version", "transformers_weights", "architectures", "auto_map", "use_cache")


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
) -> Model:
    """Load a causal MoE language model, ready for inference.

    name_or_path: the name of an embedded checkpoint, or of one that `make` makes; a folder with config.json, tokenizer
        and *.safetensors; or a hub id, owner/name or owner/name@revision, which needs a network or hub cache.
    device: where the model computes. "auto" spreads the weights over all GPUs, then CPU memory, then the disk, from
        where they are read at each use [accelerate's device_map="auto"].
    dtype: dtype of all parameters; converters compute in fp32 anyway.
    max_memory: for "auto", bytes or a text such as "20GiB" that weights may take, by the number of a GPU or "cpu";
        default: what is free.
    offload_folder: for "auto", where weights on disk are kept. It gets one folder for each checkpoint and dtype, and
        has to stay there for as long as the model is in use.
    InputError if this is no such model, if weights are missing, superfluous, misshapen or not finite, or do not fit.
    """
    name = str(name_or_path)
    auto = device == "auto"
    if not auto:
        _check_device(device)
        if max_memory is not None or offload_folder is not None:
            raise InputError(
                f"device {device}: max_memory and offload_folder are for device auto; leave them out"
            )
    folder = checkpoint_folder(name)
    checkpoint = check_folder(folder)
    if auto and checkpoint.has_adapter:
        raise InputError(
            f"model {name}: its adapter can be merged on one device alone: give another device than auto, or merge it"
            " and save the result"
        )
    placing: dict[str, Any] = {}
    if auto:
        placing = {"device_map": "auto", "max_memory": None if max_memory is None else dict(max_memory)}
        if offload_folder is not None:
            # Files there are named after parameters: another model's would be overwritten.
            placing["offload_folder"] = Path(offload_folder).expanduser() / f"{files_hash(folder)}-{dtype}"
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            # Which of transformers' implementations computes is not the folder's choice: it may be code of the hub.
            for part in (config, config.get_text_config(decoder=True)):
                part._attn_implementation = part._experts_implementation = None
                if hasattr(part, "quantization_config"):  # transformers gets numbers
                    del part.quantization_config
            whole, (config, naming) = config, _text_part(config)
            with no_larger_than(checkpoint.shapes), torch.device("meta"):
                blank = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
            source: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
            if not checkpoint.as_saved:
                tensors = dict(checkpoint.tensors)
                for tied, kept in blank.all_tied_weights_keys.items() if auto else ():
                    if kept in tensors:  # on disk each name has a file
                        tensors.setdefault(tied, tensors[kept])
                source = {"state_dict": tensors}
            loaded: Any = type(blank).from_pretrained(
                folder if checkpoint.as_saved else None,
                config=blank.config,  # of a multimodal config its text part
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, too
                **source,
                **naming,
                **placing,
            )
            network, report = loaded
            if checkpoint.has_adapter:
                merge_adapter(network, folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except InputError as error:
        raise InputError(f"model {name}: {error}") from None
    except Exception as error:  # a broken config.json makes transformers raise about anything
        if auto and offload_folder is None and "offload_folder" in str(error):
            raise InputError(
                f"model {name}: not all of its weights fit on the devices and in CPU memory (max_memory:"
                f" {max_memory}); give load an offload_folder with space for the rest"
            ) from error
        advice = "give a folder that it can" + (", or another max_memory or offload_folder" if auto else "")
        raise InputError(
            f"model {name}: transformers cannot load it ({_in_short(error)}); {advice}"
        ) from error
    problems = [
        *(f"{key} is missing" for key in sorted(report["missing_keys"])),
        *(
            f"{key} is superfluous"
            for key in sorted(report["unexpected_keys"])
            if not _of_other_parts(key, whole)
        ),
        *(
            f"{key} is {tuple(found)}, not {tuple(wanted)}"
            for key, found, wanted in sorted(report["mismatched_keys"])
        ),
    ]
    if naming and problems:
        raise InputError(
            f"model {name}: it is multimodal, and {type(network).__name__}, the class for its text part, does not find"
            f" {len(problems)} tensors, first {problems[0]}: this architecture is not supported"
        )
    _refuse_misfits(name, problems)
    broken: list[str] = []
    for parameter_name, weight in weights(network):
        wanted = tuple(network.get_parameter(parameter_name).shape)
        if weight.shape != wanted:  # transformers has not looked at what stays on disk
            problems.append(f"{parameter_name} is {tuple(weight.shape)}, not {wanted}")
        elif not torch.isfinite(weight).all():
            broken.append(parameter_name)
    _refuse_misfits(name, sorted(problems))
    if broken:
        raise InputError(
            f"model {name}: parameter {broken[0]} has values that are not finite: get an intact copy"
        )
    if len(tokenizer) > (vocabulary := network.get_input_embeddings().num_embeddings):
        raise InputError(
            f"model {name}: its tokenizer has {len(tokenizer)} tokens, its embedding {vocabulary}: get the"
            " tokenizer that belongs to it"
        )
    try:
        model_map = describe(network)
    except InputError as error:
        raise InputError(f"model {name}: {error}") from None
    if quantised := sum(isinstance(tensor, Dequantised) for tensor in checkpoint.tensors.values()):
        _LOG.warning(
            "model %s: %d of its %d weights were quantised; they are dequantised, and inputs are not quantised",
            *(name, quantised, len(checkpoint.tensors)),
        )
    own_hash = loaded_hash(network, tokenizer)
    if not auto:
        network.to(device)
    model = Model(name, network.requires_grad_(False), tokenizer, model_map, own_hash)
    _try(model)
    return model


def _text_part(config: PreTrainedConfig) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The config of the language model alone, and options that tell from_pretrained how a multimodal one names it.

    InputError if transformers has no class for the language model alone.
    """
    text, causal = config.get_text_config(decoder=True), AutoModelForCausalLM._model_mapping
    own, alone = (causal.get(type(each), None) for each in (config, text))
    if own is alone and own is not None:
        return config, {}
    if alone is not None:
        return text, {"key_mapping": TEXT_NAMES}
    whole: Any = AutoModelForMultimodalLM._model_mapping
    if text is config or type(config) not in whole:
        return config, {}  # which from_pretrained refuses, unless it is no text part of a multimodal model
    raise InputError(
        f"{config.model_type} is multimodal, and transformers has no class for its text part alone, only"
        f" {whole[type(config)].__name__} for all of it: this architecture is not supported"
    )


def _of_other_parts(key: str, config: PreTrainedConfig) -> bool:
    """True for a tensor of a multimodal checkpoint that belongs to no text."""
    return config.get_text_config(decoder=True) is not config and not TEXT_PART.match(key)


@torch.no_grad()
def _try(model: Model) -> None:
    """InputError unless the network computes numbers from a few tokens, whatever its config holds."""
    advice = "get a config.json that belongs to the weights"
    context = getattr(model.network.config, "max_position_embeddings", None)
    if context is not None and not (is_whole(context) and context >= 1):
        raise InputError(f"model {model.name}: config.json has max_position_embeddings {context!r}: {advice}")
    tokens = torch.arange(min(TRIED_TOKENS, context or TRIED_TOKENS), device=device_of(model.network))[None]
    try:
        with _quiet_transformers():
            logits = model.network(input_ids=tokens, use_cache=False).logits
    except Exception as error:
        raise InputError(
            f"model {model.name}: a forward pass fails ({_in_short(error)}); {advice}"
        ) from error
    if logits.isnan().any():
        raise InputError(f"model {model.name}: a forward pass gives NaN; {advice}")


def _refuse_misfits(name: str, problems: Sequence[str]) -> None:
    if problems:
        raise InputError(
            f"model {name}: {len(problems)} of its tensors do not fit its config.json, first {problems[0]}: get"
            " the complete checkpoint of this architecture"
        )


def checkpoint_folder(name: str) -> Path:
    """The folder that a model's name, path or hub id stands for, fetched from the hub if it is such an id."""
    embedded = {folder.name: folder for folder in sorted(CHECKPOINTS.glob("*/"))}
    if name in embedded:
        return embedded[name]
    if name in MADE:
        if not (MADE[name] / "config.json").is_file():
            raise InputError(
                f"model {name} is too large to be shipped: `make {name}` makes it, on a machine with a GPU"
            )
        return MADE[name]
    try:
        path = Path(name).expanduser()
        if name and path.is_dir():
            return path
        if path.is_file():
            raise InputError(f"model {name}: it is a file: give the folder that it is in")
    except (OSError, RuntimeError):  # too long for a path, or the home of a user that does not exist
        pass
    if not HUB_ID.fullmatch(name):
        raise InputError(
            f"model {name}: neither a folder, nor a hub id (owner/name), nor one of: {', '.join((*embedded, *MADE))}"
            f"{did_you_mean(name, (*embedded, *MADE))}"
        )
    return fetched(name)


def loaded_hash(network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of config, tokenizer and weights as they are loaded, which decide every result together with the text.

    Folders that hold the same model in other files have the same hash.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = {
        "config": _without_origin(network.config.to_dict()),
        "computed by": [network.config._attn_implementation, network.config._experts_implementation],
        "tokenizer": {
            "vocabulary": tokenizer.get_vocab(),
            "special tokens": tokenizer.special_tokens_map,
            "added before and after": [
                getattr(tokenizer, f"add_{name}_token", None) for name in ("bos", "eos")
            ],
            "longest input": tokenizer.model_max_length,
            "splits special tokens": tokenizer.split_special_tokens,
            "pieces": None if backend is None else backend.to_str(),
        },
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    stored = network.state_dict().keys()  # other buffers are computed from the config
    parts = [*(each for each in network.named_buffers() if each[0] in stored), *weights(network)]
    with ThreadPoolExecutor() as threads:
        for each in threads.map(_tensor_hash, *zip(*parts, strict=True)):
            digest.update(each)
    return digest.hexdigest()


def weights(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters by name, wherever accelerate keeps them."""
    for name, module in network.named_modules():
        for own_name, weight in weights_of(module).items():
            yield f"{name}.{own_name}", weight


def _tensor_hash(name: str, tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(content.data)
    return digest.digest()


def _without_origin(config: Any) -> Any:
    """The config without where it comes from, and without what changes no loss."""
    if not isinstance(config, dict):
        return config
    return {
        key: _without_origin(value)
        for key, value in config.items()
        if not str(key).startswith("_") and key not in DECIDES_NOTHING
    }


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device {device}: torch cannot use it ({_in_short(error)}); give cpu or cuda, or auto for all there are"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hide the progress bars and tables of transformers; what matters of them becomes an InputError."""
    verbosity, progress_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    accelerate = standard_logging.getLogger("accelerate")
    level = accelerate.level
    logging.set_verbosity_error()
    accelerate.setLevel(standard_logging.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        accelerate.setLevel(level)
        if progress_bars:
            logging.enable_progress_bar()


def _in_short(error: Exception) -> str:
    """The error in one line; the rest of transformers' message is about a table that is not shown."""
    return shorten(f"{type(error).__name__}: {error}".partition(" For details")[0], 200, placeholder=" ...")
