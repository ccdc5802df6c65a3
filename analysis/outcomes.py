"""The result of a round for a direction, by the number of clients that carry it.

With equal sample counts a direction's moments depend on its rule and on how many of the K clients
carry it. A federation with one client of each rank 1..K has every such number once, so a rule's
closed forms are asked once and not per configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis import closed_form
from analysis.closed_form.setting import rule_form
from analysis.cohorts.law import Array
from fedlora_sim.errors import MOST_ROUNDS, check_count, check_finite, check_sequence, expected
from fedlora_sim.federation import Federation


@dataclass(frozen=True)
class Outcome:
    """A direction after T rounds under one rule, by number of carriers 0..K, each array (K + 1,).

    From a start at amplitude x its mean amplitude is `mean x` and its mean energy
    `second x**2 + drift`; without carriers nothing is left.

    Args:
        rule: the rule.
        empty_partition: its policy, `zero` or `carry`; None for a rule without one.
        mean: factor of the mean amplitude.
        second: factor of the mean energy.
        drift: what drifts add to the mean energy.
        rate: factor of the mean energy per round, drift apart; None where the energy does not
            change by one factor per round (fedex, whose base keeps what it has).
    """

    rule: str
    empty_partition: str | None
    mean: Array
    second: Array
    drift: Array
    rate: Array | None


def outcomes(
    clients: int,
    rounds: int,
    rules: Sequence[str],
    *,
    cohort_size: int | None = None,
    sampling: str | None = None,
    gain_mean: float = 1.0,
    gain_std: float = 0.0,
    drift_std: float = 0.0,
) -> tuple[list[Outcome], dict[str, str]]:
    """Outcomes under every rule, each policy of a rule apart.

    Args:
        clients: number of clients K, of equal sample counts.
        rounds: number of rounds T.
        rules: names of rules.
        cohort_size: clients per round; all when None.
        sampling: cohort law, see `Federation`.
        gain_mean: mean of the factor by which clients change an amplitude.
        gain_std: its standard deviation.
        drift_std: deviation of what they add to it, in units of the amplitude.

    Returns:
        The outcomes, and for each rule that has no closed form here, why.

    Raises:
        ValueError: on a bad argument, such as an unknown rule.
    """
    everybody = (1,) * check_count("clients", clients)
    Federation(everybody, None, cohort_size, sampling)  # a bad cohort is no matter of a rule
    check_count("rounds", rounds, MOST_ROUNDS)
    check_finite("gain_mean", gain_mean)
    check_finite("gain_std", gain_std, minimum=0.0)
    check_finite("drift_std", drift_std, minimum=0.0)
    cohort: dict[str, Any] = {"cohort_size": cohort_size, "sampling": sampling}
    gains: dict[str, Any] = {"gain_mean": gain_mean, "gain_std": gain_std}
    found, reasons = [], {}
    for form in map(rule_form, check_sequence("rules", rules, "names of rules")):
        for policy in form.policies:
            asked = {**cohort, **gains, "empty_partition": policy or "carry"}
            try:
                if form.norm_weighted:
                    reason = "weights depend on all directions, not on the number of carriers"
                    raise expected("rule", form.name, f"another rule ({reason})")
                found.append(_outcome(form.name, policy, clients, rounds, drift_std, asked))
            except ValueError as error:  # the case is sound: this rule has no closed form in it
                reasons[form.name] = str(error)
    return found, reasons


def _outcome(
    rule: str,
    policy: str | None,
    clients: int,
    rounds: int,
    drift_std: float,
    asked: dict[str, Any],
) -> Outcome:
    ranks = range(1, clients + 1)

    def end(start: float, drift: float) -> tuple[Array, Array]:
        """Mean and energy after the last round, by number of carriers."""
        given = {"initial_amplitude": start, "drift_std": drift, **asked}
        mean = closed_form.mean_trajectory(rule, ranks, rounds, **given)[-1]
        energy = closed_form.energy_trajectory(rule, ranks, rounds, **given)[-1]
        return _by_carriers(mean), _by_carriers(energy)

    mean, second = end(1.0, 0.0)
    drift = end(0.0, drift_std)[1]  # a zero-mean drift adds its own energy, whatever the start
    geometric = rule_form(rule).space != "residual"
    rate = _by_carriers(closed_form.energy_rate(rule, ranks, **asked)) if geometric else None
    return Outcome(rule, policy, mean, second, drift, rate)


def _by_carriers(by_direction: Array) -> Array:
    """Direction i of ranks 1..K has K + 1 - i carriers; nothing is left where there are none."""
    return np.concatenate([[0.0], by_direction[::-1]])
