"""The staircase of rates: predicted energy factor per round and the measured one, per partition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paper_figs.style import RULE_COLOURS, RULE_NAMES, SINGLE_COLUMN

CLAIMS = {"staircase": "fedavg", "zero-pad-fourth-power": "zero_pad", "raflora-flat": "raflora"}


def draw(claims: Mapping[str, Mapping[str, Any]]) -> tuple[Figure, Axes]:
    """Rate of every partition relative to the shared one, one line per rule.

    Args:
        claims: entries of the report by id; those of `CLAIMS` are drawn.

    Returns:
        The figure and its axis.
    """
    figure, axis = plt.subplots(figsize=(SINGLE_COLUMN, 2.6))
    for claim_id, rule in CLAIMS.items():
        claim, colour = claims[claim_id], RULE_COLOURS[rule]
        predicted = np.array([1.0, *claim["prediction"]])
        measured, ends = (
            np.array(claim[name], dtype=float) for name in ("measurement", "interval")
        )
        partitions = np.arange(1, len(predicted) + 1)
        axis.step(partitions, predicted, where="mid", color=colour, lw=1, label=RULE_NAMES[rule])
        error = np.abs(ends.T - measured)
        axis.errorbar(partitions[1:], measured, error, fmt="o", ms=4, color=colour, capsize=2)
    axis.set_yscale("log")
    axis.set_xticks(partitions)
    axis.set_xlabel("partition $h$ (lowest rank level first)")
    axis.set_ylabel("energy factor per round")
    axis.legend(fontsize=7, title="line: predicted, dot: measured", title_fontsize=7)
    return figure, axis
