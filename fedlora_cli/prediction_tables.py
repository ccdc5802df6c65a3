"""The tables of `fedlora-sim predict`: one per topic, rules as rows, partitions as columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from analysis.predict import Prediction, RulePrediction, directions_label
from fedlora_cli.tables import print_note, print_table, wide_console

COLUMNS = 4  # partitions next to each other
ABSENT = "—"
# Titles, and the quantities that share a cell.
TOPICS = {
    "Mean energy: factor per round, drift apart · half-life in rounds": (
        "energy_rate",
        "energy_half_life",
    ),
    "Energy of a typical surviving run, common gain: factor per round · half-life in rounds": (
        "typical_rate",
        "typical_half_life",
    ),
    "After {rounds} rounds: probability to survive · mean energy relative to the start": (
        "survival",
        "relative_energy",
    ),
    "Floor: stationary mean energy of a direction": ("energy_floor",),
    "Training towards amplitude {target:g}: local time below which it collapses": (
        "collapse_threshold",
    ),
    "Training for local time {local_time:g}: amplitude at the end · factor of approach": (
        "flow_floor",
        "flow_rate",
    ),
}


def print_tables(prediction: Prediction) -> None:
    """Print a prediction, 110 columns wide if there is no terminal."""
    console = wide_console()
    case = prediction.case
    for start in range(0, len(case.partitions), COLUMNS):
        shown = range(len(case.partitions))[start : start + COLUMNS]
        _print_federation(console, prediction, shown)
        for title, names in TOPICS.items():
            if "flow_floor" in names and case.local_time is None:
                continue
            values = {"rounds": case.rounds, "target": case.target, "local_time": case.local_time}
            _print_topic(console, prediction, title.format(**values), names, shown)
    _print_reasons(console, prediction)
    for note in prediction.notes:
        print_note(console, f"Note: {note}")


def _print_federation(console: Console, prediction: Prediction, shown: Sequence[int]) -> None:
    case = prediction.case
    federation = case.federation
    title = (
        f"{federation.num_clients} clients, {federation.cohort_size} a round "
        f"({federation.sampling}), {case.allocation} allocation"
    )
    table = _table(prediction, "directions", shown)
    levels = [federation.levels[h] for h in shown]
    able = [sum(rank >= level for rank in federation.ranks) for level in levels]
    table.add_row("clients of such rank", *map(str, able))
    table.add_row("coverage", *(_number(prediction.coverage[h]) for h in shown))
    absent = (_number(prediction.empty_probability[h]) for h in shown)
    table.add_row("chance of a cohort without", *absent)
    print_table(console, title, table)


def _print_topic(
    console: Console,
    prediction: Prediction,
    title: str,
    names: Sequence[str],
    shown: Sequence[int],
) -> None:
    table = _table(prediction, "rule", shown)
    for row in prediction.rules:
        table.add_row(row.label, *(_cell(row, names, h) for h in shown))
    print_table(console, title, table)


def _print_reasons(console: Console, prediction: Prediction) -> None:
    """Print the meaning of the dashes: each reason once, with its rules and quantities."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in prediction.rules:
        for name, why in row.reasons.items():
            rules, names = found.setdefault(why, ({}, {}))
            rules[row.rule] = names[name.replace("_", " ")] = None
    if found:
        console.print(f"{ABSENT} no value", style="bold", highlight=False)
    for why, (rules, names) in found.items():
        print_note(console, f"  {', '.join(rules)} ({', '.join(names)}): {why}")


def _table(prediction: Prediction, corner: str, shown: Sequence[int]) -> Table:
    table = Table(box=SIMPLE)
    table.add_column(corner, no_wrap=True)
    for h in shown:
        name = directions_label(prediction.case.partitions[h])
        table.add_column(name, justify="right", overflow="fold")
    return table


def _cell(row: RulePrediction, names: Sequence[str], h: int) -> str:
    cells = [_number(row.values[name][h]) if name in row.values else ABSENT for name in names]
    return ABSENT if set(cells) == {ABSENT} else " · ".join(cells)


def _number(value: float) -> str:
    return "∞" if np.isposinf(value) else f"{value:.3g}"
