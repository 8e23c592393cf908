"""Intervals cover as often as they say, verdicts follow them, and results survive only honest round trips."""

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from theory.errors import InputError
from theory.evidence import (
    Finding,
    Result,
    Verdict,
    averaged,
    balanced_accuracy,
    best_threshold,
    certain,
    correlation_mean,
    correlation_mean_interval,
    decided,
    geometric_interval,
    geometric_mean,
    grouped,
    inside,
    judged,
    judged_inside,
    mean_finding,
    mean_interval,
    mean_within,
    proportion_interval,
    ratio_interval,
    two_way_interval,
    verdict,
)
from theory.strict_json import plain

FAILURE = 1e-9  # of a correct implementation, per assertion
SIMULATIONS = 2000

finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
words = st.text(min_size=1).filter(str.strip)


@st.composite
def findings(draw: st.DrawFn) -> Finding:
    low, high = sorted((draw(finite), draw(finite)))
    interval = draw(st.sampled_from([(low, high), None]))
    verdicts: list[Verdict] = ["inconclusive"] if interval is None else ["holds", "fails", "inconclusive"]
    alone = draw(st.sampled_from(verdicts))
    return Finding(
        claim=draw(words),
        origin=draw(st.sampled_from(["paper", "extension", "reconstruction", "ours"])),
        statement=draw(st.none() | st.text(min_size=1)),
        statistic=draw(words),
        estimate=draw(finite),
        interval=interval,
        n=draw(st.none() | st.integers(1, 99)),
        rule=draw(words),
        family=draw(st.sampled_from(["a", "b"])),
        p=draw(st.floats(0, 0.05 if alone != "inconclusive" else 1)),
        alone=alone,
        verdict=alone,
        exploratory=draw(st.booleans()),
    )


FINDING = {
    "claim": "a",
    "origin": "ours",
    "statement": None,
    "statistic": "b",
    "estimate": 1.5,
    "interval": [1, 2],
    "n": 8,
    "rule": "c",
    "family": "d",
    "p": 0.001,
    "alone": "holds",
    "verdict": "holds",
    "exploratory": False,
}
RESULT: dict[str, Any] = {
    "exhibit": "figure-0",
    "preset": "full",
    "data": {"x": [1.0]},
    "findings": [FINDING],
    "provenance": {},
}


def crossed(
    generator: np.random.Generator, shape: tuple[int, int], draw: float, block: float, rest: float
) -> NDArray[np.float64]:
    """A table of mean 0 with normal effects of the given standard deviations."""
    effects = draw * generator.standard_normal((shape[0], 1)) + block * generator.standard_normal(
        (1, shape[1])
    )
    return np.asarray(effects + rest * generator.standard_normal(shape))


# Intervals


def test_mean_interval_is_students() -> None:
    samples = np.random.default_rng(0).normal(size=7)
    test = stats.ttest_1samp(samples, 0).confidence_interval(0.9)
    assert mean_interval(samples, 0.9) == pytest.approx((test.low, test.high), rel=1e-12)


@pytest.mark.parametrize("shape", [(8, 30), (3, 50), (2, 2)], ids=str)
@pytest.mark.parametrize(
    "sizes", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1), (0.3, 1, 1), (0.1, 0.1, 1)], ids=str
)
def test_two_way_interval_covers(shape: tuple[int, int], sizes: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(SIMULATIONS):
        low, high = two_way_interval(crossed(generator, shape, *sizes))
        hits += low <= 0 <= high
    assert hits >= stats.binom.ppf(FAILURE, SIMULATIONS, 0.95)
    if sizes in ((1, 0, 0), (0, 1, 0)):  # and no wider than needed: exact where one effect is alone
        assert hits <= stats.binom.isf(FAILURE, SIMULATIONS, 0.95)


@pytest.mark.parametrize("axis", [0, 1])
def test_two_way_interval_of_one_effect_is_students(axis: int) -> None:
    means = np.random.default_rng(2).normal(size=6)
    table = np.repeat(means[:, None], 9, axis=1)
    assert two_way_interval(table if axis == 0 else table.T) == pytest.approx(mean_interval(means), rel=1e-12)


def test_two_way_interval_treats_draws_and_blocks_alike_and_follows_shift_and_scale() -> None:
    table = crossed(np.random.default_rng(3), (5, 7), 1, 2, 3)
    low, high = two_way_interval(table)
    assert two_way_interval(table.T) == pytest.approx((low, high), rel=1e-12)
    assert two_way_interval(10 - 3 * table) == pytest.approx((10 - 3 * high, 10 - 3 * low), rel=1e-12)
    assert two_way_interval(table, 0.99)[0] < low < high < two_way_interval(table, 0.99)[1]


@pytest.mark.parametrize("sizes", [(1, 0, 0), (0, 1, 0), (1, 1, 1)], ids=str)
def test_ratio_interval_covers(sizes: tuple[float, float, float]) -> None:
    generator, hits, truth = np.random.default_rng(4), 0, 2.5
    for _ in range(SIMULATIONS):
        shared = crossed(generator, (6, 20), *sizes)  # the pairing: both react to the same draws and blocks
        below = 3 + shared
        above = truth * 3 + 2 * shared + crossed(generator, (6, 20), *sizes)
        interval = ratio_interval(above, below)
        hits += interval is None or interval[0] <= truth <= interval[1]
    assert hits >= stats.binom.ppf(FAILURE, SIMULATIONS, 0.95)
    if sizes != (1, 1, 1):
        assert hits <= stats.binom.isf(FAILURE, SIMULATIONS, 0.95)


def test_ratio_interval_is_fiellers() -> None:
    generator = np.random.default_rng(5)
    above, below = 5 + crossed(generator, (6, 9), 1, 1, 1), 4 - crossed(generator, (6, 9), 0.5, 0.5, 1)
    interval = ratio_interval(above, below)
    assert interval is not None and interval[0] < above.mean() / below.mean() < interval[1]
    for bound, end in zip(interval, (0, 1), strict=True):  # at either root, 0 is an end of the difference's
        ends = two_way_interval(above - bound * below)
        assert abs(ends[end]) < 1e-12 * abs(ends[1 - end])
    assert ratio_interval(-2 * above, below) == pytest.approx((-2 * interval[1], -2 * interval[0]), rel=1e-12)
    assert ratio_interval(above, -below) == pytest.approx((-interval[1], -interval[0]), rel=1e-12)


def test_a_ratio_to_itself_is_exact() -> None:
    table = 5 + crossed(np.random.default_rng(6), (6, 9), 1, 1, 1)
    # The root of a rounding error: half the digits are what is left.
    assert ratio_interval(3 * table, table) == pytest.approx((3, 3), abs=10 * math.sqrt(np.finfo(float).eps))


def test_a_ratio_to_what_may_be_zero_is_unbounded() -> None:
    noise = crossed(np.random.default_rng(7), (6, 9), 1, 1, 1)
    assert ratio_interval(5 + noise, noise - noise.mean()) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0]), "samples: 1 given"),
        (lambda: mean_interval([[1.0, 2.0]]), r"give \(samples\)"),
        (lambda: mean_interval([1.0, math.nan]), "1 values are not finite"),
        (lambda: mean_interval([1.0, 2.0], 1.0), "confidence is 1.0"),
        (lambda: two_way_interval([[1.0, 2.0]]), "draws: 1 given"),
        (lambda: two_way_interval([[1.0], [2.0]]), "blocks: 1 given"),
        (lambda: ratio_interval(np.ones((2, 3)), np.ones((3, 2))), "pair the same"),
        (lambda: verdict((0, 1), 0.5, "over"), "direction is 'over'"),  # type: ignore[arg-type]
        (lambda: proportion_interval(3, 2), "3 of 2"),
        (lambda: geometric_interval([1.0, 0.0]), "1 are not positive"),
        (lambda: correlation_mean_interval([1.0, 0.0]), r"1 correlations are not inside"),
        (lambda: grouped(np.ones((2, 3)), [0, 1]), "one label for each of the 3 blocks"),
    ],
)
def test_unusable_samples(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


# Verdicts


@given(low=finite, high=finite, threshold=finite)
def test_verdict_is_undecided_unless_the_whole_interval_is_on_one_side(
    low: float, high: float, threshold: float
) -> None:
    low, high = min(low, high), max(low, high)
    above, below = (verdict((low, high), threshold, side) for side in ("above", "below"))
    assert (above == "holds") == (below == "fails") == (low > threshold)
    assert (above == "fails") == (below == "holds") == (high < threshold)
    assert (above == "inconclusive") == (below == "inconclusive") == (low <= threshold <= high)
    assert verdict(None, threshold, "above") == "inconclusive"


@given(low=finite, high=finite, ends=st.tuples(finite, finite))
def test_inside_holds_within_fails_beyond_and_is_else_undecided(
    low: float, high: float, ends: tuple[float, float]
) -> None:
    low, high = min(low, high), max(low, high)
    start, end = sorted(ends)
    found = inside((start, end), low, high)
    assert (found == "holds") == (low < start and end < high)
    assert (found == "fails") == (end < low or high < start)
    assert inside(None, low, high) == "inconclusive"


@pytest.mark.parametrize("estimate", [-1.0, 2.0, 5.0])
def test_the_rule_in_words_is_the_rule_of_the_verdict(estimate: float) -> None:
    samples = estimate + np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    interval = mean_interval(samples)

    def at(confidence: float) -> tuple[float, float]:
        return mean_interval(samples, confidence)

    above = judged("a claim", "a number", estimate, at, 5, 2.5, origin="paper", family="f", statement="B")
    below = judged("a claim", "a number", estimate, at, 5, 2.5, "below", origin="ours", family="f")
    assert above.rule == "95 % interval above 2.5: holds; below: fails"
    assert below.rule == "95 % interval below 2.5: holds; above: fails"
    assert above == Finding(
        claim="a claim",
        origin="paper",
        statement="B",
        statistic="a number",
        estimate=estimate,
        interval=interval,
        n=5,
        rule=above.rule,
        family="f",
        p=above.p,
        alone=verdict(interval, 2.5, "above"),
        verdict=verdict(interval, 2.5, "above"),
    )
    assert below.verdict == verdict(interval, 2.5, "below")
    within = judged_inside("a claim", "a number", estimate, at, 5, 1.0, 3.0, origin="ours", family="f")
    assert within.rule == "95 % interval between 1 and 3: holds; outside: fails"
    assert within.verdict == inside(interval, 1.0, 3.0)


def test_without_an_interval_nothing_is_decided() -> None:
    unbounded = judged("a claim", "a ratio", 3.0, lambda confidence: None, 9, origin="ours", family="f")
    assert (unbounded.rule, unbounded.verdict) == (
        "95 % interval above 0: holds; below: fails",
        "inconclusive",
    )
    assert (unbounded.interval, unbounded.p) == (None, 1.0)
    assert unbounded.measured == "a ratio: 3 [unbounded]"
    bounded = judged("a claim", "a ratio", 3.0, certain(3.0), 9, origin="ours", family="f")
    assert bounded.measured == "a ratio: 3 [3, 3]"


# Levels and families


@given(st.lists(st.floats(-3, 3), min_size=5, max_size=9), st.floats(-3, 3))
def test_p_is_that_of_students_test(samples: list[float], threshold: float) -> None:
    values = np.array(samples)
    assume(values.std() > 1e-3)
    expected = stats.ttest_1samp(values, threshold).pvalue
    found = mean_finding("a", "b", values, threshold, origin="ours", family="f").p
    if 1e-9 < expected < 0.99:
        assert found == pytest.approx(expected, rel=1e-4)


@given(st.floats(-1, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_p_decides_where_the_interval_of_its_level_does(estimate: float, sd: float, margin: float) -> None:
    samples = estimate + sd * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    found = mean_within("a", "b", samples, 0.0, margin, origin="ours", family="f")
    assert (found.p < 0.05) == (found.alone != "inconclusive")
    for level, side in ((min(found.p * 1.001, 0.9989), True), (found.p * 0.999, False)):
        if 2e-12 < found.p < 0.99:
            decides = inside(mean_interval(samples, 1 - level), -margin, margin) != "inconclusive"
            assert decides is side


def of_p(p: float, alone: Verdict, family: str = "f", n: int | None = 9) -> Finding:
    return Finding(
        claim="a",
        origin="ours",
        statistic="b",
        estimate=0.0,
        interval=(0.0, 1.0),
        n=n,
        rule="c",
        family=family,
        p=p,
        alone=alone,
        verdict=alone,
    )


def test_holm_by_hand() -> None:
    ordered = [of_p(0.01, "holds"), of_p(0.016, "fails"), of_p(0.03, "holds"), of_p(0.2, "inconclusive")]
    # .01 <= .05/4 and .016 <= .05/3, but .03 > .05/2.
    assert [each.verdict for each in decided(ordered)] == ["holds", "fails", "inconclusive", "inconclusive"]
    assert [each.verdict for each in decided(ordered[::-1])] == [
        "inconclusive",
        "inconclusive",
        "fails",
        "holds",
    ]
    # A first one that is not decided holds up all others.
    assert {
        each.verdict
        for each in decided([of_p(0.02, "holds"), of_p(0.0251, "holds"), of_p(0.9, "inconclusive")])
    } == {"inconclusive"}
    # Families do not mix, and too few units neither count nor are decided.
    mixed = decided([of_p(0.03, "holds"), of_p(0.04, "fails", "g"), of_p(1e-9, "holds", n=4)])
    assert [each.verdict for each in mixed] == ["holds", "fails", "inconclusive"]
    assert [each.reason for each in mixed] == ["", "", "4 units: a verdict needs 5"]


@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=8))
def test_holm_lies_between_bonferroni_and_none(ps: list[float]) -> None:
    found = decided([of_p(p, "holds") for p in ps])
    for p, each in zip(ps, found, strict=True):
        if p <= 0.05 / len(ps):
            assert each.verdict == "holds"
    assert decided(found) == found
    rejected = sum(each.verdict == "holds" for each in found)
    # The definition: the smallest rank whose p is above its level ends it.
    levels = [0.05 / (len(ps) - rank) for rank in range(len(ps))]
    above = [rank for rank, (p, level) in enumerate(zip(sorted(ps), levels, strict=True)) if p > level]
    assert rejected == (above[0] if above else len(ps))


def test_the_error_rate_of_a_family_is_held() -> None:
    generator = np.random.default_rng(8)
    families, size = 2000, 5
    wrong = 0
    for _ in range(families):
        ps = generator.uniform(size=size)
        found = decided([of_p(p, "holds" if p <= 0.05 else "inconclusive") for p in ps])
        wrong += any(each.verdict == "holds" for each in found)
    assert wrong <= stats.binom.isf(FAILURE, families, 0.05)
    assert wrong >= stats.binom.ppf(FAILURE, families, 1 - (1 - 0.05 / size) ** size)


def test_a_result_judges_in_families_and_notices_an_edited_verdict() -> None:
    found = [of_p(0.01, "holds"), of_p(0.04, "fails"), of_p(0.04, "fails")]
    result = Result(data={}, findings=tuple(found))
    assert [each.verdict for each in result.findings] == ["holds", "inconclusive", "inconclusive"]
    assert "Holm" in result.findings[1].reason
    content = json.loads(result.to_json())
    content["findings"][1]["verdict"] = "fails"
    with pytest.raises(InputError, match=r"result\.findings\[1\]\.verdict is 'fails', but 'inconclusive'"):
        Result.from_json(json.dumps(content))


def test_samples_without_spread_decide_nothing_but_certain_numbers_do() -> None:
    assert mean_finding("a", "b", np.ones(16), 0.5, origin="ours", family="f").alone == "inconclusive"
    exact = judged("a", "b", 1.0, certain(1.0), None, 0.5, origin="ours", family="f")
    assert (exact.verdict, exact.p) == ("holds", 1e-12)


# Counts, ratios, correlations, groups


@given(st.integers(1, 60), st.data())
def test_the_interval_of_a_proportion_is_clopper_and_pearsons(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    expected = stats.binomtest(successes, trials).proportion_ci(0.9, "exact")
    assert proportion_interval(successes, trials, 0.9) == pytest.approx(
        (expected.low, expected.high), rel=1e-9, abs=1e-12
    )


def test_all_of_sixteen_is_not_certainty() -> None:
    low, high = proportion_interval(16, 16)
    assert low == pytest.approx(0.025 ** (1 / 16)) and high == 1.0


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=9), st.floats(0.1, 10))
def test_a_geometric_interval_is_positive_and_follows_scale(samples: list[float], factor: float) -> None:
    low, high = geometric_interval(samples)
    assert 0 <= low <= geometric_mean(samples) * (1 + 1e-12) and geometric_mean(samples) <= high * (1 + 1e-12)
    inverse = geometric_interval([1 / each for each in samples])
    if high < 1e300:
        assert inverse == pytest.approx((1 / high, 1 / low), rel=1e-9)
        assert geometric_interval([factor * each for each in samples]) == pytest.approx(
            (factor * low, factor * high), rel=1e-9
        )


@given(st.lists(st.floats(-0.99, 0.99), min_size=2, max_size=9))
def test_an_interval_of_correlations_stays_inside(samples: list[float]) -> None:
    low, high = correlation_mean_interval(samples)
    centre = correlation_mean(samples)
    assert -1 <= low <= centre + 1e-12 and centre <= high + 1e-12 and high <= 1


def test_groups_of_one_block_are_the_blocks() -> None:
    table = crossed(np.random.default_rng(9), (4, 6), 1, 1, 1)
    np.testing.assert_allclose(grouped(table, np.arange(6)), table, rtol=1e-12)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=12).filter(lambda each: len(set(each)) > 1))
def test_groups_keep_the_mean_and_are_linear(groups: list[int]) -> None:
    generator = np.random.default_rng(10)
    first, second = generator.normal(size=(2, 3, len(groups)))
    found = grouped(first, groups)
    assert found.shape == (3, len(set(groups)))
    np.testing.assert_allclose(found.mean(1), first.mean(1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        grouped(first - 2 * second, groups), found - 2 * grouped(second, groups), atol=1e-12
    )
    # The variance of the mean is the cluster-robust one.
    residuals = first[0] - first[0].mean()
    sums = np.array([residuals[np.array(groups) == each].sum() for each in sorted(set(groups))])
    expected = len(sums) / (len(sums) - 1) * (sums**2).sum() / len(groups) ** 2
    assert found[0].var(ddof=1) / len(sums) == pytest.approx(expected, rel=1e-9)


def test_intervals_over_groups_cover_where_blocks_alone_do_not() -> None:
    generator = np.random.default_rng(11)
    groups = np.repeat(np.arange(40), generator.integers(1, 8, size=40))
    hits = naive = 0
    for _ in range(SIMULATIONS):
        blocks = generator.normal(size=40)[groups] + 0.3 * generator.normal(size=len(groups))
        low, high = mean_interval(grouped(blocks, groups))
        hits += low <= 0 <= high
        low, high = mean_interval(blocks)
        naive += low <= 0 <= high
    assert naive < 0.75 * SIMULATIONS
    # Linearised with 40 groups of unequal size: some coverage is lost, as is known of such intervals.
    assert hits >= stats.binom.ppf(FAILURE, SIMULATIONS, 0.92)


# Results


@given(st.dictionaries(st.text(), json_values), st.lists(findings(), max_size=3))
def test_a_result_survives_the_round_trip(data: dict[str, Any], found: list[Finding]) -> None:
    result = Result(exhibit="figure-0", preset="quick", data=data, findings=tuple(found), provenance=data)
    assert Result.from_json(result.to_json()) == result
    assert Result.from_json(result.to_json()).to_json() == result.to_json()


def test_tuples_become_lists() -> None:
    assert plain({"a": ((1, 2.5), None)}, "x") == {"a": [[1, 2.5], None]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1.0, math.nan]}, r"x\.a\[1\] is nan"),
        ({"a": {"b": math.inf}}, r"x\.a\.b is inf"),
        ({1: 2}, "x has the key 1"),
        ({"a": np.ones(2)}, r"x\.a is a ndarray"),
    ],
)
def test_what_json_cannot_hold_is_named(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plain(value, "x")
    if all(isinstance(key, str) for key in value):
        with pytest.raises(InputError, match=r"result\.data"):
            Result(data=value, findings=())


@pytest.mark.parametrize("key", RESULT)
def test_a_missing_key_of_a_result_is_named(key: str) -> None:
    content = {name: value for name, value in RESULT.items() if name != key}
    with pytest.raises(InputError, match=f"^some file: result lacks the key '{key}'"):
        Result.from_json(json.dumps(content), "some file")


@pytest.mark.parametrize("key", FINDING)
def test_a_missing_key_of_a_finding_is_named(key: str) -> None:
    content = {name: value for name, value in FINDING.items() if name != key}
    with pytest.raises(InputError, match=rf"result\.findings\[0\] lacks the key '{key}'"):
        Result.from_json(json.dumps(RESULT | {"findings": [content]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"exhibit": 3}, r"result\.exhibit is 3"),
        ({"preset": None}, r"result\.preset is None"),
        ({"data": [1]}, r"result\.data is \[1\]"),
        ({"data": {"x": math.nan}}, r"result\.data\.x is nan"),
        ({"findings": {}}, r"result\.findings"),
        ({"findings": [1]}, r"result\.findings\[0\] is 1"),
        ({"provenance": "mine"}, r"result\.provenance is 'mine'"),
    ],
)
def test_a_malformed_result_is_rejected_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Result.from_json(json.dumps(RESULT | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, "unknown key 'extra'"),
        ({"claim": ""}, r"finding\.claim"),
        ({"origin": "folklore"}, r"finding\.origin is 'folklore': give one of paper, extension, reconstr"),
        ({"family": ""}, r"finding\.family"),
        ({"p": 1.5}, r"finding\.p is 1.5"),
        ({"alone": "proved"}, r"finding\.alone is 'proved'"),
        ({"alone": "fails"}, r"finding\.verdict is 'holds', but alone 'fails'"),
        ({"exploratory": 1}, r"finding\.exploratory"),
        ({"statement": ""}, r"finding\.statement is '': give the id of a claim, or None"),
        ({"statement": 1}, r"finding\.statement is 1"),
        ({"statistic": 1}, r"finding\.statistic"),
        ({"rule": " "}, r"finding\.rule"),
        ({"estimate": "1"}, r"finding\.estimate"),
        ({"estimate": math.nan}, r"finding\.estimate"),
        ({"estimate": True}, r"finding\.estimate"),
        ({"interval": [2, 1]}, r"finding\.interval"),
        ({"interval": [1]}, r"finding\.interval"),
        ({"interval": [1, None]}, r"finding\.interval"),
        ({"interval": 3}, r"finding\.interval"),
        ({"interval": None}, "without an interval"),
        ({"n": 0}, r"finding\.n"),
        ({"n": 1.5}, r"finding\.n"),
        ({"n": True}, r"finding\.n"),
        ({"verdict": "proved"}, r"finding\.verdict is 'proved'"),
    ],
)
def test_a_malformed_finding_is_rejected_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Result.from_json(json.dumps(RESULT | {"findings": [FINDING | change]}))


def test_what_is_not_json_is_rejected() -> None:
    with pytest.raises(InputError, match=r"^results\.json: not JSON"):
        Result.from_json('{"exhibit": ', "results.json")
    with pytest.raises(InputError, match="'preset' occurs twice"):
        Result.from_json(json.dumps(RESULT)[:-1] + ', "preset": "quick"}')


def test_findings_are_findings() -> None:
    with pytest.raises(InputError, match=r"result\.findings\[0\] is a dict"):
        Result(data={}, findings=(FINDING,))  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_balanced_accuracy(pairs: list[tuple[bool, bool]]) -> None:
    predicted, actual = np.array(pairs, dtype=bool).T
    found = balanced_accuracy(predicted, actual)
    assert 0 <= found <= 1
    assert found + balanced_accuracy(~predicted, actual) == pytest.approx(1)
    assert balanced_accuracy(actual, actual) == 1
    if actual.any() and not actual.all():
        assert balanced_accuracy(np.ones_like(actual), actual) == 0.5


@given(
    pairs=st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2),
    both=st.booleans(),
)
def test_no_threshold_beats_the_best_one(pairs: list[tuple[int, bool]], both: bool) -> None:
    values, actual = (np.array(column) for column in zip(*pairs, strict=True))
    if np.ptp(values) == 0:
        with pytest.raises(InputError, match="all alike"):
            best_threshold(values, actual, both)
        return
    accuracy, threshold, side = best_threshold(values, actual, both)
    assert accuracy == balanced_accuracy(side * values >= side * threshold, actual)
    assert side in ((1, -1) if both else (1,))
    for other in np.unique(values)[1:] - 0.5:
        assert balanced_accuracy(values >= other, actual) <= accuracy
        if both:
            assert balanced_accuracy(values <= other, actual) <= accuracy


def test_a_threshold_lies_between_the_sides() -> None:
    values, actual = np.array([3.0, 1.0, 4.0, 1.5]), np.array([True, False, True, False])
    assert best_threshold(values, actual) == (1.0, 2.25, 1)
    assert best_threshold(values, ~actual, both_sides=True) == (1.0, 2.25, -1)
    assert best_threshold(values, ~actual) == (0.25, 3.5, 1)


def test_mean_finding_of_a_table_counts_draws_and_blocks() -> None:
    table = np.random.default_rng(0).standard_normal((4, 6)) + 1.0
    crossed = mean_finding("a", "b", table, origin="ours", family="f")
    assert (crossed.interval, crossed.n) == (two_way_interval(table), 4)
    assert crossed.estimate == float(table.mean())
    assert mean_finding("a", "b", table.T, origin="ours", family="f").n == 4
    alone = mean_finding("a", "b", table[0], 0.5, "below", origin="ours", family="f")
    assert (alone.interval, alone.n, alone.estimate) == (mean_interval(table[0]), 6, float(table[0].mean()))
    assert alone.rule == "95 % interval below 0.5: holds; above: fails"
    for each in (table, table.T):
        within = mean_within("a", "b", each, 1.0, 0.25, origin="ours", family="f")
        assert (within.interval, within.n) == (two_way_interval(each), 4)
        assert within.rule == "95 % interval within 0.25 of 1: holds; outside: fails"
    named = mean_within("a", "b", table, 1.0, 0.25, origin="ours", family="f", words="near 1")
    assert named.rule == "95 % interval near 1: holds; outside: fails"
    with pytest.raises(InputError, match="draws: 1 given"):
        mean_finding("a", "b", table[:1], origin="ours", family="f")


def test_means_are_judged_on_their_own_scale() -> None:
    """A ratio and its inverse get inverse intervals; correlations near 1 stay below 1."""
    ratios = np.exp(np.random.default_rng(0).standard_normal(8) + 0.5)
    up, down = (
        mean_finding("a", "b", each, 1.0, side, origin="ours", family="f", scale="log")  # type: ignore[arg-type]
        for each, side in ((ratios, "above"), (1 / ratios, "below"))
    )
    assert up.interval is not None and down.interval is not None
    assert up.estimate == pytest.approx(1 / down.estimate) == pytest.approx(stats.gmean(ratios))
    assert up.interval == pytest.approx([1 / down.interval[1], 1 / down.interval[0]])
    assert up.verdict == down.verdict and up.p == pytest.approx(down.p)
    correlations = np.tanh(np.array([1.5, 2.0, 2.5, 3.0, 3.5]))
    found = mean_within("a", "b", correlations, 0.5, 0.5, origin="ours", family="f", scale="fisher")
    assert found.interval is not None and found.interval[1] < 1 < mean_interval(correlations)[1]
    assert found.estimate == pytest.approx(math.tanh(2.5))
    wide = mean_finding("a", "b", [1e-100, 1e100], 1.0, origin="ours", family="f", scale="log")
    assert wide.interval is not None and math.isfinite(wide.interval[1]) and wide.verdict == "inconclusive"


answers = st.integers(2, 12).flatmap(
    lambda count: st.lists(
        st.lists(st.integers(0, 1), min_size=count, max_size=count), min_size=3, max_size=3
    )
)


@given(st.lists(answers, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_the_interval_over_several_tables(several: list[Any], order: random.Random) -> None:
    """They share draws and have units of their own; their order does not matter."""
    tables = [np.array(each, dtype=float) for each in several]
    found = averaged(tables)
    assert found.mean() == pytest.approx(np.mean([each.mean() for each in tables]))
    means = np.mean([each.mean(1) for each in tables], axis=0)
    of_units = [np.diff(mean_interval(each.mean(0)))[0] / 2 for each in tables]
    expected = np.hypot(np.diff(mean_interval(means))[0] / 2, np.linalg.norm(of_units) / len(tables))
    low, high = two_way_interval(found)
    assert (high - low) / 2 == pytest.approx(expected, abs=1e-12)
    order.shuffle(tables)
    assert two_way_interval(averaged(tables)) == pytest.approx((low, high), abs=1e-12)
