"""How does a full result become the committed one? `make publish EXHIBIT=figure-3` checks, copies and redraws it.

What is committed of an exhibit: the result as JSON, a PNG of each picture, and all that README, RESULTS.md and docs
say of it, which figures.results writes.
"""

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources.abc import Traversable
from pathlib import Path

from figures import results
from figures.catalogue import DATA, EXHIBITS, Exhibit, find, stored
from figures.files import replace_file
from figures.output import pictures
from figures.rules import ROOT, faults, faults_of_history, judged_by
from theory.errors import InputError, run
from theory.evidence import Result


def publish(exhibit: Exhibit, out: Path, data: Path, root: Path = ROOT) -> list[Path]:
    """Copy the full result of the exhibit from `out` into `data`, redraw its pictures there; the paths.

    InputError unless the rules in `root` are those that judged the result, and those of the commit that it names.
    """
    file = out / f"{exhibit.name}.full.json"
    if not file.is_file():
        raise InputError(f"{file} is missing: run {exhibit.option} --preset full --out {out}")
    result = stored(file, exhibit, ("full",))
    for git in (result.provenance.get("git"), judged_by(result).get("git")):
        if git is not None and git["dirty"]:
            raise InputError(
                f"{file}: computed from commit {git['commit']} with uncommitted changes: commit them and run it again"
            )
    wrong = faults(result, exhibit, root) or (faults_of_history(result, root) if git is not None else [])
    if wrong:
        raise InputError(f"{file}: {wrong[0]}")
    command = shlex.join(map(_portable, shlex.split(result.provenance["command"])))
    result = replace(result, provenance=result.provenance | {"command": command})
    contents = {data / f"{exhibit.name}.json": result.to_json().encode()}
    for picture in pictures(result, exhibit, ("png",)):
        contents[data / f"{picture.name(exhibit)}.png"] = picture.formats["png"]
    for path, content in contents.items():
        replace_file(path, content)
    return list(contents)


def _portable(argument: str) -> str:
    """The last part of an absolute path, which is one machine's; all else as it is."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument


def commit_of(result: Result) -> str:
    """Which commit the result was computed from."""
    git = result.provenance.get("git")
    if git is None:
        return "computed outside of a checkout: no commit says how"
    return f"computed from commit {git['commit']}"


def main(
    argv: Sequence[str] | None = None,
    exhibits: Sequence[Exhibit] = EXHIBITS,
    data: Traversable = DATA,
    root: Path = ROOT,
) -> None:
    """Publish the named exhibits, and write the pages anew."""
    parser = argparse.ArgumentParser(prog="python -m figures.publish", description=__doc__)
    parser.add_argument("exhibit", nargs="+", help="name: figure-3, table-1, figure-growth, ...")
    parser.add_argument(
        "--out", type=Path, default=Path("results"), help="where the full run wrote its result"
    )
    options = parser.parse_args(argv)
    if not isinstance(data, Path):
        raise InputError("figures/data is no folder here: publish from a checkout")
    for name in options.exhibit:
        if "-" not in name:
            raise InputError(f"exhibit {name!r}: give figure-NAME or table-NAME")
    for exhibit in [find(name, exhibits) for name in options.exhibit]:
        for path in publish(exhibit, options.out, data, root):
            print(path)
        print(commit_of(Result.from_json((data / f"{exhibit.name}.json").read_text(encoding="utf-8"))))
    results.main()


if __name__ == "__main__":
    run(main)
