"""`fedlora-sim verify`: predict, simulate, judge; write report, data and figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from tqdm import tqdm

import analysis
from analysis.formats import interval, number
from fedlora_cli.options import check_folder
from fedlora_cli.resume import resumable
from fedlora_cli.tables import wide_console
from fedlora_sim.errors import expected
from fedlora_sim.run_store import RunStore
from fedlora_sim.runtime import resolve_device, torch_dtype
from fedlora_sim.storage import (
    ResultFolder,
    save_dataset,
    source_fingerprint,
    write_json,
    write_text,
)

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from analysis.claims.base import Claim, RunContext

QUICK_HELP = "about 3 minutes on 2 cores: fewer claims, fewer runs, shorter training"
COLORS = {"supported": "green", "refuted": "red", "undecided": "yellow"}


def verify(
    quick: Annotated[bool, typer.Option("--quick", help=QUICK_HELP)] = False,
    claim: Annotated[list[str] | None, typer.Option(help="claim id; may be repeated")] = None,
    out: Annotated[Path, typer.Option(help="folder to write")] = Path("results/verify"),
    seed: Annotated[int, typer.Option(help="base seed of all runs")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps")] = "auto",
    html: Annotated[
        bool, typer.Option("--html", help="write report.html too: one file, for any browser")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="replace results that were changed since")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="exit code 1 unless every theorem of this run holds")
    ] = False,
) -> None:
    """Verify the theory: predictions against measurements, with negative controls.

    An earlier verification in the folder is kept until the new one is complete, and then replaced.
    Other files there are never changed.
    """
    from analysis.claims import select
    from analysis.claims.base import RunContext
    from analysis.claims.verify import holds

    claims = select(claim, quick)
    resolve_device(device, torch_dtype("float64"), "training")
    if seed < 0:
        raise expected("--seed", seed, "a non-negative integer")
    check_folder("--out", out, out)
    code = source_fingerprint(Path(str(analysis.__file__)).parent)
    effort = {"seed": seed, "quick": quick, "device": device, "analysis": code}
    store = RunStore(out / ".partial", effort)
    results = ResultFolder(out, "verify", force=force)
    with results.only_writer():
        results.check(_written())
        started, whole = time.monotonic(), not store.count()
        with resumable(store), results.replace() as new:
            report = _run(claims, RunContext(seed, quick, device, store=store), new)
            # The duration is unknown for work that continued from an earlier run.
            report["seconds"] = round(time.monotonic() - started) if whole else None
            _write(report, new, html)
    _print_table(report, out)
    if strict and not holds(report):
        raise typer.Exit(1)


def _written() -> tuple[str, ...]:
    """Return all files that a verification may write."""
    from analysis.paper.catalogue import VERIFIED
    from paper_figs.files import FROM_DATA

    figures = (*FROM_DATA, "rates", "floors")
    return (
        *("report.md", "report.html", "report.json", "data/digits.nc"),
        *(f"data/{recipe.name}.nc" for recipe in VERIFIED),
        *(f"figures/{name}.{kind}" for name in figures for kind in ("png", "pdf")),
    )


def _run(claims: Sequence[Claim], context: RunContext, out: Path) -> dict[str, Any]:
    import matplotlib

    from analysis.claims import digits
    from analysis.claims.verify import assemble, digits_runs, judge_claims
    from analysis.paper.catalogue import VERIFIED
    from paper_figs import draw_all

    found, data = {}, out / "data"
    with (
        tqdm(total=len(claims), unit="claim", disable=None, position=0) as done,
        tqdm(unit="run", unit_scale=True, disable=None, position=1, leave=False) as runs,
    ):
        context.on_progress = runs.update
        real = any(claim in digits.CLAIMS for claim in claims)
        done.set_description("fine-tuning on digits" if real else "claims")
        for record in judge_claims(claims, context):
            done.set_description("claims")
            found[record["id"]] = record
            done.update()
            if done.disable:  # without a terminal: a line per claim instead of a bar
                line = f"{record['id']}: {record['verdict']} ({record['seconds']:.1f} s)"
                print(line, file=sys.stderr, flush=True)
        if real:
            done.set_description("digits: all runs")
        records = [found[claim.id] for claim in claims]
        report = assemble(records, context)
        if real:
            save_dataset(digits.gather(context, digits_runs(records)), data / "digits.nc")
        for recipe in VERIFIED:
            if recipe.illustrates(claims):
                done.set_description(f"figure: {recipe.name}")
                save_dataset(recipe.make(context), data / f"{recipe.name}.nc")
    matplotlib.use("Agg")
    draw_all(report, data, out / "figures")
    return report


def _write(report: dict[str, Any], out: Path, html: bool) -> None:
    from analysis.claims.report import to_markdown
    from paper_figs.html.render import render

    write_text(out / "report.md", to_markdown(report))
    if html:
        write_text(out / "report.html", render(report, out))
    write_json(out / "report.json", report)


def _print_table(report: dict[str, Any], out: Path) -> None:
    from analysis.claims.report import measured_head, prediction_text, worst

    measured = measured_head(report)
    table = Table("claim", "prediction", measured, "verdict", "control", "time", box=SIMPLE)
    _keep_whole(table)
    for c in report["claims"]:
        i = worst(c)
        measured = f"{number(c['measurement'][i], 3)} {interval(c['interval'][i], 3)}"
        verdict = f"[{COLORS[c['verdict']]}]{c['verdict']}[/]"
        control = c["negative_control"]["verdict"]
        mark = control if control == "refuted" else f"[red]{control}[/]"
        predicted = prediction_text(c, [i])
        table.add_row(c["id"], predicted, escape(measured), verdict, mark, f"{c['seconds']:.1f} s")
    console = wide_console()
    console.print(table)
    if any(len(c["quantities"]) > 1 for c in report["claims"]):
        console.print(
            "of several quantities, the one whose interval reaches furthest; all are in the report"
        )
    if report.get("digits"):
        runs = Table("digits run", "ranks", "accuracy", "rho", "effective rank", box=SIMPLE)
        for row in report["digits"]:
            cells = [
                escape(f"{number(row[k], 3)} {interval(row[f'{k}_interval'], digits=3)}")
                for k in ("accuracy", "rho", "effective_rank")
            ]
            runs.add_row(row["run"], row["ranks"], *cells)
        _keep_whole(runs)
        console.print(runs)
    console.print(f"report, data and figures in {out}")


def _keep_whole(table: Table) -> None:
    """Let a narrow terminal fold cells without cutting numbers."""
    for column in table.columns:
        column.overflow = "fold"
    table.columns[0].no_wrap = True
