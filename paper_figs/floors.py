"""Figures of floors: over heterogeneity, phases, settling, and the limits of the theory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from analysis.formats import percent, rule_name
from paper_figs import style
from paper_figs.style import (
    DOUBLE_COLUMN,
    LINES,
    PARTITION_COLORS,
    RULE_COLORS,
    SHADE,
    SINGLE_COLUMN,
    SMALL,
    look,
    partition_colors,
)

# Floors over heterogeneity: the predicted energy at which drift holds each partition

FLOORS_MARKERS = ("o", "s", "^", "D")


def draw_floors(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel per rule: predicted floors as lines, measured ones as dots with intervals.

    Args:
        data: `predicted` (rule, gain_std, partition); `measured`, `low`, `high` (rule,
            measured_std, partition).

    Returns:
        The figure and its axes, one per rule.
    """
    rules = data.rule.values.tolist()
    figure, axes = plt.subplots(1, len(rules), figsize=(DOUBLE_COLUMN, 2.4), sharey=True)
    for axis, rule in zip(axes, rules, strict=True):
        _floors_panel(axis, data.sel(rule=rule))
    style.letter(axes, [look(rule).name for rule in rules])
    axes[0].set_ylabel(r"stationary energy $E[\sigma_i^2]$")
    colors = partition_colors(data.sizes["partition"])
    ends = [
        [
            style.End(float(y), _directions(data, h), color)
            for h, (y, color) in enumerate(zip(last, colors, strict=True))
        ]
        for last in data.predicted.isel(gain_std=-1).values
    ]
    style.name_lines(axes, ends)
    return figure, axes


def caption_floors(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        "Energy at which the drift of unlike clients holds every partition, over the spread of "
        "their gains: lines predicted before, dots measured, with "
        f"{percent(attrs['confidence'])} intervals each for itself. "
        f"{style.clients(data)}, {style.cohort(data)}; gains of mean "
        f"{attrs['gain_mean']:g}, drifts of deviation {attrs['drift_std']:g}; rounds "
        f"{attrs['burn_in'] + 1} to {attrs['rounds']} of {style.seeds(data)}. $i$: directions "
        "of the partition."
    )


def _floors_panel(axis: Axes, of: xr.Dataset) -> None:
    for h, color in enumerate(partition_colors(of.sizes["partition"])):
        own = of.isel(partition=h)
        axis.plot(of.gain_std, own.predicted, color=color, lw=1.1)
        bars = np.abs(np.stack([own.measured - own.low, own.high - own.measured]))
        axis.errorbar(
            of.measured_std,
            own.measured,
            bars,
            fmt=FLOORS_MARKERS[h % len(FLOORS_MARKERS)],
            ms=3.5,
            color=color,
            capsize=2,
            elinewidth=0.8,
        )
    axis.set_yscale("log")
    axis.set_xlim(-0.02, float(of.gain_std[-1]))
    axis.set_xlabel(r"spread of the clients' gains $\nu$")


def _directions(data: xr.Dataset, h: int) -> str:
    levels = [0, *data.level.values.tolist()]
    return f"$i=${levels[h] + 1}–{levels[h + 1]}"


# Non-IID floors of a verification's claims: predicted and measured, by partition

CLAIMS = {"floor-fedavg": "fedavg", "floor-raflora": "raflora"}
WIDTH = 0.32


def draw_claim_floors(claims: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, Axes]:
    """Draw predicted floors as bars, measured ones as points with intervals.

    Args:
        claims: entries of the report by id; those of `CLAIMS` are drawn.

    Returns:
        The figure and its axis.
    """
    figure, axis = plt.subplots(figsize=(SINGLE_COLUMN, 2.4))
    for j, (claim_id, rule) in enumerate(CLAIMS.items()):
        claim, color = claims[claim_id], RULE_COLORS[rule]
        measured, ends = (
            np.array(claim[name], dtype=float) for name in ("measurement", "interval")
        )
        x = np.arange(1, len(measured) + 1) + (j - 0.5) * WIDTH
        axis.bar(x, claim["prediction"], WIDTH, color=color, alpha=0.35, label=rule_name(rule))
        error = np.abs(ends.T - measured)
        axis.errorbar(x, measured, error, fmt="o", ms=3, color=color, capsize=2)
    axis.set_yscale("log")
    axis.set_xticks(np.arange(1, len(measured) + 1))
    axis.set_xlabel("partition $h$ (lowest rank level first)")
    axis.set_ylabel(r"stationary energy $E[\sigma_i^2]$")
    axis.legend(title="bar: predicted, dot: measured", title_fontsize=SMALL)
    return figure, axis


# The phase diagram: floor of a direction over its coverage and the local training time

LOW, HIGH = 0.15, 0.65  # coverages between the measured ones, where a word fits


def draw_phase(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel per rule: predicted floors as shades, measured ones as dots of the same scale.

    Collapsed measurements are crosses; the line is the predicted threshold, `omega G = 1`.

    Args:
        data: `floor` (rule, coverage, local_time), `threshold` (rule, coverage) and `measured`
            (rule, measured_coverage, measured_time).

    Returns:
        The figure and its axes, one per rule.
    """
    rules = data.rule.values.tolist()
    figure, axes = plt.subplots(1, len(rules), figsize=(DOUBLE_COLUMN, 2.5), sharey=True)
    for axis, rule in zip(axes, rules, strict=True):
        shades = _phase_panel(axis, data.sel(rule=rule), float(data.attrs["collapsed"]))
        axis.set_xlabel(r"local training time $MT$")
        axis.set_xlim(0, float(data.local_time.max()))
    style.letter(axes, [look(rule).name for rule in rules])
    axes[0].set_ylabel(r"coverage $\pi$")
    axes[0].set_ylim(float(data.coverage.min()), 1.03)
    figure.colorbar(shades, ax=axes, label=r"floor $x^*/M$", pad=0.02)
    return figure, axes


def caption_phase(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        "Collapse over coverage and local training time: predicted floors as shades, in units "
        f"of the target $M$; measured after {attrs['rounds']} rounds of {attrs['local_steps']} "
        "plain steps on real factors as circles in the color of the amplitude (held) and "
        f"crosses (collapsed, below {percent(attrs['collapsed'])} of the target); "
        f"{len(data.measured_time)} training times, one run each with seed "
        f"{attrs['first_seed']}, {style.clients(data)}. Line: the predicted threshold "
        "$T^*=\\ln(1/\\omega)/2M$, with $\\omega=\\pi$ for FedAvg and $\\pi^2$ for zero "
        "padding. raFLoRA has none."
    )


def _phase_panel(axis: Axes, of: xr.Dataset, collapsed: float) -> QuadMesh:
    colors: dict[str, Any] = {"vmin": 0, "vmax": 1, "cmap": "viridis"}
    shades = axis.pcolormesh(
        of.local_time, of.coverage, of.floor, shading="gouraud", rasterized=True, **colors
    )
    axis.plot(of.threshold, of.coverage, color="w", lw=1.8)
    time, coverage = np.meshgrid(of.measured_time.values, of.measured_coverage.values)
    lost = of.measured.values < collapsed
    held = ~lost
    axis.plot(time[lost], coverage[lost], "x", color="w", ms=4, mew=0.9)
    axis.scatter(
        time[held],
        coverage[held],
        s=20,
        c=of.measured.values[held],
        edgecolors="w",
        linewidths=0.7,
        clip_on=False,
        zorder=3,
        **colors,
    )
    for where, text, side in (
        ((0.03, LOW), "collapses to 0", "left"),
        ((0.875, HIGH), "held", "center"),
    ):
        axis.text(
            *where,
            text,
            transform=axis.get_yaxis_transform(),
            color="w",
            fontweight="bold",
            fontsize=SMALL,
            ha=side,
            va="center",
        )
    return shades


# Concentration of energy in the first singular values, and its speed: measured and predicted

SETTLING_MARKERS = ("o", "s", "^", "D")


def draw_settling(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw fractions of energy in successive singular values over rounds, and speeds of partitions.

    Args:
        data: `fraction`, `predicted`, `homogeneous` (round, direction) and `speed` with its
            intervals and predictions (level).

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(DOUBLE_COLUMN, 2.6), gridspec_kw={"width_ratios": [3, 2]}
    )
    _speeds(axes[1], data)
    _fractions(axes[0], data)
    style.letter(axes, ["where the energy is", "how fast it goes there"])
    levels = [0, *data.level.values.tolist()]
    last = data.predicted.isel(round=-1).groupby("partition").sum("direction").values
    ends = [
        style.End(float(y), f"$i=${levels[h] + 1}–{levels[h + 1]}", color)
        for h, (y, color) in enumerate(zip(last, partition_colors(len(last)), strict=True))
    ]
    style.name_lines(axes[:1], [ends])
    return figure, axes


def caption_settling(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        "Under FedAvg energy settles in the shared directions at the predicted speed. "
        f"{style.clients(data)}, {style.cohort(data)}, gains of mean 1 and deviation "
        f"{attrs['gain_std']:g}, real factors; {style.seeds(data)}. (a) Fraction of the "
        "energy in every partition of the singular values (large) and in each of them (gray): "
        "markers measured, lines predicted before, dotted what alike clients who all take part "
        f"would do. (b) Factors per round, with {percent(attrs['confidence'])} "
        "intervals each for itself."
    )


def _fractions(axis: Axes, data: xr.Dataset) -> None:
    """Draw singular values (small, sorted by the SVD) and partitions (large, independent of order).

    Within a partition sorting spreads the singular values more than the prediction for each
    direction, so that only the sums of partitions are comparable.
    """
    rounds = data["round"].values
    axis.semilogy(rounds, data.fraction.values, ".", ms=2.5, color="0.65")
    sums = data[["fraction", "predicted", "homogeneous"]].groupby("partition").sum("direction")
    colors = partition_colors(sums.sizes["partition"])
    for j, (h, color) in enumerate(zip(sums.partition.values, colors, strict=True)):
        of = sums.sel(partition=h)
        axis.semilogy(
            rounds,
            of.fraction.values,
            SETTLING_MARKERS[j % len(SETTLING_MARKERS)],
            ms=4,
            color=color,
        )
        axis.semilogy(rounds, of.predicted.values, "-", lw=1, color=color)
        axis.semilogy(rounds, of.homogeneous.values, ":", lw=1, color=color)
    axis.set_xticks(rounds)
    axis.set_xlabel("round $t$")
    axis.set_ylabel("fraction of energy")
    marks = [
        Line2D([], [], color="k", marker="o", ms=4, ls="", label="measured"),
        Line2D([], [], color="0.65", marker=".", ms=2.5, ls="", label="single values"),
        Line2D([], [], color="k", lw=1, label="predicted"),
        Line2D([], [], color="k", lw=1, ls=":", label="alike, all take part"),
    ]
    axis.legend(handles=marks, loc="lower left", borderaxespad=0.2)


def _speeds(axis: Axes, data: xr.Dataset) -> None:
    x = np.arange(1, data.sizes["level"] + 1)
    measured = data.speed.values
    error = np.stack([measured - data.speed_low.values, data.speed_high.values - measured])
    for name, line in (("speed_predicted", "-"), ("speed_homogeneous", ":")):
        axis.hlines(data[name].values, x - WIDTH, x + WIDTH, color="k", lw=1.1, ls=line)
    for h, color in enumerate(partition_colors(len(x))):
        axis.errorbar(
            x[h],
            measured[h],
            error[:, h, None],
            fmt=SETTLING_MARKERS[h % len(SETTLING_MARKERS)],
            ms=4,
            color=color,
            capsize=3,
        )
    axis.annotate(
        r"predicted, $q\prime_h$",
        (x[-1], float(data.speed_predicted[-1])),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=SMALL,
    )
    axis.annotate(
        "alike, all take part",
        (x[-1] + WIDTH, float(data.speed_homogeneous[-1])),
        xytext=(0, -8),
        textcoords="offset points",
        ha="right",
        fontsize=SMALL,
    )
    axis.set_yscale("log")
    axis.set_ylim(float(data.speed_homogeneous.min()) / 1.5, 1.5 * float(measured.max()))
    axis.set_xlim(0.5, x[-1] + 0.5)
    axis.set_xticks(x)
    axis.set_xlabel("partition $h$ (lowest rank level first)")
    axis.set_ylabel("energy factor per round")


# Limits of the theory: deviation of measured from predicted rates along three sweeps

TITLES = {
    "drift": "turning basis",
    "steps": "clients with turned targets",
    "adam": "Adam",
}
BREAKDOWN_MARKERS = ("o", "s", "^")
NAMED = (((5, -15), "left"), ((-5, 3), "right"))  # partitions 2 and 3: below and above their lines
LOWEST = 1e-5
FEW_TICKS = 100


def draw_breakdown(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel per sweep; the region stated before the run is shaded, its bound dashed.

    A sweep without a region, where the theory fails from the start, has no shading.

    Args:
        data: `deviation`, `low`, `high` (sweep, point, partition), `value` (sweep, point),
            `inside` and `label` (sweep).

    Returns:
        The figure and its axes, one per sweep.
    """
    figure, axes = plt.subplots(1, data.sizes["sweep"], figsize=(DOUBLE_COLUMN, 2.3), sharey=True)
    names = [str(name) for name in data.sweep.values]
    for axis, name in zip(axes, names, strict=True):
        _breakdown_panel(axis, data.sel(sweep=name), float(data.attrs["tolerance"]))
        axis.set_xlabel(str(data.label.sel(sweep=name).values))
    style.letter(axes, [TITLES[name] for name in names])
    axes[0].set_ylabel("|measured / predicted − 1|\nof the energy rate", linespacing=LINES)
    axes[0].set_ylim(LOWEST, 20)
    for h, (shift, side) in zip(data.partition.values, NAMED, strict=True):
        of, point = data.isel(sweep=0).sel(partition=h), data.sizes["point"] // 2
        axes[0].annotate(
            f"partition {h}",
            (float(of.value[point]), float(of.deviation[point])),
            xytext=shift,
            textcoords="offset points",
            ha=side,
            fontsize=SMALL,
            color=PARTITION_COLORS[int(h) - 1],
        )
    tolerance = float(data.attrs["tolerance"])
    axes[0].annotate(
        f"{100 * tolerance:g}%",
        (0, tolerance),
        xycoords=axes[0].get_yaxis_transform(),
        xytext=(2, 2),
        textcoords="offset points",
        fontsize=SMALL,
    )
    return figure, axes


def caption_breakdown(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        "Where the theory stops: deviation of FedAvg's measured energy rates from the predicted "
        "ones, relative to the shared partition, as one assumption is given up at a time. "
        "Shaded: the region stated before the run, within "
        f"{percent(attrs['tolerance'])}; under Adam there is none. Real factors, "
        f"{style.clients_of(attrs['affine']['ranks'])}, all take part; (b, c) quadratic loss. "
        f"{style.seeds(data, ' a point')}; {percent(attrs['confidence'])} intervals "
        "each for itself."
    )


def _breakdown_panel(axis: Axes, curve: xr.Dataset, tolerance: float) -> None:
    x = curve.value.values
    inside = int(curve.inside)
    if inside:
        axis.axvspan(x[0] / 1.5, np.sqrt(x[inside - 1] * x[inside]), color=SHADE, lw=0)
    axis.axhline(tolerance, color="k", ls="--", lw=0.8)
    for j, h in enumerate(curve.partition.values):
        of = curve.sel(partition=h)
        color = PARTITION_COLORS[int(h) - 1]
        value = of.deviation.values
        below = np.minimum(value - of.low.values, value * (1 - LOWEST))
        error = np.stack([below, of.high.values - value])
        axis.errorbar(
            x,
            value,
            error,
            fmt=f"{BREAKDOWN_MARKERS[j]}-",
            ms=3.5,
            lw=1,
            color=color,
            capsize=2,
            elinewidth=0.8,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlim(x[0] / 1.5, x[-1] * 1.5)
    if x[-1] / x[0] < FEW_TICKS:  # less than two decades: too few powers of ten for labels
        shown = x[[0, 1, 2, 4, -1]]
        axis.set_xticks(shown, [f"{value:g}" for value in shown])
        axis.xaxis.set_minor_formatter(NullFormatter())
