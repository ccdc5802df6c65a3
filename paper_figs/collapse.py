"""Does a rule collapse? Energies of its partitions in every standard scenario."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.collapse.measure import EXTINCT, Collapse
from analysis.collapse.outcome import BAND
from analysis.collapse.report import CONTROLS, CollapseReport, ScenarioReport, directions
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, PARTITION_COLOURS, RULE_COLOURS

Array = NDArray[np.float64]

COLUMNS = 3
HEIGHT = 2.1  # inches a row
LOWEST = EXTINCT / 10
BELOW = LOWEST / 100
"""What is gone is drawn here, out of sight, so that a line is seen to leave the panel."""
TOP = 10.0
MARKED = 4  # rounds between markers
COLOURS = {
    Collapse.COLLAPSES: RULE_COLOURS["fedavg"],
    Collapse.KEEPS: RULE_COLOURS["raflora"],
    Collapse.UNDECIDED: "0.4",
}
MARKERS = {"fedavg": "v", "raflora": "^"}


def draw(report: CollapseReport) -> Figure:
    """One panel per scenario: the rule's partitions, and the highest one of FedAvg and raFLoRA.

    Args:
        report: any collapse report.

    Returns:
        The figure. Lines are medians over runs, bands hold 80% of the runs, predictions are dashed.
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
        _panel(axis, part, report.rule)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel("energy / energy at the start")
    for axis in axes.flat[max(0, count - columns) : count]:
        axis.set_xlabel("round $t$")
    handles = _handles(report)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, columns + 1), fontsize=7
    )
    trust = "; THE CONTROLS FAILED" if report.failed_controls else ""
    figure.suptitle(f"{look(report.rule).name}: {report.verdict}{trust}", fontsize=10)
    return figure


def _panel(axis: Axes, part: ScenarioReport, label: str) -> None:
    axis.axhspan(BELOW, EXTINCT, fc="none", ec="0.75", hatch="////", lw=0)
    for name in CONTROLS:
        if name != label:
            _reference(axis, part.rules[name].curves[..., -1], name)
    drawn = [part.rules[name].curves for name in {label, *CONTROLS} if name in part.rules]
    if label in part.rules:
        own = part.rules[label]
        for h, colour in enumerate(PARTITION_COLOURS):
            _line(axis, own.curves[..., h], colour)
        if own.prediction.path is not None:
            axis.plot(_shown(own.prediction.path), "k--", lw=0.9, dashes=(3, 2), zorder=4)
    else:
        axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center")
    axis.set_yscale("log")
    highest = max(float(np.nanmax(curves[0], initial=1.0)) for curves in drawn)
    axis.set_ylim(LOWEST, max(TOP, TOP * highest))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_xlim(0, part.standard.scenario.rounds)
    verdict = part.verdict(label)
    axis.set_title(part.standard.title, loc="left", fontsize=8)
    axis.set_title(verdict, loc="right", fontsize=8, fontweight="bold", color=COLOURS[verdict])


def _line(axis: Axes, curves: Array, colour: str) -> None:
    """Median and band of the rule's own partition, (3, T + 1)."""
    median, low, high = (_shown(x) for x in curves)
    axis.fill_between(range(len(median)), low, high, color=colour, alpha=0.25, lw=0)
    axis.plot(median, color=colour, lw=1.8, zorder=3)


def _reference(axis: Axes, curves: Array, name: str) -> None:
    """Median and band of another rule's highest partition."""
    median, low, high = (_shown(x) for x in curves)
    of_rule = look(name)
    axis.fill_between(range(len(median)), low, high, color=of_rule.colour, alpha=0.12, lw=0)
    axis.plot(
        median,
        color=of_rule.colour,
        lw=0.8,
        marker=MARKERS[name],
        ms=3.5,
        markevery=MARKED,
        zorder=2,
    )


def _shown(energy: Array) -> Array:
    return np.where(np.isfinite(energy), np.maximum(energy, BELOW), np.nan)


def _handles(report: CollapseReport) -> list[Line2D | Patch]:
    standard = report.scenarios[0].standard
    names = [directions(standard, h) for h in range(len(standard.levels))]
    shared = [" (shared)", *[""] * (len(names) - 1)]
    own = [
        Line2D([], [], color=colour, lw=1.8, label=f"{look(report.rule).name}, $i=${name}{note}")
        for colour, name, note in zip(PARTITION_COLOURS, names, shared, strict=True)
    ]
    others = [
        Line2D(
            *([], []),
            color=look(name).colour,
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
