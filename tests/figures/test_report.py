"""The page of all exhibits: it shows every finding as text, and needs no other file."""

import base64
import io
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from figures.answers import answers
from figures.catalogue import DATA, EXHIBITS, NO_RESULT, committed, with_results
from figures.output import Picture
from figures.report import Section, page
from figures.results import origin
from figures.shown import counts, outcome, p_value
from figures.text import first_sentence
from theory.evidence import Finding, Result

MOST_BYTES = 8_000_000  # mail servers take 10 MB and more


def png() -> bytes:
    """A picture of noise, whose pixels no compression with loss would keep."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(source: str) -> NDArray[np.uint8]:
    """The picture of a data URI."""
    kind, _, content = source.partition(",")
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))


class Page(HTMLParser):
    """Its text, and what its elements refer to."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.tags, self.sources, self.alternatives = "", set[str](), list[str](), list[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        self.alternatives += [value or "" for name, value in attrs if name == "alt"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_finding_of_every_exhibit() -> None:
    found = with_results(EXHIBITS, DATA)
    results = [result for _, result in found]
    picture = Picture("", "What is seen. And more.", {"png": png()})
    sections = [Section(exhibit, result, [picture]) for exhibit, result in found]
    shown = Page(page(sections, answers(EXHIBITS, DATA)))
    for result in results:
        assert counts(result) in shown.text and origin(result) in shown.text
        for finding in result.findings:
            for part in (finding.claim, finding.measured, finding.rule, p_value(finding), outcome(finding)):
                assert part in shown.text
    drawn = [source for source in shown.sources if source.startswith("data:")]
    assert len(drawn) == len(found) and len(set(drawn)) == 1
    assert np.array_equal(pixels(drawn[0]), np.asarray(Image.open(io.BytesIO(png()))))
    paper = "https://arxiv.org/abs/2603.02633"  # a link, which the page does not need
    assert all(source.startswith(("#", "data:")) or source == paper for source in shown.sources)
    assert not shown.tags & {"script", "link", "iframe"}
    for answer in answers(EXHIBITS, DATA):
        assert answer.question in shown.text and answer.answer in shown.text
    assert "2603.02633" in shown.text and "tiny-olmoe" in shown.text
    assert shown.alternatives == ["What is seen."] * len(found) and shown.text.count(
        "What is seen. And more."
    )


def test_text_is_text() -> None:
    finding = Finding(
        claim="a < b & <b>c</b>",
        origin="ours",
        statistic="'\"",
        estimate=1.0,
        interval=None,
        n=2,
        rule="</table>",
        family="<em>",
        p=0.25,
        alone="inconclusive",
        verdict="inconclusive",
        exploratory=True,
    )
    provenance = {
        "command": "<i>",
        "git": None,
        "device": "CPU",
        "wall_seconds": 1.2,
        "units": {"computed": 1, "from_cache": 0},
        "date": "2026-01-02T03",
    }
    result = Result(preset="full", data={}, findings=(finding,), provenance=provenance)
    exhibit = replace(EXHIBITS[0], title="<u>")
    shown = Page(page([Section(exhibit, result), Section(exhibit, None, error="<s>; mend it")], []))
    for part in (
        finding.claim,
        finding.measured,
        finding.rule,
        "<i>",
        "<u>",
        "<em>",
        "No result: <s>; mend it",
    ):
        assert part in shown.text
    assert "no commit, CPU, 1 s, 2026-01-02" in shown.text
    again = {
        "judged": {"git": {"commit": "0123456789", "dirty": False}, "date": "2026-03-04T05", "rules": []}
    }
    judged = origin(replace(result, provenance=provenance | again))
    assert judged == "no commit, CPU, 1 s, 2026-01-02; judged again: commit 01234567, 2026-03-04"
    assert "inconclusive (2 units: a verdict needs 5; exploratory)" in shown.text and "0.25" in shown.text
    assert not shown.tags & {"b", "i", "u", "s", "em"}


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Loss at c = 2.5 over all. And more.", "Loss at c = 2.5 over all."),
        ("Which one? (Either.) Both", "Which one?"),
        ("Tiles, e.g. of 512 rows. More", "Tiles, e.g. of 512 rows."),
        ("Two maps. c* is the tolerance.", "Two maps."),
        ("No stop", "No stop"),
    ],
)
def test_the_first_sentence(text: str, first: str) -> None:
    assert first_sentence(text) == first


def test_quick_results_and_repeated_findings_say_what_they_are() -> None:
    result = committed(EXHIBITS[0], DATA)
    assert result is not None
    shown = Page(page([Section(EXHIBITS[0], result)], [])).text
    assert "decides nothing" not in shown and "one finding repeated" not in shown
    quick = Section(replace(EXHIBITS[0], repeats="figure-4"), replace(result, preset="quick"))
    shown = Page(page([quick], [])).text
    assert "The quick preset decides nothing" in shown and "one finding repeated" in shown


def test_where_each_result_comes_from() -> None:
    result = committed(EXHIBITS[0], DATA)
    here = Section(EXHIBITS[0], result, committed=False, file="figure-3.quick.json")
    assert "Computed here: figure-3.quick.json" in Page(page([here], [])).text
    shown = Page(page([Section(EXHIBITS[0], result)], [])).text
    assert "The committed result" in shown and "Computed here" not in shown


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# What the browser made of the page, left in the DOM that it prints.
MEASURE = """<script>addEventListener("load", () => {
  const shown = (selector) => [...document.querySelectorAll(selector)].filter((each) => each.offsetParent).length
  const root = document.documentElement
  const before = shown("tbody td.holds")
  document.querySelector("label[for=only]").click()
  document.title = "measured " + JSON.stringify({
    overflow: root.scrollWidth - innerWidth,
    images: document.images.length,
    broken: [...document.images].filter((image) => !image.complete || !image.naturalWidth).length,
    background: getComputedStyle(document.body).backgroundColor,
    before, holds: shown("tbody td.holds"), fails: shown("tbody td.fails"),
  })
})</script>"""


@pytest.fixture(scope="module")
def whole_page() -> str:
    """The page of all exhibits: those that were run with their committed pictures, the others with a line."""
    sections = []
    for exhibit in EXHIBITS:
        if (result := committed(exhibit, DATA)) is None:
            sections.append(Section(exhibit, None, error=NO_RESULT))
            continue
        parts = ["", *(f"-{part}" for part in getattr(import_module(exhibit.drawing), "PARTS", {}))]
        files = [DATA / f"{exhibit.name}{part}.png" for part in parts]
        drawn = [file.read_bytes() for file in files if file.is_file()]  # a part may have nothing to draw
        pictures = [Picture("", f"{exhibit.title}.", {"png": each}) for each in drawn]
        sections.append(Section(exhibit, result, pictures))
    return page(sections, answers(EXHIBITS, DATA))


def test_print_parts_no_heading_from_its_picture(whole_page: str) -> None:
    """Heading and first picture stand in one block, which print does not break."""
    blocks = [each.partition("</div>")[0] for each in whole_page.split('<div class="opening">')[1:]]
    headed = [block for block in blocks if "<h2>" in block]
    assert len(headed) == len(EXHIBITS) and all(
        block.count("<img ") + block.count(NO_RESULT) == 1 for block in blocks
    )
    assert re.search(r"@media print \{.*\.opening \{ break-inside: avoid; \}.*\n\}", whole_page, re.DOTALL)


def test_the_whole_page_can_be_sent_by_mail(whole_page: str) -> None:
    assert len(whole_page.encode()) <= MOST_BYTES


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(("dark", "background"), [(False, "rgb(255, 255, 255)"), (True, "rgb(22, 24, 27)")])
def test_in_a_browser(dark: bool, background: str, whole_page: str, tmp_path: Path) -> None:
    """A narrow window: only tables scroll, every picture is seen, and the filter leaves what fails."""
    results = [committed(exhibit, DATA) for exhibit in EXHIBITS]
    file = tmp_path / "report.html"
    file.write_text(whole_page.replace("</body>", f"{MEASURE}</body>"))
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=500,1000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"<title>measured (.*?)</title>", done.stdout)
    assert found
    measured = json.loads(found[1])
    assert measured["overflow"] <= 0
    assert (measured["images"], measured["broken"]) == (whole_page.count("<img "), 0)
    assert measured["background"] == background
    verdicts = Counter(finding.verdict for result in results if result for finding in result.findings)
    assert measured["before"] == verdicts["holds"]
    assert (measured["holds"], measured["fails"]) == (0, verdicts["fails"])
