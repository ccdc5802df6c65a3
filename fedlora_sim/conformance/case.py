"""The input of a check (a cohort as data), the result of a check, and the check itself."""

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
"""Updates of the first earlier round are those of the case times this number; one more is added."""


Positions = tuple[tuple[int, ...], ...]
"""Rank index of each column of each client."""


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    """One round of a server, and the rounds before it.

    Args:
        updates: `lora_A` (r_k, d_in), `lora_B` (d_out, r_k) and scaling of each client.
        weights: client weights, not normalized; at least one is positive.
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
        previous: the last global adapter, of rank r_max.
        empty_partition: `zero | carry`.
        seed: seed for further draws of a check: an order, a rotation, a gauge.
        positions: rank index of each column of each client; None means the first r_k.
        earlier: rounds that `delta` runs before this one, which determine the state.
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
        """Return the ranks and weights; `code` returns all numbers."""
        ranks = [update.rank for update in self.updates]
        layer = f"{self.previous.d_out} x {self.previous.d_in}"
        return f"Case({layer}, ranks={ranks}, weights={list(self.weights)}, seed={self.seed})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print as `repr` does; Hypothesis would print every number of a dataclass."""
        printer.text(repr(self))

    @property
    def context(self) -> Context:
        """The server's knowledge besides the updates."""
        return Context(self.rank_levels, self.previous, self.empty_partition, self.positions)

    def step(self, rule: Aggregator, state: State = NO_STATE) -> tuple[Aggregated, State]:
        """Return the rule's result of the round and its new state.

        The rule gets copies, so that a rule that changes its inputs breaks only the law about
        inputs.
        """
        own = self.map(copied)
        with torch.no_grad():
            handed = {name: x.clone() for name, x in state.items()}
            return rule.step(own.updates, own.weights, own.context, handed)

    def delta(self, rule: Aggregator) -> Tensor:
        """Return whole update of the last round, (d_out, d_in), including the base correction."""
        return self.run(rule)[0].delta()

    def run(self, rule: Aggregator) -> tuple[Aggregated, State]:
        """Return the result and the state of the last round, after the earlier ones."""
        return self.step(rule, self.state_before(rule))

    def state_before(self, rule: Aggregator) -> State:
        """Return the state after the earlier rounds."""
        state = NO_STATE
        for number in range(self.earlier):
            state = self.louder(EARLIER + number).step(rule, state)[1]
        return state

    def louder(self, times: float) -> Case:
        """Return the round with each client's update multiplied by a number."""
        updates = [replace(u, lora_B=times * u.lora_B) for u in self.updates]
        return replace(self, updates=tuple(updates))

    @cached_property
    def size(self) -> float:
        """Sum of the norms of all inputs, to which errors are relative."""
        parts = (*self.updates, self.previous)
        return sum(float(torch.linalg.matrix_norm(u.delta().double())) for u in parts)

    @property
    def generator(self) -> torch.Generator:
        """A new generator with the case's seed."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def taking_part(self) -> list[LoRAFactors]:
        """Updates of the clients with positive weight."""
        return [u for u, w in zip(self.updates, self.weights, strict=True) if w > 0]

    def coverage(self, i: int) -> float:
        """Return the weight share `W` of the clients that carry rank index i, counted from 0."""
        pairs = zip(self.held, self.weights, strict=True)
        return sum(w for held, w in pairs if i in held) / sum(self.weights)

    def map(self, change: Change) -> Case:
        """Return the round with a function applied to every update and to the last adapter."""
        updates = tuple(map(change, self.updates))
        return replace(self, updates=updates, previous=change(self.previous))

    def to(self, dtype: torch.dtype) -> Case:
        """Return the round in another dtype."""
        return self.map(lambda update: update.to(dtype))

    def in_partition(self, part: slice) -> Case:
        """Return the round with all rank components outside the part set to zero."""
        return self.map(lambda update: only(update, part))

    @property
    def held(self) -> Positions:
        """Rank index of each column of each client, including the default."""
        if self.positions is not None:
            return self.positions
        return tuple(tuple(range(update.rank)) for update in self.updates)

    def take(self, clients: Sequence[int], weights: Sequence[float] | None = None) -> Case:
        """Return the round of the given clients, in this order, possibly with repetitions.

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
        """Return the round with one more client.

        Args:
            place: its index.
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
        """Return the round as Python code: `updates`, `weights`, `context` of a step, `seed`."""
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
    """Return a copy of the update."""
    return LoRAFactors(update.lora_A.clone(), update.lora_B.clone(), update.scaling)


def only(update: LoRAFactors, part: slice) -> LoRAFactors:
    """Return the update with all rank components outside the part set to zero."""
    mask = torch.zeros(update.rank).to(update.lora_B)
    mask[part] = 1
    return replace(update, lora_B=update.lora_B * mask)


def _code(update: LoRAFactors) -> str:
    dtype = "" if update.dtype == torch.float32 else f", dtype={update.dtype}"
    a, b = (f"torch.tensor({x.tolist()}{dtype})" for x in (update.lora_A, update.lora_B))
    return f"LoRAFactors({a}, {b}, {update.scaling!r})"


# Results of checks

Status = Literal["passed", "failed", "skipped", "expected"]


class Violation(AssertionError):  # noqa: N818 - no error of the program
    """A case in which a rule breaks a law; the message says how."""


class NotApplicable(Exception):  # noqa: N818 - no error
    """A case to which a law does not apply."""


@dataclass(frozen=True, eq=False)
class CheckResult:
    """Result of one check of one rule.

    Args:
        check: name of the check.
        status: `passed`: no counterexample to a law that is universal or declared to hold;
            `failed`: a counterexample, or none to a law declared not to hold;
            `expected`: a counterexample to a law declared not to hold;
            `skipped`: not declared and therefore not tested, or not available.
        reason: the finding, in one line.
        statement: the law.
        examples: number of applicable cases tried, up to the first counterexample.
        counterexample: the smallest case found that breaks the law; `code()` returns Python code.
    """

    check: str
    status: Status
    reason: str
    statement: str
    examples: int = 0
    counterexample: Case | None = None


# Checks: a law, the cohorts to which it applies, and the property that declares it

Test = Callable[[Aggregator, Case], None]
Wanted = Callable[[Properties], bool | None]


def _nothing(_: AggregationRule) -> None:
    return None


@dataclass(frozen=True)
class Check:
    """One law.

    Args:
        name: short name for reports.
        statement: the law in one sentence.
        test: raises `Violation` if a rule breaks the law on a case, and `NotApplicable` if the law
            does not apply to the case.
        declared: returns a rule's declaration: True, False (a counterexample is expected) or None
            (not tested); always True for laws that every aggregator must satisfy.
        options: options of the cases, see `strategies.cases`.
        missing: returns what the rule or this machine lacks for the check, or None.
    """

    name: str
    statement: str
    test: Test
    declared: Wanted
    options: Mapping[str, Any] = field(default_factory=dict)
    missing: Callable[[AggregationRule], str | None] = _nothing


def universal(_: Properties) -> bool:
    """Return True for every rule: the declaration of laws that all aggregators must satisfy."""
    return True


def by_property(name: str, *values: object) -> Wanted:
    """Return a function that reads a law's declaration from a property of this name.

    The law is declared by True or by one of the given values.
    """
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
        wanted: the expected result, same shape.
        what: description of the two, for the message.
        scale: norm to which the difference is relative, if it exceeds that of `wanted`.
        kind: kind of tolerance in float64, see `fedlora_sim.tolerances`.

    Raises:
        Violation: states the difference.
    """
    if found.shape != wanted.shape:
        raise Violation(f"{what}: shapes {tuple(found.shape)} and {tuple(wanted.shape)}")
    off = float(torch.linalg.vector_norm((found - wanted).double()))
    # The result may exceed the inputs if weights are not normalized.
    bound = relative(kind) * max(scale, float(torch.linalg.vector_norm(wanted.double())))
    if not off <= bound:
        raise Violation(f"{what} differ by {off:.3g} in norm, {bound:.1g} is rounding")


# Separation of singular values, which makes singular vectors well defined


def lie_apart(update: LoRAFactors) -> bool:
    """Return True if all singular values of an update, zero beyond its rank, are separated."""
    values = torch.linalg.svdvals(update.delta())[: update.rank]
    return bool((_gaps(values) >= SPECTRAL_GAP * values[0]).all()) and bool(values[0] > 0)


def gap_at(matrix: Tensor, r: int) -> bool:
    """Return True if a matrix has a gap after its r-th singular value, or no further one."""
    values = torch.linalg.svdvals(matrix)
    if r >= len(values):
        return True
    return bool(values[r - 1] - values[r] >= SPECTRAL_GAP * values[0])


def _gaps(values: Tensor) -> Tensor:
    return values - torch.cat([values[1:], values.new_zeros(1)])
