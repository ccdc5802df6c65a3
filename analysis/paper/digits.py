"""The real run on digits over its rounds: the first of the recorded verification's runs, again."""

from __future__ import annotations

import numpy as np
import xarray as xr

from analysis.claims.base import Context
from analysis.claims.digits import LEVEL, MIXED, RUNS, digits_run, job
from analysis.paper.recipe import Recipe, described
from analysis.run_jobs import run_ahead, workers
from fedlora_sim.metrics import energy_ratio

LABELS = ("fedavg", "zero_pad", "raflora", "equal_rank_2", "equal_rank_16")
NUMBERS = range(3)
RECORDED_SEED = 2028
"""Base seed of the recorded verification: these are the first of its runs."""


def gather(
    context: Context, labels: tuple[str, ...] = LABELS, numbers: range = NUMBERS
) -> xr.Dataset:
    """Accuracy, `rho_2`, effective rank and direction preservation, (run, seed, round).

    Preservation is the mean over layers.
    """
    jobs = [job(label, number, context) for label in labels for number in numbers]
    run_ahead(jobs, context, workers(context.device))
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
    """One run's series; `rho` at the mixed federation's lowest level, whatever its own ranks."""
    return [
        run.accuracy.values[0],
        energy_ratio(run.energy.values[0], LEVEL),
        run.effective_rank.values[0],
        run.preservation.mean("layer").values[0],
    ]


RECIPE = Recipe(
    name="digits",
    about="Real fine-tuning on digits over its rounds, by rule and rank configuration.",
    make=gather,
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
