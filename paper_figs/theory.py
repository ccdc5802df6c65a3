"""Figures of the collapse report, and of scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from analysis.collapse.measure import EXTINCT, Collapse
from analysis.collapse.outcome import BAND
from analysis.collapse.report import CONTROLS, CollapseReport, ScenarioReport, directions
from paper_figs import style
from paper_figs.style import (
    BLACK,
    BLUE,
    DOUBLE_COLUMN,
    GRAY,
    GREEN,
    ORANGE,
    PARTITION_COLORS,
    PURPLE,
    RULE_COLORS,
    VERMILLION,
    look,
)

# Collapse report: energies of a rule's partitions in each standard scenario

Array = NDArray[np.float64]

COLUMNS = 3
HEIGHT = 2.1  # inches a row
COLLAPSE_LOWEST = EXTINCT / 10
BELOW = COLLAPSE_LOWEST / 100
"""Zero values are drawn here, out of sight, so that a line leaves the panel."""
TOP = 10.0
MARKED = 4  # rounds between markers
COLORS = {
    Collapse.COLLAPSES: RULE_COLORS["fedavg"],
    Collapse.KEEPS: RULE_COLORS["raflora"],
    Collapse.UNDECIDED: "0.4",
}
MARKERS = {"fedavg": "v", "raflora": "^"}


def draw_collapse(report: CollapseReport) -> Figure:
    """Draw one panel per scenario: partitions of the rule, and the highest of both controls.

    Args:
        report: any collapse report.

    Returns:
        The figure. Lines are medians over runs, bands contain 80% of the runs, predictions are
        dashed.
    """
    count = len(report.scenarios)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(DOUBLE_COLUMN * max(columns, 2) / COLUMNS, HEIGHT * rows + 0.9),
        squeeze=False,
    )
    for axis, part in zip(axes.flat, report.scenarios, strict=False):
        _collapse_panel(axis, part, report.rule)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel("energy / energy at the start")
    for axis in axes.flat[max(0, count - columns) : count]:
        axis.set_xlabel("round $t$")
    handles = _collapse_handles(report)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, columns + 1), fontsize=7
    )
    trust = "; THE CONTROLS FAILED" if report.failed_controls else ""
    figure.suptitle(f"{look(report.rule).name}: {report.verdict}{trust}", fontsize=10)
    return figure


def _collapse_panel(axis: Axes, part: ScenarioReport, label: str) -> None:
    axis.axhspan(BELOW, EXTINCT, fc="none", ec="0.75", hatch="////", lw=0)
    for name in CONTROLS:
        if name != label:
            _reference(axis, part.rules[name].curves[..., -1], name)
    drawn = [part.rules[name].curves for name in {label, *CONTROLS} if name in part.rules]
    if label in part.rules:
        own = part.rules[label]
        for h, color in enumerate(PARTITION_COLORS):
            _line(axis, own.curves[..., h], color)
        if own.prediction.path is not None:
            axis.plot(_shown(own.prediction.path), "k--", lw=0.9, dashes=(3, 2), zorder=4)
    else:
        axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center")
    axis.set_yscale("log")
    highest = max(float(np.nanmax(curves[0], initial=1.0)) for curves in drawn)
    axis.set_ylim(COLLAPSE_LOWEST, max(TOP, TOP * highest))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_xlim(0, part.standard.scenario.rounds)
    verdict = part.verdict(label)
    axis.set_title(part.standard.title, loc="left", fontsize=8)
    axis.set_title(verdict, loc="right", fontsize=8, fontweight="bold", color=COLORS[verdict])


def _line(axis: Axes, curves: Array, color: str) -> None:
    """Draw median and band of the rule's own partition, (3, T + 1)."""
    median, low, high = (_shown(x) for x in curves)
    axis.fill_between(range(len(median)), low, high, color=color, alpha=0.25, lw=0)
    axis.plot(median, color=color, lw=1.8, zorder=3)


def _reference(axis: Axes, curves: Array, name: str) -> None:
    """Draw median and band of another rule's highest partition."""
    median, low, high = (_shown(x) for x in curves)
    of_rule = look(name)
    axis.fill_between(range(len(median)), low, high, color=of_rule.color, alpha=0.12, lw=0)
    axis.plot(
        median,
        color=of_rule.color,
        lw=0.8,
        marker=MARKERS[name],
        ms=3.5,
        markevery=MARKED,
        zorder=2,
    )


def _shown(energy: Array) -> Array:
    return np.where(np.isfinite(energy), np.maximum(energy, BELOW), np.nan)


def _collapse_handles(report: CollapseReport) -> list[Line2D | Patch]:
    standard = report.scenarios[0].standard
    names = [directions(standard, h) for h in range(len(standard.levels))]
    shared = [" (shared)", *[""] * (len(names) - 1)]
    own = [
        Line2D([], [], color=color, lw=1.8, label=f"{look(report.rule).name}, $i=${name}{note}")
        for color, name, note in zip(PARTITION_COLORS, names, shared, strict=True)
    ]
    others = [
        Line2D(
            *([], []),
            color=look(name).color,
            lw=0.8,
            marker=MARKERS[name],
            ms=3.5,
            label=f"{look(name).name}, $i=${names[-1]}",
        )
        for name in CONTROLS
        if name != report.rule
    ]
    share = f"{100 * (BAND[1] - BAND[0]):.0f}% of runs"
    found = [part.rules[report.rule] for part in report.scenarios if report.rule in part.rules]
    dashed = [Line2D([], [], color="k", ls="--", lw=0.9, label="predicted")]
    return [
        *own,
        *(dashed if any(outcome.prediction.path is not None for outcome in found) else []),
        *others,
        Patch(color="0.4", alpha=0.25, lw=0, label=share),
        Patch(fc="none", ec="0.75", hatch="////", lw=0, label="extinct"),
    ]


# Speed and scaling: an aggregation, a local step, and a round in other frameworks

OURS = (BLUE, "-", "^")
METHODS = {
    "aggregate": ("fedlora-sim", *OURS),
    "products": ("products alone", GRAY, ":", "o"),
    "qr": ("QR", GREEN, "--", "D"),
    "dense": ("dense SVD", VERMILLION, "-", "s"),
    "peft": ("PEFT", ORANGE, "-.", "v"),
}
LANES = {"stacked": ("fedlora-sim,\nstacked", *OURS), "loop": ("one by one", VERMILLION, "-", "s")}
OTHERS = ((BLACK, "--", "o"), (VERMILLION, "-", "s"), (GREEN, "-.", "D"), (PURPLE, ":", "v"))


def draw_scaling(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw three panels of times, median and range of the repeats, on logarithmic axes.

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
    style.letter(axes, ["one aggregation", "one local step", "one round"])
    style.name_lines(axes, ends)
    return figure, axes


def caption_scaling(data: xr.Dataset) -> str:
    """Return the caption: setting; only the times are random."""
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
) -> list[style.End]:
    ends = []
    for name, (text, color, line, marker) in styles.items():
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
            color=color,
            elinewidth=0.7,
            capsize=1.5,
        )
        ends.append(style.End(float(median[-1]), text, color))
    places = times[over].values
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(places[0] / 1.25, places[-1] * 1.25)
    axis.set_xticks(places, [str(place) for place in places])
    axis.xaxis.set_minor_locator(NullLocator())
    return ends
