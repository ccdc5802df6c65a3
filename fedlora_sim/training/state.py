"""The global update of a run: the adapters, and what rules have merged into the base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedlora_sim.aggregation import Aggregated
from fedlora_sim.factors import LoRAFactors
from fedlora_sim.lowrank import sign_fixed_svd
from fedlora_sim.training.digits import DigitsTask
from fedlora_sim.training.stacked import find_linear

SVD = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class GlobalUpdate:
    """`dW = adapter + base` of every adapted module.

    Args:
        adapters: module name to the global adapter, rank r_max.
        base: module name to the accumulated correction of the frozen weight, (d_out, d_in); empty
            under rules that leave the base alone.
    """

    adapters: Mapping[str, LoRAFactors]
    base: Mapping[str, Tensor] = field(default_factory=dict)

    def after(self, results: Mapping[str, Aggregated]) -> GlobalUpdate:
        """The global update after a round with these results."""
        base = dict(self.base)
        for name, result in results.items():
            if result.base is not None:
                more = result.base.dense()
                base[name] = base[name] + more if name in base else more
        return GlobalUpdate({name: r.adapter for name, r in results.items()}, base)

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

    def merged(self, task: DigitsTask) -> DigitsTask:
        """The task with the corrections in its model's weights: what clients train on."""
        if not self.base:
            return task
        model = copy.deepcopy(task.model)
        with torch.no_grad():
            for name, correction in self.base.items():
                find_linear(model, name).weight.add_(correction)
        return replace(task, model=model)
