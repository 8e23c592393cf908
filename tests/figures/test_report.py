"""The page of all exhibits: it shows every finding as text, and needs no other file."""

from dataclasses import replace
from html.parser import HTMLParser

from figures.answers import answers
from figures.catalogue import DATA, EXHIBITS, committed
from figures.output import Picture
from figures.report import Section, page
from figures.results import counts, origin
from theory.evidence import Finding, Result


class Page(HTMLParser):
    """Its text, and what its elements refer to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.sources = "", set[str](), list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_finding_of_every_exhibit() -> None:
    results = [committed(exhibit, DATA) for exhibit in EXHIBITS]
    picture = Picture("", "What is seen. And more.", {"png": b"png"})
    sections = [
        Section(exhibit, result, [picture]) for exhibit, result in zip(EXHIBITS, results, strict=True)
    ]
    shown = Page(page(sections, answers(EXHIBITS, DATA)))
    for result in results:
        assert result is not None
        assert counts(result) in shown.text and origin(result) in shown.text
        for finding in result.findings:
            for part in (finding.claim, finding.measured, finding.rule):
                assert part in shown.text
    assert shown.sources.count("data:image/png;base64,cG5n") == len(EXHIBITS)
    assert all(source.startswith(("#", "data:")) for source in shown.sources)
    assert not shown.tags & {"script", "link", "iframe"}


def test_text_is_text() -> None:
    finding = Finding(
        claim="a < b & <b>c</b>",
        origin="ours",
        statistic="'\"",
        estimate=1.0,
        interval=None,
        n=2,
        rule="</table>",
        verdict="inconclusive",
    )
    provenance = {
        "command": "<i>",
        "git": None,
        "device": "CPU",
        "wall_seconds": 1.2,
        "date": "2026-01-02T03",
    }
    result = Result(preset="full", data={}, findings=(finding,), provenance=provenance)
    exhibit = replace(EXHIBITS[0], title="<u>")
    shown = Page(page([Section(exhibit, result), Section(exhibit, None, error="<s>; mend it")], []))
    for part in (finding.claim, finding.measured, finding.rule, "<i>", "<u>", "No result: <s>; mend it"):
        assert part in shown.text
    assert "no commit, CPU, 1 s, 2026-01-02" in shown.text
    assert not shown.tags & {"b", "i", "u", "s"}
