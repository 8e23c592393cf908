"""How accurate is a model, zero-shot, on multiple-choice tasks of EleutherAI's lm-evaluation-harness (lm-eval)?

The paper's eight tasks are lm-eval's own. Their questions come from the hub, so they need a network or a hub cache.
`continuation` is ours and needs neither: which of four continuations of a passage of held-out text is the real one?
The wrong ones really continue other passages of the same text and have as many bytes, so that only the context tells.

lm-eval knows `continuation` by its folder, too: `lm_eval --include_path realmodels/lm_eval_tasks --tasks continuation`.
"""

import copy
import hashlib
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Final

import numpy as np

from realmodels.devices import device_of
from realmodels.model import Model
from realmodels.text import held_out
from theory.errors import InputError, did_you_mean
from theory.evidence import Interval, grouped, mean_interval
from theory.paper import TASKS
from theory.strict_json import is_whole

CONTINUATION: Final = "continuation"
# Names are lm-eval's. The metric is acc_norm, which divides a choice's log-likelihood by the choice's length, where
# lm-eval has it. The paper says "zero-shot accuracy"; we do not know which of the two it means.
PAPER_TASKS: Final = tuple(name.lower().replace("-", "_") for name in TASKS.value)
PAPER_METRICS: Final = {
    task: "acc" if task in ("boolq", "winogrande", "mmlu") else "acc_norm" for task in PAPER_TASKS
}
METRICS: Final = {**PAPER_METRICS, CONTINUATION: "acc"}  # choices of equal length need no acc_norm
FOLDER: Final = Path(__file__).with_name("lm_eval_tasks")
# Our task, and the paper's: our sequences are short, while OLMoE's logits for 32 of MMLU's longest take 26 GB.
SEQUENCES_PER_BATCH: Final = {"cpu": (16, 16), "cuda": (256, 32)}

CHOICES: Final = 4
CONTEXT_BYTES: Final = 128  # at least
ANSWER_BYTES: Final = 32  # at least

# lm-eval logs these about the way it is called here, which is as it should be.
_EXPECTED: Final = {
    "lm_eval.models.huggingface": (
        "`pretrained` model kwarg is not of type `str`",
        "Passed an already-initialized model through `pretrained`",
    ),
    "lm_eval.api.task": ("Custom kwargs can be passed to `--metadata`",),
}


@dataclass(frozen=True)
class TaskAccuracy:
    """Accuracy on one task, with a 95 % interval. MMLU's questions are those of all its subjects.

    correct: 1 for each question that the model answers right, 0 for any other, in the task's order.
    documents: number of the document that each question is taken from, or empty where questions have none. The
        interval is over documents, or over questions.
    """

    task: str
    metric: str
    correct: tuple[float, ...]
    documents: tuple[int, ...] = ()

    @property
    def units(self) -> tuple[int, ...]:
        """A label for each question, as `theory.evidence.grouped` takes them."""
        return self.documents or tuple(range(len(self.correct)))

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.correct))

    @property
    def standard_error(self) -> float:
        of_units = grouped(self.correct, self.units)
        return float(np.std(of_units, ddof=1)) / math.sqrt(len(of_units))

    @property
    def interval(self) -> Interval:
        return mean_interval(grouped(self.correct, self.units))


@dataclass(frozen=True)
class TasksAccuracy:
    """Accuracies on several tasks, and the plain mean of these.

    The 95 % interval of the mean adds the half widths of the tasks' intervals in quadrature, which covers for the same
    reason as `theory.evidence.two_way_interval` does.
    """

    tasks: tuple[TaskAccuracy, ...]

    def __getitem__(self, task: str) -> TaskAccuracy:
        return {each.task: each for each in self.tasks}[task]

    @property
    def accuracy(self) -> float:
        return float(np.mean([each.accuracy for each in self.tasks]))

    @property
    def standard_error(self) -> float:
        return math.hypot(*(each.standard_error for each in self.tasks)) / len(self.tasks)

    @property
    def interval(self) -> Interval:
        half = math.hypot(*(each.interval[1] - each.accuracy for each in self.tasks)) / len(self.tasks)
        return self.accuracy - half, self.accuracy + half

    def __str__(self) -> str:
        rows: list[tuple[str, TaskAccuracy | TasksAccuracy, int]]
        rows = [(each.task, each, len(each.correct)) for each in self.tasks]
        if len(rows) > 1:
            rows.append(("mean", self, sum(count for _, _, count in rows)))
        return "\n".join(
            f"{name:<14} {each.accuracy:>7.2%} +- {each.standard_error:.2%}"
            f" [{each.interval[0]:.2%}, {each.interval[1]:.2%}], {count} questions"
            for name, each, count in rows
        )


def evaluate_tasks(
    model: Model, tasks: Sequence[str] = PAPER_TASKS, limit: int | None = None
) -> TasksAccuracy:
    """Accuracy of the model as it is now, deployed or not, on each of `tasks`, zero-shot.

    tasks: names in METRICS, the paper's eight or `continuation`.
    limit: ask only the first questions of each task, this many; of MMLU as many of each subject, rounded up.
    InputError if lm-eval is not installed or a task's questions cannot be fetched.
    """
    if limit is not None and (not is_whole(limit) or limit < 2):
        raise InputError(f"limit is {limit!r}: give a whole number of at least 2, or None for all questions")
    require_tasks(tasks)  # before the first task is run: it may take hours
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet_lm_eval():
        # Not network.device, the device of the first parameter: a parameter on disk is on none.
        device = device_of(model.network)
        ours, papers = SEQUENCES_PER_BATCH.get(device.type, SEQUENCES_PER_BATCH["cpu"])
        found = []
        for task in tasks:
            parts = _load(task)
            network = HFLM(
                pretrained=model.network,
                tokenizer=copy.deepcopy(model.tokenizer),  # lm-eval gives it a padding token
                backend="causal",
                batch_size=papers if task in PAPER_TASKS else ours,
            )
            network._device = device  # where it puts inputs; it takes no device together with a network
            of_each = None if limit is None else math.ceil(limit / len(parts["tasks"]))
            results = evaluate(network, parts, limit=of_each, bootstrap_iters=0)
            samples = [sample for part in results["samples"].values() for sample in part]
            correct = tuple(float(sample[METRICS[task]]) for sample in samples)
            documents = tuple(sample["doc"]["document"] for sample in samples) if task == CONTINUATION else ()
            found.append(TaskAccuracy(task, METRICS[task], correct, documents))
        return TasksAccuracy(tuple(found))


def require_tasks(tasks: Sequence[str]) -> None:
    """InputError, as `evaluate_tasks` raises it, if these tasks cannot be evaluated here."""
    if isinstance(tasks, str) or not tasks:
        raise InputError(f"tasks is {tasks!r}: give a list of some of {', '.join(METRICS)}")
    for task in tasks:
        if task not in METRICS:
            hint = did_you_mean(task, METRICS)
            raise InputError(f"task {task!r}: no such task; give some of {', '.join(METRICS)}{hint}")
    if len(set(tasks)) < len(tasks):
        raise InputError(f"tasks is {', '.join(tasks)}: give each task once")
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"tasks need lm-eval ({error}): run pip install 'paper-repro[lm-eval]', or make, which installs it"
        ) from error
    with _quiet_lm_eval():
        for task in tasks:
            _load(task)


def questions(documents: Iterable[str]) -> list[dict[str, Any]]:
    """The task `continuation` on any documents: each question's `context`, `choices`, and the `label` of the right one.

    `document` is the number of the document that a question is taken from.
    Passages follow each other without overlap, so that no wrong choice is read in the context. A passage is no question
    if its choice would be ambiguous, or if fewer than three other answers have the length of its answer. Questions come
    in random order, so that the first ones are a sample of all. Hashes of the text decide all that is random: the
    questions are the same on every machine.
    """
    cut = [(number, *passage) for number, each in enumerate(documents) for passage in _passages(each)]
    by_size: dict[int, set[str]] = {}
    for _, _, answer in cut:
        by_size.setdefault(len(answer.encode()), set()).add(answer)
    found = []
    for document, context, answer in cut:
        others = [each for each in by_size[len(answer.encode())] - {answer} if each not in context]
        if len(others) < CHOICES - 1 or answer in context:
            continue
        wrong = sorted(others, key=partial(_hash, "wrong", context))[: CHOICES - 1]
        choices = sorted([answer, *wrong], key=partial(_hash, "place", context))
        label = choices.index(answer)
        found.append({"document": document, "context": context, "choices": choices, "label": label})
    return sorted(found, key=lambda question: _hash("order", question["context"]))


@lru_cache(maxsize=1)
def continuation_dataset(**_metadata: object) -> Any:
    """The data that lm_eval_tasks/continuation.yaml names: `questions` on the evaluation text."""
    from datasets import Dataset

    return {"test": Dataset.from_list(questions(held_out("evaluation")))}


def _passages(document: str) -> Iterator[tuple[str, str]]:
    """Contexts and the answers that follow them, both of whole words; an answer is inside one paragraph (a line)."""
    context = answer = ""
    for word in re.findall(r"\s*\S+", document):
        if len(context.encode()) < CONTEXT_BYTES:
            context = (context + word).lstrip()
        elif "\n" in word:
            context, answer = context + answer + word, ""
        else:
            answer += word
            if len(answer.strip().encode()) >= ANSWER_BYTES:
                yield context, answer.strip()
                context = answer = ""


def _hash(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


@lru_cache(maxsize=len(METRICS))  # asking the hub for changed questions takes seconds
def _load(task: str) -> Any:
    """Load a task of lm-eval, or a group of tasks, with its questions; zero-shot."""
    try:
        loaded = _manager(task in PAPER_TASKS).load([task])
    except Exception as error:  # the hub's client has many ways to fail
        if task not in PAPER_TASKS or isinstance(error, InputError):
            raise
        raise InputError(
            f"task {task}: its questions are neither in the hub's cache here nor to be fetched"
            f" ({shorten(str(error), 150, placeholder=' ...')}); run this once where there is a network and bring the"
            f" folder that HF_HOME names, or give the task {CONTINUATION}, which needs none"
        ) from error
    for part in loaded["tasks"].values():
        part.set_config("num_fewshot", 0)
    return loaded


@lru_cache(maxsize=2)
def _manager(paper: bool) -> Any:
    """lm-eval's index of tasks. Its own tasks take seconds to index: only with `paper`."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=FOLDER, include_defaults=paper)


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Hide lm-eval's progress bars, and what it logs about the way it is called here."""
    from lm_eval.api import model, task
    from lm_eval.models import huggingface
    from tqdm import tqdm

    def unexpected(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in _EXPECTED[record.name])

    def no_bar(*arguments: Any, **options: Any) -> Any:
        return tqdm(*arguments, **{**options, "disable": True})

    for name in _EXPECTED:
        logging.getLogger(name).addFilter(unexpected)
    for module in (model, task, huggingface):  # no option hides all of its bars
        module.tqdm = no_bar
    try:
        yield
    finally:
        for module in (model, task, huggingface):
            module.tqdm = tqdm
        for name in _EXPECTED:
            logging.getLogger(name).removeFilter(unexpected)
