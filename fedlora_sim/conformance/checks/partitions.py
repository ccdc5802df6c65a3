"""Laws on the partitions of the rank axis, and on those that nobody in the cohort carries."""

from __future__ import annotations

from dataclasses import replace

import torch

from fedlora_sim.aggregation import Aggregator, get_rule
from fedlora_sim.conformance.case import Case, only
from fedlora_sim.conformance.law import Check, by_property, require_close
from fedlora_sim.conformance.result import NotApplicable, Violation
from fedlora_sim.federation import partition_slices
from fedlora_sim.lora import LoRAFactors


def _partition_identity(rule: Aggregator, case: Case) -> None:
    fedavg, zero = get_rule("fedavg"), replace(case, empty_partition="zero")
    for h, part in enumerate(partition_slices(case.rank_levels), start=1):
        coverage = case.coverage(part.start)
        if coverage:
            own = zero.in_partition(part)
            what = f"partition {h}, and FedAvg's over its coverage {coverage:.3g},"
            wanted = own.delta(fedavg) / coverage
            require_close(own.delta(rule), wanted, what, case.size / coverage)


def _equal_ranks_fedavg(rule: Aggregator, case: Case) -> None:
    what = "the result with equal ranks, and FedAvg's,"
    require_close(case.delta(rule), case.delta(get_rule("fedavg")), what, case.size)


def _empty_partition_zero(rule: Aggregator, case: Case) -> None:
    """Rank indices that nobody carries come back as nothing, whatever the last adapter was."""
    alone = replace(_without_top(case), empty_partition="zero")
    silent = replace(alone, updates=tuple(map(_silent, alone.updates)))
    nothing = torch.zeros_like(case.previous.delta())
    what = "a round of zero updates under empty_partition='zero', and nothing,"
    require_close(silent.delta(rule), nothing, what, case.size)
    doubled = replace(alone.previous, lora_B=2 * alone.previous.lora_B)
    other = replace(alone, previous=doubled)
    what = "a round under empty_partition='zero', and with another last adapter,"
    require_close(other.delta(rule), alone.delta(rule), what, case.size)


def _empty_partition_carry(rule: Aggregator, case: Case) -> None:
    """Rank indices that nobody carries come back as the last adapter has them."""
    silent = replace(_without_top(case), empty_partition="carry")
    empty = slice(max(u.rank for u in silent.taking_part), None)
    dropped = replace(silent, empty_partition="zero").delta(rule)
    wanted = dropped + only(case.previous, empty).delta()
    what = "a round under empty_partition='carry', and what it keeps of the last adapter,"
    require_close(silent.delta(rule), wanted, what, case.size)


def _silent(update: LoRAFactors) -> LoRAFactors:
    return replace(update, lora_B=torch.zeros_like(update.lora_B))


def _empty_partition_error(rule: Aggregator, case: Case) -> None:
    """Refused where nobody carries a partition; where somebody carries each, as under `zero`."""
    covered = case.inserted(len(case.updates), case.previous, 1.0)
    under_error, under_zero = (
        replace(covered, empty_partition=policy).delta(rule) for policy in ("error", "zero")
    )
    what = "a round without empty partitions under empty_partition='error', and under 'zero',"
    require_close(under_error, under_zero, what, covered.size)
    try:
        replace(_without_top(case), empty_partition="error").step(rule)
    except ValueError:
        return
    raise Violation("empty_partition='error' did not refuse a partition that nobody carries")


def _unknown_level(rule: Aggregator, case: Case) -> None:
    """A client of a rank between the levels of the federation."""
    rank = case.taking_part[0].rank
    if rank == case.rank_levels[-1]:
        raise NotApplicable  # without the highest level the last adapter would not fit
    levels = tuple(level for level in case.rank_levels if level != rank)
    try:
        replace(case, rank_levels=levels).step(rule)
    except ValueError:
        return
    raise Violation(f"a client of rank {rank} was taken, where the rank levels are {levels}")


def _without_top(case: Case) -> Case:
    """The round in which nobody has the highest level."""
    if len(case.rank_levels) == 1:
        raise NotApplicable
    lower, top = case.rank_levels[-2:]
    updates = (u.truncate(lower) if u.rank == top else u for u in case.updates)
    return replace(case, updates=tuple(updates))


CHECKS = (
    Check(
        "partition_identity",
        "A partition is FedAvg's, divided by its coverage.",
        _partition_identity,
        by_property("partition_identity"),
        {"min_levels": 2, "positions": False},
    ),
    Check(
        "equal_ranks_fedavg",
        "With equal ranks the rule is FedAvg.",
        _equal_ranks_fedavg,
        by_property("equal_ranks_fedavg"),
        {"equal_ranks": True, "full_rank": False},
    ),
    Check(
        "empty_partition_zero",
        "A partition that nobody carries is lost under empty_partition='zero'.",
        _empty_partition_zero,
        by_property("empty_partitions"),
        {"min_levels": 2, "positions": False},
    ),
    Check(
        "empty_partition_carry",
        "A partition that nobody carries stays as it was under empty_partition='carry'.",
        _empty_partition_carry,
        by_property("empty_partitions"),
        {"min_levels": 2, "positions": False},
    ),
    Check(
        "empty_partition_error",
        "A partition that nobody carries is refused under empty_partition='error'.",
        _empty_partition_error,
        by_property("empty_partitions"),
        {"min_levels": 2, "positions": False},
    ),
    Check(
        "unknown_level",
        "A client whose rank is no level of the federation is refused.",
        _unknown_level,
        by_property("unknown_level"),
        {"min_levels": 2, "positions": False},
    ),
)
