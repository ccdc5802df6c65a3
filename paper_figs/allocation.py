"""Random against SVD allocation: energy no longer concentrates, and no direction is safe."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from paper_figs import captions, labels
from paper_figs.style import DOUBLE_COLUMN, PURPLE, VERMILLION, partition_colours

NAMES = {"svd": "SVD allocation", "random": "random allocation"}
COLOURS = {"svd": VERMILLION, "random": PURPLE}
MARKERS = ("o", "s", "^", "D")


def draw(data: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Energies of partitions under either allocation, and of the whole update under both.

    Args:
        data: `predicted`, `measured`, `low`, `high` (allocation, round, part), part 0 the whole;
            `level` (part).

    Returns:
        The figure and its three axes.
    """
    figure, axes = plt.subplots(1, 3, figsize=(DOUBLE_COLUMN, 2.3), sharey=True)
    colours, parts = partition_colours(data.sizes["part"] - 1), data.part.values[1:]
    levels = data.level.values.tolist()
    ends: list[list[labels.End]] = []
    for axis, name in zip(axes, NAMES, strict=False):
        of = data.sel(allocation=name)
        for h, colour in zip(parts, colours, strict=True):
            _curve(axis, of.sel(part=h), colour, MARKERS[(h - 1) % len(MARKERS)])
        names = [f"$i=${levels[h - 1] + 1}–{levels[h]}" for h in parts]
        last = of.predicted.isel(round=-1).values[1:]
        ends.append(
            [
                labels.End(float(y), name, colour)
                for y, name, colour in zip(last, names, colours, strict=True)
            ]
        )
    for name, colour in COLOURS.items():
        whole = data.sel(allocation=name, part=0)
        _curve(axes[2], whole, colour, "o" if name == "svd" else "v")
    ends.append(
        [
            labels.End(
                float(data.predicted.sel(allocation=name, part=0)[-1]),
                name.replace("svd", "SVD"),
                colour,
            )
            for name, colour in COLOURS.items()
        ]
    )
    for axis in axes:
        axis.set_yscale("log")
        axis.set_xlim(-0.2, data["round"].values[-1] + 0.2)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 5, 10]))
        axis.set_xlabel("round $t$")
    axes[0].set_ylim(float(data.predicted.min()) / 3, 2)
    axes[0].set_ylabel("energy left, FedAvg")
    labels.letter(axes, [*NAMES.values(), "whole update"])
    named = [labels.together(own) for own in ends]
    for own in named:
        own[:] = [own[0]._replace(text="every $i$")] if len(own) == 1 else own
    labels.name_lines(axes, named)
    return figure, axes


def caption(data: xr.Dataset) -> str:
    """Setting and seeds."""
    return (
        "Energy left under FedAvg, over that at the start: lines predicted before, markers "
        f"measured with {captions.percent(data.attrs['confidence'])} intervals each for itself. "
        f"{captions.clients(data)}, {captions.cohort(data)}, flat spectrum; "
        f"{captions.seeds(data)}. Random allocation takes away the concentration, since all "
        "partitions fall alike, and not the loss: the shared directions fall too, and the whole "
        "update with them."
    )


def _curve(axis: Axes, of: xr.Dataset, colour: object, marker: str) -> None:
    rounds = of["round"].values
    axis.plot(rounds, of.predicted, color=colour, lw=1.1)
    bars = np.maximum(np.stack([of.measured - of.low, of.high - of.measured]), 0.0)
    bars[0] = np.minimum(bars[0], of.measured.values * 0.99)  # a log axis has no zero
    axis.errorbar(
        rounds, of.measured, bars, fmt=marker, ms=3, color=colour, capsize=1.5, elinewidth=0.7
    )
