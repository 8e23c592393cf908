"""The exhibit `balance`: quantities on known cases, verdicts on made-up records, a drawing, small runs."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from committed import assert_as_committed
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.container import ErrorbarContainer
from small_models import TEXTS

from figures.drawings import balance as drawing
from realmodels import text
from realmodels.experiments import balance, trainings
from realmodels.experiments.balance import (
    PRESETS,
    QUANTITIES,
    Config,
    grid,
    growth,
    measure,
    spearman_alive,
    summarise,
)
from realmodels.experiments.trainings import OPTIMISERS, spearman
from realmodels.pretrain import encode, train_tokenizer
from theory.errors import InputError
from theory.evidence import Finding, Result

MUON, ADAMW, SGD, EXPERTS_SGD, ONE_RMS = OPTIMISERS
SEEDS = (200, 201, 202, 203, 204, 205)
MIDDLE = 202.5
Links = Callable[[Config], float]


def configs() -> list[Config]:
    """Configs of a grid, in another order and without text."""
    recipe = PRESETS["full"].recipe
    return [
        Config(optimiser, balanced, recipe, seed, "folder", "hash", 1, 2, 8)
        for seed in reversed(SEEDS)
        for balanced in (False, True)
        for optimiser in OPTIMISERS
    ]


def result(**links: Links) -> Result:
    """The result of records that are alike but for a little noise and for `links`: quantities, with _ for spaces."""
    records = []
    for config in configs():
        noise = 0.004 * (config.seed - MIDDLE) * (1 if config.balanced else -1)  # of mean 0
        record: dict[str, Any] = dict.fromkeys(QUANTITIES, 1.0)
        record |= {name: 0.0 for name in QUANTITIES if name.startswith("spearman")}
        record |= {name.replace("_", " "): link(config) + noise for name, link in links.items()}
        score = [float(config.seed), 2.0, 2.0, 4.0]
        layer = {"load": [0.0, 1.0, 1.0, 2.0], "score": score, "first": [1.0, 2.0, 2.0, 3.0]}
        records.append(record | {"experts": [layer] * 3})
    return summarise(configs(), records)


def finding(found: Result, words: str, optimiser: str) -> Finding:
    (one,) = [
        each for each in found.findings if words in each.claim and each.claim.endswith(f"; {optimiser}")
    ]
    return one


def test_there_is_a_finding_for_each_rule_and_optimiser() -> None:
    made = result()
    found = made.findings
    assert_as_committed("figure-balance", made)
    assert len(found) == 5 * len(OPTIMISERS) and {each.n for each in found} == {len(SEEDS)}
    extended = [each.claim for each in found if each.origin == "extension"]
    assert len(extended) == 3 + 5 and all(each.origin in ("extension", "ours") for each in found)
    assert not [claim for claim in extended if "with load" in claim and claim.endswith(("muon", "; AdamW"))]


def test_the_sign_of_the_link_is_the_optimisers() -> None:
    found = result(spearman_load=lambda config: 0.0 if config.balanced else -0.8)
    for name in OPTIMISERS:
        assert finding(found, "does not follow load", name).verdict == "holds"
        one = finding(found, f"loss MaxNNScore {'falls' if name == MUON else 'rises'} with", name)
        assert one.estimate == pytest.approx(-0.8, abs=1e-3)
        assert one.verdict == ("holds" if name == MUON else "fails")
        more = finding(found, "takes the link away", name)
        assert more.estimate == pytest.approx(-0.8, abs=1e-9)
        assert more.verdict == ("holds" if name == MUON else "fails")
    assert (
        finding(found, "loss MaxNNScore falls with load", MUON).rule
        == "95 % interval below -0.5: holds; above: fails"
    )
    assert (
        finding(found, "loss MaxNNScore rises with load", SGD).rule
        == "95 % interval above 0.5: holds; below: fails"
    )
    assert finding(found, "takes", MUON).rule == "95 % interval below 0: holds; above: fails"


def test_a_weak_link_is_none_and_still_counts_among_alive_experts() -> None:
    found = result(
        spearman_load=lambda config: 0.4,
        spearman_load_among_alive=lambda config: 0.4 if config.balanced else 0.2,
    )
    for name in OPTIMISERS:
        assert finding(found, "does not follow load", name).verdict == "fails"
        assert (
            finding(found, f"loss MaxNNScore {'falls' if name == MUON else 'rises'} with", name).verdict
            == "fails"
        )
        alive = finding(found, "among alive experts alone", name)
        assert alive.estimate == pytest.approx(0.2, abs=1e-3)
        assert alive.verdict == ("fails" if name == MUON else "holds")
        assert finding(found, "takes the link away", name).verdict == "inconclusive"


def test_frequency_has_one_sign_and_is_read_without_balancing() -> None:
    found = result(spearman_frequency=lambda config: 0.9 if config.balanced else 0.6)
    for name in OPTIMISERS:
        one = finding(found, "follows token frequency", name)
        assert one.verdict == "holds" and one.estimate == pytest.approx(0.6, abs=1e-3)


def test_runs_are_paired_by_seed() -> None:
    """Differences between seeds drop out of the paired difference, whatever the order of the runs."""
    found = result(
        spearman_load=lambda config: 0.2 * (config.seed - MIDDLE) + (0.0 if config.balanced else 0.3)
    )
    for name in OPTIMISERS:
        one = finding(found, "takes the link away", name)
        assert one.interval is not None and one.interval[1] - one.interval[0] < 0.1
        assert one.estimate == pytest.approx(0.3, abs=1e-9)
        assert finding(found, "does not follow load", name).verdict == "inconclusive"


def test_a_seed_without_its_pair_is_an_error() -> None:
    with pytest.raises(KeyError):
        summarise(configs()[1:], [{}] * (len(configs()) - 1))


@pytest.mark.parametrize(
    ("link", "verdict"),
    [(0.1, "holds"), (-0.1, "holds"), (0.29, "inconclusive"), (0.4, "fails"), (-0.4, "fails")],
)
def test_no_link_is_within_a_margin(link: float, verdict: str) -> None:
    """An interval around a margin is no equivalence."""
    found = result(spearman_load=lambda config: link + 0.01 * (config.seed - MIDDLE))
    for name in OPTIMISERS:
        one = finding(found, "does not follow load", name)
        assert one.verdict == verdict and one.rule.startswith("95 % interval within 0.3 of 0: holds")


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_perfect_link_has_an_interval_inside_one(sign: int) -> None:
    found = result(spearman_load=lambda config: -2.0 * sign if config.seed % 2 else -0.9 * sign)
    for name in OPTIMISERS:
        one = finding(found, "does not follow load", name)
        assert one.interval is not None and -1 < one.interval[0] < one.interval[1] < 1


@given(seed=st.integers(0, 1000), fair=st.floats(0.01, 1))
def test_where_all_are_alive_it_is_the_correlation_of_all(seed: int, fair: float) -> None:
    score, load = torch.rand(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    load += 2 * trainings.ALIVE * fair
    assert spearman_alive(score, load, fair) == pytest.approx(spearman(score, load))


@given(seed=st.integers(0, 1000), dead=st.integers(0, 5))
def test_dead_experts_have_no_say(seed: int, dead: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    score, load = torch.rand(2, 1, 6, dtype=torch.float64, generator=generator)
    load += 0.05
    dead_load = trainings.ALIVE * torch.rand(1, dead, dtype=torch.float64, generator=generator)
    dead_score = torch.rand(1, dead, dtype=torch.float64, generator=generator)
    both = spearman_alive(torch.cat([score, dead_score], 1), torch.cat([load, dead_load], 1), 1.0)
    assert both == pytest.approx(spearman(score, load))


def test_alive_alone_in_a_known_case() -> None:
    """The first layer has 4 experts alive, in reverse; the second, 3 alone, counts as 0."""
    load = torch.tensor([[0.0, 0.025, 0.026, 0.3, 0.6, 0.9], [0.0, 0.01, 0.02, 0.3, 0.6, 0.9]])
    score = torch.tensor([[0.0, 0.0, 4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]])
    assert spearman_alive(score, load, 0.5) == pytest.approx(-0.5)  # more than .025 is alive
    assert spearman_alive(score[1:], load[1:], 0.5) == 0


def test_growth_is_of_the_most_and_the_least_used_quarter() -> None:
    load = torch.tensor([[3.0, 0.0, 9.0, 1.0, 4.0, 5.0, 8.0, 2.0]])  # least: 1 and 3, most: 2 and 6
    first = torch.full((1, 8), 2.0)
    last = torch.tensor([[7.0, 1.0, 8.0, 4.0, 7.0, 7.0, 18.0, 7.0]])
    least, most = growth(first, last, load)
    assert least == pytest.approx(math.sqrt(0.5 * 2)) and most == pytest.approx(math.sqrt(4 * 9))
    two = growth(*(torch.cat([each, each]) for each in (first, last, load)))
    assert two == pytest.approx((least, most))


def test_the_drawing_shows_every_optimiser_with_and_without() -> None:
    made = result(spearman_load=lambda config: 0.0 if config.balanced else -0.8)
    found = Result.from_json(replace(made, exhibit="figure-balance", preset="full").to_json())
    above, below = drawing.draw(found).axes, drawing.PARTS["experts"][0](found).axes
    names = ["Muon", *OPTIMISERS[1:]]
    assert [label.get_text() for label in above[0].get_yticklabels()] == names
    titles = [" ".join(axis.get_title(loc="left").split()) for axis in below]
    assert titles == names
    drawn = [each for each in above[0].containers if isinstance(each, ErrorbarContainer)]
    balanced, free = (np.asarray(container.lines[0].get_xdata()) for container in drawn)
    np.testing.assert_allclose(balanced, 0, atol=1e-3)
    np.testing.assert_allclose(free, -0.8, atol=1e-3)
    for axis in below:
        points = [point for dots in axis.collections for point in np.asarray(dots.get_offsets()).tolist()]
        assert points.count([1.0, 1.0]) == 2 * 3 * 2  # sides, layers, experts of a layer
        assert points.count([drawing.UNUSED, 100.0]) == 2 * 3  # the first seed's, drawn at the edge
    rows = drawing.table(found)
    assert len(rows) == 2 * len(OPTIMISERS) and {row["balancing"] for row in rows} == {"with", "without"}
    assert all(
        row["spearman load, low"] <= row["spearman load"] <= row["spearman load, high"] for row in rows
    )
    assert rows[1]["optimiser"] == MUON and rows[1]["spearman load"] == pytest.approx(-0.8, abs=1e-3)


@pytest.fixture
def made_up_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_tokenizer(TEXTS, 300)
    tokens = trainings.Tokens(tokenizer, encode(tokenizer, TEXTS * 40), "hash")
    monkeypatch.setattr(balance, "training_tokens", lambda source, vocabulary: tokens)
    documents = {
        "calibration": text.Documents(TEXTS[:6] * 40, "calibration"),
        "evaluation": text.Documents(TEXTS[6:], "evaluation"),
    }
    monkeypatch.setattr(text, "held_out", documents.__getitem__)


@pytest.mark.usefixtures("made_up_text")
def test_both_runs_of_a_seed_differ_in_the_loss_alone() -> None:
    found = grid("full")
    assert len(found) == len(OPTIMISERS) * 2 * 8 and {config.seed for config in found} == {*range(1000, 1008)}
    for config in found:
        (other,) = [
            each
            for each in found
            if (each.optimiser, each.seed) == (config.optimiser, config.seed)
            and each.balanced != config.balanced
        ]
        assert config.recipe.balance == (0.05 if config.balanced else 0)
        assert replace(config.recipe, balance=0.0) == replace(other.recipe, balance=0.0)
        assert config.text_hash == "hash"
    optimisers = {
        config.optimiser: (config.recipe.optimiser, config.recipe.expert_optimiser) for config in found
    }
    assert optimisers == {
        MUON: ("muon", "same"),
        ADAMW: ("adamw", "same"),
        SGD: ("sgd", "same"),
        EXPERTS_SGD: ("adamw", "sgd"),
        ONE_RMS: ("adamw", "adamw_one_rms"),
    }
    assert {config.seed for config in grid("quick", seeds=3)} == {1000, 1001, 1002}
    with pytest.raises(InputError, match="--seeds 1: an interval needs at least 2 training seeds"):
        grid("quick", seeds=1)


@pytest.mark.usefixtures("made_up_text")
def test_a_small_run() -> None:
    """A record follows from its experts; pairs start alike; the same config gives the same numbers."""
    recipe = replace(
        PRESETS["quick"].recipe, vocabulary=300, experts=8, top_k=2, context=32, batch_tokens=256, steps=20
    )
    config = Config(ADAMW, True, recipe, 7, "text", "hash", 2, 4, 16)
    free = replace(config, balanced=False, recipe=replace(recipe, balance=0.0))
    made, other = measure(config), measure(free)
    assert measure(config) == made and set(made) == {*QUANTITIES, "experts"}
    first, score, load = (
        torch.tensor([layer[name] for layer in made["experts"]], dtype=torch.float64)
        for name in ("first", "score", "load")
    )
    assert first.shape == score.shape == load.shape == (2, 8)
    assert [layer["first"] for layer in other["experts"]] == first.tolist() != score.tolist()
    assert [layer["score"] for layer in other["experts"]] != score.tolist()
    torch.testing.assert_close(load.mean(1), torch.ones(2, dtype=torch.float64))  # in fair shares
    assert made["spearman load"] == pytest.approx(spearman(score, load))
    assert made["spearman load among alive"] == pytest.approx(spearman_alive(score, load, 1.0))
    assert -1 <= made["spearman frequency"] <= 1 and made["spearman frequency"] != made["spearman load"]
    assert made["alive"] == (load > trainings.ALIVE).double().sum(1).mean()
    assert made["spread of MaxNN"] == pytest.approx(trainings.spread(score))
    assert made["spread of load"] == pytest.approx(trainings.spread(load))
    least, most = growth(first, score, load)
    assert (made["growth of the least used"], made["growth of the most used"]) == (least, most)
    assert made["loss"] < math.log(300) and made["loss"] != other["loss"]
    assert measure(replace(config, seed=8))["experts"] != made["experts"]


@pytest.mark.usefixtures("made_up_text")
def test_a_diverged_run_is_an_error() -> None:
    recipe = replace(PRESETS["quick"].recipe, optimiser="sgd", sgd_learning_rate=1e30, steps=3)
    with pytest.raises(InputError, match="SGD: the last loss is nan: lower its rates"):
        measure(Config(SGD, True, recipe, 7, "text", "hash", 2, 4, 16))


@pytest.mark.usefixtures("made_up_text")
def test_the_quick_exhibit_from_grid_to_drawing() -> None:
    found = grid("quick")
    made = summarise(found, [json.loads(json.dumps(measure(config))) for config in found])
    assert len(made.findings) == 5 * len(OPTIMISERS) and made.data["seeds"] == [1000, 1001]
    again = Result.from_json(replace(made, exhibit="figure-balance", preset="quick").to_json())
    assert len(drawing.draw(again).axes) == len(drawing.FOLLOWED)
    assert len(drawing.PARTS["experts"][0](again).axes) == len(OPTIMISERS)
