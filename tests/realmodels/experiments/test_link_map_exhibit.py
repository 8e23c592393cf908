"""The exhibit `link-map`: its text, its quantities on known cases, verdicts on made-up records, a drawing, one run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from committed import assert_as_committed
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from small_models import TEXTS
from transformers import PreTrainedTokenizerFast

from figures.drawings import link_map as drawing
from realmodels import load, text
from realmodels.experiments import link_map
from realmodels.experiments.link_map import (
    BASE,
    FRACTIONS,
    PLACEMENTS,
    STATISTICS,
    Config,
    edge,
    grid,
    measure,
    placements,
    recovered,
    summarise,
)
from realmodels.experiments.trainings import (
    CHANGES,
    snapshot,
    spearman,
    spread,
    training_documents,
    training_tokens,
)
from realmodels.pretrain import Recipe, Training, train_tokenizer
from realmodels.pretrain.tokens import write_stream
from theory.errors import InputError
from theory.evidence import Finding, Result

FULL = link_map.PRESETS["full"]
SEEDS = 6
TINY = Recipe(
    hidden=32, layers=2, heads=2, experts=8, top_k=2, expert_width=16, context=32, batch_tokens=512, steps=6
)
SGD = ("SGD", "AdamW, experts SGD")
Change = Callable[[Config, dict[str, Any]], None]


def configs() -> list[Config]:
    """Configs of the full preset, without its text."""
    cells: list[tuple[str, ...]] = [*((name,) for name in FULL.design), *FULL.fresh]
    return [
        Config(
            " + ".join(changes), len(changes) == 2, FULL.recipe, seed, (75, 300), "folder", "hash", FULL.kinds, 2, 2, 1,
            2, 1, 8, "cpu",
        )
        for changes in cells
        for seed in range(SEEDS)
    ]  # fmt: skip


def record(config: Config, number: int) -> dict[str, Any]:
    """Under SGD MaxNNScore follows frequency. MaxNN pays per layer and not per column, and beats load by the edge."""
    rng = np.random.default_rng(number)
    follows = any(config.cell.startswith(name) for name in SGD)
    looks = []
    for _ in config.lengths:
        hardware: list[dict[str, Any]] = []
        for _, w_max in config.kinds:
            gain = 0.3 * (1 if w_max == "layer" else -1)
            fractions = [
                dict.fromkeys(PLACEMENTS, 0.4)
                | {"maxnn": 0.4 + gain + 0.01 * rng.random(), "expected damage": 0.9}
                for _ in FRACTIONS
            ]
            wrong = config.fresh and config.seed == 0 and not hardware  # so that accuracies differ
            values = {"damage edge": (-gain if wrong else gain) + 0.05 * rng.random()}
            hardware.append(
                {
                    "c": 2.5,
                    "loss_increase": 0.5,
                    "spearman": 0.6 + 0.01 * rng.random(),
                    "recovered": fractions,
                    "statistics": {name: values.get(name, rng.random()) for name in STATISTICS},
                }
            )
        links = {name: (0.9 if follows else 0.1) + 0.01 * rng.random() for name in ("frequency", "load")}
        looks.append(
            {"loss": 3.0, "bits_per_byte": 1.3, "least_share": 0.5, "spearman": links, "hardware": hardware}
        )
    return {"looks": looks}


def result(change: Change = lambda *_: None) -> Result:
    records = []
    for number, config in enumerate(configs()):
        records.append(record(config, number))
        change(config, records[-1])
    return summarise(configs(), records)


def finding(found: Result, *words: str) -> Finding:
    (one,) = [each for each in found.findings if all(word in each.claim for word in words)]
    return one


def test_verdicts_follow_the_records() -> None:
    found = result()
    assert_as_committed("figure-link-map", found, new=("75 steps", "MaxNN beats load where"))
    assert finding(found, "follows token frequency; SGD, 300 steps").verdict == "holds"
    assert finding(found, "follows token frequency; muon, 75 steps").verdict == "fails"
    assert finding(found, "token frequency more than under AdamW; AdamW, experts SGD").verdict == "holds"
    one_rms = finding(found, "load more than under AdamW; AdamW, experts one RMS")
    assert one_rms.estimate == pytest.approx(0, abs=0.01)
    assert finding(found, "maxnn recovers more than random; pcm, layer, 25.0%").verdict == "holds"
    assert finding(found, "maxnn recovers more than load; pcm, column, 25.0%").verdict == "fails"
    assert finding(found, "expected damage recovers more than maxnn; hermes").estimate == pytest.approx(
        0.8, abs=0.01
    )
    assert finding(found, "w_max per layer leaves more").estimate == pytest.approx(0.6, abs=0.01)
    statistic = found.findings[-1]
    assert "MaxNN beats load where damage edge is at least" in statistic.claim
    assert (
        statistic.verdict == "holds"
        and statistic.estimate == pytest.approx(1, abs=0.05)
        and statistic.n == SEEDS
    )
    # two of the 15 design cells follow load
    damage = finding(found, "tells damage better than load", "pcm, layer")
    assert damage.estimate == pytest.approx(0.6 - (0.9 * 2 + 0.1 * 13) / 15, abs=0.01)


def test_axes_are_differences_between_their_ends() -> None:
    def steeper(config: Config, made: dict[str, Any]) -> None:
        if config.cell == "64 experts":
            made["looks"][-1]["spearman"]["load"] += 0.5
        if config.cell == "rates / 3":
            made["looks"][-1]["spearman"]["load"] += 0.25

    found = result(steeper)
    assert finding(found, "more of: number of experts").estimate == pytest.approx(0.5, abs=0.02)
    assert finding(found, "more of: learning rates").estimate == pytest.approx(-0.25, abs=0.02)
    assert finding(found, "more of: learning rates").verdict == "fails"
    assert len([each for each in found.findings if "more of:" in each.claim]) == len(link_map.AXES)


def test_a_statistic_is_chosen_on_design_cells_and_tested_on_the_others() -> None:
    def lucky(config: Config, made: dict[str, Any]) -> None:
        """On design cells a small spread of load tells, on fresh ones a large one does; nothing else tells anything."""
        for look in made["looks"]:
            for number, each in enumerate(look["hardware"]):
                gain = each["recovered"][1]["maxnn"] - each["recovered"][1]["load"]
                lucky_there = not config.fresh or (config.seed == 0 and number == 0)
                each["statistics"]["spread of load"] = 5 - gain * (1 if lucky_there else -1)
                each["statistics"]["damage edge"] = 0.01 * each["statistics"]["rank agreement"]

    found = result(lucky)
    choice = found.data["statistic"]
    assert (choice["name"], choice["side"], choice["design accuracy"]) == ("spread of load", "below", 1.0)
    assert choice["threshold"] == pytest.approx(5, abs=0.05)
    assert found.findings[-1].verdict == "fails" and found.findings[-1].estimate < 0.1
    assert len(choice["fresh accuracy"]) == SEEDS and max(choice["fresh accuracy"]) < 0.2


def test_without_both_outcomes_there_is_no_statistic() -> None:
    """Where MaxNN always beats load, or noise costs nothing, any rule would be right."""

    def always(config: Config, made: dict[str, Any]) -> None:
        for look in made["looks"]:
            for each in look["hardware"]:
                each["recovered"][1] = {**each["recovered"][1], "maxnn": 0.9, "load": 0.1}

    def harmless(config: Config, made: dict[str, Any]) -> None:
        for look in made["looks"]:
            for each in look["hardware"]:
                each["loss_increase"] = link_map.HURTS / 2

    for change, share in ((always, 1.0), (harmless, 0.0)):
        found = result(change)
        last = found.findings[-1]
        assert last.verdict == "inconclusive" and last.interval is None and last.estimate == share
        assert last.exploratory and last.n == 1
        assert found.data["statistic"] == {"points": []}
        texts = [text.get_text() for axis in drawing.PARTS["statistic"][0](found).axes for text in axis.texts]
        assert any("no statistic" in text for text in texts)


def test_trainings_where_noise_costs_nothing_are_left_out() -> None:
    """Their fractions are exact zeros, which would draw a mean to 0; a seed without any other training has no value."""

    def harmless(config: Config, made: dict[str, Any]) -> None:
        if config.cell != BASE or config.seed == 0:
            for look in made["looks"]:
                each = look["hardware"][2]  # pcm, layer
                each["loss_increase"] = link_map.HURTS / 2
                each["recovered"] = [dict.fromkeys(PLACEMENTS, 0.0) for _ in FRACTIONS]

    for words in ("maxnn recovers more than random; pcm, layer, 25.0%", "w_max per layer leaves more"):
        before, after = finding(result(), words), finding(result(harmless), words)
        assert after.estimate == pytest.approx(before.estimate, abs=0.02) and after.n == SEEDS - 1
        assert f"{SEEDS - 1} of {15 * SEEDS} design trainings" in after.statistic


def test_all_findings_are_exploratory_and_none_of_a_toy_is_the_papers() -> None:
    found = result().findings
    assert all(each.exploratory and each.origin in ("extension", "ours") for each in found)


def test_a_seed_without_both_outcomes_is_counted() -> None:
    def one_sided(config: Config, made: dict[str, Any]) -> None:
        if config.fresh and config.seed == 0:
            for look in made["looks"]:
                for each in look["hardware"]:
                    each["recovered"][1] = {**each["recovered"][1], "maxnn": 0.9, "load": 0.1}

    found = result(one_sided)
    assert found.findings[-1].n == SEEDS - 1
    assert f"each of the {SEEDS - 1} of {SEEDS} seeds" in found.findings[-1].statistic
    assert found.data["statistic"]["fresh seeds without both outcomes"] == 1


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_two_fresh_seeds_with_both_outcomes_are_a_test(seeds: int) -> None:
    def one_sided(config: Config, made: dict[str, Any]) -> None:
        if config.fresh and config.seed >= seeds:
            for look in made["looks"]:
                for each in look["hardware"]:
                    each["recovered"][1] = {**each["recovered"][1], "maxnn": 0.9, "load": 0.1}

    found = result(one_sided)
    assert (found.data["statistic"] == {"points": []}) == (seeds < 2)
    assert found.findings[-1].n == seeds


def test_a_tie_with_load_is_no_win_and_noise_at_the_threshold_hurts() -> None:
    """MaxNN ties with load per column, at noise that costs just enough to count."""

    def tie(config: Config, made: dict[str, Any]) -> None:
        for look in made["looks"]:
            for (_, w_max), each in zip(config.kinds, look["hardware"], strict=True):
                each["loss_increase"] = link_map.HURTS
                if w_max != "layer":
                    each["recovered"][1] = {**each["recovered"][1], "maxnn": 0.4, "load": 0.4}

    found = result(tie)
    points = found.data["statistic"]["points"]
    assert found.findings[-1].estimate > 0.9 and len(points) == len(configs()) * len(FULL.kinds) * 2
    assert (
        f"{15 * SEEDS} of {15 * SEEDS} design trainings"
        in finding(found, "more than random; pcm, layer, 25").statistic
    )


def test_seeds_are_counted_where_they_are() -> None:
    """Fresh cells have four of the seeds."""
    kept = [config for config in configs() if not config.fresh or config.seed < 4]
    found = summarise(kept, [record(config, number) for number, config in enumerate(kept)])
    assert "each of the 4 of 4 seeds" in found.findings[-1].statistic


def test_means_over_seeds_where_noise_hurts() -> None:
    values = np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    nowhere, one, two = (
        link_map._over_seeds(values, np.array(there, dtype=bool))
        for there in (np.zeros((2, 3)), [[1, 0, 0], [1, 0, 0]], [[1, 0, 1], [1, 0, 0]])
    )
    assert (nowhere[0], nowhere[1](0.95), nowhere[2]) == (0.0, None, 1)
    assert (one[0], one[1](0.95), one[2]) == (3.0, None, 1)
    assert (two[0], two[2]) == (3.0, 2) and two[1](0.95) == (3.0, 3.0)


def test_a_kept_result_is_judged_again() -> None:
    """Without any single seed, judging again gives what judging once gave, where the rules use the same trainings."""
    once = result()
    again = link_map.judged_again(once)
    first = {each.claim: each for each in once.findings}
    assert len(again.findings) == len(first)
    for each in again.findings:
        own = first[each.claim]
        assert (each.origin, each.family, each.exploratory) == (own.origin, own.family, True)
        assert each.estimate == pytest.approx(own.estimate)
        if each.interval is not None:
            assert own.interval is not None and each.interval == pytest.approx(own.interval)
            assert each.alone == own.alone and each.p == pytest.approx(own.p, rel=1e-3)
    unknown = [each for each in again.findings if each.interval is None]
    assert len(unknown) == 5 * len(FULL.kinds) + 1 and {each.verdict for each in unknown} == {"inconclusive"}


def test_a_result_of_three_seeds_decides_nothing() -> None:
    once = result()
    again = link_map.judged_again(replace(once, data={**once.data, "seeds": 3}))
    assert {each.verdict for each in again.findings[:-1]} == {"inconclusive"}
    with pytest.raises(InputError, match="no rule judges"):
        link_map.judged_again(replace(once, findings=(*once.findings, replace(once.findings[0], claim="x"))))


def test_dead_experts_are_told() -> None:
    def dead(config: Config, made: dict[str, Any]) -> None:
        if config.cell == "SGD" and config.seed == 0:
            made["looks"][-1]["least_share"] = 0.04

    rows = {(row["cell"], row["steps"]): row for row in result(dead).data["map"]}
    assert rows["SGD", 300]["alive"] == pytest.approx(1 - 1 / SEEDS) and rows["SGD", 75]["alive"] == 1
    assert rows["SGD", 300]["last"] and not rows["SGD", 75]["last"]
    assert not any(name == "spearman damage" for row in rows.values() for name in row)

    def just_dead(config: Config, made: dict[str, Any]) -> None:
        made["looks"][-1]["least_share"] = link_map.ALIVE

    assert {row["alive"] for row in result(just_dead).data["map"] if row["last"]} == {0}


def test_the_drawing_has_a_row_for_every_cell() -> None:
    found = Result.from_json(replace(result(), exhibit="figure-link-map", preset="full").to_json())
    figure = drawing.draw(found)
    axis = figure.axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert len(labels) == len(FULL.design) + len(FULL.fresh)
    assert labels[0] == "muon (3.00)" and labels[-1] == "16 experts + rates x 3 * (3.00)"
    assert len(drawing.table(found)) == 2 * len(labels)
    assert {"spearman load, low", "maxnn 25.0%, pcm, layer"} <= set(drawing.table(found)[0])


@given(seed=st.integers(0, 1000))
def test_spearman_is_scipys_mean_over_layers(seed: int) -> None:
    first, second = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = [stats.spearmanr(*pair).statistic for pair in zip(first, second, strict=True)]
    assert spearman(first, second) == pytest.approx(np.mean(wanted))


def test_layers_without_ranks_count_as_0() -> None:
    ordered = torch.arange(5.0)
    assert spearman(torch.stack([ordered, ordered]), torch.stack([ordered, torch.ones(5)])) == pytest.approx(
        0.5
    )
    assert spearman(ordered[None, :3], ordered[None, :3]) == 0


def test_placements_have_the_experts_that_they_say() -> None:
    maxnn = torch.arange(16.0).view(2, 8)
    load, weight = maxnn.flip(1), -((maxnn - 3) ** 2)
    expected, measured = maxnn + 0.5, -maxnn  # across layers: all from the second, all from the first
    labels, digital = placements(maxnn, load, weight, expected, measured, seed=3)
    assert digital.sum((1, 2)).tolist() == [0] + [2] * 10 + [4] * 10
    chosen = {label: each for label, each in zip(labels, digital, strict=True) if label[1] != "random"}

    def experts(name: str) -> list[list[int]]:
        return [row.nonzero().flatten().tolist() for row in chosen[0.25, name]]

    assert experts("maxnn") == [[6, 7], [6, 7]] and experts("minnn") == [[0, 1], [0, 1]]
    assert experts("load") == [[0, 1], [0, 1]] and experts("weight") == [[2, 3], [0, 1]]
    assert experts("expected damage") == [[], [4, 5, 6, 7]] and experts("measured damage") == [
        [0, 1, 2, 3],
        [],
    ]
    random = [each for label, each in zip(labels, digital, strict=True) if label == (0.25, "random")]
    assert len(random) == link_map.RANDOM and not all(torch.equal(random[0], each) for each in random)
    assert torch.equal(digital, placements(maxnn, load, weight, expected, measured, seed=3)[1])


def test_recovered_fractions() -> None:
    labels = [(0.0, "none")]
    losses = [3.0]
    for fraction in FRACTIONS:
        for name in PLACEMENTS:
            labels += [(fraction, name)] * (2 if name == "random" else 1)
            losses += [2.0, 3.0] if name == "random" else [2.0 if name == "maxnn" else 3.0 - 2 * fraction]
    low, high = recovered(labels, torch.tensor(losses, dtype=torch.float64), digital=1.0)
    assert low["maxnn"] == high["maxnn"] == 0.5 and low["random"] == 0.25
    assert low["load"] == pytest.approx(0.125) and high["load"] == pytest.approx(0.25)
    nothing = recovered(labels, torch.tensor(losses, dtype=torch.float64), digital=2.995)
    assert set(nothing[0].values()) == {0.0}
    just = [link_map.HURTS if loss == 3 else 0.0 for loss in losses]
    assert recovered(labels, torch.tensor(just, dtype=torch.float64), digital=0.0)[0]["maxnn"] == 1


def test_damage_edge_and_spread() -> None:
    damage = torch.tensor([[8.0, 4.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    one, other = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2), torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    assert edge(damage, one, other) == pytest.approx((8 - 2) / 16 / 2) == -edge(damage, other, one)
    assert spread(torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])) == pytest.approx((3 + 1) / 2)


def test_every_design_cell_changes_one_thing() -> None:
    base = FULL.recipe
    for name, change in CHANGES.items():
        fields = {key for key, value in vars(change(base)).items() if value != getattr(base, key)}
        assert len(fields - {"learning_rate", "sgd_learning_rate"}) <= 2 and (not fields) == (name == BASE)
    assert {name for changes in FULL.fresh for name in changes} <= set(CHANGES)
    assert {name for _, *ends in link_map.AXES for name in ends} <= set(CHANGES)
    assert not {*FULL.fresh} & {*((name,) for name in FULL.design)}


def token_folder(folder: Path, vocabulary: int) -> Path:
    """A token folder whose tokenizer and training stream come from a few words."""
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(["noise on analog tiles hurts dense modules"] * 3, vocabulary)
    tokenizer.save_pretrained(folder)
    stream = np.random.default_rng(0).integers(0, len(tokenizer), 3000).astype(np.uint16)
    write_stream(folder, "training", stream)
    (folder / "tokens.json").write_text(json.dumps({"vocabulary": len(tokenizer), "sizes": {}}))
    return folder


def test_full_reads_token_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--text is missing"):
        grid("full")
    with pytest.raises(InputError, match=r"it has no tokens-4096 with tokens\.json; make it with python -m"):
        grid("full", str(tmp_path))
    token_folder(tmp_path / "tokens-4096", 260)
    with pytest.raises(InputError, match="tokens-4096 is of 260 tokens; give 4096"):
        grid("full", str(tmp_path))
    with pytest.raises(InputError, match="--seeds 1: an interval needs at least 2"):
        grid("quick", seeds=1)


def test_the_grid_has_design_and_fresh_cells_of_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = token_folder(tmp_path / "tokens-260", 260)
    real = training_tokens(str(folder.parent), 260)
    monkeypatch.setattr(
        link_map, "training_tokens", lambda _, vocabulary: replace(real, hash=f"{vocabulary}")
    )
    found = grid("full", str(folder.parent), "cuda")
    assert len(found) == 3 * (15 + 6) and {config.device for config in found} == {"cuda"}
    design, fresh = ({config.seed for config in found if config.fresh == side} for side in (False, True))
    assert design == {1000, 1001, 1002} and fresh == {1100, 1101, 1102}
    longest = next(config for config in found if config.cell == "4 times the steps")
    assert longest.lengths == (300, 600, 1200) and longest.recipe.steps == 1200
    both = next(config for config in found if config.cell == "AdamW, experts SGD + 64 experts")
    assert (both.recipe.optimiser, both.recipe.expert_optimiser, both.recipe.experts) == ("adamw", "sgd", 64)
    assert {config.text_hash for config in found if "2048" in config.cell} == {"2048"}


@pytest.mark.slow  # the corpus is rebuilt
def test_training_text_has_no_paragraph_of_held_out_text() -> None:
    training = {
        paragraph for document in training_documents("networkx") for paragraph in document.split("\n")
    }
    assert len(training) > 3000
    for split in ("calibration", "evaluation"):
        held_out = {each for document in text.held_out(split) for each in document.split("\n")}
        assert len(held_out) > 500 and not training & held_out


def test_a_snapshot_is_the_model_that_load_gives(tmp_path: Path) -> None:
    folder = token_folder(tmp_path / "tokens", 300)
    tokens = PreTrainedTokenizerFast.from_pretrained(folder)
    recipe = replace(TINY, vocabulary=300)
    stream = np.random.default_rng(0).integers(0, len(tokens), 3000).astype(np.uint16)
    training = Training(recipe, stream, torch.device("cpu"), compiled=False)
    training.advance()
    before = {name: master.clone() for name, master in training.masters.items()}
    model = snapshot(training, tokens)
    network = snapshot(training, tokens).network.bfloat16()
    network.save_pretrained(folder)
    loaded = load(folder)
    for (name, one), (other_name, other) in zip(
        model.network.named_parameters(), loaded.network.named_parameters(), strict=True
    ):
        assert name == other_name and one.dtype == torch.float32 and torch.equal(one, other)
    batch = torch.randint(300, (2, 16))
    torch.testing.assert_close(model.network(batch).logits, loaded.network(batch).logits)
    assert model.map == loaded.map and not model.network.training
    assert all(torch.equal(before[name], master) for name, master in training.masters.items())
    training.advance()  # training goes on with a model of its own
    assert not torch.equal(training.masters["lm_head.weight"], model.network.get_parameter("lm_head.weight"))


def test_a_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Biased routers and all kinds of hardware, on made-up text, give the same numbers twice."""
    token_folder(tmp_path / "tokens-300", 300)
    documents = {
        "calibration": text.Documents(TEXTS[:6] * 40, "calibration"),
        "evaluation": text.Documents(TEXTS[6:], "evaluation"),
    }
    monkeypatch.setattr(text, "held_out", documents.__getitem__)
    recipe = replace(
        TINY,
        vocabulary=len(PreTrainedTokenizerFast.from_pretrained(tmp_path / "tokens-300")),
        balance_bias=0.01,
    )
    (tmp_path / "tokens-300").rename(tmp_path / f"tokens-{recipe.vocabulary}")
    config = replace(
        configs()[0], recipe=recipe, lengths=(2, 6), text=str(tmp_path), draws=1, blocks=4, block_tokens=16
    )
    found = measure(config)
    early, late = found["looks"]
    short = replace(config, lengths=(2,), kinds=link_map.KINDS[:1])
    (again,) = measure(short)["looks"]
    assert again == early | {"hardware": early["hardware"][:1]}
    assert measure(replace(short, seed=1)) != {"looks": [again]}
    assert late["loss"] < early["loss"] and 0 <= late["least_share"] <= 1
    assert late["bits_per_byte"] < early["bits_per_byte"]
    assert len(late["hardware"]) == len(link_map.KINDS)
    for each in late["hardware"]:
        assert set(each["statistics"]) == set(STATISTICS)
        assert [set(fraction) for fraction in each["recovered"]] == [set(PLACEMENTS)] * len(FRACTIONS)
    per_tile, per_column, per_layer, *others = (each["c"] for each in late["hardware"])
    assert per_tile == per_column == per_layer == link_map.C not in others
