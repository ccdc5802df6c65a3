"""The common style of all figures: sizes, colors, rule names, labels, captions and series."""

from __future__ import annotations

import io
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from analysis.formats import rule_name
from fedlora_sim import parse_ranks
from fedlora_sim.storage import write_bytes

# Sizes, fonts, colors, and reproducible files

SINGLE_COLUMN, DOUBLE_COLUMN = 3.35, 6.9  # inches: a column and a page's width of two-column papers
SMALL, SMALLEST = 7, 6  # points: labels within an axis, and where space is scarce

# Okabe and Ito's colors, which are distinguishable under every kind of color blindness, and gray.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, BLACK, YELLOW, GRAY, SKY = "#CC79A7", "#000000", "#F0E442", "#8C8C8C", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, BLACK, YELLOW, GRAY, SKY)
LINES = 1.0
"""Line spacing: this font has more space than necessary."""
SHADE = "0.93"
"""Regions that a figure highlights: validity of a theory, rounds of calibration."""

RULE_COLORS = {"fedavg": VERMILLION, "zero_pad": ORANGE, "raflora": BLUE}
PARTITION_COLORS = ("#414487", "#2a788e", "#22a884")  # from viridis, evenly spaced
RC: Any = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlepad": 4,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelpad": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.handlelength": 1.8,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.hashsalt": "fedlora-sim",
}

METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": "fedlora-sim"},
    "pdf": {"Creator": "fedlora-sim", "CreationDate": None},
}


def apply() -> None:
    """Activate the style."""
    mpl.rcdefaults()
    mpl.rcParams.update(RC)


def partition_colors(count: int) -> list[Any]:
    """Return the colors of a number of partitions, the shared one darkest.

    They also become lighter in grayscale.
    """
    if count == len(PARTITION_COLORS):
        return list(PARTITION_COLORS)
    low, high = 0.1, 0.78  # the ends of viridis are black, and yellow, which is faint on white
    return [
        mpl.colormaps["viridis"](low + (high - low) * h / max(count - 1, 1)) for h in range(count)
    ]


def save(
    figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Write PNG and PDF atomically, without dates, with this project's name; close the figure."""
    paths = [
        write_bytes(folder / f"{name}.{kind}", image(figure, kind, close=False)) for kind in kinds
    ]
    plt.close(figure)
    return paths


def image(figure: Figure, kind: str, *, close: bool = True) -> memoryview:
    """Return a figure as the content of a png or pdf file."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=METADATA[kind])
    if close:
        plt.close(figure)
    return file.getbuffer()


# Style and name of each rule in all figures


@dataclass(frozen=True)
class RuleLook:
    """Style of a rule's line.

    Args:
        name: name in the legend.
        color: color of its line.
        line: matplotlib's line style, which distinguishes rules without color too.
        marker: marker of its dots.
    """

    name: str
    color: str
    line: Any = "-"
    marker: str = "o"


LINES_OF = {
    "fedavg": (RULE_COLORS["fedavg"], "-", "o"),
    "zero_pad": (RULE_COLORS["zero_pad"], (0, (4, 1)), "s"),
    "hetlora": (PURPLE, (0, (1, 1)), "v"),
    "rbla": (GREEN, (0, (6, 1, 1, 1)), "D"),
    "ffa": (GRAY, (0, (2, 1)), "P"),
    "flora": (SKY, (0, (3, 1, 1, 1, 1, 1)), "X"),
    "fedex": (BLACK, (0, (5, 2)), "d"),
    "raflora": (RULE_COLORS["raflora"], "-", "^"),
    "raflora:canonicalize=true": (RULE_COLORS["raflora"], (0, (3, 1)), ">"),
}
"""Color, line style and marker of every rule."""


def ranks_text(ranks: Sequence[int]) -> str:
    """Return client ranks in short form: `2x4, 16x4` is rank 2, 4 clients; rank 16, 4 clients."""
    return ", ".join(f"{rank}x{ranks.count(rank)}" for rank in dict.fromkeys(ranks))


def look(rule: str) -> RuleLook:
    """Return the style of a rule; an unknown rule is gray under its own name."""
    return RuleLook(rule_name(rule), *LINES_OF.get(rule, ("0.5", ":", "*")))


# Text in figures: letters of panels, and names at the ends of lines

LABEL_GAP = 3.0  # points between the end of an axis and the label of a line
LINE = 1.2  # height of a line of text, in font sizes


class End(NamedTuple):
    """The end of a line, with its name and color."""

    y: float
    text: str
    color: Any


def letter(axes: Iterable[Axes], titles: Sequence[str] = ()) -> None:
    """Label panels (a), (b), ... at their upper left, each with its title if there are any.

    A single panel has no letter.
    """
    panels = list(axes)
    for i, axis in enumerate(panels):
        words = [f"({string.ascii_lowercase[i]})"] if len(panels) > 1 else []
        axis.set_title(" ".join([*words, *titles[i : i + 1]]), loc="left")


def together(ends: Sequence[End], ratio: float = 1.02) -> list[End]:
    """Return ends of lines, those that coincide within a factor merged under one name in black."""
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
    """Write the names of lines next to the right end of axes, without overlaps.

    Labels are as close to their lines as their heights allow, in the order of the lines. Call it
    after everything else is drawn.

    Args:
        axes: axes of one figure.
        ends: ends of the lines of each, in data coordinates.
        size: font size in points.

    Returns:
        The labels.
    """
    if not any(ends):
        return []
    panels = list(axes)
    figure = panels[0].get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # computes the layout: heights are those of the file
    points = 72 * figure.get_figheight()
    return [
        label
        for axis, own in zip(panels, ends, strict=True)
        for label in _name(axis, own, axis.get_position().height * points, size)
    ]


def _name(axis: Axes, ends: Sequence[End], height: float, size: float) -> list[Annotation]:
    """Return the names of the lines of an axis with a height in points, lowest first."""
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
        _, text, color = ends[index]
        labels.append(
            axis.annotate(
                text,
                (1, y / height),
                xycoords="axes fraction",
                xytext=(LABEL_GAP, 0),
                textcoords="offset points",
                va="center",
                color=color,
                fontsize=size,
                annotation_clip=False,
            )
        )
    return labels


def _within(places: np.ndarray, heights: np.ndarray, top: float) -> np.ndarray:
    """Return the ascending places, moved down so that the last one ends at the top."""
    placed, limit = places.copy(), top + heights[-1] / 2
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit - heights[i] / 2)
        limit = placed[i] - heights[i] / 2
    return placed


def _apart(wanted: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Return ascending places as close to the wanted ones as the heights allow."""
    gaps = np.concatenate([[0.0], np.cumsum((heights[:-1] + heights[1:]) / 2)])
    pools: list[list[float]] = []  # mean of wanted minus gaps, and number of pooled places
    for value in wanted - gaps:
        pools.append([float(value), 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (last, n), (before, m) = pools.pop(), pools.pop()
            pools.append([(last * n + before * m) / (n + m), n + m])
    shifts = np.concatenate([np.full(int(count), value) for value, count in pools])
    return np.asarray(shifts + gaps)


# Parts of captions, from the data: no number of a setting is typed by hand


def clients(data: xr.Dataset, name: str = "ranks") -> str:
    """Return the number of clients and their ranks."""
    return clients_of(data.attrs[name])


def clients_of(ranks: Any) -> str:
    """Return the number of clients and their ranks, from text or one rank per client."""
    own = list(parse_ranks(ranks) if isinstance(ranks, str) else np.atleast_1d(ranks).tolist())
    counts = {rank: own.count(rank) for rank in dict.fromkeys(own)}
    if len(counts) > 1 and len(set(counts.values())) == 1:
        each = next(iter(counts.values()))
        of = f"ranks {joined(counts)}, {'one' if each == 1 else each} of each"
    else:
        of = "ranks " + joined(f"{rank} (×{count})" for rank, count in counts.items())
    return f"{len(own)} clients of {of}"


def joined(words: Any) -> str:
    """Return `a, b and c`."""
    texts = [str(word) for word in words]
    return f"{', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else "".join(texts)


def seeds(data: xr.Dataset, each: str = "") -> str:
    """Return the number of runs (per what) and their seeds."""
    first, last = int(data.attrs["first_seed"]), int(data.attrs["last_seed"])
    if first == last:
        return f"one run{each}, seed {first}"
    return f"{int(data.attrs['runs']):,} runs{each}, seeds {first}–{last}"


def cohort(data: xr.Dataset) -> str:
    """Return the number of clients per round."""
    size = data.attrs.get("cohort_size")
    return "all take part" if size in (None, "none") else f"{size} of them a round, at random"


def study(data: xr.Dataset) -> str:
    """Return a description of a recorded study: its clients, rounds and seeds."""
    attrs = data.attrs
    return (
        f"{attrs['study_model']} fine-tuned on {attrs['study']}, {clients(data, 'study_ranks')}, "
        f"{attrs['study_cohort']} a round; {attrs['study_seeds']} seeds for each split of the "
        f"data ({attrs['study_first_seed']}–{attrs['study_last_seed']} in all), from the record"
    )


def configuration(ranks: str) -> str:
    """Return a description of a rank configuration: `4x2,8x6` is rank 4 (×2) and 8 (×6)."""
    own = list(parse_ranks(ranks))
    return joined(f"{rank} (×{own.count(rank)})" for rank in dict.fromkeys(own))


# Lines over rounds of real runs: the mean of the runs, and their range as a band


def draw_runs(
    axis: Axes,
    values: xr.DataArray,
    over: str,
    *,
    color: Any,
    line: Any = "-",
    label: str | None = None,
    width: float = 1.2,
    band: float = 0.14,
) -> float:
    """Draw the runs of one configuration.

    Args:
        axis: axis to draw on.
        values: dimensions `round` and `over`; rounds without evaluation are NaN.
        over: the dimension of the runs.
        color: color of the line and the band.
        line: matplotlib's line style.
        label: label of the line.
        width: width of the line, in points.
        band: opacity of the band; 0 draws none.

    Returns:
        The last mean.
    """
    judged = values.dropna("round", how="all")
    rounds, mean = judged["round"].values, judged.mean(over)
    axis.plot(rounds, mean, color=color, ls=line, lw=width, label=label)
    if band:
        low, high = judged.min(over), judged.max(over)
        axis.fill_between(rounds, low, high, color=color, alpha=band, lw=0)
    return float(mean[-1]) if mean.size else np.nan
