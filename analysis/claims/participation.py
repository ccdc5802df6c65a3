"""Claims on the typical run, extinction and survival, and on lower participation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis import closed_form
from analysis.claims.base import (
    HIGHER,
    Claim,
    Control,
    Experiment,
    RunContext,
    above_shared,
    by_partition,
    higher_energy_left,
    simulated,
)
from analysis.stats.intervals import (
    cdf_distance,
    mapped,
    mean_interval,
    over_survivors,
    proportion_interval,
)
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

# The typical run: its rate, its spread, the shape of both, and its end.
#
# The logarithm of a direction's energy is a random walk with steps `2 log W` that ends in the first
# round without a carrier of the direction. The mean energy follows `E[W^2]`, which few lucky runs
# dominate; a typical surviving run follows `exp(2 E[log W | W > 0])`.

Array = NDArray[np.float64]

RANKS = parse_ranks("2x8,4x6,8x6")
RANDOM_WALK = Scenario(ranks=RANKS, cohort_size=8, rounds=20)
# Long enough that the sum of the steps looks normal, short enough that a third of the runs survive.
LONG_RANDOM_WALK = RANDOM_WALK.replace(rounds=40)
# 3 of 20 clients: the highest partition has no carrier in a third of the rounds.
SPARSE = Scenario(ranks=RANKS, cohort_size=3, rounds=25, empty_partition="zero")
MARGIN = 0.02
SPREAD_MARGIN = 0.03
DISTANCE = 0.03
NORMAL_DISTANCE = 0.05
# Near controls: gains that change a rate by 7%, and a shift of a normal distribution.
NEAR_GAIN, NEAR_SHIFT = 1.035, 0.45


def log_energy(scenario: Scenario, rule: str, numbers: Sequence[int], context: RunContext) -> Array:
    """Return logarithm of final over initial energy above the shared partition, NaN where lost."""
    energy = by_partition(simulated(scenario, rule, numbers, context).energy).values[:, :, 1:]
    share = energy[:, -1] / energy[:, 0]
    return np.asarray(np.log(np.where(share > 0, share, np.nan)), dtype=np.float64)


def log_rate(scenario: Scenario, rule: str) -> Experiment:
    """Return the mean step of the random walk, one row per run."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        return log_energy(scenario, rule, numbers, context) / scenario.rounds

    return experiment


def squared_deviation(scenario: Scenario, rule: str) -> Experiment:
    """Return the squared distance of the walk's end from its predicted mean."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        return (log_energy(scenario, rule, numbers, context) - _mean_log(scenario, rule)) ** 2

    return experiment


def standardized(scenario: Scenario, rule: str, rate: Array, shift: float = 0.0) -> Experiment:
    """Return the standardized end of the walk, minus `shift`.

    The end minus `rounds * log(rate)`, in predicted standard deviations.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        walk = log_energy(scenario, rule, numbers, context)
        return (walk - scenario.rounds * np.log(rate)) / _std_log(scenario, rule) - shift

    return experiment


def extinction_round(scenario: Scenario, rule: str) -> Experiment:
    """Return the first round after which a partition is zero; one past the last if it survives."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).energy).values[:, 1:, 1:]
        return 1.0 + (energy > 0).sum(axis=1)

    return experiment


def _mean_log(scenario: Scenario, rule: str) -> Array:
    rate = closed_form.typical_rate(scenario, rule)
    return scenario.rounds * np.log(above_shared(rate, scenario))


def _std_log(scenario: Scenario, rule: str) -> Array:
    return above_shared(closed_form.log_energy_std(scenario, rule)[-1], scenario)


def typical(scenario: Scenario, rule: str) -> Array:
    """Return the predicted typical rates above the shared partition."""
    return np.exp(_mean_log(scenario, rule) / scenario.rounds)


def mean_energy(scenario: Scenario, rule: str) -> Array:
    """Return the predicted mean-energy rates above the shared partition."""
    return above_shared(closed_form.energy_rate(scenario, rule), scenario)


def _typical_rate(rule: str) -> Prediction:
    return Prediction.within(typical(RANDOM_WALK, rule), MARGIN)


def _mean_rate(rule: str) -> Prediction:
    return Prediction.within(mean_energy(RANDOM_WALK, rule), MARGIN)


def _spread(factor: float) -> Prediction:
    return Prediction.within(factor * _std_log(RANDOM_WALK, "fedavg"), SPREAD_MARGIN)


def _extinction_laws(scenario: Scenario) -> list[Callable[[Array], Array]]:
    loss = closed_form.extinction_probability(scenario)
    return [stats.geom(p).cdf for p in above_shared(loss, scenario)]


_ASSUMPTIONS = "uniform cohorts without replacement, equal samples, common gain, fixed basis"
_TYPICAL: dict[str, Any] = {
    "source": "ours",
    "assumptions": _ASSUMPTIONS,
    "fidelity": "spectral",
    "quantities": HIGHER,
}
_RUNS: dict[str, Any] = {"first": 8_000, "cap": 64_000}
_RATE: dict[str, Any] = {
    "statistic": "exponential of the mean step of the log energy, over surviving runs",
    "estimator": mapped(over_survivors(mean_interval), np.exp),
}


def _typical_claim(rule: str, name: str, statement: str) -> Claim:
    return Claim(
        id=f"typical-rate-{name}",
        statement=statement,
        predict=partial(_typical_rate, rule),
        experiment=log_rate(RANDOM_WALK, rule),
        control=Control("the rate of the mean energy", partial(_mean_rate, rule)),
        near=Control(
            f"clients with a gain of {NEAR_GAIN:g}",
            experiment=log_rate(RANDOM_WALK.replace(gain_mean=NEAR_GAIN), rule),
        ),
        **_RATE,
        **_RUNS,
        **_TYPICAL,
    )


TYPICAL_CLAIMS = (
    _typical_claim(
        "fedavg",
        "fedavg",
        "A typical run under FedAvg loses energy at rate "
        r"$\exp(2 \mathrm{E}[\log W \mid W \gt 0])$, faster than the mean over runs.",
    ),
    _typical_claim(
        "zero_pad",
        "zero-pad",
        "A typical run under zero padding loses energy at rate "
        r"$\exp(4 \mathrm{E}[\log W \mid W \gt 0])$.",
    ),
    Claim(
        id="log-energy-spread",
        statement="The log energy of surviving runs spreads like a random walk, with standard "
        r"deviation $2 \sqrt{t \mathrm{Var}[\log W \mid W \gt 0]}$.",
        statistic="root mean square distance of the log energy from its predicted mean",
        predict=partial(_spread, 1.0),
        experiment=squared_deviation(RANDOM_WALK, "fedavg"),
        control=Control("the spread of half as many rounds", partial(_spread, 0.5**0.5)),
        near=Control(
            f"the spread of {RANDOM_WALK.rounds * 5 // 4} rounds",
            partial(_spread, 1.25**0.5),
        ),
        estimator=mapped(over_survivors(mean_interval), np.sqrt),
        **_RUNS,
        **_TYPICAL,
    ),
    Claim(
        id="log-normal",
        statement="After many rounds the energies of surviving runs are close to log-normal around "
        "the typical rate.",
        statistic=f"largest distance of the distribution of log energies after "
        f"{LONG_RANDOM_WALK.rounds} rounds from the predicted normal one",
        predict=partial(Prediction.near, [0.0] * len(HIGHER), NORMAL_DISTANCE),
        experiment=standardized(LONG_RANDOM_WALK, "fedavg", typical(LONG_RANDOM_WALK, "fedavg")),
        control=Control(
            "log-normal around the rate of the mean energy",
            experiment=standardized(
                LONG_RANDOM_WALK, "fedavg", mean_energy(LONG_RANDOM_WALK, "fedavg")
            ),
        ),
        near=Control(
            f"log-normal around a mean that is {NEAR_SHIFT:g} standard deviations higher",
            experiment=standardized(
                LONG_RANDOM_WALK, "fedavg", typical(LONG_RANDOM_WALK, "fedavg"), NEAR_SHIFT
            ),
        ),
        estimator=over_survivors(cdf_distance(stats.norm.cdf)),
        **_RUNS,
        **_TYPICAL,
    ),
    Claim(
        id="extinction-law",
        statement="A direction survives $t$ rounds with probability $(1 - P_0)^t$: the round of "
        "its extinction has a geometric distribution.",
        statistic="largest distance of the distribution of extinction rounds from the predicted "
        "one",
        predict=partial(Prediction.near, [0.0] * len(HIGHER), DISTANCE),
        experiment=extinction_round(SPARSE, "fedavg"),
        control=Control(
            "raFLoRA that carries empty partitions over",
            experiment=extinction_round(SPARSE.replace(empty_partition="carry"), "raflora"),
        ),
        near=Control(
            "40 clients, of which 23 carry the second partition and 10 the third",
            experiment=extinction_round(SPARSE.replace(ranks="2x17,4x13,8x10"), "fedavg"),
        ),
        estimator=cdf_distance(_extinction_laws(SPARSE), integer=True, horizon=SPARSE.rounds),
        **_RUNS,
        **_TYPICAL,
    ),
)


# Does lower participation make the geometric factor more severe? Four separate statements.
#
# The public review of the paper conjectures that it does. "The factor" may mean that of the mean
# energy, that of a typical surviving run, or the remaining energy of a typical run; they disagree.

# Two rounds: over more of them few lucky runs would dominate the mean of the smallest cohorts.
ALL = Scenario(ranks=RANKS, rounds=2)
MODERATE = ALL.replace(cohort_size=8)
TINY = ALL.replace(cohort_size=3)
LARGE = ALL.replace(cohort_size=12)
ONE = ALL.replace(cohort_size=1)
LESS = ((ALL, MODERATE), (MODERATE, TINY))
# Unit of the distance from a bound: a share of a predicted mean, or of the bound.
SCALE = 0.05
LONG = 10


def over_predicted(*scenarios: Scenario) -> Experiment:
    """Return the remaining energy above the shared partition relative to its predicted mean."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        kept = [
            higher_energy_left(scenario, "fedavg", numbers, context) / _mean_left(scenario)
            for scenario in scenarios
        ]
        return np.concatenate(kept, axis=1)

    return experiment


def _mean_left(scenario: Scenario, gain: float = 1.0) -> Array:
    """Return the predicted mean remaining energy above the shared partition for a gain."""
    rate = closed_form.energy_rate(scenario, "fedavg")
    return (above_shared(rate, scenario) * gain**2) ** scenario.rounds


def _ratios(*pairs: tuple[Scenario, Scenario], gain: float = 1.0) -> Array:
    """Return the predicted mean energy of the first of each pair relative to that of the second."""
    return np.concatenate([_mean_left(one, gain) / _mean_left(other) for one, other in pairs])


def fell_below(rule: str, *, half: bool = False) -> Experiment:
    """Return whether a run has less energy than FedAvg under full participation.

    Args:
        rule: rule of the runs at lower participation.
        half: every second run has full participation, and therefore equal energy.
    """
    everybody = full_rate() ** LONG

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        left = [
            higher_energy_left(scenario.replace(rounds=LONG), rule, numbers, context)
            for scenario in (LARGE, MODERATE)
        ]
        if half:
            left = [np.where(np.arange(len(x))[:, None] % 2, everybody, x) for x in left]
        return np.concatenate([energy < everybody for energy in left], axis=1).astype(np.float64)

    return experiment


def full_rate() -> Array:
    """Return the energy rates under full participation, above the shared partition.

    These are the squared coverages.
    """
    return above_shared(closed_form.energy_rate(ALL, "fedavg"), ALL)


_COMMON: dict[str, Any] = {
    "source": "public review of arXiv 2602.13486 (conjecture); ours (its parts)",
    "assumptions": "uniform cohorts without replacement, equal samples, common gain, fixed basis",
    "fidelity": "spectral",
    "first": 8_000,
    "cap": 64_000,
}
_MEAN: dict[str, Any] = {
    "statistic": f"mean energy left after {ALL.rounds} rounds relative to its prediction, compared "
    "with what is left at the higher participation",
    **_COMMON,
}


def _at_most(bound: Array) -> Prediction:
    return Prediction.at_most(bound, SCALE * bound)


def _typical_conjecture(
    name: str, scenario: Scenario, few: Scenario, who: str, positive: Control | None = None
) -> Claim:
    return Claim(
        id=f"review-participation-typical-{name}",
        statement=f"Lower participation makes the factor of a typical surviving run more severe: "
        f"with {who} it is below coverage squared.",
        statistic="exponential of the mean step of the log energy, over surviving runs",
        quantities=HIGHER,
        predict=lambda: _at_most(full_rate()),
        experiment=log_rate(scenario, "fedavg"),
        control=Control(f"{few.cohort_size} of 20 clients", experiment=log_rate(few, "fedavg")),
        near=Control(
            "the typical rate of clients with a gain of 0.92 as the bound",
            lambda: _at_most(0.92**2 * typical(scenario, "fedavg")),
        ),
        positive=positive,
        estimator=mapped(over_survivors(mean_interval), np.exp),
        kind="conjecture",
        **_COMMON,
    )


PARTICIPATION_CLAIMS = (
    Claim(
        id="participation-mean-milder",
        statement="Lower participation makes the factor of the mean energy milder: with 8 of 20 "
        "clients more energy remains than with all, and with 3 more than with 8.",
        quantities=tuple(
            f"{pair}, {p}"
            for pair in ("8 against 20 clients", "3 against 8 clients")
            for p in HIGHER
        ),
        predict=lambda: Prediction.at_least(_ratios(*LESS), SCALE),
        experiment=over_predicted(MODERATE, TINY),
        control=Control(
            "high and low participation exchanged",
            lambda: Prediction.at_least(1 / _ratios(*LESS), SCALE),
            over_predicted(ALL, MODERATE),
        ),
        near=Control(
            "the mean energy of clients with a gain of 1.04 as the bound",
            lambda: Prediction.at_least(
                _ratios((MODERATE, MODERATE), (TINY, TINY), gain=1.04), SCALE
            ),
        ),
        **_MEAN,
    ),
    Claim(
        id="review-participation-mean",
        statement="Lower participation makes the factor of the mean energy more severe.",
        quantities=HIGHER,
        predict=lambda: Prediction.at_most(_ratios((ALL, MODERATE)), SCALE),
        experiment=over_predicted(MODERATE),
        control=Control(
            "one client a round, where coverage itself is the factor",
            lambda: Prediction.at_most(_ratios((ALL, ONE)), SCALE),
            over_predicted(ONE),
        ),
        near=Control(
            "the mean energy of clients with a gain of 0.955 as the bound",
            lambda: Prediction.at_most(_ratios((MODERATE, MODERATE), gain=0.955), SCALE),
        ),
        positive=Control(
            "full participation instead of the lower one",
            lambda: Prediction.at_most(_ratios((MODERATE, ALL)), SCALE),
            over_predicted(ALL),
        ),
        kind="conjecture",
        **_MEAN,
    ),
    _typical_conjecture("moderate", MODERATE, TINY, "8 of 20 clients"),
    _typical_conjecture(
        "tiny",
        TINY,
        ALL.replace(cohort_size=2),
        "3 of 20 clients",
        positive=Control(
            "the typical rate of clients with a gain of 1.08 as the bound",
            lambda: _at_most(1.08**2 * typical(TINY, "fedavg")),
        ),
    ),
    Claim(
        id="participation-median",
        statement="Under lower participation most runs end with less energy than under full "
        "participation, although the mean is higher; extinct runs count.",
        statistic=f"share of runs below full participation after {LONG} rounds",
        quantities=tuple(f"{m} of 20 clients, {p}" for m in (12, 8) for p in HIGHER),
        predict=partial(Prediction.at_least, [0.5] * 2 * len(HIGHER), SCALE),
        experiment=fell_below("fedavg"),
        near=Control(
            "every second run with all clients taking part",
            experiment=fell_below("fedavg", half=True),
        ),
        control=Control("raFLoRA under the lower participation", experiment=fell_below("raflora")),
        estimator=proportion_interval,
        **_COMMON,
    ),
)
