"""What does an experiment conclude? Findings with intervals, the result that holds them, and how they are judged.

A table of (draws, blocks) is a sample in two crossed directions, noise draws and text: a conclusion has to survive
other draws *and* other text, so its interval counts both sources of variation. Blocks of text that share a document
are one unit [`grouped`].

A finding is judged in two steps. Its own 95 % interval lies on one side of the bound or not (`alone`). The findings of
an exhibit that answer one question are a *family*: with Holm's correction the probability of any false verdict in the
family is at most 5 % (`verdict`). Both need at least LEAST_UNITS independent units.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.errors import InputError
from theory.strict_json import dumps, fields_of, is_whole, loads, number, plain

Interval = tuple[float, float]
Verdict = Literal["holds", "fails", "inconclusive"]
Direction = Literal["above", "below"]
Origin = Literal["paper", "extension", "reconstruction", "ours"]
IntervalAt = Callable[[float], Interval | None]  # the interval at a confidence; nested; None where unbounded
Scale = Literal["linear", "log", "fisher"]  # of a mean: "log" for ratios, "fisher" for correlations
LEVEL = 0.05  # the accepted probability of a false verdict, of a finding by itself and in a family
LEAST_UNITS = 5  # fewer independent units decide nothing
LEAST_P = 1e-12  # smaller values of p are given as this one


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim, judged by a rule that was written before the experiment was run.

    claim: what is claimed, a sentence; conditions follow after a semicolon.
    origin: whose claim it is. `paper`: the paper's, under conditions that it speaks of. `extension`: the paper's, under
        conditions that it does not speak of. `reconstruction`: ours of a claim that the paper makes. `ours`.
    statement: id in theory.claims of the statement that is tested; None where the claim is about no statement.
    statistic: what was measured to test it, with its unit.
    estimate: value of the statistic.
    interval: 95 % interval of the statistic, of a prediction the one predicted [theory.trend]; None where the data
        bound nothing (a ratio whose denominator may be zero).
    n: how many independent units (noise draws, seeds, documents) the interval rests on, the fewer of two directions;
        None where nothing is random, and for a prediction.
    rule: when the claim holds and when it fails, in words.
    family: which question the finding answers together with others of the exhibit.
    p: smallest level at which the finding's interval decides; 1 where none does.
    alone: verdict of the 95 % interval by itself.
    verdict: verdict in the family, given by `Result`; that of the interval by itself until then.
    exploratory: True where the rule was written, or chosen, after data that it judges had been seen.
    """

    claim: str
    origin: Origin
    statement: str | None = None
    statistic: str
    estimate: float
    interval: Interval | None
    n: int | None
    rule: str
    family: str
    p: float
    alone: Verdict
    verdict: Verdict
    exploratory: bool = False

    def __post_init__(self) -> None:
        for name in ("claim", "statistic", "rule", "family"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"finding.{name} is {value!r}: write a sentence")
        if self.origin not in get_args(Origin):
            raise InputError(f"finding.origin is {self.origin!r}: give one of {', '.join(get_args(Origin))}")
        if self.statement is not None and (not isinstance(self.statement, str) or not self.statement):
            raise InputError(f"finding.statement is {self.statement!r}: give the id of a claim, or None")
        for name in ("estimate", "p"):
            object.__setattr__(self, name, number(getattr(self, name), f"finding.{name}"))
        if not 0 <= self.p <= 1:
            raise InputError(f"finding.p is {self.p}: give a probability")
        if self.n is not None and (not is_whole(self.n) or self.n < 1):
            raise InputError(f"finding.n is {self.n!r}: give a whole number of at least 1, or None")
        if not isinstance(self.exploratory, bool):
            raise InputError(f"finding.exploratory is {self.exploratory!r}: give true or false")
        for name in ("alone", "verdict"):
            value = getattr(self, name)
            if value not in get_args(Verdict):
                raise InputError(f"finding.{name} is {value!r}: give one of {', '.join(get_args(Verdict))}")
        if self.verdict not in (self.alone, "inconclusive"):
            raise InputError(f"finding.verdict is {self.verdict!r}, but alone {self.alone!r}: give that one")
        if self.interval is None:
            if self.alone != "inconclusive":
                raise InputError(f"finding.alone is {self.alone!r} without an interval: give inconclusive")
            return
        if not isinstance(self.interval, Sequence) or len(self.interval) != 2:
            raise InputError(f"finding.interval is {self.interval!r}: give (low, high) or None")
        low, high = (number(bound, "finding.interval") for bound in self.interval)
        if low > high:
            raise InputError(f"finding.interval is ({low}, {high}): the low end comes first")
        object.__setattr__(self, "interval", (low, high))

    @property
    def measured(self) -> str:
        """The statistic with its estimate and interval, as tables show it."""
        interval = "unbounded" if self.interval is None else "{:.4g}, {:.4g}".format(*self.interval)
        return f"{self.statistic}: {self.estimate:.4g} [{interval}]"

    @property
    def too_few(self) -> bool:
        """True if there are too few units for any verdict."""
        return self.n is not None and self.n < LEAST_UNITS

    @property
    def reason(self) -> str:
        """Why the verdict is not that of the interval alone; empty where it is."""
        if self.verdict == self.alone:
            return ""
        if self.too_few:
            return f"{self.n} units: a verdict needs {LEAST_UNITS}"
        return f"p = {self.p:.2g} does not survive Holm's correction in its family"


def decided(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings with their verdicts in their families, by Holm's correction [Scand. J. Statist. 6 (1979), 65-70].

    In the order of p, the k-th of N findings of a family keeps the verdict of its interval if p <= LEVEL/(N - k + 1)
    and all before it kept theirs; all others are inconclusive. Findings of too few units are inconclusive, and do not
    count in N.
    """
    verdicts: list[Verdict] = ["inconclusive"] * len(findings)
    for family in dict.fromkeys(each.family for each in findings):
        members = [index for index, each in enumerate(findings) if each.family == family and not each.too_few]
        members.sort(key=lambda index: findings[index].p)
        for rank, index in enumerate(members):
            if findings[index].p > LEVEL / (len(members) - rank):
                break
            verdicts[index] = findings[index].alone
    return tuple(replace(each, verdict=verdict) for each, verdict in zip(findings, verdicts, strict=True))


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that a picture is drawn from: numbers, findings, and where they come from.

    exhibit, preset: names as the command line has them ("figure-3", "full"), which fills them in.
    data: what the drawing needs, of JSON types (tuples become lists), with every number finite.
    findings: their verdicts are those of `decided`, whatever they were.
    provenance: the environment that produced the result; the command line adds to what is here.
    """

    exhibit: str = ""
    preset: str = ""
    data: dict[str, Any]
    findings: tuple[Finding, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("exhibit", "preset"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"result.{name} is {getattr(self, name)!r}: give a name")
        for name in ("data", "provenance"):
            if not isinstance(getattr(self, name), dict):
                raise InputError(f"result.{name} is {getattr(self, name)!r}: give a dict")
            object.__setattr__(self, name, plain(getattr(self, name), f"result.{name}"))
        object.__setattr__(self, "findings", tuple(self.findings))
        for index, finding in enumerate(self.findings):
            if not isinstance(finding, Finding):
                raise InputError(f"result.findings[{index}] is a {type(finding).__name__}: give a Finding")
        object.__setattr__(self, "findings", decided(self.findings))

    def to_json(self) -> str:
        return dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str = "result") -> "Result":
        """The result written by `to_json`; InputError naming `source` and the field for anything else."""
        try:
            content = fields_of(cls, loads(text), "result")
            if not isinstance(content["findings"], list):
                raise InputError("result.findings has to be a list")
            content["findings"] = [
                Finding(**fields_of(Finding, finding, f"result.findings[{index}]"))
                for index, finding in enumerate(content["findings"])
            ]
            result = cls(**content)
            for index, (read, judged_now) in enumerate(
                zip(content["findings"], result.findings, strict=True)
            ):
                if read.verdict != judged_now.verdict:
                    raise InputError(
                        f"result.findings[{index}].verdict is {read.verdict!r},"
                        f" but {judged_now.verdict!r} in its family"
                    )
            return result
        except InputError as error:
            raise InputError(f"{source}: {error}; restore the file or run the exhibit again") from None


def mean_interval(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean of independent samples of shape (n,), n >= 2."""
    values = _table(samples, ("samples",))
    centre, half = values.mean(), math.sqrt(values.var(ddof=1) / values.size)
    half *= student_quantile(values.size - 1, confidence)
    return float(centre - half), float(centre + half)


def interval_of_mean(estimates: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval for the plain mean of independent estimates: half widths are added in quadrature.

    It covers for the same reason as `two_way_interval` does.
    """
    half = math.hypot(*(high - mean for mean, (_, high) in zip(estimates, intervals, strict=True)))
    centre, half = float(np.mean(estimates)), half / len(estimates)
    return centre - half, centre + half


def two_way_interval(table: ArrayLike, confidence: float = 0.95) -> Interval:
    """Interval for the mean of a (draws, blocks) table, over new draws and new blocks together.

    Under y = mean + draw + block + rest, the variance of the grand mean is at most V_draws + V_blocks, the
    variances of the mean of the draws' means and of the blocks' means, and the half width is
    sqrt(t_draws^2 s_draws^2 + t_blocks^2 s_blocks^2), s^2 being their estimates and t their own t quantiles.
    For normal effects of whatever sizes it covers with probability at least `confidence`: P(z^2 <= x) is
    concave in x, and each term alone covers exactly [Banerjee, Sankhya 22 (1960), 357-358]. It is exact when
    draws or blocks alone matter; Satterthwaite's degrees of freedom would fall short for few draws.
    """
    values = _table(table, ("draws", "blocks"))
    centre, half = values.mean(), math.sqrt(_squared_half_width(values, values, confidence))
    return float(centre - half), float(centre + half)


def ratio_interval(numerator: ArrayLike, denominator: ArrayLike, confidence: float = 0.95) -> Interval | None:
    """Interval for mean(numerator) / mean(denominator), (draws, blocks) tables of the same draws and blocks.

    Fieller's interval: the ratios r for which the two-way interval of numerator - r * denominator contains 0. They lie
    between the roots of a quadratic. None if the denominator's own interval contains 0, as the ratio is then unbounded.
    """
    above, below = _table(numerator, ("draws", "blocks")), _table(denominator, ("draws", "blocks"))
    if above.shape != below.shape:
        raise InputError(
            f"numerator {above.shape} and denominator {below.shape}: pair the same draws and blocks"
        )
    quadratic = below.mean() ** 2 - _squared_half_width(below, below, confidence)
    linear = above.mean() * below.mean() - _squared_half_width(above, below, confidence)
    constant = above.mean() ** 2 - _squared_half_width(above, above, confidence)
    if quadratic <= 0:
        return None
    # Negative by rounding only: the estimate itself satisfies the inequality.
    root = math.sqrt(max(linear**2 - quadratic * constant, 0.0))
    return float((linear - root) / quadratic), float((linear + root) / quadratic)


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Clopper and Pearson's exact interval for a probability, from a binomial count [Biometrika 26 (1934), 404-413]."""
    if not is_whole(successes) or not is_whole(trials) or not 0 <= successes <= trials or trials < 1:
        raise InputError(f"{successes!r} of {trials!r}: give whole numbers, successes of at least 1 trial")
    _check_confidence(confidence)
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    low = float(betaincinv(successes, trials - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, trials - successes, 1 - tail)) if successes < trials else 1.0
    return low, high


def geometric_interval(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval on the log scale for the geometric mean of independent positive samples (n,), n >= 2."""
    low, high = mean_interval(np.log(_positive(samples)), confidence)
    return math.exp(low), math.exp(min(high, math.log(sys.float_info.max)))


def geometric_mean(samples: ArrayLike) -> float:
    """Geometric mean of positive samples (n,)."""
    return math.exp(float(np.log(_positive(samples)).mean()))


def correlation_mean(samples: ArrayLike) -> float:
    """Mean on Fisher's scale, tanh(mean(atanh r)), of correlations (n,) inside (-1, 1)."""
    return math.tanh(float(np.arctanh(_correlations(samples)).mean()))


def correlation_mean_interval(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval on Fisher's scale for `correlation_mean`; it lies inside (-1, 1)."""
    low, high = mean_interval(np.arctanh(_correlations(samples)), confidence)
    return math.tanh(low), math.tanh(high)


def grouped(values: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """Values of blocks (..., blocks) as values of groups of blocks (..., groups), which are the independent units.

    groups: (blocks,), a label for each block.

    The mean over groups is the mean over blocks, and the variance over groups is the cluster-robust one: with e_g the
    sum in group g of the differences from the mean of all B blocks, a group's value is that mean + groups/B e_g. The
    map is linear, so that differences and ratios of tables stay what they are.
    """
    table, labels = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if labels.shape != table.shape[-1:]:
        raise InputError(f"groups {labels.shape}: give one label for each of the {table.shape[-1]} blocks")
    member = (labels[:, None] == np.unique(labels)).astype(np.float64)
    mean = table.mean(-1, keepdims=True)
    units: NDArray[np.float64] = mean + member.shape[1] / len(labels) * ((table - mean) @ member)
    return units


def averaged(tables: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(draws, units of all tables): one table whose mean is the plain mean of the means of several.

    tables: (draws, units) each, of the same draws and of units of their own.

    The `two_way_interval` adds in quadrature the half widths over draws, which the tables share (other noise may be
    worse for all), and over the units of each table. The result is linear in the values, so that differences and ratios
    of such tables are differences and ratios of means. Of one table alone it has the mean and the interval.
    """
    total = sum(each.shape[1] for each in tables)

    def half_width(units: int) -> float:
        """Half width of the interval of a mean, in units of the root of the sum of squares."""
        return student_quantile(units - 1) / math.sqrt(units * (units - 1))

    columns = [
        half_width(each.shape[1]) / half_width(total) / len(tables) * (each.mean(0) - each.mean())
        for each in tables
    ]
    rows: NDArray[np.float64] = np.mean([each.mean(1) for each in tables], axis=0)
    return rows[:, None] + np.concatenate(columns)


def verdict(interval: Interval | None, threshold: float, direction: Direction) -> Verdict:
    """Verdict on a quantity being above (below) the threshold, inconclusive if the interval is not on one side."""
    if direction not in get_args(Direction):
        raise InputError(f"direction is {direction!r}: give one of {', '.join(get_args(Direction))}")
    if interval is None or interval[0] <= threshold <= interval[1]:
        return "inconclusive"
    return "holds" if (interval[0] > threshold) == (direction == "above") else "fails"


def inside(interval: Interval | None, low: float, high: float) -> Verdict:
    """Verdict on a quantity being between low and high, which fails if the whole interval is outside on one side."""
    verdicts = verdict(interval, low, "above"), verdict(interval, high, "below")
    if "fails" in verdicts:
        return "fails"
    return "inconclusive" if "inconclusive" in verdicts else "holds"


def judged(
    claim: str,
    statistic: str,
    estimate: float,
    interval: IntervalAt,
    n: int | None,
    threshold: float = 0.0,
    direction: Direction = "above",
    *,
    origin: Origin,
    family: str,
    statement: str | None = None,
    exploratory: bool = False,
) -> Finding:
    """The finding that a quantity is above (below) a threshold: one `verdict`, and the same rule in words."""
    other = "below" if direction == "above" else "above"
    return _finding(
        interval,
        lambda found: verdict(found, threshold, direction),
        claim=claim,
        origin=origin,
        statement=statement,
        statistic=statistic,
        estimate=estimate,
        n=n,
        rule=f"95 % interval {direction} {threshold:.3g}: holds; {other}: fails",
        family=family,
        exploratory=exploratory,
    )


def judged_inside(
    claim: str,
    statistic: str,
    estimate: float,
    interval: IntervalAt,
    n: int | None,
    low: float,
    high: float,
    *,
    origin: Origin,
    family: str,
    statement: str | None = None,
    exploratory: bool = False,
    words: str = "",
) -> Finding:
    """The finding that a quantity is between low and high: one verdict `inside`, and the same rule in words.

    words: the range as the rule names it, "between LOW and HIGH" if not given.
    """
    return _finding(
        interval,
        lambda found: inside(found, low, high),
        claim=claim,
        origin=origin,
        statement=statement,
        statistic=statistic,
        estimate=estimate,
        n=n,
        rule=f"95 % interval {words or f'between {low:.3g} and {high:.3g}'}: holds; outside: fails",
        family=family,
        exploratory=exploratory,
    )


def mean_finding(
    claim: str,
    statistic: str,
    samples: ArrayLike,
    threshold: float = 0.0,
    direction: Direction = "above",
    *,
    origin: Origin,
    family: str,
    statement: str | None = None,
    exploratory: bool = False,
    scale: Scale = "linear",
) -> Finding:
    """The finding that a mean is above (below) a threshold.

    samples: independent ones (n,), or a (draws, blocks) table, whose interval is the two-way one and n the
        smaller side.
    scale: on which the mean is taken and its interval is Student's; "log" (`geometric_mean`) and "fisher"
        (`correlation_mean`) take samples (n,) alone.
    """
    values = np.asarray(samples, dtype=np.float64)
    return judged(
        claim,
        statistic,
        mean_of(values, scale),
        interval_of(values, scale),
        min(values.shape),
        threshold,
        direction,
        origin=origin,
        family=family,
        statement=statement,
        exploratory=exploratory,
    )


def mean_within(
    claim: str,
    statistic: str,
    samples: ArrayLike,
    centre: float,
    margin: float,
    *,
    origin: Origin,
    family: str,
    statement: str | None = None,
    exploratory: bool = False,
    scale: Scale = "linear",
    words: str = "",
) -> Finding:
    """The finding that a mean is within a margin of a centre.

    samples, scale: as `mean_finding` takes them.
    words: the range as the rule names it, "within MARGIN of CENTRE" if not given.
    """
    values = np.asarray(samples, dtype=np.float64)
    return judged_inside(
        claim,
        statistic,
        mean_of(values, scale),
        interval_of(values, scale),
        min(values.shape),
        centre - margin,
        centre + margin,
        origin=origin,
        family=family,
        statement=statement,
        exploratory=exploratory,
        words=words or f"within {margin:g} of {centre:g}",
    )


def mean_of(samples: ArrayLike, scale: Scale = "linear") -> float:
    """The mean of samples on a scale."""
    values = np.asarray(samples, dtype=np.float64)
    if scale == "linear":
        return float(values.mean())
    return (geometric_mean if scale == "log" else correlation_mean)(values)


def interval_of(samples: ArrayLike, scale: Scale = "linear") -> IntervalAt:
    """The interval for `mean_of` samples (n,), or for the mean of a (draws, blocks) table, at each confidence."""
    values = np.asarray(samples, dtype=np.float64)
    if scale == "linear":
        return partial(two_way_interval if values.ndim == 2 else mean_interval, values)
    return partial(geometric_interval if scale == "log" else correlation_mean_interval, values)


def certain(value: float) -> IntervalAt:
    """The interval of a number that nothing random is in."""
    return lambda confidence: (value, value)


def deciding_level(interval: IntervalAt, judge: Callable[[Interval | None], Verdict]) -> float:
    """The smallest level at which the interval of confidence 1 - level decides: the p-value of the finding.

    Raises no error: LEAST_P stands for all smaller values, and 1 where no level decides.
    """

    def decides(log_level: float) -> bool:
        return judge(interval(1 - math.exp(log_level))) != "inconclusive"

    low, high = math.log(LEAST_P), math.log(0.999)
    if decides(low):
        return LEAST_P
    if not decides(high):
        return 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if decides(middle) else (middle, high)
    return math.exp(high)


def _finding(interval: IntervalAt, judge: Callable[[Interval | None], Verdict], **fields: Any) -> Finding:
    """The finding that `judge` makes of an interval. Random samples without any spread decide nothing."""
    found = interval(1 - LEVEL)
    alone = judge(found)
    p = deciding_level(interval, judge)
    if fields["n"] is not None and found is not None and found[0] == found[1]:
        alone, p = "inconclusive", 1.0
    return Finding(interval=found, p=p, alone=alone, verdict=alone, **fields)


def balanced_accuracy(predicted: NDArray[np.bool_], actual: NDArray[np.bool_]) -> float:
    """Balanced accuracy: mean recall over the classes that occur."""
    return float(
        np.mean(
            [(predicted[actual == side] == side).mean() for side in (True, False) if (actual == side).any()]
        )
    )


def best_threshold(
    values: NDArray[np.float64], actual: NDArray[np.bool_], both_sides: bool = False
) -> tuple[float, float, int]:
    """Balanced accuracy, threshold and side of the best rule "positive where side * value >= side * threshold".

    values, actual: (n,).
    both_sides: True to try the side -1 too, not the side 1 alone.

    Thresholds lie between every two neighbouring values. The largest wins among equals. InputError if all values are
    alike.
    """
    ordered = np.unique(values)
    if len(ordered) < 2:
        raise InputError(f"{len(values)} values, all alike: a threshold needs two that differ")
    return max(
        (balanced_accuracy(side * values >= side * threshold, actual), float(threshold), side)
        for side in ((1, -1) if both_sides else (1,))
        for threshold in (ordered[1:] + ordered[:-1]) / 2
    )


def _squared_half_width(first: NDArray[np.float64], second: NDArray[np.float64], confidence: float) -> float:
    """The bilinear form whose diagonal is the squared half width of the two-way interval."""
    total = 0.0
    for axis, units in enumerate(first.shape):
        mine, yours = first.mean(axis=1 - axis), second.mean(axis=1 - axis)
        covariance = ((mine - mine.mean()) * (yours - yours.mean())).sum() / (units - 1)
        total += student_quantile(units - 1, confidence) ** 2 * covariance / units
    return total


def student_quantile(degrees: int, confidence: float = 0.95) -> float:
    """Half the width of Student's interval for a mean, in standard errors."""
    _check_confidence(confidence)
    from scipy.special import stdtrit  # takes longer to import than all else here, and most callers only read

    return float(stdtrit(degrees, (1 + confidence) / 2))


def _table(values: ArrayLike, axes: tuple[str, ...]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(axes):
        raise InputError(f"values of shape {array.shape}: give ({', '.join(axes)})")
    for name, size in zip(axes, array.shape, strict=True):
        if size < 2:
            raise InputError(f"{name}: {size} given, but a confidence interval needs at least 2")
    if not np.isfinite(array).all():
        raise InputError(f"{' x '.join(axes)}: {int((~np.isfinite(array)).sum())} values are not finite")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: give a number between 0 and 1")


def _positive(samples: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if not (values > 0).all():
        raise InputError(
            f"samples: {int((~(values > 0)).sum())} are not positive, but their logarithm is asked for"
        )
    return values


def _correlations(samples: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if not (abs(values) < 1).all():
        raise InputError(
            f"samples: {int((~(abs(values) < 1)).sum())} correlations are not inside (-1, 1): bootstrap them"
        )
    return values
