"""What do the committed results say, as Markdown? `python -m figures.results` writes every generated page.

It writes RESULTS.md, and in README.md, docs/theory.md and docs/paper.md whatever stands between `<!-- NAME -->` and
`<!-- end of NAME -->`. The rest of those three pages is written by hand. Pages in words are those of figures.prose.
rules/looks.md gets a row for each result that it lacks.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from typing import Any

from figures import looks, prose
from figures.answers import answers, sizes
from figures.catalogue import DATA, EXHIBITS, NO_RESULT, Exhibit, committed, find, needed, with_results
from figures.rules import ROOT, files, judged_by, questions
from figures.shown import conditions, counts, head, needs, outcome, p_value, span, units, verdicts
from figures.text import first_sentence
from theory import paper
from theory.claims import CLAIMS, NOTATION, Claim, marked_tests, sources
from theory.derivations import KINDS, Step
from theory.errors import InputError, run
from theory.evidence import LEVEL, Finding, Origin, Result

LADDER = "figure-scale"
ON_THE_README = "figure-3-smol-moe"  # the exhibit whose picture stands there
ORIGINS: Mapping[Origin, str] = {
    "paper": "the paper's, as we read it",
    "extension": "the paper's, under conditions that it does not speak of",
    "reconstruction": "part of our reconstruction of the paper's theorem",
    "ours": "our own",
}
LEGEND = """\
Written by `python -m figures.results` from `figures/data`.

Every finding says what was claimed, what was measured, and what came out. Findings that answer one question are a
family. Findings of one claim stand in one table.

- Origin: whose claim it is. The paper's full text was not available to us: the paper's claims are as we read them.
- Rule: when the claim holds and when it fails. All rules of an exhibit stand in a file of `rules/`, whose hash and
  commit the run names. [rules/looks.md](rules/looks.md) lists every full run, also those that were replaced: what had
  been seen when a rule was written.
- n: the number of independent units (seeds, noise draws, documents) of the interval; - where nothing is random.
- p: the smallest level at which the finding's interval decides.
- Verdict: **holds** or **fails** by the rule, if the interval decides and Holm's correction in the family lets it: the
  probability of any false verdict in a family is at most 5 %. **Inconclusive** otherwise, with the reason where the
  95 % interval alone says something else. Fewer than 5 units decide nothing.
- Exploratory: the rule was written, or chosen, after data that it judges had been seen. It confirms nothing.
- An `[unbounded]` interval is that of a ratio whose denominator may be zero."""


def origin(result: Result) -> str:
    """Commit, device, time and date of the run, and where it was judged again, commit and date of that."""
    provenance, judged = result.provenance, judged_by(result)
    again = f"; judged again: {_commit(judged)}, {judged['date'][:10]}" if "judged" in provenance else ""
    units = provenance["units"]
    kept = f" with {units['from_cache']} units kept from before" if units["from_cache"] else ""
    return (
        f"{_commit(provenance)}, {provenance['device']}, {provenance['wall_seconds']:.0f} s{kept},"
        f" {provenance['date'][:10]}{again}"
    )


def _commit(provenance: Mapping[str, Any]) -> str:
    git = provenance["git"]
    if git is None:
        return "no commit"
    return f"commit {git['commit'][:8]}{' with changes' if git['dirty'] else ''}"


# The README


def answered(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """The answers, each with its exhibit."""
    known = {exhibit.name: exhibit for exhibit in exhibits}
    rows = [
        [
            cell(answer.question),
            cell(answer.answer),
            _with_rules(known[answer.exhibit]),
        ]
        for answer in answers(exhibits, data)
    ]
    return table(["question", "answer", "exhibit"], rows)


def _with_rules(exhibit: Exhibit) -> str:
    """Links to the exhibit's findings and to its rules."""
    return f"[`{exhibit.option}`](RESULTS.md#{exhibit.name}), [rules]({files(exhibit)[0]})"


def climbed(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """The sizes and trainings of the ladder, and what changes along it."""
    exhibit = find(LADDER, exhibits)
    result = needed(exhibit, data)
    missing = len(result.data["missing"])
    trends = [finding for finding in result.findings if finding.family == "trend with parameters"]
    clear = sum(finding.verdict != "inconclusive" for finding in trends)
    return (
        f"Sizes of the ladder, with parameters and trainings: {sizes(result)}. There a training is a unit."
        f" {import_module(exhibit.drawing).message(result)}"
        + (f"; {missing} rungs lack trainings." if missing else ".")
        + (
            f" [{clear} of {len(trends)} trends](docs/findings.md#along-the-ladder) are clear."
            if trends
            else ""
        )
    )


def failures(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """One row for each claim of the paper that fails somewhere in an exhibit: where, and how far from its bound.

    Claims of ours, and those that fail under conditions that the paper does not speak of, are counted in a sentence.
    """
    rows: list[list[str]] = []
    of_ours: dict[str, int] = {}
    beyond: dict[str, int] = {}
    for exhibit, result in with_results(exhibits, data):
        findings = result.findings
        link = f"[`{exhibit.option}`](RESULTS.md#{exhibit.name})"
        for claim in dict.fromkeys(head(each) for each in findings if each.verdict == "fails"):
            cells = [each for each in findings if head(each) == claim]
            failing = [each for each in cells if each.verdict == "fails"]
            origins = {each.origin for each in failing}
            if "paper" not in origins:
                counts = beyond if origins == {"extension"} else of_ours
                counts[link] = counts.get(link, 0) + 1
                continue
            rows.append(
                [
                    link,
                    cell(claim),
                    f"{len(failing)} of {len(cells)}",
                    span(failing),
                    " or ".join(dict.fromkeys(cell(needs(each.rule)) for each in failing)),
                ]
            )
    written = table(["exhibit", "the paper's claim", "fails in", "estimates there", "holds if"], rows)
    for words, counts in (
        ("Claims of ours fail, too", of_ours),
        ("More fail under conditions that the paper does not speak of", beyond),
    ):
        if counts:
            where = ", ".join(f"{count} in {link}" for link, count in counts.items())
            written += f"\n\n{words}: {where}."
    return written


def first_look(exhibit: Exhibit) -> str:
    """The exhibit's own picture, which the first sentence of its caption stands in for."""
    return _picture(exhibit.name, _caption(exhibit))


def pictures(exhibit: Exhibit, data: Traversable) -> list[str]:
    """All pictures of the exhibit, each with its caption, without parts that its result has nothing for."""
    further = getattr(import_module(exhibit.drawing), "PARTS", {})
    captions = {exhibit.name: _caption(exhibit)} | {
        name: caption
        for part, (_, caption) in further.items()
        if (data / f"{(name := f'{exhibit.name}-{part}')}.png").is_file()
    }
    return [f"{_picture(name, caption)}\n\n*{cell(caption)}*" for name, caption in captions.items()]


def _caption(exhibit: Exhibit) -> str:
    return getattr(import_module(exhibit.drawing), "CAPTION", exhibit.sentence)


def _picture(name: str, caption: str) -> str:
    return f"![{seen(caption)}](figures/data/{name}.png)"


def seen(caption: str) -> str:
    """First sentence of a caption, which says what is to be seen: the text in the picture's place."""
    return first_sentence(caption.strip()).replace("[", "(").replace("]", ")")


# RESULTS.md


def overview(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """One row for each exhibit."""
    rows = [
        [
            f"[`{exhibit.option}`](#{exhibit.name})",
            cell(exhibit.title),
            counts(result) if (result := committed(exhibit, data)) else NO_RESULT,
        ]
        for exhibit in exhibits
    ]
    return table(["exhibit", "shows", "findings"], rows)


def everything(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """Every finding of every exhibit with its rule, pictures with captions, and what each result comes from."""
    sections = ["# Results", LEGEND, overview(exhibits, data), error_rates(exhibits, data)]
    for exhibit in exhibits:
        sections.append(f'<a id="{exhibit.name}"></a>\n## `{exhibit.option}`')
        rules = f"[these rules]({files(exhibit)[0]})"
        if (result := committed(exhibit, data)) is None:
            sections.append(f"{exhibit.sentence} There is {NO_RESULT}. It will be judged by {rules}.")
            continue
        sections += [
            f"{exhibit.sentence} {counts(result)}. Judged by {rules}.",
            *([exhibit.repetition] if exhibit.repeats else []),
            *pictures(exhibit, data),
            *families(exhibit, result),
            f"`{result.provenance['command']}`, {origin(result)}.",
        ]
    return "\n\n".join(sections) + "\n"


def error_rates(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """How many findings are decided one by one, in their families, and over all families at once."""
    from scipy.stats import false_discovery_control  # takes longer to import than all else here

    able = [
        finding
        for exhibit, result in with_results(exhibits, data)
        if not exhibit.repeats
        for finding in result.findings
        if finding.n is not None and not finding.too_few
    ]
    adjusted = false_discovery_control([finding.p for finding in able]) if able else []
    alone = [finding.alone != "inconclusive" for finding in able]
    verdicts = [finding.verdict != "inconclusive" for finding in able]
    kept = [p <= LEVEL for p in adjusted]
    rows = [
        ["that could be decided: something is random, and there are at least 5 units", f"{len(able)}"],
        ["decided by the 95 % interval alone", f"{sum(alone)}"],
        [
            "of these kept by Benjamini and Hochberg, over all at 5 %",
            f"{sum(map(all, zip(alone, kept, strict=True)))}",
        ],
        ["decided by Holm's procedure in the family: the verdicts", f"{sum(verdicts)}"],
        ["of these kept by Benjamini and Hochberg", f"{sum(map(all, zip(verdicts, kept, strict=True)))}"],
    ]
    repeating = [f"`{exhibit.option}`" for exhibit in exhibits if exhibit.repeats]
    left_out = f" {', '.join(repeating)} repeats another exhibit and is left out." if repeating else ""
    return f"""How many findings are decided, and by what: one by one, in families, or by a false discovery rate of 5 %
over all findings at once.{left_out}

{table(["findings", "number"], rows)}"""


def families(exhibit: Exhibit, result: Result) -> list[str]:
    """A heading, the counted verdicts and all findings of each family."""
    asked = questions(exhibit)
    written = []
    for family in dict.fromkeys(finding.family for finding in result.findings):
        own = [finding for finding in result.findings if finding.family == family]
        size = f"{len(own)} finding{'s' if len(own) > 1 else ''}"
        written += [
            f"### {asked.get(family, family)}",
            f"Family *{cell(family)}*, {size}: {verdicts(own)}.",
            *findings_by_claim(own),
        ]
    return written


def findings_by_claim(findings: Sequence[Finding]) -> list[str]:
    """A paragraph and a table for all findings that share claim, origin, statement and rule."""
    groups: dict[tuple[str, str, str | None, str], list[Finding]] = {}
    for finding in findings:
        shared = head(finding), finding.origin, finding.statement, finding.rule
        groups.setdefault(shared, []).append(finding)
    written = []
    for group in groups.values():
        first, statistics = group[0], {finding.statistic for finding in group}
        one = len(statistics) == 1
        whose = ORIGINS[first.origin]
        if first.statement:
            whose += f"; it tests statement [{first.statement}](docs/theory.md#{first.statement})"
        measured = [f"Measured: {cell(first.statistic)}"] if one else []
        lines = [f"**{cell(head(first))}**", f"Origin: {whose}", *measured, f"Rule: {cell(first.rule)}"]
        names = ["where", *([] if one else ["measured"]), "estimate, interval", "n", "p", "verdict"]
        rows = [
            [
                cell(conditions(finding)),
                *([] if one else [cell(finding.statistic)]),
                finding.measured.removeprefix(f"{finding.statistic}: "),
                units(finding),
                cell(p_value(finding)),
                f"**{finding.verdict}**{cell(outcome(finding).removeprefix(finding.verdict))}",
            ]
            for finding in group
        ]
        written += ["<br>\n".join(lines), table(names, rows)]
    return written


# docs/theory.md


def contents(claims: Sequence[Claim], exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """One row for each statement, with the verdicts of the findings that test it."""
    testing = _testing(exhibits, data)
    rows = [
        [
            f"[{claim.id}](#{claim.id})",
            cell(claim.statement),
            verdicts(chain.from_iterable(testing.get(claim.id, {}).values())) or "none",
        ]
        for claim in claims
    ]
    steps = sources(claims)
    own = [step for claim in claims for step, source in steps[claim.id].items() if source == claim.id]
    kinds = ", ".join(f"{sum(step.kind == kind for step in own)} {kind}" for kind in KINDS)
    count = f"There are {len(own)} distinct steps: {kinds}. A step that several statements share counts once."
    return f"{table(['id', 'statement', 'findings that test it'], rows)}\n\n{count}"


def symbols() -> str:
    """What the symbols of the formulas mean."""
    return table(["symbol", "meaning"], [[f"${symbol}$", meaning] for symbol, meaning in NOTATION.items()])


def statements(
    claims: Sequence[Claim],
    exhibits: Sequence[Exhibit],
    data: Traversable,
    tests: Mapping[str, Sequence[str]],
) -> str:
    """Formula, assumptions, derivation, tests, exhibits and verdicts of every statement."""
    shown = {exhibit.name: exhibit for exhibit in exhibits}
    testing = _testing(exhibits, data)
    known = {exhibit.name for exhibit, _ in with_results(exhibits, data)}
    steps = sources(claims)
    sections = []
    for claim in claims:
        module = claim.derivation.replace(".", "/") + ".py"
        links = []
        for name in claim.exhibits:
            if name not in shown:
                raise InputError(f"{claim.id}: {name} is not in the catalogue; mend theory/claims.py")
            found = "no finding tests this statement alone" if name in known else NO_RESULT
            if own := verdicts(testing.get(claim.id, {}).get(name, ())):
                found = f"{own}, by [these rules](../{files(shown[name])[0]})"
            links.append(f"- [`{shown[name].option}`](../RESULTS.md#{name}): {found}")
        sections += [
            f'<a id="{claim.id}"></a>\n## {claim.id}',
            f"{claim.statement}.",
            f"$$\n{claim.latex}\n$$",
            f"Origin: {ORIGINS[claim.origin]}.",
            "\n".join(["Assumptions:\n", *(f"- {assumption}" for assumption in claim.assumptions)]),
            f"Derivation, in [`{module}`](../{module}):",
            "\n".join(
                _step(step, "" if source == claim.id else source)
                for kind in KINDS
                for step, source in steps[claim.id].items()
                if step.kind == kind
            ),
            "Tests:",
            "\n".join(f"- `tests/{test}`" for test in tests.get(claim.id, ())),
            "Exhibits:",
            "\n".join(links) or "none",
        ]
    return "\n\n".join(sections)


def _step(step: Step, shared_with: str) -> str:
    reference = f" [{step.reference}]" if step.reference else ""
    shared = f" (shared with [{shared_with}](#{shared_with}))" if shared_with else ""
    return f"- {step.kind}: `{step.equation}`{reference}{shared}"


def _testing(exhibits: Sequence[Exhibit], data: Traversable) -> dict[str, dict[str, list[Finding]]]:
    """Findings by the statement that they test and by exhibit."""
    found: dict[str, dict[str, list[Finding]]] = {}
    for exhibit, result in with_results(exhibits, data):
        for finding in result.findings:
            if finding.statement is not None:
                found.setdefault(finding.statement, {}).setdefault(exhibit.name, []).append(finding)
    return found


# docs/paper.md


def published() -> str:
    """Every number and statement of theory/paper.py that is no table of its own, with its source."""
    rows = []
    for name, value in paper.published().items():
        if isinstance(value, paper.Published):
            rows.append([f"`{name}`", cell(f"{value.unit}: {value.said}"), cell(value.source)])
        elif isinstance(value, paper.Statement):
            rows.append([f"`{name}`", cell(value.text), cell(value.source)])
        else:
            shape = (
                f"{value.name}: {value.layers} layers ({value.dense_layers} dense), {value.experts} experts of width"
                f" {value.expert_width}, {value.top_k} used by a token, {value.shared_experts} shared; hidden"
                f" {value.hidden}"
            )
            rows.append([f"`{name}`", cell(shape), "configuration of the model"])
    return table(["constant", "what is published", "where"], rows)


def table_1() -> str:
    """The paper's Table 1."""
    analog = {
        "nothing": "FP16",
        "experts": "experts analog",
        "everything": "experts and dense modules analog",
    }
    rows = [
        [model, *(f"{accuracies[key]:.2f}" for key in analog)]  # type: ignore[index]
        for model, accuracies in paper.TABLE_1.value.items()
    ]
    return table(["accuracy, %", *analog.values()], rows)


def table_2() -> str:
    """The paper's Table 2."""
    rows = [
        [
            row.placement,
            f"{row.digital_parameters:g} %",
            f"{row.tokens_per_second:,g}",
            f"{row.tokens_per_joule:,}",
            f"{row.accuracy:.2f}" + ("" if row.accuracy_error is None else f" +- {row.accuracy_error:.2f}"),
        ]
        for row in paper.TABLE_2.value
    ]
    return table(["placement", "digital parameters", "tokens/s", "tokens/(W s)", "accuracy, %"], rows)


# Markdown


def cell(text: str) -> str:
    """Text as a cell of a table: what Markdown would take for a mark of its own is escaped."""
    return re.sub(r"([|*_<])", r"\\\1", text)


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; text of unknown content has to go through `cell` first."""
    head, *lines = [f"| {' | '.join(line)} |" for line in (names, *rows)]
    return "\n".join([head, "|---" * len(names) + "|", *lines])


def filled(page: str, parts: Mapping[str, str], name: str = "README.md") -> str:
    """The page with each part between its marks; InputError unless both marks of a part are there once."""
    for part, text in parts.items():
        start, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
        if page.count(start) != 1 or page.count(end) != 1:
            raise InputError(f"{name} has to hold {start} and {end} once each")
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def pages(exhibits: Sequence[Exhibit] = EXHIBITS, data: Traversable = DATA) -> dict[Path, str]:
    """Every page that is generated, whole or in part, as it has to be."""
    shown = next(exhibit for exhibit in exhibits if exhibit.name == ON_THE_README)
    parts = {
        "README.md": {
            "picture": first_look(shown),
            "ladder": climbed(exhibits, data),
            "answers": answered(exhibits, data),
            "failures": failures(exhibits, data),
        },
        "docs/theory.md": {
            "symbols": symbols(),
            "contents": contents(CLAIMS, exhibits, data),
            "statements": statements(CLAIMS, exhibits, data, marked_tests(ROOT / "tests")),
        },
        "docs/paper.md": {"published": published(), "table 1": table_1(), "table 2": table_2()},
    }
    texts = {
        ROOT / name: filled((ROOT / name).read_text(encoding="utf-8"), own, name)
        for name, own in parts.items()
    }
    words = {ROOT / "docs" / name: text for name, text in prose.written(exhibits, data).items()}
    log = ROOT / "rules" / "looks.md"
    seen = {log: looks.completed(log.read_text(encoding="utf-8"), exhibits, data)}
    return texts | words | seen | {ROOT / "RESULTS.md": everything(exhibits, data)}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
