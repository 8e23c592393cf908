"""The corpus: rebuilt text is proved by its hash, and no paragraph is in two splits."""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from realmodels import text
from realmodels.pretrain import corpus
from realmodels.text import (
    SPLITS,
    Documents,
    check_split,
    documents,
    held_out,
    is_prose,
    module_paragraphs,
    read_text,
    split_of,
    text_hash,
)
from theory.errors import InputError

MODULE = '''
"""First line of the module docstring, which wraps
over two lines.

>>> a doctest that is long enough but no prose at all

Too short."""

# A comment of several words that goes on in the
# following line of the same block.
x = 1  # comments behind code are no paragraphs of their own

def f():
    """The docstring of a function, long enough to count."""
'''


def test_paragraphs_of_a_module() -> None:
    assert module_paragraphs(MODULE) == [
        "First line of the module docstring, which wraps over two lines.",
        "The docstring of a function, long enough to count.",
        "A comment of several words that goes on in the following line of the same block.",
    ]
    assert module_paragraphs("def broken(:") == []


def test_symbols_are_no_prose() -> None:
    assert is_prose("six words of prose are enough")
    assert not is_prose("x_1 = 3 | y_2 = 4 | z_3 = 5 (ab, cd, ef, gh, ij, kl) [0] {1}")


@pytest.mark.parametrize("split", ["calibration", "evaluation"])
def test_held_out_text_is_rebuilt(split: Any) -> None:
    record = json.loads(text.CORPUS_FILE.read_text())
    found = held_out(split)
    assert text_hash(found) == record["sha256"][split]
    assert sum(len(document.encode()) for document in found) == record["bytes"][split]
    assert text.shared_paragraphs(text.prose(), held_out(split)) == 0


def test_the_committed_record_names_plain_versions() -> None:
    record = json.loads(text.CORPUS_FILE.read_text())
    versions = record["training_packages"] | record["held_out_packages"]
    assert len(versions) == 53
    assert all(version.replace(".", "").isdigit() for version in versions.values())


@pytest.mark.parametrize("version", ["1.0", None])
def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def installed(package: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    with pytest.raises(
        InputError, match=r"(1\.0|none) is installed: run pip install --no-deps sympy==1\.14\.0"
    ):
        text.package_folder("sympy")


def test_changed_sources_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(text, "package_folder", lambda package: tmp_path)
    held_out.cache_clear()
    with pytest.raises(InputError, match=r"reinstall sympy==1\.14\.0 networkx==3\.6\.1 unmodified"):
        held_out("evaluation")
    held_out.cache_clear()


LETTERS = str.maketrans("0123456789", "ghijklmnop")
EVALUATED = [n for n in range(60) if split_of("sympy", f"heldout/m{n}.py") == "evaluation"]


def numbered(module: int) -> str:
    names = [hashlib.sha256(f"{module} {word}".encode()).hexdigest().translate(LETTERS) for word in range(8)]
    return " ".join(names)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus of one invented held-out package and one training package that quotes it."""
    package, site = tmp_path / "heldout", tmp_path / "sites" / "other"
    package.mkdir()
    (site / "other-1.2.3.dist-info").mkdir(parents=True)
    (site / "other-1.2.3.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: other\nVersion: 1.2.3\n"
    )
    monkeypatch.setattr(text, "HELD_OUT_PACKAGES", ("heldout",))
    monkeypatch.setattr(corpus, "HELD_OUT_PACKAGES", ("heldout",))
    monkeypatch.setattr(corpus, "installed_folder", lambda name: package)
    monkeypatch.setattr(corpus, "CORPUS_FILE", tmp_path / "corpus.json")
    monkeypatch.setattr(corpus, "Parallel", lambda **_: lambda calls: [f(*a, **k) for f, a, k in calls])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    for module in range(60):
        (package / f"m{module}.py").write_text(
            f'"""{numbered(module)}\n\nThis paragraph is in all of the modules."""'
        )
    (site / "quotes.py").write_text(f'"""{numbered(EVALUATED[0])}"""')
    corpus.build_docstrings(tmp_path / "sites", tmp_path / "out")
    return tmp_path


def test_no_paragraph_is_in_two_splits(built: Path) -> None:
    found = {split: (built / "out" / f"{split}.txt").read_text().split("\0") for split in SPLITS}
    paragraphs = {split: {p for document in found[split] for p in document.split("\n")} for split in SPLITS}
    assert all(paragraphs.values())
    assert sum(map(len, paragraphs.values())) == len(set.union(*paragraphs.values())) == 61
    assert numbered(EVALUATED[0]) in paragraphs["training"]  # quoted there, so it cannot evaluate
    assert paragraphs["evaluation"] == {numbered(module) for module in EVALUATED[1:]}

    record = json.loads((built / "corpus.json").read_text())
    assert record["training_packages"] == {"other": "1.2.3"} and record["held_out_packages"] == {
        "heldout": "1.0"
    }
    assert record["sha256"] == {split: text_hash(found[split]) for split in SPLITS}
    keep = text.FirstOccurrence(record["removed"]["evaluation"])
    assert documents(built / "heldout", "heldout", keep, "evaluation") == found["evaluation"]


def test_a_site_holds_one_package(built: Path) -> None:
    (built / "sites" / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds 0 packages"):
        corpus.build_docstrings(built / "sites", built / "out")
    with pytest.raises(InputError, match="missing is no folder"):
        corpus.build_docstrings(built / "missing", built / "out")


def test_a_users_text(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text("Grüße", encoding="utf-8")
    assert read_text(file) == ("Grüße",)
    for content, message in ((b"ab\xff", r"not UTF-8 \(byte 2\)"), (b" \n", "is empty")):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_text(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_text(tmp_path / "missing")


def test_documents_know_their_split() -> None:
    found = Documents("abc", "evaluation")
    assert found[0] == "a" and found[::2] == ("a", "c") and found[1:].split == "evaluation"
    for texts in (found, found[:2], ["any"], list(found)):
        check_split(texts, "evaluation")
    check_split(list(found), "calibration")
    for texts in (found, found[::2]):
        with pytest.raises(InputError, match="calibration is asked for, but this is evaluation text"):
            check_split(texts, "calibration")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes("\ufeffSome words.".encode())
    assert read_text(file) == ("Some words.",)
    file.write_bytes("\ufeff \n".encode())
    with pytest.raises(InputError, match="is empty"):
        read_text(file)


def test_a_text_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "LARGEST_TEXT", 10)
    file = tmp_path / "text"
    file.write_text("x" * 10)
    assert read_text(file) == ("x" * 10,)
    file.write_text("x" * 11)
    with pytest.raises(InputError, match="has more than 10 bytes"):
        read_text(file)


def loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


NO_TEXTS: dict[str, Callable[[Path], Path | str]] = {
    "a fifo": fifo,
    "a device": lambda folder: "/dev/zero",
    "a folder": lambda folder: folder,
    "links in a loop": loop,
    "300 characters": lambda folder: folder / ("x" * 300),
    "no such home": lambda folder: "~nobody-at-all/text",
    "nothing": lambda folder: "",
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="readable UTF-8 file") as caught:
        read_text(NO_TEXTS[name](tmp_path))
    assert "\n" not in str(caught.value)


def test_a_text_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (os.fsdecode(b"\xff"), "a\nb", "-", "evaluation", "x" * 255):
        (tmp_path / name).write_text("Some words.")
        assert read_text(tmp_path / name) == read_text(f"~/{name}") == ("Some words.",)
