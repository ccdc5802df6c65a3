"""Energy settling into the first singular values, and how fast: measured and predicted."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figs import captions, labels
from paper_figs.style import DOUBLE_COLUMN, SMALL, partition_colours

WIDTH = 0.32
MARKERS = ("o", "s", "^", "D")


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Fractions of energy in successive singular values over rounds, and speeds of partitions.

    Args:
        data: `fraction`, `predicted`, `homogeneous` (round, direction) and `speed` with its
            ends and predictions (level).

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(DOUBLE_COLUMN, 2.6), gridspec_kw={"width_ratios": [3, 2]}
    )
    _speeds(axes[1], data)
    _fractions(axes[0], data)
    labels.letter(axes, ["where the energy is", "how fast it goes there"])
    levels = [0, *data.level.values.tolist()]
    last = data.predicted.isel(round=-1).groupby("partition").sum("direction").values
    ends = [
        labels.End(float(y), f"$i=${levels[h] + 1}–{levels[h + 1]}", colour)
        for h, (y, colour) in enumerate(zip(last, partition_colours(len(last)), strict=True))
    ]
    labels.name_lines(axes[:1], [ends])
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    return (
        "Under FedAvg energy settles in the shared directions at the predicted speed. "
        f"{captions.clients(data)}, {captions.cohort(data)}, gains of mean 1 and deviation "
        f"{attrs['gain_std']:g}, real factors; {captions.seeds(data)}. (a) Fraction of the "
        "energy in every partition of the singular values (large) and in each of them (grey): "
        "markers measured, lines predicted before, dotted what alike clients who all take part "
        f"would do. (b) Factors per round, with {captions.percent(attrs['confidence'])} "
        "intervals each for itself."
    )


def _fractions(axis: Axes, data: xr.Dataset) -> None:
    """Singular values small, as the SVD sorts them; partitions, for which order is nothing, large.

    Within a partition sorting spreads the singular values further than the prediction for each
    direction, so that only the sums of partitions are comparable.
    """
    rounds = data["round"].values
    axis.semilogy(rounds, data.fraction.values, ".", ms=2.5, color="0.65")
    sums = data[["fraction", "predicted", "homogeneous"]].groupby("partition").sum("direction")
    colours = partition_colours(sums.sizes["partition"])
    for j, (h, colour) in enumerate(zip(sums.partition.values, colours, strict=True)):
        of = sums.sel(partition=h)
        axis.semilogy(rounds, of.fraction.values, MARKERS[j % len(MARKERS)], ms=4, color=colour)
        axis.semilogy(rounds, of.predicted.values, "-", lw=1, color=colour)
        axis.semilogy(rounds, of.homogeneous.values, ":", lw=1, color=colour)
    axis.set_xticks(rounds)
    axis.set_xlabel("round $t$")
    axis.set_ylabel("fraction of energy")
    marks = [
        Line2D([], [], color="k", marker="o", ms=4, ls="", label="measured"),
        Line2D([], [], color="0.65", marker=".", ms=2.5, ls="", label="single values"),
        Line2D([], [], color="k", lw=1, label="predicted"),
        Line2D([], [], color="k", lw=1, ls=":", label="alike, all take part"),
    ]
    axis.legend(handles=marks, loc="lower left", borderaxespad=0.2)


def _speeds(axis: Axes, data: xr.Dataset) -> None:
    x = np.arange(1, data.sizes["level"] + 1)
    measured = data.speed.values
    error = np.stack([measured - data.speed_low.values, data.speed_high.values - measured])
    for name, style in (("speed_predicted", "-"), ("speed_homogeneous", ":")):
        axis.hlines(data[name].values, x - WIDTH, x + WIDTH, color="k", lw=1.1, ls=style)
    for h, colour in enumerate(partition_colours(len(x))):
        axis.errorbar(
            x[h],
            measured[h],
            error[:, h, None],
            fmt=MARKERS[h % len(MARKERS)],
            ms=4,
            color=colour,
            capsize=3,
        )
    axis.annotate(
        r"predicted, $q\prime_h$",
        (x[-1], float(data.speed_predicted[-1])),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=SMALL,
    )
    axis.annotate(
        "alike, all take part",
        (x[-1] + WIDTH, float(data.speed_homogeneous[-1])),
        xytext=(0, -8),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
    )
    axis.set_yscale("log")
    axis.set_ylim(float(data.speed_homogeneous.min()) / 1.5, 1.5 * float(measured.max()))
    axis.set_xlim(0.5, x[-1] + 0.5)
    axis.set_xticks(x)
    axis.set_xlabel("partition $h$ (lowest rank level first)")
    axis.set_ylabel("energy factor per round")
