"""Claims on LoRA training as a gradient flow: thresholds, floors above and decay below them.

Clients descend the quadratic loss on their two factors. A round multiplies a small amplitude by
`omega G`, `G = exp(2 M T)`: the server's dilution times the growth by training. Each run has its
own federation with three partitions. Measured values are divided by their predictions (floors vice
versa).

Zero padding, which differs from FedAvg in omega only, is excluded from quick runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claims.base import (
    HIGHER,
    PARTITIONS,
    Claim,
    Control,
    Experiment,
    RunContext,
    by_partition,
    ideal,
    per_partition,
    simulated,
)
from analysis.formats import rule_name
from analysis.stats.intervals import every_run
from analysis.stats.series import bisect, bracketed, log_linear_rate
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks, simulate
from fedlora_sim.engines.draws import client_targets
from fedlora_sim.randomness import stream

# Random federations of clients that fit a target with their factors, and their runs

Array = NDArray[np.float64]

# Plain descent in n steps multiplies a small amplitude by (1 + M T / n)**(2 n) instead of exp(2 M
# T), which changes the flow's threshold by the share M T / (2 n): 0.3% at 150 steps and M T = 0.9,
# the longest training of the claims. Margins of 1% include this and its effect on a floor near its
# threshold, a factor of at most 3.
STEPS = 150
FLOW_MARGIN = 0.01
# Small compared with the target, so that training is linear; large compared with rounding.
TINY = 1e-4
RUNS: dict[str, Any] = {"estimator": every_run, "first": 20, "cap": 20}
DISCRETE = (
    f"clients descend in {STEPS} steps a round, which moves thresholds of the flow by up to 0.3% "
    "and floors near them by up to three times that"
)
"""Reason for the margin `FLOW_MARGIN` of statements about every federation."""
# Targets of near controls relative to the true ones.
FITTED_LARGER = 1.035


def random_federation(seed: int, low: int, middle: int, high: int) -> Scenario:
    """Return three levels with the given numbers of clients, unequal samples and a random target.

    Args:
        seed: seed of levels, samples and target.
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
    """Return the federation with the local time at which `omega G` of a partition is `growth`."""
    time = threshold(scenario, rule)[partition]
    more = np.log(growth) / (2 * scenario.target_amplitude)
    return scenario.replace(local_time=float(time + more))


def with_larger_targets(scenario: Scenario, factor: float = FITTED_LARGER) -> Scenario:
    """Return the scenario with larger amplitudes, at equal rates and `M T`.

    Thresholds, which are times, decrease by the factor, as does the growth of 1/x.
    """
    return scenario.replace(
        target_amplitude=factor * scenario.target_amplitude,
        initial_amplitude=factor * scenario.initial_amplitude,
        local_time=scenario.local_time / factor,
    )


def threshold(scenario: Scenario, rule: str) -> Array:
    """Return the predicted local time below which each partition collapses."""
    return per_partition(closed_form.collapse_threshold(ideal(scenario), rule), scenario)


def flow_rate(scenario: Scenario, rule: str) -> Array:
    """Return the predicted factor per round by which each partition approaches its floor."""
    return per_partition(closed_form.flow_rate(ideal(scenario), rule), scenario)


def flow_floor(scenario: Scenario, rule: str) -> Array:
    """Return the predicted amplitude at which training holds each partition."""
    return per_partition(closed_form.flow_floor(ideal(scenario), rule), scenario)


def dilution(scenario: Scenario, rule: str) -> Array:
    """Return the factor of a round without training on each partition: omega."""
    coverage = closed_form.coverage(scenario)
    return per_partition(closed_form.multiplier(rule, coverage), scenario)


def contributors_mean(scenario: Scenario, targets: Array) -> Array:
    """Return the data-weighted mean target of the carriers of each direction, (r_max,)."""
    weights = scenario.federation.weights[:, None] * scenario.federation.members
    return np.asarray((weights * targets).sum(0) / weights.sum(0))


def amplitudes(dataset: xr.Dataset) -> xr.DataArray:
    """Return the singular values of the global update, without the seed dimension."""
    return np.sqrt(dataset.energy.isel(seed=0))


def mean_inverse(dataset: xr.Dataset) -> Array:
    """Return `1/x` of each round and partition, mean over its directions, (T + 1, M)."""
    return by_partition(1 / amplitudes(dataset)).values


def one_federation_per_run(
    label: str,
    draw: Callable[[int], Scenario],
    rule: str,
    measure: Callable[[Scenario, xr.Dataset], Array],
) -> Experiment:
    """Return an experiment with its own federation per run, simulated once for all measurements.

    Args:
        label: name of the runs; equal labels mean equal runs.
        draw: maps a seed to a scenario.
        rule: server rule.
        measure: maps the scenario and its run to one row of quantities.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        rows = []
        for number, seed in zip(numbers, context.seeds(numbers), strict=True):
            scenario = draw(seed).replace(device=context.device)
            run = context.run_once(f"{label}-{number}", _simulation(scenario, rule, seed, context))
            rows.append(measure(scenario, run))
        return np.array(rows)

    return experiment


def _simulation(
    scenario: Scenario, rule: str, seed: int, context: RunContext
) -> Callable[[], xr.Dataset]:
    return lambda: simulate(scenario, rule=rule, seed=seed, on_progress=context.on_progress)


# Floors, decay and the critical point

FLOOR_ROUNDS, RATE_ROUNDS, CRITICAL_ROUNDS = 24, 10, 12
# At the threshold an error of the growth accumulates over the rounds.
CRITICAL_STEPS = 300
CRITICAL_MARGIN = 0.02
# Near controls: factors on the predicted growth omega G, and on a target at the threshold.
MORE_GROWTH = 1.035
CRITICAL_LARGER = 1.065


def above(rule: str, seed: int) -> Scenario:
    """Return a federation with floors in all partitions.

    `omega G` is 1.7 to 2.2 in the highest.
    """
    growth = stream(seed, "growth_above").uniform(1.7, 2.2)
    scenario = random_federation(seed, 1, 1, 4).replace(rounds=FLOOR_ROUNDS)
    return trained_for_growth(scenario, rule, 2, growth)


def below(rule: str, seed: int) -> Scenario:
    """Return a federation in which partitions 2 and 3 collapse.

    `omega G` is 0.7 to 0.9 in the second.
    """
    growth = stream(seed, "growth_below").uniform(0.7, 0.9)
    scenario = random_federation(seed, 4, 2, 2)
    scenario = scenario.replace(rounds=RATE_ROUNDS, initial_amplitude=TINY)
    return trained_for_growth(scenario, rule, 1, growth)


def critical(share: float, rule: str, seed: int) -> Scenario:
    """Return a federation whose second partition is at this share of its critical local time."""
    scenario = random_federation(seed, 2, 2, 2)
    scenario = trained_for_growth(scenario, rule, 1, 1.0)
    return scenario.replace(
        rounds=CRITICAL_ROUNDS,
        local_time=share * scenario.local_time,
        local_steps=CRITICAL_STEPS,
    )


def held(rule: str, instead: str, larger: float = 1.0) -> Experiment:
    """Return the predicted floor of each partition over its amplitude after the last round.

    The inverse would divide by zero for a rule without a floor.

    Args:
        rule: the simulated rule.
        instead: the rule whose floor is predicted.
        larger: factor on the targets of the prediction.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        last = by_partition(amplitudes(run)).values[-1]
        return flow_floor(with_larger_targets(scenario, larger), instead) / last

    return one_federation_per_run(f"flow-above-{rule}", partial(above, rule), rule, measure)


def approach(rule: str, *, swapped: bool = False, more: float = 1.0) -> Experiment:
    """Return the factor by which `1/x` approaches its limit, relative to the prediction.

    Differences of successive rounds decrease by the same factor, and do not require the floor.

    Args:
        rule: the rule.
        swapped: divide by the inverse prediction.
        more: factor on the predicted growth omega G.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        steps = np.abs(np.diff(mean_inverse(run)[: RATE_ROUNDS + 1, 1:], axis=0))
        predicted = flow_rate(scenario, rule)[1:] / more
        return log_linear_rate(steps.T) / (1 / predicted if swapped else predicted)

    return one_federation_per_run(f"flow-above-{rule}", partial(above, rule), rule, measure)


def decay(rule: str, *, trained: bool = True, more: float = 1.0) -> Experiment:
    """Return the amplitude factor per round of partitions 2 and 3 relative to the prediction.

    Args:
        rule: the rule.
        trained: predict omega G; else omega alone.
        more: factor on the prediction.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        x = by_partition(amplitudes(run)).values[:, 1:]
        predicted = flow_rate(scenario, rule) if trained else dilution(scenario, rule)
        return log_linear_rate(x.T) / (more * predicted[1:])

    return one_federation_per_run(f"flow-below-{rule}", partial(below, rule), rule, measure)


def critical_slope(rule: str, share: float, larger: float = 1.0) -> Experiment:
    """Return the growth of `1/x` per round, early and late, relative to `(G - 1) / M`.

    The federation is at a share of the critical point.

    Args:
        rule: the rule.
        share: share of the critical local time for which clients train.
        larger: factor on the target M of the prediction.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        y, half = mean_inverse(run)[:, 1], CRITICAL_ROUNDS // 2
        slopes = np.array([y[half] - y[0], y[-1] - y[half]]) / half
        growth = 1 / dilution(scenario, rule)[1]
        return slopes / ((growth - 1) / (larger * scenario.target_amplitude))

    label = f"flow-critical-{rule}-{share}"
    return one_federation_per_run(label, partial(critical, share, rule), rule, measure)


CRITICAL_DISCRETE = (
    f"clients descend in {CRITICAL_STEPS} steps a round instead of along the flow, and errors of "
    "the growth add up over the rounds"
)


def _over(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"measured / predicted, {name}" for name in names)


_FLOW: dict[str, Any] = {
    "source": "ours",
    "fidelity": "matrix",
    "assumptions": "quadratic loss with a target on the common basis, balanced factors, "
    f"{STEPS} plain steps a round, full participation",
    "wide_because": DISCRETE,
    **RUNS,
}


def _floor_claim(rule: str, other: str) -> Claim:
    return Claim(
        id=f"flow-floor-{rule.replace('_', '-')}",
        statement=f"Above the threshold training under {rule_name(rule)} holds every partition at "
        r"the floor $M (\omega G - 1) / (G - 1)$.",
        statistic=f"floor relative to the amplitude after {FLOOR_ROUNDS} rounds, for every "
        "federation",
        quantities=tuple(f"predicted / measured, {name}" for name in PARTITIONS),
        predict=partial(Prediction.within, np.ones(len(PARTITIONS)), FLOW_MARGIN),
        experiment=held(rule, rule),
        control=Control(f"the floor of {rule_name(other)}", experiment=held(rule, other)),
        near=Control(
            f"the floor of targets {FITTED_LARGER - 1:.1%} larger",
            experiment=held(rule, rule, FITTED_LARGER),
        ),
        scenario=partial(above, rule),
        in_quick=rule != "zero_pad",
        **_FLOW,
    )


def _above_claim(rule: str) -> Claim:
    return Claim(
        id=f"flow-rate-above-{rule.replace('_', '-')}",
        statement=f"Above the threshold $1/x$ approaches its limit under {rule_name(rule)} by a "
        r"factor $1 / (\omega G)$ per round.",
        statistic="factor per round of the steps of $1/x$, by log-linear fit, over the prediction",
        quantities=_over(HIGHER),
        predict=partial(Prediction.within, np.ones(len(HIGHER)), FLOW_MARGIN),
        experiment=approach(rule),
        control=Control(
            r"the factor below the threshold, $\omega G$", experiment=approach(rule, swapped=True)
        ),
        near=Control(
            rf"a growth $\omega G$ that is {MORE_GROWTH - 1:.1%} larger",
            experiment=approach(rule, more=MORE_GROWTH),
        ),
        scenario=partial(above, rule),
        in_quick=rule != "zero_pad",
        **_FLOW,
    )


def _below_claim(rule: str) -> Claim:
    return Claim(
        id=f"flow-rate-below-{rule.replace('_', '-')}",
        statement=f"Below the threshold amplitudes under {rule_name(rule)} decay by "
        r"$\omega G$ per round.",
        statistic="amplitude factor per round, by log-linear fit, over the prediction",
        quantities=_over(HIGHER),
        predict=partial(Prediction.within, np.ones(len(HIGHER)), FLOW_MARGIN),
        experiment=decay(rule),
        control=Control(
            r"$\omega$ alone, as if clients did not train", experiment=decay(rule, trained=False)
        ),
        near=Control(
            rf"a growth $\omega G$ that is {MORE_GROWTH - 1:.1%} larger",
            experiment=decay(rule, more=MORE_GROWTH),
        ),
        scenario=partial(below, rule),
        in_quick=rule != "zero_pad",
        **_FLOW,
    )


def _critical_claim(rule: str) -> Claim:
    assumptions = _FLOW["assumptions"].replace(str(STEPS), str(CRITICAL_STEPS))
    return Claim(
        id=f"flow-critical-{rule.replace('_', '-')}",
        statement=rf"At $\omega G = 1$ amplitudes under {rule_name(rule)} fall like $1/t$: $1/x$ "
        "grows by $(G - 1) / M$ in every round.",
        statistic="mean growth of $1/x$ per round, over the prediction",
        quantities=_over(("first half of the rounds", "second half")),
        predict=partial(Prediction.within, np.ones(2), CRITICAL_MARGIN),
        experiment=critical_slope(rule, 1.0),
        control=Control(
            "local time 10% below the critical one, where the decay is geometric",
            experiment=critical_slope(rule, 0.9),
        ),
        near=Control(
            f"the growth of targets {CRITICAL_LARGER - 1:.1%} larger",
            experiment=critical_slope(rule, 1.0, CRITICAL_LARGER),
        ),
        scenario=partial(critical, 1.0, rule),
        in_quick=False,
        **{**_FLOW, "assumptions": assumptions, "wide_because": CRITICAL_DISCRETE},
    )


FLOW_CLAIMS = (
    _floor_claim("fedavg", "zero_pad"),
    _floor_claim("zero_pad", "fedavg"),
    _floor_claim("raflora", "fedavg"),
    _below_claim("fedavg"),
    _below_claim("zero_pad"),
    _above_claim("fedavg"),
    _above_claim("zero_pad"),
    _above_claim("raflora"),
    _critical_claim("fedavg"),
    _critical_claim("zero_pad"),
)


# Heterogeneous clients: random cohorts with one target, and different targets per client

# 8 of 12 clients carry the second partition, so that each cohort has at least 3 of them. A cohort
# without carriers would make 1/x infinite, and cohorts with few would dominate its mean. This is
# stronger under zero padding, which squares their share, so that it draws 9 clients instead of 7.
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
# Far enough below the targets for the rounds of growth, in which the targets have most effect.
START = 0.01
# Local time relative to the threshold of the highest partition, and its minimum in units of
# 1/target.
BEYOND_THRESHOLD, LEAST_TIME = 1.6, 0.9
TARGET_ROUNDS, SHOWN_ROUNDS = 16, (2, 16)
# Rounds of growth accumulate the error of the steps, (M T)**2 / n each: 0.5% per round.
TARGET_STEPS = 200
TARGET_MARGIN = 0.02
# Targets of near controls relative to the true ones.
LARGER = 1.065


def harmonic_mean(rule: str, cohort_size: int | None, larger: float = 1.0) -> Array:
    """Return the predicted `1/E[1/x]` of the second partition after each round.

    Args:
        rule: the rule.
        cohort_size: clients per round; None assumes that each cohort has exactly the mean share of
            contributors.
        larger: factor on all amplitudes, including targets.
    """
    cohorts = COHORT.replace(cohort_size=cohort_size)
    return closed_form.flow_trajectory(with_larger_targets(cohorts, larger), rule)[1:, -1]


def inverse_over(rule: str, predicted: Array) -> Experiment:
    """Return `1/x` of the second partition at each round times the predicted harmonic mean."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(COHORTS[rule], rule, numbers, context).energy).values
        return predicted / np.sqrt(energy[:, 1:, -1])

    return experiment


def own_targets(rule: str, seed: int) -> Scenario:
    """Return a random federation above the threshold, with different targets per client.

    Clients of lower rank get the larger targets, so that directions keep their order, and with it
    the clients to which an SVD sends them.
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
    longest = closed_form.collapse_threshold(ideal(scenario), rule, target=targets).max()
    shortest = LEAST_TIME / scenario.target_amplitude
    return scenario.replace(local_time=float(max(BEYOND_THRESHOLD * longest, shortest)))


def trajectory_of(rule: str, scenario: Scenario, targets: Array) -> Array:
    """Return the predicted amplitude of each partition and round, (T + 1, M)."""
    amplitude = closed_form.flow_trajectory(ideal(scenario), rule, target=targets)
    return per_partition(amplitude, scenario)


def own_trajectory(rule: str, *, mean_target: bool = False, larger: float = 1.0) -> Experiment:
    """Return predicted over measured amplitudes of each partition's last direction at some rounds.

    Args:
        rule: the rule.
        mean_target: predict with the contributors' mean target for all clients.
        larger: factor on all amplitudes of the prediction, including targets.
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
        statement=f"With sampled cohorts under {rule_name(rule)} the harmonic mean of the "
        "amplitude over runs follows its closed form in every round.",
        source="ours",
        assumptions="quadratic loss with one target on the common basis, gradient flow, uniform "
        "cohorts that always hold a contributor",
        fidelity="spectral",
        statistic="mean of $1/x$ over runs times the predicted harmonic mean",
        quantities=tuple(f"partition 2, round {t}" for t in range(1, COHORT.rounds + 1)),
        predict=partial(Prediction.within, np.ones(COHORT.rounds), COHORT_MARGIN),
        experiment=inverse_over(rule, harmonic_mean(rule, COHORTS[rule].cohort_size)),
        control=Control(
            "the mean share of contributors in every cohort",
            experiment=inverse_over(rule, harmonic_mean(rule, None)),
        ),
        near=Control(
            f"amplitudes and targets {LARGER - 1:.1%} larger",
            experiment=inverse_over(rule, harmonic_mean(rule, COHORTS[rule].cohort_size, LARGER)),
        ),
        first=16_000,
        cap=64_000,
    )


def _targets_claim(rule: str) -> Claim:
    quantities = tuple(f"round {t}, {name}" for t in SHOWN_ROUNDS for name in PARTITIONS)
    return Claim(
        id=f"flow-targets-{rule.replace('_', '-')}",
        statement=f"If clients have different targets, every partition under {rule_name(rule)} "
        "follows the predicted amplitudes to the predicted floor.",
        source="ours",
        assumptions="quadratic loss, persistent targets on the common basis, the larger ones with "
        f"clients of lower rank, balanced factors, {TARGET_STEPS} plain steps a round, full "
        "participation",
        fidelity="matrix",
        statistic="predicted amplitude of a partition's last direction over the measured one, for "
        "every federation",
        quantities=quantities,
        predict=partial(Prediction.within, np.ones(len(quantities)), TARGET_MARGIN),
        experiment=own_trajectory(rule),
        control=Control(
            "one target for all, the contributors' mean",
            experiment=own_trajectory(rule, mean_target=True),
        ),
        near=Control(
            f"amplitudes and targets {LARGER - 1:.1%} larger",
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


FLOW_COHORT_CLAIMS = (
    _cohort_claim("fedavg"),
    _cohort_claim("zero_pad"),
    _targets_claim("fedavg"),
    _targets_claim("raflora"),
)


# The phase transition: the local time at which training balances dilution, by bisection.
#
# Below the threshold every amplitude vanishes, above it the smallest one grows. A run starts from
# an amplitude far below the target, where a round multiplies every amplitude by the same factor,
# and is above the threshold if one round increases the amplitude.
#
# Quick runs search for FedAvg's threshold only, because searches are long.

Predicted = Callable[[Scenario, str, int], Array]

# The search does not use the prediction: it begins with this range of M T, M the mean target, and
# ends with a bracket of this relative width.
SEARCHED = (0.02, 4.0)
BRACKET = 0.004
SEARCHED_TARGET_STD = 0.5
# Very short training: a thousandth of the time to learn a target of 1.
SHORT = 1e-3


def alike(seed: int) -> Scenario:
    """Return a random federation whose clients share one target."""
    return random_federation(seed, 2, 2, 2).replace(rounds=1, initial_amplitude=TINY)


def unlike(seed: int) -> Scenario:
    """Return a larger random federation whose clients have targets spread by half their mean."""
    large = random_federation(seed, 16, 8, 8)
    return large.replace(rounds=1, initial_amplitude=TINY, target_std=SEARCHED_TARGET_STD)


def found_threshold(rule: str, draw: Callable[[int], Scenario], predicted: Predicted) -> Experiment:
    """Return brackets of the thresholds of partitions 2 and 3 over predicted ones, (n, 2, 2)."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        rows = []
        for number, seed in zip(numbers, context.seeds(numbers), strict=True):
            scenario = draw(seed).replace(device=context.device)
            label = f"threshold-{draw.__name__}-{rule}-{number}"
            wanted = predicted(scenario, rule, seed)[1:, None]
            found = context.run_once(label, partial(_search, scenario, rule, seed))
            rows.append(found.bracket.values / wanted)
            context.on_progress(1)
        return np.array(rows)

    return experiment


def _search(scenario: Scenario, rule: str, seed: int) -> xr.Dataset:
    low, high = np.log(np.array(SEARCHED) / scenario.target_amplitude)
    brackets = [
        bisect(partial(_grows, scenario, rule, seed, h), low, high, BRACKET) for h in (1, 2)
    ]
    return xr.Dataset({"bracket": (("partition", "end"), np.exp(brackets))})


def _grows(scenario: Scenario, rule: str, seed: int, partition: int, log_time: float) -> bool:
    trained = scenario.replace(local_time=float(np.exp(log_time)))
    x = by_partition(amplitudes(simulate(trained, rule=rule, seed=seed))).values[:, partition]
    return bool(x[-1] > x[0])


def threshold_of_mean(scenario: Scenario, rule: str, seed: int) -> Array:
    """Return the threshold if all clients have the mean target of a direction's contributors."""
    mean = contributors_mean(scenario, client_targets(scenario, seed))
    return _threshold_of_targets(scenario, rule, mean)


def threshold_of_each(scenario: Scenario, rule: str, seed: int) -> Array:
    """Return the threshold of clients with different targets."""
    return _threshold_of_targets(scenario, rule, client_targets(scenario, seed))


def threshold_of_other(scenario: Scenario, rule: str, seed: int) -> Array:
    """Return the threshold of the other one of the two rules."""
    return threshold(scenario, "zero_pad" if rule == "fedavg" else "fedavg")


def _threshold_alike(scenario: Scenario, rule: str, seed: int) -> Array:
    return threshold(scenario, rule)


def threshold_of_larger(scenario: Scenario, rule: str, seed: int) -> Array:
    """Return the threshold of clients with a slightly larger common target."""
    return threshold(with_larger_targets(scenario), rule)


def threshold_of_larger_each(scenario: Scenario, rule: str, seed: int) -> Array:
    """Return the threshold of clients with different targets, each slightly larger."""
    targets = FITTED_LARGER * client_targets(scenario, seed)
    return _threshold_of_targets(scenario, rule, targets)


def _threshold_of_targets(scenario: Scenario, rule: str, targets: Array) -> Array:
    found = closed_form.collapse_threshold(ideal(scenario), rule, target=targets)
    return per_partition(found, scenario)


def trained_shortly(seed: int) -> Scenario:
    """Return a random federation with very short training."""
    return alike(seed).replace(local_time=SHORT)


def growth_of_short_training(rule: str, larger: float = 1.0) -> Experiment:
    """Return the log of a round's amplitude factor under short training, over that of training.

    Args:
        rule: the rule.
        larger: factor on the target of the prediction.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        x = by_partition(amplitudes(run)).values[:, 1:]
        return np.log(x[-1] / x[0]) / (2 * larger * scenario.target_amplitude * SHORT)

    return one_federation_per_run(f"short-training-{rule}", trained_shortly, rule, measure)


_UNITY = partial(Prediction.within, np.ones(len(HIGHER)), FLOW_MARGIN)
_THRESHOLD: dict[str, Any] = {
    "source": "ours",
    "fidelity": "matrix",
    "assumptions": f"quadratic loss, targets on the common basis, balanced factors, {STEPS} plain "
    "steps a round, full participation",
}
_BRACKETS: dict[str, Any] = {
    "statistic": "local time at which a small amplitude neither grows nor falls, by bisection to "
    f"{BRACKET:.1%}, over the prediction, for every federation; includes the brackets' width",
    "quantities": tuple(f"measured / predicted, {name}" for name in HIGHER),
    "predict": _UNITY,
    **_THRESHOLD,
    **RUNS,
    "estimator": bracketed,
    "wide_because": f"{DISCRETE}; a bracket has a width",
}


def _threshold_claim(rule: str, other: str) -> Claim:
    return Claim(
        id=f"flow-threshold-{rule.replace('_', '-')}",
        statement=f"Under {rule_name(rule)} a partition collapses exactly if clients train for "
        r"less than $T^\ast = \ln(1/\omega) / (2 M)$.",
        experiment=found_threshold(rule, alike, _threshold_alike),
        control=Control(
            f"the threshold of {rule_name(other)}",
            experiment=found_threshold(rule, alike, threshold_of_other),
        ),
        near=Control(
            f"the threshold of targets {FITTED_LARGER - 1:.1%} larger",
            experiment=found_threshold(rule, alike, threshold_of_larger),
        ),
        scenario=alike,
        in_quick=rule == "fedavg",
        **_BRACKETS,
    )


THRESHOLD_CLAIMS = (
    _threshold_claim("fedavg", "zero_pad"),
    _threshold_claim("zero_pad", "fedavg"),
    Claim(
        id="flow-raflora-no-threshold",
        statement="Under raFLoRA no training is too short: small amplitudes grow by "
        r"$\exp(2 M T)$ for any $T$, without dilution.",
        statistic=f"log of the amplitude factor of a round with $T = {SHORT:g}$, over $2 M T$, for "
        "every federation",
        quantities=tuple(f"measured / predicted, {name}" for name in HIGHER),
        predict=_UNITY,
        experiment=growth_of_short_training("raflora"),
        control=Control("FedAvg instead", experiment=growth_of_short_training("fedavg")),
        near=Control(
            f"the growth of targets {FITTED_LARGER - 1:.1%} larger",
            experiment=growth_of_short_training("raflora", FITTED_LARGER),
        ),
        scenario=trained_shortly,
        wide_because="the growth of an amplitude is linear in it only while it is small relative "
        "to its target",
        **_THRESHOLD,
        **RUNS,
    ),
    Claim(
        id="flow-threshold-targets",
        statement="With targets $M_k$ that differ between clients FedAvg needs less training, by "
        r"Jensen's inequality: $T^\ast$ solves $\sum_{k \in C} p_k \exp(2 M_k T) = 1$.",
        experiment=found_threshold("fedavg", unlike, threshold_of_each),
        control=Control(
            "the threshold of the contributors' mean target",
            experiment=found_threshold("fedavg", unlike, threshold_of_mean),
        ),
        near=Control(
            f"the threshold of targets {FITTED_LARGER - 1:.1%} larger each",
            experiment=found_threshold("fedavg", unlike, threshold_of_larger_each),
        ),
        scenario=unlike,
        in_quick=False,  # large federations, searched one by one
        **_BRACKETS,
    ),
)
