"""The numbers of the pages are those of the committed results: another result, another page; none is typed."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from figures import prose
from figures.catalogue import DATA, EXHIBITS, needed, with_results
from figures.prose import (
    ROOT,
    SOURCES,
    SUFFIX,
    both,
    filled,
    judged,
    read,
    row,
    span,
    to,
    typed_numbers,
    written,
)
from theory.errors import InputError
from theory.evidence import Finding

# Numbers that are by hand: what was chosen, not what was found. Anything else has to come from a file.
BY_HAND = {
    # magnitudes, budgets, confidence, lengths of training, bits, thresholds of rules, names of figures, tables, models
    "findings.md": {
        ".1",
        "135",
        "2",
        ".25",
        ".5",
        "1.5",
        "2.5",
        "4",
        "12.5",
        "25",
        "87.5",
        "95",
        "0",
        "1",
        "3",
        "15",
        "8",
        ".75",
        "5",
        "6",
    },
    # bits, budgets, name of a figure
    "performance.md": {"8", "12.5", "4"},
    "corpus.md": set(),
}


def finding(**changes: Any) -> Finding:
    values: dict[str, Any] = {
        "claim": "a; b",
        "origin": "ours",
        "statistic": "share",
        "estimate": 0.254,
        "interval": (-0.126, 0.5),
        "n": 7,
        "rule": "95 % interval above 0: holds; below: fails",
        "family": "all",
        "p": 0.2,
        "alone": "inconclusive",
        "verdict": "inconclusive",
    }
    return Finding(**values | changes)


def page(template: str, folder: Path) -> str:
    """The template filled in from the committed results."""
    (folder / f"page.md{SUFFIX}").write_text(template, encoding="utf-8")
    return written(EXHIBITS, DATA, folder)["page.md"]


@pytest.mark.parametrize("name", BY_HAND)
def test_no_number_is_typed(name: str) -> None:
    source = (SOURCES / f"{name}{SUFFIX}").read_text(encoding="utf-8")
    assert set(typed_numbers(source)) <= BY_HAND[name]


def test_every_source_is_looked_at() -> None:
    assert {path.name.removesuffix(SUFFIX) for path in SOURCES.glob(f"*{SUFFIX}")} == set(BY_HAND)


def test_typed_numbers_are_seen_wherever_they_stand() -> None:
    assert typed_numbers("It is .82 [.7, 1.5] of 2,846, `c = 3`, [7](a9.md) {{ x | to(2) }}{% if 4 %}") == [
        ".82", ".7", "1.5", "2,846", "7",
    ]  # fmt: skip
    assert typed_numbers("a {{ .42 | to(2) }} {{ 3 }} {{-1}} v2 x.5y") == [".42", "2", "3", "1"]
    assert typed_numbers("| .5 |\n{# .7 #}\n```\n.9\n```\n**8** -3 12.5%") == [".5", "8", "3", "12.5"]


def test_a_finding_is_looked_up_by_its_claim(tmp_path: Path) -> None:
    first = needed(EXHIBITS[0], DATA).findings[0]
    name, claim = EXHIBITS[0].name, json.dumps(first.claim)
    assert page(f"{{{{ finding('{name}', {claim}) | judged(3) }}}}", tmp_path) == judged(first, 3)
    start = json.dumps(first.claim.partition(";")[0])
    group = [each for each in needed(EXHIBITS[0], DATA).findings if each.claim.startswith(json.loads(start))]
    assert page(f"{{{{ findings('{name}', {start}) | span(2) }}}}", tmp_path) == span(group, 2)


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("a\n{{ finding('figure-3', 'the sun rises') | to(2) }}", "line 2: figure-3: 0 findings claim"),
        ("{{ findings('figure-3', 'the sun') | span(2) }}", "line 1: figure-3: no finding claims"),
        ("{{ finding('figure-33', 'x') }}", "line 1: --figure 33: no such exhibit"),
        ("\n\n{{ data('figure-3').nothing }}", "line 3: .*nothing"),
        ("{{ row(data('figure-3').curves, c=-1.0) }}", "line 1: 0 rows have {'c': -1.0}"),
        ("{{ row(data('figure-3').curves, w_max='tile') }}", "line 1: [0-9]+ rows have"),
        ("{{ read('nowhere.json') }}", "line 1: nowhere.json is missing"),
        ("a\n{{ x", "line 2: "),
        ("{{ x | no_filter }}", "line 1: .*no_filter"),
    ],
)
def test_what_is_missing_is_named_with_its_line(template: str, error: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^docs/page.md{SUFFIX}: {error}"):
        page(template, tmp_path)


def test_all_pages_that_fail_are_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.md{SUFFIX}").write_text("{{ x }}", encoding="utf-8")
    with pytest.raises(InputError, match=r"docs/a.md.*; docs/b.md"):
        written(EXHIBITS, DATA, tmp_path)


def test_another_result_is_another_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another estimate is another number on the page of findings, whichever exhibit it is of."""
    results = {exhibit.name: result for exhibit, result in with_results(EXHIBITS, DATA)}
    monkeypatch.setattr(prose, "needed", lambda exhibit, _: results[exhibit.name])
    old = written(EXHIBITS, DATA)["findings.md"]
    unchanged = set()
    for name, result in tuple(results.items()):
        others = tuple(replace(each, estimate=7.77) for each in result.findings)
        results[name] = replace(result, findings=others)
        if written(EXHIBITS, DATA)["findings.md"] == old:
            unchanged.add(name)
        results[name] = result
    # Of these the page has plain data, or what verdicts decide.
    by_verdict = {"figure-rivals", "figure-rivals-deepseek"}
    plain = {
        "figure-bounds",
        "figure-placement",
        "figure-peers",
        "table-2",
        "table-2-smol-moe",
        "figure-end-to-end",
    }
    assert unchanged <= by_verdict | plain


def test_numbers_as_they_are_written() -> None:
    assert [to(0.624, 2), to(-0.039, 2), to(-0.001, 2), to(1.914, 2), to(2846), to(172990464.0), to(10.0, 1)] == [
        ".62", "-.04", ".00", "1.91", "2,846", "172,990,464", "10.0",
    ]  # fmt: skip
    assert to(finding(), 2) == ".25"
    assert both(finding(), 2) == ".25 [-.13, .50]"
    assert judged(finding(interval=None), 1) == ".3 [unbounded], inconclusive"
    assert span([finding(), 0.1, 0.404], 1) == ".1 to .4"
    assert span([0.11, 0.12], 1) == ".1"


def test_one_row() -> None:
    rows = [{"a": 1, "b c": 2}, {"a": 1, "b c": 3}, {"a": 2}]
    assert row(rows, {"b c": 3}, a=1) == rows[1]
    for wrong in ({"a": 1}, {"a": 4}, {"z": 0}):
        with pytest.raises(InputError, match="one is needed"):
            row(rows, wrong)


def test_words_follow_verdicts() -> None:
    source = "{{ x | said }}, {{ x | held }}"
    holds = finding(alone="holds", verdict="holds", interval=(0.1, 0.5))
    assert filled(source, {"x": [holds, holds]}) == "Yes, 2 of 2 comparisons"
    assert filled(source, {"x": [holds, finding()]}) == "Partly, 1 of 2 comparisons"


def test_the_page_of_findings_has_no_number_but_those_of_its_source() -> None:
    """Without its expressions the source has only the numbers by hand, so each other one on the page is filled in."""
    text = (SOURCES / "findings.md").read_text(encoding="utf-8")
    numbers = [each for each in typed_numbers(text) if "." in each and each not in BY_HAND["findings.md"]]
    assert len(numbers) > 200
    assert text == written(EXHIBITS, DATA)["findings.md"]


# Of the literature, beside its sources; tests/realmodels/test_cost.py holds the cost model to the page.
COST_MODEL = {".87", "31.2", "3.9", ".75", "1.5", "28.7", ".39", "1.71", ".0026", ".1", "2404.06553"}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("README.md", {"2603.02633", "3.11", "2.0"}),  # the paper, Python, the licence
        (
            "docs/choices.md",
            {".055", ".016", ".043", ".011", "7.9"} | COST_MODEL,
        ),  # the page says from which commits
        ("docs/own-model.md", {"2604.06515", "2606.04980", "2606.15716", "2410.06270"}),  # papers
        ("docs/smol-moe.md", set()),
        ("CONTRIBUTING.md", {"8.16"}),  # Coq
    ],
)
def test_pages_without_a_source_have_no_number_that_was_measured(name: str, known: set[str]) -> None:
    """Decimals outside of what is generated."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"<!-- (\w+) -->.*?<!-- end of \1 -->", "", text, flags=re.DOTALL)
    assert {each for each in typed_numbers(text) if "." in each} <= known


def test_files_of_this_repository_are_read() -> None:
    assert read("realmodels/checkpoints/tiny-olmoe/recipe.json")["optimiser"] == "muon"
