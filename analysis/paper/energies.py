"""Numbers of figures: spectra, energies, the staircase of rates, energy above the lowest rank."""

from __future__ import annotations

from functools import partial

import numpy as np
import xarray as xr

from analysis import closed_form
from analysis.claims.base import (
    RunContext,
    energy_left,
    fitted_rates,
    per_partition,
    simulated,
)
from analysis.paper.recipe import Recipe, described, stacked
from analysis.stats.intervals import Measurement, mean_interval, root_of_mean
from fedlora_sim import Scenario, parse_ranks, simulate

# Runs and predictions

ENERGY_RULES = ("fedavg", "zero_pad", "raflora")
ENERGIES = Scenario(
    ranks=parse_ranks("4x8,8x6,16x4"), fidelity="matrix", rounds=12, spectrum_decay=0.88
)
ENERGY_RUNS = 3


def gather_energies(context: RunContext) -> xr.Dataset:
    """Return the energies over rounds under three rules, at matrix fidelity and by closed form.

    Returns:
        Dimensions (rule, seed, round, direction); `predicted_energy` (rule, round, direction).
    """
    scenario, runs = ENERGIES.replace(device=context.device), []
    for rule in ENERGY_RULES:
        run = simulate(scenario, rule=rule, seed=context.seeds(range(ENERGY_RUNS)))
        predicted = closed_form.energy_trajectory(ENERGIES, rule)
        run["predicted_energy"] = (("round", "direction"), np.asarray(predicted))
        runs.append(run.expand_dims(rule=[rule]))
    return xr.concat(runs, dim="rule", combine_attrs="drop_conflicts")


# Energy above the lowest rank over rounds for each rule, with the bound of the theory

RATIO_RULES = closed_form.RULES
RATIO_SCENARIO = Scenario(
    ranks=parse_ranks("4x5,8x5,16x5,32x5"), fidelity="matrix", rounds=20, spectrum_decay=0.9
)
RATIO_RUNS = range(3)


def gather_energy_ratio(
    context: RunContext, scenario: Scenario = RATIO_SCENARIO, runs: range = RATIO_RUNS
) -> xr.Dataset:
    """Return `1 - rho` of each rule, predicted and measured (mean of the runs), and the bound.

    Returns:
        `predicted`, `measured` (rule, round), `bound` (round).
    """
    bound = closed_form.collapse_bound(scenario)
    found = stacked(
        {rule: _ratio_of(rule, scenario, runs, context) for rule in RATIO_RULES}, "rule"
    )
    gamma = float(bound[1] / bound[0])
    return found.assign(bound=("round", bound)).assign_attrs(
        described(scenario),
        gamma=gamma,
        constant=float(bound[0]),
        level=scenario.federation.levels[0],
    )


def _ratio_of(rule: str, scenario: Scenario, runs: range, context: RunContext) -> xr.Dataset:
    predicted = closed_form.energy_trajectory(scenario, rule)
    measured = simulated(scenario, rule, runs, context).energy.values
    lowest = scenario.federation.levels[0]
    values = {
        "predicted": ("round", _above(predicted, lowest)),
        "measured": ("round", _above(measured, lowest).mean(0)),
    }
    return xr.Dataset(values, {"round": np.arange(scenario.rounds + 1)})


def _above(energy: np.ndarray, level: int) -> np.ndarray:
    """Return share of the energy above a rank as a sum; one minus the rest would lose digits."""
    return np.asarray(energy[..., level:].sum(-1) / energy.sum(-1))


SHARE = "share of the energy above the lowest rank"
ENERGY_RATIO = Recipe(
    name="energy_ratio",
    about="Share of the energy above the lowest rank, 1 - rho, over rounds under every rule.",
    make=gather_energy_ratio,
    settings=described(RATIO_SCENARIO) | {"rules": list(RATIO_RULES)},
    units={
        **dict.fromkeys(("predicted", "measured", "bound"), SHARE),
        "rule": "name",
        "round": "rounds",
    },
    runs=RATIO_RUNS,
)


# Energies of all directions over rounds: real factors, FedAvg and raFLoRA

SPECTRUM_RULES = ("fedavg", "raflora")
SPECTRUM_SCENARIO = Scenario(
    ranks=parse_ranks("4x5,8x5,16x5,32x5"), fidelity="matrix", rounds=20, spectrum_decay=0.96
)
SPECTRUM_RUNS = range(3)


def gather_spectrum(
    context: RunContext, scenario: Scenario = SPECTRUM_SCENARIO, runs: range = SPECTRUM_RUNS
) -> xr.Dataset:
    """Return the energies measured (mean of the runs) and predicted, (rule, round, direction).

    The prediction is made first and does not use the runs.
    """
    parts = {}
    for rule in SPECTRUM_RULES:
        predicted = closed_form.energy_trajectory(scenario, rule)
        run = simulated(scenario, rule, runs, context)
        dims = ("round", "direction")
        values = {
            "predicted": (dims, predicted),
            "measured": (dims, run.energy.mean("seed").values),
        }
        parts[rule] = xr.Dataset(values, {name: run[name].values for name in dims})
    found = stacked(parts, "rule")
    federation = scenario.federation
    partition = np.repeat(range(1, len(federation.levels) + 1), np.diff([0, *federation.levels]))
    return found.assign_coords(
        partition=("direction", partition), coverage=("direction", federation.coverage())
    ).assign_attrs(described(scenario))


SPECTRUM = Recipe(
    name="spectrum",
    about="Energy of every direction of the global update over rounds, measured and predicted.",
    make=partial(gather_spectrum),
    settings=described(SPECTRUM_SCENARIO) | {"rules": list(SPECTRUM_RULES)},
    units={
        "measured": "squared amplitude of the update",
        "predicted": "squared amplitude of the update",
        "rule": "name",
        "round": "rounds",
        "direction": "number, largest first",
        "partition": "number, shared by all clients first",
        "coverage": "share of the clients' weight",
    },
    runs=SPECTRUM_RUNS,
)


# The staircase of rates: one factor per round for every partition, predicted and measured

STAIRCASE_RULES = ("zero_pad", "fedavg", "raflora")
ALL = Scenario(
    ranks=parse_ranks("2x6,4x5,6x4,8x3,12x2"), fidelity="matrix", rounds=8, gain_mean=0.97
)
COHORTS = Scenario(ranks=ALL.ranks, cohort_size=8, rounds=3, empty_partition="carry")
MATRIX_RUNS, COHORT_RUNS = range(8), range(20_000)
CONFIDENCE = 0.95  # of each single interval


def gather_staircase(
    context: RunContext, runs: range = COHORT_RUNS, matrix_runs: range = MATRIX_RUNS
) -> xr.Dataset:
    """Return the factors of the mean energy per round relative to the shared partition.

    Returns:
        `predicted`, `measured`, `low`, `high` (setting, rule, partition). Settings: `all` has real
        factors and full participation, `cohorts` has amplitudes and sampled cohorts.
    """
    parts = {
        "all": stacked(
            {rule: _all(rule, matrix_runs, context) for rule in STAIRCASE_RULES}, "rule"
        ),
        "cohorts": stacked(
            {rule: _cohorts(rule, runs, context) for rule in STAIRCASE_RULES}, "rule"
        ),
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


def _all(rule: str, runs: range, context: RunContext) -> xr.Dataset:
    predicted = closed_form.energy_rate(ALL.replace(gain_mean=1.0), rule)
    samples = fitted_rates(ALL, rule)(runs, context)
    return _dataset(per_partition(predicted, ALL), mean_interval, samples)


def _cohorts(rule: str, runs: range, context: RunContext) -> xr.Dataset:
    predicted = closed_form.energy_rate(COHORTS, rule)
    samples = energy_left(COHORTS, rule, runs, context)[:, 1:]
    return _dataset(per_partition(predicted, COHORTS), root_of_mean(COHORTS.rounds), samples)


def _dataset(predicted: np.ndarray, estimator: object, samples: np.ndarray) -> xr.Dataset:
    """Return the dataset; the shared partition is the unit and has no measurement."""
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
STAIRCASE = Recipe(
    name="staircase",
    about="Factor per round of the mean energy of every partition, predicted and measured.",
    make=gather_staircase,
    settings={"all": described(ALL), "cohorts": described(COHORTS), "rules": list(STAIRCASE_RULES)},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), FACTOR),
        "setting": "all: real factors, all take part; cohorts: amplitudes, sampled cohorts",
        "rule": "name",
        "partition": "number, shared by all clients first",
        "coverage": "share of the clients' weight",
        "level": "highest direction of the partition",
    },
    runs=COHORT_RUNS,
)
