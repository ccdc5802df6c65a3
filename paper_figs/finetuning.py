"""Figures of real fine-tuning: digits, text, studies and splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.studies.study import HIGHEST, LOWEST, MIXED
from analysis.studies.updates import energy_floor
from paper_figs import style
from paper_figs.style import (
    BLACK,
    BLUE,
    DOUBLE_COLUMN,
    GRAY,
    LINES,
    SKY,
    VERMILLION,
    draw_runs,
    look,
    ranks_text,
)

# Fine-tuning on digits over rounds, by rule and rank configuration

LOOK = {
    "fedavg": (look("fedavg").color, "-", look("fedavg").name),
    "zero_pad": (look("zero_pad").color, look("zero_pad").line, look("zero_pad").name),
    "raflora": (look("raflora").color, "-", look("raflora").name),
    "raflora_canonical": (look("raflora").color, "-.", look("raflora:canonicalize=true").name),
    "equal_rank_2": (GRAY, ":", "all rank 2"),
    "equal_rank_16": (BLACK, (0, (5, 2)), "all rank 16"),
}
LABELS = {
    "accuracy": "test accuracy",
    "rho": r"energy ratio $\rho_2$",
    "effective_rank": "effective rank",
    "preservation": "directions preserved",
}
PER_ROW = 2


def draw_digits(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one panel per quantity over rounds: mean over seeds and range.

    Args:
        data: `rho`, `accuracy`, and if known `effective_rank` and `preservation` (mean over
            layers), dimensions (run, seed, round).

    Returns:
        The figure and its axes, one per quantity.
    """
    shown = [name for name in LABELS if name in data]
    rows = -(-len(shown) // PER_ROW)
    figure, grid = plt.subplots(
        *(rows, PER_ROW), figsize=(DOUBLE_COLUMN, 1.85 * rows + 0.3), sharex=True, squeeze=False
    )
    axes = grid.ravel()[: len(shown)]
    runs = [run for run in data.run.values.tolist() if run in LOOK]  # of this setting only
    ends: list[list[style.End]] = []
    for axis, name in zip(axes, shown, strict=True):
        values, own = data[name], []
        if "layer" in values.dims:
            values = values.mean("layer")
        for run in runs:
            color, line, text = LOOK[run]
            last = draw_runs(axis, values.sel(run=run), "seed", color=color, line=line)
            own.append(style.End(last, text, color))
        ends.append(own)
        axis.set_ylabel(LABELS[name])
        axis.set_xlim(0, int(data["round"].max()))
    for axis in grid.ravel()[len(shown) :]:
        axis.remove()
    for axis in axes[-PER_ROW:]:  # the last of each column
        axis.set_xlabel("round $t$")
        axis.tick_params("x", labelbottom=True)
    style.letter(axes)
    style.name_lines(axes, ends)
    return figure, axes


def caption_digits(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    return (
        "Real fine-tuning: a small transformer pretrained on upright digits, adapted to rotated "
        f"ones by {style.clients(data)}, Dirichlet({attrs['dirichlet_alpha']:g}) labels, "
        f"{attrs['local_steps']} local steps at learning rate {attrs['learning_rate']:g}; for "
        "comparison, as many clients of equal ranks under FedAvg. Mean of "
        f"{style.seeds(data)}, the first of the recorded verification's, and their range. "
        f"$\\rho_2$: share of the energy in the first {attrs['level']} directions, the mixed "
        "federation's lowest rank; directions preserved: share of a client's update on the "
        "directions that it started from. FedAvg and zero padding collapse; raFLoRA keeps the "
        "rank of a federation of equal high ranks. Its gain in accuracy holds in this setting, "
        "and not in all that were tried."
    )


# The energy ledger over rounds

TERM_COLORS = {"dilution": VERMILLION, "training": BLUE, "mixing": BLACK, "turning": SKY}
LEDGER_ROW = 1.15  # inches


def draw_ledger(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw one row per partition and one column per rule: the terms stacked, their sum as dots.

    Args:
        data: `change` (rule, round, partition, term) in decades.

    Returns:
        The figure and its axes, (partition, rule).
    """
    rules, partitions = data.rule.values.tolist(), data.partition.values.tolist()
    figure, axes = plt.subplots(
        *(len(partitions), len(rules)),
        figsize=(DOUBLE_COLUMN, LEDGER_ROW * len(partitions) + 0.6),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    rounds = data["round"].values
    for row, h in zip(axes, partitions, strict=True):
        row[0].set_ylabel(f"partition {h},\ndecades a round", linespacing=LINES)
        for axis, rule in zip(row, rules, strict=True):
            change = data.change.sel(partition=h, rule=rule)
            ends = {1: np.zeros(len(rounds)), -1: np.zeros(len(rounds))}
            for term, color in TERM_COLORS.items():
                values = change.sel(term=term).values
                for sign, end in ends.items():
                    part = np.where(np.sign(values) == sign, values, 0.0)
                    axis.bar(rounds, part, 0.8, bottom=end, color=color, lw=0)
                    ends[sign] = end + part
            axis.axhline(0, color=BLACK, lw=0.6)
            axis.use_sticky_edges = False  # else bars touch the lower end
            axis.plot(rounds, change.sum("term"), "o", ms=2.4, color="w", mec=BLACK, mew=0.7)
            axis.set_xlim(rounds[0] - 1, rounds[-1] + 1)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[-1]:
        axis.set_xlabel("round $t$")
    style.letter(axes[0], [look(rule).name for rule in rules])
    handles: list[Any] = [Patch(color=color, label=term) for term, color in TERM_COLORS.items()]
    handles.append(
        Line2D([], [], marker="o", ls="", ms=3, color="w", mec=BLACK, mew=0.7, label="sum")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure, axes


def caption_ledger(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    coverage = [f"{share:.2g}" for share in data.coverage.values]
    return (
        "The energy ledger of real fine-tuning on digits: decades that each term adds to the "
        f"energy of a partition in a round. {style.clients(data)}, all take part, coverage "
        f"{style.joined(coverage)}; mean over layers and {style.seeds(data)}, the first of the "
        "recorded verification's. Dilution: the rule's effect on a cohort that does not train; "
        "training: what the clients that carry a direction add; mixing: what all others add; "
        "turning: energy outside the old directions. Dots: the sum, the change of the energy. "
        "FedAvg dilutes the higher partitions every round, and local training regrows what "
        "dilution removes: collapse stops where the two are equal. raFLoRA does not dilute."
    )


# A study over its rounds: accuracy, energy above the lowest rank, effective rank, premise

STUDY_CURVES_LOWEST = energy_floor("float32")
"""Models train in single precision: a lower share is rounding, and drawn at this value."""


def quantities(curves: xr.Dataset, level: int) -> dict[str, xr.DataArray]:
    """Return the displayed quantities by label; the second one has a logarithmic axis."""
    return {
        "test accuracy": curves.accuracy,
        f"energy above rank {level}": (1 - curves.rho).clip(min=STUDY_CURVES_LOWEST),
        "effective rank": curves.effective_rank,
        "directions preserved": curves.preservation,
    }


def log_row(axes: Iterable[Axes]) -> None:
    """Make the axes of energies logarithmic."""
    for axis in axes:
        axis.set_yscale("log")
        axis.minorticks_off()


def draw_study_curves(curves: xr.Dataset, report: Mapping[str, Any]) -> tuple[Figure, np.ndarray]:
    """Draw one column per heterogeneity and one row per quantity: mean over runs and range.

    Args:
        curves: `accuracy`, `rho`, `effective_rank` and `preservation`, dimensions (heterogeneity,
            rule, run, round).
        report: as in `study.json`; describes the runs.

    Returns:
        The figure and its axes, (quantity, heterogeneity).
    """
    study = report["study"]
    shown = quantities(curves, study["levels"][0])
    names = curves.heterogeneity.values.tolist()
    figure, axes = plt.subplots(
        *(len(shown), len(names)),
        figsize=(DOUBLE_COLUMN, 1.4 * len(shown) + 0.8),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    for row, (label, values) in zip(axes, shown.items(), strict=True):
        row[0].set_ylabel(label)
        for axis, name in zip(row, names, strict=True):
            for rule in values.rule.values.tolist():
                of, of_rule = values.sel(heterogeneity=name, rule=rule), look(rule)
                style: dict[str, Any] = {"color": of_rule.color, "line": of_rule.line}
                draw_runs(axis, of, "run", label=of_rule.name, width=1.1, band=0.12, **style)
    log_row(axes[1])
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("round $t$")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, handlelength=2.6)
    seeds = curves.sizes["run"]
    runs = f"mean of {seeds} seeds, and their range" if seeds > 1 else "one seed"
    figure.suptitle(f"{study['name']}, ranks {ranks_text(study['ranks'])}: {runs}", fontsize=8)
    return figure, axes


# Fine-tuning on text over rounds, in each split

NAMED = ("fedavg", "zero_pad", "flora", "raflora")
OTHERS = "0.75"
TEXT_ROW = 1.25  # inches


def draw_text(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw splits in columns, quantities in rows; four rules by name, the others thin and gray.

    Args:
        data: `accuracy`, `rho`, `effective_rank` and `preservation`, dimensions (heterogeneity,
            rule, run, round).

    Returns:
        The figure and its axes, (quantity, heterogeneity).
    """
    splits = data.heterogeneity.values.tolist()
    shown = quantities(data, data.attrs["study_levels"][0])
    figure, axes = plt.subplots(
        *(len(shown), len(splits)),
        figsize=(DOUBLE_COLUMN, TEXT_ROW * len(shown) + 0.3),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    rules = data.rule.values.tolist()
    ordered = [rule for rule in rules if rule not in NAMED] + [r for r in NAMED if r in rules]
    ends: list[list[style.End]] = []
    for row, (label, values) in zip(axes, shown.items(), strict=True):
        words = label.replace(" above", "\nabove").replace("directions ", "directions\n")
        row[0].set_ylabel(words, linespacing=LINES)
        for axis, split in zip(row, splits, strict=True):
            own = []
            for rule in ordered:
                of, of_rule = values.sel(heterogeneity=split, rule=rule), look(rule)
                if rule in NAMED:
                    last = draw_runs(axis, of, "run", color=of_rule.color, line=of_rule.line)
                    own.append(style.End(last, of_rule.name, of_rule.color))
                else:
                    draw_runs(axis, of, "run", color=OTHERS, width=0.7, band=0)
            axis.set_xlim(0, int(data["round"].max()))
        ends.append(own)
    log_row(axes[1])
    style.letter(axes[0], [split.replace("dirichlet", "Dirichlet") for split in splits])
    for axis in axes[-1]:
        axis.set_xlabel("round $t$")
    style.name_lines(axes[:, -1], ends)
    return figure, axes


def caption_text(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    others = [look(rule).name for rule in data.rule.values.tolist() if rule not in NAMED]
    level = data.attrs["study_levels"][0]
    return (
        f"Real fine-tuning on text: {style.study(data)}. Columns: splits of the data. Mean of "
        f"the seeds, and for the named rules their range; gray, {style.joined(others)}. "
        f"Energy above rank {level}: $1-\\rho_{{{level}}}$; directions preserved: share of a "
        "client's update on the directions that it started from (FLoRA's clients start from "
        "fresh factors every round). FedAvg and zero padding lose the energy above the lowest "
        "rank, raFLoRA keeps it."
    )


# Final accuracy of each rule in a study, with equal ranks as reference

BANDS = {LOWEST: "0.6", HIGHEST: "0.25"}
PAD = 0.02


def draw_study_outcomes(report: Mapping[str, Any]) -> tuple[Figure, np.ndarray]:
    """Draw one panel per heterogeneity and a dot per rule; equal ranks as bands with dashed lines.

    Args:
        report: as in `study.json`.

    Returns:
        The figure and its axes, one per heterogeneity.
    """
    names, rules = list(report["study"]["heterogeneity"]), report["study"]["rules"]
    rows = {(r["heterogeneity"], r["configuration"], r["rule"]): r for r in report["rows"]}
    figure, axes = plt.subplots(
        *(1, len(names)),
        figsize=(DOUBLE_COLUMN, 0.24 * len(rules) + 1.3),
        sharey=True,
        sharex=True,
        squeeze=False,
    )
    levels = {LOWEST: report["study"]["levels"][0], HIGHEST: report["study"]["levels"][-1]}
    for axis, name in zip(axes[0], names, strict=True):
        for configuration, color in BANDS.items():
            row = rows[name, configuration, "fedavg"]
            _band(axis, row, color, f"all clients of rank {levels[configuration]}")
        for y, rule in enumerate(rules):
            _dot(axis, rows[name, MIXED, rule], y)
        axis.set_title(name)
    axes[0, 0].set_yticks(range(len(rules)), [look(rule).name for rule in rules])
    axes[0, 0].set_ylim(len(rules) - 0.4, -0.6)  # the first rule on top
    axes[0, 0].set_xlim(*_limits(report["rows"]))
    figure.supxlabel("test accuracy", fontsize=8)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper right", ncols=2)
    figure.suptitle(
        _setting(report, rows[names[0], MIXED, rules[0]]["runs"]), fontsize=8, x=0.02, ha="left"
    )
    return figure, axes[0]


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return limits that include all means and intervals, within [0, 1]."""
    drawn = [row for row in rows if row["configuration"] in (MIXED, *BANDS)]
    ends = [x for row in drawn for x in (row["accuracy"], *(row["accuracy_interval"] or ()))]
    return max(0.0, min(ends) - PAD), min(1.0, max(ends) + PAD)


def _setting(report: Mapping[str, Any], seeds: int) -> str:
    study, bars = report["study"], f"{100 * report['confidence']:g}% intervals"
    runs = f"mean of {seeds} seeds, {bars}" if seeds > 1 else "one seed"
    return f"{study['name']}, {study['rounds']} rounds: {runs}"


def _band(axis: Axes, row: Mapping[str, Any], color: str, label: str) -> None:
    axis.axvline(row["accuracy"], color=color, ls="--", lw=0.9, label=label)
    if row["accuracy_interval"] is not None:
        axis.axvspan(*row["accuracy_interval"], color=color, alpha=0.15, lw=0)


def _dot(axis: Axes, row: Mapping[str, Any], y: int) -> None:
    of_rule = look(row["rule"])
    if row["accuracy_interval"] is not None:
        axis.hlines(y, *row["accuracy_interval"], color=of_rule.color, lw=1)
    axis.plot(row["accuracy"], y, marker=of_rule.marker, ms=4, color=of_rule.color, clip_on=False)


# Splits: number of samples per client and class, and ranks

POINTS = 72  # per inch
BARS, SPLIT_ROW, SPLIT_LOWEST, SPLIT_HIGHEST = (
    0.8,
    0.26,
    1.3,
    5.5,
)  # inches: the sizes, a class, all classes
RIGHT, BELOW = 1.6, 0.6  # inches for labels and legends
WIDEST, SMALLEST = 20.0, 1.2  # diameter of bubbles in points
MANY = 24  # up to this number of clients or classes each has a tick
ASIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 8, "title_fontsize": 8}


def draw_split(dataset: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw the clients' sizes as bars and their samples by class as bubbles, by rank.

    Args:
        dataset: `split_counts` (client, class), or (seed, client, class), of which the first seed
            is drawn; the clients' ranks as its attribute `ranks`.

    Returns:
        The figure and its two axes: sizes, classes. The area of a bubble is proportional to its
        samples, with a minimum for visibility.
    """
    table = dataset.split_counts
    table = table.isel(seed=0) if "seed" in table.dims else table
    counts, ranks = table.values, np.atleast_1d(dataset.attrs["ranks"])
    levels = np.unique(ranks)
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(levels)))
    of_client = colors[np.searchsorted(levels, ranks)]
    height = float(np.clip(SPLIT_ROW * counts.shape[1], SPLIT_LOWEST, SPLIT_HIGHEST))
    figure, axes = plt.subplots(
        *(2, 1),
        figsize=(DOUBLE_COLUMN, BARS + height + BELOW),
        sharex=True,
        height_ratios=(BARS, height),
    )
    axes[0].bar(np.arange(len(ranks)), counts.sum(1), 0.7, color=of_client)
    axes[0].set_ylabel("samples")
    axes[0].legend(handles=_rank_handles(levels.tolist(), colors), **ASIDE)
    cell = min((DOUBLE_COLUMN - RIGHT) / len(ranks), height / counts.shape[1])
    scale = min(cell * POINTS, WIDEST) / np.sqrt(counts.max())
    _bubbles(axes[1], counts, of_client, scale)
    axes[1].legend(
        handles=_size_handles(counts.max(), scale), title="samples", labelspacing=1, **ASIDE
    )
    _ticks(axes[1], len(ranks), table["class"].values)
    return figure, axes


def _bubbles(axis: Axes, counts: NDArray[np.int64], of_client: NDArray, scale: float) -> None:
    """Draw a bubble per client and class with samples; `scale` is the width for one sample."""
    clients, classes = np.nonzero(counts)
    across = _across(counts[clients, classes], scale)
    axis.scatter(clients, classes, s=across**2, color=of_client[clients], lw=0)
    axis.set_xlabel("client $k$")
    axis.set_ylabel("class")
    axis.set_xlim(-0.6, len(counts) - 0.4)
    axis.set_ylim(counts.shape[1] - 0.4, -0.6)  # the first class on top
    axis.set_axisbelow(True)
    axis.grid(color="0.92", lw=0.5)


def _across(counts: NDArray[np.int64], scale: float) -> NDArray[np.float64]:
    return np.maximum(scale * np.sqrt(counts), SMALLEST)


def _ticks(axis: Axes, num_clients: int, names: NDArray) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(MANY, integer=True))
    if num_clients <= MANY:
        axis.set_xticks(np.arange(num_clients))
    if len(names) <= MANY:
        axis.set_yticks(np.arange(len(names)), [str(name) for name in names])


def _rank_handles(levels: list[int], colors: NDArray) -> list[Line2D]:
    return [
        Line2D([], [], ls="", marker="s", color=color, label=f"rank {level}")
        for level, color in zip(levels, colors, strict=True)
    ]


def _size_handles(most: int, scale: float) -> list[Line2D]:
    """Return the largest bubble, and one of a round number of samples, about a quarter of it."""
    digit = 10 ** (len(str(most // 4)) - 1)
    few = max(1, most // 4 // digit * digit)
    shown = np.unique([few, most])
    return [
        Line2D([], [], ls="", marker="o", color="0.6", mew=0, ms=width, label=str(count))
        for count, width in zip(shown, _across(shown, scale), strict=True)
    ]
