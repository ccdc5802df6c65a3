"""The other rules over many rounds: which of them compound a direction's dilution.

FLoRA and FedEx-LoRA keep in the base what they have aggregated; two more rules are others under
another name where clients share a basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import by_partition, simulated
from analysis.claims.names import HIGHER
from analysis.claims.predicted import EXACT, above_shared, federation_arguments, partition_means
from analysis.stats.intervals import every_run
from analysis.stats.series import log_linear_rate
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

# Three levels and unequal sample counts, so that shares of data are not shares of clients.
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
# A drift of a tenth of the first amplitude: after 12 rounds most of an update is what it added.
GROWING = KEPT.replace(drift_mean=0.1)
COHORTS = Scenario(
    ranks=parse_ranks("2x8,4x6,8x6"), cohort_size=8, rounds=20, drift_mean=0.1, spectrum_decay=1.0
)
GROWTH_ROUNDS = (1, 10, 20)
# Where few data lie with clients of the lowest rank, coverages of all partitions are large.
MOSTLY_HIGH = KEPT.replace(num_samples=(10,) * 7 + (40,) * 3)
LARGER = COHORTS.replace(drift_mean=1.07 * COHORTS.drift_mean)
SETTLED = KEPT.replace(rounds=40)
# Three rounds: later the distance from the limit is lost in rounding.
APPROACHING = KEPT.replace(rounds=3)
# 8 of 10 clients, so that every partition has a contributor in every round.
TWINS = KEPT.replace(cohort_size=8, gain_mean=0.9, drift_mean=0.05)
EQUAL = 1e-9
MARGIN = 0.02


def amplitudes(scenario: Scenario, rule: str, numbers: Sequence[int], context: Context) -> Array:
    """Root mean square amplitude of every partition but the shared one, (n, T + 1, M - 1)."""
    energy = by_partition(simulated(scenario, rule, numbers, context).energy).values
    return np.sqrt(energy[..., 1:])


def own_rates(scenario: Scenario, rule: str) -> Experiment:
    """Energy factor per round of every partition but the shared one, by log-linear fit.

    On the initial basis: where the shared directions fall fastest, singular values change places.
    """

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energy = by_partition(simulated(scenario, rule, numbers, context).projected_energy)
        return log_linear_rate(np.moveaxis(energy.values, 1, -1))[:, 1:]

    return experiment


def growth(
    scenario: Scenario, rule: str, rounds: Sequence[int], unit: float | None = None
) -> Experiment:
    """What these rounds add to the amplitude, in units of the mean drift or in another unit."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        amplitude = np.sqrt(simulated(scenario, rule, numbers, context).energy.values)
        gained = partition_means(np.diff(amplitude, axis=1), scenario)[..., 1:]
        chosen = gained[:, np.array(rounds) - 1] / (unit or scenario.drift_mean)
        return chosen.reshape(len(numbers), -1)

    return experiment


def left(scenario: Scenario, rule: str) -> Experiment:
    """Final over initial amplitude."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        amplitude = amplitudes(scenario, rule, numbers, context)
        return amplitude[:, -1] / amplitude[:, 0]

    return experiment


def approach(scenario: Scenario, rule: str) -> Experiment:
    """Factor per round of the distance of the amplitude from `W / (1 + W)` of its start."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        amplitude = amplitudes(scenario, rule, numbers, context)
        distance = amplitude / amplitude[:, :1] - _settled(_coverage(scenario))
        return log_linear_rate(np.moveaxis(distance, 1, -1))

    return experiment


def moving(share: float, scenario: Scenario, to: int | None = None) -> Scenario:
    """The scenario after its first client, of the lowest rank, lost this share of all data.

    Args:
        share: of all data.
        scenario: with the samples of `SAMPLES`.
        to: the client that gets it; None loses it, so that all other shares grow by `share`.
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
    """Largest relative difference of two rules' energies under one seed.

    Args:
        scenario: of both rules.
        rule: the one rule.
        other: the other rule.
        instead: scenario of `rule`, if another, for a near control.
    """

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        one = simulated(instead or scenario, rule, numbers, context).energy.values
        two = simulated(scenario, other, numbers, context).energy.values
        return (np.abs(one - two) / two).max(axis=(1, 2))[:, None]

    return experiment


def _coverage(scenario: Scenario) -> Array:
    return above_shared(closed_form.coverage(scenario.ranks, scenario.num_samples), scenario)


def _settled(coverage: Array) -> Array:
    return coverage / (1 + coverage)


def _rate(scenario: Scenario, rule: str, margin: float = EXACT) -> Prediction:
    rate = closed_form.energy_rate(
        rule, scenario.ranks, gain_mean=scenario.gain_mean, **federation_arguments(scenario)
    )
    return Prediction.within(above_shared(rate, scenario), margin)


def _growth(scenario: Scenario, rounds: Sequence[int], margin: float) -> Prediction:
    return Prediction.within(np.tile(_coverage(scenario), len(rounds)), margin)


def rounds_by_partition(name: str, rounds: Sequence[int]) -> tuple[str, ...]:
    """Names of quantities that are measured round by round in every partition but the shared."""
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
# Nothing is drawn but the basis: every run must agree.
_EACH: dict[str, Any] = {"estimator": every_run, "first": 20, "cap": 20}
_RATES: dict[str, Any] = {
    "statistic": "energy factor per round by log-linear fit",
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

CLAIMS = (
    Claim(
        id="flora-no-compounding",
        statement="FLoRA does not compound: what clients leave as it is stays, at any coverage.",
        predict=partial(_rate, KEPT, "flora"),
        experiment=own_rates(KEPT, "flora"),
        control=Control("FedAvg in its place", experiment=own_rates(KEPT, "fedavg")),
        near=Control(
            "most data at the highest rank, and clients with a gain of 1 + 2.5e-9",
            experiment=own_rates(MOSTLY_HIGH.replace(gain_mean=1 + 2.5e-9), "flora"),
        ),
        **_RATES,
    ),
    Claim(
        id="flora-dilutes-loss",
        statement="Under FLoRA a gain g below 1 multiplies an amplitude by 1 - W (1 - g): the loss "
        "of a round is diluted, not what there is.",
        predict=partial(_rate, LOSSY, "flora"),
        experiment=own_rates(LOSSY, "flora"),
        control=Control("FedAvg's rate, (g W)^2", partial(_rate, LOSSY, "fedavg")),
        near=Control(
            "1.7e-8 of all data with a client of the highest rank instead of the lowest",
            experiment=own_rates(moving(1.7e-8, LOSSY, to=-1), "flora"),
        ),
        **_RATES,
    ),
    Claim(
        id="flora-linear-growth",
        statement="Under FLoRA a steady drift c adds W c to an amplitude in every round.",
        statistic="what a round adds to the amplitude, in units of the drift",
        quantities=rounds_by_partition("W", (1, 6, 12)),
        predict=partial(_growth, GROWING, (1, 6, 12), EXACT),
        experiment=growth(GROWING, "flora", (1, 6, 12)),
        control=Control("FedAvg in its place", experiment=growth(GROWING, "fedavg", (1, 6, 12))),
        near=Control(
            "a client of the lowest rank lacks 3.4e-9 of all data",
            experiment=growth(moving(3.4e-9, GROWING), "flora", (1, 6, 12)),
        ),
        **_EACH,
        **_FULL,
    ),
    Claim(
        id="flora-cohort-growth",
        statement="With sampled cohorts a steady drift c adds pi c to an amplitude under FLoRA, in "
        "the mean and in every round.",
        statistic="what a round adds to the mean amplitude, in units of the drift",
        quantities=rounds_by_partition("pi", GROWTH_ROUNDS),
        predict=partial(_growth, COHORTS, GROWTH_ROUNDS, MARGIN),
        experiment=growth(COHORTS, "flora", GROWTH_ROUNDS),
        control=Control("FedAvg in its place", experiment=growth(COHORTS, "fedavg", GROWTH_ROUNDS)),
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
        statement="FedEx-LoRA's total settles at W / (1 + W) of its amplitude: neither kept nor "
        "lost.",
        statistic=f"amplitude after {SETTLED.rounds} rounds over the initial one",
        quantities=HIGHER,
        predict=lambda: Prediction.within(_settled(_coverage(SETTLED)), EXACT),
        experiment=left(SETTLED, "fedex"),
        control=Control("FedAvg in its place", experiment=left(SETTLED, "fedavg")),
        near=Control(
            "a client of the lowest rank lacks 4.5e-9 of all data",
            experiment=left(moving(4.5e-9, SETTLED), "fedex"),
        ),
        **_EACH,
        **_FULL,
    ),
    Claim(
        id="fedex-approach",
        statement="FedEx-LoRA's total nears W / (1 + W) of its amplitude by a factor W^2 per "
        "round, the adapter's share.",
        statistic="factor per round of the distance from W / (1 + W), by log-linear fit",
        quantities=HIGHER,
        predict=lambda: Prediction.within(_coverage(APPROACHING) ** 2, EXACT),
        experiment=approach(APPROACHING, "fedex"),
        control=Control(
            "a factor W, by which FedAvg's amplitude falls",
            lambda: Prediction.within(_coverage(APPROACHING), EXACT),
        ),
        near=Control(
            "a client of the lowest rank lacks 1.7e-9 of all data",
            experiment=approach(moving(1.7e-9, APPROACHING), "fedex"),
        ),
        **_EACH,
        **_FULL,
    ),
    Claim(
        id="ffa-is-fedavg",
        statement="With A frozen, averaging factors is averaging products: FFA-LoRA has FedAvg's "
        "energies.",
        experiment=distance(TWINS, "ffa", "fedavg"),
        control=Control(
            "zero padding, where A is averaged too",
            experiment=distance(TWINS, "zero_pad", "fedavg"),
        ),
        near=Control(
            "a client of the lowest rank lacks 5e-10 of all data under FFA-LoRA",
            experiment=distance(TWINS, "ffa", "fedavg", moving(5e-10, TWINS)),
        ),
        **_EQUAL,
    ),
    Claim(
        id="rbla-is-raflora",
        statement="Where clients return alike, RBLA's average over contributors is raFLoRA's.",
        experiment=distance(TWINS, "rbla", "raflora"),
        control=Control(
            "zero padding in its place", experiment=distance(TWINS, "zero_pad", "raflora")
        ),
        near=Control(
            "clients with a gain that is larger by 2e-10 under RBLA",
            experiment=distance(
                TWINS, "rbla", "raflora", TWINS.replace(gain_mean=TWINS.gain_mean + 2e-10)
            ),
        ),
        **_EQUAL,
    ),
)
