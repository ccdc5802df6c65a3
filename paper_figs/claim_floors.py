"""Non-IID floors of a verification's claims: predicted and measured, of every partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figs.style import RULE_COLOURS, RULE_NAMES, SINGLE_COLUMN, SMALL

CLAIMS = {"floor-fedavg": "fedavg", "floor-raflora": "raflora"}
WIDTH = 0.32


def draw(claims: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, Axes]:
    """Predicted floors as bars, measured ones as points with their intervals.

    Args:
        claims: entries of the report by id; those of `CLAIMS` are drawn.

    Returns:
        The figure and its axis.
    """
    figure, axis = plt.subplots(figsize=(SINGLE_COLUMN, 2.4))
    for j, (claim_id, rule) in enumerate(CLAIMS.items()):
        claim, colour = claims[claim_id], RULE_COLOURS[rule]
        measured, ends = (
            np.array(claim[name], dtype=float) for name in ("measurement", "interval")
        )
        x = np.arange(1, len(measured) + 1) + (j - 0.5) * WIDTH
        axis.bar(x, claim["prediction"], WIDTH, color=colour, alpha=0.35, label=RULE_NAMES[rule])
        error = np.abs(ends.T - measured)
        axis.errorbar(x, measured, error, fmt="o", ms=3, color=colour, capsize=2)
    axis.set_yscale("log")
    axis.set_xticks(np.arange(1, len(measured) + 1))
    axis.set_xlabel("partition $h$ (lowest rank level first)")
    axis.set_ylabel(r"stationary energy $E[\sigma_i^2]$")
    axis.legend(title="bar: predicted, dot: measured", title_fontsize=SMALL)
    return figure, axis
