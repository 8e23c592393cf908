"""What does the reproduction answer? Seven questions, each with numbers that are read from committed results.

No number and no verdict is typed here: a question names the findings that answer it, and their verdicts choose the
first word (`said`). A finding that cannot be found is an error.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable

from figures.catalogue import Exhibit, needed
from figures.shown import conditions, is_size
from theory.errors import InputError
from theory.evidence import Finding, Result

BASELINES = ("activation frequency", "activation weight", "router norm", "random")  # the paper's
BETTER_THAN = "MaxNNScore is better than "
DENSE_HURT_MORE = "dense modules on analog hurt more than 80-90 % of the experts;"
RECOVERS = "MaxNNScore recovers a third to more than a half of the loss;"
ON_THREE_TASKS = " on three tasks,"
DAMAGES = ("expected damage across layers", "expected damage with gradient across layers")
ANOTHER_RECIPE = " with another recipe"  # what families of figure-scale end with that are not about sizes
MUON = "olmoe-16m-muon"  # the size that another optimiser trained


@dataclass(frozen=True)
class Answer:
    """A question, its answer in one sentence, and the name of the exhibit that gives it."""

    question: str
    answer: str
    exhibit: str


def answers(exhibits: Sequence[Exhibit], data: Traversable) -> list[Answer]:
    """The answers, without those whose exhibits are not all among `exhibits`.

    Raises InputError where `data` lacks a result, or a result lacks a finding that an answer rests on.
    """
    known = {exhibit.name: exhibit for exhibit in exhibits}
    return [
        Answer(question, answer(*(needed(known[name], data) for name in names)), names[0])
        for question, names, answer in QUESTIONS
        if known.keys() >= set(names)
    ]


def said(findings: Sequence[Finding]) -> str:
    """The verdicts in one word: Yes, Mostly (more than half hold), Partly, No (all fail), or Open (none holds)."""
    verdicts = Counter(finding.verdict for finding in findings)
    if verdicts["holds"] == len(findings):
        return "Yes"
    if verdicts["holds"]:
        return "Mostly" if 2 * verdicts["holds"] > len(findings) else "Partly"
    return "No" if verdicts["fails"] == len(findings) else "Open"


def held(findings: Sequence[Finding]) -> str:
    """How many of the findings hold, in words: `3 of 4 comparisons`."""
    return f"{_held(findings)} comparisons"


def _held(findings: Sequence[Finding]) -> str:
    return f"{sum(finding.verdict == 'holds' for finding in findings)} of {len(findings)}"


def starting(start: str, *results: Result) -> list[Finding]:
    """All findings whose claim starts with `start`; InputError if a result has none."""
    found = []
    for result in results:
        own = [finding for finding in result.findings if finding.claim.startswith(start)]
        if not own:
            raise InputError(f"{result.exhibit}: no finding claims {start!r}; mend what asks for it")
        found += own
    return found


def only(claim: str, result: Result) -> Finding:
    """The finding of exactly this claim; InputError unless there is one."""
    found = [finding for finding in result.findings if finding.claim == claim]
    if len(found) != 1:
        raise InputError(f"{result.exhibit}: {len(found)} findings claim {claim!r}; mend what asks for it")
    return found[0]


def sizes(result: Result) -> str:
    """The sizes of the ladder that were measured, smallest first, each with its parameters and trainings."""
    trained = Counter(
        (model["parameters"], model["rung"])
        for model in result.data["models"]
        if model["rung"] is not None and is_size(model["rung"])
    )
    return ", ".join(
        f"`{rung}` ({parameters / 1e6:.1f}M, {count})"
        for (parameters, rung), count in sorted(trained.items())
    )


def by_size(findings: Sequence[Finding]) -> str:
    """How many findings of `scale` hold: `4 of 4 comparisons over 5 trainings of olmoe-4m`.

    Of several sizes: `7 of 8 comparisons over 10 trainings of 2 sizes`.
    """
    found: dict[str, list[Finding]] = {}
    for finding in findings:
        found.setdefault(conditions(finding).partition(",")[0], []).append(finding)
    trainings = sum(max(finding.n or 0 for finding in own) for own in found.values())
    which = next(iter(found)) if len(found) == 1 else f"{len(found)} sizes"
    return f"{held(findings)} over {trainings} trainings of {which}"


def of_sizes(start: str, ladder: Result) -> list[Finding]:
    """The findings of `scale` that claim so of a size, without those of another recipe."""
    return [finding for finding in starting(start, ladder) if not finding.family.endswith(ANOTHER_RECIPE)]


def _under_muon(starts: Iterable[str], ladder: Result) -> str:
    """How many findings hold of the models of `scale` that Muon trained; nothing where none was measured."""
    found = [
        each for start in starts for each in starting(start, ladder) if conditions(each).startswith(MUON)
    ]
    return f"; with Muon {_held(found)}" if found else ""


def _between(findings: Sequence[Finding]) -> str:
    """Smallest and largest estimate."""
    estimates = [finding.estimate for finding in findings]
    return f"{min(estimates):.2f} to {max(estimates):.2f}"


def _dense(ladder: Result, losses: Result, tasks: Result, small: Result) -> str:
    judged = of_sizes(DENSE_HURT_MORE, ladder)
    times = [
        each.estimate for each in starting("a dense parameter on analog costs more than an expert's;", losses)
    ]
    pretrained, shipped, accuracy = (
        _held(starting(DENSE_HURT_MORE, result)) for result in (losses, small, tasks)
    )
    return (
        f"{said(judged)}: in {by_size(judged)}, by {_between(judged)} nats per token; smol-moe {pretrained},"
        f" tiny-olmoe {shipped}. On smol-moe a dense parameter costs {min(times):.1f} to {max(times):.1f} times an"
        f" expert's; in accuracy on tasks {accuracy}."
    )


def _against_baselines(*results: Result) -> list[Finding]:
    return [finding for name in BASELINES for finding in starting(f"{BETTER_THAN}{name};", *results)]


def _opponents(findings: Sequence[Finding]) -> str:
    """What MaxNNScore is compared with in these findings."""
    return " and ".join(
        dict.fromkeys(finding.claim.removeprefix(BETTER_THAN).partition(";")[0] for finding in findings)
    )


def _baselines(ladder: Result, losses: Result, tasks: Result, *small: Result) -> str:
    judged = [finding for name in BASELINES for finding in of_sizes(f"{BETTER_THAN}{name};", ladder)]
    own = _against_baselines(*small)
    below = [finding for finding in judged if finding.estimate < 0]
    worse = [finding for finding in own if finding.verdict == "fails"]
    known = tuple(finding for finding in tasks.findings if ON_THREE_TASKS in finding.claim)
    accuracy = _held(_against_baselines(replace(tasks, findings=known)))
    return (
        f"{said(judged)}: in {by_size(judged)}, giving back {_between(of_sizes(RECOVERS, ladder))} of the loss"
        + (f"; {_opponents(below)} estimated better in {len(below)}" if below else "")
        + _under_muon((f"{BETTER_THAN}{name};" for name in BASELINES), ladder)
        + f". smol-moe: {_held(_against_baselines(losses))} ({_between(starting(RECOVERS, losses))}); accuracy on"
        f" three tasks {accuracy}. Shipped models: {_held(own)}"
        + (f", {_opponents(worse)} better in {len(worse)}." if worse else ".")
    )


def _in_setting(result: Result) -> str:
    judged = starting("digital frequent experts multiply the tolerated noise by Theta(rho)", result)
    slope = max((finding.estimate for finding in judged), key=lambda slope: abs(slope - 1))
    return (
        f"{said(judged)}: with frequent experts digital, the tolerated noise grows with the ratio of frequencies rho as"
        f" sqrt(1 + (g rho)^2), g by theory: the log-log slope is {slope:.2f} at worst."
    )


def _theorem(result: Result) -> str:
    start = "the gain is at least kappa rho with probability 1 - p"
    judged = starting(start, result)
    gains = [row["name"] for row in result.data["instances"] if (row["promised"] or 0) > 1]
    loose = [
        finding
        for finding in starting("the proved gain is loose", result)
        if finding.claim.rpartition("; ")[2] in gains
    ]
    times = sorted(finding.estimate for finding in loose)
    trainings = min(finding.n or 0 for finding in judged)
    return (
        f"{said(judged)}: in {len(judged)} instances, {trainings} fresh trainings each. In {len(gains)} the proved gain"
        f" is above 1, the measured one {times[0]:.1f} to {times[-1]:.1f} times larger."
    )


def _outside(result: Result) -> str:
    judged = [
        finding
        for finding in starting("norms have the ratio of frequencies;", result)
        if finding.origin == "extension"
    ]
    adamw = only("norms have the ratio of frequencies; adamw, expert choice, stop rule", result)
    return (
        f"{said(judged)}: in {held(judged)}. With AdamW the ratio of norms is {adamw.estimate:.2f} of that of"
        " frequencies."
    )


def _better_score(ladder: Result, rivals: Result, pretrained: Result, *small: Result) -> str:
    judged = [finding for score in DAMAGES for finding in of_sizes(f"{score} is better than ", ladder)]
    own, shipped = (
        [each for score in DAMAGES for each in starting(f"{score} loses less than MaxNNScore;", *results)]
        for results in ([pretrained], small)
    )
    others = [
        finding
        for name in ("MSAN", "MC")
        for finding in starting(f"MaxNNScore loses less than {name};", rivals)
    ]
    worse = sum(finding.verdict == "fails" for finding in others)
    alone = sum(finding.alone == "holds" for finding in judged)
    return (
        f"{said(judged)}: expected damage over all layers beats MaxNNScore and activation weight, by"
        f" {_between(judged)} of the loss: alone in {alone} of {len(judged)}, corrected in"
        f" {by_size(judged)}{_under_muon((f'{score} is better than ' for score in DAMAGES), ladder)}. It beats"
        f" MaxNNScore on smol-moe in {_held(own)}, as MSAN and MC do in"
        f" {worse} of {len(others)}; on shipped models in {_held(shipped)}."
    )


def _peers(result: Result) -> str:
    judged = [
        *starting("aihwkit finds what ours finds: ", result),
        *starting("lightning finds what ours finds: ", result),
    ]
    relative = [
        abs(finding.estimate) for finding in judged if finding.statistic.endswith("/ loss increase on ours")
    ]
    if not relative:
        raise InputError(f"{result.exhibit}: no finding is relative to ours; mend what asks for it")
    return (
        f"{said(judged)}: on tiny-olmoe in {held(judged)}."
        f" Loss increases differ by at most {100 * max(relative):.1f} %."
    )


# Question, the exhibits that answer it, and how: a function of their results.
QUESTIONS: tuple[tuple[str, tuple[str, ...], Callable[..., str]], ...] = (
    (
        "Do the dense modules hurt more on analog hardware than most experts?",
        ("figure-scale", "figure-3-smol-moe", "figure-smol-moe", "figure-3"),
        _dense,
    ),
    (
        "Does MaxNNScore choose better than the baselines?",
        ("figure-scale", "figure-4-smol-moe", "figure-smol-moe", "figure-4", "figure-5"),
        _baselines,
    ),
    ("Is the theory right in its own setting?", ("figure-tolerance",), _in_setting),
    ("Does a theorem lead from training to tolerance, and does it hold?", ("figure-end-to-end",), _theorem),
    ("Do norms follow frequency outside of it?", ("figure-stress",), _outside),
    (
        "Is there a better score?",
        (
            "figure-scale",
            "figure-rivals-smol-moe",
            "figure-better-score-smol-moe",
            "figure-better-score",
            "figure-better-score-deepseek",
        ),
        _better_score,
    ),
    ("Do IBM's simulators agree with ours?", ("figure-peers",), _peers),
)
