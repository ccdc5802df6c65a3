"""The tables of `fedlora-sim predict`: one per topic, rules as rows, partitions as columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from analysis.formats import NONE, number
from analysis.predict import RulePrediction, comparison_notes, directions_label
from fedlora_cli.tables import print_note, print_table, wide_console

DIGITS = 3
COLUMNS = 4  # partitions next to each other
HEADS = {"coverage": "coverage", "extinction_probability": "chance of a cohort without"}
# Titles, and the quantities that share a cell.
TOPICS = {
    "Mean energy: factor per round, drift apart · half-life in rounds": (
        "energy_rate",
        "half_life",
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


def print_tables(rows: Sequence[RulePrediction]) -> None:
    """Print a comparison, 110 columns wide where there is no terminal."""
    console = wide_console()
    scenario = rows[0].scenario
    values = {
        "rounds": scenario.rounds,
        "target": scenario.target_amplitude,
        "local_time": scenario.local_time,
    }
    partitions = range(len(scenario.federation.levels))
    for start in range(0, len(partitions), COLUMNS):
        shown = partitions[start : start + COLUMNS]
        _print_federation(console, rows[0], shown)
        for title, names in TOPICS.items():
            if set(names) <= set(rows[0].quantities):
                _print_topic(console, rows, title.format(**values), names, shown)
    _print_reasons(console, rows)
    for note in comparison_notes(rows):
        print_note(console, f"Note: {note}")


def _print_federation(console: Console, row: RulePrediction, shown: Sequence[int]) -> None:
    scenario, federation = row.scenario, row.scenario.federation
    title = (
        f"{federation.num_clients} clients, {federation.cohort_size} a round "
        f"({federation.sampling}), {scenario.allocation} allocation"
    )
    table = _table(row, "directions", shown)
    levels = [federation.levels[h] for h in shown]
    able = [sum(rank >= level for rank in federation.ranks) for level in levels]
    table.add_row("clients of such rank", *map(str, able))
    for name, head in HEADS.items():
        values = row.of(name)
        assert values is not None
        table.add_row(head, *(number(values[h], DIGITS) for h in shown))
    print_table(console, title, table)


def _print_topic(
    console: Console,
    rows: Sequence[RulePrediction],
    title: str,
    names: Sequence[str],
    shown: Sequence[int],
) -> None:
    table = _table(rows[0], "rule", shown)
    for row in rows:
        table.add_row(row.label, *(_cell(row, names, h) for h in shown))
    print_table(console, title, table)


def _print_reasons(console: Console, rows: Sequence[RulePrediction]) -> None:
    """Print what the dashes stand for, each reason once with its rules and quantities."""
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for row in rows:
        for name, why in row.reasons.items():
            rules, names = found.setdefault(why, ({}, {}))
            rules[row.rule] = names[name.replace("_", " ")] = None
    if found:
        console.print(f"{NONE} no value", style="bold", highlight=False)
    for why, (rules, names) in found.items():
        print_note(console, f"  {', '.join(rules)} ({', '.join(names)}): {why}")


def _table(row: RulePrediction, corner: str, shown: Sequence[int]) -> Table:
    table = Table(box=SIMPLE)
    table.add_column(corner, no_wrap=True)
    for h in shown:
        name = directions_label(row.scenario.federation.partitions[h])
        table.add_column(name, justify="right", overflow="fold")
    return table


def _cell(row: RulePrediction, names: Sequence[str], h: int) -> str:
    found = [row.of(name) for name in names]
    cells = [NONE if values is None else number(values[h], DIGITS) for values in found]
    return NONE if set(cells) == {NONE} else " · ".join(cells)
