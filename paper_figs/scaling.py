"""Speed and scaling: an aggregation, a local step, and a round beside other frameworks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from paper_figs import labels
from paper_figs.style import BLACK, BLUE, DOUBLE_COLUMN, GREEN, GREY, ORANGE, PURPLE, VERMILLION

OURS = (BLUE, "-", "^")
METHODS = {
    "aggregate": ("fedlora-sim", *OURS),
    "products": ("products alone", GREY, ":", "o"),
    "qr": ("QR", GREEN, "--", "D"),
    "dense": ("dense SVD", VERMILLION, "-", "s"),
    "peft": ("PEFT", ORANGE, "-.", "v"),
}
LANES = {"stacked": ("fedlora-sim,\nstacked", *OURS), "loop": ("one by one", VERMILLION, "-", "s")}
OTHERS = ((BLACK, "--", "o"), (VERMILLION, "-", "s"), (GREEN, "-.", "D"), (PURPLE, ":", "v"))


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Three panels of times, median and range of the repeats, on logarithmic axes.

    Args:
        data: `aggregation` (method, width, kind), `step` (lane, clients, kind), `round` (framework,
            cohort, kind), seconds.

    Returns:
        The figure and its three axes.
    """
    figure, axes = plt.subplots(
        1, 3, figsize=(DOUBLE_COLUMN, 2.35), layout="constrained", gridspec_kw={"wspace": 0.04}
    )
    frameworks = [str(name) for name in data.framework.values]
    own = str(data.attrs["ours"])
    styles = {own: (own, *OURS)}
    others = [name for name in frameworks if name != own]
    styles |= {name: (name, *OTHERS[j % len(OTHERS)]) for j, name in enumerate(others)}
    ends = [
        _lines(axes[0], data.aggregation, "method", "width", METHODS),
        _lines(axes[1], data.step, "lane", "clients", LANES),
        _lines(axes[2], data["round"], "framework", "cohort", styles),
    ]
    axes[0].set_xlabel("width of the layer $d$")
    axes[1].set_xlabel("clients")
    axes[2].set_xlabel("clients a round")
    axes[0].set_ylabel("time, s")
    labels.letter(axes, ["one aggregation", "one local step", "one round"])
    labels.name_lines(axes, ends)
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting: nothing in it is random but the clock."""
    attrs = data.attrs
    return (
        "Median times and their range over repeats, from the recorded benchmarks "
        f"({attrs['hardware']}, PyTorch {attrs['torch']}; timings have no seed). (a) One "
        "aggregation of a $d\\times d$ layer in float32, CPU time on one thread, against a "
        "dense SVD, PEFT's merge, a QR path and the matrix products alone. (b) One local step "
        f"of all clients of a model of width {attrs['model_width']}, CPU time on one thread. (c) "
        f"One round of a model of width {attrs['model_width']} in other frameworks, wall time on "
        f"{attrs['threads']} threads."
    )


def _lines(
    axis: Axes, times: xr.DataArray, dim: str, over: str, styles: Mapping[str, Sequence[Any]]
) -> list[labels.End]:
    ends = []
    for name, (text, colour, line, marker) in styles.items():
        if name not in times[dim].values:
            continue
        of = times.sel({dim: name}).dropna(over)
        median, low, high = (of.sel(kind=kind).values for kind in ("median", "min", "max"))
        axis.errorbar(
            of[over],
            median,
            np.stack([median - low, high - median]),
            fmt=marker,
            ls=line,
            ms=3.5,
            lw=1.1,
            color=colour,
            elinewidth=0.7,
            capsize=1.5,
        )
        ends.append(labels.End(float(median[-1]), text, colour))
    places = times[over].values
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    axis.set_xticks(places, [str(place) for place in places])
    axis.xaxis.set_minor_locator(NullLocator())
    return ends
