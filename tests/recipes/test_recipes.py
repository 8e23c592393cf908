"""Each recipe of CONTRIBUTING.md, followed as it is written, in a copy of the repository.

The blocks of the page itself are used: a `python` or `markdown` block becomes the file that the text before it names
last, a `diff` block changes that file, and the lines of a block without a language are run.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from theory.evidence import Result

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
FILE = re.compile(r"`([\w/.-]+\.(?:py|md))`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RECIPES = ("An exhibit", "A programming noise", "A score", "A model family")


@dataclass(frozen=True)
class Step:
    """A block of a recipe; language: python, markdown, diff, or "" for commands; file: what a block is about."""

    language: str
    text: str
    file: str


def outside_of_blocks(page: str) -> str:
    """The page with spaces for what stands in blocks, whose lines are no headings of the page."""
    return BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), page)


def steps(recipe: str) -> Iterator[Step]:
    """The blocks below the heading of the recipe, in order."""
    page = PAGE.read_text(encoding="utf-8")
    start = outside_of_blocks(page).index(f"\n## {recipe}\n")
    section = page[start : outside_of_blocks(page).find("\n## ", start + 1)]
    end, file = 0, ""
    for block in BLOCK.finditer(section):
        named = FILE.findall(section[end : block.start()])
        file, end = (named or [file])[-1], block.end()
        yield Step(block[1], block[2], file)


def changed(text: str, diff: str) -> str:
    """The text after the change; the lines that stay or go have to be there once."""
    lines = diff.splitlines()
    assert all(line[0] in " +-" for line in lines), diff
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[0] in kept) for kept in (" -", " +"))
    if text.count(before) == 1:
        return text.replace(before, after)
    # New lines between others that are no neighbours in the block: it has to start with its place.
    raise AssertionError(f"{text.count(before)} places for\n{diff}")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of all files that git knows or would know, with an environment that is installed already."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
        text=True,
    )
    if names.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    for stamp in ("installed", "installed-tasks", "installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    return tmp_path


def run(command: str, tree: Path) -> str:
    """What the command prints, on the copy's own code; it has to succeed."""
    # What the `make` that runs the tests was given is not for the `make` of a recipe.
    outer = ("PYTHONPATH", "ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment |= {"PATH": f"{tree / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        shlex.split(command), cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def follow(recipe: str, tree: Path) -> str:
    """Follows the recipe to its end; what its commands print."""
    printed = []
    for step in steps(recipe):
        path = tree / step.file
        if step.language in ("python", "markdown"):
            assert not path.exists(), step.file
            path.write_text(step.text, encoding="utf-8")
        elif step.language == "diff":
            path.write_text(changed(path.read_text(encoding="utf-8"), step.text), encoding="utf-8")
        else:
            assert not step.language
            printed += [run(command, tree) for command in step.text.splitlines()]
    return "\n".join(printed)


def test_these_are_the_recipes_of_the_page() -> None:
    page = outside_of_blocks(PAGE.read_text(encoding="utf-8"))
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert headings[: len(RECIPES)] == list(RECIPES)
    for recipe in RECIPES:
        found = list(steps(recipe))
        assert found[-1].language == ""
        assert all(step.file for step in found)
        for step in found:
            if step.language == "diff" and (ROOT / step.file).is_file():
                changed((ROOT / step.file).read_text(encoding="utf-8"), step.text)  # it still has a place


def test_a_change_without_a_place_is_refused() -> None:
    assert changed("a\nb\n", " a\n+c\n b\n") == "a\nc\nb\n"
    assert changed("a\nb\n", "-a\n+c\n") == "c\nb\n"
    for text in ("b\n", "a\na\n"):
        with pytest.raises(AssertionError, match="places for"):
            changed(text, " a\n+c\n")


@pytest.mark.slow
def test_an_exhibit(tree: Path) -> None:
    printed = follow("An exhibit", tree)
    assert "2 passed" in printed
    result = Result.from_json((tree / "figures/data/figure-bias.json").read_text(encoding="utf-8"))
    (finding,) = result.findings
    assert (result.preset, finding.verdict, finding.n) == ("full", "holds", 64)
    assert (tree / "figures/data/figure-bias.png").read_bytes().startswith(b"\x89PNG")
    assert "figure-bias" in (tree / "RESULTS.md").read_text(encoding="utf-8")
    assert "figure-bias" in (tree / "docs/theory.md").read_text(encoding="utf-8")
    assert "bias" in run("python paper_repro.py --list", tree)
    run("python -m ruff check", tree)
    run("python -m pytest -q tests/figures/test_readme.py -k pages_are_those", tree)


@pytest.mark.slow
def test_a_programming_noise(tree: Path) -> None:
    assert "2 passed" in follow("A programming noise", tree)
    assert "passed" in run("python -m pytest -q tests/synthetic/test_robustness.py -k mine", tree)


@pytest.mark.slow
def test_a_score(tree: Path) -> None:
    assert "1 passed" in follow("A score", tree)


@pytest.mark.slow
def test_a_model_family(tree: Path) -> None:
    """Loads, is accounted for in full, and deploys."""
    printed = follow("A model family", tree)
    assert re.search(r"\b[1-9]\d* passed", printed)
    assert "failed" not in printed
    code = (
        "import sys; sys.path.insert(0, 'tests/realmodels')\n"
        "from small_models import OTHER_CONFIGS, as_model, network_of, text\n"
        "from realmodels import deploy, scores\n"
        "from theory.hardware import Hardware\n"
        "from theory.placement import place\n"
        "model = as_model(network_of(OTHER_CONFIGS['flex_olmo']))\n"
        "report = deploy(model, place(scores(model), 0.5), Hardware(), [text(3000, 0)])\n"
        "assert report.total == sum(each.numel() for each in model.network.parameters()), report\n"
        "assert report.count('analog') > 0 < report.count('digital by placement')\n"
    )
    (tree / "family.py").write_text(code, encoding="utf-8")
    run("python family.py", tree)
