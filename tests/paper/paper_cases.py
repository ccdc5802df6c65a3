"""Small data files of every figure of the paper, made once for all tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import xarray as xr

from analysis.claims import breakdown, settling
from analysis.claims.base import RunContext
from analysis.ledger import TERMS
from analysis.paper import energies, participation, phase, training
from analysis.paper.catalogue import RECIPES
from analysis.paper.recipe import Recipe, described

FEW = range(400)


def made_up_digits(context: RunContext) -> xr.Dataset:
    """Write curves like those of fine-tuning, without training."""
    rng, rounds = np.random.default_rng(0), np.arange(6)
    dims, size = ("run", "seed", "round"), (len(training.LABELS), 2, len(rounds))
    names = ("accuracy", "rho", "effective_rank", "preservation")
    return xr.Dataset(
        {name: (dims, np.sort(rng.uniform(0.2, 0.9, size), axis=-1)) for name in names},
        {"run": list(training.LABELS), "seed": context.seeds(range(2)), "round": rounds},
        described(training.MIXED) | {"level": training.LEVEL},
    )


def made_up_ledger(context: RunContext) -> xr.Dataset:
    """Return a ledger as fine-tuning would give it: nothing is trained."""
    rng, rounds, partitions = np.random.default_rng(0), np.arange(2, 8), np.arange(1, 4)
    size = (len(training.LEDGER_RULES), len(rounds), len(partitions), len(TERMS))
    change = rng.normal(0.0, 0.2, size)
    return xr.Dataset(
        {
            "change": (("rule", "round", "partition", "term"), change),
            "coverage": ("partition", [1.0, 0.7, 0.4]),
        },
        {
            "rule": list(training.LEDGER_RULES),
            "round": rounds,
            "partition": partitions,
            "term": list(TERMS),
        },
        described(training.MIXED),
    )


def patched(module: object, name: str, **values: object) -> Callable[[RunContext], xr.Dataset]:
    """Return a function of a module with smaller constants in the module."""

    def gather(context: RunContext) -> xr.Dataset:
        with pytest.MonkeyPatch.context() as patch:
            for constant, value in values.items():
                patch.setattr(module, constant, value)
            found: xr.Dataset = getattr(module, name)(context)
            return found

    return gather


SMALL: dict[str, Callable[[RunContext], xr.Dataset]] = {
    "spectrum": partial(
        energies.gather_spectrum,
        scenario=energies.SPECTRUM_SCENARIO.replace(rounds=12),
        runs=range(1),
    ),
    "staircase": partial(energies.gather_staircase, runs=range(2_000), matrix_runs=range(2)),
    "energy_ratio": partial(
        energies.gather_energy_ratio,
        scenario=energies.RATIO_SCENARIO.replace(rounds=8),
        runs=range(1),
    ),
    "settling": partial(settling.gather, count=len(FEW)),
    "floors": partial(phase.gather_floors, spreads=(0.0, 0.4), runs=range(100)),
    "participation": patched(participation, "gather_participation", RUNS=len(FEW)),
    "phase": patched(phase, "gather_phase", MEASURED_TIMES=np.array([0.3, 1.1])),
    "breakdown": partial(breakdown.gather, count=2),
    "allocation": partial(participation.gather_allocation, runs=FEW),
    "ranks": partial(participation.gather_ranks, sizes=(1, 10, 19), runs=FEW),
    "digits": made_up_digits,
    "ledger": made_up_ledger,
}


def small_recipe(name: str) -> Recipe:
    """Return a recipe of the catalogue with less to simulate."""
    recipe = RECIPES[name]
    return dataclasses.replace(recipe, make=SMALL.get(name, recipe.make))
