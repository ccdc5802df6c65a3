"""Laws on single directions, which every client returns alike: what becomes of their amplitudes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule, Aggregator, Cohort, Properties
from fedlora_sim.aggregation.foreign import ForeignRule
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close, universal
from fedlora_sim.conformance.result import NotApplicable, Violation
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.shares import share
from fedlora_sim.tolerances import relative


@dataclass(frozen=True, eq=False)
class Shared:
    """A round in which all clients return those directions of one basis that they carry, alike.

    Args:
        case: the round; ranks, weights, scalings and levels are those of the case it was made of.
        u: left directions, (d_out, r_max).
        v: right directions, (d_in, r_max).
        amplitudes: what clients return, (r_max,), descending.
    """

    case: Case
    u: Tensor
    v: Tensor
    amplitudes: Tensor

    @classmethod
    def of(cls, case: Case, *, frozen_a: bool) -> Shared:
        """The case with the basis in place of its updates.

        Args:
            case: any case.
            frozen_a: A is the directions and B has the amplitudes; else the two share them.
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
        """Amplitudes of the result, (r_max,)."""
        return torch.diag(self.u.mT @ self.case.delta(rule) @ self.v)

    def with_client(self, rank: int) -> Shared:
        """The round with one more client, of this rank and the largest weight."""
        case, more = self.case, self.case.previous.truncate(rank)
        return replace(self, case=case.inserted(len(case.updates), more, max(case.weights)))


def coverage(case: Case, properties: Properties) -> Tensor:
    """Share of the contributors to every rank index, (r_max,), as the properties count it."""
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
    assert declared is not None  # else the check is skipped
    shared = Shared.of(case, frozen_a=rule.properties.common_a)
    covered = coverage(shared.case, rule.properties)
    wanted = declared(covered) * shared.amplitudes
    what = f"amplitudes where the coverage is {[round(w, 3) for w in covered.tolist()]}"
    require_close(shared.after(rule), wanted, what, shared.case.size)


def _around_a_low_rank_client(rule: Aggregator, case: Case) -> tuple[Tensor, Tensor, float]:
    """Amplitudes above the lowest level before and after such a client came, and rounding."""
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
    """In a batch of two cohorts, of which the second has other weights; as engines ask for them."""
    assert isinstance(rule, AggregationRule)  # else the check is skipped
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
    return "a rule with a step of its own" if isinstance(rule, ForeignRule) else None


CHECKS = (
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
