"""Figures of cohorts: participation, allocation and rank configurations."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.formats import percent
from paper_figs import style
from paper_figs.style import (
    BLUE,
    DOUBLE_COLUMN,
    GRAY,
    LINES,
    PURPLE,
    SKY,
    SMALL,
    VERMILLION,
    look,
    partition_colors,
)

# Participation: with fewer clients the mean energy and the typical run move in opposite directions

PARTICIPATION_COLORS = {"mean energy": VERMILLION, "typical surviving run": BLUE, "survival": GRAY}
PARTICIPATION_MARKERS = {"mean energy": "o", "typical surviving run": "^", "survival": "s"}
PARTICIPATION_NAMES = {
    "mean energy": "mean energy",
    "typical surviving run": "typical surviving run",
    "survival": "survival",
}
BINS = 40
ROOM = 1.5  # room below the lowest curve for its name


def draw_participation(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw the factors per round over the cohort size (left) and the ends of runs (right).

    Args:
        data: `predicted` (factor, every_size), `measured`, `low`, `high` (factor, cohort_size) and
            `log_energy` (run), see `analysis.paper.participation`.

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(DOUBLE_COLUMN, 2.5), layout="constrained", gridspec_kw={"wspace": 0.06}
    )
    _ends(axes[1], data)
    style.letter(axes, ["factors per round", f"where runs end, $m={_random_walk(data)[1]}$"])
    _factors(axes[0], data)
    return figure, axes


def caption_participation(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs, (rounds, size) = data.attrs, _random_walk(data)
    return (
        f"Lower participation under FedAvg, the highest partition; {style.clients(data)}. (a) "
        "Factors per round over the number of clients a round: lines predicted before, dots "
        f"measured with {percent(attrs['confidence'])} intervals each for itself "
        f"({style.seeds(data)}, {attrs['factor_rounds']} rounds). Survival: the probability that "
        "a client carries the direction. Dotted: all take part, coverage squared. (b) Energy "
        f"left after {rounds} rounds with {size} clients a round, of the runs that still have "
        "any. Few lucky runs carry the mean; a typical run is far below it."
    )


def _random_walk(data: xr.Dataset) -> tuple[int, int]:
    return int(data.attrs["random_walk_rounds"]), int(data.attrs["random_walk_cohort"])


def _factors(axis: Axes, data: xr.Dataset) -> None:
    sizes = data.cohort_size.values
    for factor, color in PARTICIPATION_COLORS.items():
        of = data.sel(factor=factor)
        axis.plot(of.every_size, of.predicted, color=color, lw=1.1, label=factor)
        bars = np.maximum(np.stack([of.measured - of.low, of.high - of.measured]), 0.0)
        marker = PARTICIPATION_MARKERS[factor]
        axis.errorbar(
            sizes, of.measured, bars, fmt=marker, ms=3.5, color=color, capsize=2, elinewidth=0.8
        )
    full, most = float(data.attrs["coverage"]) ** 2, int(data.every_size.max())
    axis.axhline(full, color="k", lw=0.7, ls=":")
    axis.set_yscale("log")
    axis.set_ylim(float(data.predicted.min()) / ROOM, None)
    axis.set_xlim(0.5, most + 0.5)
    axis.set_xticks([size for size in sizes.tolist() if size not in (2, 3)])
    axis.set_xlabel(f"clients a round $m$, of {most}")
    axis.set_ylabel("factor per round")
    note: dict[str, Any] = {"textcoords": "offset points", "fontsize": SMALL, "linespacing": 1.0}
    _note(axis, data, "survival", 11, (0, -9), note)
    _note(axis, data, "mean energy", 5, (8, 6), note)
    _note(axis, data, "typical surviving run", 9, (0, -11), note)
    axis.annotate(r"$\pi^2$", (most, full), xytext=(-2, 3), ha="right", **note)


def _note(
    axis: Axes,
    data: xr.Dataset,
    factor: str,
    size: int,
    shift: tuple[int, int],
    note: dict[str, Any],
) -> None:
    y = float(data.predicted.sel(factor=factor, every_size=size))
    axis.annotate(
        PARTICIPATION_NAMES[factor],
        (size, y),
        xytext=shift,
        color=PARTICIPATION_COLORS[factor],
        **note,
    )


def _ends(axis: Axes, data: xr.Dataset) -> None:
    rounds, size = _random_walk(data)
    walk = data.log_energy.values / np.log(10)
    alive = walk[np.isfinite(walk)]
    axis.hist(alive, BINS, density=True, color=SKY)
    axis.set_ylim(0, axis.get_ylim()[1] * 1.3)
    rates = data.predicted.sel(every_size=size)
    for factor, side in (("mean energy", "left"), ("typical surviving run", "right")):
        end = rounds * np.log10(float(rates.sel(factor=factor)))
        axis.axvline(end, color=PARTICIPATION_COLORS[factor], lw=1.3, label=factor)
        axis.annotate(
            PARTICIPATION_NAMES[factor].replace(" ", "\n", 1),
            (end, 0.99),
            xycoords=axis.get_xaxis_transform(),
            xytext=(-3 if side == "right" else 3, 0),
            textcoords="offset points",
            ha=side,
            va="top",
            linespacing=LINES,
            color=PARTICIPATION_COLORS[factor],
            fontsize=SMALL,
        )
    axis.set_xlabel(f"$\\log_{{10}}$ of the energy left after {rounds} rounds")
    axis.set_ylabel(f"density, {len(alive):,} surviving runs")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))


# Random and SVD allocation: with the former energy does not concentrate, but no direction is
# preserved

ALLOCATION_NAMES = {"svd": "SVD allocation", "random": "random allocation"}
ALLOCATION_COLORS = {"svd": VERMILLION, "random": PURPLE}
ALLOCATION_MARKERS = ("o", "s", "^", "D")


def draw_allocation(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw the energies of partitions under each allocation, and of the whole update under both.

    Args:
        data: `predicted`, `measured`, `low`, `high` (allocation, round, part), part 0 the whole;
            `level` (part).

    Returns:
        The figure and its three axes.
    """
    figure, axes = plt.subplots(1, 3, figsize=(DOUBLE_COLUMN, 2.3), sharey=True)
    colors, parts = partition_colors(data.sizes["part"] - 1), data.part.values[1:]
    levels = data.level.values.tolist()
    ends: list[list[style.End]] = []
    for axis, name in zip(axes, ALLOCATION_NAMES, strict=False):
        of = data.sel(allocation=name)
        for h, color in zip(parts, colors, strict=True):
            _curve(
                axis, of.sel(part=h), color, ALLOCATION_MARKERS[(h - 1) % len(ALLOCATION_MARKERS)]
            )
        names = [f"$i=${levels[h - 1] + 1}–{levels[h]}" for h in parts]
        last = of.predicted.isel(round=-1).values[1:]
        ends.append(
            [
                style.End(float(y), name, color)
                for y, name, color in zip(last, names, colors, strict=True)
            ]
        )
    for name, color in ALLOCATION_COLORS.items():
        whole = data.sel(allocation=name, part=0)
        _curve(axes[2], whole, color, "o" if name == "svd" else "v")
    ends.append(
        [
            style.End(
                float(data.predicted.sel(allocation=name, part=0)[-1]),
                name.replace("svd", "SVD"),
                color,
            )
            for name, color in ALLOCATION_COLORS.items()
        ]
    )
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlim(-0.2, data["round"].values[-1] + 0.2)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axis.set_xlabel("round $t$")
    axes[0].set_ylim(float(data.predicted.min()) / 3, 2)
    axes[0].set_ylabel("energy left, FedAvg")
    style.letter(axes, [*ALLOCATION_NAMES.values(), "whole update"])
    named = [style.together(own) for own in ends]
    for own in named:
        own[:] = [own[0]._replace(text="every $i$")] if len(own) == 1 else own
    style.name_lines(axes, named)
    return figure, axes


def caption_allocation(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    return (
        "Energy left under FedAvg, over that at the start: lines predicted before, markers "
        f"measured with {percent(data.attrs['confidence'])} intervals each for itself. "
        f"{style.clients(data)}, {style.cohort(data)}, flat spectrum; "
        f"{style.seeds(data)}. Random allocation takes away the concentration, since all "
        "partitions fall alike, and not the loss: the shared directions fall too, and the whole "
        "update with them."
    )


def _curve(axis: Axes, of: xr.Dataset, color: object, marker: str) -> None:
    rounds = of["round"].values
    axis.plot(rounds, of.predicted, color=color, lw=1.1)
    bars = np.maximum(np.stack([of.measured - of.low, of.high - of.measured]), 0.0)
    bars[0] = np.minimum(bars[0], of.measured.values * 0.99)  # a log axis has no zero
    axis.errorbar(
        rounds, of.measured, bars, fmt=marker, ms=3, color=color, capsize=1.5, elinewidth=0.7
    )


# Rank configurations: with fewer high-rank clients FedAvg keeps less of the high partitions

SPREAD = 0.09  # between the splits of one configuration


def draw_ranks(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw simulated results over the number of high-rank clients (left) and the real run (right).

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
    style.letter(axes, ["simulated and predicted", f"real fine-tuning, {attrs['study']}"])
    return figure, axes


def caption_ranks(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        "Sensitivity to the rank configuration. (a) Share of the energy above rank "
        f"{attrs['low_rank']} after {attrs['rounds']} rounds, {attrs['clients']} clients of "
        f"ranks {attrs['low_rank']} and {attrs['high_rank']}, {style.cohort(data)}, gains of "
        f"mean 1 and deviation {attrs['gain_std']:g}: lines predicted before, markers measured, "
        f"with {percent(attrs['confidence'])} intervals each for itself; "
        f"{style.seeds(data)}. (b) The same of real updates after {attrs['study_rounds']} "
        f"rounds, a marker for each of {data.sizes['split']} splits of the data (left to right "
        f"{style.joined(data.split.values)}), mean of {attrs['study_runs']} seeds "
        f"({attrs['study_first_seed']}–{attrs['study_last_seed']} in all), from the record: few "
        f"high, {style.configuration(attrs['study_few'])}; mixed, "
        f"{style.clients(data, 'study_ranks')}; many high, "
        f"{style.configuration(attrs['study_many'])}."
    )


def _simulated(axis: Axes, of: xr.Dataset, rule: str) -> None:
    of_rule = look(rule)
    axis.plot(of["size"], of.predicted, color=of_rule.color, lw=1.1)
    bars = np.maximum(np.stack([of.measured - of.low, of.high - of.measured]), 0.0)
    axis.errorbar(
        of.measured_size,
        of.measured,
        bars,
        fmt=of_rule.marker,
        ms=3.5,
        color=of_rule.color,
        capsize=2,
        elinewidth=0.8,
    )
    middle = of.sizes["size"] // 2
    axis.annotate(
        of_rule.name,
        (float(of["size"][middle]), float(of.predicted[middle])),
        xytext=(4, -11),
        textcoords="offset points",
        color=of_rule.color,
        fontsize=SMALL,
    )


def _real(axis: Axes, of: xr.Dataset, rule: str) -> None:
    of_rule, splits = look(rule), of.sizes["split"]
    for j in range(splits):
        x = np.arange(of.sizes["configuration"]) + (j - (splits - 1) / 2) * SPREAD
        axis.plot(x, of["real"].values[:, j], of_rule.marker, ms=3.5, color=of_rule.color)
    middle = of["real"].values.mean(axis=1)
    axis.plot(range(len(middle)), middle, color=of_rule.color, lw=0.7, ls=":")
    axis.annotate(
        of_rule.name,
        (1, float(middle[1])),
        xytext=(14, -12),
        textcoords="offset points",
        color=of_rule.color,
        fontsize=SMALL,
    )
