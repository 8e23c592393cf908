"""Draws how much less MaxNNScore and the expected damage lose than scores of others, from the findings."""

import numpy as np
from matplotlib.figure import Figure

from figures.drawings.better_score import ACROSS, LOOKS
from figures.drawings.rows import with_bounds
from figures.drawings.style import BLACK, SCORE, W_MAX, WIDTH, legend_below, lengths, styled, titled
from figures.drawings.style import C as MEANING_OF_C
from theory.evidence import Result

OTHERS = ("MaxVar", "AlphaQ", "MSAN", "MC")
# What is compared with them: the form of both, and the look.
OWN = {"MaxNNScore": ("", LOOKS["maxnn"]), "expected damage": (ACROSS, LOOKS["damage" + ACROSS])}
C = 2.5
CAPTION = (
    "Points with bars: the loss of MaxNNScore and of the expected damage minus that of scores of others. Left of 0 the"
    f" other score loses more. Bars are 95 % intervals over noise draws and documents. {SCORE}. Expected damage of an"
    " expert is the loss that the expert's noise is expected to add, by a formula (claim D). MaxVar is the largest"
    " variance within a neuron, AlphaQ goes by heavy-tailed spectra, MSAN is the mean squared norm of an expert's"
    " output, MC is frequency times routing weight times error. None of these four was made for analog noise. Scores"
    f" rank experts inside each layer, or those of all layers together (across layers). {MEANING_OF_C}. {W_MAX}."
)


@styled
def draw(result: Result) -> Figure:
    """A panel for each w_max and budget, a line for each score of others."""
    found = {finding.claim.partition("; ")[::2]: finding for finding in result.findings}
    wheres = list(dict.fromkeys(where for _, where in found))
    height = -(-len(wheres) // 2)
    figure = Figure(figsize=(WIDTH, 1.5 + 1.9 * height))
    axes = figure.subplots(height, 2, squeeze=False, sharex=True, sharey=True)
    for axis, where in zip(axes.flat, wheres, strict=True):
        for number, (own, (form, look)) in enumerate(OWN.items()):
            findings = [found[f"{own}{form} loses less than {other}{form}", where] for other in OTHERS]
            middle = [finding.estimate for finding in findings]
            axis.errorbar(
                middle,
                np.arange(len(OTHERS)) + 0.3 * number - 0.15,
                xerr=lengths(middle, [finding.interval for finding in findings]),
                fmt=look.marker,
                color=look.colour,
                capsize=2,
                label=f"{own}, {'both across layers' if form else 'both inside layers'}",
            )
        axis.axvline(0, color=BLACK, linewidth=0.8)
        axis.set_yticks(range(len(OTHERS)), OTHERS)
        axis.set_title(where.partition(", ")[2].replace(" of experts", ""))
        axis.grid(visible=False, axis="y")
    axes[0, 0].invert_yaxis()
    axes[0, 0].locator_params(axis="x", nbins=5)  # so that numbers do not touch
    for axis in axes[-1]:
        axis.set_xlabel("loss minus that of the other score, nats per token")
    legend_below(figure, axes[0, 0], columns=2)
    data = result.data
    titled(
        figure,
        f"MaxNNScore and expected damage against scores of others, at c = {C:g}",
        f"{data['model']}, dense modules digital; all digital: loss {data['digital']['mean']:.3f} nats per token;"
        f" {data['blocks']} blocks of {data['block_tokens']} tokens",
    )
    return figure


def table(result: Result) -> list[dict[str, object]]:
    """One row for each placement and w_max."""
    return with_bounds(result.data["rows"])
