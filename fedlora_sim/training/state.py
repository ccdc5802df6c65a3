"""The global update of a run: adapters, trained heads, and what rules have merged into the base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from fedlora_sim.aggregation import NO_STATE, Aggregated, State
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import sign_fixed_svd
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.attach import merged_copy
from fedlora_sim.training.stacked import Heads

SVD = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class GlobalUpdate:
    """`dW = adapter + base` of every adapted module; every tensor contiguous.

    Args:
        adapters: module name to the global adapter, rank r_max.
        base: module name to the accumulated correction of the frozen weight, (d_out, d_in); empty
            under rules that leave the base alone.
        heads: name of every module that clients train whole to its weight and bias.
        kept: module name to what the rule keeps for it from round to round.
    """

    adapters: Mapping[str, LoRAFactors]
    base: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Heads = field(default_factory=dict)
    kept: Mapping[str, State] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # As a file gives them back: other strides are other sums, hence other last digits.
        adapters = {
            name: LoRAFactors(f.lora_A.contiguous(), f.lora_B.contiguous(), f.scaling)
            for name, f in self.adapters.items()
        }
        base = {name: x.contiguous() for name, x in self.base.items()}
        heads = {name: tuple(x.contiguous() for x in own) for name, own in self.heads.items()}
        kept = {
            name: {key: x.contiguous() for key, x in own.items()}
            for name, own in self.kept.items()
            if own
        }
        held = {"adapters": adapters, "base": base, "heads": heads, "kept": kept}
        for name, values in held.items():
            object.__setattr__(self, name, values)

    def rule_state(self, module: str) -> State:
        """What the rule keeps for a module."""
        return self.kept.get(module, NO_STATE)

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
        kept = {name: r.state for name, r in results.items()}
        return GlobalUpdate(adapters, base, self.heads if heads is None else heads, kept)

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
        model = merged_copy(task.model, self.base)
        return replace(task, model=model)
