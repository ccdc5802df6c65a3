"""Figures of energies: over rounds, as spectra, as rates, and above the lowest rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.formats import percent
from paper_figs import style
from paper_figs.style import DOUBLE_COLUMN, LINES, SINGLE_COLUMN, SMALL, look, partition_colors

# Energies over rounds: FedAvg's staircase of decays and raFLoRA's constant energies

RULES = ("zero_pad", "fedavg", "raflora")
FLOOR = 1e-10


def draw_energies(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel per rule: measured energies of each direction, predictions dashed in black.

    Args:
        data: `energy` (rule, seed, round, direction) and `predicted_energy`; `partition` and
            `coverage` (direction).

    Returns:
        The figure and its axes, one per rule.
    """
    figure, axes = plt.subplots(1, len(RULES), figsize=(DOUBLE_COLUMN, 2.2), sharey=True)
    for axis, rule in zip(axes, RULES, strict=True):
        _energies_panel(axis, data.sel(rule=rule))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("round $t$")
    style.letter(axes, [look(rule).name for rule in RULES])
    axes[0].set_ylabel(r"energy $\sigma_i^2(t)$")
    axes[0].set_ylim(FLOOR, 3)
    style.name_lines(axes[-1:], [_energies_ends(data)])
    return figure, axes


def caption_energies(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    return (
        f"Energy of each of {data.sizes['direction']} singular directions over rounds, real "
        f"factors through real aggregation (mean of {style.seeds(data)}); dashed, the closed "
        f"form, computed without simulating. {style.clients(data)}, {style.cohort(data)}; "
        "$\\pi$: coverage."
    )


def _energies_panel(axis: Axes, run: xr.Dataset) -> None:
    partition, colors = run.partition.values, partition_colors(len(np.unique(run.partition)))
    for j in range(run.sizes["direction"]):
        mean = run.energy.mean("seed").values[:, j]
        axis.semilogy(run["round"], mean, color=colors[partition[j] - 1], lw=0.9)
    last = [int(np.flatnonzero(partition == h)[-1]) for h in np.unique(partition)]
    axis.semilogy(run["round"], run.predicted_energy.values[:, last], "k--", lw=0.8)
    axis.set_xlim(0, run["round"].values[-1])


def _energies_ends(data: xr.Dataset) -> list[style.End]:
    """Return the names of the partitions at the ends of the flat lines of the last panel."""
    partition, run, ends = data.partition.values, data.sel(rule=RULES[-1]), []
    final = run.energy.mean("seed").values[-1]
    for h, color in enumerate(partition_colors(len(np.unique(partition))), 1):
        own = np.flatnonzero(partition == h)
        first, last = (int(data.direction.values[j]) for j in (own[0], own[-1]))
        text = f"$i=${first}–{last}, $\\pi=${float(data.coverage.values[own[0]]):.2g}"
        ends.append(style.End(float(np.median(final[own])), text, color))
    return ends


# The spectrum over rounds as heat maps: FedAvg loses it level by level, raFLoRA keeps it

LOWEST = 1e-8
SPECTRUM_GRID = (1e-2, 1e-4, 1e-6)  # energies whose predicted rounds are marked


def draw_spectrum(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel per rule: measured energies as colors, predicted ones as contour lines.

    Args:
        data: `measured`, `predicted` (rule, round, direction); `partition` and `coverage`
            (direction).

    Returns:
        The figure and its axes, one per rule.
    """
    rules = data.rule.values.tolist()
    figure, axes = plt.subplots(1, len(rules), figsize=(DOUBLE_COLUMN, 2.35), sharey=True)
    for axis, rule in zip(axes, rules, strict=True):
        shades = _spectrum_panel(axis, data.sel(rule=rule))
        axis.set_xlabel("round $t$")
    style.letter(axes, [look(rule).name for rule in rules])
    axes[0].set_ylabel("direction $i$")
    _coverages(axes[-1], data)
    bar = figure.colorbar(shades, ax=axes, label=r"energy $\sigma_i^2(t)$", extend="min", pad=0.02)
    bar.ax.minorticks_off()
    return figure, axes


def caption_spectrum(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    return (
        "Energy of every direction of the global update over rounds, real factors through real "
        f"aggregation: {style.clients(data)}, {style.cohort(data)}. Colors are measured "
        f"(mean of {style.seeds(data)}); white lines are where the closed form, computed "
        "before, predicts the energies written on them. FedAvg drains every partition at its "
        "own rate, its coverage $\\pi$ squared; raFLoRA keeps all of them."
    )


def _spectrum_panel(axis: Axes, run: xr.Dataset) -> QuadMesh:
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
    for energy in SPECTRUM_GRID:
        _line(axis, run, energy)
    return shades


def _edges(run: xr.Dataset) -> list[float]:
    """Return the positions between the last direction of each partition and the next one."""
    partition = run.partition.values
    return [float(run.direction.values[partition == h].max()) + 0.5 for h in np.unique(partition)]


def _line(axis: Axes, run: xr.Dataset, energy: float) -> None:
    """Draw the round in which each predicted energy falls to a value, as one line per partition."""
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
    """Write the energy on its line, in the slowest partition in which all lines are visible."""
    partition, direction = run.partition.values, run.direction.values
    lowest = run.predicted.values[-1]
    seen = [h for h in np.unique(partition) if (lowest[partition == h] < min(SPECTRUM_GRID)).all()]
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
    """Write the coverage of each partition next to it."""
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


# The staircase of rates: predicted and measured energy factor per round and partition

CLAIMS = {"zero-pad-fourth-power": "zero_pad", "staircase": "fedavg", "raflora-flat": "raflora"}
TITLES = {"all": "all take part, real factors", "cohorts": "sampled cohorts"}
POWERS = {"all": {"zero_pad": r"$\pi^4$", "fedavg": r"$\pi^2$", "raflora": "$1$"}}
POWERS["cohorts"] = {"zero_pad": "$E[W^4]$", "fedavg": "$E[W^2]$", "raflora": "$1$"}
HALF = 0.5


def draw_staircase(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel per setting: predicted rates as stairs, measured ones as dots with intervals.

    Args:
        data: `predicted`, `measured`, `low`, `high` (setting, rule, partition), relative to the
            shared partition; `coverage` (partition) if known.

    Returns:
        The figure and its axes, one per setting.
    """
    settings = data.setting.values.tolist()
    width = DOUBLE_COLUMN if len(settings) > 1 else SINGLE_COLUMN
    figure, axes = plt.subplots(
        1, len(settings), figsize=(width, 2.3), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, setting in zip(axes[0], settings, strict=True):
        _staircase_panel(axis, data.sel(setting=setting))
    style.letter(axes[0], [TITLES[setting] for setting in settings])
    axes[0, 0].set_ylabel(
        "energy factor per round,\nover the shared partition's", linespacing=LINES
    )
    style.name_lines(
        axes[0], [_staircase_ends(data.sel(setting=setting), setting) for setting in settings]
    )
    return figure, axes[0]


def from_claims(claims: Mapping[str, Mapping[str, Any]]) -> xr.Dataset:
    """Return the data of a verification's panel: its claims on rates under full participation.

    Args:
        claims: entries of the report by id; those of `CLAIMS` are used.
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


def caption_staircase(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        "Factor per round of the mean energy of every partition over that of the shared one: "
        f"lines predicted before, dots measured, with {percent(attrs['confidence'])} "
        f"intervals each for itself (most are smaller than the dots). {style.clients(data)}. "
        f"(a) Real factors, all take part, {attrs['matrix_runs']} runs. (b) Amplitudes, "
        f"{attrs['cohort_size']} clients a round at random, {attrs['rounds']} rounds, "
        f"{style.seeds(data)}. $\\pi$ is the coverage, $W$ the share of a round's weight that "
        "carries the direction."
    )


def _staircase_ends(of: xr.Dataset, setting: str) -> list[style.End]:
    """Return the rules with their rates at the ends of the stairs."""
    last = {rule: float(of.predicted.sel(rule=rule)[-1]) for rule in of.rule.values.tolist()}
    return [
        style.End(y, f"{look(rule).name}, {POWERS[setting][rule]}", look(rule).color)
        for rule, y in last.items()
        if np.isfinite(y)
    ]


def _staircase_panel(axis: Axes, of: xr.Dataset) -> None:
    partition = of.partition.values
    for rule in of.rule.values.tolist():
        own, of_rule = of.sel(rule=rule), look(rule)
        predicted = own.predicted.values
        x = np.concatenate([[partition[0] - HALF], partition + HALF])
        axis.stairs(predicted, x, baseline=None, color=of_rule.color, lw=1.1)
        bars = np.abs(np.stack([own.measured - own.low, own.high - own.measured]))[:, 1:]
        axis.errorbar(
            partition[1:],
            own.measured.values[1:],
            bars,
            fmt=of_rule.marker,
            ms=3.5,
            color=of_rule.color,
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


# Energy above the lowest rank over rounds for each rule, with the bound of the theory

MARKED = 4  # rounds between markers


def draw_energy_ratio(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel: `1 - rho` predicted as lines and measured as markers, the bound dotted.

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
        axis.plot(rounds, own.predicted, color=of_rule.color, ls=of_rule.line, lw=1.1)
        shown = slice(1 + j % MARKED, None, MARKED)  # markers of lines that coincide alternate
        axis.plot(
            rounds[shown],
            own.measured.values[shown],
            of_rule.marker,
            ms=4,
            mew=0,
            color=of_rule.color,
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
        style.End(float(data.predicted.sel(rule=rule)[-1]), look(rule).name, look(rule).color)
        for rule in data.rule.values.tolist()
    ]
    style.name_lines([axis], [style.together(ends)])
    return figure, np.array([axis])


def caption_energy_ratio(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        f"Share of the energy above the lowest rank {attrs['level']} over rounds under every "
        "rule: lines predicted before, markers measured on real factors. "
        f"{style.clients(data)}, {style.cohort(data)}; mean of {style.seeds(data)}. "
        f"Dotted: the bound $C\\gamma^t$ on FedAvg, with $\\gamma={attrs['gamma']:.4g}$, the "
        f"squared coverage of the second rank level, and $C={attrs['constant']:.3g}$. Rules that "
        "are named together coincide."
    )
