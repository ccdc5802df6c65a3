"""Federations of clients who fit a target with their factors, drawn at random, and their runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Context, Experiment
from analysis.claims.experiments import by_partition
from analysis.claims.predicted import per_partition
from analysis.stats.intervals import every_run
from fedlora_sim import Scenario, simulate
from fedlora_sim.randomness import stream

Array = NDArray[np.float64]

# Plain descent in n steps multiplies a small amplitude by (1 + M T / n)**(2 n) instead of
# exp(2 M T), which moves the flow's threshold by the share M T / (2 n): 0.3% at 150 steps and
# M T = 0.9, the longest training of the claims. Margins of 1% hold that and what a floor near its
# threshold makes of it, a factor of at most 3.
STEPS = 150
FLOW_MARGIN = 0.01
# Small against the target, so that training is linear in it; large against rounding.
TINY = 1e-4
RUNS: dict[str, Any] = {"estimator": every_run, "first": 20, "cap": 20}
DISCRETE = (
    f"clients descend in {STEPS} steps a round, which moves thresholds of the flow by up to 0.3% "
    "and floors near them by up to three times that"
)
"""Why margins of what holds in every federation are `FLOW_MARGIN`."""
# Targets of near controls over the true ones.
LARGER = 1.035


def random_federation(seed: int, low: int, middle: int, high: int) -> Scenario:
    """Three levels with about as many clients each, unequal samples, any target.

    Args:
        seed: of levels, samples and target.
        low: clients of the lowest level.
        middle: clients of the second one.
        high: clients of the highest one.
    """
    rng = stream(seed, "random_fitting_federation")
    levels = np.sort(rng.choice(np.arange(1, 7), size=3, replace=False))
    ranks = np.repeat(levels, (low, middle, high))
    return Scenario(
        ranks=tuple(ranks.tolist()),
        num_samples=tuple(rng.integers(20, 31, size=len(ranks)).tolist()),
        fidelity="matrix",
        local_loss="quadratic",
        local_steps=STEPS,
        target_amplitude=rng.uniform(0.5, 2.0),
        d_in=12,
        d_out=10,
    )


def trained_for_growth(scenario: Scenario, rule: str, partition: int, growth: float) -> Scenario:
    """The federation with the local time at which `omega G` of a partition is `growth`."""
    time = threshold(scenario, rule)[partition]
    more = np.log(growth) / (2 * scenario.target_amplitude)
    return scenario.replace(local_time=float(time + more))


def with_larger_targets(scenario: Scenario, factor: float = LARGER) -> Scenario:
    """The scenario in larger units: amplitudes grow by the factor, rates and `M T` stay.

    Thresholds, which are times, fall by the factor; so does the growth of 1/x.
    """
    return scenario.replace(
        target_amplitude=factor * scenario.target_amplitude,
        initial_amplitude=factor * scenario.initial_amplitude,
        local_time=scenario.local_time / factor,
    )


def threshold(scenario: Scenario, rule: str) -> Array:
    """Predicted local time below which each partition collapses."""
    return per_partition(
        closed_form.collapse_threshold(
            rule,
            scenario.ranks,
            scenario.target_amplitude,
            num_samples=scenario.num_samples,
            cohort_size=scenario.cohort_size,
        ),
        scenario,
    )


def flow_rate(scenario: Scenario, rule: str) -> Array:
    """Predicted factor per round by which each partition nears its floor."""
    return _of_training(closed_form.flow_rate, scenario, rule)


def flow_floor(scenario: Scenario, rule: str) -> Array:
    """Predicted amplitude at which training holds each partition."""
    return _of_training(closed_form.flow_floor, scenario, rule)


def _of_training(form: Callable[..., Array], scenario: Scenario, rule: str) -> Array:
    target, samples = scenario.target_amplitude, scenario.num_samples
    values = form(rule, scenario.ranks, target, scenario.local_time, num_samples=samples)
    return per_partition(values, scenario)


def dilution(scenario: Scenario, rule: str) -> Array:
    """What a round leaves of each partition where clients do not train: omega."""
    coverage = closed_form.coverage(scenario.ranks, scenario.num_samples)
    return per_partition(closed_form.multiplier(rule, coverage), scenario)


def contributors_mean(scenario: Scenario, targets: Array) -> Array:
    """Mean target of the clients that carry each direction, by their data, (r_max,)."""
    weights = scenario.federation.weights[:, None] * scenario.federation.members
    return np.asarray((weights * targets).sum(0) / weights.sum(0))


def amplitudes(dataset: xr.Dataset) -> xr.DataArray:
    """Singular values of the global update, without the seed of a single run."""
    return np.sqrt(dataset.energy.isel(seed=0))


def mean_inverse(dataset: xr.Dataset) -> Array:
    """`1/x` of every round and partition, mean over its directions, (T + 1, M)."""
    return by_partition(1 / amplitudes(dataset)).values


def one_federation_per_run(
    label: str,
    draw: Callable[[int], Scenario],
    rule: str,
    measure: Callable[[Scenario, xr.Dataset], Array],
) -> Experiment:
    """A federation of its own for every run, simulated once for all that measure it.

    Args:
        label: name of the runs; the same one stands for the same runs.
        draw: scenario of a seed.
        rule: server rule.
        measure: the scenario and its run to one row of quantities.
    """

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        rows = []
        for number, seed in zip(numbers, context.seeds(numbers), strict=True):
            scenario = draw(seed).replace(device=context.device)
            run = context.run_once(f"{label}-{number}", _simulation(scenario, rule, seed, context))
            rows.append(measure(scenario, run))
        return np.array(rows)

    return experiment


def _simulation(
    scenario: Scenario, rule: str, seed: int, context: Context
) -> Callable[[], xr.Dataset]:
    return lambda: simulate(scenario, rule=rule, seed=seed, on_progress=context.on_progress)
