"""Predicted energies of every partition under every rule, before anything is simulated."""

from __future__ import annotations

import textwrap

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.predict import Prediction, RulePrediction, directions_label
from paper_figs.style import DOUBLE_COLUMN

PER_ROW = 4
LOWEST = 1e-8  # of the highest energy: what falls below has long collapsed
HIGHEST = 1e150  # axes must stay far from the largest number there is
NAMES = {
    "fedavg": "FedAvg",
    "fedex": "FedEx",
    "ffa": "FFA",
    "flora": "FLoRA",
    "hetlora": "HetLoRA",
    "raflora": "raFLoRA",
    "rbla": "RBLA",
    "zero_pad": "zero padding",
}


def draw(prediction: Prediction) -> tuple[Figure, np.ndarray]:
    """One panel per rule, or per set of rules that do the same: mean energy of a direction.

    Args:
        prediction: what `analysis.predict.predict` returned.

    Returns:
        The figure and its axes, one per panel; a floor is a dashed line, a rule without a closed
        form is named below.
    """
    panels = _panels(prediction)
    rows = max(1, -(-len(panels) // PER_ROW))
    columns = max(1, -(-len(panels) // rows))
    size = (DOUBLE_COLUMN, 0.9 + 1.5 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(prediction.case.partitions)))
    axes = grid.ravel()
    for axis, same in zip(axes, panels, strict=False):
        _panel(axis, same[0], colours)
        title = ", ".join(_name(row) for row in same)
        axis.set_title("\n".join(textwrap.wrap(title, 30)), fontsize=8)
    for axis in axes[len(panels) :]:
        axis.remove()
    _limit(axes[0], panels)
    for axis in grid[:, 0]:
        axis.set_ylabel(r"energy $E[\sigma_i^2]$")
    handles = _handles(prediction, colours)
    if any(line.get_linestyle() == "--" for axis in axes for line in axis.lines):
        handles.append(Line2D([], [], color="0.3", ls="--", lw=0.8, label="floor"))
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))
    figure.supxlabel("\n".join(["round $t$", *_missing(prediction)]), fontsize=8)
    # laid out once, not again for each file: that is half of the time that drawing takes
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure, axes[: len(panels)]


def _panels(prediction: Prediction) -> list[list[RulePrediction]]:
    """Rules that have energies, those of equal energies together."""
    panels: list[list[RulePrediction]] = []
    for row in prediction.rules:
        if "energy" not in row.values:
            continue
        for same in panels:
            if np.array_equal(same[0].values["energy"], row.values["energy"]):
                same.append(row)
                break
        else:
            panels.append([row])
    return panels


def _panel(axis: Axes, row: RulePrediction, colours: np.ndarray) -> None:
    energy = row.values["energy"]
    floor = row.values.get("energy_floor")
    axis.set_yscale("log")
    axis.minorticks_off()
    for h, colour in enumerate(colours):
        shown = (energy[:, h] > 0) & (energy[:, h] < HIGHEST)
        axis.plot(np.where(shown, energy[:, h], np.nan), color=colour, lw=1.2)
        if floor is not None and np.isfinite(floor[h]) and floor[h] > 0:
            axis.axhline(floor[h], color=colour, ls="--", lw=0.8)


def _limit(axis: Axes, panels: list[list[RulePrediction]]) -> None:
    shown = np.concatenate([same[0].values["energy"].ravel() for same in panels])
    shown = shown[(shown > 0) & (shown < HIGHEST)]
    if shown.size:
        axis.set_ylim(max(shown.min() / 2, LOWEST * shown.max()), shown.max() * 2)


def _handles(prediction: Prediction, colours: np.ndarray) -> list[Line2D]:
    return [
        Line2D([], [], color=colour, label=f"$i=$ {directions_label(part)}, coverage {c:.2g}")
        for colour, part, c in zip(
            colours, prediction.case.partitions, prediction.coverage, strict=True
        )
    ]


def _missing(prediction: Prediction) -> list[str]:
    names = [_name(row) for row in prediction.rules if "energy" not in row.values]
    return [f"no closed form here: {', '.join(names)}"] if names else []


def _name(row: RulePrediction) -> str:
    name = NAMES.get(row.rule, row.rule)
    return (
        name if row.empty_partition is None else f"{name}\N{NO-BREAK SPACE}({row.empty_partition})"
    )
