"""Figure of a comparison of predictions: energies of each partition under each rule."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from analysis.predict import RulePrediction, directions_label
from paper_figs.style import DOUBLE_COLUMN

PER_ROW = 4
LOWEST = 1e-8  # relative to the highest energy: lower values have long collapsed
HIGHEST = 1e150  # axes must stay far from the largest floating-point number


def draw_predict(rows: Sequence[RulePrediction]) -> tuple[Figure, np.ndarray]:
    """Draw one panel per rule, or per set of equal rules: mean energy of a direction.

    Args:
        rows: result of `analysis.predict.compare`.

    Returns:
        The figure and its axes, one per panel; a floor is a dashed line, a rule without a closed
        form is named below.
    """
    panels = _panels(rows)
    height = max(1, -(-len(panels) // PER_ROW))
    columns = max(1, -(-len(panels) // height))
    size = (DOUBLE_COLUMN, 0.9 + 1.5 * height)
    figure, grid = plt.subplots(height, columns, figsize=size, sharey=True, squeeze=False)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(rows[0].scenario.federation.levels)))
    axes = grid.ravel()
    for axis, same in zip(axes, panels, strict=False):
        _panel(axis, same[0], colors)
        title = ", ".join(_name(row) for row in same)
        axis.set_title("\n".join(textwrap.wrap(title, 30)), fontsize=8)
    for axis in axes[len(panels) :]:
        axis.remove()
    _limit(axes[0], panels)
    for axis in grid[:, 0]:
        axis.set_ylabel(r"energy $E[\sigma_i^2]$")
    handles = _handles(rows[0], colors)
    if any(line.get_linestyle() == "--" for axis in axes for line in axis.lines):
        handles.append(Line2D([], [], color="0.3", ls="--", lw=0.8, label="floor"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))
    figure.supxlabel("\n".join(["round $t$", *_missing(rows)]), fontsize=8)
    # laid out once, not for each file: this halves the time
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure, axes[: len(panels)]


def _panels(rows: Sequence[RulePrediction]) -> list[list[RulePrediction]]:
    """Return the rules that have energies, grouped by equal energies."""
    panels: list[list[RulePrediction]] = []
    for row in rows:
        energy = row.of("energy")
        if energy is None:
            continue
        for same in panels:
            if np.array_equal(_energy(same[0]), energy):
                same.append(row)
                break
        else:
            panels.append([row])
    return panels


def _energy(row: RulePrediction) -> NDArray[np.float64]:
    """Return the energies (rounds + 1, partitions) of a rule that has them."""
    energy = row.of("energy")
    assert energy is not None
    return energy


def _panel(axis: Axes, row: RulePrediction, colors: np.ndarray) -> None:
    energy, floor = _energy(row), row.of("energy_floor")
    axis.set_yscale("log")
    axis.minorticks_off()
    for h, color in enumerate(colors):
        shown = (energy[:, h] > 0) & (energy[:, h] < HIGHEST)
        axis.plot(np.where(shown, energy[:, h], np.nan), color=color, lw=1.2)
        if floor is not None and np.isfinite(floor[h]) and floor[h] > 0:
            axis.axhline(floor[h], color=color, ls="--", lw=0.8)


def _limit(axis: Axes, panels: list[list[RulePrediction]]) -> None:
    shown = np.concatenate([_energy(same[0]).ravel() for same in panels])
    shown = shown[(shown > 0) & (shown < HIGHEST)]
    if shown.size:
        axis.set_ylim(max(shown.min() / 2, LOWEST * shown.max()), shown.max() * 2)


def _handles(row: RulePrediction, colors: np.ndarray) -> list[Line2D]:
    covered = row.of("coverage")
    assert covered is not None
    return [
        Line2D([], [], color=color, label=f"$i=$ {directions_label(part)}, coverage {c:.2g}")
        for color, part, c in zip(colors, row.scenario.federation.partitions, covered, strict=True)
    ]


def _missing(rows: Sequence[RulePrediction]) -> list[str]:
    names = [_name(row) for row in rows if row.of("energy") is None]
    return [f"no closed form here: {', '.join(names)}"] if names else []


def _name(row: RulePrediction) -> str:
    """Return the rule's name as in the tables; display names need torch, which takes seconds."""
    policy = "" if row.empty_partition is None else f"\N{NO-BREAK SPACE}({row.empty_partition})"
    return row.rule + policy
