"""The generated pages say what the committed results say, and the README is one screen for each reader."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from figures.catalogue import DATA, EXHIBITS, Exhibit, needed
from figures.prose import written
from figures.results import (
    answered,
    cell,
    contents,
    counts,
    everything,
    failures,
    filled,
    findings_by_claim,
    head,
    needs,
    overview,
    pages,
    seen,
    span,
    statements,
    table,
)
from theory import paper
from theory.claims import CLAIMS
from theory.errors import InputError
from theory.evidence import Finding, Result

ROOT = Path(__file__).parents[2]
README, RESULTS, THEORY = ROOT / "README.md", ROOT / "RESULTS.md", ROOT / "docs" / "theory.md"
PAPER = ROOT / "docs" / "paper.md"
GENERATED = {README, RESULTS, THEORY, PAPER, *(ROOT / "docs" / name for name in written(EXHIBITS, DATA))}
MOST_LINES, MOST_WORDS, MOST_DECIMALS = 130, 1000, 15


def finding(verdict: str, claim: str = "a | b; c", **changes: object) -> Finding:
    interval = None if verdict == "inconclusive" else (0.123456, 0.5)
    values: dict[str, object] = {
        "claim": claim,
        "origin": "ours",
        "statistic": "share",
        "estimate": 0.25,
        "interval": interval,
        "n": 7,
        "rule": "95 % interval above 0: holds; below: fails",
        "verdict": verdict,
    }
    return Finding(**values | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_exhibit_has_a_committed_result_and_picture(exhibit: Exhibit) -> None:
    """The result is of the full preset."""
    result = needed(exhibit, DATA)
    assert result.preset == "full"
    assert result.findings
    assert (DATA / f"{exhibit.name}.png").is_file()


def test_pages_are_those_of_the_committed_results() -> None:
    """If this fails: python -m figures.results."""
    texts = pages()
    assert set(texts) == GENERATED
    for path, text in texts.items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_the_readme_is_short(readme: str) -> None:
    assert len(readme.splitlines()) <= MOST_LINES
    visible = re.sub(r"!\[[^]]*\]\([^)]*\)|<!--.*?-->|\]\([^)]*\)", " ", readme)  # what a reader sees
    assert len(re.findall(r"\S*\w\S*", visible)) <= MOST_WORDS
    prose = re.sub(r"```.*?```|^\|.*?$|`[^`]*`|\]\([^)]*\)", " ", readme, flags=re.DOTALL | re.MULTILINE)
    prose = prose.replace("2603.02633", "").replace("Apache-2.0", "")
    assert len(re.findall(r"\d*\.\d+", prose)) <= MOST_DECIMALS


def test_every_failing_finding_belongs_to_one_row_of_the_readme(readme: str) -> None:
    section = readme.partition("<!-- failures -->")[2].partition("<!-- end of failures -->")[0]
    rows = [
        [each.strip() for each in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in section.strip().splitlines()[2:]
    ]
    groups: dict[tuple[str, str], list[Finding]] = {}
    for exhibit in EXHIBITS:
        for each in needed(exhibit, DATA).findings:
            if each.verdict == "fails":
                groups.setdefault((exhibit.name, head(each)), []).append(each)
    assert len(rows) == len(groups) == 13
    for (name, claim), failing in groups.items():
        (own,) = [row for row in rows if f"#{name})" in row[0] and row[1] == cell(claim)]
        exhibit = next(exhibit for exhibit in EXHIBITS if exhibit.name == name)
        of = [each for each in needed(exhibit, DATA).findings if each.claim.split(";")[0] == claim]
        assert own[2] == f"{len(failing)} of {len(of)}"
        assert own[3].endswith(" nats") == all("nats per token" in each.statistic for each in failing)
        ends = [float(end) for end in own[3].removesuffix(" nats").split(" to ")]
        for end, exact in zip((ends[0], ends[-1]), (min, max), strict=True):
            assert end == pytest.approx(exact(each.estimate for each in failing), rel=5e-3)
        assert all(needs(each.rule) in own[4] for each in failing)


def test_results_have_every_finding_with_its_rule() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    for exhibit in EXHIBITS:
        section = text.partition(f'<a id="{exhibit.name}"></a>')[2].partition("<a id=")[0]
        for each in needed(exhibit, DATA).findings:
            assert f"**{cell(head(each))}**" in section
            assert f"Rule: {cell(each.rule)}" in section
            assert (
                f"| {each.measured.removeprefix(f'{each.statistic}: ')} | {each.n} | **{each.verdict}** |"
                in section
            )


def test_findings_of_one_claim_stand_in_one_table() -> None:
    first = finding("holds")
    other = finding("holds", "another claim", origin="paper", statement="G", statistic="x_y")
    parts = findings_by_claim([first, other, finding("fails", "a | b; d"), finding("fails", rule="else")])
    assert len(parts) == 6
    assert parts[0].splitlines() == [
        r"**a \| b**<br>",
        "Origin: our own<br>",
        "Measured: share<br>",
        "Rule: 95 % interval above 0: holds; below: fails",
    ]
    assert parts[1].splitlines()[2:] == [
        "| c | 0.25 [0.1235, 0.5] | 7 | **holds** |",
        "| d | 0.25 [0.1235, 0.5] | 7 | **fails** |",
    ]
    assert "it tests statement [G](docs/theory.md#G)" in parts[2]
    assert parts[3].splitlines()[2:] == ["|  | 0.25 [0.1235, 0.5] | 7 | **holds** |"]


def test_where_statistics_differ_each_row_has_its_own() -> None:
    text, rows = findings_by_claim([finding("holds"), finding("inconclusive", statistic="sum")])
    assert "Measured" not in text
    assert rows.splitlines()[2:] == [
        "| c | share | 0.25 [0.1235, 0.5] | 7 | **holds** |",
        "| c | sum | 0.25 [unbounded] | 7 | **inconclusive** |",
    ]


def test_cells_spans_and_needs() -> None:
    assert table(["x"], [["1"], [cell("a_b|c*<")]]) == "| x |\n|---|\n| 1 |\n" + r"| a\_b\|c\*\< |"
    assert span([finding("holds")]) == "0.25"
    assert span([finding("holds", estimate=0.4), finding("holds", estimate=-0.12345)]) == "-0.123 to 0.4"
    assert span([finding("holds", statistic="loss, nats per token")]) == "0.25 nats"
    assert needs("95 % interval above 0: holds; below: fails") == "above 0"
    assert needs("within 3%: holds; else: fails") == "within 3%"
    assert seen("What is seen. c is [something].") == "What is seen."


def test_counts() -> None:
    verdicts = ["fails", "holds", "inconclusive", "holds"]
    result = Result(preset="full", data={}, findings=tuple(map(finding, verdicts)))
    assert counts(result) == "2 hold, 1 fails, 1 inconclusive"
    assert (
        counts(replace(result, preset="default")) == "2 hold, 1 fails, 1 inconclusive (default preset only)"
    )


def test_a_missing_result_is_named(tmp_path: Path) -> None:
    for make in (overview, failures, everything, answered):
        with pytest.raises(InputError, match=f"no {EXHIBITS[0].name}.json: run {EXHIBITS[0].option}"):
            make(EXHIBITS[:1], tmp_path)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(InputError, match="README.md has to hold <!-- overview --> and"):
        filled("nothing", {"overview": "text"})
    page = "a\n<!-- part -->\nold\n<!-- end of part -->\nb"
    new = filled(page, {"part": r"new \1"})
    assert new == "a\n<!-- part -->\nnew \\1\n<!-- end of part -->\nb"
    assert filled(new, {"part": r"new \1"}) == new


def test_every_statement_has_its_formula_steps_tests_and_own_verdicts() -> None:
    text = THEORY.read_text(encoding="utf-8")
    for claim in CLAIMS:
        section = text.partition(f'<a id="{claim.id}"></a>')[2].partition("<a id=")[0]
        assert claim.statement in section
        assert claim.latex in section
        assert all(f"- {assumption}" in section for assumption in claim.assumptions)
        assert all(f"- {step.kind}: `{step.equation}`" in section for step in claim.steps())
        assert "- `tests/" in section
        for name in claim.exhibits:
            assert f"(../RESULTS.md#{name})" in section
    assert "| none |\n\nThere are " in contents(CLAIMS[:1], EXHIBITS[:1], DATA)
    tested = next(claim for claim in CLAIMS if claim.id == "D")
    better = next(exhibit for exhibit in EXHIBITS if exhibit.name == "figure-better-score")
    own = [each for each in needed(better, DATA).findings if each.statement == "D"]
    holding = sum(each.verdict == "holds" for each in own)
    assert f"| {holding} hold, " in contents([tested], [better], DATA)
    changed = replace(CLAIMS[0], exhibits=("figure-none",))
    with pytest.raises(InputError, match="M1: figure-none is not in the catalogue"):
        statements([changed], EXHIBITS, DATA, {})


def test_the_page_on_the_paper_has_all_that_the_code_takes_from_it() -> None:
    text = PAPER.read_text(encoding="utf-8")
    for name in paper.published():
        assert f"| `{name}` | " in text
    assert "| OLMoE | 63.17 | 62.46 | 61.54 |" in text
    assert "| dense digital | 5.37 % | 49,781 | 123.92 | 60.73 +- 0.10 |" in text
    assert all(question in text for question in paper.OPEN)


def test_the_code_of_the_readme_runs(capsys: pytest.CaptureFixture[str], readme: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})  # what it says is what a user would paste
    assert "bits per byte" in capsys.readouterr().out
