"""Energy above the lowest rank over rounds, for every rule, beside the bound of the theory."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, SMALL

MARKED = 4  # rounds between markers


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """One panel: `1 - rho` predicted as lines and measured as markers, the bound dotted.

    Args:
        data: `predicted`, `measured` (rule, round), `bound` (round).

    Returns:
        The figure and its axis, in an array.
    """
    figure, axis = plt.subplots(figsize=(DOUBLE_COLUMN, 2.9))
    rounds = data["round"].values
    axis.plot(rounds, data.bound, color="k", ls=":", lw=1.4)
    for j, rule in enumerate(data.rule.values.tolist()):
        own, of_rule = data.sel(rule=rule), look(rule)
        axis.plot(rounds, own.predicted, color=of_rule.colour, ls=of_rule.line, lw=1.1)
        shown = slice(1 + j % MARKED, None, MARKED)  # markers of lines that coincide alternate
        axis.plot(
            rounds[shown],
            own.measured.values[shown],
            of_rule.marker,
            ms=4,
            mew=0,
            color=of_rule.colour,
        )
    axis.set_yscale("log")
    axis.set_xlim(0, rounds[-1])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("round $t$")
    level = data.attrs.get("level", r"l_1")
    axis.set_ylabel(rf"energy above rank {level}, $1-\rho_{{{level}}}(t)$")
    middle = len(rounds) // 2
    axis.annotate(
        r"bound $C\gamma^t$",
        (rounds[middle], float(data.bound[middle])),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=SMALL,
        ha="left",
        va="bottom",
    )
    ends = [
        labels.End(float(data.predicted.sel(rule=rule)[-1]), look(rule).name, look(rule).colour)
        for rule in data.rule.values.tolist()
    ]
    labels.name_lines([axis], [labels.together(ends)])
    return figure, np.array([axis])


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    return (
        f"Share of the energy above the lowest rank {attrs['level']} over rounds under every "
        "rule: lines predicted before, markers measured on real factors. "
        f"{captions.clients(data)}, {captions.cohort(data)}; mean of {captions.seeds(data)}. "
        f"Dotted: the bound $C\\gamma^t$ on FedAvg, with $\\gamma={attrs['gamma']:.4g}$, the "
        f"squared coverage of the second rank level, and $C={attrs['constant']:.3g}$. Rules that "
        "are named together coincide."
    )
