"""One round, every rule: what the others would have made of the very same trained cohort."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from fedlora_sim.aggregation import Aggregated, AggregationRule, get_rule, rule_names
from fedlora_sim.lowrank import pad_last
from fedlora_sim.training.measures import Row
from fedlora_sim.training.state import GlobalUpdate


def compared_rules(rule: AggregationRule, allocation: str) -> tuple[AggregationRule, ...]:
    """The rules that can be asked: the run's own, and all that train what it trains.

    A rule that freezes A has another local training than one that does not, and a rule whose
    clients start from fresh adapters returns increments: neither can stand in for the other.

    Args:
        rule: the run's own.
        allocation: of the run; some rules suit `svd` only.
    """
    kind = (rule.frozen_a, rule.space == "none")
    others = [
        other
        for other in map(get_rule, rule_names())
        if other.label != rule.label
        and (other.frozen_a, other.space == "none") == kind
        and (allocation == "svd" or not other.needs_svd_allocation)
    ]
    return (rule, *others)


def counterfactual_row(
    rules: tuple[AggregationRule, ...],
    aggregate_by: Callable[[AggregationRule], Mapping[str, Aggregated]],
    state: GlobalUpdate,
    evaluate: Callable[[GlobalUpdate], float],
    r_max: int,
) -> Row:
    """Energies and accuracy after the round under every rule.

    Args:
        rules: R of them.
        aggregate_by: aggregates the round's cohort by a rule, per layer.
        state: the global update before the round.
        evaluate: accuracy of a global update; NaN in rounds that are not judged.
        r_max: rank of the global update.

    Returns:
        `counterfactual_energy` (R, L, r_max) and `counterfactual_accuracy` (R,).
    """
    energy, accuracy = [], []
    for rule in rules:
        after = state.after(aggregate_by(rule))
        values = torch.stack([pad_last(s, r_max) for _, s, _ in after.svd(r_max).values()])
        energy.append(values.cpu().double().numpy() ** 2)
        accuracy.append(evaluate(after))
    return {
        "counterfactual_energy": np.stack(energy),
        "counterfactual_accuracy": np.array(accuracy),
    }
