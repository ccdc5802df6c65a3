"""The phase diagram: floor of a direction over its coverage and the local training time."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, SMALL

LOW, HIGH = 0.15, 0.65  # coverages between the measured ones, where there is room for a word


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """One panel per rule: predicted floors as shades, measured ones as dots on the same scale.

    Collapsed measurements are crosses; the line is the predicted threshold, `omega G = 1`.

    Args:
        data: `floor` (rule, coverage, local_time), `threshold` (rule, coverage) and `measured`
            (rule, measured_coverage, measured_time).

    Returns:
        The figure and its axes, one per rule.
    """
    rules = data.rule.values.tolist()
    figure, axes = plt.subplots(1, len(rules), figsize=(DOUBLE_COLUMN, 2.5), sharey=True)
    for axis, rule in zip(axes, rules, strict=True):
        shades = _panel(axis, data.sel(rule=rule), float(data.attrs["collapsed"]))
        axis.set_xlabel(r"local training time $MT$")
        axis.set_xlim(0, float(data.local_time.max()))
    labels.letter(axes, [look(rule).name for rule in rules])
    axes[0].set_ylabel(r"coverage $\pi$")
    axes[0].set_ylim(float(data.coverage.min()), 1.03)
    figure.colorbar(shades, ax=axes, label=r"floor $x^*/M$", pad=0.02)
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    return (
        "Collapse over coverage and local training time: predicted floors as shades, in units "
        f"of the target $M$; measured after {attrs['rounds']} rounds of {attrs['local_steps']} "
        "plain steps on real factors as circles in the colour of the amplitude (held) and "
        f"crosses (collapsed, below {captions.percent(attrs['collapsed'])} of the target); "
        f"{len(data.measured_time)} training times, one run each with seed "
        f"{attrs['first_seed']}, {captions.clients(data)}. Line: the predicted threshold "
        "$T^*=\\ln(1/\\omega)/2M$, with $\\omega=\\pi$ for FedAvg and $\\pi^2$ for zero "
        "padding. raFLoRA has none."
    )


def _panel(axis: Axes, of: xr.Dataset, collapsed: float) -> QuadMesh:
    colours: dict[str, Any] = {"vmin": 0, "vmax": 1, "cmap": "viridis"}
    shades = axis.pcolormesh(
        of.local_time, of.coverage, of.floor, shading="gouraud", rasterized=True, **colours
    )
    axis.plot(of.threshold, of.coverage, color="w", lw=1.8)
    time, coverage = np.meshgrid(of.measured_time.values, of.measured_coverage.values)
    lost = of.measured.values < collapsed
    held = ~lost
    axis.plot(time[lost], coverage[lost], "x", color="w", ms=4, mew=0.9)
    axis.scatter(
        time[held],
        coverage[held],
        s=20,
        c=of.measured.values[held],
        edgecolors="w",
        linewidths=0.7,
        clip_on=False,
        zorder=3,
        **colours,
    )
    for where, text, side in (
        ((0.03, LOW), "collapses to 0", "left"),
        ((0.875, HIGH), "held", "center"),
    ):
        axis.text(
            *where,
            text,
            transform=axis.get_yaxis_transform(),
            color="w",
            fontweight="bold",
            fontsize=SMALL,
            ha=side,
            va="center",
        )
    return shades
