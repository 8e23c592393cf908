"""The command `plan`: which experts and dense modules of a model should be digital, within budgets?

`python paper_repro.py plan --model FOLDER --digital-parameters 10%` writes into --out:

placement.json  the placement, which `Placement.load` reads for this model alone
experts.csv     a row for each expert: layer, expert, score, expected damage (nats per token), MaxNNScore, load, digital
frontier.csv    the least loss increase that is predicted at shares of digital parameters
frontier.png    the same against share, energy and throughput; experts.png: score, load and choice of every expert
plan.json       everything, for --from
plan.html       a page for colleagues, which needs no other file
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures.files import keep_file
from figures.options import BUDGETS, flag, hardware_of, plan_parser
from figures.output import Steady, as_csv, check_places, output_folder
from theory.errors import InputError

if TYPE_CHECKING:
    from realmodels.plan_file import Plan

FILES = (
    "placement.json",
    "experts.csv",
    "frontier.csv",
    "frontier.png",
    "experts.png",
    "plan.json",
    "plan.html",
)
# Of digital parameters, in the table of the frontier.
SHARES = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0)


def command(argv: Sequence[str], program: str) -> int:
    """Run the command with these arguments and return its exit status; InputError for what is unusable."""
    options = plan_parser(program).parse_args(argv)
    if options.questions is not None and options.tasks is None:
        raise InputError("--questions: of which tasks? Give --tasks, such as paper or continuation")
    budgets = {name: _number(value) for name in BUDGETS if (value := getattr(options, name)) is not None}
    fields, line = hardware_of(options)
    out = output_folder(options.out)
    check_places(out, *FILES)

    from rich.console import Console

    from realmodels.budgets import Budgets
    from realmodels.load import DEFAULT_MODEL, load
    from realmodels.plan import plan
    from realmodels.plan_file import read_plan
    from realmodels.text import evaluation_text, read_text
    from theory.hardware import Hardware

    Budgets(**budgets)  # refused before a model is loaded
    others = [read_plan(file) for file in options.saved]
    console = Console(file=Steady(sys.stdout), markup=False, highlight=False)  # type: ignore[arg-type]
    if line:
        console.print(line, soft_wrap=True)
    model = load(options.model or DEFAULT_MODEL, options.device or "cpu")
    given: dict[str, Any] = {
        "draws": options.seeds,
        "batch": options.batch,
        "score": options.score,
        "questions": options.questions,
        "tasks": options.tasks and options.tasks.split(","),
    }
    found = plan(
        model,
        Hardware(**(fields or {})),
        texts=None if options.text is None else evaluation_text(options.text),
        calibration=None if options.calibration is None else read_text(options.calibration),
        first_seed=options.first_seed,
        **{name: value for name, value in given.items() if value is not None},
        **budgets,
    )
    written = write(found, others, out)
    found.placement.save(out / "placement.json", model, score=found.score, hardware=found.hardware)
    console.print(str(found), soft_wrap=True)
    for table in _tables(found):
        console.print(table)
    for path in (out / "placement.json", *written):
        console.print(str(path), soft_wrap=True)
    return 0


def write(found: "Plan", others: Sequence["Plan"], out: Path) -> list[Path]:
    """Write all files but the placement's; the paths."""
    import matplotlib as mpl

    from figures.drawings.plan import experts, frontier
    from figures.output import saved_png

    mpl.use("Agg")
    pictures = {
        "frontier.png": saved_png(frontier([found, *others])),
        "experts.png": saved_png(experts(found)),
    }
    rows = frontier_rows([found, *others])
    contents = {
        "experts.csv": as_csv(found.rows()),
        "frontier.csv": as_csv(rows),
        **pictures,
        "plan.json": found.to_json().encode(),
        "plan.html": _page(found, others, rows, pictures).encode(),
    }
    for name, content in contents.items():
        keep_file(out / name, content, "the plan")
    return [out / name for name in contents]


def names(plans: Sequence["Plan"]) -> list[str]:
    """A name for each plan, which says what tells them apart: the model, the hardware, or both."""
    hardware = [vars(each.hardware) for each in plans]
    differing = [name for name in hardware[0] if len({each[name] for each in hardware}) > 1]
    found = []
    for each, own in zip(plans, hardware, strict=True):
        parts = [each.model] if len({other.model for other in plans}) > 1 or not differing else []
        found.append(", ".join(parts + [f"{name} {own[name]}" for name in differing]))
    return [name if found.count(name) == 1 else f"{name} ({number + 1})" for number, name in enumerate(found)]


def frontier_rows(plans: Sequence["Plan"]) -> list[dict[str, Any]]:
    """A row for each of SHARES: the least predicted loss increase within it, by plan and score; "" for none."""
    labels = [f"{name}: " if len(plans) > 1 else "" for name in names(plans)]
    rows = []
    for share in SHARES:
        row: dict[str, Any] = {"digital_parameters": share}
        for label, each in zip(labels, plans, strict=True):
            for score, axes in each.frontiers.items():
                within = [increase for x, increase in axes["share"] if x <= share + 1e-9]
                row[label + score] = min(within, default="")
        rows.append(row)
    return rows


def _number(text: str) -> Any:
    """The number that the text is, or the text."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


# Of digital experts and parameters; of the loss increase in nats per token, ± half of its 95 % interval.
OUTCOMES = ("placement", "experts", "params", "predicted", "measured", "J/token", "tokens/s")
ACCURACIES = ("placement", "points lost, predicted [95 %]", "measured [95 %]")


def outcome_rows(found: "Plan") -> list[list[str]]:
    """A row of texts for each measured placement, below OUTCOMES."""
    return [
        [
            name,
            str(each.digital_experts),
            f"{each.share:.1%}",
            f"{each.predicted:.4f}",
            f"{each.measured:.4f} ±{(each.interval[1] - each.interval[0]) / 2:.4f}",
            f"{each.energy:.3g}",
            f"{each.throughput:,.0f}",
        ]
        for name, each in found.outcomes.items()
    ]


def accuracy_rows(found: "Plan") -> list[list[str]]:
    """The same below ACCURACIES, in points; no row where no tasks were given."""
    return [
        [name, *drop.texts()] for name, each in found.outcomes.items() if (drop := each.accuracy) is not None
    ]


def _tables(found: "Plan") -> list[Any]:
    from rich.box import SIMPLE
    from rich.table import Table

    tables = []
    for title, header, rows in (
        (
            "digital experts and parameters; loss increase in nats per token, ± at 95 %",
            OUTCOMES,
            outcome_rows(found),
        ),
        ("accuracy on tasks", ACCURACIES, accuracy_rows(found)),
    ):
        table = Table(*header, box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
        table.title = title
        for row in rows:
            table.add_row(*row)
        tables += [table] if rows else []
    return tables


def _page(found: "Plan", others: Sequence["Plan"], rows: Sequence[Any], pictures: dict[str, bytes]) -> str:
    from figures.report import filled

    return filled(
        "plan.html",
        plan=found,
        others=others,
        frontier=rows,
        pictures=pictures,
        tables=[(OUTCOMES, outcome_rows(found)), (ACCURACIES, accuracy_rows(found))],
        flag=flag,
        hardware=vars(found.hardware),
    )
