"""`fedlora-sim collapse`: test whether an aggregation rule collapses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.collapse.scenarios import SCENARIOS
from fedlora_cli.options import FORCE_HELP, check_folder, load_rule
from fedlora_cli.tables import wide_console
from fedlora_sim.errors import expected
from fedlora_sim.storage import check_file, write_bytes

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from analysis.collapse import CollapseReport

FAILED = 1
KINDS = ("png", "pdf")


def collapse(
    rule: Annotated[
        str,
        typer.Argument(
            metavar="RULE",
            help="a rule by name, with options as in raflora:canonicalize=true, or your own as "
            "pkg.module:Name",
        ),
    ],
    seed: Annotated[int, typer.Option(help="base seed of all runs")] = 0,
    seeds: Annotated[
        int | None, typer.Option(help="runs of every scenario that draws something")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(help=f"run this scenario alone (repeatable): {', '.join(SCENARIOS)}"),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="write the figure here, as .png or .pdf")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help=FORCE_HELP)] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead")] = False,
) -> None:
    """Test by intervals whether a rule collapses, compared with FedAvg and raFLoRA.

    Runs the rule in standard scenarios: full participation, 10% cohorts, unequal clients, drift,
    and training below and above FedAvg's threshold. Prints the verdict, one sentence per scenario,
    and a table; rates, half-lives, floors, extinction and the energy ratio are compared with closed
    forms where these exist.

    The exit code is 0 for every verdict, and 1 if the results for FedAvg or raFLoRA contradict the
    theory: then do not trust the report.

    With --json: "rule", "verdict", "sentence", "failed_controls" and "scenarios", with every number
    of every rule.
    """
    from analysis.collapse import collapse_report

    if figure is not None:
        _check_figure(figure, force)
    report = collapse_report(
        load_rule(rule),
        seed=seed,
        seeds=seeds,
        scenarios=scenario or None,
        progress=sys.stderr.isatty() and not as_json,
    )
    if as_json:
        print(json.dumps(report.to_json(), indent=1, allow_nan=False))
    else:
        print(report)
        wide_console().print(report.table())
    if figure is not None:
        _draw(report, figure, force)
        if not as_json:
            print(f"energies in {figure}")
    if report.failed_controls:
        raise typer.Exit(FAILED)


def _check_figure(figure: Path, force: bool) -> None:
    if figure.suffix.lower().removeprefix(".") not in KINDS:
        raise expected("--figure", str(figure), f"a file name that ends in .{' or .'.join(KINDS)}")
    check_folder("--figure", figure, figure.parent)
    check_file(figure, "--figure", force=force)


def _draw(report: CollapseReport, figure: Path, force: bool) -> None:
    # imported late: not needed for the numbers
    from paper_figs import style
    from paper_figs import theory as drawing

    style.apply()
    check_file(figure, "--figure", force=force)  # checked again: it may exist by now
    write_bytes(
        figure, style.image(drawing.draw_collapse(report), figure.suffix.lower().removeprefix("."))
    )
