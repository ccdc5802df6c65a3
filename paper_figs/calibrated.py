"""The calibrated theory on real updates: what it foretold of later rounds, and how well."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import BLUE, DOUBLE_COLUMN, LINES, SHADE, SMALL, VERMILLION, partition_colours

FORECASTS = {"theory": BLUE, "persistence": "0.65", "pure": VERMILLION}
HATCHES = {"theory": None, "persistence": None, "pure": "////"}
NAMES = {"theory": "calibrated theory", "persistence": "persistence", "pure": "suppression alone"}
BEYOND = 1e2
"""Axes end so far beyond what was measured: a forecast may rise or fall without an end."""
BAR = 0.26


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Energies of every partition beside what was foretold, and the errors of three forecasts.

    Args:
        data: `measured` (rule, seed, partition, round) and `predicted` (with `statistic`), of which
            the first seed is drawn; `error`, `error_low`, `error_high` (scored_rule, forecast) and
            `coverage` (scored_rule), see `analysis.paper.training.scored`.

    Returns:
        The figure and its axes: one per rule above, the scores below.
    """
    rules = data.rule.values.tolist()
    figure = plt.figure(figsize=(DOUBLE_COLUMN, 4.3), layout="constrained")
    grid = figure.add_gridspec(2, len(rules), height_ratios=(2.4, 2))
    axes = [figure.add_subplot(grid[0, 0])]
    axes += [figure.add_subplot(grid[0, j], sharey=axes[0]) for j in range(1, len(rules))]
    scores = figure.add_subplot(grid[1, :])
    first = data.isel(seed=0)
    for axis, rule in zip(axes, rules, strict=True):
        _energies(axis, first.sel(rule=rule))
        axis.set_xlabel("round $t$")
    for axis in axes[1:]:
        axis.tick_params("y", labelleft=False)
    axes[0].set_ylabel("energy of the partition")
    seen = first.measured.where(first.measured > 0)
    axes[0].set_ylim(float(seen.min()) / BEYOND, float(seen.max()) * BEYOND)
    axes[-1].legend(handles=_handles(data), loc="lower right", borderaxespad=0.2)
    _bars(scores, data)
    titles = [f"{look(rule).name}, seed {int(first.seed)}" for rule in rules]
    labels.letter([*axes, scores], [*titles, "errors of the forecasts, all rules and seeds"])
    labels.name_lines(axes, [_ends(first.sel(rule=rule)) for rule in rules])
    return figure, np.array([*axes, scores])


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    theory, still = (data.error.sel(forecast=name).values for name in ("theory", "persistence"))
    better, worse = (
        captions.joined(look(rule).name for rule in data.scored_rule.values[which]) or "no rule"
        for which in (theory < still, theory >= still)
    )
    return (
        f"The theory, calibrated on the first {attrs['calibration_rounds']} rounds of a real "
        f"run, against the later ones. {captions.study(data)}. (a, b) Energy of every partition, "
        f"all layers together, {attrs['heterogeneity']}: measured (solid), foretold median "
        f"(dashed) and {captions.percent(attrs['confidence'])} interval (band). (c) Median of "
        "$|\\log_{10}$ measured over foretold$|$ over the later rounds and its range over "
        f"{attrs['scored_runs']} runs; below the names, the share of the measurements within the "
        f"theory's {captions.percent(attrs['score_confidence'])} intervals. Persistence: all "
        f"stays as in round {attrs['calibration_rounds']}; suppression alone: rates of coverage "
        f"without training. The calibrated theory errs less than persistence under {better}, and "
        f"more under {worse}."
    )


def _energies(axis: Axes, run: xr.Dataset) -> None:
    axis.axvspan(0, run.attrs["calibration_rounds"], color=SHADE, lw=0)
    for h, colour in zip(run.partition.values, partition_colours(len(run.partition)), strict=True):
        of = run.sel(partition=h)
        told = {str(name): of.predicted.sel(statistic=name) for name in of.statistic.values}
        axis.fill_between(of["round"], told["low"], told["high"], color=colour, alpha=0.2, lw=0)
        axis.plot(of["round"], told["median"], color=colour, ls="--", lw=0.9)
        axis.plot(of["round"], of.measured.where(of.measured > 0), color=colour, lw=1.3)
    axis.set_yscale("log")
    axis.set_xlim(0, int(run["round"].max()))


def _ends(run: xr.Dataset) -> list[labels.End]:
    """Partitions, named where the measured lines end."""
    edges = [0, *run.attrs["study_levels"]]
    last = run.measured.isel(round=-1).values
    colours = partition_colours(len(last))
    return [
        labels.End(float(y), f"$i=${edges[h] + 1}–{edges[h + 1]}", colour)
        for h, (y, colour) in enumerate(zip(last, colours, strict=True))
        if y > 0
    ]


def _handles(data: xr.Dataset) -> list[Line2D | Patch]:
    return [
        Line2D([], [], color="k", lw=1.3, label="measured"),
        Line2D([], [], color="k", lw=0.9, ls="--", label="foretold, median"),
        Patch(color="k", alpha=0.2, lw=0, label=f"foretold, {100 * data.attrs['confidence']:g}%"),
        Patch(color=SHADE, lw=0, label="calibration"),
    ]


def _bars(axis: Axes, data: xr.Dataset) -> None:
    """Median errors with their range over runs, and the coverage of the theory's intervals."""
    for j, (name, colour) in enumerate(FORECASTS.items()):
        of = data.sel(forecast=name)
        known = np.isfinite(of.error.values)
        x = np.flatnonzero(known) + (j - 1) * BAR
        value = of.error.values[known]
        ends = np.stack([value - of.error_low.values[known], of.error_high.values[known] - value])
        axis.bar(
            x, value, BAR, color=colour, label=NAMES[name], hatch=HATCHES[name], edgecolor="w", lw=0
        )
        axis.errorbar(x, value, np.abs(ends), fmt="none", ecolor="k", elinewidth=0.7)
    names = [
        f"{look(rule).name}\n{_coverage(float(share))}".replace(", ", ",\n")
        for rule, share in zip(data.scored_rule.values, data.coverage.values, strict=True)
    ]
    axis.set_xticks(range(len(names)), names, fontsize=SMALL, linespacing=LINES)
    axis.tick_params("x", length=0)
    axis.set_ylabel("median error, decades")
    axis.legend(ncols=3, loc="upper right", borderaxespad=0.2)
    axis.set_ylim(0, 1.15 * float(np.nanmax(data.error_high.values)))


def _coverage(share: float) -> str:
    return "no recursion" if np.isnan(share) else f"{100 * share:.0f}%"
