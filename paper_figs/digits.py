"""The real run on digits: energy ratio and accuracy over rounds, by rule and rank configuration."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from paper_figs.style import DOUBLE_COLUMN, PALETTE, RULE_COLOURS, RULE_NAMES

LOOK = {
    "fedavg": (RULE_COLOURS["fedavg"], "-", RULE_NAMES["fedavg"]),
    "zero_pad": (RULE_COLOURS["zero_pad"], "-", RULE_NAMES["zero_pad"]),
    "raflora": (RULE_COLOURS["raflora"], "-", RULE_NAMES["raflora"]),
    "raflora_canonical": (RULE_COLOURS["raflora"], "-.", "raFLoRA, canonical factors"),
    "equal_rank_2": (PALETTE[7], ":", "all clients of rank 2"),
    "equal_rank_16": (PALETTE[7], "--", "all clients of rank 16"),
}


def draw(digits: xr.Dataset) -> tuple[Figure, np.ndarray]:
    """Two panels over rounds: `rho_2` and test accuracy, mean over seeds and their range.

    Args:
        digits: `rho` and `accuracy`, dimensions (run, seed, round).

    Returns:
        The figure and its two axes.
    """
    figure, axes = plt.subplots(1, 2, figsize=(DOUBLE_COLUMN, 2.7))
    labels = {"rho": r"energy ratio $\rho_2$", "accuracy": "test accuracy"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for run in digits.run.values:
            if run not in LOOK:
                continue  # another setting: its lines would not be comparable
            colour, style, text = LOOK[run]
            values = digits[name].sel(run=run)
            rounds = values["round"].values
            axis.plot(rounds, values.mean("seed"), color=colour, ls=style, lw=1.3, label=text)
            axis.fill_between(
                rounds, values.min("seed"), values.max("seed"), color=colour, alpha=0.15, lw=0
            )
        axis.set_xlabel("round $t$")
        axis.set_ylabel(label)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=7
    )
    return figure, axes
