"""What averaging over contributors costs: fewer clients average, and more of their noise is left.

FedAvg divides by the whole cohort, contributors or not, and shrinks signal and noise alike; raFLoRA
divides by the contributors, and keeps both.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import by_partition, energy_series, simulated
from analysis.claims.names import HIGHER, PARTITIONS, RULE_NAMES
from analysis.claims.predicted import client_arguments, federation_arguments, per_partition
from analysis.stats.intervals import fieller_ratio
from analysis.stats.series import stationary_mean
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, parse_ranks

Array = NDArray[np.float64]

RULES = ("fedavg", "raflora")
# Clients who forget what they receive and return noise: every round is a sample of it.
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
# How much larger the drifts of near controls are; energies grow with the square.
LITTLE, LONG_LITTLE = 1.035, 1.08


def mean_energies(scenario: Scenario, burn_in: int) -> Experiment:
    """Energy of every partition after the burn-in, mean over rounds, for both rules: (n, 2 M)."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        energies = [_mean_energy(scenario, rule, burn_in, numbers, context) for rule in RULES]
        return np.concatenate(energies, axis=1)

    return experiment


def _mean_energy(
    scenario: Scenario, rule: str, burn_in: int, numbers: Sequence[int], context: Context
) -> Array:
    energy = by_partition(simulated(scenario, rule, numbers, context).energy)
    return np.asarray(energy.isel(round=slice(burn_in, None)).mean("round").values)


def energy_pairs(scenario: Scenario, burn_in: int, factor: float = 1.0) -> Experiment:
    """The same as pairs of raFLoRA's and FedAvg's, (n, M - 1, 2).

    Without the shared partition, where both rules are one and their ratio would be 1 by itself.

    Args:
        scenario: as above.
        burn_in: as above.
        factor: on the drifts under raFLoRA.
    """

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        fedavg, raflora = (
            _mean_energy(each, rule, burn_in, numbers, context)
            for each, rule in zip((scenario, with_drifts(scenario, factor)), RULES, strict=True)
        )
        return np.stack([raflora[:, 1:], fedavg[:, 1:]], axis=-1)

    return experiment


def with_drifts(scenario: Scenario, factor: float) -> Scenario:
    """The scenario with drifts larger by a factor, mean and deviation."""
    drifts = {name: factor * getattr(scenario, name) for name in ("drift_mean", "drift_std")}
    return scenario.replace(**drifts)


def _noise_gain(rule: str) -> Array:
    gain = closed_form.noise_gain(rule, NOISE.ranks, **federation_arguments(NOISE))
    return per_partition(gain, NOISE)


def _noise(*rules: str, factor: float = 1.0) -> Prediction:
    energies = [(factor * NOISE.drift_std) ** 2 * _noise_gain(rule) for rule in rules]
    return Prediction.within(np.concatenate(energies), MARGIN)


def _noise_ratio(rule: str, other: str, margin: float = MARGIN) -> Prediction:
    return Prediction.within((_noise_gain(rule) / _noise_gain(other))[1:], margin)


def _floor(scenario: Scenario, rule: str, margin: float) -> Prediction:
    floor = closed_form.energy_floor(
        rule,
        scenario.ranks,
        **client_arguments(scenario),
        **federation_arguments(scenario),
    )
    return Prediction.within(per_partition(floor, scenario), margin)


def _floor_ratio(scenario: Scenario) -> Prediction:
    raflora, fedavg = (_floor(scenario, rule, FLOOR_MARGIN).value for rule in RULES[::-1])
    return Prediction.within((raflora / fedavg)[1:], FLOOR_MARGIN)


_COMMON: dict[str, Any] = {
    "source": "ours",
    "assumptions": "independent gains and drifts of mean (g, 0), uniform cohorts, fixed basis",
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
        statement=f"In one long run under {RULE_NAMES[rule]} the energies average to the floor: "
        "time gives what many runs give.",
        statistic=f"mean energy of rounds {LONG_BURN_IN} to {LONG.rounds} of few runs, its error "
        "from the autocorrelation",
        quantities=PARTITIONS,
        predict=partial(_floor, LONG, rule, LONG_MARGIN),
        experiment=energy_series(LONG, rule),
        control=Control(
            f"the floor of {RULE_NAMES[other]}", partial(_floor, LONG, other, LONG_MARGIN)
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
        f"the floor of drifts larger by {LONG_LITTLE - 1:.0%}",
        partial(_floor, larger, rule, LONG_MARGIN),
    )


CLAIMS = (
    Claim(
        id="noise-gain",
        statement="Of the energy of client noise FedAvg keeps pi/m, and raFLoRA E[1/H; H > 0].",
        statistic="mean energy of a round in which clients return noise alone",
        quantities=tuple(f"{rule}, {p}" for rule in RULES for p in PARTITIONS),
        predict=partial(_noise, *RULES),
        experiment=mean_energies(NOISE, 1),
        control=Control("the rules exchanged", partial(_noise, *RULES[::-1])),
        near=Control(f"noise larger by {LITTLE - 1:.1%}", partial(_noise, *RULES, factor=LITTLE)),
        **_RUNS,
        **_COMMON,
    ),
    Claim(
        id="raflora-noise-amplification",
        statement="raFLoRA has E[1/H; H > 0] m / pi times the noise energy of FedAvg.",
        statistic="ratio of mean energies of rounds in which clients return noise alone",
        predict=partial(_noise_ratio, "raflora", "fedavg"),
        experiment=energy_pairs(NOISE, 1),
        control=Control("the rules exchanged", partial(_noise_ratio, "fedavg", "raflora")),
        near=Control(
            f"clients whose noise is larger by {LITTLE - 1:.1%} under raFLoRA",
            experiment=energy_pairs(NOISE, 1, LITTLE),
        ),
        **_RUNS,
        **_RATIO,
    ),
    Claim(
        id="raflora-floor-ratio",
        statement="raFLoRA's floor exceeds FedAvg's by more than the noise does: by the ratio of "
        "the noise times (1 - q') of FedAvg over (1 - q') of raFLoRA.",
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
        statement="A drift that has a mean c holds the energy higher: its floor is that of the "
        "second-moment map, cross term included.",
        statistic=f"mean energy of rounds {LONG_BURN_IN} to {LONG.rounds} of few runs, its error "
        "from the autocorrelation",
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
