"""How are the training text and `corpus.json` built? Only training needs them; evaluation does not.

    python -m realmodels.pretrain.corpus SITES OUT

SITES has one subfolder per package, as `pip install --no-deps --target SITES/NAME NAME==VERSION` makes it;
`corpus.json` names the packages and versions that the shipped model was trained on. The held-out packages are
taken from the running environment. OUT receives `training.txt`, `calibration.txt` and `evaluation.txt`: documents
separated by a zero byte. Never commit them, they are other people's text.
"""

import argparse
import importlib.metadata
import json
from collections.abc import Iterable
from pathlib import Path

from joblib import Parallel, delayed

from realmodels.text import (
    CORPUS_FILE,
    HELD_OUT_PACKAGES,
    SPLITS,
    FirstOccurrence,
    Split,
    documents,
    installed_folder,
    paragraph_hash,
    text_hash,
)
from theory.errors import InputError, run


def _everything(paragraph: str) -> bool:
    return True


def _hashes(found: Iterable[str]) -> set[str]:
    return {paragraph_hash(paragraph) for document in found for paragraph in document.split("\n")}


def _without_repeats(found: Iterable[str], barred: Iterable[str] = ()) -> list[str]:
    keep = FirstOccurrence(barred)
    kept = ("\n".join(filter(keep, document.split("\n"))) for document in found)
    return [document for document in kept if document]


def _version(site: Path) -> str:
    versions = [distribution.version for distribution in importlib.metadata.distributions(path=[str(site)])]
    if len(versions) != 1:
        raise InputError(f"{site} holds {len(versions)} packages: install exactly one there")
    return versions[0]


def build(sites: Path, out: Path) -> None:
    if not sites.is_dir():
        raise InputError(f"{sites} is no folder: install the packages that corpus.json names below it")
    training_sites = [site for site in sorted(sites.iterdir()) if site.name not in HELD_OUT_PACKAGES]
    versions = {site.name: _version(site) for site in training_sites}
    jobs: list[tuple[Split, Path, str]] = [
        (split, installed_folder(package), package) for package in HELD_OUT_PACKAGES for split in SPLITS
    ]
    jobs += [("training", site, site.name) for site in training_sites]
    results = Parallel(n_jobs=-1, verbose=5)(
        delayed(documents)(folder, package, _everything, split) for split, folder, package in jobs
    )
    raw: dict[Split, list[str]] = {split: [] for split in SPLITS}
    for (split, _, _), found in zip(jobs, results, strict=True):
        raw[split] += found

    training, evaluation = _hashes(raw["training"]), _hashes(raw["evaluation"])
    removed = {
        "evaluation": training & evaluation,
        "calibration": (training | evaluation) & _hashes(raw["calibration"]),
    }
    texts = {split: _without_repeats(raw[split], removed.get(split, ())) for split in SPLITS}
    sizes = {split: sum(len(document.encode()) for document in texts[split]) for split in SPLITS}
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        (out / f"{split}.txt").write_text("\0".join(texts[split]), encoding="utf-8")
        print(f"{split}: {len(texts[split])} documents, {sizes[split] / 1e6:.2f} MB")
    record = {
        "held_out_packages": {package: importlib.metadata.version(package) for package in HELD_OUT_PACKAGES},
        "training_packages": versions,
        "sha256": {split: text_hash(texts[split]) for split in SPLITS},
        "bytes": sizes,
        "removed": {split: sorted(hashes) for split, hashes in removed.items()},
    }
    CORPUS_FILE.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m realmodels.pretrain.corpus", description="Builds the corpus from installed packages."
    )
    parser.add_argument("sites", type=Path, help="folder with one subfolder per training package")
    parser.add_argument("out", type=Path, help="folder for the texts")
    options = parser.parse_args()
    build(options.sites, options.out)


if __name__ == "__main__":
    run(main)
