"""A cohort as data: what every check runs a rule on, and what it prints when a rule fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from fedlora_sim.lora import LoRAFactors
from fedlora_sim.rules import (
    NO_STATE,
    Aggregated,
    AggregationRule,
    Aggregator,
    Context,
    Properties,
    State,
)
from fedlora_sim.tolerances import SPECTRAL_GAP, relative

Change = Callable[[LoRAFactors], LoRAFactors]

EARLIER = 2
"""Updates of the first earlier round are those of the case times this number; then one more."""


Positions = tuple[tuple[int, ...], ...]
"""Rank index of every column of every client."""


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """One round as a server meets it, and the rounds before it.

    Args:
        updates: `lora_A` (r_k, d_in), `lora_B` (d_out, r_k) and scaling of every client.
        weights: of the clients, not normalised; one at least is positive.
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
        previous: the last global adapter, of rank r_max.
        empty_partition: `zero | carry`.
        seed: of what a check draws besides: an order, a rotation, a change of gauge.
        positions: rank index of every column of every client; None: its first r_k.
        earlier: rounds that `delta` runs before this one, for the state that they leave.
    """

    updates: tuple[LoRAFactors, ...]
    weights: tuple[float, ...]
    rank_levels: tuple[int, ...]
    previous: LoRAFactors
    empty_partition: str = "carry"
    seed: int = 0
    positions: Positions | None = None
    earlier: int = 0

    def __repr__(self) -> str:
        """Ranks and weights; `code` has all numbers."""
        ranks = [update.rank for update in self.updates]
        layer = f"{self.previous.d_out} x {self.previous.d_in}"
        return f"Case({layer}, ranks={ranks}, weights={list(self.weights)}, seed={self.seed})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """As Hypothesis writes it, which prints every number of a dataclass otherwise."""
        printer.text(repr(self))

    @property
    def context(self) -> Context:
        """What the server knows besides the updates."""
        return Context(self.rank_levels, self.previous, self.empty_partition, self.positions)

    def step(self, rule: Aggregator, state: State = NO_STATE) -> tuple[Aggregated, State]:
        """What the rule makes of the round, and what it keeps.

        It works on copies: a rule that changes its inputs breaks the law on that, and no other.
        """
        own = self.map(copied)
        with torch.no_grad():
            handed = {name: x.clone() for name, x in state.items()}
            return rule.step(own.updates, own.weights, own.context, handed)

    def delta(self, rule: Aggregator) -> Tensor:
        """The whole update of the last round, (d_out, d_in), with what goes into the base."""
        return self.run(rule)[0].delta()

    def run(self, rule: Aggregator) -> tuple[Aggregated, State]:
        """The result and the state of the last round, after the earlier ones."""
        return self.step(rule, self.state_before(rule))

    def state_before(self, rule: Aggregator) -> State:
        """What the earlier rounds leave."""
        state = NO_STATE
        for number in range(self.earlier):
            state = self.louder(EARLIER + number).step(rule, state)[1]
        return state

    def louder(self, times: float) -> Case:
        """The round with every client's update times a number."""
        updates = [replace(u, lora_B=times * u.lora_B) for u in self.updates]
        return replace(self, updates=tuple(updates))

    @cached_property
    def size(self) -> float:
        """Summed norms of all that goes in: what errors are relative to."""
        parts = (*self.updates, self.previous)
        return sum(float(torch.linalg.matrix_norm(u.delta().double())) for u in parts)

    @property
    def generator(self) -> torch.Generator:
        """A new generator at the case's seed."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def taking_part(self) -> list[LoRAFactors]:
        """Updates of the clients whose weight is positive."""
        return [u for u, w in zip(self.updates, self.weights, strict=True) if w > 0]

    def coverage(self, i: int) -> float:
        """Weight share `W` of the clients that carry rank index i, counted from 0."""
        pairs = zip(self.held, self.weights, strict=True)
        return sum(w for held, w in pairs if i in held) / sum(self.weights)

    def map(self, change: Change) -> Case:
        """The round after a change that every update and the last adapter go through."""
        updates = tuple(map(change, self.updates))
        return replace(self, updates=updates, previous=change(self.previous))

    def to(self, dtype: torch.dtype) -> Case:
        """The round in another dtype."""
        return self.map(lambda update: update.to(dtype))

    def in_partition(self, part: slice) -> Case:
        """The round with every rank component outside the part set to zero."""
        return self.map(lambda update: only(update, part))

    @property
    def held(self) -> Positions:
        """Rank index of every column of every client, also where it is the usual one."""
        if self.positions is not None:
            return self.positions
        return tuple(tuple(range(update.rank)) for update in self.updates)

    def take(self, clients: Sequence[int], weights: Sequence[float] | None = None) -> Case:
        """The round of these clients, by index and in this order, some perhaps more than once.

        Args:
            clients: indices.
            weights: one for each of them; their own when None.
        """
        own = [self.weights[k] for k in clients] if weights is None else weights
        positions = None if self.positions is None else tuple(self.positions[k] for k in clients)
        updates = tuple(self.updates[k] for k in clients)
        return replace(self, updates=updates, weights=tuple(own), positions=positions)

    def inserted(
        self, place: int, update: LoRAFactors, weight: float, held: Sequence[int] | None = None
    ) -> Case:
        """The round with one more client.

        Args:
            place: index that it gets.
            update: its update.
            weight: its weight.
            held: rank index of its columns; the first ones when None.
        """
        updates, weights, positions = list(self.updates), list(self.weights), list(self.held)
        updates.insert(place, update)
        weights.insert(place, weight)
        positions.insert(place, tuple(range(update.rank) if held is None else held))
        kept = None if self.positions is None and held is None else tuple(positions)
        return replace(self, updates=tuple(updates), weights=tuple(weights), positions=kept)

    def code(self) -> str:
        """The round as Python to paste: `updates`, `weights`, the `context` of a step, `seed`."""
        held = "" if self.positions is None else f", {self.positions}"
        lines = [
            "import torch",
            "from fedlora_sim import LoRAFactors",
            "from fedlora_sim.rules import Context",
            "",
            "updates = [",
            *(f"    {_code(update)}," for update in self.updates),
            "]",
            f"weights = {list(self.weights)}",
            f"previous = {_code(self.previous)}",
            f"context = Context({self.rank_levels}, previous, {self.empty_partition!r}{held})",
            f"seed = {self.seed}  # of what a law draws besides: an order, a rotation, a gauge",
        ]
        if self.earlier:
            lines.append(f"earlier = {self.earlier}  # rounds before it, of larger updates")
        return "\n".join(lines)


def copied(update: LoRAFactors) -> LoRAFactors:
    """The update, in memory of its own."""
    return LoRAFactors(update.lora_A.clone(), update.lora_B.clone(), update.scaling)


def only(update: LoRAFactors, part: slice) -> LoRAFactors:
    """The update with every rank component outside the part set to zero."""
    mask = torch.zeros(update.rank).to(update.lora_B)
    mask[part] = 1
    return replace(update, lora_B=update.lora_B * mask)


def _code(update: LoRAFactors) -> str:
    dtype = "" if update.dtype == torch.float32 else f", dtype={update.dtype}"
    a, b = (f"torch.tensor({x.tolist()}{dtype})" for x in (update.lora_A, update.lora_B))
    return f"LoRAFactors({a}, {b}, {update.scaling!r})"


# What came of a check

Status = Literal["passed", "failed", "skipped", "expected"]


class Violation(AssertionError):  # noqa: N818 - no error of the program
    """A case in which a rule breaks a law; the message says how."""


class NotApplicable(Exception):  # noqa: N818 - no error
    """A case of which a law says nothing."""


@dataclass(frozen=True, eq=False)
class CheckResult:
    """What came of one check of one rule.

    Args:
        check: its name.
        status: `passed`: no counterexample to a law that is universal or declared; `failed`: one,
            or none to a law that is declared absent; `expected`: one, to a law declared absent;
            `skipped`: not declared, hence untested, or not available.
        reason: what was found, in a line.
        statement: the law.
        examples: cases of which the law speaks that were tried, up to the first that breaks it.
        counterexample: the smallest case found that breaks the law; `code()` is Python to paste.
    """

    check: str
    status: Status
    reason: str
    statement: str
    examples: int = 0
    counterexample: Case | None = None


# What a check is: a law, the cohorts that it speaks of, and the property that declares it

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


# Where singular vectors are well defined: singular values that lie apart


def lie_apart(update: LoRAFactors) -> bool:
    """Whether all singular values of an update, zero after its rank, lie apart."""
    values = torch.linalg.svdvals(update.delta())[: update.rank]
    return bool((_gaps(values) >= SPECTRAL_GAP * values[0]).all()) and bool(values[0] > 0)


def gap_at(matrix: Tensor, r: int) -> bool:
    """Whether a matrix has a gap after its r-th singular value, or none beyond it."""
    values = torch.linalg.svdvals(matrix)
    if r >= len(values):
        return True
    return bool(values[r - 1] - values[r] >= SPECTRAL_GAP * values[0])


def _gaps(values: Tensor) -> Tensor:
    return values - torch.cat([values[1:], values.new_zeros(1)])
