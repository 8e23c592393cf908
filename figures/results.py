"""What do the committed results say, as Markdown? `python -m figures.results` writes every generated page.

It writes RESULTS.md, and in README.md, docs/theory.md and docs/paper.md whatever stands between `<!-- NAME -->` and
`<!-- end of NAME -->`. The rest of those three pages is written by hand. Pages in words are those of figures.prose.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from typing import get_args

from figures import prose
from figures.answers import answers
from figures.catalogue import DATA, DECIDES_NOTHING, EXHIBITS, Exhibit, needed
from figures.text import first_sentence
from theory import paper
from theory.claims import CLAIMS, NOTATION, Claim, marked_tests, sources
from theory.derivations import KINDS, Step
from theory.errors import InputError, run
from theory.evidence import LEAST_P, Finding, Origin, Result, Verdict

ROOT = Path(__file__).parents[1]
ON_THE_README = "figure-3"  # the exhibit whose picture stands there
ORIGINS: Mapping[Origin, str] = {
    "paper": "the paper's, as we read it",
    "extension": "the paper's, under conditions that it does not speak of",
    "reconstruction": "our reconstruction of a claim of the paper",
    "ours": "our own",
}
LEGEND = """\
Written by `python -m figures.results` from `figures/data`.

Every finding says what was claimed, what was measured, and what came out. Findings of one claim stand in one table.

- Origin: whose claim it is. The paper's full text was not available to us: the paper's claims are as we read them.
- Rule: when the claim holds and when it fails. It was fixed before the experiment was run.
- Verdict: **holds** or **fails** by that rule; **inconclusive** where the interval allows both.
- n: the number of independent units (seeds, noise draws, documents) that the interval rests on.
- An `[unbounded]` interval is that of a ratio whose denominator may be zero."""


def counts(result: Result) -> str:
    """How many findings have which verdict, and the preset if it is a smaller one than full."""
    counted = verdicts(result.findings)
    if result.preset == "full":
        return counted
    return f"{counted} ({DECIDES_NOTHING if result.preset == 'quick' else f'{result.preset} preset only'})"


def verdicts(findings: Iterable[Finding]) -> str:
    """How many of the findings have which verdict: `2 hold, 1 fails`."""
    found = Counter(finding.verdict for finding in findings)
    plural = {"holds": "hold", "fails": "fail"}
    return ", ".join(
        f"{found[verdict]} {verdict if found[verdict] == 1 else plural.get(verdict, verdict)}"
        for verdict in get_args(Verdict)
        if found[verdict]
    )


def origin(result: Result) -> str:
    """Commit, device, time and date of the run, from the provenance that the command line adds."""
    provenance = result.provenance
    git, commit = provenance["git"], "no commit"
    if git is not None:
        commit = f"commit {git['commit'][:8]}{' with changes' if git['dirty'] else ''}"
    return f"{commit}, {provenance['device']}, {provenance['wall_seconds']:.0f} s, {provenance['date'][:10]}"


# How a finding is shown


def outcome(finding: Finding) -> str:
    """The verdict, with the reason where the finding's interval alone says something else."""
    words = [finding.reason] if finding.reason else []
    words += ["exploratory"] if finding.exploratory else []
    return f"{finding.verdict} ({'; '.join(words)})" if words else finding.verdict


def p_value(finding: Finding) -> str:
    """p as tables show it; - where nothing is random."""
    if finding.n is None:
        return "-"
    return f"< {LEAST_P:.0e}" if finding.p <= LEAST_P else f"{finding.p:.2g}"


def units(finding: Finding) -> str:
    """n as tables show it; - where nothing is random."""
    return "-" if finding.n is None else str(finding.n)


# What findings have in common


def head(finding: Finding) -> str:
    """The claim without its conditions, which follow after a semicolon."""
    return finding.claim.partition("; ")[0]


def conditions(finding: Finding) -> str:
    return finding.claim.partition("; ")[2]


def needs(rule: str) -> str:
    """The condition of holding: `above 0.5` of "95 % interval above 0.5: holds; below: fails"."""
    return rule.partition(": holds")[0].removeprefix("95 % interval ")


def span(findings: Sequence[Finding]) -> str:
    """Smallest and largest estimate, with the unit if that is one of losses."""
    ends = [f"{end(finding.estimate for finding in findings):.3g}" for end in (min, max)]
    unit = " nats" if all("nats per token" in finding.statistic for finding in findings) else ""
    return (ends[0] if ends[0] == ends[1] else " to ".join(ends)) + unit


# The README


def answered(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """The seven answers, each with its exhibit."""
    options = {exhibit.name: exhibit.option for exhibit in exhibits}
    rows = [
        [
            cell(answer.question),
            cell(answer.answer),
            f"[`{options[answer.exhibit]}`](RESULTS.md#{answer.exhibit})",
        ]
        for answer in answers(exhibits, data)
    ]
    return table(["question", "answer", "exhibit"], rows)


def failures(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """One row for each claim of an exhibit that fails somewhere: where, and how far from its bound."""
    rows = []
    for exhibit in exhibits:
        findings = needed(exhibit, data).findings
        for claim in dict.fromkeys(head(each) for each in findings if each.verdict == "fails"):
            cells = [each for each in findings if head(each) == claim]
            failing = [each for each in cells if each.verdict == "fails"]
            rows.append(
                [
                    f"[`{exhibit.option}`](RESULTS.md#{exhibit.name})",
                    cell(claim),
                    f"{len(failing)} of {len(cells)}",
                    span(failing),
                    " or ".join(dict.fromkeys(cell(needs(each.rule)) for each in failing)),
                ]
            )
    return table(["exhibit", "claim", "fails in", "estimates there", "holds if"], rows)


def first_look(exhibit: Exhibit) -> str:
    """The exhibit's own picture, which the first sentence of its caption stands in for."""
    return _picture(exhibit.name, _caption(exhibit))


def pictures(exhibit: Exhibit) -> list[str]:
    """All pictures of the exhibit, each with its caption."""
    further = getattr(import_module(exhibit.drawing), "PARTS", {})
    captions = {exhibit.name: _caption(exhibit)} | {
        f"{exhibit.name}-{part}": caption for part, (_, caption) in further.items()
    }
    return [f"{_picture(name, caption)}\n\n*{cell(caption)}*" for name, caption in captions.items()]


def _caption(exhibit: Exhibit) -> str:
    return getattr(import_module(exhibit.drawing), "CAPTION", f"{exhibit.title}.")


def _picture(name: str, caption: str) -> str:
    return f"![{seen(caption)}](figures/data/{name}.png)"


def seen(caption: str) -> str:
    """First sentence of a caption, which says what is to be seen: the text in the picture's place."""
    return first_sentence(caption.strip()).replace("[", "(").replace("]", ")")


# RESULTS.md


def overview(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """One row for each exhibit."""
    rows = [
        [f"[`{exhibit.option}`](#{exhibit.name})", cell(exhibit.title), counts(needed(exhibit, data))]
        for exhibit in exhibits
    ]
    return table(["exhibit", "shows", "findings"], rows)


def everything(exhibits: Sequence[Exhibit], data: Traversable) -> str:
    """Every finding of every exhibit with its rule, pictures with captions, and what each result comes from."""
    sections = ["# Results", LEGEND, overview(exhibits, data)]
    for exhibit in exhibits:
        result = needed(exhibit, data)
        sections += [
            f'<a id="{exhibit.name}"></a>\n## `{exhibit.option}`',
            f"{exhibit.title}. {counts(result)}.",
            *pictures(exhibit),
            *findings_by_claim(result.findings),
            f"`{result.provenance['command']}`, {origin(result)}.",
        ]
    return "\n\n".join(sections) + "\n"


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
        names = ["where", *([] if one else ["measured"]), "estimate, interval", "n", "verdict"]
        rows = [
            [
                cell(conditions(finding)),
                *([] if one else [cell(finding.statistic)]),
                finding.measured.removeprefix(f"{finding.statistic}: "),
                str(finding.n),
                f"**{finding.verdict}**",
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
    steps = sources(claims)
    sections = []
    for claim in claims:
        module = claim.derivation.replace(".", "/") + ".py"
        links = []
        for name in claim.exhibits:
            if name not in shown:
                raise InputError(f"{claim.id}: {name} is not in the catalogue; mend theory/claims.py")
            own = verdicts(testing.get(claim.id, {}).get(name, ())) or "no finding tests this statement alone"
            links.append(f"- [`{shown[name].option}`](../RESULTS.md#{name}): {own}")
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
            "\n".join(links),
        ]
    return "\n\n".join(sections)


def _step(step: Step, shared_with: str) -> str:
    reference = f" [{step.reference}]" if step.reference else ""
    shared = f" (shared with [{shared_with}](#{shared_with}))" if shared_with else ""
    return f"- {step.kind}: `{step.equation}`{reference}{shared}"


def _testing(exhibits: Sequence[Exhibit], data: Traversable) -> dict[str, dict[str, list[Finding]]]:
    """Findings by the statement that they test and by exhibit."""
    found: dict[str, dict[str, list[Finding]]] = {}
    for exhibit in exhibits:
        for finding in needed(exhibit, data).findings:
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
    return texts | words | {ROOT / "RESULTS.md": everything(exhibits, data)}


def main() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    run(main)
