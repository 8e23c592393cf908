"""How likely does a model find continuations of texts? Requests of lm-eval's kind, laid out once and answered often.

A request is answered from the log-probabilities of its continuation's tokens. Requests that have the network read the
same tokens share one row: MMLU's four letters, for one, follow the same question. Rows are read longest first, in
batches of about as many tokens each, and the LM head is computed only where a token is predicted that a request asks
for.

Rows of a batch end where they end; zeros fill it up. They come after the last token that is asked about, so causal
attention keeps them from all that counts. While an analog module counts what saturates [realmodels.analog], a batch
holds rows of one length alone, so that no zero is counted.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from realmodels.devices import device_of
from realmodels.evaluate import LOGITS_PER_CHUNK, TOKENS_PER_BATCH

Pair = tuple[Sequence[int], Sequence[int]]  # tokens of a context, and of its continuation


@dataclass(frozen=True)
class Requests:
    """Requests as rows to read and tokens to look up in them.

    tokens: all rows one after the other, longest first.
    begins: where in `tokens` each row begins; one more entry for the end of the last.
    slots: row and position of each place where the network has to predict, in the order of rows.
    slot: for each token of each continuation, in the order of rows, the place that predicts it.
    target: that token.
    order: those tokens sorted by request.
    first: where in `order` each request begins.
    """

    tokens: Int[Tensor, " tokens"]
    begins: NDArray[np.int64]
    slots: NDArray[np.int64]
    slot: NDArray[np.int64]
    target: NDArray[np.int64]
    order: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.begins)


def requests_of(pairs: Sequence[Pair], context: int) -> Requests:
    """Lay out pairs of non-empty contexts and continuations.

    context: of longer sequences the network reads the last so many tokens, as in lm-eval. No continuation is longer.
    """
    places: dict[tuple[int, ...], int] = {}
    row_of = np.empty(len(pairs), dtype=np.int64)
    for number, (before, continuation) in enumerate(pairs):
        row = (*before, *continuation)[-(context + 1) : -1]
        row_of[number] = places.setdefault(row, len(places))
    rows = list(places)
    longest_first = np.argsort([-len(row) for row in rows], kind="stable")
    rank = np.empty_like(longest_first)
    rank[longest_first] = np.arange(len(rows))
    lengths = np.array([len(rows[number]) for number in longest_first])
    row_of = rank[row_of]

    counts = np.array([len(continuation) for _, continuation in pairs])
    first = np.cumsum(counts) - counts
    request = np.repeat(np.arange(len(pairs)), counts)
    target = np.concatenate([np.asarray(continuation, dtype=np.int64) for _, continuation in pairs])
    # A continuation's last token is predicted at the last position of its row.
    place = lengths[row_of[request]] - counts[request] + np.arange(len(request)) - first[request]
    slots, slot = np.unique(np.stack([row_of[request], place], 1), axis=0, return_inverse=True)
    by_row = np.argsort(slot, kind="stable")
    return Requests(
        tokens=torch.tensor([token for number in longest_first for token in rows[number]]),
        begins=np.concatenate([[0], np.cumsum(lengths)]),
        slots=slots,
        slot=slot[by_row],
        target=target[by_row],
        order=np.argsort(by_row, kind="stable"),
        first=first,
    )


@torch.no_grad()
def log_likelihoods(
    network: nn.Module, requests: Requests, tokens_per_batch: int | None = None
) -> NDArray[np.float64]:
    """(requests,): the sum of the log-probabilities of each continuation's tokens, in nats.

    Log-probabilities are fp32, whatever the network's dtype; in lm-eval that is softmax_dtype="float32".

    tokens_per_batch: at most so many tokens are read at once, or one row if that is longer; default: by the device.
    """
    device = device_of(network)
    budget = tokens_per_batch or TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH["cpu"])
    counting = any(getattr(module, "count_saturation", False) for module in network.modules())
    tokens, begins, lengths = requests.tokens.to(device), torch.from_numpy(requests.begins), requests.lengths
    begins = begins.to(device)
    slots, slot = torch.from_numpy(requests.slots).to(device), torch.from_numpy(requests.slot).to(device)
    target = torch.from_numpy(requests.target).to(device)
    found = torch.empty(len(target), dtype=torch.float64, device=device)
    for low, high in _batches(lengths, budget, one_length=counting):
        at = torch.arange(int(lengths[low]), device=device)
        inside = begins[low:high, None] + at
        rows = torch.where(
            inside < begins[low + 1 : high + 1, None], tokens[inside.clamp(max=len(tokens) - 1)], 0
        )
        from_slot, to_slot = np.searchsorted(requests.slots[:, 0], (low, high))
        from_target, to_target = np.searchsorted(requests.slot, (from_slot, to_slot))
        asked = slots[from_slot:to_slot] - torch.tensor([low, 0], device=device)
        found[from_target:to_target] = _log_probabilities(
            network,
            rows,
            asked,
            slot[from_target:to_target] - int(from_slot),
            target[from_target:to_target],
        )
    return np.add.reduceat(found.cpu().numpy()[requests.order], requests.first)


def _batches(lengths: NDArray[np.int64], budget: int, one_length: bool) -> Iterator[tuple[int, int]]:
    low = 0
    while low < len(lengths):
        high = min(low + max(1, budget // int(lengths[low])), len(lengths))
        if one_length:
            high = min(high, int(np.searchsorted(-lengths, -lengths[low], side="right")))
        yield low, high
        low = high


def _log_probabilities(
    network: nn.Module,
    rows: Int[Tensor, "rows length"],
    asked: Int[Tensor, "slots 2"],
    slot: Int[Tensor, " targets"],
    target: Int[Tensor, " targets"],
) -> Float[Tensor, " targets"]:
    """Log-probability of each target at its slot, in nats; asked: row and position of each slot."""
    with _head_only_at(network, asked):
        logits = network(input_ids=rows, use_cache=False).logits[0]
    chunks = logits.split(max(1, LOGITS_PER_CHUNK // logits.shape[1]))
    normaliser = torch.cat([chunk.float().logsumexp(-1) for chunk in chunks])
    return logits[slot, target].float() - normaliser[slot]


@contextmanager
def _head_only_at(network: Any, asked: Int[Tensor, "slots 2"]) -> Iterator[None]:
    """Within this block the LM head is given (1, slots, hidden) instead of (rows, length, hidden)."""

    def select(_head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        row, position = asked.to(inputs[0].device).unbind(1)
        return inputs[0][row, position][None], *inputs[1:]

    handle = network.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
