"""The phase transition: the local time at which training outweighs dilution, by bisection.

Below the threshold every start is lost, above it the smallest one grows. So a run starts from an
amplitude far below the target, where a round multiplies it by the same factor whatever it is, and
is above the threshold if one round leaves more of it than there was.

Quick runs search for FedAvg's threshold only: searches are long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis import closed_form
from analysis.claim import Claim, Context, Control, Experiment
from analysis.claims.experiments import by_partition
from analysis.claims.fitting import (
    DISCRETE,
    FLOW_MARGIN,
    LARGER,
    RUNS,
    STEPS,
    TINY,
    amplitudes,
    contributors_mean,
    one_federation_per_run,
    random_federation,
    threshold,
    with_larger_targets,
)
from analysis.claims.names import HIGHER, RULE_NAMES
from analysis.claims.predicted import per_partition
from analysis.stats.series import bisect, bracketed
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario, simulate
from fedlora_sim.engines.draws import client_targets

Array = NDArray[np.float64]
Predicted = Callable[[Scenario, str, int], Array]

# The search knows nothing of the prediction: it begins with this range of M T, M the mean target,
# and ends with a bracket of this relative width.
SEARCHED = (0.02, 4.0)
BRACKET = 0.004
TARGET_STD = 0.5
# Hardly any training: a thousandth of what a target of 1 takes to be learned.
SHORT = 1e-3


def alike(seed: int) -> Scenario:
    """A random federation whose clients share one target."""
    return random_federation(seed, 2, 2, 2).replace(rounds=1, initial_amplitude=TINY)


def unlike(seed: int) -> Scenario:
    """A random federation, larger, whose clients have targets spread by half their mean."""
    large = random_federation(seed, 16, 8, 8)
    return large.replace(rounds=1, initial_amplitude=TINY, target_std=TARGET_STD)


def found_threshold(rule: str, draw: Callable[[int], Scenario], predicted: Predicted) -> Experiment:
    """Brackets of the thresholds of partitions 2 and 3 over predicted ones, (n, 2, 2)."""

    def experiment(numbers: Sequence[int], context: Context) -> Array:
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
    """Threshold of clients who all have the mean target of a direction's contributors."""
    mean = contributors_mean(scenario, client_targets(scenario, seed))
    return _threshold_of_targets(scenario, rule, mean)


def threshold_of_each(scenario: Scenario, rule: str, seed: int) -> Array:
    """Threshold of clients with targets of their own."""
    return _threshold_of_targets(scenario, rule, client_targets(scenario, seed))


def threshold_of_other(scenario: Scenario, rule: str, seed: int) -> Array:
    """Threshold of the other of the two rules that have one."""
    return threshold(scenario, "zero_pad" if rule == "fedavg" else "fedavg")


def _threshold_alike(scenario: Scenario, rule: str, seed: int) -> Array:
    return threshold(scenario, rule)


def threshold_of_larger(scenario: Scenario, rule: str, seed: int) -> Array:
    """Threshold of clients whose one target is a little larger."""
    return threshold(with_larger_targets(scenario), rule)


def threshold_of_larger_each(scenario: Scenario, rule: str, seed: int) -> Array:
    """Threshold of clients with targets of their own, each a little larger."""
    targets = LARGER * client_targets(scenario, seed)
    return _threshold_of_targets(scenario, rule, targets)


def _threshold_of_targets(scenario: Scenario, rule: str, targets: Array) -> Array:
    found = closed_form.collapse_threshold(
        rule, scenario.ranks, targets, num_samples=scenario.num_samples
    )
    return per_partition(found, scenario)


def trained_shortly(seed: int) -> Scenario:
    """A random federation whose clients hardly train."""
    return alike(seed).replace(local_time=SHORT)


def growth_of_short_training(rule: str, larger: float = 1.0) -> Experiment:
    """Log of the amplitude factor of a round of hardly any training, over that of training.

    Args:
        rule: the rule.
        larger: factor on the target of the prediction.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        x = by_partition(amplitudes(run)).values[:, 1:]
        return np.log(x[-1] / x[0]) / (2 * larger * scenario.target_amplitude * SHORT)

    return one_federation_per_run(f"short-training-{rule}", trained_shortly, rule, measure)


_UNITY = partial(Prediction.within, np.ones(len(HIGHER)), FLOW_MARGIN)
_COMMON: dict[str, Any] = {
    "source": "ours",
    "fidelity": "matrix",
    "assumptions": f"quadratic loss, targets on the common basis, balanced factors, {STEPS} plain "
    "steps a round, full participation",
}
_BRACKETS: dict[str, Any] = {
    "statistic": "local time at which a small amplitude neither grows nor falls, by bisection to "
    f"{BRACKET:.1%}, over the prediction, of every federation; the brackets' width included",
    "quantities": tuple(f"measured / predicted, {name}" for name in HIGHER),
    "predict": _UNITY,
    **_COMMON,
    **RUNS,
    "estimator": bracketed,
    "wide_because": f"{DISCRETE}; a bracket has a width",
}


def _threshold_claim(rule: str, other: str) -> Claim:
    return Claim(
        id=f"flow-threshold-{rule.replace('_', '-')}",
        statement=f"Under {RULE_NAMES[rule]} a partition collapses exactly if clients train for "
        "less than T* = ln(1/omega) / (2 M).",
        experiment=found_threshold(rule, alike, _threshold_alike),
        control=Control(
            f"the threshold of {RULE_NAMES[other]}",
            experiment=found_threshold(rule, alike, threshold_of_other),
        ),
        near=Control(
            f"the threshold of targets larger by {LARGER - 1:.1%}",
            experiment=found_threshold(rule, alike, threshold_of_larger),
        ),
        scenario=alike,
        in_quick=rule == "fedavg",
        **_BRACKETS,
    )


CLAIMS = (
    _threshold_claim("fedavg", "zero_pad"),
    _threshold_claim("zero_pad", "fedavg"),
    Claim(
        id="flow-raflora-no-threshold",
        statement="Under raFLoRA no training is too short: small amplitudes grow by exp(2 M T) "
        "for any T, as if nobody diluted them.",
        statistic=f"log of the amplitude factor of a round with T = {SHORT:g}, over 2 M T, of "
        "every federation",
        quantities=tuple(f"measured / predicted, {name}" for name in HIGHER),
        predict=_UNITY,
        experiment=growth_of_short_training("raflora"),
        control=Control("FedAvg in its place", experiment=growth_of_short_training("fedavg")),
        near=Control(
            f"the growth of targets larger by {LARGER - 1:.1%}",
            experiment=growth_of_short_training("raflora", LARGER),
        ),
        scenario=trained_shortly,
        wide_because="the amplitude's growth is linear in it only as far as it is small against "
        "its target",
        **_COMMON,
        **RUNS,
    ),
    Claim(
        id="flow-threshold-targets",
        statement="With targets M_k of their own FedAvg's clients need less training, as Jensen "
        "says: T* solves sum_(k in C) p_k exp(2 M_k T) = 1.",
        experiment=found_threshold("fedavg", unlike, threshold_of_each),
        control=Control(
            "the threshold of the contributors' mean target",
            experiment=found_threshold("fedavg", unlike, threshold_of_mean),
        ),
        near=Control(
            f"the threshold of targets larger by {LARGER - 1:.1%} each",
            experiment=found_threshold("fedavg", unlike, threshold_of_larger_each),
        ),
        scenario=unlike,
        in_quick=False,  # large federations, searched one by one
        **_BRACKETS,
    ),
)
