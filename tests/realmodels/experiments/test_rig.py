"""Do exhibits choose on calibration text and measure on evaluation text, with seeds of their own for each?"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from small_models import TEXTS, small_model

from figures.cache import Unit
from realmodels import text
from realmodels.calibrate import calibrate
from realmodels.evaluate import token_blocks
from realmodels.experiments import better_score, figure_6, rig
from realmodels.model import Model
from realmodels.text import Documents, HeldOut, text_hash
from theory.errors import InputError
from theory.hardware import Hardware
from theory.kept import keeping
from theory.placement import STRATEGIES
from theory.separation import seed

LINES = tuple(f"{each}\nAnother paragraph, number {number}." for number, each in enumerate(TEXTS))
HELD_OUT = {
    "calibration": Documents(LINES[:6] * 4, "calibration"),
    "evaluation": Documents(LINES[6:], "evaluation"),
}
PROSE = Documents((LINES[5], *LINES[:2]), "evaluation")
CACHED = (rig.scores, rig.calibration, rig._documents, rig._cut)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[rig.Evaluated]:
    """A small model beside small held-out texts."""
    model = small_model(num_experts=8)

    def held_out(split: HeldOut) -> Documents:
        return HELD_OUT[split]

    for module in (text, rig):
        monkeypatch.setattr(module, "held_out", held_out)
    monkeypatch.setattr(text, "prose", lambda: PROSE)
    monkeypatch.setattr(rig, "_model", lru_cache(lambda name, device, dtype: model))
    for each in CACHED:
        each.cache_clear()
    yield rig.Evaluated(**rig.evaluated("small", None, "cpu", 4, 16))
    for each in CACHED:
        each.cache_clear()


def test_losses_are_of_evaluation_text(config: rig.Evaluated) -> None:
    assert config.text == "evaluation" and config.text_hash == text_hash(HELD_OUT["evaluation"])
    expected = token_blocks(rig.model("small", "cpu"), HELD_OUT["evaluation"], 16, 4).tokens
    assert rig.tokens(config).equal(expected)
    assert len(rig.measured(config)["loss"]) == len(rig.documents(config)) == 4


@pytest.mark.usefixtures("config")
def test_scores_and_ranges_are_of_calibration_text() -> None:
    for strategy in ("activation_weight", "activation_frequency"):
        assert rig.scores("small", "cpu", strategy).shape == (2, 8)
    for w_max in rig.GRANULARITIES:
        hardware = Hardware(w_max=w_max)
        assert rig.calibration("small", "cpu", hardware) == calibrate(
            rig.model("small", "cpu"), HELD_OUT["calibration"], hardware
        )


@pytest.mark.usefixtures("config")
def test_what_is_kept_is_what_was_computed(tmp_path: Path) -> None:
    """Scores and ranges come back from the cache exactly, and are computed once."""
    unit = Unit(tmp_path, {"exhibit": "figure-3", "config": None})
    computed: list[str] = []

    def keep(name: str, decided_by: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        def noted() -> Any:
            computed.append(name)
            return compute()

        return unit.part(name, decided_by, noted)[0]

    def all_of_them() -> list[Any]:
        for each in CACHED:
            each.cache_clear()
        found: list[Any] = [rig.scores("small", "cpu", strategy).tolist() for strategy in STRATEGIES]
        hardware = [Hardware(w_max=w_max, adc_bits=bits) for w_max in rig.GRANULARITIES for bits in (4, 8)]
        return found + [rig.calibration("small", "cpu", each) for each in hardware]

    expected = all_of_them()
    with keeping(keep):
        assert all_of_them() == all_of_them() == expected
        noted = len(computed)
        # Of a calibration that was stopped, the layers that it had finished are kept.
        for file in tmp_path.rglob("*.json"):
            if json.loads(file.read_text())["key"]["part"] == "converter ranges":
                file.unlink()
        assert all_of_them() == expected
    assert computed.count("scores") == len(STRATEGIES)
    assert computed.count("ranges of a layer") == 4 * len(expected[-1].layers)
    assert computed[noted:] == ["converter ranges"] * 4


def test_frequencies_are_of_calibration_text(config: rig.Evaluated) -> None:
    assert len(figure_6.measure(config)["layers"]) == 2


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("content", [LINES[3], LINES[3].split("\n")[1], f"Own words.\n\n {LINES[5]}"])
def test_a_users_text_with_calibration_text_in_it_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text(content)
    with pytest.raises(InputError, match=r"[12] of its paragraphs are in the calibration text"):
        rig.evaluated("small", str(file), "cpu", 4, 16)
    file.write_text("\n".join(LINES[6:]))
    assert rig.evaluated("small", str(file), "cpu", 4, 16)["text"] == str(file)


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize(
    ("given", "recorded", "expected"),
    [
        (None, "evaluation", HELD_OUT["evaluation"]),
        ("docstrings", "evaluation", HELD_OUT["evaluation"]),
        ("prose", "prose", PROSE),
    ],
)
def test_our_texts_have_names(
    given: str | None, recorded: str, expected: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("docstrings", "prose"):
        Path(name).write_text("Words of my own, and some more. " * 20)
    found = rig.Evaluated(**rig.evaluated("small", given, "cpu", 4, 16))
    assert (found.text, found.text_hash) == (recorded, text_hash(expected))
    assert rig.tokens(found).equal(token_blocks(rig.model("small", "cpu"), expected, 16, 4).tokens)


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize("given", ["evaluation", "./evaluation", "./docstrings", "./prose"])
def test_a_file_may_have_the_name_of_our_text(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(given).write_text("Words of my own, and some more. " * 20)
    found = rig.Evaluated(**rig.evaluated("small", given, "cpu", 4, 16))
    assert found.text.startswith("./") and found.text_hash == text_hash(
        ["Words of my own, and some more. " * 20]
    )
    own = token_blocks(rig.model("small", "cpu"), ["Words of my own, and some more. " * 20], 16, 4).tokens
    assert rig.tokens(found).equal(own)


def test_a_text_that_was_changed_after_the_run_began_is_refused(
    config: rig.Evaluated, tmp_path: Path
) -> None:
    file = tmp_path / "text"
    file.write_text("Words of my own, and some more. " * 20)
    own = rig.Evaluated(**rig.evaluated("small", str(file), "cpu", 4, 16))
    assert rig.measured(own)["loss"]
    file.write_text("Other words, none of them the same. " * 20)
    rig._documents.cache_clear()  # as in another process
    with pytest.raises(InputError, match="was changed after the run began; run it again"):
        rig.measured(own)
    file.write_text("Words of my own, and some more. " * 20)
    assert rig.measured(own)["loss"]  # it is the same again


def test_a_model_that_was_changed_after_the_run_began_is_refused(
    config: rig.Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = rig.model("small", "cpu")
    asked: list[str] = []

    @lru_cache
    def other(name: str, device: str, dtype: str) -> Model:
        asked.append(name)
        return model if len(asked) > 1 else replace(model, weights_hash="older")

    monkeypatch.setattr(rig, "_model", other)
    assert rig.measured(config)["loss"] and len(asked) == 2  # this process had an older one
    with pytest.raises(InputError, match="was changed after the run began"):
        rig.measured(replace(config, weights="other"))


def searched(config: rig.Evaluated, **changes: Any) -> better_score.Config:
    return replace(
        better_score.Config(
            **vars(config),
            w_max="tile",
            programming="pcm",
            bits=8,
            magnitudes=(better_score.RULE_C,),
            fractions=better_score.RULE_FRACTIONS,
            seeds=(1000, 1001),
            search_draws=2,
            search_blocks=2,
            rounds=1,
        ),
        **changes,
    )


def test_the_search_has_text_and_seeds_of_its_own(
    config: rig.Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[tuple[int, int | None]] = []

    def losses(*arguments: Any, **options: Any) -> Any:
        used.append((arguments[4], options.get("copy_seed")))
        return original(*arguments, **options)

    original = better_score.losses
    monkeypatch.setattr(better_score, "losses", losses)
    chosen = searched(config)
    search = better_score._Search(chosen, rig.model("small", "cpu"))
    assert search.seeds == (seed("search", 0), seed("search", 1)) and search.evaluation == (1000, 1001)
    expected = token_blocks(rig.model("small", "cpu"), HELD_OUT["calibration"], 16, 2).tokens
    assert search.tokens.equal(expected)
    better_score.measure(chosen)
    copies = {1000: seed("copies", 1000), 1001: seed("copies", 1001)}
    assert {draw for draw, _ in used} == set(copies)
    assert {pair for pair in used if pair[1] is not None} == set(copies.items())


def test_a_search_on_the_seeds_of_verdicts_is_refused(config: rig.Evaluated) -> None:
    with pytest.raises(InputError, match="design and test share 1 values of seed, first 1000001"):
        better_score._Search(searched(config, seeds=(7, seed("search", 1))), rig.model("small", "cpu"))
