"""The global update of a run: adapters, trained heads, and what rules have merged into the base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fedlora_sim.aggregation import Aggregated
from fedlora_sim.factors import LoRAFactors
from fedlora_sim.lowrank import sign_fixed_svd
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.attach import add_deltas
from fedlora_sim.training.stacked import Heads

SVD = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class GlobalUpdate:
    """`dW = adapter + base` of every adapted module.

    Args:
        adapters: module name to the global adapter, rank r_max.
        base: module name to the accumulated correction of the frozen weight, (d_out, d_in); empty
            under rules that leave the base alone.
        heads: name of every module that clients train whole to its weight and bias.
    """

    adapters: Mapping[str, LoRAFactors]
    base: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Heads = field(default_factory=dict)

    def after(
        self,
        results: Mapping[str, Aggregated],
        heads: Heads | None = None,
    ) -> GlobalUpdate:
        """The global update after a round with these results, and with these heads."""
        base = dict(self.base)
        for name, result in results.items():
            if result.base is not None:
                more = result.base.dense()
                base[name] = base[name] + more if name in base else more
        adapters = {name: r.adapter for name, r in results.items()}
        return GlobalUpdate(adapters, base, self.heads if heads is None else heads)

    def deltas(self) -> dict[str, Tensor]:
        """The whole update of every module, dense."""
        return {
            name: f.delta() + self.base[name] if name in self.base else f.delta()
            for name, f in self.adapters.items()
        }

    def svd(self, r: int) -> dict[str, SVD]:
        """Leading r triplets of the whole update of every module."""
        found = {}
        for name, factors in self.adapters.items():
            if name in self.base:
                u, s, vh = sign_fixed_svd(factors.delta() + self.base[name])
                found[name] = (u[:, :r], s[:r], vh[:r])
            else:
                found[name] = factors.svd()
        return found

    def merged(self, task: Task) -> Task:
        """The task with the corrections in its model's weights: what clients train on."""
        if not self.base:
            return task
        # What the corrections do not touch is shared with the task's model.
        shared: dict[int, Any] = {
            id(x): x for x in (*task.model.parameters(), *task.model.buffers())
        }
        model = copy.deepcopy(task.model, shared)
        for name, weight in add_deltas(task.model, self.base).items():
            module, _, leaf = name.rpartition(".")
            own = nn.Parameter(weight, requires_grad=False)
            setattr(model.get_submodule(module), leaf, own)
        return replace(task, model=model)
