"""The protocol that every aggregation rule meets, this package's and yours.

A rule is a pure function of a round: updates, weights, what else the server knows, and the rule's
own state go in, the global update and the new state come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from fedlora_sim.aggregation.properties import Properties
from fedlora_sim.aggregation.result import Aggregated
from fedlora_sim.lora import LoRAFactors

State = Mapping[str, Tensor]
"""What a rule keeps from round to round, by name; a name has no `/`."""

NO_STATE: State = MappingProxyType({})
"""The state before the first round."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a server knows of a round besides the updates.

    Args:
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
        previous: the last global adapter, of rank r_max.
        empty_partition: `zero | carry | error`: what becomes of a partition that nobody carries.
        positions: rank index of every column of every client; None: its first r_k.
    """

    rank_levels: tuple[int, ...]
    previous: LoRAFactors | None = None
    empty_partition: str = "carry"
    positions: Sequence[Sequence[int]] | None = None

    @property
    def r_max(self) -> int:
        """The highest rank level."""
        return self.rank_levels[-1]


class Aggregator(Protocol):
    """An aggregation rule; `name`, `source` and `properties` may be plain class attributes.

    A class of rules may be a dataclass whose fields are its options, each with a default. Two more
    attributes are read where a rule has them: `space`, where `factor` says that columns of the
    adapter keep their place, and `none` that clients start every round with a fresh adapter because
    all of the update goes into the base; and `frozen_a`, that clients train B alone, which a rule
    whose properties say `common_a` need not repeat.
    """

    @property
    def name(self) -> str:
        """What the rule is called, without `:` and `,`."""
        ...

    @property
    def source(self) -> str:
        """Paper and place that define it."""
        ...

    @property
    def properties(self) -> Properties:
        """The laws that it keeps, and those that it does not."""
        ...

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        """Aggregate one round of one layer, changing nothing that is handed in.

        Args:
            updates: of the cohort's clients, `lora_A` (r_k, d_in), `lora_B` (d_out, r_k), each with
                its scaling, of one dtype on one device.
            weights: of the clients: their sample counts up to a common positive factor. None is
                negative, and one at least is positive.
            context: what else the server knows.
            state: what the rule returned last round; empty in the first.

        Returns:
            The global update, its adapter of rank r_max, in dtype and on the device of the updates;
            and the state to hand in next round.
        """
        ...
