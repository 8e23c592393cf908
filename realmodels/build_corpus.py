"""Builds the training text and `corpus.json`. Needed only to train again; evaluation does not use it.

    python -m realmodels.build_corpus SITES OUT

SITES is a folder with one subfolder per package, as `pip install --no-deps --target SITES/NAME NAME==VERSION` makes it;
the packages and versions used for the shipped models are in `corpus.json`. The held-out packages are taken from the
running environment. OUT receives `training.txt`, `calibration.txt`, `evaluation.txt`: documents separated by a zero
byte; never commit them, they are other people's text.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

from joblib import Parallel, delayed

from realmodels.text import (
    CORPUS_FILE,
    HELD_OUT_PACKAGES,
    FirstOccurrence,
    _installed_folder,
    _paragraph_hash,
    documents,
    text_hash,
)


def _everything(paragraph: str) -> bool:
    return True


def _package_documents(folder: Path, package: str, split: str | None = None) -> list[str]:
    return documents(folder, package, _everything, split)


def _deduplicate(found: list[str], keep: FirstOccurrence) -> list[str]:
    kept = ("\n".join(p for p in document.split("\n") if keep(p)) for document in found)
    return [document for document in kept if document]


def _hashes(found: list[str]) -> set[str]:
    return {_paragraph_hash(p) for document in found for p in document.split("\n")}


def main(sites: Path, out: Path) -> None:
    own = {package: _installed_folder(package) for package in HELD_OUT_PACKAGES}
    others = {
        folder.name: top for folder in sorted(sites.iterdir()) if folder.name not in own for top in [folder]
    }
    jobs = [(folder, package, split) for package, folder in own.items() for split in ("training", "calibration", "evaluation")]
    jobs += [(top, package, None) for package, top in others.items()]
    results = Parallel(n_jobs=-1, verbose=5)(delayed(_package_documents)(*job) for job in jobs)
    raw: dict[str, list[str]] = {"training": [], "calibration": [], "evaluation": []}
    for (_, _, split), found in zip(jobs, results, strict=True):
        raw[split or "training"] += found
    training, evaluation = _hashes(raw["training"]), _hashes(raw["evaluation"])
    removed = {
        "evaluation": training & evaluation,
        "calibration": (training | evaluation) & _hashes(raw["calibration"]),
    }
    texts = {
        "training": _deduplicate(raw["training"], FirstOccurrence()),
        "calibration": _deduplicate(raw["calibration"], FirstOccurrence(removed["calibration"])),
        "evaluation": _deduplicate(raw["evaluation"], FirstOccurrence(removed["evaluation"])),
    }
    out.mkdir(parents=True, exist_ok=True)
    for split, found in texts.items():
        (out / f"{split}.txt").write_text("\0".join(found), encoding="utf-8")
        print(f"{split}: {len(found)} documents, {sum(len(d.encode()) for d in found) / 1e6:.2f} MB")
    versions = {
        package: sorted(p.name.split("-")[1] for p in (sites / package).glob("*.dist-info"))[0] for package in others
    }
    record = {
        "held_out_packages": {package: importlib.metadata.version(package) for package in HELD_OUT_PACKAGES},
        "training_packages": versions,
        "sha256": {split: text_hash(found) for split, found in texts.items()},
        "bytes": {split: sum(len(d.encode()) for d in found) for split, found in texts.items()},
        "removed": {split: sorted(hashes) for split, hashes in removed.items()},
    }
    CORPUS_FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
