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
from analysis.claims.typical import RANKS, log_rate, typical
from analysis.stats.intervals import mapped, mean_interval, over_survivors, proportion_interval
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario

Array = NDArray[np.float64]

# Two rounds: over more of them few lucky runs would make the mean of the smallest cohorts.
ALL = Scenario(ranks=RANKS, rounds=2)
MODERATE = ALL.replace(cohort_size=8)
TINY = ALL.replace(cohort_size=3)
LARGE = ALL.replace(cohort_size=12)
ONE = ALL.replace(cohort_size=1)
LESS = ((ALL, MODERATE), (MODERATE, TINY))
# Unit in which the distance from a bound is counted: a share of a predicted mean, or of the bound.
SCALE = 0.05
LONG = 10


def over_predicted(*scenarios: Scenario) -> Experiment:
    """Energy left above the shared partition over its predicted mean, side by side."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        kept = [
            higher_energy_left(scenario, "fedavg", numbers, context) / _mean_left(scenario)
            for scenario in scenarios
        ]
        return np.concatenate(kept, axis=1)

    return experiment


def _mean_left(scenario: Scenario, gain: float = 1.0) -> Array:
    """Predicted mean energy left above the shared partition, for clients with this gain."""
    rate = closed_form.energy_rate("fedavg", RANKS, cohort_size=scenario.cohort_size)
    return (above_shared(rate, scenario) * gain**2) ** scenario.rounds


def _ratios(*pairs: tuple[Scenario, Scenario], gain: float = 1.0) -> Array:
    """Predicted mean energy of the first of every pair over that of the second."""
    return np.concatenate([_mean_left(one, gain) / _mean_left(other) for one, other in pairs])


def fell_below(rule: str, *, half: bool = False) -> Experiment:
    """Whether a run has less energy than FedAvg with all clients taking part.

    Args:
        rule: of the runs at lower participation.
        half: every second run is one with all clients taking part, which has as much.
    """
    everybody = full_rate() ** LONG

    def experiment(numbers: Sequence[int], context: Context) -> Array:
        left = [
            higher_energy_left(scenario.replace(rounds=LONG), rule, numbers, context)
            for scenario in (LARGE, MODERATE)
        ]
        if half:
            left = [np.where(np.arange(len(x))[:, None] % 2, everybody, x) for x in left]
        return np.concatenate([energy < everybody for energy in left], axis=1).astype(np.float64)

    return experiment


def full_rate() -> Array:
    """Energy rates under full participation, coverage squared, above the shared partition."""
    return above_shared(closed_form.energy_rate("fedavg", RANKS), ALL)


_COMMON: dict[str, Any] = {
    "source": "public review of arXiv 2602.13486 (conjecture); ours (its parts)",
    "assumptions": "uniform cohorts without replacement, equal samples, common gain, fixed basis",
    "fidelity": "spectral",
    "first": 8_000,
    "cap": 64_000,
}
_MEAN: dict[str, Any] = {
    "statistic": f"mean energy left after {ALL.rounds} rounds over its prediction, against what is "
    "left at the higher participation",
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
        statistic="exp of the mean step of the log energy, over runs that still have it",
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


CLAIMS = (
    Claim(
        id="participation-mean-milder",
        statement="Lower participation makes the factor of the mean energy milder: 8 of 20 clients "
        "keep more of it than all, 3 more than 8.",
        quantities=tuple(f"{pair}, {p}" for pair in ("8 less 20", "3 less 8") for p in HIGHER),
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
            "full participation in place of the lower one",
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
        "participation, extinct ones included, although the mean is higher.",
        statistic=f"share of runs below full participation after {LONG} rounds",
        quantities=tuple(f"{m} of 20, {p}" for m in (12, 8) for p in HIGHER),
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
