"""Reports of studies: JSON without paths of the machine that made it, and Markdown."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from analysis.claims.report import VERDICT_MARK
from analysis.claims.verify import LIBRARIES, finite_or_none
from analysis.formats import NONE, interval, markdown_table, number, percent
from analysis.studies.findings import (
    DIFFERENCE,
    SIZE,
    TABLE_ERROR,
    accuracy_gain,
    claims_left_out,
    coverage_shares,
    finals,
    judge_claims,
    premise_rows,
    relative_to_rule,
    replicate_means,
    summary,
    with_interval,
)
from analysis.studies.study import HIGHEST, LOWEST, MIXED, PATHS, Study
from fedlora_sim import Scenario
from fedlora_sim.version import versions

REFERENCE, AVERAGE = "raflora", "fedavg"


def study_report(study: Study, runs: Mapping[str, xr.Dataset], command: str = "") -> dict[str, Any]:
    """Return the report of a study.

    Args:
        study: the study.
        runs: its datasets by label.
        command: the command that repeats it.

    Returns:
        `study`, its fields; `finals`, the final metrics of each run; `rows` of the comparison;
        `claims` and those `left_out`, which follow from the finals alone; `counterfactuals`;
        `premise`; `environment`. Non-finite numbers are None.
    """
    table = finals(study, runs)
    report = {
        "study": study_fields(study),
        "command": command,
        "finals": table.to_dict("records"),
        "rows": summary(study, table),
        "confidence": 1 - TABLE_ERROR,
        "claims": judge_claims(study, table),
        "left_out": claims_left_out(study, table),
        "counterfactuals": counterfactual_rows(study, runs),
        "premise": premise_rows(study, runs),
        "environment": environment(study, runs),
    }
    return dict(finite_or_none(report))


def study_fields(study: Study) -> dict[str, Any]:
    """Return a study's own fields, and the non-default ones of its scenario."""
    scenario = study.scenario
    usual = asdict(Scenario(scenario.ranks, fidelity="training"))
    own = {n: v for n, v in asdict(scenario).items() if n not in ("ranks", "rounds")}
    told = {name: value for name, value in own.items() if value != usual[name]}
    told |= {name: last_part(told[name]) for name in PATHS if name in told}
    return {
        "name": study.name,
        "about": study.about,
        "complete": study.complete,
        "runs": len(study.runs()),
        "rounds": scenario.rounds,
        "ranks": list(scenario.ranks),
        "levels": list(scenario.federation.levels),
        "rules": list(study.rules),
        "heterogeneity": {name: dict(own) for name, own in study.heterogeneity.items()},
        "seeds": {name: list(own) for name, own in study.seeds.items()},
        "target_accuracy": study.target_accuracy,
        "rank_configurations": dict(study.rank_configurations),
        "compared_rules": list(study.compared_rules),
        "scenario": told,
    }


def last_part(place: str) -> str:
    """Return the last part of a local path; names of data sets and models unchanged."""
    path = Path(place).expanduser()
    return path.name if path.is_absolute() or path.exists() else place


def counterfactual_rows(study: Study, runs: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return the results of other rules on the same cohorts, relative to raFLoRA.

    Args:
        study: the study.
        runs: its datasets by label.

    Returns:
        One mapping per rule that `ran` and rule `compared`: `runs`; `partitions`, the `energy` of
        each relative to raFLoRA's, and for FedAvg its predicted value `predicted`, `W_h(S)^2`, see
        `coverage_shares`; `accuracy_gain` over raFLoRA: means over rounds, then over runs, with an
        interval over replicates of the study.
    """
    rows = []
    for ran in study.rules:
        if ran not in study.counterfactual_rules:
            continue
        own = {
            (run.heterogeneity, run.seed): runs[run.label]
            for run in study.runs()
            if (run.rule, run.configuration) == (ran, MIXED)
        }
        own = {key: run for key, run in own.items() if REFERENCE in run.compared_rule}
        if own:
            rows += _compared(study, ran, own)
    return rows


def _compared(
    study: Study, ran: str, by_seed: Mapping[tuple[str, int], xr.Dataset]
) -> list[dict[str, Any]]:
    together = xr.concat([_one_step(run) for run in by_seed.values()], "run")
    index = pd.MultiIndex.from_tuples(by_seed)

    def replicates(values: xr.DataArray) -> np.ndarray:
        return replicate_means(study, pd.Series(values.values, index))

    rows = []
    for compared in together.compared_rule.values.tolist():
        if compared == REFERENCE:
            continue
        own = together.sel(compared_rule=compared)
        row: dict[str, Any] = {"ran": ran, "compared": compared, "runs": len(by_seed)}
        row["partitions"] = []
        for h in own.partition.values.tolist():
            part = own.sel(partition=h)
            told = {"predicted": float(part.predicted.mean())} if compared == AVERAGE else {}
            energy = with_interval("energy", replicates(part.energy), SIZE)
            row["partitions"].append({"partition": h, **energy, **told})
        gain = with_interval("accuracy_gain", replicates(own.accuracy_gain), DIFFERENCE)
        rows.append(row | gain)
    return rows


def _one_step(run: xr.Dataset) -> xr.Dataset:
    """Return the means over the rounds of a run, and the prediction for the comparable rounds."""
    energy = relative_to_rule(run, REFERENCE)
    told = (coverage_shares(run) ** 2).where(energy.notnull())
    found = {"energy": energy, "predicted": told, "accuracy_gain": accuracy_gain(run, REFERENCE)}
    return xr.Dataset(found).mean("round").isel(seed=0, drop=True)


def environment(study: Study, runs: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    """Return the versions that made the runs and the report."""
    names = (*versions(), "code")
    made_with = {", ".join(f"{n} {run.attrs.get(n)}" for n in names) for run in runs.values()}
    return {
        "runs_made_with": "; ".join(sorted(made_with)).replace("_version", ""),
        **versions(),
        **{f"{name}_version": version(name) for name in LIBRARIES},
        "python_version": platform.python_version(),
        "platform": platform.platform(),
        "threads": study.scenario.threads,
        "device": study.scenario.device,
    }


# The report as Markdown, from its JSON form alone

Record = Mapping[str, Any]
DIGITS = 3
MOST = 0.5
"""Angles known in a smaller share of rounds than this are not shown: they are the rounds of least
collapse.
"""
REPLICATES = (
    "Their samples are the replicates of the study: means over all splits, of the runs with the "
    "i-th seed of each. Splits are chosen, not drawn, and differ in mean and spread."
)
ONE_STEP = (
    "Energies of one step over raFLoRA's, from the same cohorts. Where partitions do not overlap, "
    "FedAvg keeps the share `W_h^2`, with `W_h` the weight of those who hold partition h."
)


def claims_table(report: Record) -> str:
    """Return one row per claim, including those left out."""
    known = [f", {percent(claim['confidence'])} interval" for claim in report["claims"]]
    head = ("claim", "prediction", "measured" + "".join(known[:1]), "verdict", "control")
    rows, splits = [], len(report["study"]["heterogeneity"])
    for claim in report["claims"]:
        control = claim["negative_control"]
        rows.append(
            (
                f"**{claim['id']}**: {claim['statement']}",
                f"{claim['margin']} {_number(claim['prediction'])}",
                f"{_number(claim['measurement'])} {interval(claim['interval'], DIGITS)}, "
                f"{claim['quantity']}; {claim['replicates']} replicates of {splits} splits",
                VERDICT_MARK[claim["verdict"]],
                f"{control['verdict']}: {control['description']}",
            )
        )
    for claim in report["left_out"]:
        reason = f"left out: {claim['reason']}"
        rows.append((f"**{claim['id']}**: {claim['statement']}", NONE, NONE, reason, NONE))
    return markdown_table(head, rows)


def outcomes_table(report: Record) -> str:
    """Return final accuracy and energy above the lowest rank, one row per ranks and rule."""
    splits = list(report["study"]["heterogeneity"])
    level = report["study"]["levels"][0]
    cells = {(r["configuration"], r["rule"], r["heterogeneity"]): r for r in report["rows"]}
    pairs = list(dict.fromkeys((r["configuration"], r["rule"]) for r in report["rows"]))
    head = ["ranks", "rule", *(f"accuracy, {name}" for name in splits)]
    rows = []
    for configuration, rule in pairs:
        own = [cells.get((configuration, rule, name)) for name in splits]
        row = [_ranks(report, configuration), f"`{rule}`"]
        row += [NONE if r is None else _measured(r, "accuracy") for r in own]
        above = [NONE if r is None else _above(r) for r in own]
        rows.append([*row, ", ".join(above)])
    return markdown_table([*head, f"energy above rank {level}, in the same order"], rows)


def rows_table(report: Record) -> str:
    """Return all quantities of the comparison."""
    head = ("heterogeneity", "ranks", "rule", "runs", "accuracy", "rho", "effective rank")
    further = ("preservation", "MB sent", "rounds to target")
    rows = []
    for row in report["rows"]:
        names = ("accuracy", "rho", "effective_rank", "preservation")
        reached = f"{_number(row['rounds_to_target'])} ({row['reached_target']} of {row['runs']})"
        rows.append(
            (
                row["heterogeneity"],
                _ranks(report, row["configuration"]),
                f"`{row['rule']}`",
                str(row["runs"]),
                *(_measured(row, name) for name in names),
                _number(row["megabytes"]),
                reached if row["reached_target"] else f"not reached by {row['runs']}",
            )
        )
    return markdown_table((*head, *further), rows)


def counterfactuals_table(report: Record) -> str:
    """Return the results of each rule on the same cohorts, and the prediction for FedAvg."""
    found = report["counterfactuals"]
    partitions = [part["partition"] for part in found[0]["partitions"]]
    energies = [f"energy of partition {h}, over raFLoRA's" for h in partitions]
    rows = []
    for row in found:
        ran, compared, parts = f"`{row['ran']}`", f"`{row['compared']}`", row["partitions"]
        energy = [_measured(part, "energy") for part in parts]
        rows.append((ran, compared, *energy, _measured(row, "accuracy_gain")))
        if "predicted" in parts[0]:
            told = [_number(part["predicted"]) for part in parts]
            rows.append((ran, f"{compared}, predicted: `W_h^2`", *told, NONE))
    return markdown_table(("run of", "aggregated by", *energies, "accuracy above raFLoRA's"), rows)


def premise_table(report: Record) -> str:
    """Return direction preservation by rounds, and principal angles by rank level, in degrees.

    An update that has lost a level's rank has no angle there. The share of rounds (over all layers
    and runs) with an angle is stated if it is below 1, and replaces the angle if it is below half.
    """
    found = report.get("premise")
    if not found:
        return "Not measured."
    blocks = [f"preserved, rounds {b['from']}–{b['to']}" for b in found[0]["preservation"]]
    angles = [f"angle at rank {a['level']}, and the largest" for a in found[0]["angle"]]
    rows = [
        (
            f"`{row['rule']}`" + (f", {row['heterogeneity']}" if row["heterogeneity"] else ""),
            *(_measured(block, "mean") for block in row["preservation"]),
            *(_angles(angle) for angle in row["angle"]),
        )
        for row in found
    ]
    return markdown_table(("runs of", *blocks, *angles), rows)


def to_markdown(report: Record) -> str:
    """Return the whole report."""
    study = report["study"]
    part = "" if study["complete"] else " A part of the study."
    seeds = ", ".join(f"{name}: {_span(own)}" for name, own in study["seeds"].items())
    each = percent(report["confidence"])
    parts = [
        f"# Study {study['name']}",
        f"{study['about']} {study['runs']} runs of {study['rounds']} rounds.{part}",
        f"Repeat: `{report['command']}`",
        f"Seeds: {seeds}. " + _settings(study["scenario"]),
        "## Claims",
        f"{_together(report)}{REPLICATES} A claim is supported only if the same check refutes its "
        "negative control.",
        claims_table(report),
        "## Outcomes",
        f"Mean of the seeds; Student intervals each for itself at {each}, cut to what is possible.",
        outcomes_table(report),
        rows_table(report),
    ]
    if report["counterfactuals"]:
        parts += ["## One step of every rule", ONE_STEP, counterfactuals_table(report)]
    if report["premise"]:
        parts += ["## Are directions preserved?", premise_table(report)]
    lines = (f"- {key}: {value}" for key, value in report["environment"].items())
    return "\n\n".join([*parts, "## Environment", "\n".join(lines)]) + "\n"


def _together(report: Record) -> str:
    """Return the confidence with which the claims' intervals all hold; each has an equal share."""
    family = len(report["claims"]) + len(report["left_out"])
    known = [1 - family * (1 - claim["confidence"]) for claim in report["claims"]]
    return f"Intervals of this table hold together at {percent(known[0])}. " if known else ""


def _settings(scenario: Record) -> str:
    """Return the fields that are not at their default."""
    told = ", ".join(f"`{name}={json.dumps(value)}`" for name, value in scenario.items())
    return f"Settings: {told}." if told else "Settings: the usual ones."


def _span(seeds: Sequence[int]) -> str:
    return f"{seeds[0]}–{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def _ranks(report: Record, configuration: str) -> str:
    levels = report["study"]["levels"]
    names = {MIXED: "mixed", LOWEST: f"all {levels[0]}", HIGHEST: f"all {levels[-1]}"}
    return names.get(configuration, configuration)


def _measured(row: Record, name: str) -> str:
    ends = row[f"{name}_interval"]
    return _number(row[name]) + ("" if ends is None else f" {interval(ends, DIGITS)}")


def _above(row: Record) -> str:
    """Return energy above the lowest rank, with the digits that remain when rho is close to 1."""
    return NONE if row["rho"] is None else f"{1 - row['rho']:.2g}"


def _angles(angle: Record) -> str:
    """Median and largest, and how many rounds they speak of."""
    degrees = (f"{_number(math.degrees(angle[name]), 2)}°" for name in ("median", "largest"))
    told = NONE if angle["known"] < MOST else ", ".join(degrees)
    return told + ("" if angle["known"] == 1 else f" ({_number(100 * angle['known'])}% of rounds)")


def _number(value: float | None, digits: int = DIGITS) -> str:
    return number(value, digits, absent=NONE)
