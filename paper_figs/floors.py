"""Floors over heterogeneity: drift holds every partition at an energy that theory knows."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, partition_colours

MARKERS = ("o", "s", "^", "D")


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """A panel per rule: predicted floors as lines, measured ones as dots with intervals.

    Args:
        data: `predicted` (rule, gain_std, partition); `measured`, `low`, `high` (rule,
            measured_std, partition).

    Returns:
        The figure and its axes, one per rule.
    """
    rules = data.rule.values.tolist()
    figure, axes = plt.subplots(1, len(rules), figsize=(DOUBLE_COLUMN, 2.4), sharey=True)
    for axis, rule in zip(axes, rules, strict=True):
        _panel(axis, data.sel(rule=rule))
    labels.letter(axes, [look(rule).name for rule in rules])
    axes[0].set_ylabel(r"stationary energy $E[\sigma_i^2]$")
    colours = partition_colours(data.sizes["partition"])
    ends = [
        [
            labels.End(float(y), _directions(data, h), colour)
            for h, (y, colour) in enumerate(zip(last, colours, strict=True))
        ]
        for last in data.predicted.isel(gain_std=-1).values
    ]
    labels.name_lines(axes, ends)
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    return (
        "Energy at which the drift of unlike clients holds every partition, over the spread of "
        "their gains: lines predicted before, dots measured, with "
        f"{captions.percent(attrs['confidence'])} intervals each for itself. "
        f"{captions.clients(data)}, {captions.cohort(data)}; gains of mean "
        f"{attrs['gain_mean']:g}, drifts of deviation {attrs['drift_std']:g}; rounds "
        f"{attrs['burn_in'] + 1} to {attrs['rounds']} of {captions.seeds(data)}. $i$: directions "
        "of the partition."
    )


def _panel(axis: Axes, of: xr.Dataset) -> None:
    for h, colour in enumerate(partition_colours(of.sizes["partition"])):
        own = of.isel(partition=h)
        axis.plot(of.gain_std, own.predicted, color=colour, lw=1.1)
        bars = np.abs(np.stack([own.measured - own.low, own.high - own.measured]))
        axis.errorbar(
            of.measured_std,
            own.measured,
            bars,
            fmt=MARKERS[h % len(MARKERS)],
            ms=3.5,
            color=colour,
            capsize=2,
            elinewidth=0.8,
        )
    axis.set_yscale("log")
    axis.set_xlim(-0.02, float(of.gain_std[-1]))
    axis.set_xlabel(r"spread of the clients' gains $\nu$")


def _directions(data: xr.Dataset, h: int) -> str:
    levels = [0, *data.level.values.tolist()]
    return f"$i=${levels[h] + 1}–{levels[h + 1]}"
