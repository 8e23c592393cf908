"""Draws Table 2: the published rows beside ours, and cost against quality over placements."""

from typing import Any

import seaborn as sns
from matplotlib.figure import Figure

from theory.evidence import Result

COLUMNS = (
    "placement",
    "digital share of\nmatrix parameters",
    "tokens/s",
    "tokens/(W s)",
    "accuracy at c = 1.5",
)


def draw(result: Result) -> Figure:
    """The table above; below it throughput and energy over digital experts, and the loss against both."""
    rows, curves = result.data["rows"], result.data["curves"]
    with sns.axes_style("whitegrid"), sns.plotting_context("paper"):
        figure = Figure(figsize=(11, 7.2), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=(1, 1.6))
        board = figure.add_subplot(grid[0, :])
        axes = [figure.add_subplot(grid[1, column]) for column in range(3)]
    board.axis("off")
    cells = [
        [
            row["placement"],
            f"{row['digital_parameters']:.1%}",
            _beside(row["published"], 0, row["tokens_per_second"], "{:,.0f}"),
            _beside(row["published"], 1, row["tokens_per_joule"], "{:,.2f}"),
            _beside(row["published"], 2, 100 * row["accuracy"], "{:.2f} %"),
        ]
        for row in rows
    ]
    drawn = board.table(cells, colLabels=COLUMNS, loc="center", cellLoc="center")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8)
    drawn.scale(1, 1.7)
    board.set_title(
        "Published (arXiv 2603.02633, Table 2, OLMoE)  |  ours: costs of OLMoE by our cost model, accuracy (next token)"
        f" of {result.data['model']}",
        fontsize="small",
    )
    batches = sorted({curve["batch"] for curve in curves})
    palette = dict(zip(batches, sns.color_palette("viridis", len(batches)), strict=True))
    for axis, quantity, label in zip(
        axes, ("tokens_per_second", "tokens_per_joule"), ("tokens/s", "tokens/(W s)"), strict=False
    ):
        for shape, style in (("OLMoE", "-"), ("DeepSeekMoE", "--")):
            for batch in batches:
                curve = [each for each in curves if each["shape"] == shape and each["batch"] == batch]
                axis.plot(
                    [each["digital_fraction"] for each in curve],
                    [each[quantity] for each in curve],
                    style,
                    color=palette[batch],
                    label=f"batch {batch}" if shape == "OLMoE" else None,
                )
        axis.set_yscale("log")
        axis.set_xlabel("digital fraction of the experts, dense modules digital")
        axis.set_ylabel(label)
    axes[0].legend(fontsize="x-small", title="- OLMoE, -- DeepSeekMoE", title_fontsize="x-small")
    front = axes[2]
    for row in rows:
        low, high = row["loss_change_interval"]
        front.errorbar(
            row["tokens_per_joule"],
            row["loss_change"],
            yerr=[[row["loss_change"] - low], [high - row["loss_change"]]],
            marker="o",
            capsize=3,
            label=row["placement"],
        )
    front.set_xscale("log")
    front.set_xlabel(f"tokens/(W s) of OLMoE, batch {result.data['batch']}")
    front.set_ylabel(f"loss increase of {result.data['model']}, nats per token")
    front.legend(fontsize="x-small")
    return figure


def table(result: Result) -> list[dict[str, Any]]:
    """The rows, published numbers beside ours."""
    rows = []
    for row in result.data["rows"]:
        seconds, joules, accuracy = row["published"] or (None, None, None)
        entry = {name: value for name, value in row.items() if name != "published" and "interval" not in name}
        entry["loss_change_low"], entry["loss_change_high"] = row["loss_change_interval"]
        entry |= {
            "published_tokens_per_second": seconds,
            "published_tokens_per_joule": joules,
            "published_accuracy_percent": accuracy,
        }
        rows.append(entry)
    return rows


def _beside(published: list[float] | None, index: int, ours: float, form: str) -> str:
    first = form.format(published[index]) if published else "-"
    return f"{first}  |  {form.format(ours)}"
