"""Signal against noise: in one round FedAvg and raFLoRA are equally good.

FedAvg's amplitude is raFLoRA's times the contributors' share of the cohort, noise and all: what it
shrinks is the scale. Only what rounds make of the scale tells the rules apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import simulated
from analysis.claims.names import PARTITIONS
from analysis.claims.predicted import partition_means, per_partition
from analysis.stats.intervals import fieller_ratio, mean_interval, over_survivors
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks
from fedlora_sim.engines.draws import cohort_counts

Array = NDArray[np.float64]

RULES = ("fedavg", "raflora")
# Twelve equal directions in a partition, 24 in the highest, whose noise is drawn apart: as many
# samples in one run.
# Small noise, so that no amplitude changes its sign, which energies do not show.
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
MARGIN = 0.03
# Spread of near controls over the true one; variances grow with the square.
MORE_SPREAD = 1.05


def contributors(scenario: Scenario, numbers: Sequence[int], context: Context) -> Array:
    """How many clients of the first cohort carry each partition, (n, M)."""
    counts = np.stack([cohort_counts(scenario, seed)[0] for seed in context.seeds(numbers)])
    return per_partition(counts @ scenario.federation.members, scenario).astype(np.float64)


def noise_over_signal(
    held: Array,
    scenario: Scenario,
    rule: str,
    signal_of: str,
    numbers: Sequence[int],
    context: Context,
) -> Array:
    """Squared deviation of the first round's amplitude from its mean given the cohort, (n, M).

    In units of the squared mean of `signal_of`; both means are closed forms of the share of the
    cohort that carries each partition, `held` of its clients (n, M).
    """
    sizes = np.diff((0, *scenario.federation.levels))
    share = np.repeat(held / scenario.federation.max_cohort, sizes, axis=1)
    sent = scenario.gain_mean * scenario.initial_amplitude
    mean = {name: sent * closed_form.multiplier(name, share) for name in RULES}
    amplitude = np.sqrt(simulated(scenario, rule, numbers, context).energy.values[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):  # no signal where nobody contributes
        noise = ((amplitude - mean[rule]) / mean[signal_of]) ** 2
    return partition_means(noise, scenario)


def noisier(scenario: Scenario, factor: float) -> Scenario:
    """The scenario with gains and drifts that spread more by a factor."""
    spreads = {name: factor * getattr(scenario, name) for name in ("gain_std", "drift_std")}
    return scenario.replace(**spreads)


def signal_pairs(raflora_signal: str, factor: float = 1.0) -> Experiment:
    """Noise over signal of raFLoRA and of FedAvg, on seeds of their own, (n, M, 2).

    Args:
        raflora_signal: the rule whose mean raFLoRA's noise is divided by.
        factor: on the spread of raFLoRA's clients.
    """

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        held = SIGNAL.federation.members.sum(0)[np.array(SIGNAL.federation.levels) - 1]
        everybody = np.tile(held, (len(numbers), 1))
        even, odd = ([2 * i + side for i in numbers] for side in (0, 1))
        own = noisier(SIGNAL, factor)
        raflora = noise_over_signal(everybody, own, "raflora", raflora_signal, even, context)
        fedavg = noise_over_signal(everybody, SIGNAL, "fedavg", "fedavg", odd, context)
        return np.stack([raflora, fedavg], axis=-1)

    return experiment


def signal_by_contributors(raflora_signal: str, factor: float = 1.0) -> Experiment:
    """Noise over signal of the highest partition, for each rule and number of contributors.

    Args:
        raflora_signal: the rule whose mean raFLoRA's noise is divided by.
        factor: on the spread of the clients.
    """
    scenario = noisier(SIGNAL_COHORTS, factor)

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        held = contributors(scenario, numbers, context)
        columns = []
        for rule, signal_of in (("fedavg", "fedavg"), ("raflora", raflora_signal)):
            noise = noise_over_signal(held, scenario, rule, signal_of, numbers, context)
            columns += [np.where(held[:, -1] == h, noise[:, -1], np.nan) for h in CONTRIBUTORS]
        return np.stack(columns, axis=1)

    return experiment


def _signal_by_contributors() -> Prediction:
    """Noise over signal in fixed cohorts that hold as many contributors."""
    size, r_max = SIGNAL_COHORTS.federation.max_cohort, SIGNAL_COHORTS.federation.r_max
    ratios = [
        closed_form.noise_to_signal(
            rule,
            f"1x{size - h},{r_max}x{h}",
            amplitude=SIGNAL.initial_amplitude,
            gain_mean=SIGNAL.gain_mean,
            gain_std=SIGNAL.gain_std,
            drift_std=SIGNAL.drift_std,
        )[-1]
        for rule in RULES
        for h in CONTRIBUTORS
    ]
    return Prediction.within(np.square(ratios), MARGIN)


_COMMON: dict[str, Any] = {
    "source": "ours",
    "fidelity": "spectral",
    "first": 8_000,
    "cap": 64_000,
}

CLAIMS = (
    Claim(
        id="equal-signal-to-noise",
        statement="In one round of a fixed cohort FedAvg and raFLoRA have the same signal-to-noise "
        "ratio in every direction.",
        statistic="ratio of variances over squared means of an amplitude after one round",
        predict=partial(Prediction.within, np.ones(len(PARTITIONS)), MARGIN),
        experiment=signal_pairs("raflora"),
        control=Control("raFLoRA's noise at FedAvg's signal", experiment=signal_pairs("fedavg")),
        near=Control(
            f"raFLoRA's clients spread by {MORE_SPREAD - 1:.0%} more",
            experiment=signal_pairs("raflora", MORE_SPREAD),
        ),
        assumptions="full participation, independent gains and drifts of mean (g, 0), fixed basis",
        quantities=tuple(f"raflora / fedavg, {p}" for p in PARTITIONS),
        estimator=fieller_ratio,
        **_COMMON,
    ),
    Claim(
        id="signal-to-noise-cohorts",
        statement="With sampled cohorts both rules have the same noise over signal, given how many "
        "clients contribute: (g^2 x^2 H)^-1 (nu^2 x^2 + tau^2).",
        statistic="variance over squared mean of an amplitude after one round, runs with H "
        "contributors",
        quantities=tuple(f"{rule}, partition 3, H = {h}" for rule in RULES for h in CONTRIBUTORS),
        predict=_signal_by_contributors,
        experiment=signal_by_contributors("raflora"),
        control=Control(
            "raFLoRA's noise at FedAvg's signal", experiment=signal_by_contributors("fedavg")
        ),
        near=Control(
            f"clients who spread by {MORE_SPREAD - 1:.0%} more",
            experiment=signal_by_contributors("raflora", MORE_SPREAD),
        ),
        estimator=over_survivors(mean_interval),
        assumptions="uniform cohorts, independent gains and drifts of mean (g, 0), fixed basis",
        **_COMMON,
    ),
)
