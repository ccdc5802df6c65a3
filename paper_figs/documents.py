"""Record results, and write the tables of the README and of docs/ from the record.

`python -m paper_figs.documents` records `results/verify`, `results/bench` and the studies next to
them that are newer than their record. With `--check` nothing is written, and a document that does
not match the record is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.claims import with_texts
from analysis.claims.evidence import anchor, derivations_of_claim
from analysis.claims.report import (
    MARKS,
    claim_tables,
    conjecture_table,
    digits_table,
    repeat_command,
    theme_table,
)
from analysis.diagnose.detection import detection_table
from analysis.formats import NONE, Lines, interval, markdown_table, number, percent
from analysis.paper import forecasts
from analysis.proofs.theorems import SECTIONS, theorems_of
from analysis.studies.drift_law.law_report import (
    account_table,
    accuracy_table,
    law_claims_table,
    law_rows_table,
)
from analysis.studies.report import claims_table, outcomes_table, premise_table
from fedlora_sim.rules.registry import describe_all
from fedlora_sim.storage import ResultFolder, write_bytes, write_text
from paper_figs import forecasting, style
from paper_figs.benchmark_tables import (
    aggregation_table,
    bars_table,
    gpu_block,
    hardware_line,
    lanes_table,
    large_table,
    layers_table,
    matrix_table,
    peft_table,
    rivals_block,
    slopes_table,
    spectral_table,
    sweep_table,
    training_bars_block,
    training_table,
)
from paper_figs.check_tables import (
    Record,
    broken_table,
    conformance_line,
    coverage_table,
    family_line,
    faults_table,
    frameworks_table,
    margin_table,
    mutation_table,
    ranks_table,
    reach_table,
    suite_table,
)
from paper_figs.drift import COURSES, draw_drift_law
from paper_figs.files import FROM_DATA

# Studies: copies in the record, and their tables

FILES = ("figures/*.png", "data/*.nc", "study.json")  # the report last: it completes the copy
COMMAND = "paper_figs.documents"
TABLES = {
    "study_claims": claims_table,
    "study_rows": outcomes_table,
    "study_premise": premise_table,
}


def record_studies(results: Path, record: Path, asked: Sequence[str] = ()) -> list[str]:
    """Copy each study that is newer than its record, and those that are requested.

    Args:
        results: folder of the studies' folders.
        record: folder of the record.
        asked: names of studies to copy in any case.

    Returns:
        The names of those copied; a part of a study is never copied.
    """
    copied = []
    for name in asked:
        if not (results / name / "study.json").exists():
            sys.exit(f"--study {name}: expected a report, {results / name / 'study.json'}")
    for report in sorted(results.glob("*/study.json")):
        source, target = report.parent, record / report.parent.name
        kept = target / "study.json"
        newer = not kept.exists() or report.stat().st_mtime > kept.stat().st_mtime
        if not newer and source.name not in asked:
            continue
        if not _read(report)["study"]["complete"]:
            print(f"{source}: only a whole study is recorded", file=sys.stderr)
            continue
        paths = [path for pattern in FILES for path in sorted(source.glob(pattern))]
        recorded = ResultFolder(target, COMMAND, argument="--study")
        with recorded.only_writer(), recorded.replace() as new:
            for path in paths:
                write_bytes(new / path.name, path.read_bytes())
        copied.append(source.name)
    return copied


def study_blocks(record: Path) -> dict[str, str]:
    """Return generated blocks by name, each of all studies in the record.

    Empty if there are none.
    """
    reports = [_read(path) for path in sorted(record.glob("*/study.json"))]
    if not reports:
        return {}
    return {
        block: "\n\n".join(f"{_head(report)}\n\n{table(report)}" for report in reports)
        for block, table in TABLES.items()
    }


def diagnosis_blocks(record: Path) -> dict[str, str]:
    """Return the table of the rates of `analysis.diagnose`; empty if they are not recorded."""
    path = record / "diagnose.json"
    return {"detection": detection_table(_read(path)["rows"])} if path.exists() else {}


def framework_blocks(record: Path) -> dict[str, str]:
    """Return the table of the examples of other frameworks; empty if they are not recorded."""
    path = record / "frameworks.json"
    return {"frameworks": frameworks_table(_read(path))} if path.exists() else {}


# The drift law: copies in the record, and their tables

LAWS = "drift_law"
LAW_TABLES = {
    "law_claims": law_claims_table,
    "law_rows": law_rows_table,
    "law_account": account_table,
    "law_accuracy": accuracy_table,
}


def record_laws(results: Path, record: Path) -> list[str]:
    """Copy the report of each domain of the drift law, draw their figure, and return their names.

    Args:
        results: folder of the results, with a folder `drift_law` of the domains' folders.
        record: folder of the record.
    """
    found = sorted(results.glob(f"{LAWS}/*/drift_law.json"))
    for report in found:
        write_bytes(record / LAWS / f"{report.parent.name}.json", report.read_bytes())
    reports = [_read(path) for path in sorted((record / LAWS).glob("*.json"), reverse=True)]
    shown = [report for report in reports if set(COURSES) <= report["domain"]["runs"].keys()]
    if found and shown:
        style.apply()
        style.save(draw_drift_law(shown), record / LAWS, LAWS, ["png"])
    return [report.parent.name for report in found]


def law_blocks(record: Path) -> dict[str, str]:
    """Return generated blocks by name, each of all recorded domains that have such a table."""
    reports = [_read(path) for path in sorted((record / LAWS).glob("*.json"))]
    if not reports:
        return {}
    found = {}
    for block, table in LAW_TABLES.items():
        parts = [(report, table(report)) for report in reports]
        found[block] = "\n\n".join(
            f"{_law_head(report)}\n\n{text}" for report, text in parts if text
        )
    return found


def _law_head(report: dict[str, Any]) -> str:
    domain = report["domain"]
    effort = f"{len(domain['seeds'])} seeds, {domain['rounds']} rounds"
    spent = f"{report['cpu_seconds'] / 60:.0f} minutes of CPU time"
    return f"**{domain['name']}**, {effort}, {spent}: `{report['command']}`"


def _head(report: dict[str, Any]) -> str:
    study = report["study"]
    seeds = max(len(own) for own in study["seeds"].values())
    effort = f"{seeds} seeds a split, {study['rounds']} rounds"
    return f"**{study['name']}**, {effort}: `{report['command']}`"


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


# Forecasts of real runs: copies in the record, and their tables

FORECASTS = "forecasts"
SHOWN_FORECASTS = {
    "drift laws": "drift laws",
    "persistence": "persistence",
    "local trend": "local trend",
    "damped trend": "damped trend",
    "power of the round": "power law of the round",
}
"""Columns of the table, by the name of the forecast in the record."""


def record_forecasts(results: Path, record: Path) -> None:
    """Copy the forecasts' records, and draw their figure.

    Args:
        results: folder of results; nothing is done if there are no forecasts.
        record: folder of the record.
    """
    found = forecasts.recorded(results / FORECASTS)
    if not found:
        return
    target = record / FORECASTS
    target.mkdir(parents=True, exist_ok=True)
    for name in (f"{study}.{kind}" for study in found for kind in ("nc", "json")):
        write_bytes(target / name, (results / FORECASTS / name).read_bytes())
    style.apply()
    figure, _ = forecasting.draw_forecasts(forecasts.load(target))
    style.save(figure, target, FORECASTS, kinds=("png",))


def forecast_blocks(record: Path) -> dict[str, str]:
    """Return generated blocks by name, each of all studies; empty without recorded forecasts."""
    folder = record / FORECASTS
    found = [_read(folder / f"{name}.json") for name in forecasts.recorded(folder)]
    if not found:
        return {}
    return {
        block: "\n\n".join(f"{_forecast_head(one)}\n\n{table(one)}" for one in found)
        for block, table in {
            "forecast_errors": forecast_table,
            "forecast_bars": forecast_bars_table,
            "forecast_counterfactuals": forecast_counterfactuals_table,
        }.items()
    }


def _forecast_head(found: Record) -> str:
    seeds = found["seeds"]
    minutes = number(found["cpu_seconds"] / 60, 2)
    return (
        f"**{found['study']}**, {found['heterogeneity']}, seeds {seeds[0]} to {seeds[-1]}, "
        f"horizons 1 to {found['horizons']} after {found['calibration_rounds']} rounds: "
        f"`{found['command']}` ({minutes} minutes of one core)"
    )


def forecast_table(found: Record) -> str:
    """Return the median errors of the drift laws and of the baselines, and the coverage."""
    head = (
        "rule",
        *SHOWN_FORECASTS.values(),
        "drift laws over persistence [95% over seeds]",
        f"coverage of {percent(found['confidence'])} intervals [95% over seeds]",
        "by partition",
    )
    rows: Lines = []
    for row in found["rows"]:
        errors = [number(row["errors"][name]["error"], 3) for name in SHOWN_FORECASTS]
        by = ", ".join(number(share, 2) for share in row["coverage_by_partition"])
        cells = (_with_interval(row["ratios"]["persistence"]), _with_interval(row["coverage"]), by)
        rows.append([f"`{row['rule']}`", *errors, *cells])
    return markdown_table(head, rows)


def forecast_bars_table(found: Record) -> str:
    """Return what was wanted before the runs, what was measured, and whether it is met."""
    rows: Lines = []
    for bar in found["bars"]:
        value = bar["measured"]
        told = (
            number(value, 3) if isinstance(value, float) else f"{len(value)}: " + ", ".join(value)
        )
        rows.append((bar["bar"], bar["wanted"], told, "met" if bar["met"] else "missed"))
    return markdown_table(("forecast", "wanted", "measured", ""), rows)


def forecast_counterfactuals_table(found: Record) -> str:
    """Return the errors of forecasts of one rule from another rule's first rounds."""
    head = (
        "calibrated on",
        "forecast",
        "error",
        "persistence",
        "by partition",
        "persistence, likewise",
    )
    rows: Lines = []
    for row in found["counterfactual"]:
        pair = [row["errors"][name] for name in ("drift laws", "persistence")]
        errors = [number(one["error"], 3) for one in pair]
        by = [", ".join(number(error, 2) for error in one["by_partition"]) for one in pair]
        rows.append([f"`{row['calibrated']}`", f"`{row['rule']}`", *errors, *by])
    return markdown_table(head, rows)


def _with_interval(found: Record) -> str:
    value = number(found["value"], 3)
    return (
        value if found["low"] is None else f"{value} {interval((found['low'], found['high']), 3)}"
    )


# Recording and rendering

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "recorded"
BENCHES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "spectral": {
        "speed": spectral_table,
        "spectral_lanes": lanes_table,
        "spectral_slopes": slopes_table,
        "spectral_bars": bars_table,
    },
    "matrix": {"matrix": matrix_table, "matrix_bars": bars_table},
    "aggregation": {
        "aggregation": aggregation_table,
        "layers": layers_table,
        "bars": bars_table,
        "hardware": hardware_line,
    },
    "large_aggregates": {"large_aggregates": large_table, "large_bars": bars_table},
    "peft_folders": {"peft_folders": peft_table, "peft_bars": bars_table},
    "training": {"training": training_table},
    "rivals": {"rivals": rivals_block},
    "sweep": {"sweep": sweep_table},
    "calibration": {
        "calibration_coverage": coverage_table,
        "calibration_margin": margin_table,
        "calibration_family": family_line,
        "calibration_reach": reach_table,
        "calibration_ranks": ranks_table,
    },
    "faults": {"faults": faults_table},
    "conformance": {
        "conformance": conformance_line,
        "conformance_rules": suite_table,
        "conformance_broken": broken_table,
    },
    "mutation": {"mutation": mutation_table},
}
TRIED = range(10)
"""Base seeds on which scenarios and margins were chosen: a record of them would be no test."""
ON_GPU = ("gpu", "aggregation-cuda", "training-cuda")
BLOCK = re.compile(
    r"<!-- (\w+): generated -->\n(?:(?!: generated -->).)*?<!-- end -->", flags=re.DOTALL
)


def run_line(report: dict[str, Any]) -> str:
    """Return command of the recorded report, and its duration if it ran without interruption."""
    made, seconds = report["environment"], report["seconds"]
    took = "" if seconds is None else f" ({seconds / 60:.1f} minutes on {made['cores']} cores)"
    return f"Recorded from: `{repeat_command(made)}`{took}."


def summary_line(report: dict[str, Any]) -> str:
    """Return the verdicts in short: theorems, conjectures, and controls that were refuted."""
    claims = report["claims"]
    theorems = [claim["verdict"] for claim in claims if claim["kind"] == "theorem"]
    conjectures = [claim["verdict"] for claim in claims if claim["kind"] == "conjecture"]
    found = ", ".join(f"{conjectures.count(v)} {v}" for v in ("supported", "refuted", "undecided"))
    controls = " and ".join(
        f"{sum(own['verdict'] == 'refuted' for own in given)} of {len(given)} {name}s"
        for key, name in (
            ("negative_control", "negative control"),
            ("near_control", "near control"),
        )
        for given in [[claim[key] for claim in claims if claim.get(key)]]
    )
    return (
        f"**{theorems.count('supported')} of {len(theorems)} theorems supported.** Of "
        f"{len(conjectures)} conjectures {found}. {controls} refuted. {run_line(report)}"
    )


def rules_table() -> str:
    """Return the table of registered rules, from their docstrings."""
    head = ("rule", "averages", "multiplier", "what it does", "source")
    lines: Lines = []
    for rule in describe_all():
        also = rule.also.split(", ") if rule.also else []
        name = ", ".join(f"`{one}`" for one in (rule.name, *also))
        options = f" Options: `{rule.options}`." if rule.options else ""
        cells = (name, rule.averages, rule.multiplier, rule.summary + options, rule.source)
        lines.append(cells)
    return markdown_table(head, lines)


def evidence_table(report: Record) -> str:
    """Return one row per claim: verdict of its measurement, derivations and theorems."""
    lines: Lines = []
    for claim in report["claims"]:
        derived = ", ".join(f"`{name}`" for name in derivations_of_claim(claim["id"]))
        proved = ", ".join(f"[`{t.name}`](#{anchor(t)})" for t in theorems_of(claim["id"]))
        measured = f"{MARKS[claim['verdict']]} {claim['verdict']}"
        lines.append((f"**{claim['id']}**", measured, derived or NONE, proved or NONE))
    return markdown_table(("claim", "measured", "derived (sympy)", "proved (Coq)"), lines)


def theorem_pages() -> str:
    """Return all theorems by section of the theory: sentence, formula, assumptions, claims."""
    parts = []
    for title, theorems in SECTIONS.items():
        parts.append(f"## {title}")
        for theorem in theorems:
            claims = ", ".join(f"**{claim}**" for claim in theorem.claims)
            of = f" Claims: {claims}." if claims else ""
            parts += [
                f"### {theorem.name}",
                theorem.sentence,
                f"${theorem.formula}$",
                f"Assumes: {theorem.assumptions}.{of} "
                f"File: [`{theorem.file}`](../analysis/proofs/{theorem.file}).",
            ]
    return "\n\n".join(parts)


def tables(record: Path) -> dict[str, str]:
    """Return the generated blocks by name, from the available recorded results."""
    report = with_texts(json.loads((record / "report.json").read_text(encoding="utf-8")))
    blocks = {
        "themes": theme_table(report),
        "conjectures": conjecture_table(report),
        "verdicts": claim_tables(report, "proofs.md"),
        "proofs": theorem_pages(),
        "evidence": evidence_table(report),
        "digits": digits_table(report),
        "run": run_line(report),
        "summary": summary_line(report),
        "rules": rules_table(),
        "gpu": gpu_block(record),
        "training_bars": training_bars_block(record),
    }
    for name, tables_of in BENCHES.items():
        bench = json.loads((record / f"{name}.json").read_text(encoding="utf-8"))
        blocks |= {block: table(bench) for block, table in tables_of.items()}
    blocks |= study_blocks(record) | forecast_blocks(record) | law_blocks(record)
    return blocks | diagnosis_blocks(record) | framework_blocks(record)


def documents(root: Path) -> list[Path]:
    """Return the documents with generated blocks."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def render(texts: Mapping[str, str], blocks: Mapping[str, str]) -> dict[str, str]:
    """Return the documents by name with all generated blocks replaced.

    Raises:
        SystemExit: for a block without its end, one without a generator, and one in no document.
    """
    shown: set[str] = set()
    made = {}
    for name, text in texts.items():
        found = BLOCK.findall(text)
        if len(found) != text.count(": generated -->"):
            raise SystemExit(f"{name}: expected an <!-- end --> after every generated block")
        for block in found:
            if block not in blocks:
                raise SystemExit(f"{name}: expected no block '<!-- {block}: generated -->'")
        shown.update(found)
        made[name] = BLOCK.sub(
            lambda match: f"<!-- {match[1]}: generated -->\n{blocks[match[1]]}\n<!-- end -->", text
        )
    for block in blocks:
        if block not in shown:
            raise SystemExit(f"documents: expected a block '<!-- {block}: generated -->' in one")
    return made


def main() -> None:
    """Record, then render; or only check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=ROOT / "results" / "verify")
    parser.add_argument("--bench", type=Path, default=ROOT / "results" / "bench")
    parser.add_argument("--forecasts", action="store_true", help="record the forecasts alone")
    parser.add_argument("--study", action="append", help="record this study again")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--check", action="store_true", help="fail if a document is stale")
    chosen.add_argument("--tables", action="store_true", help="record nothing, write the tables")
    arguments = parser.parse_args()
    if arguments.forecasts:
        record_forecasts(ROOT / "results", RECORD)
    elif not arguments.check and not arguments.tables:
        record(arguments.source, arguments.bench, arguments.study or [])
    write_tables(check=arguments.check)


def write_tables(*, check: bool = False) -> None:
    """Write the generated blocks of the documents, or only check them.

    Raises:
        SystemExit: if a document is to be checked, and does not match the record.
    """
    texts = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in documents(ROOT)
    }
    for name, rendered in render(texts, tables(RECORD)).items():
        if rendered == texts[name]:
            continue
        if check:
            sys.exit(f"{name} does not match results/recorded: run `make record`")
        write_text(ROOT / name, rendered)


def record_bench(path: Path) -> None:
    """Copy one benchmark's results into the record, and write the tables."""
    write_bytes(RECORD / path.name, path.read_bytes())
    write_tables()


def record(source: Path, bench: Path, studies: Sequence[str]) -> None:
    """Copy the sources of the tables into the record.

    Args:
        source: folder of a full verification.
        bench: folder of the benchmarks' results; those available are copied.
        studies: names of studies to copy in any case.
    """
    fresh = json.loads((source / "report.json").read_text(encoding="utf-8"))
    if not fresh.get("digits") or fresh["environment"]["quick"]:
        sys.exit(f"{source}: only a full report, the digits runs in it, is recorded")
    if fresh["environment"]["seed"] in TRIED:
        sys.exit(
            f"{source}: checks are built on seeds 0 to {TRIED[-1]}; record one of `verify --seed N`"
        )
    RECORD.mkdir(parents=True, exist_ok=True)
    write_bytes(RECORD / "report.json", (source / "report.json").read_bytes())
    for name in (*BENCHES, *ON_GPU):
        if (bench / f"{name}.json").exists():
            write_bytes(RECORD / f"{name}.json", (bench / f"{name}.json").read_bytes())
    for name in FROM_DATA:
        write_bytes(RECORD / f"{name}.png", (source / "figures" / f"{name}.png").read_bytes())
    record_studies(ROOT / "results", RECORD, studies)
    record_forecasts(ROOT / "results", RECORD)
    record_laws(ROOT / "results", RECORD)


if __name__ == "__main__":
    main()
