"""Figure 6: correlations with known answers, verdicts on made-up experts, routing of a small model, its drawing."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from committed import assert_as_committed
from hypothesis import given
from numpy.typing import NDArray
from scipy import stats
from small_models import TEXTS

from figures.drawings import figure_6 as drawing
from realmodels.evaluate import token_blocks
from realmodels.experiments import figure_6, rig
from realmodels.experiments.figure_6 import grid, log_frequency, measure, pooled, spearman, summarise
from realmodels.experiments.rig import Evaluated
from realmodels.load import load
from realmodels.statistics import routing
from theory.errors import InputError

BLOCKS, TOKENS, EXPERTS, LAYERS = 6, 32, 32, 2


def record(link: float, seed: int = 0) -> dict[str, Any]:
    """Experts whose mean log frequency follows the ranks of their scores with weight `link`, and chance otherwise."""
    generator = np.random.default_rng(seed)
    layers = []
    for _ in range(LAYERS):
        score = generator.permutation(EXPERTS) + 1.0
        mean = -8 + link * score / EXPERTS + (1 - abs(link)) * generator.standard_normal(EXPERTS)
        count = generator.integers(2, 6, (BLOCKS, EXPERTS)).astype(float)
        extremes = [
            {"expert": expert, "tokens": [{"text": "' the'", "count": 3, "share": 0.5}]}
            for expert in range(4)
        ]
        layers.append(
            {
                "score": score.tolist(),
                "count": count.tolist(),
                "log_frequency": (count * mean).tolist(),
                "weight": (count / 2).tolist(),
                "extremes": extremes,
            }
        )
    return {"layers": layers}


CONFIG = Evaluated("m", "h", "t", "th", "cpu", BLOCKS, TOKENS)


@given(
    first=st.permutations(range(8)),
    second=st.permutations(range(8)),
    scale=st.floats(0.1, 10),
    shift=st.floats(-5, 5),
)
def test_spearman_is_scipys_and_knows_order_only(
    first: list[int], second: list[int], scale: float, shift: float
) -> None:
    one, two = np.array(first, float), np.array(second, float)
    found = spearman(one, two)
    assert found == pytest.approx(stats.spearmanr(one, two).statistic)
    assert spearman(np.exp(scale * one / 8), two**3 + shift) == pytest.approx(found)
    assert spearman(one, -two) == pytest.approx(-found)


@pytest.mark.parametrize("values", [[1.0, 2, 3], [1.0, 1, 1, 1]])
def test_what_has_no_correlation_is_refused(values: list[float]) -> None:
    with pytest.raises(InputError, match="a correlation needs 4 that differ"):
        spearman(np.array(values), np.arange(len(values), dtype=float))


def test_pooled_interval_of_equal_layers() -> None:
    """Four equal layers have the estimate of one layer, and half the width in z."""
    one, (low, high) = pooled([0.5], [32])
    four, (lowest, highest) = pooled([0.5] * 4, [32] * 4)
    assert one == pytest.approx(0.5) == four
    width = math.atanh(high) - math.atanh(low)
    assert width == pytest.approx(2 * 1.959964 * math.sqrt(1.06 / 29))
    assert math.atanh(highest) - math.atanh(lowest) == pytest.approx(width / 2)
    assert -1 < pooled([1.0, -1.0], [8, 8])[1][0] < 0 < pooled([1.0, -1.0], [8, 8])[1][1] < 1


def test_intervals_cover() -> None:
    """Normal pairs have a known correlation of ranks. 1,000 intervals of 95 % miss 50; 6.2 deviations are 43."""
    generator = np.random.default_rng(0)
    rho = 0.6
    population = 6 / math.pi * math.asin(rho / 2)
    missed = 0
    for _ in range(1000):
        x = generator.standard_normal((2, 32))
        pairs: NDArray[np.float64] = np.array([x[0], rho * x[0] + math.sqrt(1 - rho**2) * x[1]])
        low, high = pooled([spearman(*pairs)], [32])[1]
        missed += not low <= population <= high
    assert missed <= 50 + 43


@pytest.mark.parametrize(
    ("link", "clear", "some"),
    [(1.0, "holds", "holds"), (-1.0, "fails", "fails"), (0.0, "fails", "inconclusive")],
)
def test_verdicts_follow_the_data(link: float, clear: str, some: str) -> None:
    config = replace(CONFIG, model="tiny-olmoe")
    result = summarise([config], [record(link)])
    assert_as_committed("figure-6", result)
    findings = result.findings
    assert [finding.verdict for finding in findings[:2]] == [clear, some]
    assert all(finding.n == LAYERS * EXPERTS for finding in findings)
    if link:
        assert findings[0].estimate == pytest.approx(link, abs=1e-3)


def test_idle_experts_do_not_count() -> None:
    made = record(1.0)
    for layer in made["layers"]:
        for name in ("count", "log_frequency", "weight"):
            for block in layer[name]:
                block[0] = 0.0
    result = summarise([CONFIG], [made])
    assert result.findings[0].n == LAYERS * (EXPERTS - 1)
    assert [each["log_frequency"] for each in result.data["models"][0]["experts"] if each["expert"] == 0] == [
        None
    ] * 2


def test_the_picture_shows_every_expert_and_every_layer() -> None:
    figure = drawing.draw(summarise([CONFIG, CONFIG], [record(0.5), record(0.2, seed=1)]))
    points = [np.asarray(part.get_offsets()) for axis in figure.axes for part in axis.collections]
    assert sum(len(each) for each in points if len(each) == EXPERTS) == 2 * LAYERS * EXPERTS
    assert "Published" in drawing.CAPTION


def test_a_monotone_transform_of_the_scores_changes_nothing() -> None:
    made = record(0.5)
    before = summarise([CONFIG], [made]).findings
    for layer in made["layers"]:
        layer["score"] = [score**3 - 7 for score in layer["score"]]
    assert summarise([CONFIG], [made]).findings == before


def test_dollars_and_letters_are_drawn_as_they_are() -> None:
    made = record(0.5)
    made["layers"][0]["extremes"][0]["tokens"][0]["text"] = ascii("$\\frac $ \u4e2d")
    figure = drawing.PARTS["tokens"][0](summarise([CONFIG], [made]))
    figure.canvas.draw()
    assert any("u4e2d" in text.get_text() for axis in figure.axes for text in axis.texts)


# On a model


def test_frequencies_are_smoothed_and_sum_to_one(small_model_folder: Path) -> None:
    model = load(small_model_folder)
    text = "noise on analog tiles hurts the noisy tiles"
    found = log_frequency(model, [text]).exp()
    # The stream begins with an end-of-text token; its last token begins no block.
    stream = torch.tensor([model.tokenizer.eos_token_id, *model.tokenizer(text)["input_ids"][:-1]])
    counts = torch.bincount(stream, minlength=len(found)).double() + 1
    assert len(found) == model.network.config.vocab_size and counts.max() > 2
    assert torch.allclose(found, counts / counts.sum())


def test_sums_are_those_of_the_routing(small_model_folder: Path) -> None:
    (config,) = grid("quick", model=str(small_model_folder))
    made, model = measure(config), load(small_model_folder)
    tokens = rig.tokens(config)
    frequency = log_frequency(model, model.texts("calibration"))
    served = tokens[:, :-1].numel()
    for layer, chosen in zip(made["layers"], figure_6.choices(model, tokens), strict=True):
        index, weight = chosen
        count = torch.tensor(layer["count"]).sum(0)
        assert int(count.sum()) == served * index.shape[1]
        first = index == 0
        assert float(count[0]) == int(first.sum())
        assert float(torch.tensor(layer["weight"]).sum(0)[0]) == pytest.approx(float(weight[first].sum()))
        of_first = tokens[:, :-1].flatten()[first.any(1)]
        assert float(torch.tensor(layer["log_frequency"]).sum(0)[0]) == pytest.approx(
            float(frequency[of_first].sum())
        )
        scores = torch.tensor(layer["score"])
        assert layer["extremes"][0]["expert"] == int(scores.argmax())
        assert layer["extremes"][-1]["expert"] == int(scores.argmin())
    assert measure(config) == made


def test_load_and_weight_are_those_of_the_routing_statistics(small_model_folder: Path) -> None:
    model = load(small_model_folder)
    expected = routing(model, TEXTS)
    for layer, (index, weight) in enumerate(figure_6.choices(model, token_blocks(model, TEXTS).tokens)):
        for expert, (frequency, mean) in enumerate(
            zip(expected.frequency[layer], expected.weight[layer], strict=True)
        ):
            chosen = index == expert
            assert float(chosen.any(1).double().mean()) == pytest.approx(float(frequency))
            assert float(weight[chosen].sum()) / len(index) == pytest.approx(float(mean))
