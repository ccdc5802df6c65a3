"""Adapters of different ranks without padding: one batched product per group of equal rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.training_lanes import ALPHA, TRAINING, Case, Stacked, padded, with_modules
from fedlora_sim.finetune.local import StackDescent
from fedlora_sim.finetune.stacked import Adapters


class Grouped(Stacked):
    """The package's code, except that adapters are not padded: one product per rank."""

    def __init__(self, case: Case) -> None:
        self.case = case
        ranks, counts = np.unique(case.ranks, return_counts=True)
        self.sizes = list(zip(ranks.tolist(), counts.tolist(), strict=True))
        self.model = with_modules(case, self._module)
        modules: list[Any] = [self.model.get_submodule(name) for name in case.start]
        self.descent = StackDescent(modules, TRAINING)

    def _module(self, base: nn.Linear, name: str) -> nn.Module:
        lora_a, lora_b = self.case.start[name]
        counts = [count for _, count in self.sizes]
        parts = zip(lora_a.split(counts), lora_b.split(counts), self.sizes, strict=True)
        pairs = [(a[:, :rank], b[..., :rank]) for a, b, (rank, _) in parts]
        return GroupedLoRALinear(base, pairs, [ALPHA / rank for rank, _ in self.sizes])

    def adapters(self) -> Adapters:
        found = {name: self.model.get_submodule(name) for name in self.case.start}
        return {name: (padded(m.lora_A, -2), padded(m.lora_B, -1)) for name, m in found.items()}


class GroupedLoRALinear(nn.Module):
    """A frozen linear map with the adapters of clients, in groups of equal rank.

    Args:
        base: the linear map.
        pairs: `lora_A` (K_g, r_g, d_in) and `lora_B` (K_g, d_out, r_g) of each group.
        scaling: LoRA scaling of each group.
    """

    def __init__(
        self, base: nn.Linear, pairs: list[tuple[Tensor, Tensor]], scaling: list[float]
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.scaling = base.weight, base.bias, scaling
        self.lora_A = nn.ParameterList([a.clone() for a, _ in pairs])
        self.lora_B = nn.ParameterList([b.clone() for _, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        factors = (*self.lora_A, *self.lora_B)
        own = x.reshape(sum(len(a) for a in self.lora_A), -1, x.shape[-1])
        mapped: Tensor = GroupedProduct.apply(own, self.weight, self.bias, self.scaling, *factors)
        return mapped.view(*x.shape[:-1], -1)


class GroupedProduct(torch.autograd.Function):
    """The map and its gradients, in as few passes as in the package."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scaling: list[float], *factors: Tensor
    ) -> Tensor:
        groups = len(scaling)
        lora_a, lora_b = factors[:groups], factors[groups:]
        sizes = [len(a) for a in lora_a]
        mapped = functional.linear(x, weight, bias)
        inner = []
        parts = zip(x.split(sizes), mapped.split(sizes), lora_a, lora_b, scaling, strict=True)
        for own, out, a, b, scale in parts:
            inner.append(torch.bmm(own, a.mT).mul_(scale))
            out.baddbmm_(inner[-1], b.mT)
        ctx.save_for_backward(x, weight, *factors, *inner)
        ctx.scaling = scaling
        return mapped

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, *saved = ctx.saved_tensors
        groups = len(ctx.scaling)
        lora_a, lora_b, inner = (saved[i * groups : (i + 1) * groups] for i in range(3))
        sizes = [len(a) for a in lora_a]
        of_x = torch.matmul(grad, weight) if ctx.needs_input_grad[0] else None
        parts = zip(x.split(sizes), grad.split(sizes), lora_b, ctx.scaling, strict=True)
        of_a = []
        for i, (own, back, b, scale) in enumerate(parts):
            through = torch.bmm(back, b).mul_(scale)
            of_a.append(torch.bmm(through.mT, own))
            if of_x is not None:
                of_x.split(sizes)[i].baddbmm_(through, lora_a[i])
        of_b = [torch.bmm(g.mT, i) for g, i in zip(grad.split(sizes), inner, strict=True)]
        return of_x, None, None, None, *of_a, *of_b
