"""How does the corpus become a tokenizer and streams of tokens?"""

import json
import lzma
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from realmodels.text import SPLITS, prose
from theory.errors import InputError
from theory.strict_json import is_whole, loads

FILE: Final = "tokens.json"  # in every token folder
COMPRESSION: Final = 4  # of xz: higher presets take long and save little
DOCUMENTS_AT_ONCE: Final = 1024  # whose tokens are Python's numbers at the same time
END_OF_TEXT: Final = "<|endoftext|>"  # before every document; our tokenizer's only special token, id 0


class TokenFolder(NamedTuple):
    """A folder with a tokenizer and token streams, in files that can be copied alone.

    A stream is the files SPLIT-000.xz, SPLIT-001.xz, ..., as many as are there: little-endian uint16, compressed. An
    end-of-text token is before every document. Where there are several, each has documents chosen at random, so that
    some of them are a random part of the text.

    sizes: for each split, the number of tokens and of the UTF-8 bytes that they stand for, of all files.
    """

    folder: Path
    vocabulary: int
    sizes: dict[str, dict[str, int]]

    @classmethod
    def open(cls, folder: Path) -> "TokenFolder":
        """The folder that `tokenize` wrote; InputError for any other."""
        found = read_object(folder / FILE)
        vocabulary, sizes = found.get("vocabulary"), found.get("sizes")
        if len(found) != 2 or not is_whole(vocabulary) or not isinstance(sizes, dict):
            raise InputError(f"{folder / FILE} has no vocabulary and sizes: make the folder anew")
        return cls(folder, vocabulary, sizes)

    def stream(self, split: str) -> np.ndarray:
        """The tokens of a split, uint16."""
        files = sorted(self.folder.glob(f"{split}-*.xz"))
        if not files:
            raise InputError(f"{self.folder} has no {split}-000.xz: make the folder anew, or copy the file")

        def piece(file: Path) -> np.ndarray:
            return np.frombuffer(lzma.decompress(file.read_bytes()), "<u2")

        try:
            with ThreadPoolExecutor() as pool:  # decompression lets other threads run
                pieces = list(pool.map(piece, files))
        except (lzma.LZMAError, ValueError, OSError) as error:
            raise InputError(
                f"{self.folder} has a damaged {split}-*.xz ({error}): make the folder anew"
            ) from None
        return np.concatenate(pieces).astype(np.uint16, copy=False)


def train_tokenizer(documents: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE [Sennrich et al., 2016]: any text can be encoded, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]) -> np.ndarray:
    """Encode documents as one stream, uint16; an end-of-text token is before every document."""
    before = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    found = [np.empty(0, np.uint16)]
    for start in range(0, len(documents), DOCUMENTS_AT_ONCE):
        some = list(documents[start : start + DOCUMENTS_AT_ONCE])
        encoded = tokenizer(some, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        found += [np.array([before, *ids], np.uint16) for ids in encoded]
    return np.concatenate(found)


def tokenize(
    texts: Path, out: Path, vocabulary: int, share: float = 1.0, pieces: int = 1, seed: int = 0
) -> None:
    """Train a tokenizer on TEXTS/training.txt and write a token folder.

    share: of the training documents, chosen at random, that are read at all.
    pieces: how many files the training stream has. Documents keep their order in one file of all of them.
    """
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if not smallest <= vocabulary <= np.iinfo(np.uint16).max + 1:
        raise InputError(f"the vocabulary is {vocabulary}; give {smallest} to {np.iinfo(np.uint16).max + 1}")
    if not 0 < share <= 1:
        raise InputError(f"the share of the documents is {share}; give more than 0, and at most 1")
    documents: dict[str, Sequence[str]] = {
        split: read(texts / f"{split}.txt").split("\0") for split in SPLITS
    }
    documents["prose"] = prose()
    count = max(int(share * len(documents["training"])), 1)
    if not 1 <= pieces <= count:
        raise InputError(f"the number of pieces is {pieces}; give 1 to {count}, the number of documents")
    if seed < 0:
        raise InputError(f"the seed is {seed}; give a whole number of at least 0")
    if share < 1 or pieces > 1:
        order = np.random.default_rng(seed).permutation(len(documents["training"]))[:count]
        documents["training"] = [documents["training"][index] for index in order]
    tokenizer = train_tokenizer(documents["training"], vocabulary)
    sizes: dict[str, dict[str, int]] = {}
    out.mkdir(parents=True, exist_ok=True)
    for old in (out / FILE, *out.glob("*-*.xz")):  # no folder has files of two
        old.unlink(missing_ok=True)
    for split, found in documents.items():
        parts = np.array_split(np.arange(len(found)), pieces if split == "training" else 1)
        streams = [encode(tokenizer, found[part[0] : part[-1] + 1]) for part in parts]
        for number, stream in enumerate(streams):
            write_stream(out, split, stream, number)
        sizes[split] = {
            "tokens": sum(map(len, streams)),
            "bytes": sum(len(text.encode()) for text in found),
        }
    tokenizer.save_pretrained(out)
    write_json(out / FILE, {"vocabulary": len(tokenizer), "sizes": sizes})
    for split, size in sizes.items():
        print(f"{split}: {size['tokens']} tokens, {size['bytes'] / size['tokens']:.3f} bytes per token")


def write_stream(out: Path, split: str, stream: np.ndarray, number: int = 0) -> None:
    packed = lzma.compress(stream.astype("<u2").tobytes(), preset=COMPRESSION)
    (out / f"{split}-{number:03}.xz").write_bytes(packed)


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give an existing file or folder"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text ({error.reason}): give one") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; InputError for anything else."""
    text = read(path)
    try:
        found = loads(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no object: give entries, each with its value")
    return found


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
