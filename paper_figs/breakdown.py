"""Where the theory stops: deviation of measured rates from predicted ones along three sweeps."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from paper_figs import captions, labels
from paper_figs.style import DOUBLE_COLUMN, LINES, PARTITION_COLOURS, SHADE, SMALL

TITLES = {
    "drift": "turning basis",
    "steps": "clients with turned targets",
    "adam": "Adam",
}
MARKERS = ("o", "s", "^")
NAMED = (((5, -15), "left"), ((-5, 3), "right"))  # partitions 2 and 3: below and above their lines
LOWEST = 1e-5
FEW_TICKS = 100


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """One panel per sweep; the region stated before the run is shaded, its bound dashed.

    A sweep without a region, where the theory fails from the start, has no shade.

    Args:
        data: `deviation`, `low`, `high` (sweep, point, partition), `value` (sweep, point),
            `inside` and `label` (sweep).

    Returns:
        The figure and its axes, one per sweep.
    """
    figure, axes = plt.subplots(1, data.sizes["sweep"], figsize=(DOUBLE_COLUMN, 2.3), sharey=True)
    names = [str(name) for name in data.sweep.values]
    for axis, name in zip(axes, names, strict=True):
        _panel(axis, data.sel(sweep=name), float(data.attrs["tolerance"]))
        axis.set_xlabel(str(data.label.sel(sweep=name).values))
    labels.letter(axes, [TITLES[name] for name in names])
    axes[0].set_ylabel("|measured / predicted − 1|\nof the energy rate", linespacing=LINES)
    axes[0].set_ylim(LOWEST, 20)
    for h, (shift, side) in zip(data.partition.values, NAMED, strict=True):
        of, point = data.isel(sweep=0).sel(partition=h), data.sizes["point"] // 2
        axes[0].annotate(
            f"partition {h}",
            (float(of.value[point]), float(of.deviation[point])),
            xytext=shift,
            textcoords="offset points",
            ha=side,
            fontsize=SMALL,
            color=PARTITION_COLOURS[int(h) - 1],
        )
    tolerance = float(data.attrs["tolerance"])
    axes[0].annotate(
        f"{100 * tolerance:g}%",
        (0, tolerance),
        xycoords=axes[0].get_yaxis_transform(),
        xytext=(2, 2),
        textcoords="offset points",
        fontsize=SMALL,
    )
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    return (
        "Where the theory stops: deviation of FedAvg's measured energy rates from the predicted "
        "ones, relative to the shared partition, as one assumption is given up at a time. "
        "Shaded: the region stated before the run, within "
        f"{captions.percent(attrs['tolerance'])}; under Adam there is none. Real factors, "
        f"{captions.clients_of(attrs['affine']['ranks'])}, all take part; (b, c) quadratic loss. "
        f"{captions.seeds(data, ' a point')}; {captions.percent(attrs['confidence'])} intervals "
        "each for itself."
    )


def _panel(axis: Axes, curve: xr.Dataset, tolerance: float) -> None:
    x = curve.value.values
    inside = int(curve.inside)
    if inside:
        axis.axvspan(x[0] / 1.5, np.sqrt(x[inside - 1] * x[inside]), color=SHADE, lw=0)
    axis.axhline(tolerance, color="k", ls="--", lw=0.8)
    for j, h in enumerate(curve.partition.values):
        of = curve.sel(partition=h)
        colour = PARTITION_COLOURS[int(h) - 1]
        value = of.deviation.values
        below = np.minimum(value - of.low.values, value * (1 - LOWEST))
        error = np.stack([below, of.high.values - value])
        axis.errorbar(
            x,
            value,
            error,
            fmt=f"{MARKERS[j]}-",
            ms=3.5,
            lw=1,
            color=colour,
            capsize=2,
            elinewidth=0.8,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(x[0] / 1.5, x[-1] * 1.5)
    if x[-1] / x[0] < FEW_TICKS:  # less than two decades: hardly a power of ten to label
        shown = x[[0, 1, 2, 4, -1]]
        axis.set_xticks(shown, [f"{value:g}" for value in shown])
        axis.xaxis.set_minor_formatter(NullFormatter())
