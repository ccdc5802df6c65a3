"""`fedlora-sim export`: export adapters of a run of `fedlora-sim train` as PEFT folders."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora_cli.options import load_rule
from fedlora_sim.errors import expected

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from fedlora_sim.peft.export import ExportedClients, KeptRun


def export(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="folder of the run")],
    t: Annotated[int, typer.Option("--round", help="round, from 1; 0 is the start")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    client: Annotated[
        list[int] | None, typer.Option(help="client number, from 0; may be repeated")
    ] = None,
    cohort: Annotated[
        bool, typer.Option("--cohort", help="all clients of the round, ready to be aggregated")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--global", help="the global adapter after the round")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="replace adapter folders that are there")
    ] = False,
    rule: Annotated[
        str | None, typer.Option(help="the run's rule, as module:Name, if it is not registered")
    ] = None,
) -> None:
    """Export a fine-tuning run's adapters as PEFT folders: of any client and round, or global."""
    from fedlora_sim.peft.export import KeptRun
    from fedlora_sim.peft.write import check_output

    given = {"--client": client, "--cohort": cohort, "--global": whole}
    chosen = [name for name, value in given.items() if value]
    if len(chosen) != 1:
        raise expected("adapters", chosen, "one of --client, --cohort and --global")
    run = KeptRun(folder, rule=None if rule is None else load_rule(rule))
    if whole:
        run.export_global(t, out, force=force)
        print(f"wrote {out}")
        return
    previous = out / "previous"
    if cohort:
        check_output(previous, [run.place], force=force)
    exported = run.export_clients(t, client or None, out, force=force)
    for k, rank, place in zip(exported.clients, exported.ranks, exported.folders, strict=True):
        print(f"client {k}, rank {rank}: {place}")
    if cohort:
        run.export_global(t - 1, previous, force=force)
        print(f"the global adapter that they started from: {previous}")
        if run.keeps_state:
            print(f"what {run.run.rule.label} keeps from round to round is in no folder")
        else:
            print(_aggregate_command(run, exported, previous, out / "aggregated"))
    elif exported.has_base:
        print(f"they add to the base model as --global --round {t - 1} corrects it")


def _aggregate_command(run: KeptRun, exported: ExportedClients, previous: Path, out: Path) -> str:
    """Return the command that aggregates the folders as the round did."""
    scenario = run.scenario
    options = {
        "--rule": run.run.rule.label,
        "--samples": ",".join(f"{n:.0f}" for n in exported.num_samples),
        "--rank-levels": ",".join(str(level) for level in exported.rank_levels),
        "--previous": str(previous / "adapter" if exported.has_base else previous),
        "--empty-partition": scenario.empty_partition,
        "--out": str(out),
    }
    words = [word for option in options.items() for word in option]
    return shlex.join(["fedlora-sim", "aggregate", *map(str, exported.folders), *words])
