"""Claims on the drift law: floors, growth, trajectories and intervals of amplitudes.

Every client adds a constant to every amplitude, as local training by Adam does; the constant
differs by partition. Amplitudes are those of single directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import (
    EXACT,
    PARTITIONS,
    Claim,
    Control,
    Experiment,
    RunContext,
    above_shared,
    partition_means,
    per_partition,
    simulated,
)
from analysis.cohorts.shares import drawn_shares
from analysis.formats import rule_name
from analysis.stats.intervals import every_run, proportion_interval
from analysis.stats.series import stationary_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

BURN_IN = 30
# Five levels: averaging products dilutes by 0.8, 0.6, 0.4 and 0.2, in cohorts of 8 of 20 clients.
FIVE = Scenario(
    ranks=parse_ranks("1x4,2x4,3x4,4x4,5x4"),
    cohort_size=8,
    rounds=90,
    spectrum_decay=1.0,
    initial_amplitude=0.1,
    local_loss="drift",
    drift_levels=(0.1, 0.08, 0.06, 0.05, 0.04),
)
# Gains below 1, as weight decay causes them.
DECAYING = FIVE.replace(gain_mean=0.9)
COVERED = tuple(f"coverage {share:.1f}" for share in (0.8, 0.6, 0.4, 0.2))
THREE = Scenario(
    ranks=parse_ranks("2x8,4x6,8x6"),
    cohort_size=8,
    rounds=12,
    spectrum_decay=1.0,
    initial_amplitude=0.2,
    local_loss="drift",
    drift_levels=(0.1, 0.07, 0.05),
)
FALLING = THREE.replace(learning_rate_schedule="cosine")
GROWING = THREE.replace(rounds=30)
NOISY = THREE.replace(drift_std=0.1)
FACTORS = Scenario(
    ranks=parse_ranks("1x4,2x3,4x3"),
    fidelity="matrix",
    cohort_size=6,
    rounds=8,
    local_loss="drift",
    drift_levels=(0.1, 0.07, 0.05),
    d_in=32,
    d_out=24,
)
MARGIN, TRAJECTORY_MARGIN, SHARE_MARGIN = 0.02, 0.05, 0.05
ROUNDS = (1, 4, 8, 12)
INSIDE = 0.9
# Near controls: factors on drifts and initial amplitudes, and the probability of an interval.
LARGER, MUCH_LARGER, SLIGHTLY, TOO_FEW = 1.07, 1.17, 1 + 3e-9, 0.76


def larger(scenario: Scenario, factor: float = LARGER) -> Scenario:
    """Return the scenario with larger drifts and initial amplitudes."""
    assert scenario.drift_levels is not None  # every scenario of this module has them
    return scenario.replace(
        drift_levels=tuple(factor * c for c in scenario.drift_levels),
        initial_amplitude=factor * scenario.initial_amplitude,
    )


def amplitudes(scenario: Scenario, rule: str, numbers: Sequence[int], context: RunContext) -> Array:
    """Return the amplitudes of all directions, (n, T + 1, r_max)."""
    return np.sqrt(simulated(scenario, rule, numbers, context).energy.values)


def amplitude_series(scenario: Scenario, rule: str, first: int = 1) -> Experiment:
    """Return the mean amplitude of each partition from the given one on, (n, M', T + 1)."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        values = partition_means(amplitudes(scenario, rule, numbers, context), scenario)
        return np.moveaxis(values[..., first:], 1, 2)

    return experiment


def _floor(scenario: Scenario, rule: str, first: int = 1) -> Prediction:
    floor = per_partition(closed_form.drift_floor(scenario, rule), scenario)
    return Prediction.within(floor[first:], MARGIN)


def _whole_drift() -> Prediction:
    """Predict `c / (1 - W)`, as if the server added the clients' drifts without averaging them."""
    share = above_shared(closed_form.coverage(FIVE), FIVE)
    return Prediction.within(above_shared(FIVE.drift_means, FIVE) / (1 - share), MARGIN)


def growth(scenario: Scenario, rule: str) -> Experiment:
    """Return the growth of raFLoRA's partitions in each third of the rounds over the prediction."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        values = partition_means(amplitudes(scenario, rule, numbers, context), scenario)
        gained = np.diff(values[:, :: GROWING.rounds // 3], axis=1)
        predicted = per_partition(closed_form.drift_growth(GROWING, "raflora"), GROWING)
        return (gained / (predicted * GROWING.rounds / 3)).reshape(len(numbers), -1)

    return experiment


def relative_mean(scenario: Scenario, predicted: Scenario) -> Experiment:
    """Return the amplitude of each partition under FedAvg over its predicted mean, in some rounds.

    Args:
        scenario: the scenario to simulate.
        predicted: the scenario to predict.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        values = partition_means(amplitudes(scenario, "fedavg", numbers, context), scenario)
        wanted = closed_form.drift_trajectory(predicted, "fedavg")
        relative = values / partition_means(wanted, scenario)
        return relative[:, ROUNDS].reshape(len(numbers), -1)

    return experiment


def contained(confidence: float) -> Experiment:
    """Return whether the interval of the last round contains each partition's first direction."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        interval = closed_form.drift_interval(NOISY, "fedavg", confidence=confidence)
        last = amplitudes(NOISY, "fedavg", numbers, context)[:, -1]
        inside = (last >= interval.low[-1]) & (last <= interval.high[-1])
        return per_partition(inside.astype(np.float64), NOISY)

    return experiment


def in_known_cohorts(rule: str, factor: float = 1.0, instead: str | None = None) -> Experiment:
    """Return the amplitudes of real factors over those that the run's cohorts determine.

    They are those that a client would return after the last round, with its drift: the amplitude
    itself is zero if no client in the last cohort carries a direction.

    Args:
        rule: the simulated rule.
        factor: factor on the drifts and initial amplitudes of the simulation.
        instead: the rule to predict; None for the simulated one.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        scenario = larger(FACTORS, factor)
        last = amplitudes(scenario, rule, numbers, context)[:, -1]
        wanted = [
            closed_form.drift_trajectory(
                FACTORS, instead or rule, shares=drawn_shares(FACTORS, seed)
            )[-1]
            for seed in context.seeds(numbers)
        ]
        relative = (last + scenario.drift_means) / (np.array(wanted) + FACTORS.drift_means)
        return partition_means(relative, FACTORS)

    return experiment


_COMMON: dict[str, Any] = {
    "source": "ours",
    "assumptions": "every client adds the same $c_h$ to every amplitude of partition $h$, uniform "
    "cohorts, fixed basis",
    "fidelity": "spectral",
}
_LARGER = "drifts and initial amplitudes 7% larger"


def _floor_claim(rule: str, formula: str, control: Control) -> Claim:
    return Claim(
        id=f"drift-floor-{rule.replace('_', '-')}",
        statement=f"Under {rule_name(rule)} a constant drift stops the collapse of every "
        f"partition at its floor {formula}.",
        statistic="mean amplitude of a direction over the stationary rounds",
        quantities=COVERED,
        predict=partial(_floor, FIVE, rule),
        experiment=amplitude_series(FIVE, rule),
        estimator=stationary_mean(BURN_IN),
        control=control,
        near=Control(_LARGER, experiment=amplitude_series(larger(FIVE), rule)),
        first=800,
        cap=6_400,
        **_COMMON,
    )


CLAIMS = (
    _floor_claim(
        "fedavg",
        r"$E[W] c / (1 - E[W])$",
        Control(r"the floor $c / (1 - W)$ of drifts that are not averaged", _whole_drift),
    ),
    _floor_claim(
        "zero_pad",
        r"$E[W^2] c / (1 - E[W^2])$",
        Control("the floor of FedAvg", partial(_floor, FIVE, "fedavg")),
    ),
    Claim(
        id="drift-saturation",
        statement="With a gain $g$ below 1, as weight decay causes it, raFLoRA's amplitudes "
        r"saturate at $c / (1 - g)$.",
        statistic="mean amplitude of a direction over the stationary rounds",
        quantities=("all clients", *COVERED),
        predict=partial(_floor, DECAYING, "raflora", 0),
        experiment=amplitude_series(DECAYING.replace(rounds=150), "raflora", 0),
        estimator=stationary_mean(100),
        control=Control("the floors of FedAvg", partial(_floor, DECAYING, "fedavg", 0)),
        near=Control(
            "a gain of 0.893",
            partial(_floor, DECAYING.replace(gain_mean=0.893), "raflora", 0),
        ),
        first=100,
        cap=1_600,
        **_COMMON,
    ),
    Claim(
        id="drift-raflora-linear",
        statement="Under raFLoRA every amplitude grows linearly, by $c$ times the probability of a "
        "contributor per round.",
        statistic="growth in each third of the rounds, measured over predicted",
        quantities=tuple(
            f"rounds {10 * k + 1} to {10 * k + 10}, {name}" for k in range(3) for name in PARTITIONS
        ),
        predict=partial(Prediction.within, np.ones(9), MARGIN),
        experiment=growth(GROWING, "raflora"),
        control=Control("FedAvg, which settles", experiment=growth(GROWING, "fedavg")),
        near=Control(_LARGER, experiment=growth(larger(GROWING), "raflora")),
        first=1_000,
        cap=8_000,
        **_COMMON,
    ),
    Claim(
        id="drift-trajectory",
        statement="Under FedAvg the mean amplitude follows $E[x'] = E[W] (E[x] + s_t c)$, with a "
        "learning rate $s_t$ that falls as a cosine.",
        statistic="amplitude after the round, measured over predicted mean",
        quantities=tuple(f"round {t}, {name}" for t in ROUNDS for name in PARTITIONS),
        predict=partial(
            Prediction.within, np.ones(len(ROUNDS) * len(PARTITIONS)), TRAJECTORY_MARGIN
        ),
        experiment=relative_mean(FALLING, FALLING),
        control=Control(
            "the trajectory of a constant learning rate",
            experiment=relative_mean(FALLING, THREE),
        ),
        near=Control(
            "drifts and initial amplitudes 17% larger",
            experiment=relative_mean(larger(FALLING, MUCH_LARGER), FALLING),
        ),
        first=4_000,
        cap=32_000,
        **_COMMON,
    ),
    Claim(
        id="drift-interval",
        statement=f"The {INSIDE:.0%} prediction interval of an amplitude under FedAvg contains "
        f"{INSIDE:.0%} of the runs.",
        statistic=f"share of runs inside after {NOISY.rounds} rounds",
        quantities=PARTITIONS,
        predict=partial(Prediction.near, [INSIDE] * len(PARTITIONS), SHARE_MARGIN),
        experiment=contained(INSIDE),
        estimator=proportion_interval,
        control=Control("an interval that should contain half", experiment=contained(0.5)),
        near=Control(
            f"an interval that should contain {TOO_FEW:.0%}", experiment=contained(TOO_FEW)
        ),
        first=1_500,
        cap=12_000,
        **_COMMON
        | {"assumptions": "drifts of mean $c_h$ and equal spread, uniform cohorts, fixed basis"},
    ),
    Claim(
        id="drift-known-cohorts",
        statement=r"With real factors the cohorts determine every amplitude under FedAvg: "
        r"$x_{t+1} = W_t (x_t + c)$.",
        statistic="amplitude that a client returns after the last round, measured over predicted",
        quantities=PARTITIONS,
        predict=partial(Prediction.within, np.ones(len(PARTITIONS)), EXACT),
        experiment=in_known_cohorts("fedavg"),
        estimator=every_run,
        control=Control(
            "the amplitudes under raFLoRA",
            experiment=in_known_cohorts("fedavg", instead="raflora"),
        ),
        near=Control(
            "drifts and initial amplitudes larger by 3e-9",
            experiment=in_known_cohorts("fedavg", SLIGHTLY),
        ),
        first=20,
        cap=20,
        **_COMMON | {"fidelity": "matrix"},
    ),
)
