"""The real run on text over rounds: what collapses and what does not, in every split."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from paper_figs import captions, labels, study_curves
from paper_figs.rules import look
from paper_figs.series import draw_runs
from paper_figs.style import DOUBLE_COLUMN, LINES

NAMED = ("fedavg", "zero_pad", "flora", "raflora")
OTHERS = "0.75"
ROW = 1.25  # inches


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """A column per split, a row per quantity; four rules by name, the others thin and grey.

    Args:
        data: `accuracy`, `rho`, `effective_rank` and `preservation`, dimensions (heterogeneity,
            rule, run, round).

    Returns:
        The figure and its axes, (quantity, heterogeneity).
    """
    splits = data.heterogeneity.values.tolist()
    quantities = study_curves.quantities(data, data.attrs["study_levels"][0])
    figure, axes = plt.subplots(
        *(len(quantities), len(splits)),
        figsize=(DOUBLE_COLUMN, ROW * len(quantities) + 0.3),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    rules = data.rule.values.tolist()
    ordered = [rule for rule in rules if rule not in NAMED] + [r for r in NAMED if r in rules]
    ends: list[list[labels.End]] = []
    for row, (label, values) in zip(axes, quantities.items(), strict=True):
        words = label.replace(" above", "\nabove").replace("directions ", "directions\n")
        row[0].set_ylabel(words, linespacing=LINES)
        for axis, split in zip(row, splits, strict=True):
            own = []
            for rule in ordered:
                of, of_rule = values.sel(heterogeneity=split, rule=rule), look(rule)
                if rule in NAMED:
                    last = draw_runs(axis, of, "run", colour=of_rule.colour, line=of_rule.line)
                    own.append(labels.End(last, of_rule.name, of_rule.colour))
                else:
                    draw_runs(axis, of, "run", colour=OTHERS, width=0.7, band=0)
            axis.set_xlim(0, int(data["round"].max()))
        ends.append(own)
    study_curves.log_row(axes[1])
    labels.letter(axes[0], [split.replace("dirichlet", "Dirichlet") for split in splits])
    for axis in axes[-1]:
        axis.set_xlabel("round $t$")
    labels.name_lines(axes[:, -1], ends)
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    others = [look(rule).name for rule in data.rule.values.tolist() if rule not in NAMED]
    level = data.attrs["study_levels"][0]
    return (
        f"Real fine-tuning on text: {captions.study(data)}. Columns: splits of the data. Mean of "
        f"the seeds, and for the named rules their range; grey, {captions.joined(others)}. "
        f"Energy above rank {level}: $1-\\rho_{{{level}}}$; directions preserved: share of a "
        "client's update on the directions that it started from (FLoRA's clients start from "
        "fresh factors every round). FedAvg and zero padding lose the energy above the lowest "
        "rank, raFLoRA keeps it."
    )
