"""Who holds what: every client's samples of every class, and its rank."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from paper_figs.style import DOUBLE_COLUMN

POINTS = 72  # per inch
BARS, ROW, LOWEST, HIGHEST = 0.8, 0.26, 1.3, 5.5  # inches: the sizes, a class, all classes
BESIDE, BELOW = 1.6, 0.6  # inches taken by labels and legends
WIDEST, SMALLEST = 20.0, 1.2  # points across a bubble: the legend has room, one sample is seen
MANY = 24  # up to so many clients or classes have a tick each
ASIDE = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "fontsize": 8, "title_fontsize": 8}


def draw(dataset: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Clients' sizes as bars above, and their samples by class as bubbles below, by rank.

    Args:
        dataset: `split_counts` (client, class), or (seed, client, class), of which the first seed
            is drawn; the clients' ranks as its attribute `ranks`.

    Returns:
        The figure and its two axes: sizes, classes. The area of a bubble is its samples, but for
        those too few to be seen.
    """
    table = dataset.split_counts
    table = table.isel(seed=0) if "seed" in table.dims else table
    counts, ranks = table.values, np.atleast_1d(dataset.attrs["ranks"])
    levels = np.unique(ranks)
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(levels)))
    of_client = colours[np.searchsorted(levels, ranks)]
    height = float(np.clip(ROW * counts.shape[1], LOWEST, HIGHEST))
    figure, axes = plt.subplots(
        *(2, 1),
        figsize=(DOUBLE_COLUMN, BARS + height + BELOW),
        sharex=True,
        height_ratios=(BARS, height),
    )
    axes[0].bar(np.arange(len(ranks)), counts.sum(1), 0.7, color=of_client)
    axes[0].set_ylabel("samples")
    axes[0].legend(handles=_rank_handles(levels.tolist(), colours), **ASIDE)
    cell = min((DOUBLE_COLUMN - BESIDE) / len(ranks), height / counts.shape[1])
    scale = min(cell * POINTS, WIDEST) / np.sqrt(counts.max())
    _bubbles(axes[1], counts, of_client, scale)
    axes[1].legend(
        handles=_size_handles(counts.max(), scale), title="samples", labelspacing=1, **ASIDE
    )
    _ticks(axes[1], len(ranks), table["class"].values)
    return figure, axes


def _bubbles(axis: Axes, counts: NDArray[np.int64], of_client: NDArray, scale: float) -> None:
    """A bubble per client and class that has samples; `scale` is the width of one sample's."""
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


def _rank_handles(levels: list[int], colours: NDArray) -> list[Line2D]:
    return [
        Line2D([], [], ls="", marker="s", color=colour, label=f"rank {level}")
        for level, colour in zip(levels, colours, strict=True)
    ]


def _size_handles(most: int, scale: float) -> list[Line2D]:
    """The largest bubble, and one of a round number of samples, about a quarter as many."""
    digit = 10 ** (len(str(most // 4)) - 1)
    few = max(1, most // 4 // digit * digit)
    shown = np.unique([few, most])
    return [
        Line2D([], [], ls="", marker="o", color="0.6", mew=0, ms=width, label=str(count))
        for count, width in zip(shown, _across(shown, scale), strict=True)
    ]
