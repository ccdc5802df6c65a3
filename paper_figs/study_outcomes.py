"""Where a study ends: final accuracy of every rule, beside equal ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.studies.study import HIGHEST, LOWEST, MIXED
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN

BANDS = {LOWEST: "0.6", HIGHEST: "0.25"}
PAD = 0.02


def draw(report: Mapping[str, Any]) -> tuple[Figure, np.ndarray]:
    """A panel per heterogeneity, a dot per rule; equal ranks as bands with dashed lines.

    Args:
        report: as in `study.json`.

    Returns:
        The figure and its axes, one per heterogeneity.
    """
    names, rules = list(report["study"]["heterogeneity"]), report["study"]["rules"]
    rows = {(r["heterogeneity"], r["configuration"], r["rule"]): r for r in report["rows"]}
    figure, axes = plt.subplots(
        *(1, len(names)),
        figsize=(DOUBLE_COLUMN, 0.24 * len(rules) + 1.3),
        sharey=True,
        sharex=True,
        squeeze=False,
    )
    levels = {LOWEST: report["study"]["levels"][0], HIGHEST: report["study"]["levels"][-1]}
    for axis, name in zip(axes[0], names, strict=True):
        for configuration, colour in BANDS.items():
            row = rows[name, configuration, "fedavg"]
            _band(axis, row, colour, f"all clients of rank {levels[configuration]}")
        for y, rule in enumerate(rules):
            _dot(axis, rows[name, MIXED, rule], y)
        axis.set_title(name)
    axes[0, 0].set_yticks(range(len(rules)), [look(rule).name for rule in rules])
    axes[0, 0].set_ylim(len(rules) - 0.4, -0.6)  # the first rule on top
    axes[0, 0].set_xlim(*_limits(report["rows"]))
    figure.supxlabel("test accuracy", fontsize=8)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=2)
    figure.suptitle(
        _setting(report, rows[names[0], MIXED, rules[0]]["runs"]), fontsize=8, x=0.02, ha="left"
    )
    return figure, axes[0]


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Every mean and both ends of every interval that is drawn, within [0, 1]."""
    drawn = [row for row in rows if row["configuration"] in (MIXED, *BANDS)]
    ends = [x for row in drawn for x in (row["accuracy"], *(row["accuracy_interval"] or ()))]
    return max(0.0, min(ends) - PAD), min(1.0, max(ends) + PAD)


def _setting(report: Mapping[str, Any], seeds: int) -> str:
    study, bars = report["study"], f"{100 * report['confidence']:g}% intervals"
    runs = f"mean of {seeds} seeds, {bars}" if seeds > 1 else "one seed"
    return f"{study['name']}, {study['rounds']} rounds: {runs}"


def _band(axis: Axes, row: Mapping[str, Any], colour: str, label: str) -> None:
    axis.axvline(row["accuracy"], color=colour, ls="--", lw=0.9, label=label)
    if row["accuracy_interval"] is not None:
        axis.axvspan(*row["accuracy_interval"], color=colour, alpha=0.15, lw=0)


def _dot(axis: Axes, row: Mapping[str, Any], y: int) -> None:
    of_rule = look(row["rule"])
    if row["accuracy_interval"] is not None:
        axis.hlines(y, *row["accuracy_interval"], color=of_rule.colour, lw=1)
    axis.plot(row["accuracy"], y, marker=of_rule.marker, ms=4, color=of_rule.colour, clip_on=False)
