"""Laws on how a cohort is written down: units, scalings, bases, sides, gauges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fedlora_sim.aggregation import Aggregator
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.law import Check, by_property, require_close
from fedlora_sim.federation import partition_slices
from fedlora_sim.lora import LoRAFactors

TIMES = 3.0


def _homogeneous(rule: Aggregator, case: Case) -> None:
    larger = case.map(lambda u: replace(u, lora_B=TIMES * u.lora_B))
    what = f"updates times {TIMES:g}, and {TIMES:g} times the result,"
    require_close(larger.delta(rule), TIMES * case.delta(rule), what, TIMES * case.size)


def _scaling_convention(rule: Aggregator, case: Case) -> None:
    """The change is shared by A and B, as the average of factors has it; a frozen A stays."""

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
    """Column i stands at index `new[i]`: what the last adapter has at i, it has there too."""
    new = torch.randperm(case.rank_levels[-1], generator=case.generator)
    positions = tuple(tuple(new[: u.rank].tolist()) for u in case.updates)
    previous = case.previous.select(torch.argsort(new))
    other = replace(case, previous=previous, positions=positions)
    what = f"rank indices numbered {new.tolist()}"
    require_close(other.delta(rule), case.delta(rule), what, case.size)


def _rounding(rule: Aggregator) -> str:
    """Kind of the tolerance: a singular value near its neighbour turns the directions of both."""
    return "iteration" if rule.properties.gap_needed else "factorization"


def _in_gauge(case: Case, parts: Sequence[slice]) -> Case:
    """Every client in a gauge of its own that mixes within each of these parts."""
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
    """An invertible matrix of condition at most 4."""
    stretch = 0.5 + 1.5 * torch.rand(d, generator=generator, dtype=torch.float64)
    return _rotation(d, generator) * stretch @ _rotation(d, generator)


CHECKS = (
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
