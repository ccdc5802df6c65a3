"""The figure of forecasts: real energies, and predictions of the drift laws from early rounds."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.formats import percent
from paper_figs import style
from paper_figs.style import DOUBLE_COLUMN, SHADE, SMALL, look, partition_colors

ROW, LEGEND = 1.75, 0.35
"""Heights in inches."""
STUDY_NAMES = {"digits": "digits", "agnews": "AG News"}


def draw_forecasts(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Draw measured and predicted energies of each partition.

    Args:
        data: see `analysis.paper.forecasts.described`.

    Returns:
        The figure and its axes, a row per study and a column per rule.
    """
    studies, rules = data.study.values.tolist(), data.rule.values.tolist()
    figure, axes = plt.subplots(
        len(studies),
        len(rules),
        figsize=(DOUBLE_COLUMN, ROW * len(studies) + LEGEND),
        sharex=True,
        sharey="row",
        squeeze=False,
    )
    titles, ends = [], []
    for row, study in zip(axes, studies, strict=True):
        for axis, rule in zip(row, rules, strict=True):
            run = data.sel(study=study, rule=rule)
            run = run.where(run.level.notnull(), drop=True)
            _energies(axis, run, data.attrs["calibration_rounds"])
            titles.append(f"{look(rule).name} on {STUDY_NAMES.get(study, study)}")
            ends.append(_ends(run))
        row[0].set_ylabel("energy of the partition")
    for axis in axes[-1]:
        axis.set_xlabel("round $t$")
    figure.legend(handles=_handles(data), loc="outside lower center", ncols=5, fontsize=SMALL)
    style.letter(axes.ravel(), titles)
    style.name_lines(axes.ravel(), ends)
    return figure, axes


def caption_forecasts(data: xr.Dataset) -> str:
    """Return the caption: setting and seeds."""
    attrs = data.attrs
    names = [STUDY_NAMES.get(study, study) for study in data.study.values.tolist()]
    settings = style.joined(
        f"{name}: {style.clients(data, f'ranks_{study}')}, seed {int(seed)}"
        for study, name, seed in zip(data.study.values, names, data.seed.values, strict=True)
    )
    return (
        f"Energy of every partition of the update in real fine-tuning, all layers together, "
        f"{attrs['heterogeneity']}: measured (dots), and predicted by drift laws that know the "
        f"first {attrs['calibration_rounds']} rounds (shaded) alone, median (dashed) and "
        f"{percent(attrs['confidence'])} interval (band). Dotted: persistence. The first runs "
        f"of the record: {settings}."
    )


def _energies(axis: Axes, run: xr.Dataset, first: int) -> None:
    axis.axvspan(0, first, color=SHADE, lw=0)
    rounds = run["round"].values
    for h, color in zip(run.partition.values, partition_colors(len(run.partition)), strict=True):
        of = run.sel(partition=h)
        told = {str(name): of.predicted.sel(statistic=name).copy() for name in of.statistic.values}
        axis.fill_between(rounds, told["low"], told["high"], color=color, alpha=0.2, lw=0)
        now = float(of.measured.sel(round=first))
        told["median"].loc[{"round": first}] = now  # where the prediction starts
        axis.plot(rounds, told["median"], color=color, ls="--", lw=1.0)
        axis.plot([first, rounds[-1]], [now, now], color=color, ls=":", lw=0.7)
        seen = of.measured.where(of.measured > 0)
        axis.plot(rounds, seen, "o", color=color, ms=2.2, mew=0)
    axis.set_yscale("log")
    axis.set_xlim(0, rounds[-1])


def _ends(run: xr.Dataset) -> list[style.End]:
    """Return the names of the partitions at the ends of the measured lines."""
    edges = [0, *(int(level) for level in run.level.values)]
    last = run.measured.isel(round=-1).values
    colors = partition_colors(len(last))
    return [
        style.End(float(y), f"$i=${edges[h] + 1}–{edges[h + 1]}", color)
        for h, (y, color) in enumerate(zip(last, colors, strict=True))
        if y > 0
    ]


def _handles(data: xr.Dataset) -> list[Line2D | Patch]:
    share = percent(data.attrs["confidence"])
    return [
        Line2D([], [], color="k", ls="", marker="o", ms=2.2, label="measured"),
        Line2D([], [], color="k", lw=1.0, ls="--", label="predicted, median"),
        Patch(color="k", alpha=0.2, lw=0, label=f"predicted, {share} interval"),
        Line2D([], [], color="k", lw=0.7, ls=":", label="persistence"),
        Patch(color=SHADE, lw=0, label="rounds that the prediction knows"),
    ]
