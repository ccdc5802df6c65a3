"""What a check is: a law, the cohorts that it speaks of, and the property that declares it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule, Aggregator, Properties
from fedlora_sim.conformance.case import Case
from fedlora_sim.conformance.result import Violation
from fedlora_sim.tolerances import relative

Test = Callable[[Aggregator, Case], None]
Wanted = Callable[[Properties], bool | None]


def _nothing(_: AggregationRule) -> None:
    return None


@dataclass(frozen=True)
class Check:
    """One law.

    Args:
        name: short, as reported.
        statement: the law in a sentence.
        test: raises `Violation` where a rule breaks the law on a case, `NotApplicable` where the
            law says nothing of the case.
        declared: what a rule's properties say of it: True, False (a counterexample is wanted) or
            None (untested); always True for laws that hold of every aggregator.
        options: of the cases, see `strategies.cases`.
        missing: what the rule or this machine lacks for it, None where nothing is missing.
    """

    name: str
    statement: str
    test: Test
    declared: Wanted
    options: Mapping[str, Any] = field(default_factory=dict)
    missing: Callable[[AggregationRule], str | None] = _nothing


def universal(_: Properties) -> bool:
    """Laws that hold of every aggregator."""
    return True


def by_property(name: str, *values: object) -> Wanted:
    """A law that a property of this name declares: by True, or by one of these values."""
    present = values or (True,)

    def declared(properties: Properties) -> bool | None:
        own = getattr(properties, name)
        return None if own is None else own in present

    return declared


def require_close(
    found: Tensor, wanted: Tensor, what: str, scale: float, kind: str = "factorization"
) -> None:
    """Refuse two results that differ by more than rounding.

    Args:
        found: a result.
        wanted: what it must be, same shape.
        what: the two, as a violation is worded.
        scale: norm that the difference is relative to, where that of `wanted` is not larger.
        kind: of the tolerance, see `fedlora_sim.tolerances`; that of float64.

    Raises:
        Violation: saying by how much.
    """
    if found.shape != wanted.shape:
        raise Violation(f"{what}: shapes {tuple(found.shape)} and {tuple(wanted.shape)}")
    off = float(torch.linalg.vector_norm((found - wanted).double()))
    # The result may be more than what goes in, where weights are not normalised.
    bound = relative(kind) * max(scale, float(torch.linalg.vector_norm(wanted.double())))
    if not off <= bound:
        raise Violation(f"{what} differ by {off:.3g} in norm, {bound:.1g} is rounding")
