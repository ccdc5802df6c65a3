"""LoRA's own training at matrix fidelity: gradient descent of every client on its two factors.

Client k descends `0.5 ||B A + Z - M_k||_F**2`, with Z what the base has of the update and

    M_k = (R_k U0) diag(m_k) (Q_k V0)^T,

the initial basis turned by the client's own rotations. With `E = B A + Z - M_k` the gradients are
`E A^T` on B and `B^T E` on A, both taken before either moves; the products are small, since M_k is
of low rank, and no (d_out, d_in) matrix is formed. A component whose factors are both zero has
no gradient: what is lost, or was not received, stays zero.

Adam is Kingma and Ba 2015 (arXiv 1412.6980), with bias correction, its moments new every round.
Our derivation; as the steps shrink the amplitudes follow `fedlora_sim.spectral.flow`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.draws import client_targets, target_rotation
from fedlora_sim.errors import expected
from fedlora_sim.scenario import Scenario

BETAS = (0.9, 0.999)
EPSILON = 1e-8


@dataclass(frozen=True, eq=False)
class Targets:
    """The targets of a batch's clients, `M = left right^T`, the amplitudes on the left.

    Args:
        left: (S, K, d_out, r_max).
        right: (S, K, d_in, r_max).
    """

    left: Tensor
    right: Tensor

    @classmethod
    def draw(
        cls,
        scenario: Scenario,
        seeds: Sequence[int],
        u0: NDArray[np.float64],
        v0: NDArray[np.float64],
    ) -> Targets:
        """Targets in float64 on the initial bases u0 (S, d_out, r_max) and v0 (S, d_in, r_max)."""
        amplitudes = np.stack([client_targets(scenario, seed) for seed in seeds])
        shape = amplitudes.shape[:2]
        left, right = (
            np.broadcast_to(side[:, None], (*shape, *side.shape[1:])).copy() for side in (u0, v0)
        )
        if scenario.target_angle != 0:
            for s, k in np.ndindex(shape):
                out, inner = target_rotation(scenario, seeds[s], k)
                left[s, k], right[s, k] = out @ left[s, k], inner @ right[s, k]
        return cls(torch.from_numpy(left * amplitudes[:, :, None]), torch.from_numpy(right))

    def to(self, like: Tensor) -> Targets:
        """The same targets in the dtype and on the device of a tensor."""
        return Targets(*(x.to(like.dtype).to(like.device) for x in (self.left, self.right)))

    def of(self, slots: NDArray[np.int64]) -> Targets:
        """Those of the cohort, slots (S, m): (S, m, ...)."""
        runs, clients = np.arange(len(slots))[:, None], torch.from_numpy(slots)
        return Targets(self.left[runs, clients], self.right[runs, clients])

    def on(self, u: Tensor, v: Tensor) -> Tensor:
        """Amplitudes on given directions (S, 1, d, r): `u_i^T M v_i`, (S, m, r)."""
        return ((u.mT @ self.left) * (v.mT @ self.right)).sum(-1)


def descend(
    scenario: Scenario,
    lora_a: Tensor,
    lora_b: Tensor,
    targets: Targets,
    base: Tensor | None,
    *,
    frozen_a: bool,
) -> tuple[Tensor, Tensor]:
    """The factors of every client after its local steps.

    Args:
        scenario: `local_time`, `local_steps` and `optimizer` apply.
        lora_a: (S, m, r, d_in).
        lora_b: (S, m, d_out, r).
        targets: those of the cohort.
        base: what the base has of the update, Z (S, d_out, d_in); None where it has nothing.
        frozen_a: B alone moves.

    Returns:
        lora_A and lora_B of the same shapes.

    Raises:
        ValueError: if a step is too long for descent and the factors leave all bounds.
    """
    assert scenario.local_steps is not None  # the scenario's own check
    rate = scenario.local_time / scenario.local_steps
    move = _adam if scenario.optimizer == "adam" else _sgd
    batch = lora_a.shape[:2]
    b, a, left, right = (
        x.flatten(0, 1) for x in (lora_b, lora_a.mT, targets.left, targets.right)
    )  # all (S m, d, r)
    base_t = None if base is None else base.mT
    on_b, on_a = _moments(b), _moments(a)
    for step in range(1, scenario.local_steps + 1):
        gradient_b = _gradient(b, a, left, right, base)
        if not frozen_a:
            gradient_a = _gradient(a, b, right, left, base_t)
            a = a.add(move(gradient_a, on_a, step), alpha=-rate)
        b = b.add(move(gradient_b, on_b, step), alpha=-rate)
    if not bool(torch.isfinite(a.sum() + b.sum())):
        bound = "a step local_time / local_steps that descent survives (take more local_steps)"
        raise expected("local_time", scenario.local_time, bound)
    return a.mT.unflatten(0, batch), b.unflatten(0, batch)


def _gradient(
    own: Tensor, other: Tensor, own_side: Tensor, other_side: Tensor, base: Tensor | None
) -> Tensor:
    """Gradient on one factor, the other one held: `(own other^T + Z - M) other`, (S m, d, r)."""
    gradient = torch.bmm(own, torch.bmm(other.mT, other))
    gradient.baddbmm_(own_side, torch.bmm(other_side.mT, other), alpha=-1)
    if base is None:
        return gradient
    several = other.unflatten(0, (len(base), -1))
    return gradient + torch.einsum("spd,smdr->smpr", base, several).flatten(0, 1)


Moments = list[Tensor]


def _moments(factor: Tensor) -> Moments:
    return [torch.zeros_like(factor), torch.zeros_like(factor)]


def _sgd(gradient: Tensor, moments: Moments, step: int) -> Tensor:
    return gradient


def _adam(gradient: Tensor, moments: Moments, step: int) -> Tensor:
    """Adam's direction; the moments are brought up to date."""
    first, second = moments
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    spread = (second / (1 - BETAS[1] ** step)).sqrt_().add_(EPSILON)
    return first / (1 - BETAS[0] ** step) / spread
