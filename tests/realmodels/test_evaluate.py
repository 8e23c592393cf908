"""Loss, accuracy and bits per byte, against the plain definitions computed block by block in fp64."""

import copy
import importlib
import logging
import math
from dataclasses import replace
from itertools import combinations
from logging.handlers import BufferingHandler
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from small_models import (
    CONTEXT,
    OTHER_CONFIGS,
    TEXTS,
    VOCABULARY,
    as_model,
    in_fp64,
    network_of,
    small_model,
    small_network,
    small_tokenizer,
)
from torch import Tensor, nn

from realmodels import evaluate
from realmodels.evaluate import BLOCK_TOKENS, SECTIONS, block_results, token_blocks
from realmodels.load import Model
from realmodels.pretrain import encode
from theory.errors import InputError
from theory.evidence import LEAST_UNITS, grouped, mean_interval

module = importlib.import_module("realmodels.evaluate")  # the package has the function under this name
# What is left to rounding is the loss itself, which is in fp32: a rounding by 2^-24 of the logit, and one for every
# term of the sum over the vocabulary.
MODEL = as_model(in_fp64(small_network()))
ROUNDING = 2 * VOCABULARY * 2.0**-24


def stream() -> list[int]:
    """The stream of the training recipe: an end-of-text token before every document."""
    tokens: list[int] = []
    for text in TEXTS:
        tokens += [0, *small_tokenizer()(text)["input_ids"]]
    return tokens


def plain_results(network: Any, blocks: Tensor) -> tuple[list[float], list[float]]:
    losses, hits = [], []
    for block in blocks:
        probabilities = network(input_ids=block[None, :-1]).logits[0].detach().double().log_softmax(-1)
        terms = [-float(row[token]) for row, token in zip(probabilities, block[1:], strict=True)]
        right = [int(row.argmax()) == int(token) for row, token in zip(probabilities, block[1:], strict=True)]
        losses.append(sum(terms) / len(terms))
        hits.append(sum(right) / len(right))
    return losses, hits


# ------------------------------------------------------------------------------------------- blocks


@settings(max_examples=50)
@given(length=st.integers(1, CONTEXT))
def test_every_token_but_the_first_is_predicted_once(length: int) -> None:
    """Tokens after the last whole block are left out; every input is the target before it."""
    tokens, expected = token_blocks(MODEL, TEXTS, length).tokens, torch.tensor(stream())
    predictions = (len(expected) - 1) // length * length
    assert tokens.shape == (predictions // length, length + 1)
    assert torch.equal(tokens[:, 1:].flatten(), expected[1 : predictions + 1])
    assert torch.equal(tokens[:, :-1].flatten(), expected[:predictions])


@settings(max_examples=50)
@given(length=st.integers(1, CONTEXT), blocks=st.integers(2, 100))
def test_a_subset_is_spread_evenly(length: int, blocks: int) -> None:
    """The choice begins with the first block, and gaps between chosen blocks differ by at most one block."""
    everything, subset = token_blocks(MODEL, TEXTS, length), token_blocks(MODEL, TEXTS, length, blocks)
    available = len(everything.tokens)
    count = min(blocks, available)
    chosen = [number * available // count for number in range(count)]
    assert torch.equal(subset.tokens, everything.tokens[chosen])
    gaps = {
        after - before for before, after in zip([*chosen, available], [*chosen[1:], available], strict=False)
    }
    assert chosen[0] == 0 and min(gaps | {1}) > 0 and max(gaps) - min(gaps) <= 1
    assert subset.bytes_per_token == everything.bytes_per_token
    assert torch.equal(subset.tokens, token_blocks(MODEL, TEXTS, length, blocks).tokens)


def test_the_stream_is_that_of_training() -> None:
    tokens = token_blocks(MODEL, TEXTS, 1).tokens
    assert tokens[:, 0].tolist() == encode(small_tokenizer(), TEXTS).tolist()[:-1]


def test_bytes_are_those_of_utf8() -> None:
    """All tokens of the stream count, also those before documents; "ï" has two bytes."""
    texts = ("naïve " * 40, "", "naïve")
    encoded = sum(1 + len(small_tokenizer()(text)["input_ids"]) for text in texts)
    assert token_blocks(MODEL, texts, 8).bytes_per_token == (7 * 40 + 6) / encoded


def test_default_length() -> None:
    assert token_blocks(MODEL, TEXTS).tokens.shape[1] == CONTEXT + 1
    long = small_model(max_position_embeddings=4 * BLOCK_TOKENS)
    assert token_blocks(long, TEXTS).tokens.shape[1] == BLOCK_TOKENS + 1
    assert token_blocks(long, TEXTS, 2 * BLOCK_TOKENS).tokens.shape[1] == 2 * BLOCK_TOKENS + 1


@settings(max_examples=30)
@given(length=st.integers(1, 12), blocks=st.integers(8, 60))
def test_blocks_of_one_document_are_one_unit(length: int, blocks: int) -> None:
    """Against the components of the graph of blocks that predict a token of the same document."""
    owner = [number for number, text in enumerate(TEXTS) for _ in [0, *small_tokenizer()(text)["input_ids"]]]
    available = (len(owner) - 1) // length
    count = min(blocks, available)
    starts = [number * available // count * length for number in range(count)]
    read = [set(owner[start + 1 : start + length + 1]) for start in starts]
    label = list(range(count))
    for first, second in combinations(range(count), 2):
        if read[first] & read[second]:
            label = [label[first] if each == label[second] else each for each in label]
    found = token_blocks(MODEL, TEXTS, length, blocks).documents
    if len(set(label)) >= LEAST_UNITS:
        assert len(set(zip(found, label, strict=True))) == len(set(found)) == len(set(label))
    else:
        assert len(set(found)) == min(SECTIONS, count)


def test_sections_of_a_text_of_one_document() -> None:
    """At most 32 contiguous sections whose sizes differ by one at most."""
    for blocks in (2, 5, 31, 32, 33, 100):
        found = token_blocks(MODEL, ["".join(TEXTS) * 9], 1, blocks).documents
        sizes = np.unique(found, return_counts=True)[1]
        assert sorted(found) == list(found) and len(sizes) == min(blocks, 32)
        assert sizes.max() - sizes.min() <= 1


def test_documents_may_be_longer_than_the_context() -> None:
    """transformers gives no warning; its default logger does not reach pytest's."""
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.model_max_length = 16
    logger, handler = logging.getLogger("transformers"), BufferingHandler(capacity=10)
    logger.addHandler(handler)
    try:
        token_blocks(replace(MODEL, tokenizer=tokenizer), TEXTS)
    finally:
        logger.removeHandler(handler)
    assert not handler.buffer


# ------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("name", ["olmoe", *OTHER_CONFIGS])
def test_results_are_the_plain_definitions(name: str) -> None:
    model = as_model(in_fp64(network_of(OTHER_CONFIGS[name]))) if name in OTHER_CONFIGS else MODEL
    blocks = token_blocks(model, TEXTS, 20, 9)
    losses, hits = plain_results(model.network, blocks.tokens)
    found = evaluate(model, TEXTS, 20, 9)
    loss = sum(losses) / len(losses)
    assert found.loss == pytest.approx(loss, abs=ROUNDING)
    assert found.accuracy == pytest.approx(sum(hits) / len(hits), abs=1e-12)
    # Total nats over the bytes that the predicted tokens stand for, at the text's mean.
    assert found.bits_per_byte == pytest.approx(
        20 * sum(losses) / math.log(2) / (9 * 20 * blocks.bytes_per_token), abs=ROUNDING
    )
    assert found.tokens == 9 * 20
    units = blocks.documents
    assert found.loss_interval == pytest.approx(mean_interval(grouped(losses, units)), abs=10 * ROUNDING)
    assert found.accuracy_interval == pytest.approx(mean_interval(grouped(hits, units)), abs=1e-12)
    low, high = found.loss_interval
    assert low < found.loss < high


class Bigrams(nn.Module):
    """A language model that is a table: row t has the logits after token t."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_prediction_is_judged_by_the_token_that_follows(dtype: torch.dtype) -> None:
    """The loss is computed in fp32, whatever the model computes in."""
    logits = 3 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0))
    tokens = token_blocks(MODEL, TEXTS, 20).tokens
    logits[tokens[:, :-1], tokens[:, 1:]] += 9  # what occurs is likely
    network = Bigrams(logits.to(dtype))
    losses, hits = block_results(network, tokens)
    expected, right = plain_results(lambda input_ids: network(input_ids, False), tokens)
    assert (losses - torch.tensor(expected)).abs().max() <= ROUNDING
    assert hits.tolist() == pytest.approx(right, abs=1e-12) and 0 < hits.mean() < 1
    assert losses.dtype == hits.dtype == torch.float64 and not losses.requires_grad


@settings(max_examples=25)
@given(
    tokens_per_batch=st.integers(1, 5000),
    logits_per_chunk=st.integers(1, 400_000),
    length=st.integers(1, 40),
    count=st.integers(2, 12),
)
def test_batches_and_chunks_do_not_matter(
    tokens_per_batch: int, logits_per_chunk: int, length: int, count: int
) -> None:
    tokens = token_blocks(MODEL, TEXTS, length, count).tokens
    losses, hits = block_results(MODEL.network, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.TOKENS_PER_BATCH, "cpu", tokens_per_batch)
        patch.setattr(module, "LOGITS_PER_CHUNK", logits_per_chunk)
        again, hits_again = block_results(MODEL.network, tokens)
    assert losses.shape == (count,) and torch.equal(hits, hits_again)
    assert (losses - again).abs().max() <= ROUNDING


def test_batches_have_the_size_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch holds as many blocks as fit, but at least one; the network keeps no cache of keys and values."""
    seen: list[tuple[int, ...]] = []
    network = small_model().network

    def watch(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        assert not inputs["use_cache"]
        seen.append(tuple(inputs["input_ids"].shape))

    network.register_forward_pre_hook(watch, with_kwargs=True)
    monkeypatch.setitem(module.TOKENS_PER_BATCH, "cpu", 100)
    block_results(network, token_blocks(MODEL, TEXTS, 29, 7).tokens)
    assert seen == [(3, 29), (3, 29), (1, 29)]
    monkeypatch.setitem(module.TOKENS_PER_BATCH, "cpu", 1)
    seen.clear()
    block_results(network, token_blocks(MODEL, TEXTS, 29, 2).tokens)
    assert seen == [(1, 29), (1, 29)]


def test_report() -> None:
    found = evaluate(MODEL, TEXTS, 16, 4)
    assert str(found).startswith(f"loss {found.loss:.4f} nats per token [")
    assert f"{found.bits_per_byte:.3f} bits per byte, on 64 tokens" in str(found)


# ------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("value", [0, -1, CONTEXT + 1, True, 2.0, "16"])
def test_block_tokens_are_checked(value: Any) -> None:
    with pytest.raises(
        InputError, match=f"block_tokens is {value!r}: give a whole number from 1 to {CONTEXT}"
    ):
        evaluate(MODEL, TEXTS, value)


@pytest.mark.parametrize("value", [0, -1, 1, True, 2.0, "16"])
def test_blocks_are_checked(value: Any) -> None:
    with pytest.raises(InputError, match=f"blocks is {value!r}: give a whole number of at least 2"):
        evaluate(MODEL, TEXTS, 16, value)


@pytest.mark.parametrize(
    ("texts", "message"), [([], "empty"), ((), "empty"), ("", "empty"), (TEXTS[0], "one string")]
)
def test_texts_are_a_list(texts: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"texts is {message}: give a list of documents"):
        evaluate(MODEL, texts)


def test_text_of_less_than_two_blocks() -> None:
    """2 * 10 predictions need 21 tokens; "Q" is not in the tokenizer's training text, so it is one token."""
    with pytest.raises(InputError, match="the text has 20 tokens: two blocks of 10 are needed.*at least 21"):
        evaluate(MODEL, ["Q" * 19], 10)
    assert token_blocks(MODEL, ["Q" * 19, ""], 10).tokens.shape == (2, 11)
    with pytest.raises(InputError, match="the text has 1 tokens"):
        evaluate(MODEL, [""])


def test_tokenizer_without_end_of_text() -> None:
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="the tokenizer of small has no end-of-text token"):
        evaluate(replace(MODEL, tokenizer=tokenizer), TEXTS)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_no_number(value: float) -> None:
    model: Model = small_model()
    model.network.get_parameter("lm_head.weight").data[3, 0] = value
    with pytest.raises(InputError, match="the loss of small is nan: check its weights"):
        evaluate(model, TEXTS)
