"""The drift law at both fidelities: the reference, its schedules, and its special cases."""

from __future__ import annotations

import numpy as np
import pytest
from designs import pairwise
from simulator_cases import LAWS, OWN_RULES, assert_close

from fedlora_sim import Scenario, simulate
from fedlora_sim.reference.simulators import matrix_reference, spectral_reference
from fedlora_sim.scenario import SCHEDULES

SEEDS = range(2)
LAW = {"local_loss": "drift", "drift_levels": (0.3, 0.2, -0.1), "gain_mean": 0.9}
STAYS = {"heterogeneity": "persistent", "gain_std": 0.2, "drift_std": 0.1}
SPECTRAL_RULES = tuple(rule for rule in OWN_RULES if rule != "external")


def scenario(law: str, **changes) -> Scenario:
    size = None if law == "full" else 2
    given = {"num_samples": (5, 1, 2, 7, 3), "rounds": 6, "sampling": law, "cohort_size": size}
    return Scenario("1x2,3x2,4x1", **{**LAW, **given, **changes})


@pairwise(
    rule=SPECTRAL_RULES,
    law=LAWS,
    schedule=SCHEDULES,
    empty_partition=["carry", "zero"],
    spread=[{}, STAYS],
)
def test_amplitudes_are_the_reference(rule, law, schedule, empty_partition, spread):
    run = scenario(law, learning_rate_schedule=schedule, empty_partition=empty_partition, **spread)
    wanted = np.stack([spectral_reference(run, rule, seed) for seed in SEEDS]) ** 2
    assert_close(simulate(run, rule=rule, seed=SEEDS).energy, wanted)


@pairwise(rule=SPECTRAL_RULES, schedule=SCHEDULES, allocation=["svd", "random", "importance"])
def test_factors_are_the_reference(rule, schedule, allocation):
    run = scenario(
        "without_replacement",
        fidelity="matrix",
        learning_rate_schedule=schedule,
        allocation=allocation,
        gain_std=0.2,
        d_in=9,
        d_out=7,
    )
    wanted = np.stack([matrix_reference(run, rule, seed)[0] for seed in SEEDS]) ** 2
    assert_close(simulate(run, rule=rule, seed=SEEDS).energy, wanted, "iteration")


def test_a_falling_learning_rate_leaves_the_amplitudes_where_they_are() -> None:
    """A client whose learning rate is zero returns what it received, whatever its gain."""
    run = Scenario("2x3", rounds=500, local_loss="drift", drift_mean=0.3, gain_mean=0.9)
    steady = np.sqrt(simulate(run, rule="fedavg").energy[0, -1])
    assert_close(steady, [3.0, 3.0])  # c / (1 - g)
    falling = run.replace(learning_rate_schedule="linear", gain_std=0.3, drift_std=0.2)
    moved = np.abs(np.diff(np.sqrt(simulate(falling, rule="fedavg").energy[0]), axis=0))
    assert moved[-5:].max() < 0.1 * moved[:5].max()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_is_the_sum_of_its_rounds(schedule: str) -> None:
    """Under gain 1 and no dilution the amplitude grows by c times the learning rates."""
    run = Scenario(
        "2x3", rounds=40, drift_mean=0.1, local_loss="drift", learning_rate_schedule=schedule
    )
    grown = np.sqrt(simulate(run, rule="fedavg").energy[0, -1]) - run.initial_amplitudes
    rates = {"constant": 40.0, "linear": 41 / 2, "cosine": 41 / 2}[schedule]
    assert_close(grown, np.full(2, 0.1 * rates))
    scales = run.training_scales
    assert scales[0] == 1
    assert (np.diff(scales) < 0).all() == (schedule != "constant")
