"""Laws on what the average is: exact, best of its rank, linear, bounded."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedlora_sim.aggregation import Aggregator
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close
from fedlora_sim.conformance.result import Violation
from fedlora_sim.federation import partition_slices
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.tolerances import relative


def weighted_mean(case: Case) -> Tensor:
    """`sum_k w_k dW_k / sum_k w_k`, dense."""
    pairs = zip(case.weights, case.updates, strict=True)
    total = torch.stack([w * update.delta() for w, update in pairs]).sum(0)
    return total / sum(case.weights)


def _exact(rule: Aggregator, case: Case) -> None:
    what = "the result, and the weighted mean of the updates,"
    require_close(case.delta(rule), weighted_mean(case), what, case.size)


def _best_approximation(rule: Aggregator, case: Case) -> None:
    """Compared by distance, not by matrices: where singular values tie, the best is not one."""
    mean, r = weighted_mean(case), case.rank_levels[-1]
    least = float(torch.linalg.vector_norm(torch.linalg.svdvals(mean)[r:]))
    found = float(torch.linalg.matrix_norm(mean - case.delta(rule)))
    if abs(found - least) > relative("factorization") * case.size:
        raise Violation(f"{found:.3g} from the weighted mean; the best of rank {r} is {least:.3g}")


def _rank_bound(rule: Aggregator, case: Case) -> None:
    values, r = torch.linalg.svdvals(case.delta(rule)), case.rank_levels[-1]
    beyond = float(torch.linalg.vector_norm(values[r:]))
    if beyond > relative("factorization") * max(case.size, float(values[0])):
        raise Violation(f"norm {beyond:.3g} beyond rank {r}, the highest level")


def _linear(rule: Aggregator, case: Case) -> None:
    """Client by client, so that cross terms of A and B show; then in all B, the A being given."""
    whole = replace(case, empty_partition="zero")
    found, parts = whole.delta(rule), []
    for k in range(len(case.updates)):
        alone = [u if other == k else _zero(rule, u) for other, u in enumerate(case.updates)]
        parts.append(replace(whole, updates=tuple(alone)).delta(rule))
    what = "the result, and the sum of its clients' parts,"
    require_close(found, torch.stack(parts).sum(0), what, case.size)
    turned = whole.map(lambda u: replace(u, lora_B=u.lora_B.flip(0)))
    both = whole.map(lambda u: replace(u, lora_B=u.lora_B + u.lora_B.flip(0)))
    what = "the result of a sum of two B, and the sum of their results,"
    require_close(both.delta(rule), found + turned.delta(rule), what, case.size)


def _zero(rule: Aggregator, update: LoRAFactors) -> LoRAFactors:
    kept = update.lora_A if rule.properties.common_a else torch.zeros_like(update.lora_A)
    return replace(update, lora_A=kept, lora_B=torch.zeros_like(update.lora_B))


def _energy_hull(rule: Aggregator, case: Case) -> None:
    _require_hull(rule, replace(case, empty_partition="zero"), "")


def _partition_hull(rule: Aggregator, case: Case) -> None:
    for h, part in enumerate(partition_slices(case.rank_levels), start=1):
        own = replace(case.in_partition(part), empty_partition="zero")
        _require_hull(rule, own, f" of partition {h}")


def _require_hull(rule: Aggregator, case: Case, what: str) -> None:
    """All updates are made as large as the largest: that is where most is there to exceed it."""
    most = max(float(u.norm()) for u in case.taking_part)

    def stretched(update: LoRAFactors) -> LoRAFactors:
        norm = float(update.norm())
        return update if norm == 0 else replace(update, lora_B=update.lora_B * (most / norm))

    level = replace(case, updates=tuple(map(stretched, case.updates)))
    found = float(torch.linalg.matrix_norm(level.delta(rule)))
    if found > most + relative("factorization") * case.size:
        raise Violation(f"norm{what} {found:.3g}, above the largest client's {most:.3g}")


CHECKS = (
    Check(
        "exact",
        "The result is the weighted mean of the updates.",
        _exact,
        by_property("exact"),
    ),
    Check(
        "best_approximation",
        "The result is the best approximation of the weighted mean, of the highest rank.",
        _best_approximation,
        by_property("best_approximation"),
        {"full_rank": False},
    ),
    Check(
        "rank_bound",
        "The result has no more rank than the highest level.",
        _rank_bound,
        by_property("rank_bound"),
        {"full_rank": False},
    ),
    Check(
        "linear",
        "The result is a linear function of the updates.",
        _linear,
        by_property("linear"),
    ),
    Check(
        "energy_hull",
        "The energy of the result is at most that of the largest update.",
        _energy_hull,
        by_property("energy_hull", "whole"),
        {"tilted": True, "min_levels": 2, "min_clients": 2},
    ),
    Check(
        "partition_energy_hull",
        "The energy of a partition is at most that of the largest update's partition.",
        _partition_hull,
        by_property("energy_hull", "whole", "partition"),
        {"tilted": True, "min_levels": 2, "min_clients": 2, "positions": False},
    ),
)
