"""Do findings that are made today say what the committed ones say, for the tests of every layer?"""

from collections.abc import Sequence
from pathlib import Path

from theory.evidence import Result

DATA = Path(__file__).parents[2] / "figures" / "data"


def assert_as_committed(exhibit: str, result: Result, new: Sequence[str] = ()) -> None:
    """Every claim has the origin and the statement that figures/data/EXHIBIT.json has for it.

    exhibit: name as in the catalogue, "figure-growth".
    new: words of those claims that need not occur there, because their text depends on what was measured.
    """
    committed = Result.from_json((DATA / f"{exhibit}.json").read_text(encoding="utf-8"), exhibit)
    known = {finding.claim: (finding.origin, finding.statement) for finding in committed.findings}
    made = {
        finding.claim: (finding.origin, finding.statement)
        for finding in result.findings
        if not any(words in finding.claim for words in new)
    }
    assert made
    assert made == {claim: known.get(claim, "no such claim is committed") for claim in made}
