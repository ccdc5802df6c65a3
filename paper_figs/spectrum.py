"""The spectrum over rounds as heat maps: FedAvg loses it level by level, raFLoRA keeps it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, SMALL

LOWEST = 1e-8
LINES = (1e-2, 1e-4, 1e-6)  # energies whose predicted rounds are marked


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """A panel per rule: measured energies as colours, predicted ones as lines of equal energy.

    Args:
        data: `measured`, `predicted` (rule, round, direction); `partition` and `coverage`
            (direction).

    Returns:
        The figure and its axes, one per rule.
    """
    rules = data.rule.values.tolist()
    figure, axes = plt.subplots(1, len(rules), figsize=(DOUBLE_COLUMN, 2.35), sharey=True)
    for axis, rule in zip(axes, rules, strict=True):
        shades = _panel(axis, data.sel(rule=rule))
        axis.set_xlabel("round $t$")
    labels.letter(axes, [look(rule).name for rule in rules])
    axes[0].set_ylabel("direction $i$")
    _coverages(axes[-1], data)
    bar = figure.colorbar(shades, ax=axes, label=r"energy $\sigma_i^2(t)$", extend="min", pad=0.02)
    bar.ax.minorticks_off()
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    return (
        "Energy of every direction of the global update over rounds, real factors through real "
        f"aggregation: {captions.clients(data)}, {captions.cohort(data)}. Colours are measured "
        f"(mean of {captions.seeds(data)}); white lines are where the closed form, computed "
        "before, predicts the energies written on them. FedAvg drains every partition at its "
        "own rate, its coverage $\\pi$ squared; raFLoRA keeps all of them."
    )


def _panel(axis: Axes, run: xr.Dataset) -> QuadMesh:
    direction, rounds = run.direction.values, run["round"].values
    shades = axis.pcolormesh(
        rounds,
        direction,
        np.maximum(run.measured.values, LOWEST).T,
        norm=LogNorm(LOWEST, 1),
        cmap="viridis",
        shading="nearest",
        rasterized=True,
    )
    edges = _edges(run)
    for edge in edges[:-1]:
        axis.axhline(edge, color="w", lw=0.4, alpha=0.6)
    axis.set_ylim(edges[-1], direction[0] - 0.5)
    axis.set_yticks([1, *(int(edge - 0.5) for edge in edges)])
    axis.spines[["left", "bottom"]].set_visible(False)
    for energy in LINES:
        _line(axis, run, energy)
    return shades


def _edges(run: xr.Dataset) -> list[float]:
    """Between the last direction of every partition and the next."""
    partition = run.partition.values
    return [float(run.direction.values[partition == h].max()) + 0.5 for h in np.unique(partition)]


def _line(axis: Axes, run: xr.Dataset, energy: float) -> None:
    """When the predicted energy of each direction falls to a value, a line in each partition."""
    rounds, crossed = run["round"].values, []
    for log in np.log(np.maximum(run.predicted.values, np.finfo(float).tiny)).T:
        falls = log[0] > np.log(energy) > log[-1]
        crossed.append(np.interp(-np.log(energy), -log, rounds) if falls else np.nan)
    times, partition, direction = np.array(crossed), run.partition.values, run.direction.values
    for h in np.unique(partition):
        own = partition == h
        if not np.isfinite(times[own]).any():
            continue
        y = np.concatenate([[direction[own][0] - 0.5], direction[own], [direction[own][-1] + 0.5]])
        x = np.concatenate([times[own][:1], times[own], times[own][-1:]])
        axis.plot(x, y, color="w", ls="--", lw=1)
    if np.isfinite(times).any():
        _name(axis, run, times, energy)


def _name(axis: Axes, run: xr.Dataset, times: np.ndarray, energy: float) -> None:
    """The energy, written on its line in the slowest partition in which all lines are seen."""
    partition, direction = run.partition.values, run.direction.values
    lowest = run.predicted.values[-1]
    seen = [h for h in np.unique(partition) if (lowest[partition == h] < min(LINES)).all()]
    if not seen:
        return
    own = partition == seen[0]
    middle = own.sum() // 2
    axis.annotate(
        f"$10^{{{round(np.log10(energy))}}}$",
        (times[own][middle], direction[own][middle]),
        xytext=(3, 0),
        textcoords="offset points",
        color="w",
        fontsize=SMALL,
        va="center",
    )


def _coverages(axis: Axes, data: xr.Dataset) -> None:
    """Coverage of every partition, beside it."""
    for h in np.unique(data.partition.values):
        own = data.partition.values == h
        middle = float(data.direction.values[own].mean())
        coverage = float(data.coverage.values[own][0])
        axis.annotate(
            rf"$\pi={coverage:.2g}$",
            (1, middle),
            xycoords=axis.get_yaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            annotation_clip=False,
        )
