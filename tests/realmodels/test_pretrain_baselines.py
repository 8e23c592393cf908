"""The references: Kneser-Ney against its definition in dictionaries, probabilities that add up to one, xz."""

import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from realmodels.pretrain.baselines import KneserNey, discounts, xz_bits_per_byte
from theory.errors import InputError

VOCABULARY = 12


def markov(length: int, seed: int) -> np.ndarray:
    """A stream whose tokens depend on the two before, with one token of the vocabulary never used."""
    generator = np.random.default_rng(seed)
    table = np.random.default_rng(0).dirichlet(np.full(VOCABULARY - 1, 0.3), (VOCABULARY, VOCABULARY))
    stream = [0, 0]
    for _ in range(length - 2):
        stream.append(int(generator.choice(VOCABULARY - 1, p=table[stream[-2], stream[-1]])))
    return np.array(stream, np.uint16)


class Dictionaries:
    """The definition, taken literally: one n-gram at a time."""

    def __init__(self, stream: list[int], order: int) -> None:
        grams = Counter(tuple(stream[i : i + order]) for i in range(len(stream) - order + 1))
        self.counts = {order: grams}
        for length in range(order - 1, 0, -1):
            preceding = defaultdict(set)
            for gram in self.counts[length + 1]:
                preceding[gram[1:]].add(gram[0])
            self.counts[length] = Counter({gram: len(tokens) for gram, tokens in preceding.items()})
        self.discounts = {
            length: discounts(np.array(list(counts.values()))) for length, counts in self.counts.items()
        }

    def probability(self, context: tuple[int, ...], token: int) -> float:
        lower = self.probability(context[1:], token) if context else 1 / VOCABULARY
        counts, discount = self.counts[len(context) + 1], self.discounts[len(context) + 1]
        continuations = [count for gram, count in counts.items() if gram[:-1] == context]
        if not continuations:
            return lower
        count, total = counts[(*context, token)], sum(continuations)
        backoff = sum(discount[min(count, 3)] for count in continuations) / total
        return (count - discount[min(count, 3)]) / total + backoff * lower


@pytest.mark.parametrize(("length", "order"), [(60, 2), (400, 3), (400, 5)])
def test_it_is_the_model_of_its_definition(length: int, order: int) -> None:
    training, evaluation = markov(length, 1), markov(60, 2)
    model, reference = KneserNey(training, VOCABULARY, order), Dictionaries(training.tolist(), order)
    bits = 0.0
    for end in range(1, len(evaluation)):
        context = tuple(evaluation[max(end - order + 1, 0) : end].tolist())
        expected = reference.probability(context, int(evaluation[end]))
        grams = evaluation[None, max(end - order + 1, 0) : end + 1]
        assert model.probabilities(grams)[0] == pytest.approx(expected, rel=1e-12)
        bits -= np.log2(expected)
    assert model.bits_of(evaluation) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize("context_length", range(5))
def test_probabilities_add_up_to_one(context_length: int) -> None:
    model = KneserNey(markov(3000, 3), VOCABULARY)
    contexts = np.random.default_rng(4).integers(VOCABULARY, size=(50, context_length), dtype=np.uint16)
    tokens = np.arange(VOCABULARY, dtype=np.uint16)
    for context in contexts:
        grams = np.column_stack([np.tile(context, (VOCABULARY, 1)), tokens]).astype(np.uint16)
        probabilities = model.probabilities(grams)
        assert probabilities.min() > 0  # the token that never occurs, too
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_context_helps_as_much_as_there_is_in_it() -> None:
    training, evaluation = markov(30_000, 5), markov(5000, 6)
    one, three, five = (KneserNey(training, VOCABULARY, order).bits_of(evaluation) for order in (1, 3, 5))
    assert three < 0.75 * one
    assert five < 1.1 * three  # the longer contexts only cost a little


def test_discounts_are_those_of_chen_and_goodman() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 10, 5, 3])
    assert discounts(counts) == pytest.approx([0, 1 - 2 * 0.5 * 0.5, 2 - 3 * 0.5 * 0.5, 3 - 4 * 0.5 * 0.5])
    assert discounts(np.array([7, 8])).tolist() == [0, 0.5, 1, 1.5]


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="the vocabulary is 8192; 5-grams need 4096 or fewer"):
        KneserNey(markov(10, 0), 8192)
    with pytest.raises(InputError, match="3 tokens; give at least 5"):
        KneserNey(markov(3, 0), VOCABULARY)


@pytest.mark.skipif(shutil.which("xz") is None, reason="xz is not installed")
def test_xz_is_the_command_of_that_name(tmp_path: Path) -> None:
    documents = ["a neuron " * 200, "ein Neuron für sich " * 100]
    file = tmp_path / "text"
    file.write_text("\0".join(documents), encoding="utf-8")
    size = len(subprocess.run(["xz", "-9e", "-c", file], capture_output=True, check=True).stdout)
    ours = xz_bits_per_byte(documents) * sum(len(document.encode()) for document in documents) / 8
    assert ours == pytest.approx(size, abs=16)  # the header notes the thread's block sizes or does not
