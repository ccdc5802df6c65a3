"""The staircase of rates: predicted energy factor per round and the measured one, per partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, LINES, SINGLE_COLUMN

CLAIMS = {"zero-pad-fourth-power": "zero_pad", "staircase": "fedavg", "raflora-flat": "raflora"}
TITLES = {"all": "all take part, real factors", "cohorts": "sampled cohorts"}
POWERS = {"all": {"zero_pad": r"$\pi^4$", "fedavg": r"$\pi^2$", "raflora": "$1$"}}
POWERS["cohorts"] = {"zero_pad": "$E[W^4]$", "fedavg": "$E[W^2]$", "raflora": "$1$"}
HALF = 0.5


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """A panel per setting: predicted rates as stairs, measured ones as dots with intervals.

    Args:
        data: `predicted`, `measured`, `low`, `high` (setting, rule, partition), relative to the
            shared partition; `coverage` (partition) where it is known.

    Returns:
        The figure and its axes, one per setting.
    """
    settings = data.setting.values.tolist()
    width = DOUBLE_COLUMN if len(settings) > 1 else SINGLE_COLUMN
    figure, axes = plt.subplots(
        1, len(settings), figsize=(width, 2.3), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, setting in zip(axes[0], settings, strict=True):
        _panel(axis, data.sel(setting=setting))
    labels.letter(axes[0], [TITLES[setting] for setting in settings])
    axes[0, 0].set_ylabel(
        "energy factor per round,\nover the shared partition's", linespacing=LINES
    )
    labels.name_lines(axes[0], [_ends(data.sel(setting=setting), setting) for setting in settings])
    return figure, axes[0]


def from_claims(claims: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """The panel of a verification: its claims on rates under full participation.

    Args:
        claims: entries of the report by id; those of `CLAIMS` are taken.
    """
    dims, unit = ("setting", "rule", "partition"), [1.0]
    of = {rule: claims[claim_id] for claim_id, rule in CLAIMS.items()}
    ends = {rule: np.array(claim["interval"], dtype=float).T for rule, claim in of.items()}
    rows = {
        "predicted": [[*unit, *claim["prediction"]] for claim in of.values()],
        "measured": [[*unit, *claim["measurement"]] for claim in of.values()],
        "low": [[*unit, *ends[rule][0]] for rule in of],
        "high": [[*unit, *ends[rule][1]] for rule in of],
    }
    data = {name: (dims, np.array([row], dtype=float)) for name, row in rows.items()}
    partition = np.arange(1, 1 + len(rows["predicted"][0]))
    return xr.Dataset(data, {"setting": ["all"], "rule": list(of), "partition": partition})


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    return (
        "Factor per round of the mean energy of every partition over that of the shared one: "
        f"lines predicted before, dots measured, with {captions.percent(attrs['confidence'])} "
        f"intervals each for itself (most are smaller than the dots). {captions.clients(data)}. "
        f"(a) Real factors, all take part, {attrs['matrix_runs']} runs. (b) Amplitudes, "
        f"{attrs['cohort_size']} clients a round at random, {attrs['rounds']} rounds, "
        f"{captions.seeds(data)}. $\\pi$ is the coverage, $W$ the share of a round's weight that "
        "carries the direction."
    )


def _ends(of: xr.Dataset, setting: str) -> list[labels.End]:
    """Rules with their rates, where the stairs end."""
    last = {rule: float(of.predicted.sel(rule=rule)[-1]) for rule in of.rule.values.tolist()}
    return [
        labels.End(y, f"{look(rule).name}, {POWERS[setting][rule]}", look(rule).colour)
        for rule, y in last.items()
        if np.isfinite(y)
    ]


def _panel(axis: Axes, of: xr.Dataset) -> None:
    partition = of.partition.values
    for rule in of.rule.values.tolist():
        own, of_rule = of.sel(rule=rule), look(rule)
        predicted = own.predicted.values
        x = np.concatenate([[partition[0] - HALF], partition + HALF])
        axis.stairs(predicted, x, baseline=None, color=of_rule.colour, lw=1.1)
        bars = np.abs(np.stack([own.measured - own.low, own.high - own.measured]))[:, 1:]
        axis.errorbar(
            partition[1:],
            own.measured.values[1:],
            bars,
            fmt=of_rule.marker,
            ms=3.5,
            color=of_rule.colour,
            capsize=2,
            elinewidth=0.8,
        )
    axis.set_yscale("log")
    axis.set_xlim(partition[0] - HALF, partition[-1] + HALF)
    names = [f"{h}" for h in partition]
    if "coverage" in of.coords:
        names = [f"{h}\n{c:.2g}" for h, c in zip(partition, of.coverage.values, strict=True)]
    axis.set_xticks(partition, names)
    axis.tick_params("x", length=0)
    axis.set_xlabel(
        "partition $h$" + (r", and its coverage $\pi$" if "coverage" in of.coords else "")
    )
