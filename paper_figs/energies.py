"""Energies over rounds: FedAvg's staircase of decays beside raFLoRA's flat lines."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from paper_figs.style import DOUBLE_COLUMN, PARTITION_COLOURS, RULE_NAMES

RULES = ("zero_pad", "fedavg", "raflora")
FLOOR = 1e-10


def draw(energies: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """One panel per rule: measured energy of every direction, the prediction dashed in black.

    Args:
        energies: `energy` (rule, seed, round, direction) and `predicted_energy`.

    Returns:
        The figure and its axes, one per rule.
    """
    figure, axes = plt.subplots(1, len(RULES), figsize=(DOUBLE_COLUMN, 2.5), sharey=True)
    for axis, rule in zip(axes, RULES, strict=True):
        _panel(axis, energies.sel(rule=rule))
        axis.set_title(RULE_NAMES[rule])
        axis.set_xlabel("round $t$")
    axes[0].set_ylabel(r"energy $\sigma_i^2(t)$")
    axes[0].set_ylim(FLOOR, 3)
    axes[-1].legend(handles=_handles(energies), loc="lower left", fontsize=8, handlelength=1.5)
    return figure, axes


def _panel(axis: Axes, run: xr.Dataset) -> None:
    partition = run.partition.values
    for j in range(run.sizes["direction"]):
        mean = run.energy.mean("seed").values[:, j]
        axis.semilogy(run["round"], mean, color=PARTITION_COLOURS[partition[j] - 1], lw=0.9)
    last = [int(np.flatnonzero(partition == h)[-1]) for h in np.unique(partition)]
    axis.semilogy(run["round"], run.predicted_energy.values[:, last], "k--", lw=0.8)


def _handles(energies: xr.Dataset) -> list[Line2D]:
    edges = [
        int(energies.direction.values[energies.partition.values == h].max()) for h in (1, 2, 3)
    ]
    starts = [1, *(edge + 1 for edge in edges[:-1])]
    coverage = [float(energies.coverage.values[edge - 1]) for edge in edges]
    measured = [
        Line2D([], [], color=colour, label=f"$i={a}$–${b}$, coverage {c:.2g}")
        for colour, a, b, c in zip(PARTITION_COLOURS, starts, edges, coverage, strict=True)
    ]
    return [*measured, Line2D([], [], color="k", ls="--", lw=0.8, label="predicted")]
