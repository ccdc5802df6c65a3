"""A study over its rounds: accuracy, energy above the lowest rank, effective rank, premise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.studies.calibrate import energy_floor
from paper_figs.rules import look, ranks_text
from paper_figs.series import draw_runs
from paper_figs.style import DOUBLE_COLUMN

LOWEST = energy_floor("float32")
"""Models train in single precision: a lower share of the energy is rounding, and drawn as this."""


def quantities(curves: xr.Dataset, level: int) -> dict[str, xr.DataArray]:
    """What is shown, by label: the second on a logarithmic axis."""
    return {
        "test accuracy": curves.accuracy,
        f"energy above rank {level}": (1 - curves.rho).clip(min=LOWEST),
        "effective rank": curves.effective_rank,
        "directions preserved": curves.preservation,
    }


def log_row(axes: Iterable[Axes]) -> None:
    """Make the axes of energies logarithmic."""
    for axis in axes:
        axis.set_yscale("log")
        axis.minorticks_off()


def draw(curves: xr.Dataset, report: Mapping[str, Any]) -> tuple[Figure, np.ndarray]:
    """A column per heterogeneity, a row per quantity; mean over runs, and their range.

    Args:
        curves: `accuracy`, `rho`, `effective_rank` and `preservation`, dimensions (heterogeneity,
            rule, run, round).
        report: as in `study.json`; it says what was run.

    Returns:
        The figure and its axes, (quantity, heterogeneity).
    """
    study = report["study"]
    shown = quantities(curves, study["levels"][0])
    names = curves.heterogeneity.values.tolist()
    figure, axes = plt.subplots(
        *(len(shown), len(names)),
        figsize=(DOUBLE_COLUMN, 1.4 * len(shown) + 0.8),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for row, (label, values) in zip(axes, shown.items(), strict=True):
        row[0].set_ylabel(label)
        for axis, name in zip(row, names, strict=True):
            for rule in values.rule.values.tolist():
                of, of_rule = values.sel(heterogeneity=name, rule=rule), look(rule)
                style: dict[str, Any] = {"colour": of_rule.colour, "line": of_rule.line}
                draw_runs(axis, of, "run", label=of_rule.name, width=1.1, band=0.12, **style)
    log_row(axes[1])
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("round $t$")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=2.6)
    seeds = curves.sizes["run"]
    runs = f"mean of {seeds} seeds, and their range" if seeds > 1 else "one seed"
    figure.suptitle(f"{study['name']}, ranks {ranks_text(study['ranks'])}: {runs}", fontsize=8)
    return figure, axes
