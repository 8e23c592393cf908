"""Can the folder of a model be trusted? Looked at before a network is built: somebody else may have made it.

Only regular files of the folder are read, weights from safetensors alone. Nothing that config.json says makes a load
grow or run without bound, nor run code from elsewhere.
"""

import hashlib
import json
import math
import re
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from theory.errors import InputError

CONFIG = "config.json"
INDEX = ".safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
READ = (".json", ".jinja", ".txt", ".model")  # what transformers may read besides weights
TABLES = ("tokenizer.", "vocab", "merges")
LARGEST_CONFIG, LARGEST_TABLE = 2**24, 2**27  # bytes
HASHED_FILES = (CONFIG, "tokenizer*", "*.safetensors")
# Numbers of parts in a config: each part is built, so there cannot be more than tensors, or rows of a tensor.
COUNTS = re.compile(r"layers|experts|heads|blocks|depth|labels|n_layer$|n_head$|head_dim")
TOP_K = re.compile(r"experts_per_tok|moe_top_?k")
TOKENIZER_SECONDS = 60
TOKENIZER_BYTES = 16 * 2**30  # of address space
NEVER_READ = "special_tokens_map_file"  # of tokenizer_config.json: where its maker had it
MOST_TOKENS = 20_000  # that tokenizer_config.json adds
# One of these hangs a pattern that goes back too often.
SAMPLE = "A sentence, and 12345.\n" + "".join(5000 * each for each in "a 1.\n") + "!"
TRY_TOKENIZER = """
import os, resource, sys
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
most = int(sys.argv[2]) if hard == resource.RLIM_INFINITY else min(int(sys.argv[2]), hard)
resource.setrlimit(resource.RLIMIT_AS, (most, hard))
if os.path.isfile(sys.argv[1]):
    from tokenizers import Tokenizer
    Tokenizer.from_file(sys.argv[1]).encode(sys.argv[3])
else:
    from transformers import AutoTokenizer
    AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)(sys.argv[3])
"""

Shapes = Mapping[str, tuple[int, ...]]
_tried = set[frozenset[tuple[str, str]]]()  # tokenizers that work, by the hashes of their files


def check_folder(folder: Path) -> Shapes:
    """The shapes of all tensors in the folder; InputError unless it holds a whole model, safe to read."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"model {folder}: the path is not UTF-8: rename the folder") from None
    names = _regular_files(folder)
    if CONFIG not in names:
        raise InputError(
            f"model {folder}: the folder has no config.json: give a folder that save_pretrained wrote"
        )
    if not names & set(TOKENIZERS):  # transformers would make up an empty one
        raise InputError(
            f"model {folder}: the folder has no {TOKENIZERS[0]}: save the model's tokenizer into it, too"
        )
    if "adapter_config.json" in names:
        raise InputError(
            f"model {folder}: it is an adapter of another model: merge the two and save the result"
        )
    if not any(name.endswith(".safetensors") for name in names):
        pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl")))
        found = f"only {pickles[0]}, a pickle, which can run any code" if pickles else "no weights"
        raise InputError(f"model {folder}: {found}: convert them to safetensors with save_pretrained")
    config = _config(folder, names)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in _weights_files(folder, names, config.get("transformers_weights")):
        try:
            with safe_open(folder / name, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"model {folder}: {name} is no intact safetensors file ({error}): get an intact copy"
            ) from None
    _check_numbers(folder, config, shapes)
    _check_tokenizer(folder, names)
    return shapes


def _regular_files(folder: Path) -> set[str]:
    """Names of the files of the folder; InputError for what is none, as a FIFO, which would hang whoever reads it."""
    names = set()
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"model {folder}: the folder cannot be read ({error.strerror}): make it readable"
        ) from None
    for path in entries:
        try:
            about = path.stat()
        except OSError:  # a link to nothing
            continue
        if stat.S_ISREG(about.st_mode):
            names.add(path.name)
            most = (
                LARGEST_TABLE if path.name.startswith(TABLES) or path.name.endswith(INDEX) else LARGEST_CONFIG
            )
            if path.suffix in READ and about.st_size > most:
                raise InputError(
                    f"model {folder}: {path.name} has more than {most} bytes: get an intact copy"
                )
        elif not stat.S_ISDIR(about.st_mode) or path.suffix in (".safetensors", *READ):
            raise InputError(f"model {folder}: {path.name} is no regular file: get an intact copy")
    return names


def _weights_files(folder: Path, names: set[str], named: str | None) -> list[str]:
    """The safetensors files that hold the weights; InputError for an index, whatever its name, of other files.

    named: what config.json names, a file or an index.
    """
    indexes = {
        name: _indexed(folder, name) for name in sorted(name for name in names if name.endswith(INDEX))
    }
    # In the order of transformers.
    read = named or next((name for name in (WEIGHTS, f"model{INDEX}") if name in names), WEIGHTS)
    files = indexes.get(read, [read])
    if missing := sorted(set(files) - names):
        raise InputError(f"model {folder}: {missing[0]} is missing: get the complete checkpoint")
    return files


def _indexed(folder: Path, name: str) -> list[str]:
    """The files that a weight index names."""
    try:
        needed = sorted(set(_json(folder / name)["weight_map"].values()))
        outside = [file for file in needed if not _is_weights_file(file)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"model {folder}: {name} is not a weight index: get an intact copy") from None
    if outside:
        raise InputError(
            f"model {folder}: {name} names {outside[0]!r}: only safetensors files of the same folder are read"
        )
    return needed


def _is_weights_file(name: str) -> bool:
    return Path(name).name == name and name.endswith(".safetensors")


def _config(folder: Path, names: set[str]) -> dict[str, Any]:
    """Content of config.json; InputError if it has none, or asks for weights in other files."""
    where = f"model {folder}: config.json"
    try:
        config = _json(folder / CONFIG)
    except ValueError as error:
        raise InputError(f"{where} is no usable JSON ({error}): get an intact copy") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InputError(f"{where} names no model_type: give a folder that save_pretrained wrote")
    named = config.get("transformers_weights")
    if named is not None and not (
        isinstance(named, str) and named in names and named.endswith((".safetensors", INDEX))
    ):
        raise InputError(
            f"{where} names the weights {named!r}: only safetensors files of the same folder are read"
        )
    return config


def _check_numbers(folder: Path, config: dict[str, Any], shapes: Shapes) -> None:
    """InputError for numbers that no forward pass can use, or of more parts than there are weights for."""
    where = f"model {folder}: config.json"
    most = max([len(shapes), *(size for shape in shapes.values() for size in shape)])
    for key, value in _entries(config):
        if isinstance(value, float) and math.isnan(value):
            raise InputError(f"{where} has {key} NaN: give a number")
        if isinstance(value, int) and value < 1 and TOP_K.search(key):
            raise InputError(f"{where} has {key} {value}: give at least 1")
        if isinstance(value, int) and value > most and COUNTS.search(key):
            raise InputError(
                f"{where} has {key} {value}, more than its weights have tensors or rows ({most}): get the complete"
                " checkpoint of this architecture"
            )


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a JSON object, however deep, each with the key that is nearest."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _entries(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _entries(each, key)
    else:
        yield key, value


def _json(path: Path) -> Any:
    """Content of a JSON file; ValueError if it has none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except OSError as error:
        raise ValueError(error.strerror) from None


@contextmanager
def no_larger_than(shapes: Shapes, *, packed: bool = False) -> Iterator[None]:
    """Within this block, InputError as soon as a network that is being built has more parts than the weights.

    shapes: of the tensors of the checkpoint. Tied embeddings are built twice, and layers have parts without weights:
    so a few times as many are let through. What does not fit exactly is found when the weights are loaded.
    packed: True if a number of a tensor may hold several quantised weights.
    """
    left = {
        "modules": 1000 + 10 * len(shapes),
        "parameters": (16 if packed else 2) * sum(math.prod(shape) for shape in shapes.values()),
    }

    def spend(what: str, amount: int) -> None:
        left[what] -= amount
        if left[what] < 0:
            raise InputError(
                f"config.json describes more {what} than the weights hold: get the complete checkpoint of this"
                " architecture"
            )

    def module(_parent: nn.Module, _name: str, _child: nn.Module | None) -> None:
        spend("modules", 1)

    def parameter(_parent: nn.Module, _name: str, weight: nn.Parameter | None) -> None:
        spend("parameters", 0 if weight is None else weight.numel())

    handles = [
        register_module_module_registration_hook(module),
        register_module_parameter_registration_hook(parameter),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_tokenizer(folder: Path, names: set[str]) -> None:
    """InputError for a tokenizer that reads other files, or takes longer or more memory than any does."""
    if TOKENIZER_CONFIG in names:
        try:
            config = _json(folder / TOKENIZER_CONFIG)
        except ValueError as error:
            raise InputError(
                f"model {folder}: {TOKENIZER_CONFIG} is no usable JSON ({error}): get an intact copy"
            ) from None
        entries = list(_entries(config))
        counts = [value for key, value in entries if key.endswith("_ids") and isinstance(value, int)]
        if max([*counts, *Counter(key for key, _ in entries).values()], default=0) > MOST_TOKENS:
            raise InputError(
                f"model {folder}: {TOKENIZER_CONFIG} adds more than {MOST_TOKENS} tokens: get an intact copy"
            )
        for key, value in entries:
            names_file = key.endswith(("_file", "_files")) and key != NEVER_READ
            if names_file and value is not None and value not in names:
                raise InputError(
                    f"model {folder}: {TOKENIZER_CONFIG} names {key} {value!r}: only files of the same folder are"
                    " read, take it out"
                )
    digests = frozenset((name, _digest(folder / name)) for name in TOKENIZERS if name in names)
    if digests not in _tried:
        _try_tokenizer(folder, folder / TOKENIZERS[0] if TOKENIZERS[0] in names else folder)
        _tried.add(digests)


def _try_tokenizer(folder: Path, path: Path) -> None:
    """Load the tokenizer from the path, and use it, in a process that can be stopped."""
    command = [sys.executable, "-P", "-c", TRY_TOKENIZER, str(path), str(TOKENIZER_BYTES), SAMPLE]
    try:
        done = subprocess.run(
            command, capture_output=True, check=False, stdin=subprocess.DEVNULL, timeout=TOKENIZER_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"model {folder}: its tokenizer needs more than {TOKENIZER_SECONDS} s for a page: get an intact copy"
        ) from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["it was killed"]
        raise InputError(
            f"model {folder}: transformers cannot load its tokenizer ({last[0][:200]}): get an intact copy"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_hash(folder: Path) -> str:
    """SHA-256 of the files that a model is loaded from."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in HASHED_FILES for path in folder.glob(pattern)):
        digest.update(bytes.fromhex(_digest(path)))
    return digest.hexdigest()
