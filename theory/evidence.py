"""What does an experiment conclude? Findings with intervals, the result that holds them, and how they are judged.

Every interval here is for a mean and rests on Student's t. A table of (draws, blocks) is a sample in two
crossed directions, noise draws and text blocks: a conclusion has to survive other draws *and* other text, so
its interval counts both sources of variation.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from theory.errors import InputError
from theory.strict_json import dumps, fields_of, is_whole, loads, number, plain

Interval = tuple[float, float]
Verdict = Literal["holds", "fails", "inconclusive"]
Direction = Literal["above", "below"]
Origin = Literal["paper", "reconstruction", "ours"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim, judged by a rule that was written before the experiment was run.

    claim: what is claimed, a sentence; conditions follow after a semicolon.
    origin: whose claim it is, `reconstruction` being ours of a claim that the paper makes.
    statement: id in theory.claims of the statement that is tested; None where the claim is about no statement.
    statistic: what was measured to test it, with its unit.
    estimate: value of the statistic.
    interval: confidence interval of the statistic; None where the data bound nothing (a ratio whose denominator may be
        zero), and the verdict is then inconclusive.
    n: how many independent units (noise draws, seeds) the interval rests on.
    rule: when the claim holds and when it fails, in words.
    """

    claim: str
    origin: Origin
    statement: str | None = None
    statistic: str
    estimate: float
    interval: Interval | None
    n: int
    rule: str
    verdict: Verdict

    def __post_init__(self) -> None:
        for name in ("claim", "statistic", "rule"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"finding.{name} is {value!r}: write a sentence")
        if self.origin not in get_args(Origin):
            raise InputError(f"finding.origin is {self.origin!r}: give one of {', '.join(get_args(Origin))}")
        if self.statement is not None and (not isinstance(self.statement, str) or not self.statement):
            raise InputError(f"finding.statement is {self.statement!r}: give the id of a claim, or None")
        object.__setattr__(self, "estimate", number(self.estimate, "finding.estimate"))
        if not is_whole(self.n) or self.n < 1:
            raise InputError(f"finding.n is {self.n!r}: give a whole number of at least 1")
        if self.verdict not in get_args(Verdict):
            raise InputError(
                f"finding.verdict is {self.verdict!r}: give one of {', '.join(get_args(Verdict))}"
            )
        if self.interval is None:
            if self.verdict != "inconclusive":
                raise InputError(
                    f"finding.verdict is {self.verdict!r} without an interval: give inconclusive"
                )
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


@dataclass(frozen=True, kw_only=True)
class Result:
    """All that a picture is drawn from: numbers, findings, and where they come from.

    exhibit, preset: names as the command line has them ("figure-3", "full"), which fills them in.
    data: what the drawing needs, of JSON types (tuples become lists), with every number finite.
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
            return cls(**content)
        except InputError as error:
            raise InputError(f"{source}: {error}; restore the file or run the exhibit again") from None


def seed_count(given: int | None, default: int, units: str) -> int:
    """Number of independent `units`: `--seeds` if given, else the preset's; InputError below 2."""
    count = default if given is None else given
    if count < 2:
        raise InputError(f"--seeds {count}: an interval needs at least 2 {units}")
    return count


def mean_interval(samples: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean of independent samples of shape (n,), n >= 2."""
    values = _table(samples, ("samples",))
    centre, half = values.mean(), math.sqrt(values.var(ddof=1) / values.size)
    half *= student_quantile(values.size - 1, confidence)
    return float(centre - half), float(centre + half)


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
    interval: Interval | None,
    n: int,
    threshold: float = 0.0,
    direction: Direction = "above",
    *,
    origin: Origin,
    statement: str | None = None,
) -> Finding:
    """The finding that a quantity is above (below) a threshold: one `verdict`, and the same rule in words."""
    other = "below" if direction == "above" else "above"
    return Finding(
        claim=claim,
        origin=origin,
        statement=statement,
        statistic=statistic,
        estimate=estimate,
        interval=interval,
        n=n,
        rule=f"95 % interval {direction} {threshold:.3g}: holds; {other}: fails",
        verdict=verdict(interval, threshold, direction),
    )


def mean_finding(
    claim: str,
    statistic: str,
    samples: ArrayLike,
    threshold: float = 0.0,
    direction: Direction = "above",
    *,
    origin: Origin,
    statement: str | None = None,
) -> Finding:
    """The finding that a mean is above (below) a threshold.

    samples: independent ones (n,), or a (draws, blocks) table, whose interval is the two-way one and n the draws.
    """
    values = np.asarray(samples, dtype=np.float64)
    interval = two_way_interval(values) if values.ndim == 2 else mean_interval(values)
    return judged(
        claim,
        statistic,
        float(values.mean()),
        interval,
        len(values),
        threshold,
        direction,
        origin=origin,
        statement=statement,
    )


def mean_within(
    claim: str,
    statistic: str,
    samples: ArrayLike,
    centre: float,
    margin: float,
    *,
    origin: Origin,
    statement: str | None = None,
    words: str = "",
) -> Finding:
    """The finding that the mean of independent samples (n,), n >= 2, is within a margin of a centre.

    words: the range as the rule names it, "within MARGIN of CENTRE" if not given.
    """
    values = _table(samples, ("samples",))
    interval = mean_interval(values)
    return Finding(
        claim=claim,
        origin=origin,
        statement=statement,
        statistic=statistic,
        estimate=float(values.mean()),
        interval=interval,
        n=values.size,
        rule=f"95 % interval {words or f'within {margin:g} of {centre:g}'}: holds; outside: fails",
        verdict=inside(interval, centre - margin, centre + margin),
    )


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
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: give a number between 0 and 1")
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
