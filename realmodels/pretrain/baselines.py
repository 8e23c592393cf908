"""What does the embedded model have to beat on the evaluation text: xz, and a 5-gram model over its tokens?

    python -m realmodels.pretrain.baselines TOKENS

TOKENS is a folder made by `python -m realmodels.pretrain tokenize`.
"""

import argparse
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, Int64, UInt16

from realmodels.pretrain.tokens import TokenFolder
from realmodels.text import held_out
from theory.errors import InputError, run

ORDER: Final = 5
KEY_BITS: Final = 63  # bits of a non-negative int64
# Discounts of an order without n-grams seen once, twice, three or four times, as happens to unigrams: the values
# that lmplz, of KenLM, takes then.
FALLBACK_DISCOUNTS: Final = (0.5, 1.0, 1.5)


def xz_bits_per_byte(documents: Sequence[str]) -> float:
    """Size under `xz -9e` of the documents, separated by a zero byte, per UTF-8 byte of the documents."""
    compressed = lzma.compress("\0".join(documents).encode(), preset=9 | lzma.PRESET_EXTREME)
    return 8 * len(compressed) / sum(len(document.encode()) for document in documents)


class KneserNey:
    """Interpolated Kneser-Ney n-grams with three discounts per order [Chen & Goodman, 1999, section 3].

    With h a context of k - 1 tokens, h' the same without its first token, and c the count of an n-gram (of the
    highest order: how often it occurs; of a lower one: how many different tokens precede it),

        p(w | h) = (c(hw) - D(c(hw))) / c(h) + b(h) p(w | h'),    c(h) = sum_w c(hw),  b(h) = sum_w D(c(hw)) / c(h)

    and p(w | h) = p(w | h') if h does not occur; below unigrams all tokens are equally likely. An n-gram is one
    integer, its tokens side by side, so that counting is sorting and n-grams with the same context are neighbours.
    """

    def __init__(self, stream: UInt16[np.ndarray, " tokens"], vocabulary: int, order: int = ORDER) -> None:
        self.vocabulary, self.order, self.bits = vocabulary, order, (vocabulary - 1).bit_length()
        if order * self.bits > KEY_BITS:
            raise InputError(
                f"the vocabulary is {vocabulary}; {order}-grams need {2 ** (KEY_BITS // order)} or fewer"
            )
        if len(stream) < order:
            raise InputError(f"the training stream has {len(stream)} tokens; give at least {order}")
        self.orders: list[_Order] = []  # from the unigrams up
        keys = self._keys(np.lib.stride_tricks.sliding_window_view(stream, order))
        for length in range(order, 0, -1):
            self.orders.insert(0, _Order(keys, self.bits))
            keys = self.orders[0].keys & ((1 << (length - 1) * self.bits) - 1)  # distinct n-grams, beheaded

    def _keys(self, grams: UInt16[np.ndarray, "grams length"]) -> Int64[np.ndarray, " grams"]:
        keys = np.zeros(len(grams), np.int64)
        for position in range(grams.shape[1]):
            keys = keys << self.bits | grams[:, position]
        return keys

    def probabilities(self, grams: UInt16[np.ndarray, "grams length"]) -> Float[np.ndarray, " grams"]:
        """The probability of the last token of each n-gram given those before it; at most `order` long."""
        found = np.full(len(grams), 1 / self.vocabulary)
        for length in range(1, grams.shape[1] + 1):
            self.orders[length - 1].interpolate(found, self._keys(grams[:, grams.shape[1] - length :]))
        return found

    def bits_of(self, stream: UInt16[np.ndarray, " tokens"]) -> float:
        """The information in a stream of at least `order` tokens, after the first token, in bits."""
        beginning = [stream[None, :length] for length in range(2, self.order)]
        grams = [*beginning, np.lib.stride_tricks.sliding_window_view(stream, self.order)]
        return float(sum(-np.log2(self.probabilities(same_length)).sum() for same_length in grams))


class _Order:
    """The n-grams of one length, with counts, and the contexts, each with key, total count and back-off weight."""

    def __init__(self, occurrences: Int64[np.ndarray, " occurrences"], bits: int) -> None:
        self.bits = bits
        self.keys, self.counts = np.unique(occurrences, return_counts=True)
        self.discounts = discounts(self.counts)
        self.contexts, starts = np.unique(self.keys >> bits, return_index=True)
        self.totals = np.add.reduceat(self.counts, starts)
        self.backoff = np.add.reduceat(self._discount(self.counts), starts) / self.totals

    def _discount(self, counts: Int64[np.ndarray, " grams"]) -> Float[np.ndarray, " grams"]:
        return self.discounts[np.minimum(counts, 3)]

    def interpolate(self, lower: Float[np.ndarray, " grams"], keys: Int64[np.ndarray, " grams"]) -> None:
        """Turn probabilities of the next lower order into this order's, in place, where the context is known."""
        context, known = _find(self.contexts, keys >> self.bits)
        gram, seen = _find(self.keys, keys)
        counts = np.where(seen, self.counts[gram], 0)
        here = (counts - self._discount(counts)) / self.totals[context] + self.backoff[context] * lower
        np.copyto(lower, here, where=known)


def discounts(counts: Int64[np.ndarray, " grams"]) -> Float[np.ndarray, "4"]:
    """Discounts of the counts 0, 1, 2, and 3 or more [Chen & Goodman, 1999, equation 17]."""
    n1, n2, n3, n4 = (int((counts == count).sum()) for count in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, *FALLBACK_DISCOUNTS])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return found.clip(0, [0, 1, 2, 3])  # few counts can give less than nothing


def _find(ordered: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into a sorted array, and True where the value is there; a missing value has some valid index."""
    index = np.searchsorted(ordered, values).clip(max=len(ordered) - 1)
    return index, ordered[index] == values


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m realmodels.pretrain.baselines",
        description="Bits per byte of the evaluation text without a network.",
    )
    parser.add_argument("tokens", type=Path, help="folder made by python -m realmodels.pretrain tokenize")
    tokens = TokenFolder.open(parser.parse_args(arguments).tokens)
    print(f"xz -9e: {xz_bits_per_byte(held_out('evaluation')):.4f} bits per byte")
    model = KneserNey(tokens.stream("training"), tokens.vocabulary)
    bits = model.bits_of(tokens.stream("evaluation")) / tokens.sizes["evaluation"]["bytes"]
    print(f"Kneser-Ney {ORDER}-gram: {bits:.4f} bits per byte")


if __name__ == "__main__":
    run(main)
