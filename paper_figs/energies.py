"""Energies over rounds: FedAvg's staircase of decays beside raFLoRA's flat lines."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, partition_colours

RULES = ("zero_pad", "fedavg", "raflora")
FLOOR = 1e-10


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """One panel per rule: measured energy of every direction, the prediction dashed in black.

    Args:
        data: `energy` (rule, seed, round, direction) and `predicted_energy`; `partition` and
            `coverage` (direction).

    Returns:
        The figure and its axes, one per rule.
    """
    figure, axes = plt.subplots(1, len(RULES), figsize=(DOUBLE_COLUMN, 2.2), sharey=True)
    for axis, rule in zip(axes, RULES, strict=True):
        _panel(axis, data.sel(rule=rule))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("round $t$")
    labels.letter(axes, [look(rule).name for rule in RULES])
    axes[0].set_ylabel(r"energy $\sigma_i^2(t)$")
    axes[0].set_ylim(FLOOR, 3)
    labels.name_lines(axes[-1:], [_ends(data)])
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    return (
        f"Energy of each of {data.sizes['direction']} singular directions over rounds, real "
        f"factors through real aggregation (mean of {captions.seeds(data)}); dashed, the closed "
        f"form, computed without simulating. {captions.clients(data)}, {captions.cohort(data)}; "
        "$\\pi$: coverage."
    )


def _panel(axis: Axes, run: xr.Dataset) -> None:
    partition, colours = run.partition.values, partition_colours(len(np.unique(run.partition)))
    for j in range(run.sizes["direction"]):
        mean = run.energy.mean("seed").values[:, j]
        axis.semilogy(run["round"], mean, color=colours[partition[j] - 1], lw=0.9)
    last = [int(np.flatnonzero(partition == h)[-1]) for h in np.unique(partition)]
    axis.semilogy(run["round"], run.predicted_energy.values[:, last], "k--", lw=0.8)
    axis.set_xlim(0, run["round"].values[-1])


def _ends(data: xr.Dataset) -> list[labels.End]:
    """Partitions, named where the flat lines of the last panel end."""
    partition, run, ends = data.partition.values, data.sel(rule=RULES[-1]), []
    final = run.energy.mean("seed").values[-1]
    for h, colour in enumerate(partition_colours(len(np.unique(partition))), 1):
        own = np.flatnonzero(partition == h)
        first, last = (int(data.direction.values[j]) for j in (own[0], own[-1]))
        text = f"$i=${first}–{last}, $\\pi=${float(data.coverage.values[own[0]]):.2g}"
        ends.append(labels.End(float(np.median(final[own])), text, colour))
    return ends
