"""The figure of the drift law: courses of amplitudes, and floors predicted from early rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.formats import rule_name
from paper_figs.style import (
    BLACK,
    DOUBLE_COLUMN,
    GRAY,
    PALETTE,
    SHADE,
    partition_colors,
)

Report = Mapping[str, Any]
COURSES: dict[str, Any] = {"fedavg": "-", "raflora": (0, (4, 1))}
MARKERS = ("o", "D", "^", "v")
MARGIN = 0.25
"""Relative margin of the claim on the floor."""


def draw_drift_law(reports: Sequence[Report]) -> Figure:
    """Draw the drift law of recorded domains.

    Left, of the first domain: amplitude of each partition over rounds, medians over seeds, and the
    floors that the drift of the shaded rounds predicts. Right, of all: late amplitudes against
    those floors, a marker per rank configuration and partition, with the margin of the claim.

    Args:
        reports: reports of domains with FedAvg and raFLoRA, see
            `analysis.studies.drift_law.law_report`.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(DOUBLE_COLUMN, 2.6))
    _draw_courses(left, reports[0])
    _draw_floors(right, reports)
    return figure


def _draw_courses(axis: Axes, report: Report) -> None:
    rows = [row for row in report["rows"] if row["role"] in COURSES]
    colors = partition_colors(max(row["partition"] for row in rows))
    rounds = report["domain"]["rounds"]
    axis.axvspan(2, rounds // 3, color=SHADE, linewidth=0)
    for row in rows:
        color, line = colors[row["partition"] - 1], COURSES[row["role"]]
        path = row["course"]
        axis.plot(range(1, len(path) + 1), path, color=color, linestyle=line)
        if row["floor_ratio"] is not None and row["role"] == "fedavg":
            floor = row["amplitude"] / row["floor_ratio"]
            axis.plot([rounds // 3, rounds], [floor] * 2, color=color, linestyle=":")
    axis.set_yscale("log")
    axis.set_xlabel("round")
    axis.set_ylabel("amplitude $X_h$")
    axis.set_title(report["domain"]["name"])
    handles = [Line2D([], [], color=c, label=f"partition {h + 1}") for h, c in enumerate(colors)]
    handles += [
        Line2D([], [], color=BLACK, linestyle=line, label=rule_name(role))
        for role, line in COURSES.items()
    ]
    handles.append(Line2D([], [], color=BLACK, linestyle=":", label="$W c / (1 - W)$"))
    axis.legend(handles=handles, ncols=2)


def _draw_floors(axis: Axes, reports: Sequence[Report]) -> None:
    handles, every = [], []
    for report, color in zip(reports, PALETTE, strict=False):
        rows = [row for row in report["rows"] if row["floor_ratio"] is not None]
        rows = [row for row in rows if row["rule"] in ("fedavg", "zero_pad")]
        plain = {n for n, run in report["domain"]["runs"].items() if run.get("optimizer") != "sgd"}
        roles = list(dict.fromkeys(row["role"] for row in rows if row["role"] in plain))
        for role, marker in zip(roles, (*MARKERS, *MARKERS), strict=False):
            own = [row for row in rows if row["role"] == role]
            measured = np.array([row["amplitude"] for row in own])
            floors = measured / np.array([row["floor_ratio"] for row in own])
            hollow = own[0]["rule"] != "fedavg"
            shape, face = ("s", "none") if hollow else (marker, color)
            axis.plot(floors, measured, shape, color=color, markerfacecolor=face, markersize=4)
            every += [*floors, *measured]
        handles.append(Line2D([], [], color=color, marker="o", linestyle="", label=_name(report)))
    handles.append(
        Line2D(
            [],
            [],
            color=GRAY,
            marker="s",
            markerfacecolor="none",
            linestyle="",
            label="zero padding",
        )
    )
    ends = np.array([0.7 * min(every), 1.4 * max(every)])
    axis.fill_between(ends, ends * (1 - MARGIN), ends * (1 + MARGIN), color=SHADE, linewidth=0)
    axis.plot(ends, ends, color=GRAY, linewidth=0.6)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("floor from the drift of the first third")
    axis.set_ylabel("amplitude of the last third")
    axis.legend(handles=handles)


def _name(report: Report) -> str:
    return str(report["domain"]["name"])
