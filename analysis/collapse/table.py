"""The table of a collapse report: partitions as rows, the rule beside FedAvg and raFLoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from analysis.collapse.outcome import Agreement, Outcome
from analysis.collapse.sentences import NAMES
from analysis.collapse.words import (
    ABSENT,
    DOUBLES,
    EXACTLY,
    directions,
    half_life_text,
    loss_text,
    percent,
    share_text,
    times,
)

if TYPE_CHECKING:
    from analysis.collapse.report import CollapseReport, ScenarioReport

SIGNS = {
    Agreement.AGREES: "✓",
    Agreement.DISAGREES: "✗",
    Agreement.UNDECIDED: "?",
}
NO_UNITS = str.maketrans("", "", "%×")
CAPTION = (
    "Energy lost a round by each partition itself, and relative to the shared directions of the "
    "same run (flow: itself), which decides the verdict; FedAvg and raFLoRA relative too. "
    "Simultaneous 95% intervals; none: the same in every run. Theory: ✓ agrees, ✗ disagrees, "
    "? undecided. A negative loss is growth, ×3 threefold. Left: in the last quarter of "
    "the rounds, relative to the shared directions (flow: over the start). Extinct: share of runs, "
    "and round by which half were. ρ: share of the shared directions in the energy at the end."
)


def of(report: CollapseReport) -> Table:
    """Losses per round, half-lives, what is left, extinction, and the shared-rank ratio."""
    table = Table(
        title="Energy lost a round, half-lives, and what is left",
        box=SIMPLE,
        caption=CAPTION,
        caption_justify="left",
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("scenario", min_width=16, max_width=16)
    table.add_column("dir.", no_wrap=True)
    others = [name for key, name in NAMES.items() if key != report.rule]
    names = ("itself", "theory", "relative", "half-life, rounds", "left", "extinct")
    for name in (*names, *others):
        table.add_column(name, justify="right", overflow="fold")
    for part in report.scenarios:
        own = part.rules.get(report.rule)
        if own is None:
            table.add_row(part.standard.title, "", "not run")
            continue
        ratio = share_text(own.numbers["rho"], 0).removeprefix(EXACTLY).partition(" [")[0]
        heads = (part.standard.title, _verdict(own), f"ρ {ratio}")
        for h in range(len(part.standard.levels)):
            table.add_row(heads[h], *_row(part, own, h, report.rule))
        table.add_section()
    return table


def _row(part: ScenarioReport, own: Outcome, h: int, label: str) -> list[str]:
    rate, predicted = own.numbers["rate"], own.prediction.values.get("rate")
    relative = own.numbers["relative_rate"]
    sign = SIGNS.get(own.agreement["rate"][h], "")
    told = ABSENT if predicted is None else f"{_loss(predicted[h])} {sign}".strip()
    lives = half_life_text(relative, h) or ("never" if np.isfinite(relative.value[h]) else ABSENT)
    others = [part.rules[key].numbers["relative_rate"].value[h] for key in NAMES if key != label]
    extinct, by = own.numbers["extinct"], own.extinct_rounds[h]
    lost, bracket, ends = share_text(extinct, h).partition(" [")
    lost += (f", {by:.0f}" if np.isfinite(by) else "") + bracket + ends
    cells = [
        directions(part.standard, h),
        loss_text(rate, h),
        told,
        loss_text(relative, h),
        lives,
        share_text(own.numbers["left"], h),
        lost if extinct.value[h] > 0 else "no",
        *(ABSENT if np.isnan(factor) else _loss(factor) for factor in others),
    ]
    return [_stacked(cell) for cell in cells]


def _stacked(text: str) -> str:
    """An interval below its value, in the same unit."""
    value, _, ends = text.removeprefix(EXACTLY).partition(" [")
    return f"{value}\n[{ends.translate(NO_UNITS)}" if ends else value


def _loss(factor: float) -> str:
    return times(factor) if factor >= DOUBLES else percent(1 - factor)


def _verdict(own: Outcome) -> str:
    """Return the verdict without a mark: those of the table judge theory alone."""
    return str(own.verdict)
