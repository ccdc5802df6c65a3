"""Where the theory stops: deviation of measured rates from predicted ones along three sweeps."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from paper_figs.style import DOUBLE_COLUMN, PARTITION_COLOURS

TITLES = {
    "drift": "turning basis",
    "steps": "clients with turned targets",
    "adam": "Adam",
}
LOWEST = 1e-5
FEW_TICKS = 100


def draw(curves: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """One panel per sweep; the region stated before the run is shaded, its bound dashed.

    A sweep without a region, where the theory fails from the start, has no shade.

    Args:
        curves: `deviation`, `low`, `high` (sweep, point, partition), `value` (sweep, point),
            `inside` and `label` (sweep).

    Returns:
        The figure and its axes, one per sweep.
    """
    figure, axes = plt.subplots(1, curves.sizes["sweep"], figsize=(DOUBLE_COLUMN, 2.5), sharey=True)
    for axis, name in zip(axes, curves.sweep.values, strict=True):
        _panel(axis, curves.sel(sweep=name), float(curves.attrs["tolerance"]))
        axis.set_title(TITLES[str(name)])
        axis.set_xlabel(str(curves.label.sel(sweep=name).values))
    axes[0].set_ylabel("|measured / predicted − 1|")
    axes[0].set_ylim(LOWEST, 10)
    axes[0].legend(fontsize=7, loc="lower right")
    return figure, axes


def _panel(axis: Axes, curve: xr.Dataset, tolerance: float) -> None:
    x = curve.value.values
    inside = int(curve.inside)
    if inside:
        axis.axvspan(x[0] / 1.5, np.sqrt(x[inside - 1] * x[inside]), color="0.92", lw=0)
    axis.axhline(tolerance, color="k", ls="--", lw=0.8)
    for h in curve.partition.values:
        of = curve.sel(partition=h)
        colour = PARTITION_COLOURS[int(h) - 1]
        value = of.deviation.values
        below = np.minimum(value - of.low.values, value * (1 - LOWEST))
        error = np.stack([below, of.high.values - value])
        axis.errorbar(
            x, value, error, fmt="o-", ms=3, lw=1, color=colour, capsize=2, label=f"partition {h}"
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(x[0] / 1.5, x[-1] * 1.5)
    if x[-1] / x[0] < FEW_TICKS:  # less than two decades: hardly a power of ten to label
        shown = x[[0, 1, 2, 4, -1]]
        axis.set_xticks(shown, [f"{value:g}" for value in shown])
        axis.xaxis.set_minor_formatter(NullFormatter())
