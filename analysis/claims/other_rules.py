"""Claims on FLoRA, FedEx, HetLoRA, FFA, RBLA, and on weights by norm."""

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
    Claim,
    Control,
    Experiment,
    RunContext,
    above_shared,
    by_partition,
    partition_means,
    simulated,
)
from analysis.stats.intervals import every_run, root_of_mean
from analysis.stats.series import log_linear_rate
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

# The other rules over many rounds: which of them compound a direction's dilution.
#
# FLoRA and FedEx-LoRA keep aggregated updates in the base; two further rules equal other rules if
# clients share a basis.

Array = NDArray[np.float64]

# Three levels and unequal sample counts, so that shares of data differ from shares of clients.
SAMPLES = (30, 10, 20, 40, 25, 15, 20, 10, 20, 10)
KEPT = Scenario(
    ranks=parse_ranks("2x4,4x3,8x3"),
    num_samples=SAMPLES,
    fidelity="matrix",
    rounds=12,
    d_in=48,
    d_out=40,
)
LOSSY = KEPT.replace(gain_mean=0.9)
# A drift of a tenth of the first amplitude: after 12 rounds it is most of an update.
GROWING = KEPT.replace(drift_mean=0.1)
COHORTS = Scenario(
    ranks=parse_ranks("2x8,4x6,8x6"), cohort_size=8, rounds=20, drift_mean=0.1, spectrum_decay=1.0
)
GROWTH_ROUNDS = (1, 10, 20)
# If clients of the lowest rank have few data, the coverages of all partitions are large.
MOSTLY_HIGH = KEPT.replace(num_samples=(10,) * 7 + (40,) * 3)
LARGER = COHORTS.replace(drift_mean=1.07 * COHORTS.drift_mean)
SETTLED = KEPT.replace(rounds=40)
# Three rounds: later the distance from the limit is lost in rounding.
APPROACHING = KEPT.replace(rounds=3)
# 8 of 10 clients, so that each partition has a contributor in every round.
TWINS = KEPT.replace(cohort_size=8, gain_mean=0.9, drift_mean=0.05)
EQUAL = 1e-9
MARGIN = 0.02


def amplitudes(scenario: Scenario, rule: str, numbers: Sequence[int], context: RunContext) -> Array:
    """Return the root mean square amplitude of the partitions above the shared one.

    Shape (n, T + 1, M - 1).
    """
    energy = by_partition(simulated(scenario, rule, numbers, context).energy).values
    return np.sqrt(energy[..., 1:])


def own_rates(scenario: Scenario, rule: str) -> Experiment:
    """Return the energy factor per round of the partitions above the shared one, by log-linear fit.

    On the initial basis: if the shared directions fall fastest, singular values change places.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).projected_energy)
        return log_linear_rate(np.moveaxis(energy.values, 1, -1))[:, 1:]

    return experiment


def growth(
    scenario: Scenario, rule: str, rounds: Sequence[int], unit: float | None = None
) -> Experiment:
    """Return growth of the amplitude over these rounds, by default in units of the mean drift."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        amplitude = np.sqrt(simulated(scenario, rule, numbers, context).energy.values)
        gained = partition_means(np.diff(amplitude, axis=1), scenario)[..., 1:]
        chosen = gained[:, np.array(rounds) - 1] / (unit or scenario.drift_mean)
        return chosen.reshape(len(numbers), -1)

    return experiment


def left(scenario: Scenario, rule: str) -> Experiment:
    """Return the final over initial amplitude."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        amplitude = amplitudes(scenario, rule, numbers, context)
        return amplitude[:, -1] / amplitude[:, 0]

    return experiment


def approach(scenario: Scenario, rule: str) -> Experiment:
    """Return the factor per round of the amplitude's distance from `W / (1 + W)` of its start."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        amplitude = amplitudes(scenario, rule, numbers, context)
        distance = amplitude / amplitude[:, :1] - _settled(_coverage(scenario))
        return log_linear_rate(np.moveaxis(distance, 1, -1))

    return experiment


def moving(share: float, scenario: Scenario, to: int | None = None) -> Scenario:
    """Return scenario in which the first client, of the lowest rank, has lost a share of all data.

    Args:
        share: share of all data.
        scenario: with the samples of `SAMPLES`.
        to: the client that gets it; None drops it, so that all other shares grow by `share`.
    """
    samples = [10**9 * n for n in SAMPLES]
    moved = round(share * sum(samples))
    samples[0] -= moved
    if to is not None:
        samples[to] += moved
    return scenario.replace(num_samples=tuple(samples))


def distance(
    scenario: Scenario, rule: str, other: str, instead: Scenario | None = None
) -> Experiment:
    """Return the largest relative difference of two rules' energies under one seed.

    Args:
        scenario: scenario of both rules.
        rule: the first rule.
        other: the second rule.
        instead: another scenario for `rule`, for a near control.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        one = simulated(instead or scenario, rule, numbers, context).energy.values
        two = simulated(scenario, other, numbers, context).energy.values
        return (np.abs(one - two) / two).max(axis=(1, 2))[:, None]

    return experiment


def _coverage(scenario: Scenario) -> Array:
    return above_shared(closed_form.coverage(scenario), scenario)


def _settled(coverage: Array) -> Array:
    return coverage / (1 + coverage)


def _rate(scenario: Scenario, rule: str, margin: float = EXACT) -> Prediction:
    return Prediction.within(
        above_shared(closed_form.energy_rate(scenario, rule), scenario), margin
    )


def _growth(scenario: Scenario, rounds: Sequence[int], margin: float) -> Prediction:
    return Prediction.within(np.tile(_coverage(scenario), len(rounds)), margin)


def rounds_by_partition(name: str, rounds: Sequence[int]) -> tuple[str, ...]:
    """Return the names of quantities per round and partition, without the shared one."""
    return tuple(f"{name}, round {t}, {p}" for t in rounds for p in HIGHER)


_FULL: dict[str, Any] = {
    "source": "ours",
    "assumptions": "full participation, common gain, fixed basis, any sample counts",
    "fidelity": "matrix",
}
_COHORTS: dict[str, Any] = {
    "source": "ours",
    "assumptions": "uniform cohorts without replacement, common gain, fixed basis",
    "fidelity": "spectral",
}
# Only the basis is random: all runs must agree.
_EACH: dict[str, Any] = {"estimator": every_run, "first": 20, "cap": 20}
_RATES: dict[str, Any] = {
    "statistic": "energy factor per round, by log-linear fit",
    "quantities": HIGHER,
    **_FULL,
    **_EACH,
}
_EQUAL: dict[str, Any] = {
    "statistic": "largest relative difference of energies over directions and rounds",
    "quantities": ("relative difference",),
    "predict": partial(Prediction.near, 0.0, EQUAL),
    **_FULL,
    **_EACH,
    "assumptions": "sampled cohorts with contributors, common gain and drift, fixed basis",
}

OTHER_RULE_CLAIMS = (
    Claim(
        id="flora-no-compounding",
        statement="FLoRA does not compound the dilution: amplitudes that clients do not change "
        "stay constant, at any coverage.",
        predict=partial(_rate, KEPT, "flora"),
        experiment=own_rates(KEPT, "flora"),
        control=Control("FedAvg instead", experiment=own_rates(KEPT, "fedavg")),
        near=Control(
            "most data at the highest rank, and clients with a gain of 1 + 2.5e-9",
            experiment=own_rates(MOSTLY_HIGH.replace(gain_mean=1 + 2.5e-9), "flora"),
        ),
        **_RATES,
    ),
    Claim(
        id="flora-dilutes-loss",
        statement="Under FLoRA a gain $g$ below 1 multiplies an amplitude by $1 - W (1 - g)$: the "
        "loss of a round is diluted, not the amplitude.",
        predict=partial(_rate, LOSSY, "flora"),
        experiment=own_rates(LOSSY, "flora"),
        control=Control("FedAvg's rate, $(g W)^2$", partial(_rate, LOSSY, "fedavg")),
        near=Control(
            "1.7e-8 of all data moved from a client of the lowest rank to one of the highest",
            experiment=own_rates(moving(1.7e-8, LOSSY, to=-1), "flora"),
        ),
        **_RATES,
    ),
    Claim(
        id="flora-linear-growth",
        statement="Under FLoRA a steady drift $c$ adds $W c$ to an amplitude in every round.",
        statistic="increase of the amplitude in a round, in units of the drift",
        quantities=rounds_by_partition("$W$", (1, 6, 12)),
        predict=partial(_growth, GROWING, (1, 6, 12), EXACT),
        experiment=growth(GROWING, "flora", (1, 6, 12)),
        control=Control("FedAvg instead", experiment=growth(GROWING, "fedavg", (1, 6, 12))),
        near=Control(
            "a client of the lowest rank has 3.4e-9 of all data less",
            experiment=growth(moving(3.4e-9, GROWING), "flora", (1, 6, 12)),
        ),
        **_EACH,
        **_FULL,
    ),
    Claim(
        id="flora-cohort-growth",
        statement=r"With sampled cohorts a steady drift $c$ adds $\pi c$ on average to an "
        "amplitude under FLoRA, in every round.",
        statistic="increase of the mean amplitude in a round, in units of the drift",
        quantities=rounds_by_partition(r"$\pi$", GROWTH_ROUNDS),
        predict=partial(_growth, COHORTS, GROWTH_ROUNDS, MARGIN),
        experiment=growth(COHORTS, "flora", GROWTH_ROUNDS),
        control=Control("FedAvg instead", experiment=growth(COHORTS, "fedavg", GROWTH_ROUNDS)),
        near=Control(
            "drifts 7% larger",
            experiment=growth(LARGER, "flora", GROWTH_ROUNDS, COHORTS.drift_mean),
        ),
        first=8_000,
        cap=64_000,
        **_COHORTS,
    ),
    Claim(
        id="fedex-settles",
        statement="FedEx-LoRA's total settles at $W / (1 + W)$ of its initial amplitude: it is "
        "neither kept nor lost.",
        statistic=f"amplitude after {SETTLED.rounds} rounds relative to the initial one",
        quantities=HIGHER,
        predict=lambda: Prediction.within(_settled(_coverage(SETTLED)), EXACT),
        experiment=left(SETTLED, "fedex"),
        control=Control("FedAvg instead", experiment=left(SETTLED, "fedavg")),
        near=Control(
            "a client of the lowest rank has 4.5e-9 of all data less",
            experiment=left(moving(4.5e-9, SETTLED), "fedex"),
        ),
        **_EACH,
        **_FULL,
    ),
    Claim(
        id="fedex-approach",
        statement="The distance of FedEx-LoRA's total from $W / (1 + W)$ of its initial amplitude "
        "falls by a factor $W^2$ per round, the multiplier of the adapter.",
        statistic="factor per round of the distance from $W / (1 + W)$, by log-linear fit",
        quantities=HIGHER,
        predict=lambda: Prediction.within(_coverage(APPROACHING) ** 2, EXACT),
        experiment=approach(APPROACHING, "fedex"),
        control=Control(
            "a factor $W$, by which FedAvg's amplitude falls",
            lambda: Prediction.within(_coverage(APPROACHING), EXACT),
        ),
        near=Control(
            "a client of the lowest rank has 1.7e-9 of all data less",
            experiment=approach(moving(1.7e-9, APPROACHING), "fedex"),
        ),
        **_EACH,
        **_FULL,
    ),
    Claim(
        id="ffa-is-fedavg",
        statement="With $A$ frozen, averaging factors is averaging products: FFA-LoRA has FedAvg's "
        "energies.",
        experiment=distance(TWINS, "ffa", "fedavg"),
        control=Control(
            "zero padding, where $A$ is averaged too",
            experiment=distance(TWINS, "zero_pad", "fedavg"),
        ),
        near=Control(
            "under FFA-LoRA a client of the lowest rank has 5e-10 of all data less",
            experiment=distance(TWINS, "ffa", "fedavg", moving(5e-10, TWINS)),
        ),
        **_EQUAL,
    ),
    Claim(
        id="rbla-is-raflora",
        statement="If contributors return equal directions, RBLA's average is raFLoRA's.",
        experiment=distance(TWINS, "rbla", "raflora"),
        control=Control("zero padding instead", experiment=distance(TWINS, "zero_pad", "raflora")),
        near=Control(
            "under RBLA clients with a gain that is larger by 2e-10",
            experiment=distance(
                TWINS, "rbla", "raflora", TWINS.replace(gain_mean=TWINS.gain_mean + 2e-10)
            ),
        ),
        **_EQUAL,
    ),
)


# HetLoRA over many rounds: weights by norm, which the collapse makes uniform over clients.
#
# The norm of an update depends on the directions that its client carries. As high directions
# vanish, all norms become that of the shared directions, and all clients have equal weight.

NORMS = KEPT.replace(rounds=6)
# The last round that singular values resolve: 1e-9 of an amplitude remains, 1e-16 is rounding.
COLLAPSING = KEPT.replace(rounds=8)
# 16 of 20 clients always include two of the highest rank: nothing is lost, and only shares vary.
# Clients that carry more directions have less data, so that shares of data and of clients differ.
NORM_COHORTS = Scenario(
    ranks=parse_ranks("2x8,4x6,8x6"),
    num_samples=(20,) * 8 + (15,) * 6 + (10,) * 6,
    cohort_size=16,
    rounds=10,
)
COLLAPSED_AFTER = 6
# The norms of the last but one round still differ by the remaining energy: 1e-6 of the shared one.
LATE = 1e-5
NORM_MARGIN = 0.02


def share_of_round(scenario: Scenario, rule: str, t: int) -> Experiment:
    """Return the weight share of the contributors in round t.

    It is the fourth root of the energy's factor.
    """

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        amplitude = amplitudes(scenario, rule, numbers, context)
        return np.sqrt(amplitude[:, t] / amplitude[:, t - 1])

    return experiment


def late_energy(scenario: Scenario, rule: str, start: int) -> Experiment:
    """Return the energy after the last round relative to that after round `start`."""

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = amplitudes(scenario, rule, numbers, context) ** 2
        return energy[:, -1] / energy[:, start]

    return experiment


def followed(scenario: Scenario, rule: str, predicted_rule: str, start: float = 1.0) -> Experiment:
    """Return the energy of each partition and round relative to the recursion of a rule.

    Args:
        scenario: scenario of simulation and prediction.
        rule: the simulated rule.
        predicted_rule: the predicting rule.
        start: factor on the simulated amplitudes at the start, for the near control.
    """
    simulated = scenario.replace(initial_amplitude=start * scenario.initial_amplitude)

    def experiment(numbers: Sequence[int], context: RunContext) -> Array:
        energy = amplitudes(simulated, rule, numbers, context)[:, 1:] ** 2
        return (energy / _trajectory(scenario, predicted_rule)[1:]).reshape(len(numbers), -1)

    return experiment


def _clients_share(scenario: Scenario) -> Array:
    """Return the share of clients (not of data) that carry each partition above the shared one."""
    return above_shared(closed_form.coverage(scenario.replace(num_samples=None)), scenario)


def _data_share(scenario: Scenario) -> Array:
    """Return the share of the carriers' data for each partition above the shared one."""
    return above_shared(closed_form.coverage(scenario), scenario)


def _trajectory(scenario: Scenario, rule: str) -> Array:
    return partition_means(closed_form.energy_trajectory(scenario, rule), scenario)[:, 1:]


def _norm_rate(rule: str) -> Prediction:
    rate = closed_form.energy_rate(NORM_COHORTS, rule)
    return Prediction.within(above_shared(rate, NORM_COHORTS), NORM_MARGIN)


def _first_share(scenario: Scenario) -> Prediction:
    energy = _trajectory(scenario, "hetlora")
    return Prediction.within((energy[1] / energy[0]) ** 0.25, EXACT)


_NORM_FULL: dict[str, Any] = {
    "source": "ours",
    "assumptions": "full participation, common gain, fixed basis, any sample counts",
    "fidelity": "matrix",
    "estimator": every_run,
    "first": 20,
    "cap": 20,
}

NORM_WEIGHT_CLAIMS = (
    Claim(
        id="hetlora-recursion",
        statement="HetLoRA's energies follow the recursion of norm weights in every round.",
        statistic="energy of every round relative to its prediction",
        quantities=rounds_by_partition("measured / predicted", range(1, NORMS.rounds + 1)),
        predict=partial(Prediction.within, np.ones(NORMS.rounds * len(HIGHER)), EXACT),
        experiment=followed(NORMS, "hetlora", "hetlora"),
        control=Control(
            "the recursion of data weights", experiment=followed(NORMS, "hetlora", "zero_pad")
        ),
        near=Control(
            "initial amplitudes 1.7e-9 larger",
            experiment=followed(NORMS, "hetlora", "hetlora", 1 + 1.7e-9),
        ),
        **_NORM_FULL,
    ),
    Claim(
        id="hetlora-first-round",
        statement="In the first round HetLoRA weights by norm: contributors weigh more than their "
        "share of clients.",
        statistic="weight share by the first round's energy factor, its fourth root",
        quantities=HIGHER,
        predict=partial(_first_share, NORMS),
        experiment=share_of_round(NORMS, "hetlora", 1),
        control=Control(
            "equal weights of all clients", lambda: Prediction.within(_clients_share(NORMS), EXACT)
        ),
        near=Control(
            "clients with a gain of 1 + 7e-9",
            experiment=share_of_round(NORMS.replace(gain_mean=1 + 7e-9), "hetlora", 1),
        ),
        **_NORM_FULL,
    ),
    Claim(
        id="hetlora-uniform",
        statement="As the federation collapses, HetLoRA's weights become equal for all clients, at "
        "any sample counts.",
        statistic="weight share by the last round's energy factor, its fourth root",
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
        wide_because="weights become equal only as the energy falls, and 1e-6 of it is left",
        **_NORM_FULL,
    ),
    Claim(
        id="hetlora-uniform-cohorts",
        statement="With sampled cohorts HetLoRA's mean-energy rate tends to "
        r"$\mathrm{E}[(H/m)^4]$.",
        statistic=f"root of the mean energy after {NORM_COHORTS.rounds} rounds relative to that "
        f"after {COLLAPSED_AFTER}",
        quantities=HIGHER,
        predict=partial(_norm_rate, "hetlora"),
        experiment=late_energy(NORM_COHORTS, "hetlora", COLLAPSED_AFTER),
        control=Control("weights by data", partial(_norm_rate, "zero_pad")),
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
