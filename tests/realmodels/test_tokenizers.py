"""Tokenizers without tokenizer.json: read as whoever made them reads them, or refused for the right reason."""

import importlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal
from small_models import TEXTS, save, small_network, small_tokenizer

from realmodels import load

SENTENCE = "noise on naïve tiles\n hurts  12 experts of the router"
VOCABULARY = 400


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without any tokenizer."""
    folder = save(small_network(vocab_size=VOCABULARY), tmp_path_factory.mktemp("without"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return folder


@pytest.fixture
def folder(without: Path, tmp_path: Path) -> Path:
    return shutil.copytree(without, tmp_path / "copy")


def name_class(folder: Path, name: str, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name} | settings))


def write_vocabulary(folder: Path) -> None:
    """The small tokenizer as GPT-2 is stored."""
    table = json.loads(small_tokenizer().backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(table["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in table["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")


@pytest.mark.parametrize("name", ["GPT2Tokenizer", pytest.param("Qwen2Tokenizer", marks=pytest.mark.slow)])
def test_vocabulary_and_merges(name: str, folder: Path) -> None:
    write_vocabulary(folder)
    name_class(folder, name)
    tokenizer = load(folder).tokenizer
    for text in (*TEXTS, SENTENCE):
        assert tokenizer(text)["input_ids"] == small_tokenizer()(text)["input_ids"]


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_one_of_the_two(name: str, folder: Path) -> None:
    write_vocabulary(folder)
    (folder / name).unlink()
    assert "the folder has no tokenizer.json, or tokenizer.model, or vocab.json with merges.txt" in refusal(
        folder
    )


@pytest.mark.slow
def test_a_class_that_reads_no_vocabulary(folder: Path) -> None:
    write_vocabulary(folder)
    name_class(folder, "PreTrainedTokenizerFast")
    message = refusal(folder)
    assert (
        "cannot load its tokenizer from vocab.json with merges.txt (ValueError: Couldn't instantiate"
        in message
    )
    assert message.endswith("get an intact copy, or save it as tokenizer.json")


@pytest.mark.slow
def test_a_class_that_gives_other_numbers(folder: Path) -> None:
    """Another class read the same files before."""
    write_vocabulary(folder)
    name_class(folder, "LlamaTokenizer")
    assert "LlamaTokenizer gives tokens other numbers" in refusal(folder)


@pytest.mark.slow
def test_a_class_that_splits_otherwise(folder: Path) -> None:
    """Pieces of words with spaces are no bytes."""
    write_vocabulary(folder)
    for name in ("vocab.json", "merges.txt"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("\\u0120", "\u2581").replace("\u0120", "\u2581"))
    name_class(folder, "GPT2Tokenizer")
    assert "GPT2Tokenizer does not give a text back" in refusal(folder)


@pytest.mark.slow
def test_merges_of_another_tokenizer(folder: Path) -> None:
    write_vocabulary(folder)
    name_class(folder, "GPT2Tokenizer")
    (folder / "merges.txt").write_text("#version: 0.2\nq zz\n")
    assert "cannot load its tokenizer from vocab.json with merges.txt" in refusal(folder)


# ------------------------------------------------------------------------------------------- SentencePiece


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            {"sentencepiece", "google.protobuf"},
            "needs sentencepiece and protobuf: `pip install sentencepiece protobuf`",
        ),
        ({"google.protobuf"}, "needs protobuf: `pip install protobuf`, or save it as tokenizer.json"),
    ],
)
def test_without_the_package(
    missing: set[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("realmodels.checkpoint")
    monkeypatch.setattr(module, "find_spec", lambda name: None if name in missing else True)
    (folder / "tokenizer.model").write_bytes(b"anything")
    assert message in refusal(folder)


@pytest.fixture(scope="module")
def pieces() -> Any:
    """A SentencePiece model such as Llama's: spaces are kept, what is unknown becomes bytes."""
    pytest.importorskip("google.protobuf")
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=VOCABULARY - 20, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize(
    "name", ["LlamaTokenizer", pytest.param("PreTrainedTokenizerFast", marks=pytest.mark.slow)]
)
def test_sentencepiece(name: str, folder: Path, pieces: Any) -> None:
    (folder / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
    name_class(folder, name)
    tokenizer = load(folder).tokenizer
    for text in (*TEXTS, SENTENCE):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)


@pytest.mark.slow
def test_a_class_that_reads_it_as_bytes(folder: Path, pieces: Any) -> None:
    """What transformers takes for OLMoE unless the folder names another: it would be silently wrong."""
    (folder / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
    assert "GPTNeoXTokenizer gives other tokens than SentencePiece" in refusal(folder)


@pytest.mark.slow
def test_another_file_of_that_name(folder: Path, pieces: Any) -> None:
    """As the original Llama 3 has it."""
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert "cannot load its tokenizer from tokenizer.model (RuntimeError: " in refusal(folder)
