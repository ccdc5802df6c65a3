"""The phase diagram: floor of a direction over its coverage and the local training time."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from paper_figs.style import DOUBLE_COLUMN, RULE_NAMES


def draw(phase: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """One panel per rule: predicted floors as shades, measured ones as dots on the same scale.

    Collapsed measurements are crosses; the line is the predicted threshold, `omega G = 1`.

    Args:
        phase: `floor` (rule, coverage, local_time), `threshold` (rule, coverage) and `measured`
            (rule, measured_coverage, measured_time).

    Returns:
        The figure and its axes, one per rule.
    """
    rules = phase.rule.values
    figure, axes = plt.subplots(1, len(rules), figsize=(DOUBLE_COLUMN, 2.8), sharey=True)
    time, coverage = np.meshgrid(phase.measured_time.values, phase.measured_coverage.values)
    for axis, rule in zip(axes, rules, strict=True):
        of = phase.sel(rule=rule)
        shades = axis.pcolormesh(
            phase.local_time,
            phase.coverage,
            of.floor,
            vmin=0,
            vmax=1,
            cmap="viridis",
            shading="nearest",
            rasterized=True,
        )
        axis.plot(of.threshold, phase.coverage, color="w", lw=1.5)
        lost = of.measured.values < float(phase.attrs["collapsed"])
        held = ~lost
        axis.plot(time[lost], coverage[lost], "x", color="w", ms=4, mew=0.8)
        axis.scatter(
            time[held],
            coverage[held],
            s=18,
            c=of.measured.values[held],
            vmin=0,
            vmax=1,
            cmap="viridis",
            edgecolors="w",
            linewidths=0.6,
            clip_on=False,
            zorder=3,
        )
        axis.set_title(RULE_NAMES[str(rule)])
        axis.set_xlabel(r"local time $MT$")
        axis.set_xlim(0, float(phase.local_time.max()))
    axes[0].set_ylabel(r"coverage $\pi$")
    figure.colorbar(shades, ax=axes, label=r"floor $x^*/M$")
    return figure, axes
