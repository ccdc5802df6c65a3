"""A study over its rounds: accuracy, energy above the lowest rank, effective rank, premise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.real.updates import energy_floor
from paper_figs.rules import look, ranks_text
from paper_figs.style import DOUBLE_COLUMN

LOWEST = energy_floor("float32")
"""Models train in single precision: a lower share of the energy is rounding, and drawn as this."""


def draw(curves: xr.Dataset, report: Mapping[str, Any]) -> tuple[Figure, np.ndarray]:
    """A column per heterogeneity, a row per quantity; mean over runs, and their range.

    Args:
        curves: `accuracy`, `rho`, `effective_rank` and `preservation`, dimensions (heterogeneity,
            rule, run, round).
        report: as in `study.json`; it says what was run.

    Returns:
        The figure and its axes, (quantity, heterogeneity).
    """
    study, above = report["study"], (1 - curves.rho).clip(min=LOWEST)
    quantities = {
        "test accuracy": curves.accuracy,
        f"energy above rank {study['levels'][0]}": above,
        "effective rank": curves.effective_rank,
        "directions preserved": curves.preservation,
    }
    names = curves.heterogeneity.values.tolist()
    figure, axes = plt.subplots(
        *(len(quantities), len(names)),
        figsize=(DOUBLE_COLUMN, 1.5 * len(quantities) + 0.8),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for row, (label, values) in zip(axes, quantities.items(), strict=True):
        row[0].set_ylabel(label)
        for axis, name in zip(row, names, strict=True):
            _panel(axis, values.sel(heterogeneity=name))
    for axis in axes[1]:
        axis.set_yscale("log")
        axis.minorticks_off()
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("round $t$")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=7)
    seeds = curves.sizes["run"]
    runs = f"mean of {seeds} seeds, and their range" if seeds > 1 else "one seed"
    figure.suptitle(f"{study['name']}, ranks {ranks_text(study['ranks'])}: {runs}", fontsize=9)
    return figure, axes


def _panel(axis: Axes, values: xr.DataArray) -> None:
    for rule in values.rule.values.tolist():
        own, of_rule = values.sel(rule=rule), look(rule)
        own = own.dropna("round", how="all")  # rounds that were not judged
        rounds = own["round"].values
        axis.plot(
            rounds,
            own.mean("run"),
            color=of_rule.colour,
            ls=of_rule.line,
            lw=1.1,
            label=of_rule.name,
        )
        low, high = own.min("run"), own.max("run")
        axis.fill_between(rounds, low, high, color=of_rule.colour, alpha=0.12, lw=0)
