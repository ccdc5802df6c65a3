"""`fedlora-sim design`: find ranks and rules within a budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from analysis.closed_form.setting import RULES
from analysis.design import LEVELS, Design
from analysis.design import design as find_designs
from analysis.formats import NONE
from analysis.predict import rule_label
from fedlora_cli.options import parse_pair
from fedlora_cli.scenario_options import InitialAmplitude, SpectrumDecay
from fedlora_cli.tables import print_note, print_table, wide_console
from fedlora_sim.errors import InputError, check_count, expected
from fedlora_sim.scenario import Scenario

LEGEND = (
    "score: signal - noise, as shares of the energy at the start; it says what is kept, not what "
    "is learned (a direction of one client counts like one of all: see --min-coverage); lost: in "
    "directions of no client; top: coverage of the highest level; worst: lowest factor of mean "
    "energy a round, drift apart; up, down: numbers a round and layer"
)


def design(
    clients: Annotated[int, typer.Option(help="number of clients")],
    total_rank: Annotated[int | None, typer.Option(help="most that ranks may sum to")] = None,
    communication: Annotated[
        float | None, typer.Option(help="most numbers per round and layer, up and down together")
    ] = None,
    cohort: Annotated[int | None, typer.Option(help="clients per round; all by default")] = None,
    gain: Annotated[
        str, typer.Option(help="mean,std of the factor by which clients change an amplitude")
    ] = "1,0",
    drift: Annotated[
        float, typer.Option(help="standard deviation of what clients add to an amplitude")
    ] = 0.0,
    rounds: Annotated[int, typer.Option(help="rounds")] = Scenario.rounds,
    levels: Annotated[str, typer.Option(help="ranks that clients may have")] = ",".join(
        map(str, LEVELS)
    ),
    distinct: Annotated[int, typer.Option(help="most different ranks among the clients")] = 3,
    d_in: Annotated[int, typer.Option(help="width of the layer")] = Scenario.d_in,
    d_out: Annotated[int, typer.Option(help="height of the layer")] = Scenario.d_out,
    sampling: Annotated[
        str | None,
        typer.Option(help="cohort law: full, without_replacement, with_replacement or bernoulli"),
    ] = None,
    initial_amplitude: InitialAmplitude = Scenario.initial_amplitude,
    spectrum_decay: SpectrumDecay = Scenario.spectrum_decay,
    min_coverage: Annotated[
        float, typer.Option(help="least share of clients at the highest rank of a design")
    ] = 0.0,
    top: Annotated[int, typer.Option(help="designs to show")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Find the ranks and the rule that keep the most of an update within a budget.

    Score: signal minus noise after the last round, as a share of the energy at the start: squared
    mean amplitudes, and the variance around them. Directions without a carrier are lost. The score
    measures what is kept, not what is learned: see --min-coverage.

    With --json: "designs", best first; "best_of_each_rule"; and "left_out", for each rule without a
    design why.
    """
    gain_mean, gain_std = parse_pair("--gain", gain)
    scenario = Scenario(
        (1,) * check_count("clients", clients),
        rounds=rounds,
        cohort_size=cohort,
        sampling=sampling,
        gain_mean=gain_mean,
        gain_std=gain_std,
        drift_std=drift,
        initial_amplitude=initial_amplitude,
        spectrum_decay=spectrum_decay,
        d_in=d_in,
        d_out=d_out,
    )
    task: dict[str, Any] = {
        "total_rank": total_rank,
        "communication": communication,
        "levels": _levels(levels),
        "distinct": distinct,
        "min_coverage": min_coverage,
    }
    designs = find_designs(scenario, **task, top=top)
    each, left_out = _best_of_each_rule(scenario, task)
    if as_json:
        record = {
            "designs": [asdict(best) for best in designs],
            "best_of_each_rule": [asdict(best) for best in each],
            "left_out": left_out,
        }
        print(json.dumps(record, indent=1, allow_nan=False))
        return
    console = wide_console()
    _print_designs(console, f"Best of all after {rounds} rounds", designs)
    _print_designs(console, "Best of each rule", each)
    reasons = {
        f"{NONE} {best.rule} ({name.replace('_', ' ')}): {reason}"
        for best in [*designs, *each]
        for name, reason in best.reasons.items()
    }
    for reason in sorted(reasons):
        print_note(console, reason)
    for rule, reason in left_out.items():
        print_note(console, f"{rule} is left out: {reason}")
    print_note(console, LEGEND)


def _best_of_each_rule(
    scenario: Scenario, task: dict[str, Any]
) -> tuple[list[Design], dict[str, str]]:
    """Return one design per rule, best first, and the reason for rules without one."""
    each: list[Design] = []
    left_out: dict[str, str] = {}
    for rule in RULES:
        try:
            each += find_designs(scenario, [rule], **task, top=1)
        except InputError as error:  # the task is sound: all rules together had an answer
            left_out[rule] = str(error)

    def place(best: Design) -> tuple[float, ...]:
        return -best.score, best.total_rank, best.upload + best.download

    return sorted(each, key=place), left_out


def _print_designs(console: Console, title: str, designs: Sequence[Design]) -> None:
    """Print one table or, on a narrow terminal, two, so that no number is broken."""
    heads = ("sum", "score", "signal", "noise", "lost", "top", "worst", "up", "down")
    table = _table(designs, heads)
    if console.measure(table, options=console.options.update(width=1000)).maximum <= console.width:
        print_table(console, title, table)
        return
    print_table(console, f"{title}: scores", _table(designs, heads[1:5]))
    print_table(console, f"{title}: costs", _table(designs, (heads[0], *heads[5:])))


def _table(designs: Sequence[Design], heads: Sequence[str]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    for head in ("ranks", "rule"):
        table.add_column(head, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for best in designs:
        cells = {
            "sum": str(best.total_rank),
            "score": f"{best.score:.3f}",
            "signal": f"{best.signal:.3f}",
            "noise": f"{best.noise:.3f}",
            "lost": f"{best.lost:.3f}",
            "top": f"{best.top_coverage:.3f}",
            "worst": NONE if best.worst_rate is None else f"{best.worst_rate:.3f}",
            "up": f"{best.upload:,.0f}",
            "down": f"{best.download:,.0f}",
        }
        label = rule_label(best.rule, best.empty_partition)
        table.add_row(best.ranks, label, *(cells[head] for head in heads))
    return table


def _levels(text: str) -> list[int]:
    try:
        return [int(rank) for rank in text.split(",")]
    except ValueError:
        raise expected("--levels", text, "ranks with commas between, e.g. 4,8,16") from None
