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
from realmodels.experiments.figure_6 import (
    grid,
    log_frequency,
    measure,
    percentiles,
    resampled_spearman,
    spearman,
    summarise,
)
from realmodels.experiments.rig import Evaluated
from realmodels.load import load
from realmodels.statistics import routing
from theory.errors import InputError

BLOCKS, TOKENS, EXPERTS, LAYERS, UNITS = 6, 32, 32, 2, 9


def record(link: float, seed: int = 0) -> dict[str, Any]:
    """Experts whose mean log frequency follows the ranks of their scores with weight `link`, and chance otherwise."""
    generator = np.random.default_rng(seed)
    layers = []
    for _ in range(LAYERS):
        score = generator.permutation(EXPERTS).astype(np.float64) + 1
        count = generator.integers(12, 36, EXPERTS).astype(float)
        mean = -8 + link * score / EXPERTS + (1 - abs(link)) * generator.standard_normal(EXPERTS)
        values: dict[str, NDArray[np.float64]] = {"log_frequency": mean, "load": count, "weight": count / 2}
        drawn = generator.integers(EXPERTS, size=(figure_6.RESAMPLES, EXPERTS))
        layers.append(
            {
                "score": score.tolist(),
                "count": count.tolist(),
                "log_frequency": (count * mean).tolist(),
                "weight": (count / 2).tolist(),
                "extremes": [
                    {"expert": expert, "tokens": [{"text": "' the'", "count": 3, "share": 0.5}]}
                    for expert in range(4)
                ],
                "spearman": {name: spearman(score, each) for name, each in values.items()},
                "resampled": {
                    name: resampled_spearman(score, np.tile(each, (len(drawn), 1)), drawn).tolist()
                    for name, each in values.items()
                },
            }
        )
    return {"layers": layers, "units": UNITS}


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


@given(seed=st.integers(0, 1000))
def test_a_bootstrap_sample_is_scipys_correlation_of_the_drawn_experts(seed: int) -> None:
    generator = np.random.default_rng(seed)
    score, values = generator.integers(0, 9, 8).astype(float), generator.integers(0, 9, (5, 8)).astype(float)
    drawn = generator.integers(8, size=(5, 8))
    for found, own, experts in zip(resampled_spearman(score, values, drawn), values, drawn, strict=True):
        alike = np.ptp(score[experts]) == 0 or np.ptp(own[experts]) == 0
        expected = 0.0 if alike else stats.spearmanr(score[experts], own[experts]).statistic
        assert found == pytest.approx(expected)


def test_percentiles_claim_no_more_than_the_samples_tell() -> None:
    samples = np.arange(1000.0)
    assert percentiles(samples, 0.9) == pytest.approx((49.95, 949.05))
    assert percentiles(samples, 1 - 2 / 1001) is not None
    assert percentiles(samples, 1 - 1.9985 / 1001) is None
    assert percentiles(np.arange(1023.0), 1 - 2 / 1024) is not None  # a tail of exactly one sample


def test_intervals_cover() -> None:
    """Normal pairs have a known correlation of ranks. 400 intervals of 90 % miss 40, and 37 more are 6.2 deviations."""
    generator = np.random.default_rng(0)
    rho = 0.6
    population = 6 / math.pi * math.asin(rho / 2)
    missed = 0
    for _ in range(400):
        x = generator.standard_normal((2, 32))
        other = np.tile(rho * x[0] + math.sqrt(1 - rho**2) * x[1], (400, 1))
        interval = percentiles(resampled_spearman(x[0], other, generator.integers(32, size=(400, 32))), 0.9)
        assert interval is not None
        missed += not interval[0] <= population <= interval[1]
    assert missed <= 40 + 37


@pytest.mark.parametrize(
    ("link", "clear", "some"),
    [(0.9, "holds", "holds"), (-0.9, "fails", "fails"), (0.0, "fails", "inconclusive")],
)
def test_verdicts_follow_the_data(link: float, clear: str, some: str) -> None:
    config = replace(CONFIG, model="tiny-olmoe")
    result = summarise([config], [record(link)])
    assert_as_committed("figure-6", result)
    findings = result.findings
    assert [finding.verdict for finding in findings[:2]] == [clear, some]
    assert all(finding.n == UNITS for finding in findings)
    if link:
        assert findings[0].estimate * link > 0.7


def test_idle_experts_do_not_count() -> None:
    made = record(1.0)
    for layer in made["layers"]:
        for name in ("count", "log_frequency", "weight"):
            layer[name][0] = 0.0
        layer["count"][1] = 1.0
    result = summarise([CONFIG], [made])
    model = result.data["models"][0]
    assert model["correlations"]["load"][-1]["experts"] == LAYERS * (EXPERTS - 1)
    assert [each["log_frequency"] for each in model["experts"] if each["expert"] == 0] == [None] * 2
    layer, shown = made["layers"][0], model["experts"][:EXPERTS]
    for name, counted in (("load", layer["count"]), ("weight", layer["weight"])):
        assert [each[name] for each in shown] == pytest.approx(np.array(counted) / (BLOCKS * TOKENS))


def test_layers_have_equal_weights() -> None:
    made = record(0.5)
    first, second, both = summarise([CONFIG], [made]).data["models"][0]["correlations"]["log_frequency"]
    assert both["spearman"] == pytest.approx((first["spearman"] + second["spearman"]) / 2)
    assert both["interval"][1] - both["interval"][0] < first["interval"][1] - first["interval"][0]


def test_the_picture_shows_every_expert_and_every_layer() -> None:
    figure = drawing.draw(summarise([CONFIG, CONFIG], [record(0.5), record(0.2, seed=1)]))
    points = [np.asarray(part.get_offsets()) for axis in figure.axes for part in axis.collections]
    assert sum(len(each) for each in points if len(each) == EXPERTS) == 2 * LAYERS * EXPERTS
    assert "Published" in drawing.CAPTION


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


def test_use_and_correlations_are_those_of_the_routing(small_model_folder: Path) -> None:
    (config,) = grid("quick", model=str(small_model_folder))
    made, model = measure(config), load(small_model_folder)
    tokens = rig.tokens(config)
    frequency = log_frequency(model, model.texts("calibration"))
    served = tokens[:, :-1].numel()
    assert made["units"] == len(set(rig.documents(config)))
    for layer, chosen in zip(made["layers"], figure_6.choices(model, tokens), strict=True):
        index, weight = chosen
        count = np.array(layer["count"])
        assert int(count.sum()) == served * index.shape[1]
        first = index == 0
        assert count[0] == int(first.sum())
        assert layer["weight"][0] == pytest.approx(float(weight[first].sum()))
        of_first = tokens[:, :-1].flatten()[first.any(1)]
        assert layer["log_frequency"][0] == pytest.approx(float(frequency[of_first].sum()))
        scores = torch.tensor(layer["score"])
        assert layer["extremes"][0]["expert"] == int(scores.argmax())
        assert layer["extremes"][-1]["expert"] == int(scores.argmin())
        used = count > 0
        assert layer["spearman"]["load"] == pytest.approx(spearman(scores.numpy()[used], count[used]))
        mean = np.array(layer["log_frequency"])[used] / count[used]
        assert layer["spearman"]["log_frequency"] == pytest.approx(spearman(scores.numpy()[used], mean))
    assert measure(config) == made


def test_text_is_drawn_anew_by_document(small_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every draw is of each document once, and of each expert, a bootstrap sample is the estimate."""
    monkeypatch.setattr(figure_6, "_weights", lambda units, _: np.ones((figure_6.RESAMPLES, units)))

    class EachOnce(np.random.Generator):
        def integers(self, high: Any, size: Any = None, **_: Any) -> Any:  # type: ignore[override]
            return np.tile(np.arange(high), (size[0], 1))

    monkeypatch.setattr(np.random, "default_rng", lambda seed: EachOnce(np.random.PCG64(seed)))
    (config,) = grid("quick", model=str(small_model_folder))
    for layer in measure(config)["layers"]:
        assert layer["resampled"]["load"] == pytest.approx([layer["spearman"]["load"]] * figure_6.RESAMPLES)
        assert layer["resampled"]["weight"] == pytest.approx(
            [layer["spearman"]["weight"]] * figure_6.RESAMPLES
        )
    model = load(small_model_folder)
    texts = ["noise on analog tiles", "hurts the noisy tiles"]
    (found, *_) = figure_6.resampled_frequencies(model, texts, np.random.default_rng(0))
    stream = torch.tensor(
        [
            token
            for text in texts
            for token in (model.tokenizer.eos_token_id, *model.tokenizer(text)["input_ids"])
        ]
    )
    counts = torch.bincount(stream, minlength=len(found)).double() + 1
    assert torch.allclose(found.exp(), counts / counts.sum())


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
