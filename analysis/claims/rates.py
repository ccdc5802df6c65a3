"""Claims on suppression rates, under full participation and with sampled cohorts, and on floors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import (
    EXACT,
    HIGHER,
    PARTITIONS,
    Claim,
    Control,
    Experiment,
    RunContext,
    above_shared,
    energy_series,
    fitted_rates,
    higher_energy_left,
    per_partition,
    relative_trajectory,
    simulated,
)
from analysis.formats import rule_name
from analysis.stats.intervals import every_run, root_of_mean
from analysis.stats.series import stationary_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks
from fedlora_sim.randomness import stream

# Full participation: one geometric rate per partition, and the bound on the energy ratio

Array = NDArray[np.float64]

# Three levels, unequal sample counts, a common gain below 1: the rates must still be relative to
# the shared directions, and differ between partitions.
SAMPLES = (30, 10, 20, 40, 25, 15, 20, 10, 20, 10)
FEDERATION = Scenario(
    ranks=parse_ranks("2x4,4x3,8x3"),
    num_samples=SAMPLES,
    fidelity="matrix",
    rounds=6,  # with more rounds, rounding would show in the smallest energies
    gain_mean=0.97,
    d_in=48,
    d_out=40,
)
SCALE = 10**9
"""Samples of near controls per sample: shares of data then differ by parts of the margin."""
BOUND_ROUNDS = 40
# Factor of the smaller bound to which a counterexample must be found.
BOUND_SCALE = 0.05


def _coverage() -> Array:
    coverage = closed_form.coverage(FEDERATION)
    return above_shared(coverage, FEDERATION)


def _rates(power: float) -> Prediction:
    return Prediction.within(_coverage() ** power, EXACT)


def _single_rate() -> Prediction:
    return Prediction.within(np.full(len(HIGHER), _coverage()[0] ** 2), EXACT)


def random_federation(seed: int) -> Scenario:
    """Return a federation of 2 to 12 clients, 2 to 4 levels, unequal samples and any spectrum."""
    rng = stream(seed, "random_federation")
    levels = np.sort(rng.choice(np.arange(1, 17), size=rng.integers(2, 5), replace=False))
    ranks = np.concatenate([levels, rng.choice(levels, size=rng.integers(0, 9))])
    return Scenario(
        ranks=tuple(ranks.tolist()),
        num_samples=tuple(rng.integers(1, 100, size=len(ranks)).tolist()),
        rounds=BOUND_ROUNDS,
        spectrum_decay=rng.uniform(0.5, 1.0),
        gain_mean=rng.uniform(0.8, 1.1),
    )


def with_less_data(share: float) -> Scenario:
    """Return the federation whose first client, of the lowest rank, lost a share of all data.

    The data shares of all other clients grow by this share, as does the coverage of each partition.
    """
    samples = [SCALE * n for n in SAMPLES]
    samples[0] -= round(share * sum(samples))
    return FEDERATION.replace(num_samples=tuple(samples))


def with_little_data_at_low_ranks() -> Scenario:
    """Return the federation whose two lower levels hold 1.5e-9 and 0.7e-9 of the data."""
    samples = [11] * 4 + [7] * 3 + [10 * SCALE] * 3
    return FEDERATION.replace(num_samples=tuple(samples))


def share_of_bound(
    bound_level: int, factor: float, numbers: Sequence[int], context: RunContext
) -> Array:
    """Return the largest `(1 - rho(t)) / (C gamma**t)` over rounds, per random federation.

    Args:
        bound_level: the level, from 0, whose squared coverage is gamma.
        factor: factor on C.
        numbers: numbers of the runs.
        context: seeds and device.
    """
    shares = []
    for number, seed in zip(numbers, context.seeds(numbers), strict=True):
        scenario = random_federation(seed)
        bound = factor * closed_form.collapse_bound(scenario)
        if bound_level != 1:
            coverage = per_partition(scenario.federation.coverage(), scenario)
            ratio = coverage[bound_level] ** 2 / coverage[1] ** 2
            bound = bound * ratio ** np.arange(BOUND_ROUNDS + 1)
        energies = simulated(scenario, "fedavg", [number], context).energy.values[0]
        # 1 - rho as a separate ratio: a difference from 1 would be lost in rounding.
        high = energies[:, scenario.federation.levels[0] :].sum(-1) / energies.sum(-1)
        shares.append((high / bound).max())
    return np.asarray(shares, dtype=np.float64)[:, None]


_FULL_PARTICIPATION: dict[str, Any] = {
    "assumptions": "full participation, common gain, fixed basis",
    "fidelity": "matrix",
    "statistic": "energy factor per round by log-linear fit, over that of the shared partition",
    "quantities": HIGHER,
    "estimator": every_run,
    "first": 20,
    "cap": 20,
}

RATE_CLAIMS = (
    Claim(
        id="staircase",
        statement="Under FedAvg every partition decays at its own rate, the square of its "
        "coverage.",
        source="arXiv 2602.13486, Sec. 4 and App. A (one rate); ours (one per partition)",
        predict=partial(_rates, 2),
        experiment=fitted_rates(FEDERATION, "fedavg"),
        control=Control("the rate of the second level for all partitions", _single_rate),
        near=Control(
            "a client of the lowest rank has 1.7e-9 of all data less",
            experiment=fitted_rates(with_less_data(1.7e-9), "fedavg"),
        ),
        **_FULL_PARTICIPATION,
    ),
    Claim(
        id="zero-pad-fourth-power",
        statement="Averaging zero-padded factors doubles the exponent: the rate is the fourth "
        "power of coverage.",
        source="ours",
        predict=partial(_rates, 4),
        experiment=fitted_rates(FEDERATION, "zero_pad"),
        control=Control("the product-space rate, coverage squared", partial(_rates, 2)),
        near=Control(
            "a client of the lowest rank has 0.85e-9 of all data less",
            experiment=fitted_rates(with_less_data(0.85e-9), "zero_pad"),
        ),
        **_FULL_PARTICIPATION,
    ),
    Claim(
        id="raflora-flat",
        statement="Under raFLoRA no partition loses energy relative to the shared one.",
        source="arXiv 2602.13486, Sec. 5",
        predict=partial(_rates, 0),
        experiment=fitted_rates(FEDERATION, "raflora"),
        control=Control("FedAvg instead", experiment=fitted_rates(FEDERATION, "fedavg")),
        near=Control(
            "FedAvg where clients of the lower ranks hold 2.2e-9 of all data",
            experiment=fitted_rates(with_little_data_at_low_ranks(), "fedavg"),
        ),
        **_FULL_PARTICIPATION,
    ),
    Claim(
        id="collapse-bound",
        statement="The share of energy above the shared directions stays below its bound at every "
        r"round of every federation: $1 - \rho_{l_1}(t) \le C \gamma^t$, with $\gamma$ the squared "
        "coverage of the second level and $C$ the energy above the shared directions relative to "
        "that of the shared ones at the start.",
        source="arXiv 2602.13486, App. A",
        assumptions=_FULL_PARTICIPATION["assumptions"],
        fidelity="spectral",
        statistic=r"largest ratio of $1 - \rho$ to its bound over all rounds, for every random "
        "federation",
        quantities=("largest share of the bound that is reached",),
        predict=partial(Prediction.at_most, 1 + EXACT, BOUND_SCALE),
        experiment=partial(share_of_bound, 1, 1.0),
        control=Control(
            r"$\gamma$ of the highest level instead of the second",
            experiment=partial(share_of_bound, -1, 1.0),
        ),
        near=Control("$C$ smaller by 15%", experiment=partial(share_of_bound, 1, 0.85)),
        estimator=every_run,
        first=800,
        cap=800,
        scenario=random_federation,
    ),
)


# Sampled cohorts: mean-energy rates, and the policies of raFLoRA for empty partitions

RANKS = parse_ranks("2x8,4x6,8x6")
# 8 of 20 clients: large enough that the mean over runs converges, small enough that the variance of
# the cohort changes the rate by a fifth compared with full participation.
SAMPLED = Scenario(ranks=RANKS, cohort_size=8, rounds=4)
# 12 of 20 for zero padding, whose fourth power increases the spread of the runs.
SAMPLED_PAD = SAMPLED.replace(cohort_size=12, rounds=2)
# 3 of 20 clients: partitions are empty in a third of the rounds.
SPARSE = Scenario(ranks=RANKS, cohort_size=3, rounds=5)
MARGIN = 0.02


def _rate(rule: str, scenario: Scenario, margin: float = MARGIN) -> Prediction:
    rate = closed_form.energy_rate(scenario, rule)
    return Prediction.within(above_shared(rate, scenario), margin)


def _power_of_coverage(scenario: Scenario, power: int) -> Prediction:
    coverage = above_shared(closed_form.coverage(scenario), scenario)
    return Prediction.within(coverage**power, MARGIN)


def rate_of_each_run(scenario: Scenario, rule: str) -> Experiment:
    """Return the t-th root of the remaining share of each partition's energy, per run."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        left = higher_energy_left(scenario, rule, numbers, context)
        return np.asarray(left ** (1 / scenario.rounds))

    return experiment


def _gain(scenario: Scenario, rule: str, gain: float) -> Control:
    """Return a near control: clients multiply amplitudes by a gain, the rate by its square."""
    return Control(
        f"clients with a gain of {gain:g}",
        experiment=partial(higher_energy_left, scenario.replace(gain_mean=gain), rule),
    )


_COMMON: dict[str, Any] = {
    "fidelity": "spectral",
    "statistic": "$t$-th root of the mean energy after $t$ rounds relative to the initial one",
    "quantities": HIGHER,
    "assumptions": "uniform cohorts without replacement, equal samples, common gain, fixed basis",
}
_STATISTICAL: dict[str, Any] = {"first": 16_000, "cap": 256_000}
_ZERO, _CARRY = (SPARSE.replace(empty_partition=policy) for policy in ("zero", "carry"))

COHORT_CLAIMS = (
    Claim(
        id="cohort-rate",
        statement=r"With sampled cohorts FedAvg's mean-energy rate is $q_h = \mathrm{E}[W_h^2]$.",
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
        statement=r"With sampled cohorts zero padding's mean-energy rate is $\mathrm{E}[W_h^4]$.",
        source="ours",
        predict=partial(_rate, "zero_pad", SAMPLED_PAD),
        experiment=partial(higher_energy_left, SAMPLED_PAD, "zero_pad"),
        control=Control(
            "the fourth power of coverage, as if the cohort did not vary",
            partial(_power_of_coverage, SAMPLED_PAD, 4),
        ),
        near=_gain(SAMPLED_PAD, "zero_pad", 1.035),
        estimator=root_of_mean(SAMPLED_PAD.rounds),
        **_STATISTICAL,
        **_COMMON,
    ),
    Claim(
        id="raflora-zero-cohort",
        statement="raFLoRA that drops empty partitions still collapses, at rate $1 - P_{0,h}$.",
        source="ours",
        predict=partial(_rate, "raflora", _ZERO),
        experiment=partial(higher_energy_left, _ZERO, "raflora"),
        control=Control(
            "no loss, as with empty partitions carried over", partial(_rate, "raflora", _CARRY)
        ),
        near=_gain(_ZERO, "raflora", 1.035),
        estimator=root_of_mean(SPARSE.rounds),
        **_STATISTICAL,
        **_COMMON,
    ),
    Claim(
        id="raflora-carry-flat",
        statement="raFLoRA that carries empty partitions over does not collapse, even in small "
        "cohorts.",
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
        **{
            **_COMMON,
            "statistic": "$t$-th root of the energy after $t$ rounds relative to the initial one",
        },
    ),
)


# Non-IID clients: the floors at which drift holds the energies, and the approach to them

BURN_IN = 60
# Four directions per partition with equal starts: their mean measures the partition.
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
# One round of noise, of persistent gains, and of the sampling of a cohort.
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


def _floor(rule: str) -> Prediction:
    floor = closed_form.energy_floor(NON_IID, rule)
    return Prediction.within(per_partition(floor, NON_IID), FLOOR_MARGIN)


def predicted_trajectory(rule: str) -> Array:
    """Return the predicted mean energy of each partition from round 1 on, (T, M)."""
    return per_partition(closed_form.energy_trajectory(TRAJECTORY, rule), NON_IID)[1:]


def _floor_claim(rule: str, other: str) -> Claim:
    return Claim(
        id=f"floor-{rule}",
        statement=f"Drift holds the energies under {rule_name(rule)} at the floor "
        r"$\delta^2 / (1 - q')$.",
        source="arXiv 2602.13486, App. B (order of the floor); ours (its value)",
        assumptions="independent gains of mean $g$, drifts of mean 0, uniform cohorts, fixed basis",
        fidelity="spectral",
        statistic="mean energy of a direction over the stationary rounds",
        quantities=PARTITIONS,
        predict=partial(_floor, rule),
        experiment=energy_series(NON_IID, rule),
        estimator=stationary_mean(BURN_IN),
        control=Control(f"the floor of {rule_name(other)}", partial(_floor, other)),
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
        statement=f"Under {rule_name(rule)} the mean energy follows the second-moment recursion "
        "every round.",
        source="arXiv 2602.13486, App. B (mean field); ours (exact second moment)",
        assumptions="independent gains of mean $g$, drifts of mean 0, uniform cohorts, fixed basis",
        fidelity="spectral",
        statistic="mean energy of every round relative to its prediction",
        quantities=quantities,
        predict=partial(Prediction.within, np.ones(len(quantities)), TRAJECTORY_MARGIN),
        experiment=relative_trajectory(TRAJECTORY, rule, predicted_trajectory(rule)),
        control=Control(
            f"the trajectory of {rule_name(other)}",
            experiment=relative_trajectory(TRAJECTORY, rule, predicted_trajectory(other)),
        ),
        near=Control(
            "drifts and initial amplitudes 8% larger",
            experiment=relative_trajectory(LARGER, rule, predicted_trajectory(rule)),
        ),
        first=4_000,
        cap=64_000,
    )


def adjacent_correlation(repeated: float) -> Experiment:
    """Product of the standardized energies of runs 2i and 2i + 1, for each kind of draw.

    With a gain of 0 an amplitude is the clients' noise alone. Zero padding draws it client by
    client, the other rules direction by direction; without drifts the cohort is all that is drawn.

    Args:
        repeated: share of the pairs whose second run repeats the first one, for the near control.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        pairs = [number for i in numbers for number in (2 * i, 2 * i + 1)]
        columns = []
        for scenario, rule in DRAWN:
            energy = simulated(scenario, rule, pairs, context).energy.values[:, 1]
            share = energy[:, -1:]  # of the highest direction, which some cohorts do not carry
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
        "successive runs are not correlated.",
        source="ours",
        assumptions="one round, clients who return noise or what they received",
        fidelity="spectral",
        statistic="correlation of the energies of runs $2i$ and $2i + 1$",
        quantities=("aggregate noise", "gains of clients", "cohorts"),
        predict=partial(Prediction.near, [0.0] * len(DRAWN), CORRELATION),
        experiment=adjacent_correlation(0.0),
        control=Control("every run repeated", experiment=adjacent_correlation(1.0)),
        near=Control("17 of 100 runs repeated", experiment=adjacent_correlation(0.17)),
        first=8_000,
        cap=64_000,
    )


FLOOR_CLAIMS = (
    _floor_claim("fedavg", "raflora"),
    _floor_claim("raflora", "fedavg"),
    _trajectory_claim("fedavg", "raflora"),
    _trajectory_claim("raflora", "fedavg"),
    _independence_claim(),
)
