"""Participation: with fewer clients the mean energy and the typical run go opposite ways."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figs.style import DOUBLE_COLUMN, PALETTE

COLOURS = {
    "mean energy": PALETTE[3],
    "typical surviving run": PALETTE[0],
    "survival": PALETTE[7],
}


def draw(participation: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Left: factors per round over the cohort's size. Right: where runs end, and their mean.

    Args:
        participation: `predicted` (factor, every_size), `measured`, `low`, `high` (factor,
            cohort_size) and `log_energy` (run), see `analysis.exhibits.participation`.

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(1, 2, figsize=(DOUBLE_COLUMN, 2.7))
    _factors(axes[0], participation)
    _ends(axes[1], participation)
    return figure, axes


def _factors(axis: Axes, participation: xr.Dataset) -> None:
    sizes = participation.cohort_size.values
    for factor, colour in COLOURS.items():
        of = participation.sel(factor=factor)
        axis.plot(of.every_size, of.predicted, color=colour, lw=1, label=factor)
        bars = np.stack([of.measured - of.low, of.high - of.measured])
        axis.errorbar(sizes, of.measured, bars, fmt="o", ms=3, color=colour, capsize=2)
    full = participation.attrs["coverage"] ** 2
    axis.axhline(full, color="k", lw=0.6, ls=":")
    axis.set_yscale("log")
    axis.set_xlabel(f"clients a round $m$, of {int(participation.every_size.max())}")
    axis.set_ylabel("factor per round")
    axis.annotate(r"$\pi^2$", (sizes[0], full), xytext=(0, -9), textcoords="offset points")
    axis.legend(fontsize=8)


def _ends(axis: Axes, participation: xr.Dataset) -> None:
    attrs = participation.attrs
    rounds, cohort = int(attrs["walk_rounds"]), int(attrs["walk_cohort"])
    walk = participation.log_energy.values / np.log(10)
    alive = walk[np.isfinite(walk)]
    sns.histplot(x=alive, stat="density", bins=40, color=PALETTE[9], edgecolor="none", ax=axis)
    rates = participation.predicted.sel(every_size=cohort)
    for factor in ("mean energy", "typical surviving run"):
        end = rounds * np.log10(float(rates.sel(factor=factor)))
        axis.axvline(end, color=COLOURS[factor], lw=1.2, label=factor)
    axis.set_xlabel(f"$\\log_{{10}}$ of energy left after {rounds} rounds, $m={cohort}$")
    axis.set_ylabel(f"density of the {len(alive)} surviving runs")
    axis.margins(y=0.35)
    axis.legend(fontsize=8, loc="upper left")
