"""Claims on fine-tuning on digits: the energy ledger of each round, and what it explains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.claims.base import EXACT, HIGHER, PARTITIONS, Claim, Control, RunContext
from analysis.claims.digits import RUNS_EACH, digits_run, job
from analysis.ledger import TERMS, ledger
from analysis.stats.intervals import every_run, median_interval
from analysis.stats.verdicts import Prediction
from fedlora_sim import simulate

Array = NDArray[np.float64]

# The update is zero at the start: the ledger begins in the second round.
STARTED = slice(2, None)
CALIBRATED, SETTLED = slice(6, 15), slice(21, 30)
"""Rounds from which the drift is taken, and those whose energies it predicts."""
LATE = slice(16, 30)
OFFSET, MISSING = 0.85, 0.3
FLOOR_ERROR, LARGER_DRIFT = 0.25, 1.4
COMPARED_ROUNDS, COMPARED = 6, slice(3, 6)
"""Rounds of the runs whose cohorts other rules aggregate too, and those that are compared.

In the first two rounds columns of the factors are not yet singular directions.
"""
LARGER_AMPLITUDE = 1.2


def account(label: str, number: int, context: RunContext) -> xr.Dataset:
    """Return the ledger of one fine-tuning run."""
    return ledger(digits_run(label, number, context)).isel(seed=0)


def unclosed(
    label: str, numbers: Sequence[int], context: RunContext, *, without: str = "", off: float = 0.0
) -> Array:
    """Return the largest distance of the terms' sum from the change of the energy, in decades.

    Args:
        label: the configuration.
        numbers: runs.
        context: the store of runs.
        without: a term that is left out, for the negative control.
        off: decades that one term is too large, for the near control.

    Returns:
        One row per run, one column per partition; the largest over rounds and layers.
    """
    rows = []
    for i in numbers:
        found = account(label, i, context)
        level = np.log10(found.energy.isel(round=slice(1, None)))
        change = level.diff("round")
        terms = found.change.sel(term=[term for term in TERMS if term != without])
        gap = abs(terms.sum("term", skipna=False) + off - change)
        rows.append(gap.sel(round=STARTED).max(("round", "layer")).values)
    return np.array(rows)


def dilution_error(
    label: str, numbers: Sequence[int], context: RunContext, off: float = 0.0
) -> Array:
    """Return the largest distance of the dilution from `2 log10 W_h`, in decades.

    Args:
        label: the configuration.
        numbers: runs.
        context: the store of runs.
        off: decades by which the coverage's square is too large, for the near control.

    Returns:
        One row per run, one column per partition above the shared one.
    """
    rows = []
    for i in numbers:
        found = account(label, i, context).sel(round=STARTED)
        expected = 2 * np.log10(found.coverage) + off
        gap = abs(found.change.sel(term="dilution") - expected)
        rows.append(gap.max(("round", "layer")).values[1:])
    return np.array(rows)


def share_regrown(
    label: str, numbers: Sequence[int], context: RunContext, left: float = 1.0
) -> Array:
    """Return how much of the dilution all other terms offset in the late rounds.

    Args:
        label: the configuration.
        numbers: runs.
        context: the store of runs.
        left: share of the training that is counted, for the controls.

    Returns:
        One row per run, one column per partition above the shared one; sums over layers and rounds.
    """
    weights = xr.DataArray([1.0, left, 1.0, 1.0], {"term": list(TERMS)})
    rows = []
    for i in numbers:
        late = account(label, i, context).change.sel(round=LATE).sum(("round", "layer"))
        others = (late * weights).sel(term=list(TERMS[1:])).sum("term")
        rows.append((-others / late.sel(term="dilution")).values[1:])
    return np.array(rows)


def floor_error(
    label: str, numbers: Sequence[int], context: RunContext, drift: float = 1.0
) -> Array:
    """Return the distance of the late energies from the floor of earlier rounds, in decades.

    A round `X' = W (X + c)` settles at the amplitude `W c / (1 - W)`.

    Args:
        label: the configuration.
        numbers: runs.
        context: the store of runs.
        drift: factor on the drift; 0 leaves the geometric decay, for the negative control.

    Returns:
        One row per run, one column per partition above the shared one; the median over layers.
    """
    rows = []
    for i in numbers:
        found = account(label, i, context).isel(partition=slice(1, None))
        early, late = found.sel(round=CALIBRATED), found.sel(round=SETTLED)
        coverage, c = early.coverage.mean("round"), drift * early.drift.mean("round")
        floor = (coverage * c / (1 - coverage)) ** 2
        if drift == 0:
            rounds = late["round"] - CALIBRATED.stop
            floor = (found.energy.sel(round=CALIBRATED.stop) * coverage ** (2 * rounds)).mean(
                "round"
            )
        error = abs(np.log10(floor / late.energy.mean("round")))
        rows.append(error.median("layer").values)
    return np.array(rows)


def excess_over_the_law(
    numbers: Sequence[int], context: RunContext, power: float = 2.0, larger: float = 1.0
) -> Array:
    """Return log10 of raFLoRA's energies after a round over FedAvg's, times the coverage's power.

    Both rules aggregate the same cohort.

    Args:
        numbers: runs.
        context: the store of runs; runs the missing ones.
        power: of the coverage; 2 is the law.
        larger: factor on raFLoRA's amplitudes, for the near control.

    Returns:
        One row per run, one column per partition above the shared one; the median over layers and
        rounds.
    """
    rows = []
    for i in numbers:
        run = _compared_run(i, context)
        after = run.counterfactual_energy.isel(seed=0).groupby("partition").sum("direction")
        raflora, fedavg = (after.sel(compared_rule=rule) for rule in ("raflora", "fedavg"))
        coverage = ledger(run).coverage.isel(seed=0)
        excess = np.log10(larger**2 * raflora / fedavg * coverage**power)
        rows.append(excess.sel(round=COMPARED).median(("round", "layer")).values[1:])
    return np.array(rows)


def _compared_run(number: int, context: RunContext) -> xr.Dataset:
    """Return the first rounds of a FedAvg run, with what other rules make of its cohorts."""
    usual = job("fedavg", number, context)
    scenario = usual.scenario.replace(
        rounds=COMPARED_ROUNDS, evaluate_every=COMPARED_ROUNDS, counterfactuals=True
    )
    return context.run_once(
        f"{usual.label}-compared",
        lambda: simulate(
            scenario, rule=usual.rule, seed=usual.seed, on_progress=context.on_progress
        ),
    )


_COMMON: dict[str, Any] = {
    "source": "ours",
    "assumptions": "digits, Dirichlet 0.5, 12 clients of mixed ranks, Adam, full participation",
    "fidelity": "training",
    "first": RUNS_EACH,
    "cap": RUNS_EACH,
}
_EVERY: dict[str, Any] = {**_COMMON, "estimator": every_run}
_MEDIAN: dict[str, Any] = {
    **_COMMON,
    # A median requires no assumption on the distribution of the few runs.
    "estimator": median_interval,
    "kind": "conjecture",
    "in_quick": False,
}

CLAIMS = (
    Claim(
        id="ledger-closes",
        statement="On real fine-tuning the terms of the energy ledger add up to the change of "
        "every partition's energy.",
        statistic="largest distance in decades, over rounds and layers of a raFLoRA run; every run",
        quantities=PARTITIONS,
        predict=partial(Prediction.near, [0.0] * len(PARTITIONS), EXACT),
        experiment=partial(unclosed, "raflora"),
        control=Control(
            "the turning of the directions is left out",
            experiment=partial(unclosed, "raflora", without="turning"),
        ),
        near=Control(
            "a term is 3e-9 decades too large",
            experiment=partial(unclosed, "raflora", off=3 * EXACT),
        ),
        **_EVERY,
    ),
    Claim(
        id="ledger-dilution",
        statement="On real fine-tuning FedAvg's dilution of a partition's energy is the square of "
        "its coverage.",
        statistic=r"largest distance from $2 \log_{10} W_h$ in decades, over rounds and layers; "
        "every run",
        quantities=HIGHER,
        predict=partial(Prediction.near, [0.0] * len(HIGHER), EXACT),
        experiment=partial(dilution_error, "fedavg"),
        control=Control("raFLoRA instead", experiment=partial(dilution_error, "raflora")),
        near=Control(
            "a coverage whose square is 3e-9 decades too large",
            experiment=partial(dilution_error, "fedavg", off=3 * EXACT),
        ),
        **_EVERY,
    ),
    Claim(
        id="ledger-regrowth",
        statement="Late in a collapsed run of real fine-tuning, the clients regrow most of the "
        "energy that FedAvg's dilution removes.",
        statistic="decades that all other terms add, as a share of those that dilution removes, "
        f"rounds {LATE.start} to {LATE.stop}, median of runs",
        quantities=HIGHER,
        predict=partial(Prediction.at_least, [OFFSET] * len(HIGHER), 0.05),
        experiment=partial(share_regrown, "fedavg"),
        control=Control("without training", experiment=partial(share_regrown, "fedavg", left=0.0)),
        near=Control(
            f"{MISSING:.0%} of the training is missing",
            experiment=partial(share_regrown, "fedavg", left=1 - MISSING),
        ),
        **_MEDIAN,
    ),
    Claim(
        id="ledger-floor",
        statement="On real fine-tuning FedAvg's collapse stops where the drift of earlier rounds "
        "balances the dilution.",
        statistic=r"distance of the energies from $(W c / (1 - W))^2$ in decades, with $c$ of "
        f"rounds {CALIBRATED.start} to {CALIBRATED.stop} and energies of rounds {SETTLED.start} to "
        f"{SETTLED.stop}, median over layers and runs",
        quantities=HIGHER,
        predict=partial(Prediction.at_most, [FLOOR_ERROR] * len(HIGHER), 0.05),
        experiment=partial(floor_error, "fedavg"),
        control=Control(
            "geometric decay, without drift", experiment=partial(floor_error, "fedavg", drift=0.0)
        ),
        near=Control(
            f"a drift {LARGER_DRIFT - 1:.0%} larger",
            experiment=partial(floor_error, "fedavg", drift=LARGER_DRIFT),
        ),
        **_MEDIAN,
    ),
    Claim(
        id="ledger-same-cohort",
        statement="On the same trained cohort, raFLoRA's energies after one round are FedAvg's "
        r"times $W_h^{-2}$.",
        statistic="log10 of the energies' ratio times the coverage's square, rounds "
        f"{COMPARED.start} to {COMPARED.stop} of FedAvg runs, median over layers, rounds and runs",
        quantities=HIGHER,
        predict=partial(Prediction.near, [0.0] * len(HIGHER), 0.05),
        experiment=excess_over_the_law,
        control=Control(r"the law $W_h^{-1}$", experiment=partial(excess_over_the_law, power=1.0)),
        near=Control(
            f"raFLoRA's amplitudes {LARGER_AMPLITUDE - 1:.0%} larger",
            experiment=partial(excess_over_the_law, larger=LARGER_AMPLITUDE),
        ),
        **_MEDIAN,
    ),
)
