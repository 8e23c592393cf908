"""Tasks: our questions are what they claim, and lm-eval's numbers are those of the plain definitions."""

import hashlib
import json
import logging
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import lm_eval.evaluator
import pytest
import torch
from hypothesis import given, settings
from scipy.stats import binom
from small_models import as_model, small_network

from realmodels import tasks, text
from realmodels.deploy import deployed
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
    questions,
    require_tasks,
)
from realmodels.text import documents, held_out, installed_folder
from theory.errors import InputError
from theory.evidence import mean_interval
from theory.hardware import Hardware
from theory.placement import place

LIMIT = 20
OURS = questions(held_out("evaluation"))
QUESTIONS = 2846


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


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The results of lm-eval itself, one entry for each task."""
    found = []
    real = lm_eval.evaluator.evaluate

    def spy(*arguments: Any, **options: Any) -> Any:
        found.append(real(*arguments, **options))
        return found[-1]

    monkeypatch.setattr(lm_eval.evaluator, "evaluate", spy)
    return found


@torch.no_grad()
def log_likelihood(model: Model, context: str, continuation: str) -> float:
    """The sum of the log-probabilities of the continuation's tokens, in nats."""
    before = len(model.tokenizer(context)["input_ids"])
    tokens = torch.tensor(model.tokenizer(context + continuation)["input_ids"])
    rows = model.network(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
    return math.fsum(float(rows[place - 1, tokens[place]]) for place in range(before, len(tokens)))


def check(model: Model, found: TaskAccuracy, results: dict[str, Any]) -> list[list[float]]:
    """Assert that lm-eval's log-likelihoods and verdicts are those of the definitions; return the log-likelihoods."""
    rows = []
    for question, sample, correct in zip(OURS, results["samples"][CONTINUATION], found.correct, strict=False):
        plain = [log_likelihood(model, question["context"], f" {choice}") for choice in question["choices"]]
        rows.append([each for each, _ in sample["filtered_resps"]])
        assert sample["doc"] == question
        assert rows[-1] == pytest.approx(plain, abs=1e-4)
        assert correct == (max(range(4), key=plain.__getitem__) == question["label"])
    assert len(rows) == len(found.correct)
    return rows


def test_lm_eval_computes_what_we_do(model: Model, harness: list[dict[str, Any]]) -> None:
    found = evaluate_tasks(model, [CONTINUATION], LIMIT)
    (results,) = harness
    ours = found[CONTINUATION]
    check(model, ours, results)
    theirs = results["results"][CONTINUATION]
    assert len(ours.correct) == LIMIT and 0.25 < ours.accuracy < 1
    assert ours.accuracy == found.accuracy == pytest.approx(theirs["acc,none"])


def test_standard_errors_are_lm_evals(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval leaves them out with bootstrap_iters=0, as we call it: they are free for a mean, and costly otherwise."""
    real, theirs = lm_eval.evaluator.evaluate, []

    def spy(*arguments: Any, bootstrap_iters: int, **options: Any) -> Any:
        theirs.append(real(*arguments, bootstrap_iters=10, **options))
        return theirs[-1]

    monkeypatch.setattr(lm_eval.evaluator, "evaluate", spy)
    ours = evaluate_tasks(model, [CONTINUATION], 8)[CONTINUATION]
    assert ours.documents == tuple(question["document"] for question in OURS[:8])
    by_question = replace(ours, documents=())
    assert by_question.standard_error == pytest.approx(theirs[0]["results"][CONTINUATION]["acc_stderr,none"])


def test_the_model_is_evaluated_as_it_is_now(model: Model, harness: list[dict[str, Any]]) -> None:
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
    rows.append(check(model, evaluate_tasks(model, [CONTINUATION], 4)[CONTINUATION], harness[-1]))
    with deployed(model, placement, Hardware(c=2.5), texts):
        rows.append(check(model, evaluate_tasks(model, [CONTINUATION], 4)[CONTINUATION], harness[-1]))
    rows.append(check(model, evaluate_tasks(model, [CONTINUATION], 4)[CONTINUATION], harness[-1]))
    assert rows[0] == rows[2] != rows[1]
    after = model.network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_a_tied_head_on_analog_hardware_stays_there(harness: list[dict[str, Any]]) -> None:
    """lm-eval asks the network to tie its weights."""
    tied = as_model(small_network(tie_word_embeddings=True, max_position_embeddings=512))
    assert tied.network.lm_head.weight is tied.network.get_input_embeddings().weight
    placement = place(scores(tied, "maxnn"), 0.0, "none", analog_modules=["lm_head"])
    digital = check(tied, evaluate_tasks(tied, [CONTINUATION], 2)[CONTINUATION], harness[-1])
    with deployed(tied, placement, Hardware(c=2.5), ["noise on analog tiles hurts " * 80] * 2):
        names = set(tied.analog_modules)
        noisy = check(tied, evaluate_tasks(tied, [CONTINUATION], 2)[CONTINUATION], harness[-1])
        assert "lm_head" in names == set(tied.analog_modules)
    assert noisy != digital
    assert tied.network.lm_head.weight is tied.network.get_input_embeddings().weight


def test_nothing_is_left_behind_or_printed(
    model: Model, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    import lm_eval.models.huggingface
    import tqdm

    state = torch.random.get_rng_state()
    vocabulary, padding = len(model.tokenizer), model.tokenizer.pad_token
    evaluate_tasks(model, [CONTINUATION], 2)
    assert (len(model.tokenizer), model.tokenizer.pad_token, padding) == (vocabulary, None, None)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert lm_eval.models.huggingface.tqdm is tqdm.tqdm
    assert not any(logging.getLogger(name).filters for name in tasks._EXPECTED)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_lm_eval_warns_of_is_heard(caplog: pytest.LogCaptureFixture) -> None:
    """The warning here: the context of 64 tokens does not hold the questions."""
    evaluate_tasks(as_model(small_network()), [CONTINUATION], 2)
    assert "exceeds model's maximum length (64)" in caplog.text


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
    tasks._load.cache_clear()
    yield
    tasks._load.cache_clear()


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


def test_the_papers_tasks(model: Model, hub: list[str], harness: list[dict[str, Any]]) -> None:
    """Each task has its metric, zero-shot, on every question; MMLU's subjects are one task."""
    found = evaluate_tasks(model)
    assert tuple(each.task for each in found.tasks) == PAPER_TASKS and len(PAPER_TASKS) == 8
    assert len(set(hub)) == 7 and hub.count("allenai/ai2_arc") == 2 and hub.count("cais/mmlu") == 57
    for ours, results in zip(found.tasks, harness, strict=True):
        theirs = results["results"][ours.task]
        assert ours.accuracy == pytest.approx(theirs[f"{ours.metric},none"])
        assert (ours.metric == "acc_norm") == ("acc_norm,none" in theirs)
        assert set(results["n-shot"].values()) == {0}
        assert len(ours.correct) == 3 * (57 if ours.task == "mmlu" else 1)
        for samples in results["samples"].values():
            for sample in samples:
                assert len(sample["arguments"][0][0]) < 180  # no examples before the question
    assert len({each.accuracy for each in found.tasks}) > 1
    assert found.accuracy == pytest.approx(sum(each.accuracy for each in found.tasks) / 8)
    before = len(hub)
    for limit, counts in ((2, [57, 2]), (58, [114, 3])):  # a subject has three questions, too
        some = evaluate_tasks(model, ["mmlu", "boolq"], limit)
        assert [len(each.correct) for each in some.tasks] == counts
    assert len(hub) == before  # what was loaded is not looked for again


@pytest.mark.parametrize("order", [("continuation", "boolq"), ("boolq", "continuation")])
def test_an_unreachable_task_is_named_before_anything_runs(
    model: Model, harness: list[dict[str, Any]], order: tuple[str, ...]
) -> None:
    with pytest.raises(
        InputError, match="^task boolq: its questions are neither .*HF_HOME.*continuation"
    ) as found:
        evaluate_tasks(model, order, 2)
    assert "\n" not in str(found.value) and not harness
    with pytest.raises(InputError, match=re.escape(str(found.value))):
        require_tasks(order)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["lambada"],), "task 'lambada': no such task; give some of piqa, .*, continuation"),
        (([],), r"tasks is \[\]: give a list"),
        (("continuation",), "tasks is 'continuation': give a list"),
        ((["mmlu", "mmlu"],), "give each task once"),
        ((["continuation"], 1), "limit is 1: give a whole number of at least 2"),
        ((["continuation"], 0.5), "limit is 0.5"),
        ((["continuation"], True), "limit is True"),
    ],
)
def test_bad_arguments(model: Model, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate_tasks(model, *arguments)


def test_without_lm_eval(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    with pytest.raises(InputError, match=r"tasks need lm-eval .*pip install 'paper-repro\[lm-eval\]'"):
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
