"""No page and no docstring refers to a file that is not there, and pages are Markdown that renders."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from figures.catalogue import EXHIBITS
from theory.claims import CLAIMS

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "theory",
    "synthetic",
    "realmodels",
    "figures",
    "benchmarks",
    "examples",
    "tests",
    "docs",
    "rules",
    ".github",
)
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
MODULES = sorted(
    [*ROOT.glob("*.py"), *(module for folder in FOLDERS for module in (ROOT / folder).rglob("*.py"))]
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A file with its folder, or a page in capitals.
FILE = re.compile(
    r"(?<![\w/.*-])((?:[\w.-]+/)+[\w-]+\.(?:py|md|json|html|yml|cff)|[A-Z]{2,}\.(?:md|cff))(?![\w/])"
)
PLACEHOLDERS = ("NAME.", "EXHIBIT.")
# What the recipes add.
ADDED = {
    "rules/figure-bias.md",
    "synthetic/experiments/bias.py",
    "figures/drawings/bias.py",
    "tests/synthetic/experiments/test_bias_exhibit.py",
    "tests/theory/test_my_noise.py",
    "tests/realmodels/test_my_score.py",
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def exists(reference: str, near: Path) -> bool:
    """True if there is such a file, seen from the root, from a layer, or from where the reference stands.

    A name that stands for any (`figures/data/NAME.json`) is no reference.
    """
    if Path(reference).name.startswith(PLACEHOLDERS):
        return True
    places = (ROOT, near.parent, ROOT / "tests", *(ROOT / folder for folder in FOLDERS))
    return any((place / reference).exists() for place in places)


def anchors(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def prose(module: Path) -> Iterator[str]:
    """Docstrings and comments of a module."""
    text = module.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
    yield from re.findall(r"#.*$", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        assert not re.match(r"[a-z]+:", target), f"{link}: pages refer to no host"
        file = page.parent / target if target else page
        assert file.is_file(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    text = re.sub(r"```diff.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    missing = {file for file in FILE.findall(text) if not exists(file, page)}
    assert missing <= ADDED


def test_files_that_docstrings_and_comments_name_are_there() -> None:
    missing = {
        (name(module), file)
        for module in MODULES
        for text in prose(module)
        for file in FILE.findall(text)
        if not exists(file, module)
    }
    assert not missing


def test_a_file_that_is_missing_is_seen() -> None:
    nowhere = "theory/none" + ".py", "NOWHERE" + ".md"
    assert FILE.findall("see `{}`, {}, not a/b or paper_repro.py".format(*nowhere)) == list(nowhere)
    assert not exists(nowhere[0], ROOT / "README.md")
    assert exists("theory/score.py", ROOT / "README.md")


def test_statements_and_exhibits_have_anchors() -> None:
    assert {claim.id for claim in CLAIMS} <= anchors(ROOT / "docs" / "theory.md")
    assert {exhibit.name for exhibit in EXHIBITS} <= anchors(ROOT / "RESULTS.md")


def test_the_map_of_the_readme_has_files_that_are_there() -> None:
    """Names further in stand in the folder above them."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Map")[2]
    block = re.findall(r"```\n(.*?)```", section, re.DOTALL)[0]
    folder, seen = "", 0
    for line in block.splitlines():
        names = re.match(r"( *)((?:[\w.-]+(?:/| |$) ?)(?: [\w.-]+/)*)", line)
        assert names, line
        for each in re.split(r"\s{2,}", line.strip())[:-1]:
            if not names[1]:
                folder = each if each.endswith("/") else ""
            path = ROOT / (folder + each if names[1] else each)
            assert path.exists(), line
            seen += 1
    assert seen >= 16
