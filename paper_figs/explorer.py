"""A federation under one rule at a glance: spectrum, energies over rounds, training, verdict."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from analysis.cohorts.law import Array
from analysis.collapse.measure import Collapse
from analysis.explorer import Exploration, Row
from paper_figs import labels
from paper_figs.rules import look
from paper_figs.style import RULE_COLOURS, SMALL, partition_colours

SIZE = (9.0, 4.6)  # inches
LINE, GAP = 0.19, 0.45  # of the table's lines, and between it and the panels
LOWEST, TOP = 1e-8, 20.0
WORDS = {Collapse.KEEPS: "kept", Collapse.COLLAPSES: "lost", Collapse.UNDECIDED: "?"}
COLOURS = {
    Collapse.KEEPS: RULE_COLOURS["raflora"],
    Collapse.COLLAPSES: RULE_COLOURS["fedavg"],
    Collapse.UNDECIDED: "0.4",
}
ABSENT = "–"
COLUMNS = (
    "directions",
    "coverage $\\pi$",
    "$P_0$",
    "mean rate",
    "typical rate",
    "half-life",
    "alive at the end",
    "drift floor",
    "no training",
    "$T^*$",
    "held at",
    "training",
)
"""Heads of the table; the verdicts stand under `no training` and `training`."""


def draw(found: Exploration) -> tuple[Figure, np.ndarray]:
    """Three panels over a table; all of it from closed forms.

    Args:
        found: any exploration.

    Returns:
        The figure and its axes: energies over rounds, spectrum, training, and the table's.
    """
    # Neither pyplot nor a layout engine: places are fixed, and a picture takes a fifth of the time.
    figure = Figure(figsize=SIZE)
    figure.set_layout_engine("none")
    room = (LINE * (len(found.rows) + 1) + GAP) / SIZE[1]
    grid = figure.add_gridspec(
        2,
        3,
        height_ratios=(0.88 - room, room),
        left=0.06,
        right=0.99,
        top=0.87,
        bottom=0.01,
        wspace=0.27,
    )
    panels = [figure.add_subplot(grid[0, j]) for j in range(3)]
    _energies(panels[0], found)
    _spectrum(panels[1], found)
    _training(panels[2], found)
    alive = "" if found.case.is_full else ", in runs that survive"
    titles = ("clients that return $a x + b$", "what is left of them", f"clients that train{alive}")
    labels.letter(panels, titles)
    table = figure.add_subplot(grid[1, :])
    _table(table, found)
    name = found.rule
    figure.suptitle(found.sentence.replace(name, look(name).name, 1), fontsize=10)
    return figure, np.array([*panels, table])


def _energies(axis: Axes, found: Exploration) -> None:
    _over_rounds(axis, found, found.energy, "mean energy $E[x_i^2]$")
    if found.energy is None:
        return
    rounds = np.arange(len(found.energy))
    for row, part in zip(found.rows, found.case.partitions, strict=True):
        typical = found.energy[0, part.stop - 1] * row.typical**rounds
        axis.plot(rounds, _shown(typical), "k--", lw=0.8)
    dashed = Line2D([], [], color="k", ls="--", lw=0.8, label="left of the start, typical run")
    axis.legend(handles=[dashed], loc="upper right", borderaxespad=0, fontsize=SMALL)


def _training(axis: Axes, found: Exploration) -> None:
    path = None if found.training is None else found.training**2
    missing = "no local training" if found.case.local_time is None else ""
    _over_rounds(axis, found, path, "energy over the target's", missing)
    if path is not None:
        for row in found.rows:
            axis.axhline(max(row.held**2, LOWEST / 10), color="k", ls=":", lw=0.8)


def _over_rounds(
    axis: Axes, found: Exploration, energy: Array | None, label: str, missing: str = ""
) -> None:
    """Energies (rounds + 1, r_max) as lines, coloured by partition."""
    _decades(axis)
    axis.set_xlim(0, found.case.rounds)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_xlabel("round $t$")
    axis.set_ylabel(label)
    if energy is None:
        _say(axis, missing or "no closed form here")
        return
    for part, colour in zip(found.case.partitions, _colours(found), strict=True):
        axis.plot(_shown(energy[:, part]), color=colour, lw=0.9)


def _spectrum(axis: Axes, found: Exploration) -> None:
    """Energies by direction at the start and at the end."""
    _decades(axis)
    axis.set_xlabel("direction $i$")
    axis.set_ylabel(f"energy after {found.case.rounds} rounds")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if found.energy is None:
        _say(axis, "no closed form here")
        return
    direction = np.arange(1, found.energy.shape[1] + 1)
    for part, colour in zip(found.case.partitions, _colours(found), strict=True):
        axis.bar(direction[part], _shown(found.energy[-1, part]), 0.75, color=colour)
    axis.step(direction, found.energy[0], where="mid", color="0.4", lw=0.9, label="at the start")
    axis.legend(loc="upper right", borderaxespad=0)


def _table(axis: Axes, found: Exploration) -> None:
    """Numbers by partition, in columns."""
    axis.set_axis_off()
    axis.set_xlim(0, len(COLUMNS))
    axis.set_ylim(len(found.rows) + 0.6, -0.6)
    for j, head in enumerate(COLUMNS):
        axis.text(j + 0.5, 0, head, ha="center", va="center", fontsize=SMALL, color="0.3")
    for i, (row, colour) in enumerate(zip(found.rows, _colours(found), strict=True), 1):
        for j, (text, ink) in enumerate(_cells(row, shared=i == 1)):
            axis.text(
                j + 0.5, i, text, ha="center", va="center", fontsize=SMALL, color=ink or colour
            )


def _cells(row: Row, *, shared: bool) -> list[tuple[str, str]]:
    """Texts with their colours; none for that of the partition."""
    told = [
        f"{row.coverage:.3g}",
        f"{row.empty:.3g}",
        f"{row.rate:.4g}",
        f"{row.typical:.4g}",
        "never" if np.isinf(row.half_life) else f"{row.half_life:.3g} rounds",
        f"{100 * row.survival:.3g}%",
        "none" if np.isinf(row.floor) else f"{row.floor:.3g}",
    ]
    trains = [f"{row.threshold:.3g}", f"{row.held:.3g}"]
    black = "k"
    return [
        (row.directions, ""),
        *((_known(text), black) for text in told),
        _verdict(None if shared else row.passive),
        *((_known(text), black) for text in trains),
        _verdict(None if shared else row.trained),
    ]


def _known(text: str) -> str:
    return ABSENT if text.startswith("nan") else text


def _verdict(verdict: Collapse | None) -> tuple[str, str]:
    return (ABSENT, "0.4") if verdict is None else (WORDS[verdict], COLOURS[verdict])


def _colours(found: Exploration) -> list[Any]:
    return partition_colours(len(found.rows))


def _decades(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.set_ylim(LOWEST, TOP)
    axis.yaxis.set_minor_locator(NullLocator())


def _shown(energy: Array) -> Array:
    """What is gone is drawn below the axis, so that a line is seen to leave it."""
    return np.maximum(energy, LOWEST / 10)


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", color="0.4")
