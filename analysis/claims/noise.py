"""Claims on noise, and on the ratio of signal to noise."""

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
    by_partition,
    energy_series,
    partition_means,
    per_partition,
    simulated,
)
from analysis.formats import rule_name
from analysis.stats.intervals import fieller_ratio, mean_interval, over_survivors
from analysis.stats.series import stationary_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks
from fedlora_sim.engines.cohort_draws import counts_of_runs

# The cost of averaging over contributors: fewer clients, and therefore more noise.
#
# FedAvg divides by the weight of the whole cohort and shrinks signal and noise alike; raFLoRA
# divides by the weight of the contributors and keeps both.

Array = NDArray[np.float64]

RULES = ("fedavg", "raflora")
# Clients that ignore the received amplitude and return noise: every round is a sample of it.
NOISE = Scenario(
    ranks=parse_ranks("12x8,24x6,36x6"),
    cohort_size=8,
    rounds=20,
    spectrum_decay=1.0,
    gain_mean=0.0,
    drift_std=0.5,
    empty_partition="zero",
)
HELD = NOISE.replace(gain_mean=0.8, gain_std=0.3, rounds=100)
BURN_IN = 60
LONG = HELD.replace(rounds=6_000)
LONG_BURN_IN = 100
DRIFTING = LONG.replace(drift_mean=0.15)
MARGIN = 0.02
FLOOR_MARGIN = 0.03
LONG_MARGIN = 0.05
# Factor on the drifts in near controls; energies grow with its square.
LITTLE, LONG_LITTLE = 1.035, 1.08


def mean_energies(scenario: Scenario, burn_in: int) -> Experiment:
    """Return the mean energy of each partition after the burn-in for both rules, (n, 2 M)."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energies = [_mean_energy(scenario, rule, burn_in, numbers, context) for rule in RULES]
        return np.concatenate(energies, axis=1)

    return experiment


def _mean_energy(
    scenario: Scenario, rule: str, burn_in: int, numbers: Sequence[int], context: RunContext
) -> Array:
    energy = by_partition(simulated(scenario, rule, numbers, context).energy)
    return np.asarray(energy.isel(round=slice(burn_in, None)).mean("round").values)


def energy_pairs(scenario: Scenario, burn_in: int, factor: float = 1.0) -> Experiment:
    """Return pairs of the energies of raFLoRA and FedAvg, (n, M - 1, 2).

    The shared partition, where both rules are equal and the ratio is trivially 1, is left out.

    Args:
        scenario: the scenario.
        burn_in: rounds left out.
        factor: factor on the drifts under raFLoRA.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        fedavg, raflora = (
            _mean_energy(each, rule, burn_in, numbers, context)
            for each, rule in zip((scenario, with_drifts(scenario, factor)), RULES, strict=True)
        )
        return np.stack([raflora[:, 1:], fedavg[:, 1:]], axis=-1)

    return experiment


def with_drifts(scenario: Scenario, factor: float) -> Scenario:
    """Return the scenario with mean and spread of the drifts multiplied by a factor."""
    drifts = {name: factor * getattr(scenario, name) for name in ("drift_mean", "drift_std")}
    return scenario.replace(**drifts)


def _noise_gain(rule: str) -> Array:
    return per_partition(closed_form.noise_gain(NOISE, rule), NOISE)


def _noise(*rules: str, factor: float = 1.0) -> Prediction:
    energies = [(factor * NOISE.drift_std) ** 2 * _noise_gain(rule) for rule in rules]
    return Prediction.within(np.concatenate(energies), MARGIN)


def _noise_ratio(rule: str, other: str, margin: float = MARGIN) -> Prediction:
    return Prediction.within((_noise_gain(rule) / _noise_gain(other))[1:], margin)


def _floor(scenario: Scenario, rule: str, margin: float) -> Prediction:
    floor = closed_form.energy_floor(scenario, rule)
    return Prediction.within(per_partition(floor, scenario), margin)


def _floor_ratio(scenario: Scenario) -> Prediction:
    raflora, fedavg = (_floor(scenario, rule, FLOOR_MARGIN).value for rule in RULES[::-1])
    return Prediction.within((raflora / fedavg)[1:], FLOOR_MARGIN)


_COMMON: dict[str, Any] = {
    "source": "ours",
    "assumptions": "independent gains of mean $g$, drifts of mean 0, uniform cohorts, fixed basis",
    "fidelity": "spectral",
}
_RATIO: dict[str, Any] = {
    "quantities": tuple(f"raflora / fedavg, {p}" for p in HIGHER),
    "estimator": fieller_ratio,
    **_COMMON,
}
_RUNS: dict[str, Any] = {"first": 1_000, "cap": 16_000}


def _long_run_claim(rule: str, other: str) -> Claim:
    return Claim(
        id=f"long-run-{rule}",
        statement=f"In one long run under {rule_name(rule)} the energies average to the floor: "
        "the mean over rounds equals the mean over runs.",
        statistic=f"mean energy of rounds {LONG_BURN_IN} to {LONG.rounds} of few runs; its error "
        "is estimated from the autocorrelation",
        quantities=PARTITIONS,
        predict=partial(_floor, LONG, rule, LONG_MARGIN),
        experiment=energy_series(LONG, rule),
        control=Control(
            f"the floor of {rule_name(other)}", partial(_floor, LONG, other, LONG_MARGIN)
        ),
        near=_larger_drifts(LONG, rule),
        estimator=stationary_mean(LONG_BURN_IN),
        first=4,
        cap=32,
        **_COMMON,
    )


def _larger_drifts(scenario: Scenario, rule: str) -> Control:
    larger = with_drifts(scenario, LONG_LITTLE)
    return Control(
        f"the floor of drifts {LONG_LITTLE - 1:.0%} larger",
        partial(_floor, larger, rule, LONG_MARGIN),
    )


NOISE_CLAIMS = (
    Claim(
        id="noise-gain",
        statement=r"Of the energy of client noise FedAvg keeps $\pi / m$, and raFLoRA "
        r"$\mathrm{E}[1/H; H \gt 0]$.",
        statistic="mean energy of a round in which clients return noise alone",
        quantities=tuple(f"{rule}, {p}" for rule in RULES for p in PARTITIONS),
        predict=partial(_noise, *RULES),
        experiment=mean_energies(NOISE, 1),
        control=Control("the rules exchanged", partial(_noise, *RULES[::-1])),
        near=Control(f"noise {LITTLE - 1:.1%} larger", partial(_noise, *RULES, factor=LITTLE)),
        **_RUNS,
        **_COMMON,
    ),
    Claim(
        id="raflora-noise-amplification",
        statement=r"raFLoRA has $\mathrm{E}[1/H; H \gt 0] m / \pi$ times the noise energy of "
        "FedAvg.",
        statistic="ratio of mean energies of rounds in which clients return noise alone",
        predict=partial(_noise_ratio, "raflora", "fedavg"),
        experiment=energy_pairs(NOISE, 1),
        control=Control("the rules exchanged", partial(_noise_ratio, "fedavg", "raflora")),
        near=Control(
            f"under raFLoRA clients whose noise is {LITTLE - 1:.1%} larger",
            experiment=energy_pairs(NOISE, 1, LITTLE),
        ),
        **_RUNS,
        **_RATIO,
    ),
    Claim(
        id="raflora-floor-ratio",
        statement="The ratio of raFLoRA's floor to FedAvg's is larger than the ratio of their "
        "noise: it is that ratio times $(1 - q')$ of FedAvg over $(1 - q')$ of raFLoRA.",
        statistic="ratio of mean energies over the stationary rounds",
        predict=partial(_floor_ratio, HELD),
        experiment=energy_pairs(HELD, BURN_IN),
        control=Control(
            "the ratio of the noise alone",
            partial(_noise_ratio, "raflora", "fedavg", FLOOR_MARGIN),
        ),
        near=Control(
            "the floors of clients with a gain of 0.82",
            partial(_floor_ratio, HELD.replace(gain_mean=0.82)),
        ),
        **_RUNS,
        **_RATIO,
    ),
    _long_run_claim("fedavg", "raflora"),
    _long_run_claim("raflora", "fedavg"),
    Claim(
        id="floor-drift-mean",
        statement="A drift of mean $c$ holds the energy at a higher floor: that of the "
        "second-moment map, cross term included.",
        statistic=f"mean energy of rounds {LONG_BURN_IN} to {LONG.rounds} of few runs; its error "
        "is estimated from the autocorrelation",
        quantities=PARTITIONS,
        predict=partial(_floor, DRIFTING, "fedavg", LONG_MARGIN),
        experiment=energy_series(DRIFTING, "fedavg"),
        control=Control(
            "the floor of zero-mean drift", partial(_floor, LONG, "fedavg", LONG_MARGIN)
        ),
        near=_larger_drifts(DRIFTING, "fedavg"),
        estimator=stationary_mean(LONG_BURN_IN),
        first=4,
        cap=32,
        **{**_COMMON, "assumptions": "independent gains and drifts, uniform cohorts, fixed basis"},
    ),
)


# Signal and noise: in one round FedAvg and raFLoRA are equally good.
#
# FedAvg's amplitude is raFLoRA's times the contributors' share of the cohort, including noise: only
# the scale shrinks. The rules differ only through the effect of the scale over many rounds.

SIGNAL_RULES = ("fedavg", "raflora")
# Twelve equal directions per partition and 24 in the highest, with independent noise: as many
# samples in one run. The noise is small, so that no amplitude changes its sign, which energies do
# not show.
SIGNAL = Scenario(
    ranks=parse_ranks("12x8,24x6,48x6"),
    rounds=1,
    spectrum_decay=1.0,
    gain_mean=0.9,
    gain_std=0.1,
    drift_std=0.1,
)
SIGNAL_COHORTS = SIGNAL.replace(cohort_size=12)
CONTRIBUTORS = (3, 4)
SIGNAL_MARGIN = 0.03
# Spread of near controls relative to the true one; variances grow with the square.
MORE_SPREAD = 1.05


def contributors(scenario: Scenario, numbers: Sequence[int], context: RunContext) -> Array:
    """Return the number of carriers of each partition in the first cohort, (n, M)."""
    counts = counts_of_runs(scenario, context.seeds(numbers))[:, 0]
    return per_partition(counts @ scenario.federation.members, scenario).astype(np.float64)


def noise_over_signal(
    held: Array,
    scenario: Scenario,
    rule: str,
    signal_of: str,
    numbers: Sequence[int],
    context: RunContext,
) -> Array:
    """Return squared deviation of the first round's amplitude from its conditional mean, (n, M).

    The mean is conditional on the cohort. The unit is the squared mean of `signal_of`. Both means
    are closed forms of the carriers' share of the cohort, with `held` carriers (n, M).
    """
    sizes = np.diff((0, *scenario.federation.levels))
    share = np.repeat(held / scenario.federation.max_cohort, sizes, axis=1)
    sent = scenario.gain_mean * scenario.initial_amplitude
    mean = {name: sent * closed_form.multiplier(name, share) for name in SIGNAL_RULES}
    amplitude = np.sqrt(simulated(scenario, rule, numbers, context).energy.values[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):  # no signal without contributors
        noise = ((amplitude - mean[rule]) / mean[signal_of]) ** 2
    return partition_means(noise, scenario)


def noisier(scenario: Scenario, factor: float) -> Scenario:
    """Return the scenario with the spread of gains and drifts multiplied by a factor."""
    spreads = {name: factor * getattr(scenario, name) for name in ("gain_std", "drift_std")}
    return scenario.replace(**spreads)


def signal_pairs(raflora_signal: str, factor: float = 1.0) -> Experiment:
    """Return noise over signal of raFLoRA and of FedAvg, on separate seeds, (n, M, 2).

    Args:
        raflora_signal: the rule by whose mean raFLoRA's noise is divided.
        factor: factor on the spread of raFLoRA's clients.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        held = SIGNAL.federation.members.sum(0)[np.array(SIGNAL.federation.levels) - 1]
        everybody = np.tile(held, (len(numbers), 1))
        even, odd = ([2 * i + side for i in numbers] for side in (0, 1))
        own = noisier(SIGNAL, factor)
        raflora = noise_over_signal(everybody, own, "raflora", raflora_signal, even, context)
        fedavg = noise_over_signal(everybody, SIGNAL, "fedavg", "fedavg", odd, context)
        return np.stack([raflora, fedavg], axis=-1)

    return experiment


def signal_by_contributors(raflora_signal: str, factor: float = 1.0) -> Experiment:
    """Return noise over signal of the highest partition, by rule and number of contributors.

    Args:
        raflora_signal: the rule by whose mean raFLoRA's noise is divided.
        factor: factor on the spread of the clients.
    """
    scenario = noisier(SIGNAL_COHORTS, factor)

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        held = contributors(scenario, numbers, context)
        columns = []
        for rule, signal_of in (("fedavg", "fedavg"), ("raflora", raflora_signal)):
            noise = noise_over_signal(held, scenario, rule, signal_of, numbers, context)
            columns += [np.where(held[:, -1] == h, noise[:, -1], np.nan) for h in CONTRIBUTORS]
        return np.stack(columns, axis=1)

    return experiment


def _signal_by_contributors() -> Prediction:
    """Return the predicted noise over signal in fixed cohorts with as many contributors."""
    size, r_max = SIGNAL_COHORTS.federation.max_cohort, SIGNAL_COHORTS.federation.r_max
    ratios = [
        closed_form.noise_to_signal(SIGNAL.replace(ranks=f"1x{size - h},{r_max}x{h}"), rule)[-1]
        for rule in SIGNAL_RULES
        for h in CONTRIBUTORS
    ]
    return Prediction.within(np.square(ratios), SIGNAL_MARGIN)


_SIGNAL: dict[str, Any] = {
    "source": "ours",
    "fidelity": "spectral",
    "first": 8_000,
    "cap": 64_000,
}

SIGNAL_CLAIMS = (
    Claim(
        id="equal-signal-to-noise",
        statement="In one round of a fixed cohort FedAvg and raFLoRA have the same signal-to-noise "
        "ratio in every direction.",
        statistic="ratio of variances over squared means of an amplitude after one round",
        predict=partial(Prediction.within, np.ones(len(PARTITIONS)), SIGNAL_MARGIN),
        experiment=signal_pairs("raflora"),
        control=Control("raFLoRA's noise at FedAvg's signal", experiment=signal_pairs("fedavg")),
        near=Control(
            f"a {MORE_SPREAD - 1:.0%} larger spread of raFLoRA's clients",
            experiment=signal_pairs("raflora", MORE_SPREAD),
        ),
        assumptions="full participation, independent gains of mean $g$, drifts of mean 0, fixed "
        "basis",
        quantities=tuple(f"raflora / fedavg, {p}" for p in PARTITIONS),
        estimator=fieller_ratio,
        **_SIGNAL,
    ),
    Claim(
        id="signal-to-noise-cohorts",
        statement="With sampled cohorts both rules have the same ratio of noise to signal, given "
        r"the number of contributors: $(g^2 x^2 H)^{-1} (\nu^2 x^2 + \tau^2)$.",
        statistic="variance over squared mean of an amplitude after one round, in runs with $H$ "
        "contributors",
        quantities=tuple(
            f"{rule}, partition 3, $H = {h}$" for rule in SIGNAL_RULES for h in CONTRIBUTORS
        ),
        predict=_signal_by_contributors,
        experiment=signal_by_contributors("raflora"),
        control=Control(
            "raFLoRA's noise at FedAvg's signal", experiment=signal_by_contributors("fedavg")
        ),
        near=Control(
            f"a {MORE_SPREAD - 1:.0%} larger spread of the clients",
            experiment=signal_by_contributors("raflora", MORE_SPREAD),
        ),
        estimator=over_survivors(mean_interval),
        assumptions="independent gains of mean $g$, drifts of mean 0, uniform cohorts, fixed basis",
        **_SIGNAL,
    ),
)
