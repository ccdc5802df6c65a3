"""Laws on clients, rounds, symmetries, partitions and directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.conformance.case import (
    Case,
    Check,
    NotApplicable,
    Violation,
    by_property,
    only,
    require_close,
    universal,
)
from fedlora_sim.federation import partition_slices
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import (
    NO_STATE,
    AggregationRule,
    Aggregator,
    Cohort,
    Properties,
    State,
    get_rule,
)
from fedlora_sim.rules.external import ExternalRule
from fedlora_sim.shares import share
from fedlora_sim.tolerances import relative

TIMES = (3.0, 3e9, 1 / 3e9)
"""Factors of the weights: not powers of two, which would change no digit; large enough to overflow

integers and half precision, and small enough to be lost in rounding.
"""
REPEATED = (2, 10)
"""Number of repetitions of a client; also ten, for rules with a minimum weight."""
ALONE = 3.0
"""Weight of a single client: 1 would look normalized."""


def _client_order(rule: Aggregator, case: Case) -> None:
    order = torch.randperm(len(case.updates), generator=case.generator).tolist()
    other, state = case.take(order), case.state_before(rule)  # earlier rounds are permuted too
    found, wanted = (one.step(rule, state)[0].delta() for one in (other, case))
    require_close(found, wanted, f"clients in the order {order}", case.size)


def _weight_scale(rule: Aggregator, case: Case) -> None:
    times = TIMES[case.seed % len(TIMES)]
    other = replace(case, weights=tuple(times * w for w in case.weights))
    require_close(other.delta(rule), case.delta(rule), f"weights times {times:g}", case.size)


def _weight_repetition(rule: Aggregator, case: Case) -> None:
    times = REPEATED[case.seed % len(REPEATED)]
    once = replace(case, weights=(times * case.weights[0], *case.weights[1:]))
    often = case.take([*range(len(case.updates)), *[0] * (times - 1)])
    what = f"client 0 of {times} times the weight, and client 0 {times} times,"
    require_close(often.delta(rule), once.delta(rule), what, case.size)


def _zero_weight(rule: Aggregator, case: Case) -> None:
    """Check a copy of the first client, or a client of the highest rank, with zero weight."""
    own, held = case.updates[0], case.held[0]
    if case.seed % 2:
        own, held = case.previous, tuple(range(case.previous.rank))
    loud = replace(own, lora_B=own.lora_B + 1)
    place = case.seed % (len(case.updates) + 1)
    what = f"with a client of weight 0 in place {place}, and without it,"
    more = case.inserted(place, loud, 0.0, None if case.positions is None else held)
    require_close(more.delta(rule), case.delta(rule), what, case.size)


def _single_client(rule: Aggregator, case: Case) -> None:
    alone = replace(case.take([0], [ALONE]), empty_partition="zero")
    own = case.updates[0].delta()
    require_close(alone.delta(rule), own, "one client alone, and its result,", case.size)


def _identical_clients(rule: Aggregator, case: Case) -> None:
    many = case.take([0] * len(case.updates), [w + 1 for w in case.weights])
    same = replace(many, empty_partition="zero")
    own = case.updates[0].delta()
    require_close(same.delta(rule), own, "identical clients, and their result,", case.size)


CLIENTS_LAWS = (
    Check(
        "client_order",
        "The order of the clients does not matter.",
        _client_order,
        by_property("client_order"),
        {"min_clients": 2, "earlier": True},
    ),
    Check(
        "weight_scale",
        "All weights times a positive number change nothing.",
        _weight_scale,
        by_property("weight_scale"),
        {"earlier": True},
    ),
    Check(
        "weight_repetition",
        "A client of weight 2 is the client of weight 1 twice.",
        _weight_repetition,
        by_property("weight_repetition"),
        {"earlier": True},
    ),
    Check(
        "zero_weight",
        "A client of weight 0 changes nothing.",
        _zero_weight,
        by_property("zero_weight"),
        {"earlier": True},
    ),
    Check(
        "single_client",
        "One client alone comes back as it is.",
        _single_client,
        by_property("single_client"),
        {"full_rank": False},
    ),
    Check(
        "identical_clients",
        "Clients that are all the same come back as they are.",
        _identical_clients,
        by_property("identical_clients"),
        {"full_rank": False},
    ),
)


# Laws on the representation of a cohort: units, scalings, bases, sides, gauges

RESCALED = 3.0


def _homogeneous(rule: Aggregator, case: Case) -> None:
    larger = case.map(lambda u: replace(u, lora_B=RESCALED * u.lora_B))
    what = f"updates times {RESCALED:g}, and {RESCALED:g} times the result,"
    require_close(larger.delta(rule), RESCALED * case.delta(rule), what, RESCALED * case.size)


def _scaling_convention(rule: Aggregator, case: Case) -> None:
    """Split the change between A and B, as factor averages require; keep a frozen A."""

    def rewritten(update: LoRAFactors, times: float) -> LoRAFactors:
        scaling = update.scaling * times
        if rule.properties.common_a:
            return LoRAFactors(update.lora_A, update.lora_B / times, scaling)
        return update.rescale(scaling)

    other = [rewritten(update, 2.0 + k) for k, update in enumerate(case.updates)]
    again = replace(case, updates=tuple(other), previous=rewritten(case.previous, 1.5))
    what = "the same updates in other scalings"
    require_close(again.delta(rule), case.delta(rule), what, case.size)


def _orthogonal(rule: Aggregator, case: Case) -> None:
    left = _rotation(case.previous.d_out, case.generator)
    right = _rotation(case.previous.d_in, case.generator)
    turned = case.map(lambda u: replace(u, lora_A=u.lora_A @ right.mT, lora_B=left @ u.lora_B))
    wanted = left @ case.delta(rule) @ right.mT
    require_close(turned.delta(rule), wanted, "turned updates, and the turned result,", case.size)


def _transpose(rule: Aggregator, case: Case) -> None:
    turned = case.map(lambda u: LoRAFactors(u.lora_B.mT, u.lora_A.mT, u.scaling))
    what = "transposed updates, and the transposed result,"
    require_close(turned.delta(rule), case.delta(rule).mT, what, case.size)


def _full_gauge(rule: Aggregator, case: Case) -> None:
    other = _in_gauge(case, [slice(0, case.rank_levels[-1])])
    what = "updates written as B G, G^-1 A"
    require_close(other.delta(rule), case.delta(rule), what, case.size, _rounding(rule))


def _partition_gauge(rule: Aggregator, case: Case) -> None:
    other = _in_gauge(case, partition_slices(case.rank_levels))
    what = "updates written as B G, G^-1 A with G within partitions"
    require_close(other.delta(rule), case.delta(rule), what, case.size, _rounding(rule))


def _column_order(rule: Aggregator, case: Case) -> None:
    generator = case.generator
    orders = [torch.randperm(update.rank, generator=generator) for update in case.updates]
    updates = tuple(u.select(order) for u, order in zip(case.updates, orders, strict=True))
    positions = tuple(tuple(order.tolist()) for order in orders)
    other = replace(case, updates=updates, positions=positions)
    what = f"columns listed with positions {positions}"
    require_close(other.delta(rule), case.delta(rule), what, case.size)


def _rank_indices(rule: Aggregator, case: Case) -> None:
    """Move column i to index `new[i]`, in the updates and in the last adapter."""
    new = torch.randperm(case.rank_levels[-1], generator=case.generator)
    positions = tuple(tuple(new[: u.rank].tolist()) for u in case.updates)
    previous = case.previous.select(torch.argsort(new))
    other = replace(case, previous=previous, positions=positions)
    what = f"rank indices numbered {new.tolist()}"
    require_close(other.delta(rule), case.delta(rule), what, case.size)


def _rounding(rule: Aggregator) -> str:
    """Return the kind of tolerance.

    Close singular values make both directions sensitive to rounding.
    """
    return "iteration" if rule.properties.gap_needed else "factorization"


def _in_gauge(case: Case, parts: Sequence[slice]) -> Case:
    """Return the round with a separate gauge per client, which mixes within each of these parts."""
    generator = case.generator

    def change(update: LoRAFactors) -> LoRAFactors:
        g = torch.eye(update.rank, dtype=torch.float64)
        for part in parts:
            own = range(update.rank)[part]
            if own:
                g[own.start : own.stop, own.start : own.stop] = _mixing(len(own), generator)
        g = g.to(update.lora_A)
        return replace(update, lora_A=torch.linalg.inv(g) @ update.lora_A, lora_B=update.lora_B @ g)

    return replace(case, updates=tuple(map(change, case.updates)))


def _rotation(d: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]


def _mixing(d: int, generator: torch.Generator) -> Tensor:
    """Return an invertible matrix with a condition number of at most 4."""
    stretch = 0.5 + 1.5 * torch.rand(d, generator=generator, dtype=torch.float64)
    return _rotation(d, generator) * stretch @ _rotation(d, generator)


SYMMETRY_LAWS = (
    Check(
        "homogeneous",
        "All updates times a positive number give the result times that number.",
        _homogeneous,
        by_property("homogeneous"),
        {"earlier": True},
    ),
    Check(
        "scaling_convention",
        "alpha/r is part of the update: the same update in another scaling is the same.",
        _scaling_convention,
        by_property("scaling_convention"),
        {"earlier": True},
    ),
    Check(
        "orthogonal",
        "Turning the layer's inputs and outputs turns the result.",
        _orthogonal,
        by_property("orthogonal"),
        {"earlier": True},
    ),
    Check(
        "transpose",
        "Transposed updates, A and B exchanged, give the transposed result.",
        _transpose,
        by_property("transpose"),
        {"earlier": True},
    ),
    Check(
        "full_gauge",
        "B G, G^-1 A is the same update for any invertible G.",
        _full_gauge,
        by_property("gauge", "full"),
        {"earlier": True},
    ),
    Check(
        "partition_gauge",
        "B G, G^-1 A is the same update for any G that mixes within partitions alone.",
        _partition_gauge,
        by_property("gauge", "full", "partition"),
        {"positions": False, "earlier": True},
    ),
    Check(
        "column_order",
        "A client may list its columns in any order, each with its rank index.",
        _column_order,
        by_property("positions"),
        {"positions": False, "earlier": True},
    ),
    Check(
        "rank_indices",
        "Rank indices numbered in another order give the same update.",
        _rank_indices,
        by_property("positions"),
        {"positions": False, "earlier": True},
    ),
)


# Laws on partitions, including empty ones


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
    """Check that rank indices without contributors are zero, whatever the last adapter was."""
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
    """Check that rank indices without contributors equal those of the last adapter."""
    silent = replace(_without_top(case), empty_partition="carry")
    empty = slice(max(u.rank for u in silent.taking_part), None)
    dropped = replace(silent, empty_partition="zero").delta(rule)
    wanted = dropped + only(case.previous, empty).delta()
    what = "a round under empty_partition='carry', and what it keeps of the last adapter,"
    require_close(silent.delta(rule), wanted, what, case.size)


def _silent(update: LoRAFactors) -> LoRAFactors:
    return replace(update, lora_B=torch.zeros_like(update.lora_B))


def _empty_partition_error(rule: Aggregator, case: Case) -> None:
    """Check for an error if a partition is empty, and for the result of `zero` if none is."""
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
    raise Violation("empty_partition='error' did not refuse a partition without contributors")


def _unknown_level(rule: Aggregator, case: Case) -> None:
    """Check that a client with a rank between the levels of the federation is refused."""
    rank = case.taking_part[0].rank
    if rank == case.rank_levels[-1]:
        raise NotApplicable  # the last adapter requires the highest level
    levels = tuple(level for level in case.rank_levels if level != rank)
    try:
        replace(case, rank_levels=levels).step(rule)
    except ValueError:
        return
    raise Violation(f"a client of rank {rank} was taken, where the rank levels are {levels}")


def _without_top(case: Case) -> Case:
    """Return the round without the clients of the highest level."""
    if len(case.rank_levels) == 1:
        raise NotApplicable
    lower, top = case.rank_levels[-2:]
    updates = (u.truncate(lower) if u.rank == top else u for u in case.updates)
    return replace(case, updates=tuple(updates))


PARTITIONS_LAWS = (
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
        "A partition without contributors is set to zero under empty_partition='zero'.",
        _empty_partition_zero,
        by_property("empty_partitions"),
        {"min_levels": 2, "positions": False},
    ),
    Check(
        "empty_partition_carry",
        "A partition without contributors is unchanged under empty_partition='carry'.",
        _empty_partition_carry,
        by_property("empty_partitions"),
        {"min_levels": 2, "positions": False},
    ),
    Check(
        "empty_partition_error",
        "A partition without contributors is refused under empty_partition='error'.",
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


# Laws on the amplitudes of single directions, which all clients return alike


@dataclass(frozen=True, eq=False)
class Shared:
    """A round in which all clients return the same directions, as far as they carry them.

    Args:
        case: the round; ranks, weights, scalings and levels are those of the original case.
        u: left directions, (d_out, r_max).
        v: right directions, (d_in, r_max).
        amplitudes: amplitudes that clients return, (r_max,), descending.
    """

    case: Case
    u: Tensor
    v: Tensor
    amplitudes: Tensor

    @classmethod
    def of(cls, case: Case, *, frozen_a: bool) -> Shared:
        """Return the case with the basis in place of its updates.

        Args:
            case: any case.
            frozen_a: A holds the directions and B the amplitudes; otherwise these are split evenly.
        """
        r_max, generator = case.rank_levels[-1], case.generator
        u, v = (_directions(d, r_max, generator) for d in (case.previous.d_out, case.previous.d_in))
        amplitudes = torch.arange(r_max, 0, -1, dtype=torch.float64)
        on_a = torch.ones_like(amplitudes) if frozen_a else amplitudes.sqrt()

        def shared(scaling: float, held: Sequence[int]) -> LoRAFactors:
            share, own = 1.0 if frozen_a else scaling**-0.5, list(held)
            lora_a, lora_b = share * (v * on_a).mT, u * (amplitudes / on_a) / (share * scaling)
            return LoRAFactors(lora_a[own], lora_b[:, own], scaling)

        pairs = zip(case.updates, case.held, strict=True)
        updates = tuple(shared(update.scaling, held) for update, held in pairs)
        previous = shared(case.previous.scaling, range(r_max))
        alike = replace(case, updates=updates, previous=previous, empty_partition="zero")
        return cls(alike, u, v, amplitudes)

    def after(self, rule: Aggregator) -> Tensor:
        """Return the amplitudes of the result, (r_max,)."""
        return torch.diag(self.u.mT @ self.case.delta(rule) @ self.v)

    def with_client(self, rank: int) -> Shared:
        """Return the round with one more client of this rank and the largest weight."""
        case, more = self.case, self.case.previous.truncate(rank)
        return replace(self, case=case.inserted(len(case.updates), more, max(case.weights)))


def coverage(case: Case, properties: Properties) -> Tensor:
    """Return share of the contributors to each rank index, as the properties count it, (r_max,)."""
    weights = torch.tensor(case.weights, dtype=torch.float64)
    norms = torch.stack([u.norm() for u in case.updates])
    counted = {
        "weights": weights,
        "norms": norms * (weights > 0),
        "weights_and_norms": weights * norms,
    }[properties.coverage]
    carried = np.zeros((len(case.updates), case.rank_levels[-1]))
    for k, held in enumerate(case.held):
        carried[k, list(held)] = 1
    shares = [share(counted, column) for column in carried.T]
    return torch.tensor(shares, dtype=torch.float64)


def _directions(d: int, r: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(d, r, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0]


def _multiplier(rule: Aggregator, case: Case) -> None:
    declared = rule.properties.multiplier
    assert declared is not None  # otherwise the check is skipped
    shared = Shared.of(case, frozen_a=rule.properties.common_a)
    covered = coverage(shared.case, rule.properties)
    wanted = declared(covered) * shared.amplitudes
    what = f"amplitudes where the coverage is {[round(w, 3) for w in covered.tolist()]}"
    require_close(shared.after(rule), wanted, what, shared.case.size)


def _around_a_low_rank_client(rule: Aggregator, case: Case) -> tuple[Tensor, Tensor, float]:
    """Return the amplitudes above the lowest level before and after adding such a client.

    The third value is the rounding error.
    """
    lowest = case.rank_levels[0]
    shared = Shared.of(case, frozen_a=rule.properties.common_a)
    highest = max(u.rank for u in case.taking_part)
    if highest == lowest:
        raise NotApplicable
    before, after = (s.after(rule)[lowest:highest] for s in (shared, shared.with_client(lowest)))
    return before, after, relative("factorization") * shared.case.size


def _low_rank_client_keeps(rule: Aggregator, case: Case) -> None:
    before, after, rounding = _around_a_low_rank_client(rule, case)
    off = float((after - before).abs().max())
    if off > rounding:
        raise Violation(f"one more client of the lowest rank moves an amplitude by {off:.3g}")


def _low_rank_client_dilutes(rule: Aggregator, case: Case) -> None:
    before, after, rounding = _around_a_low_rank_client(rule, case)
    least = float((before.abs() - after.abs()).min())
    if not least > rounding:
        raise Violation("one more client of the lowest rank leaves an amplitude above it as it is")


def _direction_weights(rule: Aggregator, case: Case) -> None:
    """Compare a batch of two cohorts with different weights, as engines pass them."""
    assert isinstance(rule, AggregationRule)  # otherwise the check is skipped
    levels = case.rank_levels
    cohort = Cohort.from_updates(
        case.updates, torch.tensor(case.weights), levels, list(map(torch.tensor, case.held))
    )
    weights = torch.tensor([case.weights, case.weights[::-1]], dtype=torch.float64)
    norms = torch.stack([cohort.norms(), cohort.norms().flip(0)])
    members = torch.stack([cohort.members, cohort.members.flip(0)])
    both = rule.direction_weights(weights, members, norms)
    if both.shape != members.shape:
        raise Violation(f"weights of shape {tuple(both.shape)}, not {tuple(members.shape)}")
    if not bool(torch.isfinite(both).all()):
        raise Violation("a weight that is not finite")
    if bool(both[~members].any()):
        raise Violation("a weight where the client does not carry the direction")
    for one in range(2):
        alone = rule.direction_weights(weights[one], members[one], norms[one])
        require_close(both[one], alone, "weights in a batch, and alone,", 1.0, "reduction")


def _has_weights(rule: AggregationRule) -> str | None:
    return "a rule with its own step" if isinstance(rule, ExternalRule) else None


DIRECTIONS_LAWS = (
    Check(
        "direction_weights",
        "Weights of clients in directions are finite, and zero where no client carries one.",
        _direction_weights,
        universal,
        {"full_rank": False, "min_levels": 2},
        missing=_has_weights,
    ),
    Check(
        "multiplier",
        "A direction that every contributor returns alike is multiplied as declared.",
        _multiplier,
        lambda properties: None if properties.multiplier is None else True,
        {"full_rank": False, "min_levels": 2},
    ),
    Check(
        "low_rank_client_keeps",
        "One more client of the lowest rank changes nothing above it.",
        _low_rank_client_keeps,
        by_property("low_rank_client", "keeps"),
        {"full_rank": False, "min_levels": 3, "positions": False, "decades": False},
    ),
    Check(
        "low_rank_client_dilutes",
        "One more client of the lowest rank dilutes everything above it.",
        _low_rank_client_dilutes,
        by_property("low_rank_client", "dilutes"),
        {"full_rank": False, "min_levels": 3, "positions": False, "decades": False},
    ),
)


# Laws on state: between rounds and between runs

ROUNDS = (1, 2, 3, 12)
"""Number of earlier rounds: the last number is beyond the warm-up of most schedules."""


def _stateless(rule: Aggregator, case: Case) -> None:
    rounds = ROUNDS[case.seed % len(ROUNDS)]
    what = f"a round after {rounds} others, and without them,"
    state = _state_after(rule, case, rounds)
    require_close(case.step(rule, state)[0].delta(), case.step(rule)[0].delta(), what, case.size)


def _independent_runs(rule: Aggregator, case: Case) -> None:
    """Check that a second run does not depend on the first through the rule object."""
    before = case.step(rule)[0]
    _state_after(rule, case, 2)
    after = case.step(rule)[0]
    for name in ("lora_A", "lora_B"):
        if not torch.equal(getattr(before.adapter, name), getattr(after.adapter, name)):
            raise Violation(f"another run in between changes the bits of {name}")
    if not torch.equal(before.delta(), after.delta()):
        raise Violation("another run in between changes the bits of the whole update")


def _state_after(rule: Aggregator, case: Case, rounds: int) -> State:
    """Return the state after rounds of other updates and weights."""
    state = NO_STATE
    other = replace(case, weights=case.weights[::-1])
    for number in range(rounds):
        other = other.map(lambda u: replace(u, lora_B=-u.lora_B.roll(1, 0)))
        state = other.louder(1.0 + number).step(rule, state)[1]
    return state


ROUNDS_LAWS = (
    Check(
        "stateless",
        "Earlier rounds change nothing, except through the last adapter.",
        _stateless,
        by_property("stateless"),
    ),
    Check(
        "independent_runs",
        "A run changes nothing in the next run.",
        _independent_runs,
        universal,
    ),
)
