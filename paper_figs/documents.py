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
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.claims import with_texts
from analysis.claims.report import (
    claim_tables,
    conjecture_table,
    digits_table,
    repeat_command,
    theme_table,
)
from analysis.diagnose.detection import detection_table
from analysis.formats import NONE, interval, markdown_table, number, percent
from analysis.paper import forecasts
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
from paper_figs.drift import COURSES, draw_drift_law
from paper_figs.files import FROM_DATA

# Speed tables, from the records of `make bench`

Row = dict[str, Any]
Lines = list[Sequence[str]]
"""Rows of a table."""

CLOCKS = {"cpu": "CPU", "wall": "wall"}
"""Notes on the clock of a column of times: with several threads, CPU time includes waiting ones."""

LANES = ("serial", "pool")
RIVALS = {
    "qr": "QR path",
    "fallback": "collapsed",
    "dense": "dense SVD",
    "peft": "PEFT's merge",
    "products": "products alone",
}


def spectral_table(bench: dict[str, Any]) -> str:
    """Return the times of the spectral fidelity: median and range of the repeats."""
    head = ("rule", "client noise", "threads", "wall time, median and range", "CPU time, median")
    lines: Lines = []
    for row in bench["rows"]:
        noise = "gain and drift" if row["noise"] else "none"
        wall = f"{row['wall_median']:.2f} s [{row['wall_min']:.2f}, {row['wall_max']:.2f}]"
        cells = (row["rule"], noise, str(row["threads"]), wall, f"{row['cpu_median']:.2f} s")
        lines.append(cells)
    return markdown_table(head, lines)


SWEEPS = {
    "seeds": "many seeds of few rows",
    "points": "many rows of few seeds",
    "matrix": "real factors",
}


def sweep_table(bench: dict[str, Any]) -> str:
    """Return the speed of sweeps relative to a loop of `simulate`, and their overhead."""
    workers = f"{bench['workers']} workers"
    head = ("grid", "rows, runs, tasks", "serial loop", "sweep / loop", f"{workers} / loop")
    lines: Lines = []
    for row in bench["rows"]:
        times = row["times"]
        cells = (
            SWEEPS[row["grid"]],
            f"{row['rows']:,}, {row['runs']:,}, {row['tasks']:,}",
            f"{row['runs_per_second']['loop']:,.0f} runs/s",
            *(_speed(times["loop"], times[lane]) for lane in LANES),
            f"{row['overhead_ms_per_task']:.0f} ms ({row['overhead_share']:.1%})",
            f"{row['largest_difference']:.0e}" if row["largest_difference"] else "none",
        )
        lines.append(cells)
    table = markdown_table((*head, "overhead of a task", "largest difference"), lines)
    return f"{table}\n\nMeasured on: {bench['hardware']}, {bench['cores']} cores."


def _speed(loop: dict[str, float], lane: dict[str, float]) -> str:
    """Return the speed relative to the loop's median, with the range of the repeats."""
    median, low, high = (
        loop["wall_median"] / lane[f"wall_{kind}"] for kind in ("median", "max", "min")
    )
    return f"{median:.2f}x [{low:.2f}, {high:.2f}]"


def aggregation_table(bench: dict[str, Any]) -> str:
    """Return the CPU time of one float32 layer by size, with other methods as multiples of it."""
    head = ("layer", "Gram path, CPU time", "`aggregate`", *RIVALS.values(), "error")
    lines: Lines = []
    for d in sorted({row["d"] for row in bench["rows"]}):
        rows = {
            row["method"]: row
            for row in bench["rows"]
            if (row["d"], row["dtype"]) == (d, "float32")
        }
        own = rows["gram"]
        cells = [f"{d} x {d}", _milliseconds(own), _speed_multiple(rows["aggregate"], own)]
        cells += [_speed_multiple(rows.get(name), own) for name in RIVALS]
        lines.append([*cells, f"{own['relative_error']:.0e}"])
    return markdown_table(head, lines)


def bars_table(bench: dict[str, Any]) -> str:
    """Return the performance targets of the engine, and whether this run reached them."""
    head = ("bar", "wanted", "measured", "")
    lines: Lines = []
    for bar in bench["bars"]:
        measured = f"{bar['measured']:#.3g}".removesuffix(".")
        cells = (bar["what"], bar["wanted"], measured, bar["verdict"])
        lines.append(cells)
    return markdown_table(head, lines)


def hardware_line(bench: dict[str, Any]) -> str:
    """Return the hardware of a benchmark run."""
    libraries = ", ".join(f"{name} {bench[f'{name}_version']}" for name in ("torch", "scipy"))
    return f"Measured on: {bench['hardware']}, {libraries}."


def gpu_block(record: Path) -> str:
    """Return the engine's table on a GPU, if one was available."""
    path = record / "aggregation-cuda.json"
    if not path.exists():
        return "GPU: not measured."
    bench = json.loads(path.read_text(encoding="utf-8"))
    return f"{hardware_line(bench)}\n\n{aggregation_table(bench)}"


def training_table(bench: dict[str, Any]) -> str:
    """Return time of one local step of a cohort with other methods as multiples, and the prefix."""
    head = ("model", "threads", "clients", "stacked step", "time", "/ one big batch")
    lines: Lines = []
    found: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in bench["rows"]:
        found.setdefault((row["d"], row["threads"], row["clients"]), {})[row["lane"]] = row
    for (d, threads, clients), lanes in found.items():
        own, clock = lanes["stacked"], lanes["stacked"]["clock"]
        pairs = ((own, lanes["limit"]), (lanes["loop"], own), (lanes["grouped"], lanes["padded"]))
        cells = [f"d = {d}", str(threads), str(clients), _milliseconds(own, clock), CLOCKS[clock]]
        cells += [_speed_multiple(over, under, clock) for over, under in pairs]
        lines.append(cells)
    table = markdown_table((*head, "one by one / stacked", "groups of ranks / padded"), lines)
    return f"{table}\n\n{_prefix_table(bench['prefix'])}"


def _prefix_table(rows: list[Row]) -> str:
    """Return the times of a step on a whole encoder and on a cached prefix, per sample."""
    head = ("threads", "whole model, a sample", "cached prefix", "time", "whole / cached")
    lines: Lines = []
    for threads in sorted({row["threads"] for row in rows}):
        lanes = {row["lane"]: row for row in rows if row["threads"] == threads}
        whole, cached, clock = lanes["whole"], lanes["cached"], lanes["whole"]["clock"]
        times = [_milliseconds(row, clock, row["samples"]) for row in (whole, cached)]
        cells = [str(threads), *times, CLOCKS[clock], _speed_multiple(whole, cached, clock)]
        lines.append(cells)
    return markdown_table(head, lines)


def training_bars_block(record: Path) -> str:
    """Return the targets of stacked training, including those of a GPU if one was available."""
    lines = [bars_table(json.loads((record / "training.json").read_text(encoding="utf-8")))]
    gpu = record / "training-cuda.json"
    if not gpu.exists():
        return "\n\n".join([*lines, "GPU: not measured."])
    bench = json.loads(gpu.read_text(encoding="utf-8"))
    return "\n\n".join([*lines, hardware_line(bench), bars_table(bench)])


def layers_table(bench: dict[str, Any]) -> str:
    """Return the times of many layers at once and one after another."""
    head = ("threads", "one by one, wall time", "in one batch")
    lines: Lines = []
    for threads in sorted({row["threads"] for row in bench["layers"]}):
        rows = {row["method"]: row for row in bench["layers"] if row["threads"] == threads}
        cells = [_speed_seconds(rows["loop"]), _speed_seconds(rows["batched"])]
        lines.append([str(threads), *cells])
    return markdown_table(head, lines)


def _milliseconds(row: Row, clock: str = "cpu", share: int = 1) -> str:
    """Return median and range in milliseconds, divided by the number of shares."""
    low, median, high = (1e3 / share * row[f"{clock}_{kind}"] for kind in ("min", "median", "max"))
    if high < 1e3:
        return f"{number(median, 3)} ms {interval((low, high), 3)}"
    return f"{median:.0f} ms [{low:.0f}, {high:.0f}]"


def _speed_seconds(row: Row) -> str:
    return f"{row['wall_median']:.2f} s [{row['wall_min']:.2f}, {row['wall_max']:.2f}]"


def _speed_multiple(row: Row | None, own: Row, clock: str = "cpu") -> str:
    """Return a candidate's median time relative to another's; a single run is marked."""
    if row is None:
        return "not measured"
    once = ", one run" if row["repeats"] == 1 else ""
    return f"{row[f'{clock}_median'] / own[f'{clock}_median']:.3g}x{once}"


# The table of federated frameworks, from the record of the benchmark

OURS = "fedlora-sim"


def rivals_block(bench: dict[str, Any]) -> str:
    """Return time of a round in each framework as a multiple of ours, versions, and deviations."""
    rows: list[Row] = bench["rows"]
    lanes = list(dict.fromkeys(row["lane"] for row in rows))
    rivals = [lane for lane in lanes if lane != OURS]
    head = ("model", "clients a round", "threads", f"{OURS}, a round", *rivals)
    lines: Lines = []
    cases = dict.fromkeys((row["d_model"], row["cohort"], row["threads"]) for row in rows)
    for d, cohort, threads in cases:
        found = {
            row["lane"]: row
            for row in rows
            if (row["d_model"], row["cohort"], row["threads"]) == (d, cohort, threads)
        }
        own = found[OURS]
        cells = [f"d = {d}", str(cohort), str(threads), _rivals_speed_seconds(own)]
        cells += [_rivals_speed_multiple(found[lane], own) for lane in rivals]
        lines.append(cells)
    tables = (markdown_table(head, lines), _lanes(rows, lanes))
    return "\n\n".join([*tables, f"Measured on: {bench['hardware']}."])


def _lanes(rows: list[Row], lanes: list[str]) -> str:
    """Return libraries of each lane, how it ran, and its largest difference from plain PyTorch."""
    head = ("lane", "how it runs", "libraries", "first round", "off, float64", "off, float32")
    lines: Lines = []
    for lane in lanes:
        own = [row for row in rows if row["lane"] == lane and row["problem"] is None]
        if not own:
            continue
        last = own[-1]
        libraries = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
        first = [row["first_round_median"] for row in own]
        start = f"{min(first):.2g} to {max(first):.2g} s"
        off = [_largest(own, dtype) for dtype in ("float64", "float32")]
        lines.append([lane, last["how"], libraries, start, *off])
    return markdown_table(head, lines)


def _largest(rows: list[Row], dtype: str) -> str:
    """Return the largest difference; a dash for a lane that does not compute in a dtype."""
    found = [row["relative_difference"].get(dtype) for row in rows]
    values = [value for value in found if value is not None]
    if not values:
        return NONE
    return f"{max(values):.0e}" if max(values) else "0"


def _rivals_speed_seconds(row: Row) -> str:
    if row["problem"] is not None:
        return str(row["problem"])
    low, median, high = (row[f"round_{kind}"] for kind in ("min", "median", "max"))
    return f"{number(median, 3)} s {interval((low, high), 3)}"


def _rivals_speed_multiple(row: Row, own: Row) -> str:
    """Return a framework's median over ours, and its range over our median.

    Below 1 it is faster.
    """
    if row["problem"] is not None or own["problem"] is not None:
        return str(row["problem"] or NONE)
    low, median, high = (
        row[f"round_{kind}"] / own["round_median"] for kind in ("min", "median", "max")
    )
    return f"{number(median, 2)}x {interval((low, high), 2)}"


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


# The conformance suite: results for each rule, and the faults that it finds


def conformance_line(record: dict[str, Any]) -> str:
    """Return one sentence with the number of laws, cases and detected faulty rules.

    Args:
        record: written by `tests/conformance/record.py`.
    """
    broken, rules = record["broken"], record["rules"]
    caught = sum(one["as_named"] for one in broken.values())
    failed = sum(own.get("failed", 0) for own in rules.values())
    return (
        f"{record['laws']} laws, {record['tried']:,} cases tried. Of {len(broken)} deliberately "
        f"broken rules, bugs of public code among them, {caught} fail exactly the checks named for "
        f"their bug; {len(rules)} healthy ones fail {failed or 'none'}. Repeat: "
        f"`{record['command']}`."
    )


def suite_table(record: dict[str, Any]) -> str:
    """Return one row per built-in rule: numbers of laws by result."""
    head = ("rule", "laws kept", "declared absent, seen to break", "failed", "untested", "cases")
    lines: Lines = []
    for name, own in record["rules"].items():
        if own["own"]:
            counts = (own.get(s, 0) for s in ("passed", "expected", "failed", "skipped"))
            lines.append([f"`{name}`", *map(str, counts), f"{own['examples']:,}"])
    return markdown_table(head, lines)


def broken_table(record: dict[str, Any]) -> str:
    """Return one row per faulty rule: its fault, and the checks that it fails."""
    head = ("bug", "fails")
    lines: Lines = []
    for one in record["broken"].values():
        checks = ", ".join(one["fails"]) + ("" if one["as_named"] else " (not as named)")
        lines.append((one["bug"], checks))
    return markdown_table(head, lines)


# Tables of the recorded calibration of estimators and verdicts

Record = Mapping[str, Any]
DIGITS = 2


def coverage_table(record: Record) -> str:
    """Return the rate of misses relative to the nominal one, by estimator, distribution and runs.

    A dash means that too few misses are expected.
    """
    errors = sorted({row["error"] for row in record["coverage"]}, reverse=True)
    head = ["estimator", "data", "runs", "samples", *(f"at {error:g}" for error in errors)]
    rows: dict[tuple[Any, ...], dict[float, str]] = {}
    for row in record["coverage"]:
        key = (row["estimator"], row["law"], f"{row['runs']:,}", f"{row['replicates']:,}")
        rows.setdefault(key, {})[row["error"]] = _ratio(row)
    lines = [[*key, *(own.get(error, NONE) for error in errors)] for key, own in rows.items()]
    return markdown_table(head, lines)


def margin_table(record: Record) -> str:
    """Return how often a claim at the end of its margin is supported, over all looks."""
    head = ("estimator", "data", "runs", "looks", "repetitions", "supported", "over e / 2")
    lines = [
        (
            row["estimator"],
            row["law"],
            f"{row['first']:,} to {row['cap']:,}",
            str(row["looks"]),
            f"{row['replicates']:,}",
            percent(round(row["supported"] / row["replicates"], 4)),
            _ratio(row),
        )
        for row in record["margin"]
    ]
    return markdown_table(head, lines)


def family_line(record: Record) -> str:
    """Return one sentence on the repetitions of the fast claims in which an interval missed."""
    found = record["family"]
    low, high = (percent(round(end * found["error"], 4)) for end in found["ratio_interval"])
    share = percent(found["missed"] / found["repetitions"])
    names = ", ".join(f"`{claim['claim']}` ({claim['runs']})" for claim in found["claims"])
    allowed = percent(round(found["error"], 6))
    return (
        f"In {found['missed']} of {found['repetitions']} repetitions ({share}, 95% interval {low} "
        f"to {high}) any interval of these claims missed its predicted value, where {allowed} are "
        f"allowed. Claims, with the runs of a repetition: {names}."
    )


def reach_table(record: Record) -> str:
    """Return the skewness of the fast claims' data, and the size of Hall's correction."""
    head = ("claim", "skewness", "runs of its first look", "error of an interval", "reach")
    lines = [
        (
            f"`{claim['claim']}`",
            number(claim["skewness"], DIGITS),
            f"{claim['first']:,}",
            f"{claim['each']:.1g}",
            number(claim["reach"], DIGITS),
        )
        for claim in record["family"]["claims"]
        if claim["skewness"] is not None
    ]
    return markdown_table(head, lines)


def ranks_table(record: Record) -> str:
    """Return the rank histograms: counts of true values by rank, and whether they are uniform."""
    head = ("estimator", "data", "runs", "truths by place, 20 equal bins", "outer bins", "p, flat")
    lines = [
        (
            row["estimator"],
            row["law"],
            f"{row['runs']:,}",
            " ".join(map(str, row["counts"])),
            _ratio(row),
            f"{row['p_uniform']:.2g}",
        )
        for row in record["ranks"]
    ]
    return markdown_table(head, lines)


def _ratio(row: Record) -> str:
    """Return the rate over the nominal one, marked if it is significantly more than allowed."""
    if not row["resolved"]:
        return NONE
    return f"{number(row['ratio'], DIGITS)}{'' if row['calibrated'] else ' ✗'}"


# Guarantees: how they are tested, and findings


def faults_table(record: dict[str, Any]) -> str:
    """Return one row per guarantee.

    Args:
        record: written by `tests/faults/record.py`.
    """
    head = ("promise", "tested in `tests` by", "tried", "result")
    lines: Lines = []
    by_promise: dict[str, list[dict[str, Any]]] = {}
    for row in record["rows"]:
        by_promise.setdefault(row["promise"], []).append(row)
    for promise, rows in by_promise.items():
        tests = dict.fromkeys(f"`{row['test'].partition('::')[0]}`" for row in rows)
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["kind"]] = counts.get(row["kind"], 0) + row["count"]
        tried = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        broken = sum(not row["passed"] for row in rows)
        result = f"broken in {broken} of {len(rows)} tests" if broken else "kept in all"
        lines.append((promise, ", ".join(tests), tried, result))
    return f"{markdown_table(head, lines)}\n\nRepeat: `{record['command']}`."


# Planted faults: number per part of the code, and how many were detected


def mutation_table(record: Record) -> str:
    """Return the counts of planted faults by folder, the survivors and the command.

    Args:
        record: written by `tests/mutation/plant.py`.
    """
    by_folder: dict[str, list[Record]] = defaultdict(list)
    for row in record["faults"]:
        by_folder[row["path"].rpartition("/")[0]].append(row)
    head = ("faults in", "planted", "caught", "among the failed tests the expected one")
    lines: Lines = []
    for folder, rows in sorted(by_folder.items()):
        lines.append([f"`{folder}`", *_counts(rows)])
    lines.append(["all", *_counts(record["faults"])])
    survived = [row["fault"] for row in record["faults"] if row["result"] == "survived"]
    names = "none" if not survived else "; ".join(survived)
    table = markdown_table(head, lines)
    return f"{table}\n\nSurvivors: {names}. Repeat: `{record['command']}`."


def _counts(rows: list[Record]) -> tuple[str, str, str]:
    caught = sum(row["result"] == "caught" for row in rows)
    return str(len(rows)), str(caught), str(sum(row["as_expected"] for row in rows))


# Recording and rendering

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results" / "recorded"
BENCHES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "spectral": {"speed": spectral_table},
    "aggregation": {
        "aggregation": aggregation_table,
        "layers": layers_table,
        "bars": bars_table,
        "hardware": hardware_line,
    },
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
ON_GPU = ("aggregation-cuda", "training-cuda")
BLOCK = re.compile(
    r"<!-- (\w+): generated -->\n(?:(?!: generated -->).)*?<!-- end -->", flags=re.DOTALL
)


def run_line(report: dict[str, Any]) -> str:
    """Return command of the recorded report, and its duration if it ran without interruption."""
    made, seconds = report["environment"], report["seconds"]
    took = "" if seconds is None else f" ({seconds / 60:.1f} minutes on {made['cores']} cores)"
    return f"Recorded from: `{repeat_command(made)}`{took}."


def rules_table() -> str:
    """Return the table of registered rules, from their docstrings."""
    head = ("rule", "averages", "multiplier", "what it does", "source")
    lines: Lines = []
    for rule in describe_all():
        name = f"`{rule.name}`" + (f", `{rule.also}`" if rule.also else "")
        options = f" Options: `{rule.options}`." if rule.options else ""
        cells = (name, rule.averages, rule.multiplier, rule.summary + options, rule.source)
        lines.append(cells)
    return markdown_table(head, lines)


def tables(record: Path) -> dict[str, str]:
    """Return the generated blocks by name, from the available recorded results."""
    report = with_texts(json.loads((record / "report.json").read_text(encoding="utf-8")))
    blocks = {
        "themes": theme_table(report),
        "conjectures": conjecture_table(report),
        "verdicts": claim_tables(report),
        "digits": digits_table(report),
        "run": run_line(report),
        "rules": rules_table(),
        "gpu": gpu_block(record),
        "training_bars": training_bars_block(record),
    }
    for name, tables_of in BENCHES.items():
        bench = json.loads((record / f"{name}.json").read_text(encoding="utf-8"))
        blocks |= {block: table(bench) for block, table in tables_of.items()}
    blocks |= study_blocks(record) | forecast_blocks(record) | law_blocks(record)
    return blocks | diagnosis_blocks(record)


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
    texts = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in documents(ROOT)
    }
    for name, rendered in render(texts, tables(RECORD)).items():
        if rendered == texts[name]:
            continue
        if arguments.check:
            sys.exit(f"{name} does not match results/recorded: run `make record`")
        write_text(ROOT / name, rendered)


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
