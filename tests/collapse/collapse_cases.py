"""Rules for the tests of the collapse report: correct, wrong and broken ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from analysis.collapse import CollapseReport
from fedlora_sim.lora import LoRAFactors, from_svd
from fedlora_sim.rules import Aggregated, Context, Properties, State, get_rule
from fedlora_sim.rules.base import DataWeightedRule
from fedlora_sim.rules.fedavg import FedAvg
from fedlora_sim.rules.raflora import RaFLoRA

Reports = Callable[..., CollapseReport]


@dataclass(frozen=True)
class Halving(DataWeightedRule):
    """Average over contributors, halved for directions that not all clients carry, as declared."""

    name: ClassVar[str] = "halving"
    source: ClassVar[str] = "a test"

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        own = (weights.unsqueeze(-1) * members).expand(*members.shape)
        total = own.sum(-2, keepdim=True)
        shares = own / torch.where(total > 0, total, 1.0)
        return torch.where(members.all(-2, keepdim=True), shares, shares / 2)

    def multiplier(self, coverage: Tensor) -> Tensor:
        return torch.where(coverage > 0, torch.where(coverage < 1, 0.5, 1.0), 0.0).to(coverage)


@dataclass(frozen=True)
class Boasting(DataWeightedRule):
    """FedAvg that declares no dilution."""

    name: ClassVar[str] = "boasting"
    source: ClassVar[str] = "a test"

    def multiplier(self, coverage: Tensor) -> Tensor:
        return torch.ones_like(coverage)


@dataclass(frozen=True)
class Honest(DataWeightedRule):
    """FedAvg of another package, with the right multiplier."""

    name: ClassVar[str] = "honest"
    source: ClassVar[str] = "a test"

    def multiplier(self, coverage: Tensor) -> Tensor:
        return coverage


@dataclass(frozen=True)
class Raised(RaFLoRA):
    """raFLoRA under another class, which closed forms do not know."""

    name: ClassVar[str] = "raised"


@dataclass(frozen=True)
class Shrinking(RaFLoRA):
    """raFLoRA times a factor, as declared: all directions lose alike."""

    name: ClassVar[str] = "shrinking"
    factor: float = 0.5

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        return self.factor * super().direction_weights(weights, members, norms)

    def multiplier(self, coverage: Tensor) -> Tensor:
        return self.factor * super().multiplier(coverage)


@dataclass(frozen=True)
class Impostor(FedAvg):
    """raFLoRA's weights under an inherited name."""

    def direction_weights(
        self, weights: Tensor, members: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        return RaFLoRA().direction_weights(weights, members, norms)


class _Foreign:
    source = "a test"
    properties = Properties()

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        raise NotImplementedError


class Momentum(_Foreign):
    """FedAvg with server momentum, which is a state."""

    name = "momentum"

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        mean = sum(w * u.delta() for w, u in zip(weights, updates, strict=True)) / sum(weights)
        assert isinstance(mean, Tensor)
        assert context.previous is not None
        previous = context.previous.delta()
        moved = 0.5 * state.get("moved", torch.zeros_like(mean)) + mean - previous
        u, s, vh = torch.linalg.svd(previous + moved, full_matrices=False)
        r = context.r_max
        return Aggregated(from_svd(u[:, :r], s[:r], vh[:r])), {"moved": moved}


class Declaring(_Foreign):
    """FedAvg by the protocol alone, with the right multiplier."""

    name = "declaring"
    properties = Properties(multiplier=lambda coverage: coverage)

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        return get_rule("fedavg").step(updates, weights, context, state)


class ByNorms(Declaring):
    """FedAvg by the protocol with the multiplier of other shares."""

    name = "by_norms"
    properties = Properties(multiplier=lambda coverage: coverage, coverage="norms")


class Turning(_Foreign):
    """raFLoRA that rotates the whole update, which loses no rank."""

    name = "turning"

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        kept, after = get_rule("raflora").step(updates, weights, context, state)
        d = kept.adapter.d_out
        turn = torch.linalg.qr(torch.ones(d, d, dtype=torch.float64).tril() + torch.eye(d))[0]
        moved = LoRAFactors(kept.adapter.lora_A, turn @ kept.adapter.lora_B, kept.adapter.scaling)
        return Aggregated(moved), after


class Nothing(_Foreign):
    """Zeros: the shared directions are lost as well."""

    name = "nothing"

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        a, b, r = updates[0].lora_A, updates[0].lora_B, context.r_max
        zeros = LoRAFactors(a.new_zeros(r, a.shape[1]), b.new_zeros(b.shape[0], r))
        return Aggregated(zeros), {}


class Small(_Foreign):
    """FedAvg that fails on cohorts of few clients."""

    name = "small"

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        if len(updates) < 10:
            raise RuntimeError("too few clients")
        return get_rule("fedavg").step(updates, weights, context, state)


class Explosive(_Foreign):
    """raFLoRA times a thousand in every round."""

    name = "explosive"

    def step(
        self,
        updates: Sequence[LoRAFactors],
        weights: Sequence[float],
        context: Context,
        state: State,
    ) -> tuple[Aggregated, State]:
        kept, after = get_rule("raflora").step(updates, weights, context, state)
        a, b = kept.adapter.lora_A, kept.adapter.lora_B
        return Aggregated(LoRAFactors(1e8 * a, 1e8 * b, kept.adapter.scaling)), after
