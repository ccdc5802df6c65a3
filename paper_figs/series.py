"""Lines over rounds of real runs: the mean of the runs, and their range as a band."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes


def draw_runs(
    axis: Axes,
    values: xr.DataArray,
    over: str,
    *,
    colour: Any,
    line: Any = "-",
    label: str | None = None,
    width: float = 1.2,
    band: float = 0.14,
) -> float:
    """Draw the runs of one configuration.

    Args:
        axis: to draw on.
        values: dimensions `round` and `over`; rounds that were not judged are NaN.
        over: the dimension of the runs.
        colour: of the line and the band.
        line: matplotlib's line style.
        label: of the line.
        width: of the line, in points.
        band: opacity of the band; 0 draws none.

    Returns:
        The last mean.
    """
    judged = values.dropna("round", how="all")
    rounds, mean = judged["round"].values, judged.mean(over)
    axis.plot(rounds, mean, color=colour, ls=line, lw=width, label=label)
    if band:
        low, high = judged.min(over), judged.max(over)
        axis.fill_between(rounds, low, high, color=colour, alpha=band, lw=0)
    return float(mean[-1]) if mean.size else np.nan
