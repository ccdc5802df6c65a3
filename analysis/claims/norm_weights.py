"""HetLoRA over many rounds: weights by norm, which the collapse makes uniform over clients.

The norm of an update counts what its client carries. As high directions drain, all norms become
that of the shared directions, and a contributor weighs as much as anybody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.names import HIGHER
from analysis.claims.predicted import EXACT, above_shared, federation_arguments, partition_means
from analysis.claims.rivals import KEPT, amplitudes, rounds_by_partition
from analysis.stats.intervals import every_run, root_of_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

NORMS = KEPT.replace(rounds=6)
# The last round that singular values resolve: 1e-9 of an amplitude is left, 1e-16 is rounding.
COLLAPSING = KEPT.replace(rounds=8)
# 16 of 20 clients always hold two of the highest rank: nothing is lost, and only shares vary. Who
# carries more directions has less data, so that shares of data and of clients are far apart.
NORM_COHORTS = Scenario(
    ranks=parse_ranks("2x8,4x6,8x6"),
    num_samples=(20,) * 8 + (15,) * 6 + (10,) * 6,
    cohort_size=16,
    rounds=10,
)
COLLAPSED_AFTER = 6
# The norms of the last but one round still differ by the energy left: 1e-6 of the shared one.
LATE = 1e-5
MARGIN = 0.02


def share_of_round(scenario: Scenario, rule: str, t: int) -> Experiment:
    """Weight share of the contributors in round t, from the fourth root of the energy's factor."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        amplitude = amplitudes(scenario, rule, numbers, context)
        return np.sqrt(amplitude[:, t] / amplitude[:, t - 1])

    return experiment


def late_energy(scenario: Scenario, rule: str, start: int) -> Experiment:
    """Energy after the last round over that after round `start`."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energy = amplitudes(scenario, rule, numbers, context) ** 2
        return energy[:, -1] / energy[:, start]

    return experiment


def followed(scenario: Scenario, rule: str, predicted_rule: str, start: float = 1.0) -> Experiment:
    """Energy of every partition after every round over what a rule's recursion predicts.

    Args:
        scenario: of simulation and prediction.
        rule: that is simulated.
        predicted_rule: that predicts.
        start: factor on the simulated amplitudes at the start, for the near control.
    """
    simulated = scenario.replace(initial_amplitude=start * scenario.initial_amplitude)

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energy = amplitudes(simulated, rule, numbers, context)[:, 1:] ** 2
        return (energy / _trajectory(scenario, predicted_rule)[1:]).reshape(len(numbers), -1)

    return experiment


def _clients_share(scenario: Scenario) -> Array:
    """Share of the clients, not of their data, that carry each partition but the shared one."""
    return above_shared(closed_form.coverage(scenario.ranks), scenario)


def _data_share(scenario: Scenario) -> Array:
    """Share of the data that stands behind each partition but the shared one."""
    return above_shared(closed_form.coverage(scenario.ranks, scenario.num_samples), scenario)


def _trajectory(scenario: Scenario, rule: str) -> Array:
    energy = closed_form.energy_trajectory(
        rule,
        scenario.ranks,
        scenario.rounds,
        initial_amplitude=scenario.initial_amplitudes,
        **federation_arguments(scenario),
    )
    return partition_means(energy, scenario)[:, 1:]


def _rate(rule: str) -> Prediction:
    rate = closed_form.energy_rate(rule, NORM_COHORTS.ranks, **federation_arguments(NORM_COHORTS))
    return Prediction.within(above_shared(rate, NORM_COHORTS), MARGIN)


def _first_share(scenario: Scenario) -> Prediction:
    energy = _trajectory(scenario, "hetlora")
    return Prediction.within((energy[1] / energy[0]) ** 0.25, EXACT)


_FULL: dict[str, Any] = {
    "source": "ours",
    "assumptions": "full participation, common gain, fixed basis, any sample counts",
    "fidelity": "matrix",
    "estimator": every_run,
    "first": 20,
    "cap": 20,
}

CLAIMS = (
    Claim(
        id="hetlora-recursion",
        statement="HetLoRA's energies follow the recursion of norm weights in every round.",
        statistic="energy of every round over its prediction",
        quantities=rounds_by_partition("measured / predicted", range(1, NORMS.rounds + 1)),
        predict=partial(Prediction.within, np.ones(NORMS.rounds * len(HIGHER)), EXACT),
        experiment=followed(NORMS, "hetlora", "hetlora"),
        control=Control(
            "the recursion of data weights", experiment=followed(NORMS, "hetlora", "zero_pad")
        ),
        near=Control(
            "amplitudes 1.7e-9 larger at the start",
            experiment=followed(NORMS, "hetlora", "hetlora", 1 + 1.7e-9),
        ),
        **_FULL,
    ),
    Claim(
        id="hetlora-first-round",
        statement="In the first round HetLoRA weighs contributors by norm, above their number.",
        statistic="weight share that the first round's energy factor implies, its fourth root",
        quantities=HIGHER,
        predict=partial(_first_share, NORMS),
        experiment=share_of_round(NORMS, "hetlora", 1),
        control=Control(
            "client-uniform weights", lambda: Prediction.within(_clients_share(NORMS), EXACT)
        ),
        near=Control(
            "clients with a gain of 1 + 7e-9",
            experiment=share_of_round(NORMS.replace(gain_mean=1 + 7e-9), "hetlora", 1),
        ),
        **_FULL,
    ),
    Claim(
        id="hetlora-uniform",
        statement="As the federation collapses, HetLoRA's weights become client-uniform, whatever "
        "the sample counts.",
        statistic="weight share that the last round's energy factor implies, its fourth root",
        quantities=HIGHER,
        predict=lambda: Prediction.within(_clients_share(COLLAPSING), LATE),
        experiment=share_of_round(COLLAPSING, "hetlora", COLLAPSING.rounds),
        control=Control(
            "weights by data", lambda: Prediction.within(_data_share(COLLAPSING), LATE)
        ),
        near=Control(
            "clients with a gain of 1 + 7e-5",
            experiment=share_of_round(
                COLLAPSING.replace(gain_mean=1 + 7e-5), "hetlora", COLLAPSING.rounds
            ),
        ),
        wide_because="weights become uniform only as the energy falls, of which 1e-6 is left",
        **_FULL,
    ),
    Claim(
        id="hetlora-uniform-cohorts",
        statement="With sampled cohorts HetLoRA's mean-energy rate tends to E[(H/m)^4].",
        statistic=f"root of the mean energy after {NORM_COHORTS.rounds} rounds over that after "
        f"{COLLAPSED_AFTER}",
        quantities=HIGHER,
        predict=partial(_rate, "hetlora"),
        experiment=late_energy(NORM_COHORTS, "hetlora", COLLAPSED_AFTER),
        control=Control("weights by data", partial(_rate, "zero_pad")),
        near=Control(
            "clients with a gain of 1.035",
            experiment=late_energy(
                NORM_COHORTS.replace(gain_mean=1.035), "hetlora", COLLAPSED_AFTER
            ),
        ),
        estimator=root_of_mean(NORM_COHORTS.rounds - COLLAPSED_AFTER),
        first=8_000,
        cap=64_000,
        source="ours",
        assumptions="uniform cohorts without replacement, common gain, fixed basis",
        fidelity="spectral",
    ),
)
