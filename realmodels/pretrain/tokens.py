"""How does the corpus become a tokenizer and streams of tokens?"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from realmodels.text import SPLITS
from theory.errors import InputError

END_OF_TEXT: Final = "<|endoftext|>"  # before every document; our tokenizer's only special token, id 0


class TokenFolder(NamedTuple):
    """A folder with a tokenizer and token streams.

    sizes: for each split, the number of tokens and of the UTF-8 bytes that they stand for.
    """

    folder: Path
    vocabulary: int
    sizes: dict[str, dict[str, int]]

    @classmethod
    def open(cls, folder: Path) -> "TokenFolder":
        return cls(folder, **json.loads(read(folder / "tokens.json")))

    def stream(self, split: str) -> np.ndarray:
        """The tokens of a split, uint16; an end-of-text token is before every document."""
        with np.load(self.folder / "tokens.npz") as streams:
            return streams[split]


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
    encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    before = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    return np.concatenate([np.array([before, *ids], np.uint16) for ids in encoded])


def tokenize(texts: Path, out: Path, vocabulary: int) -> None:
    """Train a tokenizer on TEXTS/training.txt and write a token folder."""
    smallest = len(pre_tokenizers.ByteLevel.alphabet()) + 1
    if not smallest <= vocabulary <= np.iinfo(np.uint16).max + 1:
        raise InputError(f"the vocabulary is {vocabulary}; give {smallest} to {np.iinfo(np.uint16).max + 1}")
    documents = {split: read(texts / f"{split}.txt").split("\0") for split in SPLITS}
    tokenizer = train_tokenizer(documents["training"], vocabulary)
    streams = {split: encode(tokenizer, found) for split, found in documents.items()}
    sizes = {
        split: {"tokens": len(streams[split]), "bytes": sum(len(text.encode()) for text in documents[split])}
        for split in SPLITS
    }
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    np.savez_compressed(out / "tokens.npz", **streams)  # type: ignore[arg-type]
    write_json(out / "tokens.json", {"vocabulary": len(tokenizer), "sizes": sizes})
    for split, size in sizes.items():
        print(f"{split}: {size['tokens']} tokens, {size['bytes'] / size['tokens']:.3f} bytes per token")


def read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}): give an existing file or folder"
        ) from None


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
