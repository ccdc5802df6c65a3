"""One style for all figures: sizes, fonts, colours, and files that are the same every time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

SINGLE_COLUMN, DOUBLE_COLUMN = 3.4, 7.0  # inches
# Seaborn's palette "colorblind": importing it would take longer than drawing a figure.
PALETTE = (
    *("#0173b2", "#de8f05", "#029e73", "#d55e00", "#cc78bc"),
    *("#ca9161", "#fbafe4", "#949494", "#ece133", "#56b4e9"),
)
RULE_COLOURS = {"fedavg": PALETTE[3], "zero_pad": PALETTE[1], "raflora": PALETTE[0]}
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
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


def apply() -> None:
    """Make the style current."""
    mpl.rcdefaults()
    mpl.rcParams.update(RC)


def save(
    figure: Figure, folder: Path, name: str, kinds: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Write PNG and PDF without dates, each under a temporary name first; close the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
    paths = []
    for kind in kinds:
        target = folder / f"{name}.{kind}"
        temporary = folder / f".{name}.{os.getpid()}.{kind}"
        try:
            figure.savefig(temporary, format=kind, metadata=metadata[kind])
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        paths.append(target)
    plt.close(figure)
    return paths
