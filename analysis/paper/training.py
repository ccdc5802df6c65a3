"""Numbers of the figures of fine-tuning: digits, the energy ledger, text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from analysis.claims import ledger as ledger_claims
from analysis.claims.base import RunContext, run_jobs, workers
from analysis.claims.digits import LEVEL, MIXED, RUNS, digits_run, job
from analysis.ledger import ledger
from analysis.paper.recipe import Recipe, described
from analysis.paper.store import ROOT
from fedlora_sim.metrics import energy_ratio
from fedlora_sim.storage import load_dataset

# Fine-tuning on digits over the rounds: the first runs of the recorded verification, repeated

LABELS = ("fedavg", "zero_pad", "raflora", "equal_rank_2", "equal_rank_16")
NUMBERS = range(3)
RECORDED_SEED = 2029
"""Base seed of the recorded verification, whose first runs these are."""


def gather_digits(
    context: RunContext, labels: tuple[str, ...] = LABELS, numbers: range = NUMBERS
) -> xr.Dataset:
    """Return accuracy, `rho_2`, effective rank and direction preservation, (run, seed, round).

    Preservation is the mean over layers.
    """
    jobs = [job(label, number, context) for label in labels for number in numbers]
    run_jobs(jobs, context, workers(context.device))
    parts = []
    for label in labels:
        runs = [digits_run(label, number, context) for number in numbers]
        parts.append([_curves(run) for run in runs])
    values = np.array(parts)  # (run, seed, quantity, round)
    dims = ("run", "seed", "round")
    names = ("accuracy", "rho", "effective_rank", "preservation")
    return xr.Dataset(
        {name: (dims, values[:, :, i]) for i, name in enumerate(names)},
        {"run": list(labels), "seed": context.seeds(numbers), "round": np.arange(values.shape[-1])},
        described(MIXED) | {"level": LEVEL, "clients": len(MIXED.ranks)},
    )


def _curves(run: xr.Dataset) -> list[np.ndarray]:
    """Return one run's series; `rho` at the mixed federation's lowest level for all ranks."""
    return [
        run.accuracy.values[0],
        energy_ratio(run.energy.values[0], LEVEL),
        run.effective_rank.values[0],
        run.preservation.mean("layer").values[0],
    ]


DIGITS = Recipe(
    name="digits",
    about="Real fine-tuning on digits over its rounds, by rule and rank configuration.",
    make=gather_digits,
    settings={
        **described(MIXED),
        "runs": {name: f"{RUNS[name].ranks} {RUNS[name].rule}" for name in LABELS},
        "local_steps": MIXED.local_steps,
        "learning_rate": MIXED.learning_rate,
        "dirichlet_alpha": MIXED.dirichlet_alpha,
    },
    units={
        "accuracy": "share of the test samples",
        "rho": "share of the energy within the lowest rank",
        "effective_rank": "directions",
        "preservation": "share of a client's update on the directions that it started from",
        "run": "name",
        "seed": "seed of the run",
        "round": "rounds",
    },
    runs=NUMBERS,
    base_seed=RECORDED_SEED,
)


# The energy ledger of the same runs

LEDGER_RULES = ("fedavg", "raflora")


def gather_ledger(context: RunContext, numbers: range = NUMBERS) -> xr.Dataset:
    """Return the terms of the energy ledger in decades, (rule, round, partition, term).

    Means over layers and seeds. The update is zero at the start, so that the second round is the
    first with a change.
    """
    jobs = [job(label, number, context) for label in LEDGER_RULES for number in numbers]
    run_jobs(jobs, context, workers(context.device))
    parts = {}
    for label in LEDGER_RULES:
        runs = [ledger(digits_run(label, number, context)) for number in numbers]
        found = xr.concat(runs, "seed", combine_attrs="drop").isel(round=slice(2, None))
        parts[label] = found[["change", "coverage"]].mean(("seed", "layer"))
    joined = xr.concat(list(parts.values()), xr.Variable("rule", list(parts)))
    described_runs = described(MIXED) | {"local_steps": MIXED.local_steps}
    coverage = joined.coverage.mean(("rule", "round"))
    return joined[["change"]].assign(coverage=coverage).assign_attrs(described_runs)


LEDGER = Recipe(
    name="ledger",
    about="Change of the energy of every partition by dilution, training, mixing and turning.",
    make=gather_ledger,
    settings={
        **described(MIXED),
        "rules": list(LEDGER_RULES),
        "local_steps": MIXED.local_steps,
        "learning_rate": MIXED.learning_rate,
        "dirichlet_alpha": MIXED.dirichlet_alpha,
    },
    units={
        "change": "decades of the energy",
        "coverage": "share of the clients' weight",
        "rule": "name",
        "round": "rounds",
        "partition": "number, shared by all clients first",
        "term": "of the energy ledger",
    },
    runs=NUMBERS,
    base_seed=RECORDED_SEED,
    claims=ledger_claims.CLAIMS,
)


# The recorded study on text: its curves over rounds

FOLDER = "results/recorded/agnews"
REPORT, CURVES = (f"{FOLDER}/{name}" for name in ("study.json", "curves.nc"))


def curves(context: RunContext) -> xr.Dataset:
    """Return accuracy, `rho`, effective rank, preservation: (heterogeneity, rule, run, round)."""
    return with_study(load_dataset(ROOT / CURVES), _report())


def _report() -> dict[str, Any]:
    return dict(json.loads((ROOT / REPORT).read_text(encoding="utf-8")))


def with_study(dataset: xr.Dataset, report: Mapping[str, Any]) -> xr.Dataset:
    """Return a study's dataset with information on the study for captions, as attributes."""
    study = report["study"]
    seeds = [seed for own in study["seeds"].values() for seed in own]
    scenario = study.get("scenario", {})
    return dataset.assign_attrs(
        study=study["name"],
        study_command=report["command"],
        study_ranks=study["ranks"],
        study_levels=study["levels"],
        study_rounds=study["rounds"],
        study_seeds=max(len(own) for own in study["seeds"].values()),
        study_first_seed=min(seeds),
        study_last_seed=max(seeds),
        study_cohort=scenario.get("cohort_size", len(study["ranks"])),
        study_model=scenario.get("model", "none"),
    )


TEXT = Recipe(
    name="text",
    about="Real fine-tuning on text over its rounds, by rule and heterogeneity.",
    make=curves,
    settings={"record": FOLDER},
    units={
        "accuracy": "share of the test samples",
        "rho": "share of the energy within the lowest rank",
        "effective_rank": "directions",
        "preservation": "share of a client's update on the directions that it started from",
        "run": "number of the run",
        "rule": "name",
        "round": "rounds",
        "heterogeneity": "split of the data",
    },
    sources=(CURVES, REPORT),
)
