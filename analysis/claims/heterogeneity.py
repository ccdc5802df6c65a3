"""Claims on heterogeneous clients: how the spread of gains slows the suppression, or stops it.

The average of the clients' gains varies more the more they differ, and energy is a mean of squares,
so it decreases less. If clients differ in the same way in every round, deviations of a
round persist, and energy decreases even less.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import (
    HIGHER,
    PARTITIONS,
    Claim,
    Control,
    Experiment,
    RunContext,
    above_shared,
    by_partition,
    higher_energy_left,
    per_partition,
    simulated,
)
from analysis.stats.intervals import root_of_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

# Sixteen equal directions per partition with independent gains: as many samples in one run. Two
# rounds, because the fourth moment, which determines the error of a mean energy, outgrows its
# square.
SPREAD = Scenario(
    ranks=parse_ranks("16x8,32x6,48x6"),
    cohort_size=12,
    rounds=2,
    spectrum_decay=1.0,
    gain_mean=0.8,
)
DEVIATIONS = (0.4, 0.8, 1.2)
CRITICAL = SPREAD.replace(cohort_size=None)
FACTORS = (0.9, 1.0, 1.1)
PERSISTENT = SPREAD.replace(
    cohort_size=None, rounds=4, gain_mean=1.0, gain_std=0.5, heterogeneity="persistent"
)
COHORTS = PERSISTENT.replace(cohort_size=16)
MARGIN = 0.03
TRAJECTORY_MARGIN = 0.04
# Unit of the distance from a one-sided bound: a share of the bound.
SCALE = 0.05


def left_at_deviations(factor: float) -> Experiment:
    """Return the remaining energy above the shared partition at each of `DEVIATIONS`.

    Args:
        factor: factor on all gains, for the near control.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        scenarios = [larger_gains(SPREAD.replace(gain_std=nu), factor) for nu in DEVIATIONS]
        left = [higher_energy_left(scenario, "fedavg", numbers, context) for scenario in scenarios]
        return np.concatenate(left, axis=1)

    return experiment


def larger_gains(scenario: Scenario, factor: float) -> Scenario:
    """Return the scenario with mean and spread of the gains multiplied by a factor."""
    mean, std = factor * scenario.gain_mean, factor * scenario.gain_std
    return scenario.replace(gain_mean=mean, gain_std=std)


def left_around_critical(shift: float, factor: float = 1.0) -> Experiment:
    """Return the remaining energy of each partition at `FACTORS` times its critical deviation.

    Args:
        shift: a further factor on all deviations, for the negative control.
        factor: factor on mean and spread of all gains, for the near control.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        left = []
        for share in FACTORS:
            for h, nu in enumerate(_critical()):
                scenario = larger_gains(CRITICAL.replace(gain_std=shift * share * nu), factor)
                left.append(higher_energy_left(scenario, "fedavg", numbers, context)[:, h])
        return np.stack(left, axis=1)

    return experiment


def over_prediction(scenario: Scenario, heterogeneity: str, start: float = 1.0) -> Experiment:
    """Return the energy of each partition and round relative to a prediction.

    Args:
        scenario: the simulated scenario.
        heterogeneity: the predicted kind of heterogeneity.
        start: factor on the simulated amplitudes at the start, for the near control.
    """
    simulate = scenario.replace(initial_amplitude=start * scenario.initial_amplitude)

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(simulate, "fedavg", numbers, context).energy).values
        return (energy / _trajectory(scenario, heterogeneity))[:, 1:].reshape(len(numbers), -1)

    return experiment


def final_over_fresh(scenario: Scenario) -> Experiment:
    """Return the final energy of each partition relative to the prediction for fresh gains."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(scenario, "fedavg", numbers, context).energy).values
        return energy[:, -1] / _trajectory(PERSISTENT, "fresh")[-1]

    return experiment


def _rate(scenario: Scenario, gain_std: float) -> Array:
    """Return the predicted energy rates above the shared partition."""
    rate = closed_form.energy_rate(scenario.replace(gain_std=gain_std), "fedavg")
    return above_shared(rate, scenario)


def _rates(factor: float) -> Prediction:
    rates = [_rate(SPREAD, factor * nu) for nu in DEVIATIONS]
    return Prediction.within(np.concatenate(rates), MARGIN)


def _critical() -> Array:
    """Return the critical deviations above the shared partition."""
    return above_shared(closed_form.critical_gain_std(CRITICAL, "fedavg"), CRITICAL)


def _around_critical() -> Prediction:
    rates = [
        _rate(CRITICAL, factor * nu)[h] for factor in FACTORS for h, nu in enumerate(_critical())
    ]
    return Prediction.within(rates, MARGIN)


def _trajectory(scenario: Scenario, heterogeneity: str) -> Array:
    kind = scenario.replace(heterogeneity=heterogeneity)
    energy = closed_form.energy_trajectory(kind, "fedavg")
    return per_partition(energy, scenario)


def _more_than_persistent() -> Prediction:
    larger = larger_gains(PERSISTENT, 1.025)
    ratio = _trajectory(larger, "persistent")[-1] / _trajectory(PERSISTENT, "fresh")[-1]
    return Prediction.at_least(ratio, SCALE * ratio)


_COMMON: dict[str, Any] = {"source": "ours", "fidelity": "spectral"}
_RATES: dict[str, Any] = {
    "statistic": f"root of the mean energy left after {SPREAD.rounds} rounds",
    "estimator": root_of_mean(SPREAD.rounds),
    "first": 8_000,
    "cap": 32_000,
    **_COMMON,
}
_FOLLOWED: dict[str, Any] = {"first": 8_000, "cap": 64_000, **_COMMON}


def _persistent_claim(name: str, scenario: Scenario, who: str) -> Claim:
    size = scenario.rounds * len(PARTITIONS)
    return Claim(
        id=f"persistent-{name}",
        statement=f"If clients keep their gains for all rounds and {who}, the mean energy "
        "follows the moments of these gains.",
        assumptions="FedAvg, gains drawn once per client and direction, equal samples, fixed basis",
        statistic="mean energy of every round relative to its prediction",
        quantities=tuple(
            f"measured / predicted, round {t + 1}, {p}"
            for t in range(scenario.rounds)
            for p in PARTITIONS
        ),
        predict=partial(Prediction.within, np.ones(size), TRAJECTORY_MARGIN),
        experiment=over_prediction(scenario, "persistent"),
        control=Control(
            "gains drawn again in every round", experiment=over_prediction(scenario, "fresh")
        ),
        near=Control(
            "initial amplitudes 6.5% larger",
            experiment=over_prediction(scenario, "persistent", 1.065),
        ),
        **_FOLLOWED,
    )


CLAIMS = (
    Claim(
        id="heterogeneity-slows",
        statement=r"Heterogeneity slows the suppression: $q' = g^2 q + \nu^2 \pi / m$.",
        assumptions="FedAvg, independent gains in every round, uniform cohorts, fixed basis",
        quantities=tuple(rf"$q'$ at $\nu = {nu:g}$, {p}" for nu in DEVIATIONS for p in HIGHER),
        predict=partial(_rates, 1.0),
        experiment=left_at_deviations(1.0),
        control=Control(r"clients that do not differ, $\nu = 0$", partial(_rates, 0.0)),
        near=Control("gains 5% larger", experiment=left_at_deviations(1.05)),
        **_RATES,
    ),
    Claim(
        id="heterogeneity-critical",
        statement="Heterogeneity stops the suppression at $q' = 1$: at the critical deviation the "
        "mean energy stays constant, below it falls, above it grows.",
        assumptions="FedAvg, full participation, independent gains in every round, fixed basis",
        quantities=tuple(rf"$q'$ at ${f:g} \nu^\ast$, {p}" for f in FACTORS for p in HIGHER),
        predict=_around_critical,
        experiment=left_around_critical(1.0),
        control=Control("half the deviations", experiment=left_around_critical(0.5)),
        near=Control("gains 5% larger", experiment=left_around_critical(1.0, 1.05)),
        **_RATES,
    ),
    _persistent_claim("full", PERSISTENT, "all take part"),
    _persistent_claim("cohorts", COHORTS, f"{COHORTS.cohort_size} of 20 take part"),
    Claim(
        id="persistent-outgrows-fresh",
        statement="Clients that keep their gains for all rounds lose less energy than clients that "
        "differ as much, but have new gains in every round.",
        assumptions="FedAvg, full participation, equal samples, fixed basis",
        statistic=f"mean energy after {PERSISTENT.rounds} rounds relative to that of fresh gains",
        quantities=PARTITIONS,
        predict=partial(Prediction.at_least, np.ones(len(PARTITIONS)), SCALE),
        experiment=final_over_fresh(PERSISTENT),
        control=Control(
            "clients that do not differ",
            experiment=final_over_fresh(PERSISTENT.replace(gain_std=0)),
        ),
        near=Control(
            "the energy of clients that keep gains 2.5% larger as the bound", _more_than_persistent
        ),
        **_FOLLOWED,
    ),
)
