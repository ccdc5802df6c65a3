"""Sampled cohorts: mean-energy rates, and what raFLoRA does with an empty partition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import higher_energy_left
from analysis.claims.names import HIGHER
from analysis.claims.predicted import EXACT, above_shared, federation_arguments
from analysis.stats.intervals import every_run, root_of_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

RANKS = parse_ranks("2x8,4x6,8x6")
# 8 of 20 clients: large enough that the mean over runs converges, small enough that the cohort
# variance moves the rate by a fifth from its full-participation value.
SAMPLED = Scenario(ranks=RANKS, cohort_size=8, rounds=4)
# 12 of 20 for zero padding, whose fourth power spreads the runs further apart.
SAMPLED_PAD = SAMPLED.replace(cohort_size=12, rounds=2)
# 3 of 20 clients: partitions stay empty in a third of the rounds.
SPARSE = Scenario(ranks=RANKS, cohort_size=3, rounds=5)
MARGIN = 0.02


def _rate(rule: str, scenario: Scenario, margin: float = MARGIN) -> Prediction:
    rate = closed_form.energy_rate(rule, scenario.ranks, **federation_arguments(scenario))
    return Prediction.within(above_shared(rate, scenario), margin)


def _power_of_coverage(scenario: Scenario, power: int) -> Prediction:
    coverage = above_shared(closed_form.coverage(scenario.ranks), scenario)
    return Prediction.within(coverage**power, MARGIN)


def rate_of_each_run(scenario: Scenario, rule: str) -> Experiment:
    """T-th root of what is left of every partition's energy, run by run."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        left = higher_energy_left(scenario, rule, numbers, context)
        return np.asarray(left ** (1 / scenario.rounds))

    return experiment


def _gain(scenario: Scenario, rule: str, gain: float) -> Control:
    """A near control: clients multiply what they receive by a gain, which squared is the rate's."""
    return Control(
        f"clients with a gain of {gain:g}",
        experiment=partial(higher_energy_left, scenario.replace(gain_mean=gain), rule),
    )


_COMMON: dict[str, Any] = {
    "fidelity": "spectral",
    "statistic": "T-th root of the mean energy after T rounds over the initial one",
    "quantities": HIGHER,
    "assumptions": "uniform cohorts without replacement, equal samples, common gain, fixed basis",
}
_STATISTICAL: dict[str, Any] = {"first": 16_000, "cap": 256_000}
_ZERO, _CARRY = (SPARSE.replace(empty_partition=policy) for policy in ("zero", "carry"))

CLAIMS = (
    Claim(
        id="cohort-rate",
        statement="With sampled cohorts FedAvg's mean-energy rate is q_h = E[W_h^2].",
        source="ours; full participation in arXiv 2602.13486, App. A",
        predict=partial(_rate, "fedavg", SAMPLED),
        experiment=partial(higher_energy_left, SAMPLED, "fedavg"),
        control=Control(
            "coverage squared, as if the cohort did not vary",
            partial(_power_of_coverage, SAMPLED, 2),
        ),
        near=_gain(SAMPLED, "fedavg", 1.035),
        estimator=root_of_mean(SAMPLED.rounds),
        **_STATISTICAL,
        **_COMMON,
    ),
    Claim(
        id="zero-pad-cohort-rate",
        statement="With sampled cohorts zero padding's mean-energy rate is E[W_h^4].",
        source="ours",
        predict=partial(_rate, "zero_pad", SAMPLED_PAD),
        experiment=partial(higher_energy_left, SAMPLED_PAD, "zero_pad"),
        control=Control(
            "coverage to the fourth, as if the cohort did not vary",
            partial(_power_of_coverage, SAMPLED_PAD, 4),
        ),
        near=_gain(SAMPLED_PAD, "zero_pad", 1.035),
        estimator=root_of_mean(SAMPLED_PAD.rounds),
        **_STATISTICAL,
        **_COMMON,
    ),
    Claim(
        id="raflora-zero-cohort",
        statement="raFLoRA that drops empty partitions still collapses, at rate 1 - P0_h.",
        source="ours",
        predict=partial(_rate, "raflora", _ZERO),
        experiment=partial(higher_energy_left, _ZERO, "raflora"),
        control=Control("no loss at all, as under carry", partial(_rate, "raflora", _CARRY)),
        near=_gain(_ZERO, "raflora", 1.035),
        estimator=root_of_mean(SPARSE.rounds),
        **_STATISTICAL,
        **_COMMON,
    ),
    Claim(
        id="raflora-carry-flat",
        statement="raFLoRA that carries empty partitions over does not collapse in small cohorts.",
        source="ours",
        predict=partial(_rate, "raflora", _CARRY, EXACT),
        experiment=rate_of_each_run(_CARRY, "raflora"),
        control=Control("empty partitions dropped", experiment=rate_of_each_run(_ZERO, "raflora")),
        near=Control(
            "clients with a gain of 1 + 1.7e-9",
            experiment=rate_of_each_run(_CARRY.replace(gain_mean=1 + 1.7e-9), "raflora"),
        ),
        estimator=every_run,
        first=500,
        cap=500,
        **{**_COMMON, "statistic": "T-th root of the energy after T rounds over the initial one"},
    ),
)
