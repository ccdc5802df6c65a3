"""A small study, and artificial runs of it that follow the linear model."""

from __future__ import annotations

from pathlib import Path

import xarray as xr
from real_cases import LAW, linear_run, with_counterfactuals

from analysis.studies.run import RUNS, point_of, task_of
from analysis.studies.study import Study, StudyRun, study_of
from fedlora_sim.metrics import effective_rank, energy_ratio
from fedlora_sim.sweep.grid import SEED
from fedlora_sim.sweep.store import POINT, RUN, put_task, task_path
from fedlora_sim.version import versions

ROUNDS = 6
D_OUT, D_IN = 6, 5


def study_values(**changes) -> dict:
    """Return tables of a study's file: two rules under two heterogeneities, two seeds each."""
    values = {
        "name": "small",
        "about": "Made up.",
        "rules": ["fedavg", "raflora"],
        "seeds": 2,
        "first_seed": 7,
        "target_accuracy": 0.5,
        "scenario": {"ranks": "2x2,4x2", "rounds": ROUNDS},
        "heterogeneity": {
            "mild": {"split": "dirichlet", "dirichlet_alpha": 10.0},
            "harsh": {"split": "pathological", "classes_per_client": 3},
        },
        "rank_configurations": {"few": "2x3,4x1"},
        "counterfactual_rules": ["raflora"],
    }
    return {**values, **changes}


def small_study(**changes) -> Study:
    return study_of(study_values(**changes), {})


def made_up(run: StudyRun, law=LAW) -> xr.Dataset:
    """Return an artificial run whose accuracy grows by a tenth per round, and by seed."""
    found = linear_run(run.rule, run.scenario, law=law, base=run.seed)
    if run.scenario.counterfactuals:
        found = with_counterfactuals(found)
    energy, level = found.energy.values, run.scenario.federation.levels[0]
    rounds = found["round"].broadcast_like(found.energy.isel(direction=0, drop=True))
    layers = found.sizes["layer"]
    return (
        found.assign(
            accuracy=0.1 * rounds + 0.01 * run.seed,
            rho=(("seed", "round"), energy_ratio(energy, level)),
            effective_rank=(("seed", "round"), effective_rank(energy)),
            preservation=found.client_preservation.mean("slot"),
        )
        .assign_coords(
            seed=[run.seed], d_out=("layer", [D_OUT] * layers), d_in=("layer", [D_IN] * layers)
        )
        .assign_attrs(versions())
    )


def made_up_runs(study: Study, law=LAW) -> dict[str, xr.Dataset]:
    return {run.label: made_up(run, law) for run in study.runs()}


def keep(run: StudyRun, out: Path) -> Path:
    """Store a made-up run where the study looks for it."""
    task, found = task_of(run), made_up(run)
    stored = found.swap_dims({SEED: RUN}).assign_coords({POINT: (RUN, [point_of(run).id])})
    put_task(out / RUNS, task, stored)
    return task_path(out / RUNS, task)
