"""The catalogue keeps the contract that every exhibit is run by, and its committed results can be read."""

import inspect
from importlib import import_module
from pathlib import Path

import pytest

from figures.catalogue import DATA, EXHIBITS, PRESETS, Exhibit, committed, find
from theory.errors import InputError
from theory.evidence import Result


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_every_exhibit_keeps_the_contract(exhibit: Exhibit) -> None:
    experiment, drawing = import_module(exhibit.experiment), import_module(exhibit.drawing)
    assert next(iter(inspect.signature(experiment.grid).parameters)) == "preset"
    for name in ("measure", "summarise"):
        assert callable(getattr(experiment, name))
    assert callable(drawing.draw)


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_committed_results_can_be_read(exhibit: Exhibit) -> None:
    result = committed(exhibit, DATA)
    assert result is None or (result.exhibit == exhibit.name and result.preset == "full")


def test_names_are_unique() -> None:
    assert len({exhibit.name for exhibit in EXHIBITS}) == len(EXHIBITS)


def test_find_names_the_known_exhibits() -> None:
    assert find("figure-3", EXHIBITS).option == "--figure 3"
    with pytest.raises(InputError, match=r"--figure 99: .*--figure 3"):
        find("figure-99", EXHIBITS)


@pytest.mark.parametrize(("asked", "option"), [("figure-3", "3"), ("table-1", "1"), ("GROWTH", "growth")])
def test_names_of_files_and_capitals_are_understood_as_hints(asked: str, option: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean --\w+ {option}\?"):
        find(f"figure-{asked}", EXHIBITS)


def test_a_result_of_another_exhibit_or_preset_is_rejected(tmp_path: Path) -> None:
    exhibit = EXHIBITS[0]
    for names, field in ((("figure-0", "full"), "exhibit"), ((exhibit.name, "huge"), "preset")):
        result = Result(exhibit=names[0], preset=names[1], data={}, findings=())
        (tmp_path / f"{exhibit.name}.json").write_text(result.to_json())
        with pytest.raises(InputError, match=rf"{exhibit.name}\.json: result\.{field} is"):
            committed(exhibit, tmp_path)


@pytest.mark.parametrize("name", ["3", "figure", "figure-", "picture-3"])
def test_malformed_names(name: str) -> None:
    with pytest.raises(InputError, match=r"exhibit\.name"):
        Exhibit(name, "title", "synthetic", dict.fromkeys(PRESETS, "1 s"))


def test_a_time_is_given_for_every_preset() -> None:
    with pytest.raises(InputError, match=r"exhibit\.times"):
        Exhibit("figure-1", "title", "synthetic", {"quick": "1 s"})
