"""How is a theorem checked? coqc compiles the files, coqchk checks what it compiled, and every axiom is accounted for.

All of it happens in a temporary folder, so that no proof is ever older than its formulas.
"""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from theory.derivations import AXIOMS, NotRunError


class BrokenProofError(Exception):
    """A theorem is not proved; the message says why."""


FORMULAS = "Formulas"  # the file that is written from Python
FILES = ("Gaussian", FORMULAS, "Normal", "Integrals", "Tail", "Moments", "Bound", "Upper", "Noise")
HEAD = "From Coq Require Import Reals.\nRequire Import Gaussian.\nOpen Scope R_scope.\n\n"
MISSING = "install Coq and Coquelicot (Debian: coq, libcoq-coquelicot)"
SECONDS = 600  # for one file; all of them together take less than a minute


@dataclass(frozen=True)
class Checked:
    """What came of all theorems.

    failures: why a file's theorems are not proved, by file; nothing of a file whose theorems are.
    theorems: all that compiled, as "File.name".
    axioms: those that they rest on.
    """

    failures: Mapping[str, str]
    theorems: frozenset[str]
    axioms: frozenset[str]

    def failure(self, theorem: str) -> str | None:
        """Why a theorem ("File.name") is not proved; None if it is."""
        file = theorem.partition(".")[0]
        if file in self.failures:
            return self.failures[file]
        if theorem not in self.theorems:
            return f"{file}.v has no theorem of this name"
        others = sorted(self.axioms - AXIOMS)
        return f"the theorems rest on {', '.join(others)}" if others else None


def proofs() -> dict[str, str]:
    """The files written by hand, by name."""
    folder = resources.files("theory.kernel")
    return {name: (folder / f"{name}.v").read_text("utf-8") for name in FILES if name != FORMULAS}


def require_coq() -> None:
    """NotRunError if Coq, its checker or Coquelicot is missing."""
    for program in ("coqc", "coqchk"):
        if shutil.which(program) is None:
            raise NotRunError(f"no {program}: {MISSING}")
    library = subprocess.run(["coqc", "-where"], capture_output=True, text=True, check=True).stdout.strip()
    if not (Path(library) / "user-contrib" / "Coquelicot").is_dir():
        raise NotRunError(f"no Coquelicot: {MISSING}")


@cache
def check(formulas: str) -> Checked:
    """Compile and check all theorems about the formulas, which are the text of `Formulas.v`.

    NotRunError if Coq is missing.
    """
    require_coq()
    sources = {**proofs(), FORMULAS: formulas}
    with tempfile.TemporaryDirectory(prefix="kernel-") as name:
        folder = Path(name)
        failures: dict[str, str] = {}
        for file in FILES:
            needed = next((each for each in _required(sources[file]) if each in failures), None)
            failure = (
                f"{needed}.v, which it needs, fails" if needed else compiled(folder, file, sources[file])
            )
            if failure:
                failures[file] = failure
        proved = [file for file in FILES if file not in failures]
        if error := _run(
            folder, "coqchk", "-silent", *(word for file in proved for word in ("-norec", file))
        ).error:
            return Checked(dict.fromkeys(FILES, f"coqchk: {error}"), frozenset(), frozenset())
        stated = [f"{file}.{theorem}" for file in proved for theorem in theorems(sources[file])]
        return Checked(failures, frozenset(stated), _axioms(folder, proved, stated))


def compiled(folder: Path, file: str, source: str) -> str:
    """Compile a file beside those that it requires; why it fails, or ""."""
    (folder / f"{file}.v").write_text(source, "utf-8")
    error = _run(folder, "coqc", "-q", "-w", "none", f"{file}.v").error
    return _told(error, source) if error else ""


def theorems(source: str) -> list[str]:
    """Names of the theorems that a file states, in its order."""
    return re.findall(r"^Theorem (\w+)", source, re.MULTILINE)


def _required(source: str) -> list[str]:
    return [
        name
        for line in re.findall(r"^Require Import ([\w ]+)\.$", source, re.MULTILINE)
        for name in line.split()
    ]


@dataclass(frozen=True)
class _Output:
    text: str
    error: str  # "" if the program succeeded


def _run(folder: Path, *command: str) -> _Output:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return _Output("", f"{command[0]} took more than {SECONDS} s")
    said = (done.stderr.strip() or done.stdout.strip()) if done.returncode else ""
    return _Output(done.stdout, said or ("failed without a word" if done.returncode else ""))


def _told(error: str, source: str) -> str:
    """An error of coqc in one line that begins with the theorem or lemma whose proof breaks."""
    place = re.search(r"line (\d+)", error)
    before = "\n".join(source.splitlines()[: int(place[1])]) if place else ""
    names = re.findall(r"^(?:Theorem|Lemma|Definition) (\w+)", before, re.MULTILINE)
    message = " ".join(error.partition("Error:")[2].split()) or " ".join(error.split())
    return f"{names[-1] if names else 'file'} breaks: {message}"[:300]


def _axioms(folder: Path, files: Sequence[str], stated: Sequence[str]) -> frozenset[str]:
    """The axioms that the theorems rest on, as `Print Assumptions` has them."""
    if not stated:
        return frozenset()
    asked = f"Definition all := ({', '.join(stated)}).\nPrint Assumptions all.\n"
    (folder / "Axioms.v").write_text(f"Require Import {' '.join(files)}.\n{asked}", "utf-8")
    output = _run(folder, "coqc", "-q", "-w", "none", "Axioms.v")
    if output.error:
        raise RuntimeError(f"Print Assumptions fails: {output.error}")
    return frozenset(re.findall(r"^([A-Za-z_][\w.']*)(?= :|$)", output.text, re.MULTILINE))
