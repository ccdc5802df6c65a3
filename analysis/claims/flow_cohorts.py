"""Training where clients differ: random cohorts with one target, and targets of clients' own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import by_partition, simulated
from analysis.claims.fitting import (
    amplitudes,
    contributors_mean,
    one_federation_per_run,
    random_federation,
    with_larger_targets,
)
from analysis.claims.names import PARTITIONS, RULE_NAMES
from analysis.claims.predicted import per_partition
from analysis.stats.intervals import every_run
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks
from fedlora_sim.engines.draws import client_targets

Array = NDArray[np.float64]

# 8 of 12 clients carry the second partition, so that every cohort holds 3 of them or more. A cohort
# without any would make 1/x infinite, and one with few would make its mean rest on them: the more
# so under zero padding, which squares their share and draws 9 clients instead of 7.
COHORT = Scenario(
    ranks=parse_ranks("2x4,4x8"),
    cohort_size=7,
    rounds=6,
    local_loss="quadratic",
    local_time=0.4,
    spectrum_decay=1.0,
    initial_amplitude=0.3,
)
COHORTS = {"fedavg": COHORT, "zero_pad": COHORT.replace(cohort_size=9)}
COHORT_MARGIN = 0.02
TARGET_STD = 0.5
# Far enough below the targets for the rounds of growth, in which they tell most.
START = 0.01
# Local time over the threshold of the highest partition, and at least, in units of 1/target.
BEYOND_THRESHOLD, LEAST_TIME = 1.6, 0.9
TARGET_ROUNDS, SHOWN_ROUNDS = 16, (2, 16)
# Rounds of growth add up the error of the steps, (M T)**2 / n each: 0.5% a round.
TARGET_STEPS = 200
TARGET_MARGIN = 0.02
# Targets of near controls over the true ones.
LARGER = 1.065


def harmonic_mean(rule: str, cohort_size: int | None, larger: float = 1.0) -> Array:
    """Predicted `1/E[1/x]` of the second partition after every round but the initial one.

    Args:
        rule: the rule.
        cohort_size: clients per round; None predicts as if every cohort held exactly the mean
            share of contributors.
        larger: factor on all amplitudes, targets included.
    """
    scenario = with_larger_targets(COHORT, larger)
    amplitude = closed_form.flow_trajectory(
        rule,
        scenario.ranks,
        scenario.rounds,
        target=scenario.target_amplitude,
        local_time=scenario.local_time,
        initial_amplitude=scenario.initial_amplitudes,
        cohort_size=cohort_size,
    )
    return amplitude[1:, -1]


def inverse_over(rule: str, predicted: Array) -> Experiment:
    """`1/x` of the second partition at every round times the predicted harmonic mean."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energy = by_partition(simulated(COHORTS[rule], rule, numbers, context).energy).values
        return predicted / np.sqrt(energy[:, 1:, -1])

    return experiment


def own_targets(rule: str, seed: int) -> Scenario:
    """A random federation above the threshold, with targets of the clients' own.

    Clients of lower rank get the larger targets: directions keep their order, and with it the
    clients that an SVD sends them to.
    """
    scenario = random_federation(seed, 4, 4, 8)
    scenario = scenario.replace(
        rounds=TARGET_ROUNDS,
        target_std=TARGET_STD,
        initial_amplitude=START,
        local_steps=TARGET_STEPS,
    )
    targets = client_targets(scenario, seed)
    ranks = np.empty(len(targets), dtype=int)
    ranks[np.argsort(-targets[:, 0])] = np.sort(scenario.ranks)
    scenario = scenario.replace(ranks=tuple(ranks.tolist()))
    longest = closed_form.collapse_threshold(
        rule, scenario.ranks, targets, num_samples=scenario.num_samples
    ).max()
    shortest = LEAST_TIME / scenario.target_amplitude
    return scenario.replace(local_time=float(max(BEYOND_THRESHOLD * longest, shortest)))


def trajectory_of(rule: str, scenario: Scenario, targets: Array) -> Array:
    """Predicted amplitude of every partition and round, (T + 1, M)."""
    amplitude = closed_form.flow_trajectory(
        rule,
        scenario.ranks,
        scenario.rounds,
        target=targets,
        local_time=scenario.local_time,
        initial_amplitude=scenario.initial_amplitudes,
        num_samples=scenario.num_samples,
    )
    return per_partition(amplitude, scenario)


def own_trajectory(rule: str, *, mean_target: bool = False, larger: float = 1.0) -> Experiment:
    """Predicted amplitude of every partition's last direction over the measured, some rounds.

    Args:
        rule: the rule.
        mean_target: predict with the contributors' mean target for all.
        larger: factor on all amplitudes of the prediction, targets included.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        targets = larger * client_targets(scenario, int(run.seed.values[0]))
        if mean_target:
            targets = contributors_mean(scenario, targets)
        rounds = np.array(SHOWN_ROUNDS)
        predicted = trajectory_of(rule, with_larger_targets(scenario, larger), targets)
        return (predicted / per_partition(amplitudes(run).values, scenario))[rounds].ravel()

    label = f"flow-targets-{rule}"
    return one_federation_per_run(label, partial(own_targets, rule), rule, measure)


def _cohort_claim(rule: str) -> Claim:
    return Claim(
        id=f"flow-cohorts-{rule.replace('_', '-')}",
        statement=f"With sampled cohorts under {RULE_NAMES[rule]} the harmonic mean of the "
        "amplitude over runs follows its closed form every round.",
        source="ours",
        assumptions="quadratic loss with one target on the common basis, gradient flow, uniform "
        "cohorts that always hold a contributor",
        fidelity="spectral",
        statistic="mean of 1/x over runs times the predicted harmonic mean",
        quantities=tuple(f"partition 2, round {t}" for t in range(1, COHORT.rounds + 1)),
        predict=partial(Prediction.within, np.ones(COHORT.rounds), COHORT_MARGIN),
        experiment=inverse_over(rule, harmonic_mean(rule, COHORTS[rule].cohort_size)),
        control=Control(
            "the mean share of contributors in every cohort",
            experiment=inverse_over(rule, harmonic_mean(rule, None)),
        ),
        near=Control(
            f"amplitudes and targets larger by {LARGER - 1:.1%}",
            experiment=inverse_over(rule, harmonic_mean(rule, COHORTS[rule].cohort_size, LARGER)),
        ),
        first=16_000,
        cap=64_000,
    )


def _targets_claim(rule: str) -> Claim:
    quantities = tuple(f"round {t}, {name}" for t in SHOWN_ROUNDS for name in PARTITIONS)
    return Claim(
        id=f"flow-targets-{rule.replace('_', '-')}",
        statement=f"Clients with targets of their own under {RULE_NAMES[rule]} take every "
        "partition along the predicted amplitudes to the predicted floor.",
        source="ours",
        assumptions="quadratic loss, persistent targets on the common basis, the larger ones with "
        f"clients of lower rank, balanced factors, {TARGET_STEPS} plain steps a round, full "
        "participation",
        fidelity="matrix",
        statistic="predicted amplitude of a partition's last direction over the measured one, of "
        "every federation",
        quantities=quantities,
        predict=partial(Prediction.within, np.ones(len(quantities)), TARGET_MARGIN),
        experiment=own_trajectory(rule),
        control=Control(
            "one target for all, the contributors' mean",
            experiment=own_trajectory(rule, mean_target=True),
        ),
        near=Control(
            f"amplitudes and targets larger by {LARGER - 1:.1%}",
            experiment=own_trajectory(rule, larger=LARGER),
        ),
        estimator=every_run,
        first=20,
        cap=20,
        wide_because=f"clients descend in {TARGET_STEPS} steps a round instead of along the flow, "
        "and rounds of growth add up the errors",
        scenario=partial(own_targets, rule),
        in_quick=False,  # federations large enough that clients' targets differ reliably
    )


CLAIMS = (
    _cohort_claim("fedavg"),
    _cohort_claim("zero_pad"),
    _targets_claim("fedavg"),
    _targets_claim("raflora"),
)
