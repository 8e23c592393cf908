"""How well does a model predict text: next-token loss, top-1 accuracy and bits per byte, with confidence intervals?

The text is one stream: for each document the end-of-text token, then the document's tokens. The stream is cut into
blocks of equal length that overlap by one token, so that every token but the first is predicted once. The first
predictions of a block have little context, for every model alike.

Blocks that share a document resemble each other, so that intervals are over documents: blocks that share one, directly
or through other blocks, are one unit. Where that leaves fewer than LEAST_UNITS units (a text of one document, or a
whole text whose blocks are all chained), up to SECTIONS contiguous sections of the text are the units instead.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from realmodels.devices import device_of
from realmodels.model import Model, require_model
from realmodels.prefix import Prefix
from realmodels.text import HeldOut, check_split
from theory.errors import InputError, shown
from theory.evidence import LEAST_UNITS, Interval, grouped, mean_interval
from theory.strict_json import is_whole

BLOCK_TOKENS = 512
SECTIONS = 32  # of a text that has too few documents to be units
TOKENS_PER_BATCH = {"cpu": 2048, "cuda": 65536}
LOGITS_PER_CHUNK = 2**27  # 512 MiB of fp32, on any device


@dataclass(frozen=True)
class TokenBlocks:
    """Text cut into blocks.

    tokens: (blocks, block_tokens + 1).
    bytes_per_token: UTF-8 bytes of the text over tokens of the stream.
    documents: a label for each block, as `theory.evidence.grouped` takes them: blocks of one label are one unit.
    """

    tokens: Int[Tensor, "blocks tokens_plus_1"]
    bytes_per_token: float
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text. Intervals are at 95 % over the documents of the text [TokenBlocks].

    loss: nats per token.
    accuracy: share of the tokens that were the most likely next token.
    bits_per_byte: bits per byte of UTF-8 text.
    tokens: how many tokens were predicted.
    """

    loss: float
    loss_interval: Interval
    accuracy: float
    accuracy_interval: Interval
    bits_per_byte: float
    tokens: int

    def __str__(self) -> str:
        low, high = self.loss_interval
        return (
            f"loss {self.loss:.4f} nats per token [{low:.4f}, {high:.4f}], top-1 accuracy {self.accuracy:.2%},"
            f" {self.bits_per_byte:.3f} bits per byte, on {self.tokens} tokens"
        )


def token_blocks(
    model: Model,
    texts: Sequence[str],
    block_tokens: int | None = None,
    blocks: int | None = None,
    *,
    purpose: HeldOut | None = None,
) -> TokenBlocks:
    """Cut the text into blocks. An incomplete last block is left out.

    block_tokens: predictions in a block; default: BLOCK_TOKENS, or the model's context if that is shorter.
    blocks: take this many blocks, evenly spread over the text; default: all.
    purpose: what the blocks are for; held-out documents of another split are refused [text.check_split].
    """
    require_model(model)
    if purpose is not None:
        check_split(texts, purpose)
    length = min(BLOCK_TOKENS, model.context) if block_tokens is None else block_tokens
    if not is_whole(length) or not 1 <= length <= model.context:
        raise InputError(
            f"block_tokens is {length!r}: give a whole number from 1 to {model.context}, the context of {model.name}"
        )
    if blocks is not None and (not is_whole(blocks) or blocks < 2):
        raise InputError(
            f"blocks is {blocks!r}: give a whole number of at least 2, or None for the whole text"
        )
    if isinstance(texts, str) or not texts:
        raise InputError(f"texts is {'one string' if texts else 'empty'}: give a list of documents")
    texts = list(texts)
    for number, each in enumerate(texts):
        if not isinstance(each, str):
            raise InputError(f"texts[{number}] is {shown(each)}: give a text")
    eos = model.tokenizer.eos_token_id
    if eos is None:
        raise InputError(
            f"the tokenizer of {model.name} has no end-of-text token: give a model whose has one"
        )
    # verbose: that a document is longer than the context does not matter here
    encoded = model.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    stream = torch.tensor([token for document in encoded for token in (eos, *document)])
    available = (len(stream) - 1) // length
    if available < 2:
        raise InputError(
            f"the text has {len(stream)} tokens: two blocks of {length} are needed, so give at least {2 * length + 1}"
        )
    count = min(blocks or available, available)
    starts = torch.arange(count) * available // count * length
    tokens = stream[starts[:, None] + torch.arange(length + 1)]
    document = torch.repeat_interleave(torch.tensor([1 + len(each) for each in encoded]))
    labels = units_of_text(document[starts + 1].tolist(), document[starts + length].tolist())
    return TokenBlocks(tokens, sum(len(text.encode()) for text in texts) / len(stream), labels)


def units_of_text(first: Sequence[int], last: Sequence[int]) -> tuple[int, ...]:
    """A label for each block, from the numbers of the documents of the first and of the last token it predicts.

    Blocks are in the order of the text.
    """
    start = np.array([True, *(a > b for a, b in zip(first[1:], last, strict=False))])
    labels = np.cumsum(start) - 1
    if labels[-1] + 1 < LEAST_UNITS:
        labels = np.arange(len(first)) * min(SECTIONS, len(first)) // len(first)
    return tuple(labels.tolist())


def blocks_per_batch(network: nn.Module, tokens: Int[Tensor, "blocks tokens_plus_1"]) -> int:
    """Number of blocks that `block_results` gives the network at once."""
    device = device_of(network)
    return max(1, TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"]) // (tokens.shape[1] - 1))


@torch.no_grad()
def block_results(
    network: nn.Module, tokens: Int[Tensor, "blocks tokens_plus_1"], prefix: Prefix | None = None
) -> tuple[Float[Tensor, " blocks"], Float[Tensor, " blocks"]]:
    """Mean loss (nats per token) and share of correct top-1 predictions of each block, fp64 on the CPU.

    prefix: that of the network and these tokens, if they are read more than once.
    """
    device = device_of(network)
    losses, hits = [], []
    for number, batch in enumerate(tokens.to(device).split(blocks_per_batch(network, tokens))):
        with nullcontext() if prefix is None else prefix.reading(number):
            logits = network(input_ids=batch[:, :-1], use_cache=False).logits
        rows_per_chunk = max(1, LOGITS_PER_CHUNK // (logits.shape[1] * logits.shape[2]))
        for scores, target in zip(
            logits.split(rows_per_chunk), batch[:, 1:].split(rows_per_chunk), strict=True
        ):
            loss = F.cross_entropy(scores.float().flatten(0, 1), target.flatten(), reduction="none")
            losses.append(loss.view_as(target).double().mean(1))
            hits.append((scores.argmax(-1) == target).double().mean(1))
    return torch.cat(losses).cpu(), torch.cat(hits).cpu()


def evaluate(
    model: Model, texts: Sequence[str], block_tokens: int | None = None, blocks: int | None = None
) -> Evaluation:
    """Evaluate the model as it is now, deployed or not, on `texts` [token_blocks]."""
    chosen = token_blocks(model, texts, block_tokens, blocks)
    losses, hits = block_results(model.network, chosen.tokens)
    loss = float(losses.mean())
    if not math.isfinite(loss):
        raise InputError(f"the loss of {model.name} is {loss}: check its weights and the hardware's settings")
    return Evaluation(
        loss,
        mean_interval(grouped(losses, chosen.documents)),
        float(hits.mean()),
        mean_interval(grouped(hits, chosen.documents)),
        loss / math.log(2) / chosen.bytes_per_token,
        chosen.tokens[:, 1:].numel(),
    )
