"""`fedlora-sim study`: compare rules, ranks and heterogeneities on a real task."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from analysis.formats import interval, number
from fedlora_cli.options import check_folder, parse_assignment
from fedlora_cli.resume import resumable_sweep
from fedlora_cli.scenario_options import Settings
from fedlora_cli.tables import wide_console
from fedlora_sim.errors import check_count, expected
from fedlora_sim.storage import ResultFolder, save_dataset, write_json, write_text

if TYPE_CHECKING:  # torch takes seconds, and the help of a command needs none
    from analysis.studies.study import Study

KINDS = ("png", "pdf")
WRITTEN = (
    *("study.md", "study.json", "study.html"),
    "data/curves.nc",
    *(f"figures/{n}.{k}" for n in ("study_curves", "study_outcomes") for k in KINDS),
)
COLORS = {"supported": "green", "refuted": "red", "undecided": "yellow"}


def study(
    source: Annotated[
        str | None, typer.Argument(metavar="NAME|FILE.toml", help="see --list")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder; results/NAME by default")] = None,
    workers: Annotated[int, typer.Option(help="runs at a time, a process each")] = 1,
    settings: Settings = None,
    rules: Annotated[str | None, typer.Option(help="these alone, separated by commas")] = None,
    heterogeneity: Annotated[
        list[str] | None, typer.Option(help="this one alone; may be repeated")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="so many of each heterogeneity alone")] = None,
    listed: Annotated[bool, typer.Option("--list", help="list the packaged studies")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="replace reports that were changed since")
    ] = False,
    mix_code: Annotated[
        bool, typer.Option("--mix-code", help="continue although other code made the finished runs")
    ] = False,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="report on runs that are all there")
    ] = False,
) -> None:
    """Compare rules, ranks and heterogeneities on a real task: runs, verdicts, report, figures."""
    from analysis.studies.run import RUNS, run_study
    from analysis.studies.study import load_study, study_about, study_names

    if listed:
        for name in study_names():
            print(f"{name}: {study_about(name)}")
        return
    if source is None:
        raise expected("study", None, f"one of {', '.join(study_names())}, or a file in TOML")
    changes = dict(parse_assignment(text) for text in settings or [])
    names = None if rules is None else [name.strip() for name in rules.split(",")]
    whole = load_study(source, changes)
    chosen = whole.part(names, heterogeneity, seeds)
    folder = Path("results") / chosen.name if out is None else out
    check_folder("--out", folder, folder)
    workers = check_count("--workers", workers, 1_024)
    results = ResultFolder(folder, "study", force=force)
    with results.only_writer(), resumable_sweep(folder / RUNS) as check_stopped:
        results.check(WRITTEN)
        if not report_only:
            run_study(whole, folder, workers, part=chosen, mix_code=mix_code, on_task=check_stopped)
        command = _command(source, settings or [], names, heterogeneity, seeds)
        report = _write_report(chosen, results, command)
    _print_tables(report, folder)


def _write_report(chosen: Study, results: ResultFolder, command: str) -> dict[str, Any]:
    """Write report, data and figures, replacing older ones."""
    import matplotlib

    from analysis.studies.findings import curves
    from analysis.studies.report import study_report, to_markdown
    from analysis.studies.run import load_runs
    from paper_figs import draw_study

    runs = load_runs(chosen, results.folder)
    report = study_report(chosen, runs, command)
    with results.replace() as new:
        save_dataset(curves(chosen, runs), new / "data" / "curves.nc")
        matplotlib.use("Agg")
        draw_study(report, new / "data", new / "figures")
        write_text(new / "study.md", to_markdown(report))
        write_json(new / "study.json", report)
    return report


def _command(
    source: str,
    settings: Sequence[str],
    rules: Sequence[str] | None,
    heterogeneity: Sequence[str] | None,
    seeds: int | None,
) -> str:
    """Return the command that repeats the study, without local paths."""
    from analysis.studies.report import last_part
    from analysis.studies.study import PATHS

    words = ["fedlora-sim", "study", Path(source).name]
    for text in settings:
        name, value = parse_assignment(text)
        words += ["--set", f"{name}={last_part(str(value))}" if name in PATHS else text]
    words += [] if rules is None else ["--rules", ",".join(rules)]
    words += [word for name in heterogeneity or [] for word in ("--heterogeneity", name)]
    words += [] if seeds is None else ["--seeds", str(seeds)]
    return shlex.join(words)


def _print_tables(report: dict[str, Any], out: Path) -> None:
    console = wide_console()
    splits = list(report["study"]["heterogeneity"])
    outcomes = Table("ranks", "rule", *map(escape, splits), box=SIMPLE, title="final accuracy")
    accuracy = {(r["configuration"], r["rule"], r["heterogeneity"]): r for r in report["rows"]}
    for configuration, rule in dict.fromkeys(key[:2] for key in accuracy):
        own = [accuracy.get((configuration, rule, name)) for name in splits]
        outcomes.add_row(configuration, rule, *(r and number(r["accuracy"], 3) for r in own))
    console.print(outcomes)
    claims = Table("claim", "prediction", "measured", "verdict", "control", box=SIMPLE)
    for claim in report["claims"]:
        claims.add_row(
            claim["id"],
            f"{claim['margin']} {number(claim['prediction'], 3)}",
            escape(f"{number(claim['measurement'], 3)} {interval(claim['interval'], 3)}"),
            f"[{COLORS[claim['verdict']]}]{claim['verdict']}[/]",
            claim["negative_control"]["verdict"],
        )
    for claim in report["left_out"]:
        claims.add_row(claim["id"], "", "", "left out", claim["reason"])
    console.print(claims)
    console.print(f"report, data and figures in {out}")
