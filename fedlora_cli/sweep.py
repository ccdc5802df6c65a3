"""`fedlora-sim sweep`: run a grid of scenarios, rules and seeds as resumable tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora_cli.options import check_folder
from fedlora_cli.resume import resumable_sweep
from fedlora_sim.errors import check_positive
from fedlora_sim.sweep.plan import TASK_SECONDS

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from fedlora_sim.sweep.run import Engine, Forecast, SweepReport

FAILED = 1


def sweep(
    grid: Annotated[
        Path, typer.Argument(metavar="GRID.toml", help="tables scenario, grid and zip")
    ],
    out: Annotated[
        Path, typer.Option(help="folder of the sweep; one that is there is gone on with")
    ],
    workers: Annotated[int, typer.Option(help="processes of this machine")] = 1,
    gpus: Annotated[
        bool, typer.Option("--gpus", help="a Dask worker for every GPU of this machine")
    ] = False,
    scheduler: Annotated[
        str | None, typer.Option(metavar="tcp://HOST:PORT", help="a Dask scheduler that runs")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check all, say what it takes, write nothing")
    ] = False,
    task_seconds: Annotated[
        float, typer.Option(help="estimated time of a new task, at most")
    ] = TASK_SECONDS,
    mix_code: Annotated[
        bool,
        typer.Option("--mix-code", help="continue although other code made the existing tasks"),
    ] = False,
) -> None:
    """Run a grid of scenarios, rules and seeds, here or on a cluster, and go on if killed."""
    from fedlora_sim.sweep.grid import read_grid
    from fedlora_sim.sweep.run import Engine, forecast, run_sweep

    engine = Engine(workers, scheduler, gpus)
    seconds = check_positive("--task-seconds", task_seconds)
    check_folder("--out", out, out)
    checked = read_grid(grid)
    if dry_run:
        told = forecast(checked, out, task_seconds=seconds, mix_code=mix_code, engine=engine)
        _print_forecast(told, engine)
        return
    with resumable_sweep(out) as check_stopped:
        report = run_sweep(
            checked,
            out,
            engine=engine,
            task_seconds=seconds,
            mix_code=mix_code,
            on_task=check_stopped,
        )
    _print_report(report, out)


def _print_forecast(told: Forecast, engine: Engine) -> None:
    from fedlora_sim.sweep.run import duration

    there = f"{told.present:,} are there"
    print(f"{told.rows:,} rows, {told.runs:,} runs in {told.tasks:,} tasks; {there}")
    workers = engine.workers
    took = f"about {duration(told.seconds / workers)}"
    where = f"in {workers} processes" if workers > 1 else "on one core of this machine"
    print(f"time: {took} {where}, by a short probe")
    print(f"disk: about {_size(told.nbytes)}; {_size(told.free)} are free")


def _print_report(report: SweepReport, out: Path) -> None:
    for row, why in report.failed.items():
        print(f"failed: {row}: {why}", file=sys.stderr)
    if report.failed:
        count = report.tasks - len(report.failed)
        print(f"{count:,} of {report.tasks:,} tasks are kept in {out}", file=sys.stderr)
        raise typer.Exit(FAILED)
    print(f"all {report.tasks:,} tasks are in {out}; read them with fedlora_sim.open_sweep")


def _size(nbytes: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes / 1e3:.0f} kB"
