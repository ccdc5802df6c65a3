"""A cohort as data: what every check runs a rule on, and what it prints when a rule fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora_sim.aggregation import NO_STATE, Aggregated, Aggregator, Context, State
from fedlora_sim.factors import LoRAFactors

Change = Callable[[LoRAFactors], LoRAFactors]


@dataclass(frozen=True, eq=False)
class Case:
    """One round as a server meets it.

    Args:
        updates: `lora_A` (r_k, d_in), `lora_B` (d_out, r_k) and scaling of every client.
        weights: of the clients, not normalised; one at least is positive.
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
        previous: the last global adapter, of rank r_max.
        empty_partition: `zero | carry`.
        seed: of what a check draws besides: an order, a rotation, a change of gauge.
    """

    updates: tuple[LoRAFactors, ...]
    weights: tuple[float, ...]
    rank_levels: tuple[int, ...]
    previous: LoRAFactors
    empty_partition: str = "carry"
    seed: int = 0

    @property
    def context(self) -> Context:
        """What the server knows besides the updates."""
        return Context(self.rank_levels, self.previous, self.empty_partition)

    def step(self, rule: Aggregator, state: State = NO_STATE) -> tuple[Aggregated, State]:
        """What the rule makes of the round, and what it keeps.

        It works on copies: a rule that changes its inputs breaks the law on that, and no other.
        """
        own = self.map(copied)
        with torch.no_grad():
            handed = {name: x.clone() for name, x in state.items()}
            return rule.step(own.updates, own.weights, own.context, handed)

    def delta(self, rule: Aggregator) -> Tensor:
        """The whole update that it makes, (d_out, d_in), with what goes into the base."""
        return self.step(rule)[0].delta()

    @property
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
        pairs = zip(self.updates, self.weights, strict=True)
        return sum(w for u, w in pairs if u.rank > i) / sum(self.weights)

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

    def with_clients(self, updates: Sequence[LoRAFactors], weights: Sequence[float]) -> Case:
        """The round of other clients."""
        return replace(self, updates=tuple(updates), weights=tuple(weights))

    def code(self) -> str:
        """The round as Python to paste: `updates`, `weights`, the `context` of a step, `seed`."""
        lines = [
            "import torch",
            "from fedlora_sim import LoRAFactors",
            "from fedlora_sim.aggregation import Context",
            "",
            "updates = [",
            *(f"    {_code(update)}," for update in self.updates),
            "]",
            f"weights = {list(self.weights)}",
            f"previous = {_code(self.previous)}",
            f"context = Context({self.rank_levels}, previous, {self.empty_partition!r})",
            f"seed = {self.seed}  # of what a law draws besides: an order, a rotation, a gauge",
        ]
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
