"""Energy settling into the first singular values, and how fast: measured and predicted."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figs.style import DOUBLE_COLUMN, PALETTE, PARTITION_COLOURS

WIDTH = 0.32


def draw(settling: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Fractions of energy in successive singular values over rounds, and speeds of partitions.

    Args:
        settling: `fraction`, `predicted`, `homogeneous` (round, direction) and `speed` with its
            ends and predictions (level).

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(DOUBLE_COLUMN, 2.8), gridspec_kw={"width_ratios": [3, 2]}
    )
    _fractions(axes[0], settling)
    _speeds(axes[1], settling)
    return figure, axes


def _fractions(axis: Axes, settling: xr.Dataset) -> None:
    """Singular values small, as the SVD sorts them; partitions, for which order is nothing, large.

    Within a partition sorting spreads the singular values further than the prediction for each
    direction, so that only the sums of partitions are comparable.
    """
    rounds = settling["round"].values
    axis.semilogy(rounds, settling.fraction.values, ".", ms=2.5, color="0.6")
    sums = settling[["fraction", "predicted", "homogeneous"]].groupby("partition").sum("direction")
    for h in sums.partition.values:
        of, colour = sums.sel(partition=h), PARTITION_COLOURS[int(h) - 1]
        axis.semilogy(rounds, of.fraction.values, "o", ms=3.5, color=colour)
        axis.semilogy(rounds, of.predicted.values, "-", lw=0.9, color=colour)
        axis.semilogy(rounds, of.homogeneous.values, ":", lw=0.9, color=colour)
    axis.set_xticks(settling["round"].values)
    axis.set_xlabel("round $t$")
    axis.set_ylabel("fraction of energy")
    levels = [0, *settling.level.values.tolist()]
    handles = [
        Line2D([], [], color=PARTITION_COLOURS[h], label=f"$i={levels[h] + 1}$–${levels[h + 1]}$")
        for h in range(len(levels) - 1)
    ]
    marks = [
        Line2D([], [], color="k", marker="o", ms=3, ls="", label="measured"),
        Line2D([], [], color="0.6", marker=".", ms=2.5, ls="", label="single values"),
        Line2D([], [], color="k", lw=0.9, label="predicted"),
        Line2D([], [], color="k", lw=0.9, ls=":", label="alike, all take part"),
    ]
    axis.legend(handles=[*handles, *marks], fontsize=7, loc="lower left", ncols=2)


def _speeds(axis: Axes, settling: xr.Dataset) -> None:
    x = np.arange(1, settling.sizes["level"] + 1)
    measured = settling.speed.values
    error = np.stack([measured - settling.speed_low.values, settling.speed_high.values - measured])
    for name, style, label in (
        ("speed_predicted", "-", r"predicted, $q\prime_h$"),
        ("speed_homogeneous", ":", "alike clients, all take part"),
    ):
        ends = (x - WIDTH, x + WIDTH)
        axis.hlines(settling[name].values, *ends, color="k", lw=1.2, ls=style, label=label)
    axis.errorbar(x, measured, error, fmt="o", ms=4, color=PALETTE[0], capsize=3, label="measured")
    axis.set_yscale("log")
    axis.set_ylim(0.05, 2)
    axis.set_xlim(0.5, x[-1] + 0.5)
    axis.set_xticks(x)
    axis.set_xlabel("partition $h$ (lowest rank level first)")
    axis.set_ylabel("energy factor per round")
    axis.legend(fontsize=7)
