"""Pictures of the notebooks that no paper needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from analysis.cohorts.law import Array
from analysis.predict import directions_label
from analysis.stats.intervals import Measurement
from fedlora_sim import Federation
from paper_figs import labels, style
from paper_figs.rules import look

DPI = 140  # of pictures on a screen
FAR = 100.0  # a forecast may leave the panel, which ends so far from what was measured
HEIGHT = 2.3  # inches of a row of panels


def prepare() -> None:
    """Make the figures' style that of a notebook, in a size to be read on a screen."""
    style.apply()
    mpl.rcParams["figure.dpi"] = DPI


def carriers(federation: Federation) -> Figure:
    """Who carries what: clients over directions, and the coverage of every partition.

    Args:
        federation: any.

    Returns:
        The figure.
    """
    ranks = np.asarray(federation.ranks)
    directions = np.arange(federation.r_max)
    partition = np.searchsorted(federation.levels, directions + 1)
    held = np.where(directions < ranks[:, None], partition, np.nan)
    figure, axis = plt.subplots(figsize=(style.DOUBLE_COLUMN * 0.75, HEIGHT))
    colours = style.partition_colours(len(federation.levels))
    axis.pcolormesh(
        directions + 1,
        np.arange(1, len(ranks) + 1),
        held,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        shading="nearest",
        edgecolors="w",
        linewidth=0.4,
    )
    axis.invert_yaxis()
    axis.set_xlabel("direction $i$")
    axis.set_ylabel("client $k$")
    axis.set_xticks([1, *federation.levels])
    coverage = federation.coverage()
    for part, colour in zip(federation.partitions, colours, strict=True):
        middle = (part.start + 1 + part.stop) / 2
        axis.annotate(
            rf"$\pi={coverage[part.start]:.2g}$",
            (middle, 1),
            xycoords=axis.get_xaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=colour,
        )
    return figure


def estimates(
    names: Sequence[str], predicted: ArrayLike, measured: Measurement, label: str
) -> Figure:
    """Numbers with their intervals, and a bar where each was predicted.

    Args:
        names: of the numbers.
        predicted: one for each.
        measured: the same numbers, measured.
        label: what they are, with the unit.

    Returns:
        The figure.
    """
    figure, axis = plt.subplots(figsize=(style.DOUBLE_COLUMN * 0.75, 0.7 + 0.28 * len(names)))
    y = np.arange(len(names))
    bars = np.stack([measured.value - measured.low, measured.high - measured.value])
    told = np.asarray(predicted, dtype=float)
    axis.plot(told, y, "|", color=style.VERMILLION, ms=11, mew=1.4, label="predicted")
    axis.errorbar(
        measured.value,
        y,
        np.abs(bars),
        fmt="o",
        color=style.BLUE,
        ms=3,
        capsize=2.5,
        elinewidth=1,
        label=f"measured, {measured.samples:,} runs",
    )
    axis.set_yticks(y, names)
    axis.invert_yaxis()
    axis.margins(y=0.25)
    axis.set_xlabel(label)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def paths(
    panels: Mapping[str, tuple[Array, Array]],
    partitions: Sequence[slice],
    label: str,
    *,
    log: bool = True,
) -> Figure:
    """Something of every partition over rounds, measured and predicted, in panels.

    Args:
        panels: by title, measured (rounds + 1, partitions) and predicted, the same shape.
        partitions: their directions.
        label: what is shown, with the unit.
        log: whether the axis is logarithmic.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(style.DOUBLE_COLUMN, HEIGHT), sharey=True, squeeze=False
    )
    colours = style.partition_colours(len(partitions))
    for axis, (measured, predicted) in zip(axes[0], panels.values(), strict=True):
        for h, colour in enumerate(colours):
            axis.plot(measured[:, h], color=colour)
            axis.plot(predicted[:, h], "k--", lw=0.8)
        _rounds(axis, len(measured) - 1)
        if log:
            axis.set_yscale("log")
    if len(panels) > 1:
        labels.letter(axes[0], list(panels))
    axes[0, 0].set_ylabel(label)
    names = [f"$i=${directions_label(part)}" for part in partitions]
    _beside(axes[0, -1], dict(zip(names, colours, strict=True)))
    return figure


def over_rounds(runs: Mapping[str, xr.Dataset], quantities: Mapping[str, str]) -> Figure:
    """Variables of runs over rounds, mean over seeds, a line per rule and a panel per variable.

    Args:
        runs: by rule.
        quantities: label of the axis by name of the variable.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        1, len(quantities), figsize=(style.DOUBLE_COLUMN, HEIGHT), squeeze=False
    )
    for axis, (name, label) in zip(axes[0], quantities.items(), strict=True):
        for rule, run in runs.items():
            values = run[name].mean([d for d in run[name].dims if d != "round"])
            colour = look(rule).colour
            axis.plot(run["round"], values, color=colour, ls=look(rule).line)
        _rounds(axis, int(run["round"][-1]))
        axis.set_ylabel(label)
    labels.letter(axes[0])
    _beside(axes[0, -1], {look(rule).name: look(rule).colour for rule in runs})
    return figure


def images(rows: Mapping[str, ArrayLike]) -> Figure:
    """Small grey pictures in rows.

    Args:
        rows: pictures (count, height, width) by name.

    Returns:
        The figure.
    """
    pictures = {name: np.asarray(values) for name, values in rows.items()}
    count = max(len(values) for values in pictures.values())
    size = (style.DOUBLE_COLUMN * 0.75, 0.6 * len(pictures))
    figure, axes = plt.subplots(len(pictures), count, figsize=size, squeeze=False)
    for line, (name, values) in zip(axes, pictures.items(), strict=True):
        for axis, picture in zip(line, values, strict=False):
            axis.imshow(picture, cmap="Greys")
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def spectra(by_rule: Mapping[str, Sequence[ArrayLike]], titles: Sequence[str]) -> Figure:
    """Singular values of updates, a marker per direction and a panel per layer.

    Args:
        by_rule: singular values of every layer, by rule.
        titles: names of the layers.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        1, len(titles), figsize=(style.DOUBLE_COLUMN, HEIGHT), sharey=True, squeeze=False
    )
    for rule, layers in by_rule.items():
        for axis, values in zip(axes[0], layers, strict=True):
            shown = np.asarray(values, dtype=float)
            of_rule = look(rule)
            axis.plot(
                np.arange(1, len(shown) + 1),
                shown,
                marker=of_rule.marker,
                ms=3.5,
                lw=0.8,
                color=of_rule.colour,
                label=of_rule.name,
            )
    for axis in axes[0]:
        axis.set_yscale("log")
        axis.set_xlabel("direction $i$")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes[0, 0].set_ylabel(r"singular value $\sigma_i$")
    axes[0, -1].legend(loc="upper right")
    labels.letter(axes[0], titles)
    return figure


def forecasts(scores: Mapping[str, xr.Dataset], runs: Mapping[str, xr.Dataset]) -> Figure:
    """What was foretold of the later rounds of a real run, beside what happened.

    Args:
        scores: of `analysis.studies.score`, by rule; the first seed is drawn.
        runs: the runs.

    Returns:
        The figure. Solid: measured, all layers together; dashed and band: the forecast's median
        and interval.
    """
    figure, axes = plt.subplots(
        1, len(scores), figsize=(style.DOUBLE_COLUMN, 1.15 * HEIGHT), squeeze=False
    )
    for axis, (rule, score) in zip(axes[0], scores.items(), strict=True):
        one, first = score.isel(seed=0), int(score.attrs["calibration_rounds"])
        energy = runs[rule].layer_energy.isel(seed=0).sum("layer").groupby("partition").sum()
        seen = energy.transpose("round", "partition").values[1:]
        told = one.total_predicted.sel(forecast="theory")
        rounds, later = np.arange(1, len(seen) + 1), first + one.horizon.values
        colours = style.partition_colours(one.sizes["partition"])
        for h, colour in enumerate(colours):
            of = told.isel(partition=h)
            low, middle, high = (of.sel(statistic=n) for n in ("low", "median", "high"))
            axis.fill_between(later, low, high, color=colour, alpha=0.25, lw=0)
            axis.plot(later, middle, color=colour, ls="--", lw=1)
            axis.plot(rounds, seen[:, h], color=colour)
        axis.axvspan(0, first, color=style.SHADE, lw=0)
        axis.set_yscale("log")
        axis.set_ylim(seen[seen > 0].min() / FAR, seen.max() * FAR)
        _rounds(axis, len(seen))
    axes[0, 0].set_ylabel("energy of the partition")
    levels = runs[next(iter(scores))].coords["level"].values.tolist()
    starts = [slice(low, high) for low, high in pairwise([0, *levels])]
    names = [f"$i=${directions_label(part)}" for part in starts]
    _beside(axes[0, -1], dict(zip(names, colours, strict=True)))
    labels.letter(axes[0], [look(rule).name for rule in scores])
    return figure


def _beside(axis: Axes, colours: Mapping[str, Any]) -> None:
    """A legend beside the last panel, from the lowest colour to the highest."""
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    axis.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))


def _rounds(axis: Axes, last: int) -> None:
    axis.set_xlim(0, last)
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.set_xlabel("round $t$")
