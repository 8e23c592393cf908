"""Which rules judge an exhibit, and were they there first? rules/EXHIBIT.md, and the stamp that a result keeps of it.

A rules file is committed before the run that it judges. The result names the file, its SHA-256 and the commit of the
run: `faults` says where the three do not agree, and where the families of the findings are not those of the file.
"""

import hashlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from figures.catalogue import Exhibit
from theory.errors import InputError
from theory.evidence import Result

ROOT = Path(__file__).parents[1]
WRITTEN = re.compile(r"^Written (\d{4}-\d\d-\d\d), before the run", re.MULTILINE)
SAME_NAMES = re.compile(r'the same names with "(.+)"')
OPTIONAL = re.compile(r"`--[a-z-]+`")  # a family of this question is there with that option alone


@dataclass(frozen=True)
class Rules:
    """What the rules of an exhibit say that a program can check.

    written: the later date of two, where the exhibit is like another.
    families: the question of each family, by the family's name; the exhibit's own, if its file names any.
    """

    written: date
    families: Mapping[str, str]


def files(exhibit: Exhibit) -> list[str]:
    """Names of the rules files of the exhibit: its own, and that of the exhibit that it is like."""
    return [f"rules/{name}.md" for name in (exhibit.name, exhibit.like) if name]


def stamps(exhibit: Exhibit, root: Path = ROOT) -> list[dict[str, str]]:
    """Name and SHA-256 of each rules file of the exhibit that is there."""
    return [
        {"file": file, "sha256": hashlib.sha256((root / file).read_bytes()).hexdigest()}
        for file in files(exhibit)
        if (root / file).is_file()
    ]


def questions(exhibit: Exhibit, root: Path = ROOT) -> Mapping[str, str]:
    """The question of each family, as far as the exhibit has rules."""
    return read(exhibit, root).families if stamps(exhibit, root) else {}


def read(exhibit: Exhibit, root: Path = ROOT) -> Rules:
    """Date and families of the exhibit's rules; InputError if a file is missing or lacks them."""
    dates: list[date] = []
    families: Mapping[str, str] = {}
    for file in files(exhibit):
        if not (root / file).is_file():
            raise InputError(f"{file} is missing: write the rules of {exhibit.option} before its run")
        text = (root / file).read_text(encoding="utf-8")
        if not (found := WRITTEN.search(text)):
            raise InputError(f'{file} has no date: begin a line with "Written YYYY-MM-DD, before the run"')
        dates.append(date.fromisoformat(found[1]))
        families = families or _families(text)
    if not families:
        raise InputError(f"{files(exhibit)[0]} names no family: give the table | family | question | rules |")
    return Rules(max(dates), families)


def _families(text: str) -> Mapping[str, str]:
    """The question of each row of the table below the heading Families, by its name.

    A row `the same names with "WORDS"` stands for all rows above it, with the words added.
    """
    section = text.partition("\n## Families\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    found: dict[str, str] = {}
    for row in rows[2:]:  # after the names of the columns and the line below them
        name, question, *_ = (cell.strip() for cell in row.strip("|").split("|"))
        again = SAME_NAMES.fullmatch(name)
        found |= {f"{each} {again[1]}": question for each in found} if again else {name: question}
    return found


def judged_by(result: Result) -> Mapping[str, Any]:
    """Where date, commit and rules of the judgement stand: of the run, or of the last time it was judged again."""
    judged: Mapping[str, Any] = result.provenance.get("judged", result.provenance)
    return judged


def faults(result: Result, exhibit: Exhibit, root: Path = ROOT) -> list[str]:
    """Why the rules of the exhibit, as they are now, are not those that judged the result; empty if they are."""
    stamped, now = judged_by(result).get("rules", []), stamps(exhibit, root)
    missing = [file for file in files(exhibit) if file not in {each["file"] for each in now}]
    if missing:
        return [f"{file} is missing: write the rules of {exhibit.option} before its run" for file in missing]
    if not stamped:
        return ["the result names no rules: run it again"]
    found = [
        f"{each['file']} was changed after the run, or the run had no such rules: run it again"
        for each in now
        if each not in stamped
    ]
    rules = read(exhibit, root)
    if judged_by(result)["date"][:10] < rules.written.isoformat():
        found.append(
            f"the run of {judged_by(result)['date'][:10]} is older than its rules of {rules.written}"
        )
    own = {finding.family for finding in result.findings}
    found += [
        f"findings are of the family {name!r}, which the rules lack"
        for name in sorted(own - {*rules.families})
    ]
    found += [
        f"no finding is of the family {name!r} of the rules"
        for name, question in rules.families.items()
        if name not in own and not OPTIONAL.search(question)
    ]
    return found


def faults_of_history(result: Result, root: Path = ROOT) -> list[str]:
    """Why the commit that the result names does not hold the rules that it names; empty if it does."""
    judged = judged_by(result)
    if judged.get("git") is None:
        return ["no commit says which rules there were: run it again in a checkout"]
    commit = judged["git"]["commit"]
    return [
        f"{each['file']} at commit {commit[:8]} is not the one that judged the result: run it again"
        for each in judged.get("rules", [])
        if _sha256_at(commit, each["file"], root) != each["sha256"]
    ]


def _sha256_at(commit: str, file: str, root: Path) -> str | None:
    """Hash of a file at a commit; None if there is no such file or commit."""
    command = ["git", "--no-optional-locks", "-C", str(root), "show", f"{commit}:{file}"]
    done = subprocess.run(command, capture_output=True, check=False)
    return hashlib.sha256(done.stdout).hexdigest() if done.returncode == 0 else None
