"""Words within a figure: letters of panels, and lines that are named where they end."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation

from paper_figs.style import SMALL

BESIDE = 3.0  # points between the end of an axis and the label of a line
LINE = 1.2  # height of a line of text, in font sizes


class End(NamedTuple):
    """Where a line ends, what it is called, and its colour."""

    y: float
    text: str
    colour: Any


def letter(axes: Iterable[Axes], titles: Sequence[str] = ()) -> None:
    """Name panels (a), (b), ... at their upper left, each with its title if there are any.

    A panel that is alone has no letter.
    """
    panels = list(axes)
    for i, axis in enumerate(panels):
        words = [f"({string.ascii_lowercase[i]})"] if len(panels) > 1 else []
        axis.set_title(" ".join([*words, *titles[i : i + 1]]), loc="left")


def together(ends: Sequence[End], ratio: float = 1.02) -> list[End]:
    """Lines that end alike, to within a factor, under one name, in black."""
    groups: list[list[End]] = []
    for end in sorted(ends, key=lambda end: end.y):
        if groups and end.y <= ratio * groups[-1][0].y:
            groups[-1].append(end)
        else:
            groups.append([end])
    return [
        own[0] if len(own) == 1 else End(own[0].y, ", ".join(end.text for end in own), "k")
        for own in groups
    ]


def name_lines(
    axes: Iterable[Axes], ends: Sequence[Sequence[End]], *, size: float = SMALL
) -> list[Annotation]:
    """Write beside the right end of axes what each line is called, without overlaps.

    Labels stand as close to their lines as their heights allow, in the lines' order. To be called
    when all else is drawn.

    Args:
        axes: of one figure.
        ends: of the lines of each, in data coordinates.
        size: of the font, in points.

    Returns:
        The labels.
    """
    if not any(ends):
        return []
    panels = list(axes)
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays it out: heights are those of the file
    points = 72 * figure.get_figheight()
    return [
        label
        for axis, own in zip(panels, ends, strict=True)
        for label in _name(axis, own, axis.get_position().height * points, size)
    ]


def _name(axis: Axes, ends: Sequence[End], height: float, size: float) -> list[Annotation]:
    """Names of the lines of an axis that is so many points high, lowest first."""
    if not ends:
        return []
    low, high = axis.transScale.transform([(1, y) for y in axis.get_ylim()])[:, 1]
    at = axis.transScale.transform([(1, end.y) for end in ends])[:, 1]
    wanted = np.clip((at - low) / (high - low), 0, 1) * height
    order = np.argsort(wanted, kind="stable")
    tall = LINE * size * np.array([1 + end.text.count("\n") for end in ends])[order]
    placed = _within(_apart(wanted[order], tall), tall, height)
    labels = []
    for y, index in zip(placed, order, strict=True):
        _, text, colour = ends[index]
        labels.append(
            axis.annotate(
                text,
                (1, y / height),
                xycoords="axes fraction",
                xytext=(BESIDE, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                fontsize=size,
                annotation_clip=False,
            )
        )
    return labels


def _within(places: np.ndarray, heights: np.ndarray, top: float) -> np.ndarray:
    """Ascending places moved down so far that the last one ends at the top."""
    placed, limit = places.copy(), top + heights[-1] / 2
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit - heights[i] / 2)
        limit = placed[i] - heights[i] / 2
    return placed


def _apart(wanted: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Ascending places as close to the wanted ones as these heights allow (pools of neighbours)."""
    gaps = np.concatenate([[0.0], np.cumsum((heights[:-1] + heights[1:]) / 2)])
    pools: list[list[float]] = []  # mean of wanted less gaps, and how many are pooled
    for value in wanted - gaps:
        pools.append([float(value), 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (last, n), (before, m) = pools.pop(), pools.pop()
            pools.append([(last * n + before * m) / (n + m), n + m])
    shifts = np.concatenate([np.full(int(count), value) for value, count in pools])
    return np.asarray(shifts + gaps)
