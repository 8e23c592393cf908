"""How likely does training end in a gain? From initialisation and batches to the tolerance [E, docs/theory.md].

The setting is theory/setting.py with frozen specialised routers, tokens along the axes and the noise N(0, (c M_s)^2).
While no margin reaches 1, SGD on the hinge loss adds to each weight a sum over samples that depends on the routers
alone. EVENTS are all that may go wrong. Outside of them

- every frequent specialist has a larger MaxNNScore than every rare one (`Bounds.ranks`), and
- the tolerance with the frequent specialists digital is at least kappa rho times that of all analog (`Bounds.kappa`),

with a probability over initialisation, routers and batches of at least 1 - p (`Instance.p`). Sizes of weights are those
after `steps` steps. Formulas take numbers, symbols or balls.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache, reduce
from typing import NamedTuple

from scipy.special import ndtri

from theory.errors import InputError, require
from theory.functions import Q, Value, exp, log, minimum, pi, sqrt
from theory.growth import dead_probability, own_gate
from theory.moments import relu_third_moment, relu_variance
from theory.setting import Setting
from theory.strict_json import is_finite, is_whole
from theory.tolerance import BERRY_ESSEEN, FAILURE, OWN_SCORE, concentration, tolerable_noise

# What may go wrong, each with probability delta at most.
EVENTS = (
    "a router scores a token without a label above `score` in size",
    "a router scores fewer than the share `positive` of these tokens above 0",
    "an initial weight exceeds `initial` in size",
    "a share of active neurons of a kind and sign is outside `active` and 1 - `active`",
    "a count of samples of a kind and label is outside `class_counts`",
    "a weight on a token without a label rises to `other`",
    "one step lowers a weight on a token without a label by `step`",
    "a specialist of one kind learns the other kind's token beyond `leaked`",
)
OFFSETS = tuple(2.0 ** (-power / 2) for power in range(2, 30))  # tried for `Choice.offset`
SHRINK = 1 - 1e-9  # factor by which searched values stay inside of what is allowed, for balls to confirm


@dataclass(frozen=True)
class Instance:
    """A training that the theorem speaks of.

    setting: sizes, rarity and learning rate.
    batch, steps: samples of a step of SGD, and number of steps.
    delta: probability that is granted to each of EVENTS.
    init_std: standard deviation of the experts' initial weights.
    router_noise: standard deviation of the router's scores of tokens without a label.
    """

    setting: Setting
    batch: int
    steps: int
    delta: float = 0.005
    init_std: float = 1e-4
    router_noise: float = 0.3

    def __post_init__(self) -> None:
        whole, positive = "a whole number of at least 1", "a finite number above 0"
        checks = {
            "batch": (is_whole(self.batch) and self.batch >= 1, whole),
            "steps": (is_whole(self.steps) and self.steps >= 1, whole),
            "delta": (is_finite(self.delta) and 0 < self.delta < 1, "a number above 0 and below 1"),
            "init_std": (is_finite(self.init_std) and self.init_std > 0, positive),
            "router_noise": (is_finite(self.router_noise) and self.router_noise > 0, positive),
        }
        require(self, "instance", checks)
        if self.setting.n <= self.setting.l:
            raise InputError(
                f"setting.l is {self.setting.l}: the theorem needs fewer than the n = {self.setting.n} tokens there are"
            )

    @property
    def p(self) -> float:
        """Probability of any of EVENTS, or of a frequent specialist without an active neuron; 1 says nothing."""
        return min(1.0, float(failure_probability(self.setting.N_F, self.setting.m, self.delta)))


class Choice(NamedTuple):
    """Numbers that the proof may choose; every choice that `Bounds.allowed` accepts gives valid bounds.

    offset: largest |w . x|/(c M_s) of a frequent specialist on a rare input at which the noise is judged.
    quantile: mean of y f~ over its standard deviation there.
    """

    offset: float
    quantile: float


class Kind(NamedTuple):
    """Bounds on the specialists of one kind, at the end; upper bounds hold at every step up to there.

    own_low: least weight of an active neuron on the own token.
    own_high: largest size of a weight on the own token.
    leaked: largest size of a weight on the other kind's token.
    other: largest weight on a token without a label.
    active: least share of active neurons among the specialists of either sign; the largest is 1 - active.
    w_max: largest |w|.
    """

    own_low: Value
    own_high: Value
    leaked: Value
    other: Value
    active: Value
    w_max: Value


@dataclass(frozen=True)
class Bounds:
    """What holds outside of EVENTS.

    choice: the numbers chosen.
    score: largest size of a router's score of a token without a label.
    gate: least gate of a specialist's own token.
    positive: least share of the tokens without a label that a router scores above 0.
    leak: largest probability that a specialist selects the other kind's token from a sample that has it.
    initial: largest initial |w|.
    step: largest decrease of a weight on a token without a label in one step.
    frequent, rare: bounds on the specialists.
    most_margin: largest margin of any input at any step; growth is linear while it is below 1.
    rare_norm: largest norm of a rare specialist's neuron.
    margin: least margin of any input, at the end.
    floor: noise magnitude up to which both kinds keep an accuracy of .95, frequent specialists digital.
    ceiling: noise magnitude above which rare inputs do not, all analog.
    error: largest Berry-Esseen error of `ceiling`.
    separate: True if routers score the own token above every other, so far that it takes most of their gates.
    allowed: True if the choice is allowed.
    rho: ratio of frequencies.
    """

    choice: Choice
    score: Value
    gate: Value
    positive: Value
    leak: Value
    initial: Value
    step: Value
    frequent: Kind
    rare: Kind
    most_margin: Value
    rare_norm: Value
    margin: Value
    floor: Value
    ceiling: Value
    error: Value
    separate: bool
    allowed: bool
    rho: Value

    @property
    def linear(self) -> bool:
        """True if no margin reaches 1 and the routers find their own tokens: growth is that of (G)."""
        return bool(self.most_margin < 1) and self.separate

    @property
    def ranks(self) -> bool:
        """True if MaxNNScore ranks every frequent specialist above every rare one."""
        return self.linear and bool(self.rare_norm < self.frequent.own_low)

    @property
    def gain(self) -> Value:
        """Bound on the tolerance, frequent specialists digital, over that of all analog; 0 where nothing is proved."""
        proved = self.linear and self.allowed and bool(self.margin > 0)
        return self.floor / self.ceiling if proved else 0.0 * self.rho

    @property
    def kappa(self) -> Value:
        """kappa with a gain of at least kappa rho; 0 where nothing is proved."""
        return self.gain / self.rho


def bounds(instance: Instance) -> Bounds:
    """The bounds with the best choice found, in fp64; `evaluate` confirms them by balls."""
    found = []
    for offset in OFFSETS:
        trial = evaluate(instance, Choice(offset, 1.0))
        error = 2 * FAILURE + float(trial.error)
        if trial.margin > 0 and error < 0.5:
            quantile = -float(ndtri(error)) * SHRINK
            found.append(evaluate(instance, Choice(offset, quantile)))
    return min(found, key=lambda each: float(each.ceiling)) if found else trial


def evaluate(instance: Instance, choice: Choice, number: Callable[[float], Value] = float) -> Bounds:
    """The bounds of a choice.

    number: what turns floats into the numbers to calculate with, flint.arb for balls.
    """
    setting = instance.setting
    d, n, l, m = map(number, (setting.d, setting.n, setting.l, setting.m))  # noqa: E741
    N_F, N_R, alpha, eta = map(number, (setting.N_F, setting.N_R, setting.alpha, setting.eta))  # noqa: N806
    batch, steps, delta = map(number, (instance.batch, instance.steps, instance.delta))
    k = 2 * (N_F + N_R)
    score = _score(instance, number)
    largest_gate = own_gate(score, (l - 1) * exp(-score))
    gate = own_gate(number(OWN_SCORE), (l - 1) * exp(score))
    positive = _share(setting.d - 2, instance.delta / setting.experts, number)
    leak = binomial_tail(setting.n - 1, setting.l - 1, positive)
    initial = gaussian_size(number(instance.init_std), k * m * d, delta)
    rest = gate_rest(number(OWN_SCORE), score, l)
    unit = step_unit(eta, m, batch)  # what a sample with gate 1 adds to a weight
    step = unit * most_decrease(largest_gate, n, d, batch, log(steps * k * (d - 2) / delta))

    def kind(frequency: Value, specialists: int) -> Kind:
        low, high = class_counts(steps * batch, frequency, log(8 / delta))
        selected = steps * batch * (1 - frequency) * leak
        rise = steps * batch  # if every sample adds all that it can
        if rest < 1:
            rise = rise_size(k * (d - 2), delta, rise_exponent(frequency, rest))
        sizes = {
            "own_high": initial + unit * high,
            "leaked": initial + unit * largest_gate * (selected + deviation(selected, log(k / delta))),
            "other": initial + unit * rise,
        }
        active = _share(specialists * setting.m, instance.delta / 8, number)
        return Kind(own_low=unit * low * gate, active=active, w_max=_largest(step, *sizes.values()), **sizes)

    frequent = kind(1 - alpha, setting.N_F)
    rare = kind(alpha, setting.N_R)
    outputs = [
        most_output(count, 1 - each.active, gate, each.own_high, each.other)
        for count, each in ((N_F, frequent), (N_R, rare))
    ]
    against = N_F * frequent.other + N_R * rare.other
    margin = minimum(
        least_margin(N_F, frequent.active, gate, frequent.own_low, against),
        least_margin(N_R, rare.active, gate, rare.own_low, against),
    )
    # Frequent specialists on rare inputs: w . x is from -low to high.
    low, high = _largest(initial, step, frequent.leaked), _largest(frequent.leaked, frequent.other)
    variance = relu_variance(-number(choice.offset), number(1))
    third = relu_third_moment(number(choice.offset), number(1))
    sd = noise_sd(frequent.own_low, N_F, variance, l, m)
    error = BERRY_ESSEEN * (
        frequent_lyapunov(frequent.own_low, frequent.w_max, N_F, variance, third, l, m)
        + rare_lyapunov(rare.w_max, N_R, m, sd)
    )
    mean = most_mean(outputs[1], N_F * high, N_F + N_R, low)
    return Bounds(
        choice=choice,
        score=score,
        gate=gate,
        positive=positive,
        leak=leak,
        initial=initial,
        step=step,
        frequent=frequent,
        rare=rare,
        most_margin=_largest(
            outputs[0] + N_R * _largest(rare.leaked, rare.other),
            outputs[1] + N_F * _largest(frequent.leaked, frequent.other),
        ),
        rare_norm=sqrt(
            rare.own_high**2 + rare.leaked**2 + (d - 2) * _largest(initial, step, rare.other) ** 2
        ),
        margin=margin,
        floor=digital_floor(margin, rare.w_max, N_R, m, number(FAILURE)),
        ceiling=_largest(
            mean / (number(choice.quantile) * sd),
            _largest(low, high) / (number(choice.offset) * frequent.own_low),
        ),
        error=error,
        separate=bool(score < OWN_SCORE) and bool(rest < 1),
        allowed=choice.quantile > 0 and bool(Q(number(choice.quantile)) - error >= 2 * FAILURE),
        rho=(1 - alpha) / alpha,
    )


def longest(instance: Instance) -> int:
    """The largest number of steps for which growth is proved to be linear; 0 if there is none."""

    def linear(steps: int) -> bool:
        return steps == 0 or bounds(replace(instance, steps=steps)).linear

    low, high = 0, 1
    while linear(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if linear(middle) else (low, middle)
    return low


def failure_probability(specialists: Value, m: Value, delta: Value) -> Value:
    """p, the sum over EVENTS and over the 2 N_F frequent specialists that may have no active neuron   [E]."""
    return len(EVENTS) * delta + 2 * specialists * dead_probability(m)


def deviation(variance: Value, logarithm: Value) -> Value:
    """x with x^2/(2 (variance + x/3)) = logarithm: a sum exceeds x at any time this rarely   [E; Bernstein].

    variance: sum of the second moments of terms that are at most 1 and of mean at most 0.
    """
    return logarithm / 3 + sqrt((logarithm / 3) ** 2 + 2 * variance * logarithm)


def step_unit(eta: Value, m: Value, batch: Value) -> Value:
    """What a sample with a gate of 1 adds to the weight of an active neuron   [E, G]."""
    return eta / (m * batch)


def class_counts(samples: Value, frequency: Value, logarithm: Value) -> tuple[Value, Value]:
    """Bounds on the number of samples of one kind and label, of probability frequency/2   [E]."""
    mean = samples * frequency / 2
    return mean - deviation(mean, logarithm), mean + deviation(mean, logarithm)


def gaussian_size(std: Value, count: Value, delta: Value) -> Value:
    """A size that none of `count` normals of mean 0 exceeds, but with probability delta   [E]."""
    return std * concentration(delta / count)


def binomial_tail(trials: int, most: int, success: Value) -> Value:
    """P(at most `most` successes in `trials`)."""
    terms = (
        math.comb(trials, hits) * success**hits * (1 - success) ** (trials - hits) for hits in range(most + 1)
    )
    return sum(terms)


@lru_cache
def least_successes(trials: int, delta: float) -> int:
    """The largest number that fair coins fall below with probability delta at most; exact."""
    allowed, below, count = Fraction(delta) * 2**trials, 0, 0
    while (below := below + math.comb(trials, count)) <= allowed:
        count += 1
    return count


def rise_size(count: Value, delta: Value, theta: Value) -> Value:
    """A size that none of `count` sums with E exp(theta x) <= 1 reaches, but with probability delta   [E; Ville]."""
    return log(count / delta) / theta


def rise_exponent(frequency: Value, rest: Value) -> Value:
    """theta with E exp(theta x) <= 1, x being what a sample adds to a weight on a token without a label   [E].

    frequency: of the expert's own kind.
    rest: what the own token leaves of the gate v that the token has where the own token is absent; below 1.

    A sample of the own kind adds rest v with the expert's sign and -v with the other; one of the other kind adds v with
    the one and -v with the other. The weight has a drift downwards, and what lifts it is bounded for all times.
    """
    return -log(1 - frequency * (1 - rest))


def gate_rest(own_score: Value, score: Value, l: Value) -> Value:  # noqa: E741
    """`rest` of `rise_exponent`, if scores of tokens without a label are at most `score` in size   [E]."""
    return l * exp(score - own_score)


def most_decrease(gate: Value, n: Value, d: Value, batch: Value, logarithm: Value) -> Value:
    """Bound on the gates that a batch adds up for a token without a label in samples of one label   [E].

    gate: largest gate of one copy of the token. A sample has n - 1 tokens out of d - 2, so several copies may occur.
    """
    first = gate * (n - 1) / (d - 2)
    second = gate * first * (1 + (n - 2) / (d - 2))
    return batch * first / 2 + deviation(batch * second / 2, logarithm)


def least_margin(specialists: Value, active: Value, gate: Value, own: Value, against: Value) -> Value:
    """Margin that `specialists` give, less what experts of the other sign output at most   [E]."""
    return specialists * active * gate * own - against


def most_output(specialists: Value, active: Value, gate: Value, own: Value, other: Value) -> Value:
    """Largest output of the specialists of a kind and sign for their own token and others   [E]."""
    return specialists * (active * own + (1 - gate) * other)


def most_mean(rare: Value, frequent: Value, experts: Value, low: Value) -> Value:
    """Bound on E y f~ for a rare input of the label that the biases c M_s/sqrt(2 pi) do not favour   [E].

    rare, frequent: largest outputs of the specialists of the label's sign.
    experts: number of experts of the other sign; each has w . x >= -low.
    """
    return rare + frequent + experts * low / 2


def digital_floor(margin: Value, w_max: Value, specialists: Value, m: Value, failure: Value) -> Value:
    """B with the frequent specialists digital: `specialists` of each sign with |w| <= w_max are analog   [E, B]."""
    return tolerable_noise(
        margin,
        specialists * w_max / sqrt(2 * pi(w_max)),
        w_max * sqrt(2 * specialists / m),
        concentration(failure),
    )


def noise_sd(own: Value, specialists: Value, variance: Value, l: Value, m: Value) -> Value:  # noqa: E741
    """Least standard deviation of y f~/c, of frequent specialists alone   [E]."""
    return own * sqrt(2 * specialists * variance / (l * m))


def frequent_lyapunov(
    own: Value,
    w_max: Value,
    specialists: Value,
    variance: Value,
    third: Value,
    l: Value,  # noqa: E741
    m: Value,
) -> Value:
    """Largest sum of third moments over sd^3 of the frequent specialists' terms   [E].

    own, w_max: least and largest w_max of a frequent specialist.
    variance, third: least variance and largest third moment of a term in units of c M_s G/m.
    """
    share = w_max / sqrt(w_max**2 + (2 * specialists - 1) * own**2 / l)
    return third / sqrt(variance) ** 3 * share / sqrt(m)


def rare_lyapunov(w_max: Value, specialists: Value, m: Value, sd: Value) -> Value:
    """Largest sum of third moments over sd^3 of the rare specialists' terms   [E; 8/sqrt(pi) as in Cor]."""
    return 8 / sqrt(pi(w_max)) * 2 * specialists * w_max**3 / m**2 / sd**3


def _score(instance: Instance, number: Callable[[float], Value]) -> Value:
    """The largest score of a token without a label, over all experts."""
    count = number(instance.setting.experts * (instance.setting.d - 2))
    return gaussian_size(number(instance.router_noise), count, number(instance.delta))


def _share(trials: int, delta: float, number: Callable[[float], Value]) -> Value:
    return number(least_successes(trials, delta)) / number(trials)


def _largest(*values: Value) -> Value:
    return -reduce(minimum, (-value for value in values))


_LARGE = Setting(d=128, n=32, l=1, m=128, N_F=3, N_R=1, alpha=0.1, eta=1.0)
_FOUR = replace(_LARGE, l=4, alpha=0.02)

# Instances of the theorem, with a kappa that balls confirm; None where no gain is proved. The first is the reference
# instance, up to the largest number of steps for which growth is proved to be linear.
INSTANCES: dict[str, tuple[Instance, float | None]] = {
    "reference": (Instance(Setting(), batch=1024, steps=29, delta=0.004), None),
    "rho 9": (Instance(_LARGE, batch=4096, steps=64, init_std=1e-6), 0.08),
    "rho 19": (Instance(replace(_LARGE, alpha=0.05), batch=16384, steps=64, init_std=1e-6), 0.075),
    "rho 49": (Instance(replace(_LARGE, alpha=0.02), batch=32768, steps=64, init_std=1e-6), 0.052),
    "rho 49, l = 4": (Instance(_FOUR, batch=32768, steps=64, init_std=1e-6), 0.022),
}
