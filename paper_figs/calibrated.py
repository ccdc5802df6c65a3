"""The calibrated theory on real updates: what it foretold of later rounds, and how well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, PALETTE

FORECASTS = {
    "theory": PALETTE[0],
    "persistence": "0.6",
    "pure": PALETTE[3],
}
NAMES = {"theory": "calibrated theory", "persistence": "persistence", "pure": "suppression alone"}
BEYOND = 1e2
"""Axes end so far beyond what was measured: a forecast may rise or fall without an end."""
BAR = 0.26


def draw(forecasts: xr.Dataset, report: Mapping[str, Any]) -> tuple[Figure, np.ndarray]:
    """Energies of every partition beside what was foretold, and the errors of three forecasts.

    Args:
        forecasts: `measured` (rule, seed, partition, round) and `predicted` (rule, seed, partition,
            round, statistic), see `analysis.real.study_scores.forecasts`; the first seed is drawn.
        report: as in `study.json`; its scores on a rule's own calibration are drawn.

    Returns:
        The figure and its axes: one per rule above, the scores below.
    """
    rules = forecasts.rule.values.tolist()
    figure = plt.figure(figsize=(DOUBLE_COLUMN, 4.6))
    grid = figure.add_gridspec(2, 1, height_ratios=(2.6, 2))
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    axes = np.atleast_1d(top.subplots(1, len(rules), sharey=True))
    first = forecasts.isel(seed=0)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.75, first.sizes["partition"]))
    for axis, rule in zip(axes, rules, strict=True):
        _energies(axis, first.sel(rule=rule), colours)
        axis.set_title(look(rule).name)
        axis.set_xlabel("round $t$")
    axes[0].set_ylabel("energy of the partition")
    seen = first.measured.where(first.measured > 0)
    axes[0].set_ylim(float(seen.min()) / BEYOND, float(seen.max()) * BEYOND)
    top.legend(handles=_handles(first, report, colours), loc="outside right center", fontsize=7)
    name, seed = forecasts.attrs["heterogeneity"], int(first.seed)
    study = report["study"]["name"]
    top.suptitle(f"{study}, {name}, seed {seed}, all layers together", fontsize=9)
    scores = bottom.subplots()
    _bars(scores, report)
    return figure, np.array([*axes, scores])


def _energies(axis: Axes, run: xr.Dataset, colours: NDArray[np.float64]) -> None:
    axis.axvspan(0, run.attrs["calibration_rounds"], color="0.93", lw=0)
    for h, colour in zip(run.partition.values, colours, strict=True):
        of = run.sel(partition=h)
        told = {str(name): of.predicted.sel(statistic=name) for name in of.statistic.values}
        axis.fill_between(of["round"], told["low"], told["high"], color=colour, alpha=0.2, lw=0)
        axis.plot(of["round"], told["median"], color=colour, ls="--", lw=0.9)
        axis.plot(of["round"], of.measured.where(of.measured > 0), color=colour, lw=1.3)
    axis.set_yscale("log")


def _handles(
    run: xr.Dataset, report: Mapping[str, Any], colours: NDArray[np.float64]
) -> list[Line2D | Patch]:
    edges = [0, *report["study"]["levels"]]
    partitions = [
        Line2D([], [], color=colour, label=f"$i=${edges[h] + 1}–{edges[h + 1]}")
        for h, colour in enumerate(colours)
    ]
    confidence = f"{100 * run.attrs['confidence']:g}%"
    return [
        *partitions,
        Line2D([], [], color="k", lw=1.3, label="measured"),
        Line2D([], [], color="k", lw=0.9, ls="--", label="foretold, median"),
        Patch(color="k", alpha=0.2, lw=0, label=f"foretold, {confidence}"),
        Patch(color="0.93", lw=0, label="calibration"),
    ]


def _bars(axis: Axes, report: Mapping[str, Any]) -> None:
    """Median errors with their range over runs, and the coverage of the theory's intervals."""
    rows = [row for row in report["scores"]["rows"] if row["calibration"] == "own"]
    for j, (name, colour) in enumerate(FORECASTS.items()):
        known = [(x, row[name]) for x, row in enumerate(rows) if row[name]["error"] is not None]
        x = np.array([place for place, _ in known]) + (j - 1) * BAR
        value = np.array([found["error"] for _, found in known])
        ends = np.array([found["error_range"] for _, found in known]).T
        axis.bar(x, value, BAR, color=colour, label=NAMES[name])
        axis.errorbar(x, value, np.abs(ends - value), fmt="none", ecolor="k", elinewidth=0.7)
    labels = [f"{look(row['rule']).name}\n{_coverage(row)}".replace(", ", ",\n") for row in rows]
    axis.set_xticks(range(len(rows)), labels, fontsize=7)
    axis.set_ylabel(r"$|\log_{10}$ error$|$, median")
    axis.legend(fontsize=7, ncols=3, loc="upper left")
    axis.margins(y=0.3)
    runs = max(row["runs"] for row in rows)
    lines = f"black lines: range over {runs} runs" if runs > 1 else "one run"
    share = f"below, share within the {100 * report['scores']['confidence']:g}% intervals"
    axis.set_title(f"rounds after the calibration; {lines}; {share}")


def _coverage(row: Mapping[str, Any]) -> str:
    coverage = row["theory"]["coverage"]
    return "no recursion" if coverage is None else f"{100 * coverage:.0f}%"
