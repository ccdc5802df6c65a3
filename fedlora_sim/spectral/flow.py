"""LoRA's own training at the spectral fidelity: the gradient flow of the quadratic loss, exactly.

A client that fits the amplitude m from balanced factors of amplitude x, `B = sqrt(x) u` and
`A = sqrt(x) v^T`, follows `dx/dt = 2 x (m - x)` and is after time T at

    f(x) = m G x / (m + x (G - 1)),    G = exp(2 m T)        (m = 0: x / (1 + 2 T x)).

Where A stays frozen at unit rows it is `dx/dt = m - x`, `f(x) = m + (x - m) exp(-T)`. Both are
Moebius maps. Clients with equal targets have one map in common, so that the server's round is a
factor of the cohort times it. Our derivation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora_sim.aggregation import AggregationRule
from fedlora_sim.errors import expected


@dataclass(frozen=True, eq=False)
class LocalMap:
    """`f(x) = (scale x + shift) / (rise x + decay)`, what local training makes of an amplitude.

    Args:
        scale, shift, rise, decay: coefficients, one shape (...) that broadcasts against the
            amplitudes; for x >= 0 the denominator is positive.
    """

    scale: Tensor
    shift: Tensor
    rise: Tensor
    decay: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Amplitudes after the round's local training."""
        return (self.scale * x + self.shift) / (self.rise * x + self.decay)

    def of(self, runs: Tensor, clients: Tensor) -> LocalMap:
        """The maps of chosen clients, (S, m, r_max), of maps (S, K, r_max)."""
        return LocalMap(*(c[runs, clients] for c in self._coefficients()))

    def _coefficients(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.scale, self.shift, self.rise, self.decay

    @classmethod
    def fitting(cls, target: Tensor, local_time: float, *, frozen_a: bool) -> LocalMap:
        """The map of a client who fits these amplitudes for this time.

        Args:
            target: signed amplitudes m, (...).
            local_time: T > 0.
            frozen_a: B alone is trained.
        """
        one, zero = torch.ones_like(target), torch.zeros_like(target)
        if frozen_a:
            scale = one * math.exp(-local_time)
            return cls(scale, -math.expm1(-local_time) * target, zero, one)
        # Divided by G, which may be beyond all numbers where its inverse is next to nothing: kept
        # above zero, so that an amplitude of zero stays zero. A small G (a target far below zero)
        # has an inverse that is kept a number: the result is next to nothing anyway.
        limit = math.log(torch.finfo(target.dtype).max) / 2
        exponent = (2 * local_time * target).clamp_min(-limit)
        safe = torch.where(exponent == 0, 1.0, exponent)
        ratio = torch.where(exponent == 0, 1.0, -torch.expm1(-safe) / safe)
        decay = torch.exp(-exponent).clamp_min(torch.finfo(target.dtype).tiny)
        return cls(one, zero, 2 * local_time * ratio, decay)


@dataclass(frozen=True, eq=False)
class FlowRecursion:
    """`x' = factor f(x)`, or x where it is kept.

    Args:
        initial: amplitudes at round 0, (S, r_max).
        local: the map that all clients have in common, coefficients (r_max,).
        factor: of each run, round and direction, (S or 1, T or 1, r_max).
        kept: where the last amplitude stays, boolean of the same shape; None keeps nothing.
        rounds: T.
    """

    initial: Tensor
    local: LocalMap
    factor: Tensor
    kept: Tensor | None
    rounds: int

    def run(self) -> Tensor:
        """Amplitudes of every round, (S, T + 1, r_max)."""
        x = self.initial
        states = [x]
        for t in range(self.rounds):
            row = t % self.factor.shape[1]
            moved = self.factor[:, row] * self.local(x)
            x = moved if self.kept is None else torch.where(self.kept[:, row], x, moved)
            states.append(x)
        return torch.stack(states, dim=1)


def refuse_flow(rule: AggregationRule) -> None:
    """Refuse rules whose round under the quadratic loss is no map of balanced amplitudes.

    Raises:
        ValueError: naming the rule and why.
    """
    reason = None
    if rule.space == "none":
        reason = "clients start from a fresh adapter, whose factors are not balanced"
    elif rule.residual_in_base:
        reason = "the base moves, and with it what is left to fit"
    if reason is not None:
        options = f"a rule other than {rule.label} at fidelity='spectral' with"
        raise expected("rule", rule.label, f"{options} local_loss='quadratic': {reason}")
