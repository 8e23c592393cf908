"""The files of `plan`: names that tell plans apart, the table and the pictures, a page that needs no other file."""

import csv
import json
from dataclasses import replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import paper_repro
from figures.drawings.plan import experts, frontier
from figures.drawings.style import SMALLEST, WIDTH
from figures.plan import FILES, SHARES, accuracy_rows, frontier_rows, names, outcome_rows, write
from realmodels.budgets import Budgets
from realmodels.decline import Decline, Drop
from realmodels.items import AXES, MAXNN, RANDOM, Kind, Outcome
from realmodels.plan_file import THE_PLAN, Dense, Plan
from theory.hardware import Hardware
from theory.placement import Placement

LAYERS, EXPERTS = 4, 32
DAMAGE = "expected damage"


def a_plan(model: str = "one", c: float = 1.5) -> Plan:
    rng = np.random.default_rng(0)
    placement = Placement((EXPERTS,) * LAYERS, ((), (3,), (1, 2), ()), ("head",))

    def outcome(share: float, measured: float) -> Outcome:
        interval = (measured - 0.01, measured + 0.01)
        return Outcome(
            placement, 3, 500, share, 10_000, 1e-4, 1e5, measured + 0.02, measured - 0.03, measured, interval
        )

    x = np.linspace(0, 0.9, 10)
    axes = {"share": x, "energy": 1e-7 * 10 ** (4 * x), "throughput": 1e6 * (1 - 0.9 * x)}
    curves = {
        score: {
            axis: tuple(zip(axes[axis].tolist(), (times * (1 - x)).tolist(), strict=True)) for axis in AXES
        }
        for score, times in ((DAMAGE, 0.2), (MAXNN, 0.25), (RANDOM, 0.3))
    }
    table = tuple(map(tuple, rng.random((LAYERS, EXPERTS)).tolist()))
    return Plan(
        model=model,
        weights_hash="0" * 64,
        date="2026-01-01T00:00:00+00:00",
        hardware=Hardware(c=c),
        budgets=Budgets(digital_parameters="10%"),
        texts={"evaluation": "1" * 64, "calibration": "2" * 64},
        draws=8,
        batch=32,
        parameters=5000,
        digital_loss=3.0,
        score=DAMAGE,
        ranking=table,
        decline=None,
        damage=table,
        maxnn=table,
        load=table,
        dense={"q": Dense("attention", 100, 0.01, True), "head": Dense("lm_head", 200, 0.02, False)},
        kinds={"experts": Kind(0.05, 0.06, (0.05, 0.07), 1.2)},
        interaction=0.1,
        outcomes={THE_PLAN: outcome(0.1, 0.12), "dense + 12.5 % MaxNNScore": outcome(0.34, 0.03)},
        frontiers=curves,
    )


def test_plans_are_named_by_what_tells_them_apart() -> None:
    assert names([a_plan()]) == ["one"]
    assert names([a_plan(), a_plan("two")]) == ["one", "two"]
    assert names([a_plan(), a_plan(c=2.5)]) == ["c 1.5", "c 2.5"]
    assert names([a_plan(), a_plan("two", c=2.5)]) == ["one, c 1.5", "two, c 2.5"]
    assert names([a_plan(), a_plan()]) == ["one (1)", "one (2)"]


def test_rows_of_the_frontier_are_the_least_increase_within_a_share() -> None:
    rows = frontier_rows([a_plan()])
    assert [row["digital_parameters"] for row in rows] == list(SHARES)
    assert [row[DAMAGE] for row in rows[:4]] == pytest.approx([0.2, 0.2, 0.2, 0.18])
    late = replace(a_plan(), frontiers={**a_plan().frontiers, MAXNN: dict.fromkeys(AXES, ((0.3, 0.1),))})
    assert [row[MAXNN] for row in frontier_rows([late])] == [""] * 6 + [0.1] * 5
    both = frontier_rows([a_plan(), a_plan(c=2.5)])[0]
    assert list(both) == [
        "digital_parameters",
        *(f"c {c}: {each}" for c in (1.5, 2.5) for each in (DAMAGE, MAXNN, RANDOM)),
    ]


def test_every_file_is_written(tmp_path: Path) -> None:
    found, other = a_plan(), a_plan("two_2 <b>")
    written = write(found, [other], tmp_path)
    assert sorted(path.name for path in written) == sorted(set(FILES) - {"placement.json"})
    with (tmp_path / "experts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["layer", "expert", "score", "damage", "maxnn", "load", "digital"]
    assert [(row["layer"], row["expert"]) for row in rows if row["digital"] == "True"] == [
        ("1", "3"),
        ("2", "1"),
        ("2", "2"),
    ]
    assert float(rows[33]["score"]) == found.damage[1][1] and len(rows) == LAYERS * EXPERTS
    assert Plan.from_json((tmp_path / "plan.json").read_text()) == found
    page = (tmp_path / "plan.html").read_text()
    assert page.count("data:image/webp;base64,") == 2 and "http" not in page and "<b>:" not in page
    for words in ("3 experts and 1 of 2", "off by +0.0200 nats", "digital parameters 10%", "two_2 &lt;b&gt;"):
        assert words in page
    for picture in ("frontier.png", "experts.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width == pytest.approx(200 * WIDTH, abs=1)
    assert json.loads((tmp_path / "plan.json").read_text())["model"] == "one" and "accuracy" not in page


def on_tasks() -> Plan:
    found = a_plan()
    outcomes = {
        name: replace(each, accuracy=Drop(0.0123, (0.01, 0.02), 0.0456, (0.01, 0.08)))
        for name, each in found.outcomes.items()
    }
    decline = Decline(("piqa", "boolq"), 100, 0.5, 0.75, 2.5, 0.5, 0.2, (0.1, 0.3))
    return replace(found, decline=decline, outcomes=outcomes)


def test_outcomes_are_shown_with_half_of_their_interval() -> None:
    assert outcome_rows(a_plan())[0] == [
        THE_PLAN,
        "3",
        "10.0%",
        "0.1400",
        "0.1200 ±0.0100",
        "0.0001",
        "100,000",
    ]


def test_accuracy_is_shown_where_tasks_were_given(tmp_path: Path) -> None:
    found = on_tasks()
    assert accuracy_rows(found)[0] == [
        THE_PLAN,
        "1.23 [1.00, 2.00]",
        "4.56 [1.00, 8.00]",
    ] and not accuracy_rows(a_plan())
    assert "lost on piqa, boolq: 1.23 [1.00, 2.00] predicted, 4.56 [1.00, 8.00] measured" in str(found)
    write(found, [], tmp_path)
    assert Plan.from_json((tmp_path / "plan.json").read_text()) == found
    page = (tmp_path / "plan.html").read_text()
    for words in (
        "points lost, predicted",
        "4.56 [1.00, 8.00]",
        "from 75.0 % of the digital model to 50.0 %",
    ):
        assert words in page


def test_another_score_is_named_and_drawn() -> None:
    found = a_plan()
    signed = tuple(tuple(value - 0.5 for value in row) for row in found.damage)
    curves = {"own score": found.frontiers[DAMAGE], MAXNN: found.frontiers[MAXNN]}
    other = replace(found, score="own score", ranking=signed, frontiers={**curves, RANDOM: curves[MAXNN]})
    figure = experts(other)
    FigureCanvasAgg(figure).draw()
    assert figure.axes[0].get_title(loc="left") == "score: own score"
    np.testing.assert_array_equal(np.asarray(figure.axes[0].images[0].get_array()), signed)
    assert "best by own score" in frontier([other]).axes[0].get_legend_handles_labels()[1]
    assert list(frontier_rows([other])[0]) == ["digital_parameters", "own score", MAXNN, RANDOM]
    assert other.rows()[0]["score"] == signed[0][0] and other.rows()[0]["damage"] == found.damage[0][0]


@pytest.mark.parametrize("others", [0, 1, 2])
def test_the_frontier_shows_lines_and_measured_points(others: int) -> None:
    plans = [a_plan(), a_plan("two"), a_plan(c=2.5)][: 1 + others]
    figure = frontier(plans)
    FigureCanvasAgg(figure).draw()
    for axis, panel in zip(AXES, figure.axes, strict=True):
        lines = [line for line in panel.lines if np.size(line.get_xdata()) == 10]
        assert len(lines) == 3 + others and len(panel.containers) == 2 + others
        best = np.array(plans[0].frontiers[DAMAGE][axis])
        np.testing.assert_array_equal(np.column_stack(lines[0].get_data()), best)
        assert all(float(label.get_fontsize()) >= SMALLEST for label in panel.get_xticklabels())
        boxes = [label.get_window_extent() for label in panel.get_xticklabels() if label.get_text()]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) > 1
        assert all(left.x1 <= right.x0 for left, right in pairwise(boxes))
    assert figure.get_figwidth() == WIDTH


def test_any_name_can_be_drawn() -> None:
    """Also one that matplotlib would take for mathematics, and a long one stays inside the picture."""
    hostile, long = a_plan(r"a$\bad{$b"), a_plan("long " * 40)
    for figure in (frontier([hostile, long, hostile]), experts(hostile)):
        FigureCanvasAgg(figure).draw()
        for text in figure.texts + [each for legend in figure.legends for each in legend.get_texts()]:
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_panels_keep_their_height_beside_many_plans() -> None:
    heights = []
    for others in (0, 30):
        figure = frontier([a_plan()] + [a_plan(str(each)) for each in range(others)])
        FigureCanvasAgg(figure).draw()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.2)


def test_a_measured_gain_is_inside_the_picture() -> None:
    """Noise can lower the loss of a little text."""
    found = a_plan()
    outcome = replace(found.outcome, measured=-0.05, interval=(-0.2, 0.1))
    figure = frontier([replace(found, outcomes={THE_PLAN: outcome})])
    assert figure.axes[0].get_ylim()[0] < -0.05


def test_the_heat_map_shows_score_load_and_choice() -> None:
    found = a_plan()
    figure = experts(found)
    FigureCanvasAgg(figure).draw()
    score, load, choice = (np.asarray(panel.images[0].get_array()) for panel in figure.axes[:3])
    np.testing.assert_array_equal(score, found.damage)
    np.testing.assert_array_equal(load, found.load)
    assert np.argwhere(choice == 1).tolist() == [[1, 3], [2, 1], [2, 2]] and choice.sum() == 3
    assert experts(replace(found, damage=((0.0,) * EXPERTS,) * LAYERS)).axes


def test_what_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While the pictures are drawn, the last that takes long; and the message promises nothing."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("figures.drawings.plan.frontier", interrupted)
    monkeypatch.setattr(import_module("realmodels.load"), "load", lambda *_: None)
    monkeypatch.setattr(import_module("realmodels.plan"), "plan", lambda *_, **__: a_plan())
    assert paper_repro.main(["plan", "--digital-experts", "3", "--out", str(tmp_path)]) == 130
    error = capsys.readouterr().err
    assert "interrupted: a plan that is not finished is not kept" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
