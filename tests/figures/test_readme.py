"""The generated pages say what the committed results say, and the README is one screen for each reader."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from figures.catalogue import DATA, EXHIBITS, NO_RESULT, Exhibit, find, needed, with_results
from figures.results import (
    answered,
    cell,
    contents,
    error_rates,
    everything,
    failures,
    families,
    filled,
    findings_by_claim,
    overview,
    pages,
    seen,
    statements,
    table,
)
from figures.shown import counts, head, needs, outcome, p_value, span, units
from theory import paper
from theory.claims import CLAIMS
from theory.errors import InputError
from theory.evidence import Finding, Result

ROOT = Path(__file__).parents[2]
README, RESULTS, THEORY = ROOT / "README.md", ROOT / "RESULTS.md", ROOT / "docs" / "theory.md"
PAPER, LOOKS = ROOT / "docs" / "paper.md", ROOT / "rules" / "looks.md"
WORDS = {source.with_suffix("") for source in (ROOT / "docs").glob("*.md.j2")}
GENERATED = {README, RESULTS, THEORY, PAPER, LOOKS, *WORDS}
AWAITED = set[str]()  # exhibits that nobody has run in full yet
MOST_LINES, MOST_WORDS, MOST_DECIMALS = 120, 850, 15


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
        "family": "one",
        "p": 0.9 if verdict == "inconclusive" else 0.00123,
        "alone": verdict,
        "verdict": verdict,
    }
    return Finding(**values | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def readme() -> str:
    return README.read_text(encoding="utf-8")


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_exhibit_that_was_run_has_a_committed_result_and_picture(exhibit: Exhibit) -> None:
    """The result is of the full preset."""
    if exhibit.name in AWAITED:
        assert not list(DATA.glob(f"{exhibit.name}.*")), "it was run: it is awaited no more"  # type: ignore[attr-defined]
        return
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
    # How many claims fail, and how many sizes there are, is for the results to say.
    readme = re.sub(r"<!-- (failures|ladder) -->.*?<!-- end of \1 -->", "", readme, flags=re.DOTALL)
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
        if line.startswith("|")
    ]
    groups: dict[tuple[str, str], list[Finding]] = {}
    for exhibit, result in with_results(EXHIBITS, DATA):
        for each in result.findings:
            if each.verdict == "fails":
                groups.setdefault((exhibit.name, head(each)), []).append(each)
    origins = {key: {each.origin for each in failing} for key, failing in groups.items()}
    beyond = {key for key, found in origins.items() if found == {"extension"}}
    of_ours = {key for key, found in origins.items() if "paper" not in found} - beyond
    assert len(rows) == len(groups) - len(beyond) - len(of_ours)
    for words, keys in (("Claims of ours fail", of_ours), ("More fail under conditions", beyond)):
        (sentence,) = re.findall(rf"^{words}.*", section, re.MULTILINE)
        said = re.findall(r"(\d+) in \[[^]]*\]\(RESULTS.md#([a-z0-9-]+)\)", sentence)
        assert {name: int(count) for count, name in said} == Counter(name for name, _ in keys)
    for (name, claim), failing in groups.items():
        if (name, claim) in beyond | of_ours:
            continue
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
    for exhibit, result in with_results(EXHIBITS, DATA):
        section = text.partition(f'<a id="{exhibit.name}"></a>')[2].partition("<a id=")[0]
        for each in result.findings:
            assert f"**{cell(head(each))}**" in section
            assert f"Rule: {cell(each.rule)}" in section
            measured = each.measured.removeprefix(f"{each.statistic}: ")
            verdict = f"**{each.verdict}**{cell(outcome(each)).removeprefix(each.verdict)}"
            assert f"| {measured} | {units(each)} | {cell(p_value(each))} | {verdict} |" in section
            assert f"Family *{cell(each.family)}*" in section


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
        "| c | 0.25 [0.1235, 0.5] | 7 | 0.0012 | **holds** |",
        "| d | 0.25 [0.1235, 0.5] | 7 | 0.0012 | **fails** |",
    ]
    assert "it tests statement [G](docs/theory.md#G)" in parts[2]
    assert parts[3].splitlines()[2:] == ["|  | 0.25 [0.1235, 0.5] | 7 | 0.0012 | **holds** |"]


def test_where_statistics_differ_each_row_has_its_own() -> None:
    text, rows = findings_by_claim([finding("holds"), finding("inconclusive", statistic="sum")])
    assert "Measured" not in text
    assert rows.splitlines()[2:] == [
        "| c | share | 0.25 [0.1235, 0.5] | 7 | 0.0012 | **holds** |",
        "| c | sum | 0.25 [unbounded] | 7 | 0.9 | **inconclusive** |",
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
    quick = counts(replace(result, preset="quick"))
    assert quick == "2 hold, 1 fails, 1 inconclusive (quick preset: decides nothing)"


def test_a_verdict_is_shown_with_its_reason() -> None:
    assert outcome(finding("holds")) == "holds"
    assert outcome(finding("fails", exploratory=True)) == "fails (exploratory)"
    few = replace(finding("holds", n=4, exploratory=True), verdict="inconclusive")
    assert outcome(few) == "inconclusive (alone holds; 4 units: a verdict needs 5; exploratory)"
    corrected = replace(finding("fails", p=0.04), verdict="inconclusive")
    assert outcome(corrected).startswith("inconclusive (alone fails; p = 0.04 does not survive Holm")
    assert (units(few), p_value(few), p_value(corrected)) == ("4", "0.0012", "0.04")
    assert outcome(finding("inconclusive", n=2)) == "inconclusive (2 units: a verdict needs 5)"
    assert p_value(finding("holds", p=1e-12)) == "< 1e-12"
    certain = finding("holds", n=None, p=1e-12)
    assert (units(certain), p_value(certain)) == ("-", "-")


def test_findings_stand_below_the_question_of_their_family() -> None:
    exhibit = EXHIBITS[0]
    found = (finding("holds"), finding("fails", family="two_three"), finding("holds", "other"))
    written = families(exhibit, Result(preset="full", data={}, findings=found))
    headings = [part for part in written if part.startswith("###")]
    assert headings == ["### one", "### two_three"]
    assert r"Family *one*, 2 findings: 2 hold." in written
    assert r"Family *two\_three*, 1 finding: 1 fails." in written


def test_error_rates_count_what_each_procedure_decides(tmp_path: Path) -> None:
    """Four families of one finding: alone and in the family all p below .05 decide, over all only the smallest."""
    exhibit = EXHIBITS[0]
    ps = (0.001, 0.045, 0.048, 0.9)
    found = [finding("holds" if p < 0.05 else "inconclusive", family=f"{p}", p=p) for p in ps]
    found += [finding("holds", family="one", n=3), finding("holds", family="sure", n=None, p=1e-12)]
    found += [finding("holds", family="pair", p=0.03), finding("inconclusive", family="pair", p=0.9)]
    result = Result(exhibit=exhibit.name, preset="full", data={}, findings=tuple(found))
    (tmp_path / f"{exhibit.name}.json").write_text(result.to_json())
    numbers = [int(line.split("|")[2]) for line in error_rates([exhibit], tmp_path).splitlines()[-5:]]
    assert numbers == [6, 4, 1, 3, 1]
    assert "is left out" not in error_rates([exhibit], tmp_path)
    repeating = error_rates([exhibit, replace(exhibit, repeats="figure-4")], tmp_path)
    assert "`--figure 3` repeats another exhibit and is left out" in repeating
    assert [int(line.split("|")[2]) for line in repeating.splitlines()[-5:]] == numbers


def test_an_answer_needs_its_result(tmp_path: Path) -> None:
    peers = find("figure-peers", EXHIBITS)
    with pytest.raises(InputError, match=f"no {peers.name}.json: run {peers.option}"):
        answered([peers], tmp_path)


def test_an_exhibit_without_a_result_says_so_and_counts_nowhere(tmp_path: Path) -> None:
    """Beside one with a result, whose pages stay as they are."""
    exhibit, other = EXHIBITS[0], replace(EXHIBITS[0], name="figure-other", title="another")
    result = Result(exhibit=exhibit.name, preset="full", data={}, findings=(finding("fails", statement="D"),))
    (tmp_path / f"{exhibit.name}.json").write_text(
        replace(result, provenance=needed(exhibit, DATA).provenance).to_json()
    )
    for make in (failures, error_rates):
        assert make([exhibit, other], tmp_path) == make([exhibit], tmp_path)
    assert overview([exhibit, other], tmp_path).endswith(f"| another | {NO_RESULT} |")
    whole = everything([exhibit, other], tmp_path)
    section = whole.partition('<a id="figure-other"></a>')[2]
    assert f"another. There is {NO_RESULT}. It will be judged by [these rules]" in section
    assert "![" not in section and "![" in whole
    claim = replace(CLAIMS[0], id="D", exhibits=(exhibit.name, other.name))
    assert contents([claim], [exhibit, other], tmp_path) == contents([claim], [exhibit], tmp_path)
    shown = statements([claim], [exhibit, other], tmp_path, {})
    assert f"(../RESULTS.md#{other.name}): {NO_RESULT}" in shown
    assert f"(../RESULTS.md#{exhibit.name}): 1 fails, by" in shown


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
