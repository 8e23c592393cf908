"""What does the reproduction answer? Seven questions, each with numbers that are read from committed results.

No number and no verdict is typed here: a question names the findings that answer it, and their verdicts choose the
first word (`said`). A finding that cannot be found is an error.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable

from figures.catalogue import Exhibit, needed
from theory.errors import InputError
from theory.evidence import Finding, Result

BASELINES = ("activation frequency", "activation weight", "router norm", "random")  # the paper's
BETTER_THAN = "MaxNNScore is better than "
DENSE_HURT_MORE = "dense modules on analog hurt more than 80-90 % of the experts;"
ON_THREE_TASKS = " on three tasks,"


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
    return f"{sum(finding.verdict == 'holds' for finding in findings)} of {len(findings)} comparisons"


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


def _dense(losses: Result, tasks: Result, small: Result) -> str:
    judged, own = starting(DENSE_HURT_MORE, losses), starting(DENSE_HURT_MORE, small)
    times = [
        each.estimate for each in starting("a dense parameter on analog costs more than an expert's;", losses)
    ]
    return (
        f"{said(judged)}: in loss, in {held(judged)} on smol-moe, made of a pretrained model, and in {held(own)} on"
        f" tiny-olmoe. On smol-moe a dense parameter costs {min(times):.1f} to {max(times):.1f} times an expert's. In"
        f" accuracy on the paper's tasks: in {held(starting(DENSE_HURT_MORE, tasks))}."
    )


def _against_baselines(*results: Result) -> list[Finding]:
    return [finding for name in BASELINES for finding in starting(f"{BETTER_THAN}{name};", *results)]


def _baselines(losses: Result, tasks: Result, *small: Result) -> str:
    judged, own = _against_baselines(losses), _against_baselines(*small)
    failing = [finding for finding in own if finding.verdict == "fails"]
    against = dict.fromkeys(finding.claim.removeprefix(BETTER_THAN).partition(";")[0] for finding in failing)
    rest = f", worse in {len(failing)}, against {' and '.join(against)}" if failing else ""
    known = tuple(finding for finding in tasks.findings if ON_THREE_TASKS in finding.claim)
    on_tasks = _against_baselines(replace(tasks, findings=known))
    above = sum(finding.estimate > 0 for finding in on_tasks)
    back = sorted(
        finding.estimate
        for finding in starting("MaxNNScore recovers a third to more than a half of the loss;", losses)
    )
    return (
        f"{said(judged)}: in loss, it is better in {held(judged)} on smol-moe, and gives back {back[0]:.2f} to"
        f" {back[-1]:.2f} of the loss; on tiny-olmoe and tiny-deepseek-moe better in {held(own)}{rest}. In accuracy, on"
        f" the three of the paper's tasks that smol-moe knows: in {held(on_tasks)}; {above} estimates are above."
    )


def _in_setting(result: Result) -> str:
    judged = starting("digital frequent experts multiply the tolerated noise by Theta(rho)", result)
    slope = max((finding.estimate for finding in judged), key=lambda slope: abs(slope - 1))
    return (
        f"{said(judged)}: digital frequent experts raise the tolerated noise with the ratio of frequencies rho, as"
        f" sqrt(1 + (g rho)^2), g by theory, within the rule's margin: the log-log slope is {slope:.2f} at worst."
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


def _better_score(rivals: Result, *results: Result) -> str:
    judged = starting("expected damage with gradient across layers loses less than MaxNNScore;", *results)
    most = max(-finding.estimate for finding in judged)
    others = [
        finding
        for name in ("MSAN", "MC")
        for finding in starting(f"MaxNNScore loses less than {name};", rivals)
    ]
    worse = sum(finding.verdict == "fails" for finding in others)
    least = sorted(finding.estimate for finding in others)
    return (
        f"{said(judged)}: expected damage over all layers, from a batch and its gradient, loses less than MaxNNScore"
        f" in each layer in {held(judged)} on tiny-olmoe and tiny-deepseek-moe, by up to {most:.3f} nats per token. On"
        f" smol-moe two scores of others, MSAN and MC, lose less in {worse} of {len(others)} (difference"
        f" {least[0]:.2f} to {least[-1]:.2f} nats)."
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
        f"{said(judged)}: on tiny-olmoe they agree in {held(judged)}."
        f" Loss increases differ by at most {100 * max(relative):.1f} %."
    )


# Question, the exhibits that answer it, and how: a function of their results.
QUESTIONS: tuple[tuple[str, tuple[str, ...], Callable[..., str]], ...] = (
    (
        "Do the dense modules hurt more on analog hardware than most experts?",
        ("figure-3-smol-moe", "figure-smol-moe", "figure-3"),
        _dense,
    ),
    (
        "Does MaxNNScore choose better than the baselines?",
        ("figure-4-smol-moe", "figure-smol-moe", "figure-4", "figure-5"),
        _baselines,
    ),
    ("Is the theory right in its own setting?", ("figure-tolerance",), _in_setting),
    ("Does a theorem lead from training to tolerance, and does it hold?", ("figure-end-to-end",), _theorem),
    ("Do norms follow frequency outside of it?", ("figure-stress",), _outside),
    (
        "Is there a better score?",
        ("figure-rivals-smol-moe", "figure-better-score", "figure-better-score-deepseek"),
        _better_score,
    ),
    ("Do IBM's simulators agree with ours?", ("figure-peers",), _peers),
)
