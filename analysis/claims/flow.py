"""LoRA training as a flow: floors above the threshold, decay below it, and 1/t on it.

Clients descend the quadratic loss on their two factors. A round multiplies a small amplitude by
`omega G`, `G = exp(2 M T)`: the server's dilution against what training restores. Every run has a
federation of its own, with three partitions, whose measured values stand over their predictions
(floors the other way round).

Zero padding, which differs from FedAvg in omega alone, is left out of quick runs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from analysis.claim import Claim, Control, Experiment
from analysis.claims.experiments import by_partition
from analysis.claims.fitting import (
    DISCRETE,
    FLOW_MARGIN,
    LARGER,
    RUNS,
    STEPS,
    TINY,
    amplitudes,
    dilution,
    flow_floor,
    flow_rate,
    mean_inverse,
    one_federation_per_run,
    random_federation,
    trained_for_growth,
    with_larger_targets,
)
from analysis.claims.names import HIGHER, PARTITIONS, RULE_NAMES
from analysis.stats.series import log_linear_rate
from analysis.stats.verdicts import Prediction
from fedlora_sim import Scenario
from fedlora_sim.randomness import stream

Array = NDArray[np.float64]

FLOOR_ROUNDS, RATE_ROUNDS, CRITICAL_ROUNDS = 24, 10, 12
# At the threshold an error of the growth adds up over the rounds.
CRITICAL_STEPS = 300
CRITICAL_MARGIN = 0.02
# Of near controls: how much larger a growth omega G is predicted, and a target at the threshold.
MORE_GROWTH = 1.035
CRITICAL_LARGER = 1.065


def above(rule: str, seed: int) -> Scenario:
    """A federation in which every partition is held: `omega G` is 1.7 to 2.2 in the highest."""
    growth = stream(seed, "growth_above").uniform(1.7, 2.2)
    scenario = random_federation(seed, 1, 1, 4).replace(rounds=FLOOR_ROUNDS)
    return trained_for_growth(scenario, rule, 2, growth)


def below(rule: str, seed: int) -> Scenario:
    """A federation in which partitions 2 and 3 collapse: `omega G` is 0.7 to 0.9 in the second."""
    growth = stream(seed, "growth_below").uniform(0.7, 0.9)
    scenario = random_federation(seed, 4, 2, 2)
    scenario = scenario.replace(rounds=RATE_ROUNDS, initial_amplitude=TINY)
    return trained_for_growth(scenario, rule, 1, growth)


def critical(share: float, rule: str, seed: int) -> Scenario:
    """A federation whose second partition has this share of its critical local time."""
    scenario = random_federation(seed, 2, 2, 2)
    scenario = trained_for_growth(scenario, rule, 1, 1.0)
    return scenario.replace(
        rounds=CRITICAL_ROUNDS,
        local_time=share * scenario.local_time,
        local_steps=CRITICAL_STEPS,
    )


def held(rule: str, instead: str, larger: float = 1.0) -> Experiment:
    """Predicted floor of every partition over its amplitude after the last round.

    The other way round a rule that predicts no floor would divide by zero.

    Args:
        rule: the rule that runs.
        instead: the rule whose floor is predicted.
        larger: factor on the targets of the prediction.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        last = by_partition(amplitudes(run)).values[-1]
        return flow_floor(with_larger_targets(scenario, larger), instead) / last

    return one_federation_per_run(f"flow-above-{rule}", partial(above, rule), rule, measure)


def approach(rule: str, *, swapped: bool = False, more: float = 1.0) -> Experiment:
    """Factor by which `1/x` nears that of the floor, over the predicted one or its inverse.

    Differences of successive rounds shrink alike, and need no floor.

    Args:
        rule: the rule.
        swapped: predict the inverse.
        more: factor on the predicted growth omega G.
    """

    def measure(scenario: Scenario, run: xr.Dataset) -> Array:
        steps = np.abs(np.diff(mean_inverse(run)[: RATE_ROUNDS + 1, 1:], axis=0))
        predicted = flow_rate(scenario, rule)[1:] / more
        return log_linear_rate(steps.T) / (1 / predicted if swapped else predicted)

    return one_federation_per_run(f"flow-above-{rule}", partial(above, rule), rule, measure)


def decay(rule: str, *, trained: bool = True, more: float = 1.0) -> Experiment:
    """Amplitude factor per round of partitions 2 and 3 over the predicted one.

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
    """Growth of `1/x` per round, early and late, over `(G - 1) / M` at the critical point.

    Args:
        rule: the rule.
        share: of the critical local time, for which clients train.
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


_COMMON: dict[str, Any] = {
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
        statement=f"Above the threshold training under {RULE_NAMES[rule]} holds every partition at "
        "the floor M (omega G - 1) / (G - 1).",
        statistic=f"floor over the amplitude after {FLOOR_ROUNDS} rounds, of every federation",
        quantities=tuple(f"predicted / measured, {name}" for name in PARTITIONS),
        predict=partial(Prediction.within, np.ones(len(PARTITIONS)), FLOW_MARGIN),
        experiment=held(rule, rule),
        control=Control(f"the floor of {RULE_NAMES[other]}", experiment=held(rule, other)),
        near=Control(
            f"the floor of targets larger by {LARGER - 1:.1%}",
            experiment=held(rule, rule, LARGER),
        ),
        scenario=partial(above, rule),
        in_quick=rule != "zero_pad",
        **_COMMON,
    )


def _above_claim(rule: str) -> Claim:
    return Claim(
        id=f"flow-rate-above-{rule.replace('_', '-')}",
        statement=f"Above the threshold the way to the floor under {RULE_NAMES[rule]} shrinks by "
        "1/(omega G) a round.",
        statistic="factor per round, by log-linear fit, of the steps of 1/x, over the prediction",
        quantities=_over(HIGHER),
        predict=partial(Prediction.within, np.ones(len(HIGHER)), FLOW_MARGIN),
        experiment=approach(rule),
        control=Control(
            "the side below the threshold, omega G", experiment=approach(rule, swapped=True)
        ),
        near=Control(
            f"a growth omega G larger by {MORE_GROWTH - 1:.1%}",
            experiment=approach(rule, more=MORE_GROWTH),
        ),
        scenario=partial(above, rule),
        in_quick=rule != "zero_pad",
        **_COMMON,
    )


def _below_claim(rule: str) -> Claim:
    return Claim(
        id=f"flow-rate-below-{rule.replace('_', '-')}",
        statement=f"Below the threshold amplitudes under {RULE_NAMES[rule]} decay by omega G a "
        "round.",
        statistic="amplitude factor per round, by log-linear fit, over the prediction",
        quantities=_over(HIGHER),
        predict=partial(Prediction.within, np.ones(len(HIGHER)), FLOW_MARGIN),
        experiment=decay(rule),
        control=Control(
            "omega alone, as if clients did not train", experiment=decay(rule, trained=False)
        ),
        near=Control(
            f"a growth omega G larger by {MORE_GROWTH - 1:.1%}",
            experiment=decay(rule, more=MORE_GROWTH),
        ),
        scenario=partial(below, rule),
        in_quick=rule != "zero_pad",
        **_COMMON,
    )


def _critical_claim(rule: str) -> Claim:
    assumptions = _COMMON["assumptions"].replace(str(STEPS), str(CRITICAL_STEPS))
    return Claim(
        id=f"flow-critical-{rule.replace('_', '-')}",
        statement=f"At omega G = 1 amplitudes under {RULE_NAMES[rule]} fall like 1/t: 1/x grows by "
        "(G - 1)/M every round.",
        statistic="mean growth of 1/x a round, over the prediction",
        quantities=_over(("first half of the rounds", "second half")),
        predict=partial(Prediction.within, np.ones(2), CRITICAL_MARGIN),
        experiment=critical_slope(rule, 1.0),
        control=Control(
            "local time a tenth short of critical, where the decay is geometric",
            experiment=critical_slope(rule, 0.9),
        ),
        near=Control(
            f"the growth of targets larger by {CRITICAL_LARGER - 1:.1%}",
            experiment=critical_slope(rule, 1.0, CRITICAL_LARGER),
        ),
        scenario=partial(critical, 1.0, rule),
        in_quick=False,
        **{**_COMMON, "assumptions": assumptions, "wide_because": CRITICAL_DISCRETE},
    )


CLAIMS = (
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
