"""Does lower participation make the geometric factor more severe? Four statements, settled apart.

The public review of the paper conjectures that it does. "The factor" may mean that of the mean
energy, that of a typical surviving run, or what is left of a typical run at all; they disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import higher_energy_left
from analysis.claims.names import HIGHER
from analysis.claims.predicted import above_shared
from analysis.claims.typical import RANKS, log_rate
from analysis.inference.intervals import mapped, mean_interval, over_survivors, proportion_interval
from analysis.inference.verdict import Prediction
from fedlora_sim import Scenario

Array = NDArray[np.float64]

ALL = Scenario(ranks=RANKS, rounds=4)
MODERATE = ALL.replace(cohort_size=8)
TINY = ALL.replace(cohort_size=3)
LONG = 10


def energy_gained(low: Scenario, high: Scenario) -> Experiment:
    """Final energy at participation `low` above that at `high`, paired by seed."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        kept = [higher_energy_left(s, "fedavg", numbers, context) for s in (low, high)]
        return kept[0] - kept[1]

    return experiment


def fell_below(rule: str) -> Experiment:
    """Whether a run has less energy than FedAvg with all clients taking part."""
    everybody = full_rate() ** LONG

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        left = [
            higher_energy_left(scenario.replace(rounds=LONG), rule, numbers, context)
            for scenario in (MODERATE, TINY)
        ]
        return np.concatenate([energy < everybody for energy in left], axis=1).astype(np.float64)

    return experiment


def full_rate() -> Array:
    """Energy rates under full participation, coverage squared, above the shared partition."""
    return above_shared(closed_form.energy_rate("fedavg", RANKS), ALL)


def mean_factors(*pairs: tuple[Scenario, Scenario]) -> Experiment:
    """`energy_gained` for several pairs of participations, side by side."""
    gains = [energy_gained(low, high) for low, high in pairs]

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        return np.concatenate([gain(numbers, context) for gain in gains], axis=1)

    return experiment


_COMMON: dict[str, Any] = {
    "source": "public review of arXiv 2602.13486 (conjecture); ours (its parts)",
    "assumptions": "uniform cohorts without replacement, equal samples, common gain, fixed basis",
    "fidelity": "spectral",
    "first": 8_000,
    "cap": 64_000,
}
_MEAN: dict[str, Any] = {
    "statistic": f"mean energy left after {ALL.rounds} rounds, difference of participations",
    **_COMMON,
}


def _typical_conjecture(name: str, scenario: Scenario, few: Scenario, who: str) -> Claim:
    return Claim(
        id=f"review-participation-typical-{name}",
        statement=f"Lower participation makes the factor of a typical surviving run more severe: "
        f"with {who} it is below coverage squared.",
        statistic="exp of the mean step of the log energy, over runs that still have it",
        quantities=HIGHER,
        predict=lambda: Prediction.at_most(full_rate()),
        experiment=log_rate(scenario, "fedavg"),
        control=Control(f"{few.cohort_size} of 20 clients", experiment=log_rate(few, "fedavg")),
        estimator=mapped(over_survivors(mean_interval), np.exp),
        kind="conjecture",
        **_COMMON,
    )


CLAIMS = (
    Claim(
        id="participation-mean-milder",
        statement="Lower participation makes the factor of the mean energy milder: 8 of 20 clients "
        "keep more of it than all, 3 more than 8.",
        quantities=tuple(f"{pair}, {p}" for pair in ("8 less 20", "3 less 8") for p in HIGHER),
        predict=partial(Prediction.at_least, [0.0] * 2 * len(HIGHER)),
        experiment=mean_factors((MODERATE, ALL), (TINY, MODERATE)),
        control=Control(
            "high and low participation exchanged",
            experiment=mean_factors((ALL, MODERATE), (MODERATE, TINY)),
        ),
        **_MEAN,
    ),
    Claim(
        id="review-participation-mean",
        statement="Lower participation makes the factor of the mean energy more severe.",
        quantities=HIGHER,
        predict=partial(Prediction.at_most, [0.0] * len(HIGHER)),
        experiment=energy_gained(MODERATE, ALL),
        control=Control(
            "one client a round, where coverage itself is the factor",
            experiment=energy_gained(ALL.replace(cohort_size=1), ALL),
        ),
        kind="conjecture",
        **_MEAN,
    ),
    _typical_conjecture("moderate", MODERATE, TINY, "8 of 20 clients"),
    _typical_conjecture("tiny", TINY, ALL.replace(cohort_size=2), "3 of 20 clients"),
    Claim(
        id="participation-median",
        statement="Under lower participation most runs end with less energy than under full "
        "participation, extinct ones included, although the mean is higher.",
        statistic=f"share of runs below full participation after {LONG} rounds",
        quantities=tuple(f"{m} of 20, {p}" for m in (8, 3) for p in HIGHER),
        predict=partial(Prediction.at_least, [0.5] * 2 * len(HIGHER)),
        experiment=fell_below("fedavg"),
        control=Control("raFLoRA under the lower participation", experiment=fell_below("raflora")),
        estimator=proportion_interval,
        **_COMMON,
    ),
)
