"""Participation: with fewer clients the mean energy and the typical run go opposite ways."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figs import captions, labels
from paper_figs.style import BLUE, DOUBLE_COLUMN, GREY, LINES, SKY, SMALL, VERMILLION

COLOURS = {"mean energy": VERMILLION, "typical surviving run": BLUE, "survival": GREY}
MARKERS = {"mean energy": "o", "typical surviving run": "^", "survival": "s"}
NAMES = {
    "mean energy": "mean energy",
    "typical surviving run": "typical surviving run",
    "survival": "survival",
}
BINS = 40
ROOM = 1.5  # below the lowest curve, for its name


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Left: factors per round over the cohort's size. Right: where runs end, and their mean.

    Args:
        data: `predicted` (factor, every_size), `measured`, `low`, `high` (factor, cohort_size) and
            `log_energy` (run), see `analysis.paper.participation`.

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(DOUBLE_COLUMN, 2.5), layout="constrained", gridspec_kw={"wspace": 0.06}
    )
    _ends(axes[1], data)
    labels.letter(axes, ["factors per round", f"where runs end, $m={_walk(data)[1]}$"])
    _factors(axes[0], data)
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs, (rounds, size) = data.attrs, _walk(data)
    return (
        f"Lower participation under FedAvg, the highest partition; {captions.clients(data)}. (a) "
        "Factors per round over the number of clients a round: lines predicted before, dots "
        f"measured with {captions.percent(attrs['confidence'])} intervals each for itself "
        f"({captions.seeds(data)}, {attrs['factor_rounds']} rounds). Survival: the chance that "
        "somebody carries the direction. Dotted: all take part, coverage squared. (b) Energy "
        f"left after {rounds} rounds with {size} clients a round, of the runs that still have "
        "any. Few lucky runs carry the mean; a typical run is far below it."
    )


def _walk(data: xr.Dataset) -> tuple[int, int]:
    return int(data.attrs["walk_rounds"]), int(data.attrs["walk_cohort"])


def _factors(axis: Axes, data: xr.Dataset) -> None:
    sizes = data.cohort_size.values
    for factor, colour in COLOURS.items():
        of = data.sel(factor=factor)
        axis.plot(of.every_size, of.predicted, color=colour, lw=1.1, label=factor)
        bars = np.maximum(np.stack([of.measured - of.low, of.high - of.measured]), 0.0)
        marker = MARKERS[factor]
        axis.errorbar(
            sizes, of.measured, bars, fmt=marker, ms=3.5, color=colour, capsize=2, elinewidth=0.8
        )
    full, most = float(data.attrs["coverage"]) ** 2, int(data.every_size.max())
    axis.axhline(full, color="k", lw=0.7, ls=":")
    axis.set_yscale("log")
    axis.set_ylim(float(data.predicted.min()) / ROOM, None)
    axis.set_xlim(0.5, most + 0.5)
    axis.set_xticks([size for size in sizes.tolist() if size not in (2, 3)])
    axis.set_xlabel(f"clients a round $m$, of {most}")
    axis.set_ylabel("factor per round")
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "linespacing": 1.0}
    _note(axis, data, "survival", 11, (0, -9), note)
    _note(axis, data, "mean energy", 5, (8, 6), note)
    _note(axis, data, "typical surviving run", 9, (0, -11), note)
    axis.annotate(r"$\pi^2$", (most, full), xytext=(-2, 3), ha="right", **note)


def _note(
    axis: Axes,
    data: xr.Dataset,
    factor: str,
    size: int,
    shift: tuple[int, int],
    note: dict[str, Any],
) -> None:
    y = float(data.predicted.sel(factor=factor, every_size=size))
    axis.annotate(NAMES[factor], (size, y), xytext=shift, color=COLOURS[factor], **note)


def _ends(axis: Axes, data: xr.Dataset) -> None:
    rounds, size = _walk(data)
    walk = data.log_energy.values / np.log(10)
    alive = walk[np.isfinite(walk)]
    axis.hist(alive, BINS, density=True, color=SKY)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    rates = data.predicted.sel(every_size=size)
    for factor, side in (("mean energy", "left"), ("typical surviving run", "right")):
        end = rounds * np.log10(float(rates.sel(factor=factor)))
        axis.axvline(end, color=COLOURS[factor], lw=1.3, label=factor)
        axis.annotate(
            NAMES[factor].replace(" ", "\n", 1),
            (end, 0.99),
            xycoords=axis.get_xaxis_transform(),
            xytext=(-3 if side == "right" else 3, 0),
            textcoords="offset points",
            ha=side,
            va="top",
            linespacing=LINES,
            color=COLOURS[factor],
            fontsize=SMALL,
        )
    axis.set_xlabel(f"$\\log_{{10}}$ of the energy left after {rounds} rounds")
    axis.set_ylabel(f"density, {len(alive):,} surviving runs")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
