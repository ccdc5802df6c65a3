"""The staircase of rates: one factor per round for every partition, predicted and measured."""

from __future__ import annotations

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.base import (
    Context,
    energy_left,
    federation_arguments,
    fitted_rates,
    per_partition,
)
from analysis.paper.recipe import Recipe, described, stacked
from analysis.stats.intervals import Measurement, mean_interval, root_of_mean
from fedlora_sim import Scenario, parse_ranks

RULES = ("zero_pad", "fedavg", "raflora")
ALL = Scenario(
    ranks=parse_ranks("2x6,4x5,6x4,8x3,12x2"), fidelity="matrix", rounds=8, gain_mean=0.97
)
COHORTS = Scenario(ranks=ALL.ranks, cohort_size=8, rounds=3, empty_partition="carry")
MATRIX_RUNS, RUNS = range(8), range(20_000)
CONFIDENCE = 0.95  # of each interval for itself


def gather(context: Context, runs: range = RUNS, matrix_runs: range = MATRIX_RUNS) -> xr.Dataset:
    """Factors of the mean energy per round over that of the shared partition.

    Returns:
        `predicted`, `measured`, `low`, `high` (setting, rule, partition); settings are `all`, real
        factors of clients who all take part, and `cohorts`, amplitudes under sampled cohorts.
    """
    parts = {
        "all": stacked({rule: _all(rule, matrix_runs, context) for rule in RULES}, "rule"),
        "cohorts": stacked({rule: _cohorts(rule, runs, context) for rule in RULES}, "rule"),
    }
    coverage = per_partition(ALL.federation.coverage(), ALL)
    return (
        stacked(parts, "setting")
        .assign_coords(
            coverage=("partition", coverage), level=("partition", np.array(ALL.federation.levels))
        )
        .assign_attrs(
            described(COHORTS),
            clients=len(ALL.ranks),
            matrix_runs=len(matrix_runs),
            confidence=CONFIDENCE,
        )
    )


def _all(rule: str, runs: range, context: Context) -> xr.Dataset:
    predicted = closed_form.energy_rate(rule, ALL.ranks)
    samples = fitted_rates(ALL, rule)(runs, context)
    return _dataset(per_partition(predicted, ALL), mean_interval, samples)


def _cohorts(rule: str, runs: range, context: Context) -> xr.Dataset:
    predicted = closed_form.energy_rate(rule, COHORTS.ranks, **federation_arguments(COHORTS))
    samples = energy_left(COHORTS, rule, runs, context)[:, 1:]
    return _dataset(per_partition(predicted, COHORTS), root_of_mean(COHORTS.rounds), samples)


def _dataset(predicted: np.ndarray, estimator: object, samples: np.ndarray) -> xr.Dataset:
    """The shared partition is the unit: it has no measurement."""
    m: Measurement = estimator(samples, (1 - CONFIDENCE) * samples.shape[1])  # type: ignore[operator]
    unit = np.ones(1)
    values = {
        "predicted": predicted / predicted[0],
        **{
            n: np.concatenate([unit, x])
            for n, x in (("measured", m.value), ("low", m.low), ("high", m.high))
        },
    }
    return xr.Dataset(
        {name: ("partition", value) for name, value in values.items()},
        {"partition": np.arange(1, len(predicted) + 1)},
    )


FACTOR = "factor of the mean energy per round"
RECIPE = Recipe(
    name="staircase",
    about="Factor per round of the mean energy of every partition, predicted and measured.",
    make=gather,
    settings={"all": described(ALL), "cohorts": described(COHORTS), "rules": list(RULES)},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), FACTOR),
        "setting": "all: real factors, all take part; cohorts: amplitudes, sampled cohorts",
        "rule": "name",
        "partition": "number, shared by all clients first",
        "coverage": "share of the clients' weight",
        "level": "highest direction of the partition",
    },
    runs=RUNS,
)
