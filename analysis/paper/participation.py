"""Numbers of the figures of cohorts: participation, allocation, and rank configurations."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.allocation import SVD
from analysis.claims.base import RunContext, simulated
from analysis.claims.participation import LONG_RANDOM_WALK, RANKS, log_energy
from analysis.paper.recipe import Recipe, described, stacked
from analysis.paper.store import ROOT
from analysis.stats.intervals import (
    Measurement,
    fieller_ratio,
    mapped,
    mean_interval,
    over_survivors,
    root_of_mean,
)
from fedlora_sim import Scenario

# Participation: factors of the mean and of the typical run, measured and predicted

Array = NDArray[np.float64]

COHORT_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 20)
FACTORS = ("mean energy", "typical surviving run", "survival")
RUNS, ROUNDS = 4_000, 4
ERROR = 0.05  # of each interval in the figure
TOP = -1  # the highest partition


def gather_participation(context: RunContext) -> xr.Dataset:
    """Return the factors per round of the highest partition over the cohort size, under FedAvg.

    Returns:
        `predicted` (factor, every_size), `measured`, `low` and `high` (factor, cohort_size), each
        single interval at 95%, and `log_energy` (run): natural logarithm of final over initial
        energy after `random_walk_rounds` rounds with `random_walk_cohort` clients, NaN where it is
        lost.
    """
    walk = log_energy(LONG_RANDOM_WALK, "fedavg", range(RUNS), context)[:, TOP]
    measured = [_measure(size, context) for size in COHORT_SIZES]
    every = range(1, len(RANKS) + 1)
    coords = {"factor": list(FACTORS), "cohort_size": list(COHORT_SIZES), "every_size": list(every)}
    attrs = {
        "seed": context.seed,
        "runs": RUNS,
        "coverage": closed_form.coverage(_cohorts(1))[TOP],
        "random_walk_rounds": LONG_RANDOM_WALK.rounds,
        "random_walk_cohort": LONG_RANDOM_WALK.federation.max_cohort,
    }
    data = {
        "predicted": (("factor", "every_size"), np.stack([_predict(m) for m in every], axis=-1)),
        "log_energy": (("run",), walk),
    }
    for name in ("value", "low", "high"):
        values = np.array([[getattr(m, name)[0] for m in factors] for factors in measured])
        key = "measured" if name == "value" else name
        data[key] = (("factor", "cohort_size"), values.T)
    return xr.Dataset(data, coords, attrs)


def _predict(size: int) -> Array:
    scenario = _cohorts(size)
    forms = (closed_form.energy_rate, closed_form.typical_rate)
    rates = [form(scenario, "fedavg")[TOP] for form in forms]
    return np.array([*rates, 1 - closed_form.extinction_probability(scenario)[TOP]])


def _cohorts(size: int) -> Scenario:
    return Scenario(ranks=RANKS, cohort_size=size, rounds=ROUNDS)


def _measure(size: int, context: RunContext) -> tuple[Measurement, ...]:
    """Return three factors from runs of a few rounds, where the mean over runs still converges."""
    walk = log_energy(_cohorts(size), "fedavg", range(RUNS), context)[:, TOP:]
    alive = (~np.isnan(walk)).astype(np.float64)
    energy = np.exp(np.where(alive > 0, walk, -np.inf))
    typical = mapped(over_survivors(mean_interval), np.exp)
    rate = root_of_mean(ROUNDS)
    return rate(energy, ERROR), typical(walk / ROUNDS, ERROR), rate(alive, ERROR)


# Random and SVD allocation: the energy that each keeps in each partition

ALLOCATION_ROUNDS = 8
ALLOCATIONS = ("svd", "random")
ALLOCATION_RUNS = range(4_000)
CONFIDENCE = 0.95  # of each single interval
ALLOCATION_SCENARIO = SVD.replace(rounds=ALLOCATION_ROUNDS)
WHOLE = 0
"""Number of the part for the whole update."""


def gather_allocation(context: RunContext, runs: range = ALLOCATION_RUNS) -> xr.Dataset:
    """Return the remaining share of mean energy under FedAvg, of each partition and of the whole.

    Returns:
        `predicted`, `measured`, `low`, `high` (allocation, part, round); part 0 is the whole
        update, the others are the partitions.
    """
    found = stacked(
        {name: _allocation_of(name, runs, context) for name in ALLOCATIONS}, "allocation"
    )
    levels = [0, *ALLOCATION_SCENARIO.federation.levels]
    return found.assign_coords(level=("part", np.array(levels))).assign_attrs(
        described(ALLOCATION_SCENARIO), confidence=CONFIDENCE
    )


def _allocation_of(allocation: str, runs: range, context: RunContext) -> xr.Dataset:
    scenario = ALLOCATION_SCENARIO.replace(allocation=allocation)
    predicted = closed_form.energy_trajectory(scenario, "fedavg")
    left = _left(simulated(scenario, "fedavg", runs, context).energy.values)
    flat = left.reshape(len(left), -1)
    m = mean_interval(flat, (1 - CONFIDENCE) * flat.shape[1])
    values = {"predicted": _left(predicted), "measured": m.value, "low": m.low, "high": m.high}
    shape, dims = left.shape[1:], ("round", "part")
    return xr.Dataset(
        {name: (dims, value.reshape(shape)) for name, value in values.items()},
        {"round": np.arange(shape[0]), "part": np.arange(shape[1])},
    )


def _left(energy: np.ndarray) -> np.ndarray:
    """Return remaining shares of the whole and of each partition from (..., round, direction)."""
    parts = [energy.sum(-1)]
    parts += [energy[..., part].sum(-1) for part in ALLOCATION_SCENARIO.federation.partitions]
    stack = np.stack(parts, axis=-1)
    return np.asarray(stack / stack[..., :1, :])


LEFT = "share of the energy at the start"
ALLOCATION = Recipe(
    name="allocation",
    about="Energy left under FedAvg with SVD and with random rank allocation.",
    make=gather_allocation,
    settings=described(ALLOCATION_SCENARIO) | {"allocations": list(ALLOCATIONS)},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), LEFT),
        "allocation": "name",
        "round": "rounds",
        "part": "0: the whole update; else number of the partition",
        "level": "highest direction of the partition",
    },
    runs=ALLOCATION_RUNS,
)


# Rank configurations: few or many clients of the highest rank

RANKS_RULES = ("fedavg", "raflora")
CLIENTS, LOW, HIGH, RANKS_ROUNDS = 20, 4, 32, 5
HIGH_CLIENTS = (1, 2, 3, 5, 7, 10, 13, 16, 18, 19)
RANKS_RUNS = range(2_000)
STUDY = "results/recorded/agnews/study.json"
CONFIGURATIONS = ("few high", "mixed", "many high")


def scenario(size: int) -> Scenario:
    """Return a federation of two ranks with a number of clients of the higher one."""
    return Scenario(
        ranks=(LOW,) * (CLIENTS - size) + (HIGH,) * size,
        rounds=RANKS_ROUNDS,
        gain_std=0.3,
        spectrum_decay=0.9,
    )


def gather_ranks(
    context: RunContext, sizes: tuple[int, ...] = HIGH_CLIENTS, runs: range = RANKS_RUNS
) -> xr.Dataset:
    """Return share of energy above the lowest rank by configuration, simulated and of real runs.

    Returns:
        `predicted` (rule, size), ratio of mean energies after the last round; `measured`, `low`,
        `high` (rule, measured_size) the same; `real`, `real_low`, `real_high` (rule, configuration,
        split), of the recorded study.
    """
    rules = {rule: _ranks_of(rule, sizes, runs, context) for rule in RANKS_RULES}
    attrs = described(scenario(1)) | {
        "clients": CLIENTS,
        "low_rank": LOW,
        "high_rank": HIGH,
        "confidence": CONFIDENCE,
    }
    attrs.pop("ranks")  # they vary
    found = xr.merge([stacked(rules, "rule"), _real()])
    return found.assign_attrs(attrs, **_study_attrs())


def _ranks_of(rule: str, sizes: tuple[int, ...], runs: range, context: RunContext) -> xr.Dataset:
    every = np.arange(1, CLIENTS)
    predicted = [_predicted(rule, int(size)) for size in every]
    ends = np.array([_measured(rule, size, runs, context) for size in sizes]).T
    names = ("measured", "low", "high")
    return xr.Dataset(
        {
            "predicted": ("size", np.array(predicted)),
            **{n: ("measured_size", v) for n, v in zip(names, ends, strict=True)},
        },
        {"size": every, "measured_size": list(sizes)},
    )


def _predicted(rule: str, size: int) -> float:
    of = scenario(size)
    energy = closed_form.energy_trajectory(of, rule)[-1]
    return float(energy[LOW:].sum() / energy.sum())


def _measured(rule: str, size: int, runs: range, context: RunContext) -> tuple[float, float, float]:
    energy = simulated(scenario(size), rule, runs, context).energy.values[:, -1]
    pair = np.stack([energy[:, LOW:].sum(-1), energy.sum(-1)], axis=-1)[:, None]
    m = fieller_ratio(pair, 1 - CONFIDENCE)
    return float(m.value[0]), float(m.low[0]), float(m.high[0])


def _study() -> dict[str, Any]:
    return dict(json.loads((ROOT / STUDY).read_text(encoding="utf-8")))


def _study_attrs() -> dict[str, Any]:
    report = _study()
    study = report["study"]
    seeds = [seed for own in study["seeds"].values() for seed in own]
    return {
        "study": study["name"],
        "study_rounds": study["rounds"],
        "study_runs": max(len(own) for own in study["seeds"].values()),
        "study_first_seed": min(seeds),
        "study_last_seed": max(seeds),
        "study_few": study["rank_configurations"][CONFIGURATIONS[0]],
        "study_many": study["rank_configurations"][CONFIGURATIONS[-1]],
        "study_ranks": study["ranks"],
        "study_confidence": report["confidence"],
    }


def _real() -> xr.Dataset:
    """Return the energy above the lowest rank at the end of the recorded study's runs."""
    report = _study()
    splits = list(report["study"]["heterogeneity"])
    rows = {(r["rule"], r["configuration"], r["heterogeneity"]): r for r in report["rows"]}
    above = np.full((3, len(RANKS_RULES), len(CONFIGURATIONS), len(splits)), np.nan)
    for index in np.ndindex(above.shape[1:]):
        rule, configuration, split = (
            names[i] for names, i in zip((RANKS_RULES, CONFIGURATIONS, splits), index, strict=True)
        )
        row = rows[rule, configuration, split]
        above[(0, *index)] = 1 - row["rho"]
        if row["rho_interval"] is not None:
            above[(1, *index)], above[(2, *index)] = (1 - x for x in row["rho_interval"][::-1])
    dims = ("rule", "configuration", "split")
    names = ("real", "real_low", "real_high")
    return xr.Dataset(
        {n: (dims, v) for n, v in zip(names, above, strict=True)},
        {"rule": list(RANKS_RULES), "configuration": list(CONFIGURATIONS), "split": splits},
    )


SHARE = "share of the energy above the lowest rank"
RANK_CONFIGURATIONS = Recipe(
    name="ranks",
    about="Energy above the lowest rank by rank configuration: simulated and in real fine-tuning.",
    make=gather_ranks,
    settings=described(scenario(1)) | {"sizes": list(HIGH_CLIENTS), "rules": list(RANKS_RULES)},
    units={
        **dict.fromkeys(("predicted", "measured", "low", "high"), SHARE),
        **dict.fromkeys(("real", "real_low", "real_high"), SHARE),
        "rule": "name",
        "size": f"clients of rank {HIGH}, predicted",
        "measured_size": f"clients of rank {HIGH}, measured",
        "configuration": "name",
        "split": "heterogeneity of the data",
    },
    runs=RANKS_RUNS,
    sources=(STUDY,),
)
