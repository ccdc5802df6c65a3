"""Non-IID clients: the floors at which drift holds the energies, and the way there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import energy_series, relative_trajectory, simulated
from analysis.claims.names import PARTITIONS, RULE_NAMES
from analysis.claims.predicted import client_arguments, federation_arguments, per_partition
from analysis.stats.series import stationary_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

BURN_IN = 60
# Four directions per partition, all starting alike: their mean is what a partition is measured by.
NON_IID = Scenario(
    ranks=parse_ranks("4x8,8x6,12x6"),
    cohort_size=8,
    rounds=140,
    spectrum_decay=1.0,
    gain_mean=0.8,
    gain_std=0.3,
    drift_std=0.5,
    empty_partition="carry",
)
TRAJECTORY = NON_IID.replace(rounds=10)
LARGER = TRAJECTORY.replace(
    drift_std=1.08 * TRAJECTORY.drift_std, initial_amplitude=1.08 * TRAJECTORY.initial_amplitude
)
# One round of noise, of gains that stay with their clients, and of the choice of a cohort.
ONE_ROUND = Scenario(
    ranks=parse_ranks("2x2,4x2"),
    cohort_size=2,
    rounds=1,
    spectrum_decay=1.0,
    gain_mean=0.0,
    drift_std=0.5,
    empty_partition="zero",
)
DRAWN = (
    (ONE_ROUND, "fedavg"),
    (
        ONE_ROUND.replace(drift_std=0.0, gain_std=0.3, heterogeneity="persistent"),
        "fedavg",
    ),
    (ONE_ROUND.replace(drift_std=0.0, gain_mean=1.0), "fedavg"),
)
CORRELATION = 0.05
FLOOR_MARGIN = 0.03
TRAJECTORY_MARGIN = 0.05

PARAMETERS: dict[str, Any] = {
    **client_arguments(NON_IID),
    **federation_arguments(NON_IID),
}


def _floor(rule: str) -> Prediction:
    floor = closed_form.energy_floor(rule, NON_IID.ranks, **PARAMETERS)
    return Prediction.within(per_partition(floor, NON_IID), FLOOR_MARGIN)


def predicted_trajectory(rule: str) -> Array:
    """Predicted mean energy of each partition from round 1 on, (T, M)."""
    energy = closed_form.energy_trajectory(
        rule,
        TRAJECTORY.ranks,
        TRAJECTORY.rounds,
        initial_amplitude=TRAJECTORY.initial_amplitudes,
        **PARAMETERS,
    )
    return per_partition(energy, NON_IID)[1:]


def _floor_claim(rule: str, other: str) -> Claim:
    return Claim(
        id=f"floor-{rule}",
        statement=f"Drift holds the energies under {RULE_NAMES[rule]} at the floor "
        "delta^2 / (1 - q').",
        source="arXiv 2602.13486, App. B (order of the floor); ours (its value)",
        assumptions="independent gains and drifts of mean (g, 0), uniform cohorts, fixed basis",
        fidelity="spectral",
        statistic="mean energy of a direction over the stationary rounds",
        quantities=PARTITIONS,
        predict=partial(_floor, rule),
        experiment=energy_series(NON_IID, rule),
        estimator=stationary_mean(BURN_IN),
        control=Control(f"the floor of {RULE_NAMES[other]}", partial(_floor, other)),
        near=Control(
            "drifts that are 5% larger",
            experiment=energy_series(NON_IID.replace(drift_std=1.05 * NON_IID.drift_std), rule),
        ),
        first=400,
        cap=6_400,
    )


def _trajectory_claim(rule: str, other: str) -> Claim:
    quantities = tuple(
        f"measured / predicted, round {t + 1}, {name}"
        for t in range(TRAJECTORY.rounds)
        for name in PARTITIONS
    )
    return Claim(
        id=f"trajectory-{rule}",
        statement=f"Under {RULE_NAMES[rule]} the mean energy follows the second-moment recursion "
        "every round.",
        source="arXiv 2602.13486, App. B (mean field); ours (exact second moment)",
        assumptions="independent gains and drifts of mean (g, 0), uniform cohorts, fixed basis",
        fidelity="spectral",
        statistic="mean energy of every round over its prediction",
        quantities=quantities,
        predict=partial(Prediction.within, np.ones(len(quantities)), TRAJECTORY_MARGIN),
        experiment=relative_trajectory(TRAJECTORY, rule, predicted_trajectory(rule)),
        control=Control(
            f"the trajectory of {RULE_NAMES[other]}",
            experiment=relative_trajectory(TRAJECTORY, rule, predicted_trajectory(other)),
        ),
        near=Control(
            "drifts and the amplitudes at the start 8% larger",
            experiment=relative_trajectory(LARGER, rule, predicted_trajectory(rule)),
        ),
        first=4_000,
        cap=64_000,
    )


def neighbours_correlation(repeated: float) -> Experiment:
    """Product of the standardised energies of runs 2i and 2i + 1, for each kind of draw.

    With a gain of 0 an amplitude is the clients' noise alone. Zero padding draws it client by
    client, the other rules direction by direction; without drifts the cohort is all that is drawn.

    Args:
        repeated: share of the pairs whose second run repeats the first one, for the near control.
    """

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        pairs = [number for i in numbers for number in (2 * i, 2 * i + 1)]
        columns = []
        for scenario, rule in DRAWN:
            energy = simulated(scenario, rule, pairs, context).energy.values[:, 1]
            share = energy[:, -1:]  # of the highest direction, which not every cohort carries
            mean, std = share.mean(), share.std()
            one, two = np.moveaxis(((share - mean) / std).reshape(len(numbers), 2, -1), 1, 0)
            same = np.array(numbers) % 100 < 100 * repeated
            columns.append((one * np.where(same[:, None], one, two)).mean(axis=1))
        return np.stack(columns, axis=1)

    return experiment


def _independence_claim() -> Claim:
    return Claim(
        id="independent-runs",
        statement="Runs of different seeds are independent: noise, clients and cohorts of "
        "neighbouring runs are not correlated.",
        source="ours",
        assumptions="one round, clients who return noise or what they received",
        fidelity="spectral",
        statistic="correlation of the energies of runs 2i and 2i + 1",
        quantities=("aggregate noise", "gains of clients", "cohorts"),
        predict=partial(Prediction.near, [0.0] * len(DRAWN), CORRELATION),
        experiment=neighbours_correlation(0.0),
        control=Control("every run repeated", experiment=neighbours_correlation(1.0)),
        near=Control("17 of 100 runs repeated", experiment=neighbours_correlation(0.17)),
        first=8_000,
        cap=64_000,
    )


CLAIMS = (
    _floor_claim("fedavg", "raflora"),
    _floor_claim("raflora", "fedavg"),
    _trajectory_claim("fedavg", "raflora"),
    _trajectory_claim("raflora", "fedavg"),
    _independence_claim(),
)
