"""The report of a domain: the measured law, the ledger of late rounds, verdicts; and its tables."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr

from analysis.claims.report import (
    VERDICT_MARK,
    distance_text,
    measurement_text,
    prediction_text,
)
from analysis.claims.verify import LIBRARIES, finite_or_none
from analysis.formats import NONE, interval, markdown_table, number, percent
from analysis.ledger import TERMS
from analysis.studies.drift_law.domains import CODE, Domain
from analysis.studies.drift_law.implied import (
    Array,
    curvature,
    drift_of,
    early,
    floor_of,
    floor_ratio,
    late,
    middle,
    pooled,
    steadiness,
)
from analysis.studies.drift_law.law_claims import (
    BASE,
    DILUTED,
    RAFLORA,
    ZERO_PAD,
    Laws,
    Rows,
    judge_law,
    laws_of,
)
from analysis.studies.report import last_part
from analysis.studies.study import PATHS
from fedlora_sim import Scenario
from fedlora_sim.storage import code_versions

Record = Mapping[str, Any]
ACCOUNTED = (BASE, ZERO_PAD, RAFLORA)
"""Roles whose late rounds are accounted for."""


def law_rows(seeds: Sequence[Laws]) -> Rows:
    """Return the measured law of each role and partition, medians over seeds.

    A seed in which no client of the rounds carries the partition has no drift, and is left out.

    Returns:
        `role`, `rule`, `partition`; `coverage`; `drift` in the early, middle and late rounds;
        `steadiness`, late over early drift; `amplitude` of the late rounds; `floor_ratio`, that
        over the floor for the actual cohorts, and `mean_floor_ratio`, over the floor of the mean
        multiplier; `curvature`. Each quantity with its range over seeds, `{name}_range`. Of FedAvg
        and raFLoRA also the `course` of the amplitude, rounds 1 to T.
    """
    rows: Rows = []
    for role, law in seeds[0].items():
        measured = [_measured(own[role]) for own in seeds]
        for h in range(law.sizes["partition"]):
            row: dict[str, Any] = {"role": role, "rule": law.attrs["rule"], "partition": h + 1}
            for name in measured[0]:
                stacked = np.array([of_seed[name][..., h] for of_seed in measured])
                values = xr.Variable(("seed", *["part"] * (stacked.ndim - 1)), stacked)
                row[name] = values.median("seed").values.tolist()
                ends = values.min("seed"), values.max("seed")
                row[f"{name}_range"] = [end.values.tolist() for end in ends]
            if role in (BASE, RAFLORA):
                courses = [
                    own[role].amplitude.isel(seed=0, partition=h).mean("layer") for own in seeds
                ]
                row["course"] = np.median(courses, axis=0)[1:].tolist()
            rows.append(row)
    return rows


def _measured(law: xr.Dataset) -> dict[str, Array]:
    drift = np.stack([drift_of(part(law)) for part in (early, middle, late)])
    amplitude = pooled(late(law).amplitude)
    return {
        "coverage": pooled(law.coverage),
        "drift": drift,
        "steadiness": steadiness(law),
        "amplitude": amplitude,
        "floor_ratio": floor_ratio(law),
        "mean_floor_ratio": amplitude / floor_of(pooled(law.multiplier), drift[0]),
        "curvature": curvature(law),
    }


def account_rows(seeds: Sequence[Laws]) -> Rows:
    """Return the mean terms of the ledger in a late round, in decades of energy.

    Args:
        seeds: the laws of each seed, by role.

    Returns:
        By role and partition: `role`, `partition`, and of each of the ledger's terms and their
        `sum` the mean over the late rounds, layers and seeds; `known`, the share of these cells in
        which all terms are finite.
    """
    rows: Rows = []
    for role in (role for role in ACCOUNTED if role in seeds[0]):
        found = xr.concat([late(own[role]).change for own in seeds], "seed")
        whole = found.where((abs(found) < np.inf).all("term"))
        mean = whole.mean(["seed", "round", "layer"]).transpose("partition", "term").values
        known = whole.isel(term=0).notnull().mean(["seed", "round", "layer"]).values
        if not known.any():  # runs of before the ledger have the first terms alone
            continue
        for h, terms in enumerate(mean):
            named = dict(zip(TERMS, terms.tolist(), strict=True))
            row = {"role": role, "partition": h + 1, **named, "sum": float(terms.sum())}
            rows.append({**row, "known": float(known[h])})
    return rows


def law_report(
    domain: Domain, runs: Mapping[str, Sequence[xr.Dataset]], command: str = ""
) -> dict[str, Any]:
    """Return the report of a domain.

    Args:
        domain: the domain.
        runs: result of `make_runs`.
        command: the command that repeats it.

    Returns:
        `domain`, its settings; `command`; `claims` and those `left_out`; `rows` of the measured
        law; `account` of the late rounds; `accuracy` and `diluted_accuracy` by
        role and seed; `cpu_seconds` of all runs;
        `environment`. Non-finite numbers are None.
    """
    seeds = laws_of(runs)
    claims, left_out = judge_law(seeds)
    scenario = next(iter(domain.runs.values()))[0]
    usual = asdict(Scenario(scenario.ranks, fidelity="training"))
    report = {
        "domain": {
            "name": domain.name,
            "about": domain.about,
            "seeds": list(domain.seeds[: len(seeds)]),
            "rounds": scenario.rounds,
            "runs": {
                role: {"rule": rule, **_changed(asdict(own), usual)}
                for role, (own, rule) in domain.runs.items()
            },
        },
        "command": command,
        "claims": claims,
        "left_out": left_out,
        "rows": law_rows(seeds),
        "account": account_rows(seeds),
        "accuracy": {
            role: [own[role].attrs["final_accuracy"] for own in seeds] for role in domain.runs
        },
        "diluted_accuracy": {
            role: [own[role].attrs[DILUTED] for own in seeds]
            for role in domain.runs
            if DILUTED in seeds[0][role].attrs
        },
        "cpu_seconds": float(sum(run.attrs["cpu_seconds"] for own in runs.values() for run in own)),
        "environment": {
            **code_versions(),
            "runs_made_with": sorted(
                {
                    run.attrs.get(CODE, code_versions()["code"])
                    for own in runs.values()
                    for run in own
                }
            ),
            **{f"{name}_version": version(name) for name in LIBRARIES},
            "python_version": platform.python_version(),
            "platform": platform.platform(),
        },
    }
    return dict(finite_or_none(report))


def _changed(fields: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not at their default, with the last part of a local path."""
    told = {name: value for name, value in fields.items() if value != usual[name]}
    told |= {name: last_part(told[name]) for name in PATHS if name in told}
    return {"ranks": list(fields["ranks"]), **told}


# Tables, from the report alone


def law_claims_table(report: Record) -> str:
    """Return one row per claim: prediction, measurement, verdict and near control."""
    head = (
        "claim",
        "prediction",
        "measured, in all partitions or the worst",
        "verdict",
        "near control",
    )
    rows = []
    for claim in report["claims"]:
        near = claim["near_control"]
        rows.append(
            (
                f"**{claim['id']}**: {claim['statement']}",
                prediction_text(claim),
                measurement_text(claim),
                VERDICT_MARK[claim["verdict"]]
                + (f": {claim['reason']}" if claim["reason"] else ""),
                f"{near['verdict']}: {near['description']}; {distance_text(near)}",
            )
        )
    return markdown_table(head, rows)


def law_rows_table(report: Record) -> str:
    """Return the drift by rounds, the late amplitude and the floor of each role and partition."""
    head = ("runs", "rule", "partition", "W", "c: first, middle, last third", "late X")
    further = ("late X over the floor", "curvature of X")
    rows = []
    for row in report["rows"]:
        cells = [row["role"], f"`{row['rule']}`", str(row["partition"])]
        cells += [number(row["coverage"], 2), ", ".join(number(c, 2) for c in row["drift"])]
        cells.append(number(row["amplitude"], 2))
        cells.append(_with_range(row, "floor_ratio"))
        # an amplitude that stays at its floor has no course of which this would be the curvature
        cells.append(_with_range(row, "curvature") if row["floor_ratio"] is None else NONE)
        rows.append(cells)
    return markdown_table((*head, *further), rows)


def account_table(report: Record) -> str:
    """Return the terms of a late round in decades of energy, by role and partition.

    Empty if no role is accounted for.
    """
    if not report["account"]:
        return ""
    head = ("runs", "partition", *TERMS, "sum", "known")
    rows = [
        (
            row["role"],
            str(row["partition"]),
            *(number(row[name], 2, absent=NONE) for name in (*TERMS, "sum")),
            percent(round(row["known"], 3)),
        )
        for row in report["account"]
    ]
    return markdown_table(head, rows)


def accuracy_table(report: Record) -> str:
    """Return the accuracy of each role after the last round, and with diluted partitions.

    Medians over seeds with their range; empty where no update was diluted.
    """
    if not report["diluted_accuracy"]:
        return ""
    head = ("runs", "rule", "accuracy", "with every partition diluted by its coverage")
    rows = []
    for role, run in report["domain"]["runs"].items():
        found = [report[name].get(role) for name in ("accuracy", "diluted_accuracy")]
        rows.append([role, f"`{run['rule']}`", *(NONE if x is None else _spread(x) for x in found)])
    return markdown_table(head, rows)


def _spread(values: Sequence[float]) -> str:
    ends = interval((min(values), max(values)), 3)
    return f"{number(float(np.median(values)), 3)} {ends}"


def _with_range(row: Record, name: str) -> str:
    if row[name] is None:
        return NONE
    low, high = row[f"{name}_range"]
    return f"{number(row[name], 2)} {interval((low, high), 2)}"


def to_markdown(report: Record) -> str:
    """Return the whole report."""
    domain = report["domain"]
    seeds = domain["seeds"]
    span = f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"
    parts = [
        f"# The drift law: {domain['name']}",
        f"{domain['about']} {domain['rounds']} rounds; {span}.",
        f"Repeat: `{report['command']}`",
        "## Claims",
        law_claims_table(report),
        *(f"Left out: **{own['id']}**: {own['reason']}." for own in report["left_out"]),
        "## The measured law",
        "Medians over seeds, and ranges.",
        law_rows_table(report),
    ]
    if report["account"]:
        parts += ["## A late round, in decades of energy", account_table(report)]
    if report["diluted_accuracy"]:
        parts += ["## Accuracy", accuracy_table(report)]
    lines = (f"- {key}: {value}" for key, value in report["environment"].items())
    return "\n\n".join([*parts, "## Environment", "\n".join(lines)]) + "\n"
