"""python -m figures.rejudge EXHIBIT: what do the rules of now say about a result that is too costly to compute again?

The exhibit's experiment judges what the committed result keeps (`judged_again`). The result keeps the provenance of its
run; date, commit and rules of the new judgement stand in `provenance["judged"]`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from figures.catalogue import DATA, EXHIBITS, find, needed
from figures.files import replace_file
from figures.output import pictures
from figures.provenance import git_state, judging
from theory.errors import InputError, run


def rejudge(name: str, data: Path) -> Path:
    """Judge the committed result of an exhibit again, and draw it; its path."""
    exhibit = find(name, EXHIBITS)
    experiment = import_module(exhibit.experiment)
    if not hasattr(experiment, "judged_again"):
        raise InputError(f"{name}: its result does not keep enough to be judged again: run {exhibit.option}")
    git = git_state()
    if git is None or git["dirty"]:
        raise InputError(f"{name}: the rules are not committed: commit them and judge again")
    old = needed(exhibit, data)
    again = experiment.judged_again(old)
    result = replace(again, provenance=old.provenance | {"judged": judging(exhibit)})
    path = data / f"{exhibit.name}.json"
    replace_file(path, result.to_json().encode())
    for picture in pictures(result, exhibit, ("png",)):
        replace_file(data / f"{picture.name(exhibit)}.png", picture.formats["png"])
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m figures.rejudge", description=__doc__)
    parser.add_argument("exhibit", help="name: figure-link-map")
    options = parser.parse_args(argv)
    if not isinstance(DATA, Path):
        raise InputError("figures/data is no folder here: judge again in a checkout")
    print(rejudge(options.exhibit, DATA))


if __name__ == "__main__":
    run(main)
