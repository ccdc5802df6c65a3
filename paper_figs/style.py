"""One style for all figures: sizes, fonts, colours, and files that are the same every time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from fedlora_sim.storage import write_bytes

SINGLE_COLUMN, DOUBLE_COLUMN = 3.35, 6.9  # inches: a column and a page's width of two-column papers
SMALL, SMALLEST = 7, 6  # points: labels within an axis, and where there is hardly room

# Okabe and Ito's colours, told apart under every kind of colour blindness, and grey.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, BLACK, YELLOW, GREY, SKY = "#CC79A7", "#000000", "#F0E442", "#8C8C8C", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, BLACK, YELLOW, GREY, SKY)
LINES = 1.0
"""Distance of lines of text: this font keeps more room than it needs."""
SHADE = "0.93"
"""Regions that a figure sets apart: where a theory holds, rounds of calibration."""

RULE_COLOURS = {"fedavg": VERMILLION, "zero_pad": ORANGE, "raflora": BLUE}
RULE_NAMES = {
    "fedavg": "FedAvg (product space)",
    "zero_pad": "FedAvg (zero-padded factors)",
    "raflora": "raFLoRA",
}
PARTITION_COLOURS = ("#414487", "#2a788e", "#22a884")  # of viridis, evenly spaced
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
    """Make the style current."""
    mpl.rcdefaults()
    mpl.rcParams.update(RC)


def partition_colours(count: int) -> list[Any]:
    """Colours of so many partitions, the shared one darkest: they grow lighter in grey too."""
    if count == len(PARTITION_COLOURS):
        return list(PARTITION_COLOURS)
    low, high = 0.1, 0.78  # the ends of viridis are black and yellow, which is faint on white
    return [
        mpl.colormaps["viridis"](low + (high - low) * h / max(count - 1, 1)) for h in range(count)
    ]


def save(
    figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Write PNG and PDF atomically, without dates and with our name; close the figure."""
    paths = [
        write_bytes(folder / f"{name}.{kind}", image(figure, kind, close=False)) for kind in kinds
    ]
    plt.close(figure)
    return paths


def image(figure: Figure, kind: str, *, close: bool = True) -> memoryview:
    """A figure as a file of this kind, png or pdf."""
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=METADATA[kind])
    if close:
        plt.close(figure)
    return file.getbuffer()
