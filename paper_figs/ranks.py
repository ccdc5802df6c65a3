"""Rank configurations: the fewer clients carry the high ranks, the less FedAvg keeps of them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figs import captions, labels
from paper_figs.rules import look
from paper_figs.style import DOUBLE_COLUMN, SMALL

SPREAD = 0.09  # between the splits of one configuration


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Left: simulated, over the number of high-rank clients. Right: the real run.

    Args:
        data: `predicted` (rule, size), `measured`, `low`, `high` (rule, measured_size), `real`,
            `real_low`, `real_high` (rule, configuration, split).

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(DOUBLE_COLUMN, 2.4), gridspec_kw={"width_ratios": [3, 2], "wspace": 0.06}
    )
    for rule in data.rule.values.tolist():
        _simulated(axes[0], data.sel(rule=rule), rule)
        _real(axes[1], data.sel(rule=rule), rule)
    attrs = data.attrs
    axes[0].set_xlabel(f"clients of rank {attrs['high_rank']}, of {attrs['clients']}")
    axes[0].set_ylabel(f"energy above rank {attrs['low_rank']}, $1-\\rho$")
    axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_xlim(0.5, attrs["clients"] - 0.5)
    axes[1].set_ylabel("the same, after the last round")
    for axis in axes:
        axis.set_yscale("log")
        axis.set_ylim(None, 2)
    axes[1].set_xticks(range(data.sizes["configuration"]), data.configuration.values.tolist())
    axes[1].set_xlim(-0.5, data.sizes["configuration"] - 0.5)
    axes[1].tick_params("x", length=0)
    labels.letter(axes, ["simulated and predicted", f"real fine-tuning, {attrs['study']}"])
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    attrs = data.attrs
    return (
        "Sensitivity to the rank configuration. (a) Share of the energy above rank "
        f"{attrs['low_rank']} after {attrs['rounds']} rounds, {attrs['clients']} clients of "
        f"ranks {attrs['low_rank']} and {attrs['high_rank']}, {captions.cohort(data)}, gains of "
        f"mean 1 and deviation {attrs['gain_std']:g}: lines predicted before, markers measured, "
        f"with {captions.percent(attrs['confidence'])} intervals each for itself; "
        f"{captions.seeds(data)}. (b) The same of real updates after {attrs['study_rounds']} "
        f"rounds, a marker for each of {data.sizes['split']} splits of the data (left to right "
        f"{captions.joined(data.split.values)}), mean of {attrs['study_runs']} seeds "
        f"({attrs['study_first_seed']}–{attrs['study_last_seed']} in all), from the record: few "
        f"high, {captions.configuration(attrs['study_few'])}; mixed, "
        f"{captions.clients(data, 'study_ranks')}; many high, "
        f"{captions.configuration(attrs['study_many'])}."
    )


def _simulated(axis: Axes, of: xr.Dataset, rule: str) -> None:
    of_rule = look(rule)
    axis.plot(of["size"], of.predicted, color=of_rule.colour, lw=1.1)
    bars = np.maximum(np.stack([of.measured - of.low, of.high - of.measured]), 0.0)
    axis.errorbar(
        of.measured_size,
        of.measured,
        bars,
        fmt=of_rule.marker,
        ms=3.5,
        color=of_rule.colour,
        capsize=2,
        elinewidth=0.8,
    )
    middle = of.sizes["size"] // 2
    axis.annotate(
        of_rule.name,
        (float(of["size"][middle]), float(of.predicted[middle])),
        xytext=(4, -11),
        textcoords="offset points",
        color=of_rule.colour,
        fontsize=SMALL,
    )


def _real(axis: Axes, of: xr.Dataset, rule: str) -> None:
    of_rule, splits = look(rule), of.sizes["split"]
    for j in range(splits):
        x = np.arange(of.sizes["configuration"]) + (j - (splits - 1) / 2) * SPREAD
        axis.plot(x, of["real"].values[:, j], of_rule.marker, ms=3.5, color=of_rule.colour)
    middle = of["real"].values.mean(axis=1)
    axis.plot(range(len(middle)), middle, color=of_rule.colour, lw=0.7, ls=":")
    axis.annotate(
        of_rule.name,
        (1, float(middle[1])),
        xytext=(14, -12),
        textcoords="offset points",
        color=of_rule.colour,
        fontsize=SMALL,
    )
