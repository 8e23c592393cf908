"""Can the folder of a model be trusted? Looked at before a network is built: somebody else may have made it.

Only regular files of the folder are read, weights from safetensors alone. Nothing that config.json says makes a load
grow or run without bound, nor run code from elsewhere. Weights themselves are not read yet.
"""

import hashlib
import json
import math
import re
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from realmodels.quantised import Slice, dequantised, method_of
from theory.errors import InputError

CONFIG = "config.json"
INDEX = ".safetensors.index.json"
# The files of a tokenizer: the first that are all there are read.
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
TOKENIZER_CONFIG = "tokenizer_config.json"
WEIGHTS = "model.safetensors"
SHARD = re.compile(r"(?P<set>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
READ = (".json", ".jinja", ".txt", ".model")  # what transformers may read besides weights
TABLES = ("tokenizer.", "vocab", "merges")
LARGEST_CONFIG, LARGEST_TABLE = 2**24, 2**27  # bytes
HASHED_FILES = (CONFIG, "tokenizer*", "vocab.json", "merges.txt", "*.safetensors")
PICKLE = "a pickle, which can run any code"
OTHER_WEIGHTS = {".bin": PICKLE, ".pt": PICKLE, ".pth": PICKLE, ".pkl": PICKLE, ".gguf": "another format"}
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
import json, os, resource, sys
folder, read, sample = sys.argv[1], sys.argv[3], sys.argv[4]
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
most = int(sys.argv[2]) if hard == resource.RLIM_INFINITY else min(int(sys.argv[2]), hard)
resource.setrlimit(resource.RLIMIT_AS, (most, hard))

def main():
    path = os.path.join(folder, read)
    if read == "tokenizer.json":
        from tokenizers import Tokenizer
        Tokenizer.from_file(path).encode(sample)
        return
    if read == "tokenizer.model":
        from sentencepiece import SentencePieceProcessor
        pieces = SentencePieceProcessor(model_file=path).encode(sample)
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
    if read == "tokenizer.model":
        if ids != pieces:
            raise ValueError(type(tokenizer).__name__ + " gives other tokens than SentencePiece")
        return
    with open(path, encoding="utf-8") as file:
        vocabulary, known = json.load(file), tokenizer.get_vocab()
    if any(known.get(token) != number for token, number in vocabulary.items()):
        raise ValueError(type(tokenizer).__name__ + " gives tokens other numbers")
    if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != sample:
        raise ValueError(type(tokenizer).__name__ + " does not give a text back")

try:
    main()
except Exception as error:
    sys.exit(type(error).__name__ + ": " + (str(error).strip().splitlines() or [""])[0])
"""

Shapes = Mapping[str, tuple[int, ...]]
_tried = set[frozenset[tuple[str, str]]]()  # tokenizers that work, by the hashes of their files


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a whole model, safe to read.

    tensors: weights by name. Each is read when it is indexed, and dequantised then if it is stored quantised.
    as_saved: if transformers finds the same tensors in the folder, and reads the same numbers.
    has_adapter: if an adapter is beside them, which has to be merged.
    """

    tensors: Mapping[str, Slice]
    as_saved: bool
    has_adapter: bool

    @property
    def shapes(self) -> Shapes:
        return {name: tuple(tensor.get_shape()) for name, tensor in self.tensors.items()}


def check_folder(folder: Path) -> Checkpoint:
    """What the folder holds; InputError unless it is a whole model, safe to read."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise InputError(f"model {folder}: the path is not UTF-8: rename the folder") from None
    names = _regular_files(folder)
    has_adapter = _has_adapter(folder, names)
    if CONFIG not in names:
        raise InputError(
            f"model {folder}: the folder has no config.json: give a folder that save_pretrained wrote"
        )
    tokenizer = next((files for files in TOKENIZERS if names.issuperset(files)), None)
    if tokenizer is None:  # transformers would make up an empty one
        known = ", or ".join(" with ".join(files) for files in TOKENIZERS)
        raise InputError(
            f"model {folder}: the folder has no {known}: save the model's tokenizer into it, too, with save_pretrained"
        )
    config = _config(folder, names)
    tensors: dict[str, Slice] = {}
    files, usual = _weights_files(folder, names, config.get("transformers_weights"))
    for name in files:
        try:
            with safe_open(folder / name, framework="pt") as file:
                tensors |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"model {folder}: {name} is no intact safetensors file ({error}): get an intact copy"
            ) from None
    try:
        quantisation = method_of(config)
        if quantisation is not None:
            tensors = dequantised(tensors, *quantisation)
    except InputError as error:
        raise InputError(f"model {folder}: {error}") from None
    as_saved = usual and quantisation is None and not has_adapter
    checkpoint = Checkpoint(tensors, as_saved, has_adapter)
    _check_numbers(folder, config, checkpoint.shapes)
    _check_tokenizer(folder, names, tokenizer)
    return checkpoint


def _has_adapter(folder: Path, names: set[str]) -> bool:
    """If an adapter is beside a model; InputError for one that is alone, or cannot be read."""
    if ADAPTER_CONFIG not in names:
        return False
    if not any(name.endswith(".safetensors") and name != ADAPTER for name in names):
        raise InputError(
            f"model {folder}: it is an adapter of another model: put it into the folder of that model, or merge"
            " the two and save the result"
        )
    if ADAPTER not in names:
        raise InputError(
            f"model {folder}: {ADAPTER_CONFIG} belongs to an adapter, but {ADAPTER} is not there: save the adapter as"
            " safetensors, or take that file out"
        )
    return True


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


def _weights_files(folder: Path, names: set[str], named: str | None) -> tuple[list[str], bool]:
    """The safetensors files that hold the weights, and if transformers would find them.

    InputError for an index, whatever its name, of other files.

    named: what config.json names, a file or an index.
    """
    indexes = {
        name: _indexed(folder, name) for name in sorted(name for name in names if name.endswith(INDEX))
    }
    # In the order of transformers.
    read = named or next((name for name in (WEIGHTS, f"model{INDEX}") if name in names), None)
    files = indexes.get(read, [read]) if read else _only_set(folder, names)
    if missing := sorted(set(files) - names):
        raise InputError(f"model {folder}: {missing[0]} is missing: get the complete checkpoint")
    return files, read is not None


def _only_set(folder: Path, names: set[str]) -> list[str]:
    """The files of the weights where none has the usual name: one, or shards without an index."""
    sets: dict[tuple[str, int], str] = {}  # by name and number of shards: a file of it
    for name in sorted(name for name in names if name.endswith(".safetensors") and name != ADAPTER):
        shard = SHARD.fullmatch(name)
        sets.setdefault((shard["set"], int(shard["count"])) if shard else (name, 0), name)
    if not sets:
        others = [
            f"only {name}, {OTHER_WEIGHTS[end]}"
            for name in sorted(names)
            if (end := Path(name).suffix) in OTHER_WEIGHTS
        ]
        raise InputError(
            f"model {folder}: {[*others, 'no weights'][0]}: convert them to safetensors with save_pretrained"
        )
    if len(sets) > 1:
        raise InputError(
            f"model {folder}: it holds {len(sets)} sets of weights, as {' and '.join([*sets.values()][:2])}: keep"
            " one of them"
        )
    ((name, count),) = sets
    shards = [f"{name}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return shards or [name]


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
def no_larger_than(shapes: Shapes) -> Iterator[None]:
    """Within this block, InputError as soon as a network that is being built has more parts than the weights.

    shapes: of the tensors of the checkpoint. Tied embeddings are built twice, and layers have parts without weights:
    so a few times as many are let through. What does not fit exactly is found when the weights are loaded.
    """
    left = {
        "modules": 1000 + 10 * len(shapes),
        "parameters": 2 * sum(math.prod(shape) for shape in shapes.values()),
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


def _check_tokenizer(folder: Path, names: set[str], files: Sequence[str]) -> None:
    """InputError for a tokenizer that reads other files, or takes longer or more memory than any does.

    files: of its vocabulary.
    """
    missing = [name for name in ("sentencepiece", "protobuf") if not _is_installed(name)]
    if files == ("tokenizer.model",) and missing:
        raise InputError(
            f"model {folder}: its {files[0]} needs {' and '.join(missing)}: `pip install {' '.join(missing)}`, or"
            f" save it as {TOKENIZERS[0][0]}"
        )
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
    configs = {CONFIG, TOKENIZER_CONFIG} & names if files != TOKENIZERS[0] else set()
    digests = frozenset((name, _digest(folder / name)) for name in {*files, *configs})
    if digests not in _tried:
        _try_tokenizer(folder, files)
        _tried.add(digests)


def _is_installed(package: str) -> bool:
    name = {"protobuf": "google.protobuf"}.get(package, package)
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # no google at all
        return False


def _try_tokenizer(folder: Path, files: Sequence[str]) -> None:
    """Load the tokenizer, and use it, in a process that can be stopped."""
    command = [sys.executable, "-P", "-c", TRY_TOKENIZER, str(folder), str(TOKENIZER_BYTES), files[0], SAMPLE]
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
        advice = "get an intact copy"
        if files != TOKENIZERS[0]:
            advice += f", or save it as {TOKENIZERS[0][0]}"
        raise InputError(
            f"model {folder}: transformers cannot load its tokenizer from {' with '.join(files)} ({last[0][:200]}):"
            f" {advice}"
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
