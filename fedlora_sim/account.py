"""The account of a round: what the rule alone, training and the server make of each direction.

Let the global update before the round be `G = sum_i sigma_i u_i v_i^T`. `z_i = u_i^T Z v_i` of it
is in the base and `x_i = sigma_i - z_i` in the adapter. Clients that carry direction i (its
carriers) have the share `W_i` of the cohort's weight, and the rule declares the multiplier
`mu_i = mu(W_i)`: 1 where a policy keeps a direction without carriers, 0 where it drops it. Let
`abar_i` be the mean of `u_i^T dW_k v_i` over the carriers, with their weights; `x_i` where a policy
keeps a direction without carriers. The three amplitudes are

    idle:    z_i + mu_i x_i       the rule's effect on a cohort that does not train,
    trained: z_i + mu_i abar_i    its declared effect on the trained cohort,
    server:  u_i^T G' v_i         the new global update G' on the old directions.

Base corrections need no special case, because the base is never diluted. `G'` is the result of the
rule, after its truncation to the highest rank. Our derivation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.datasets import ACCOUNT
from fedlora_sim.rules import AggregationRule
from fedlora_sim.rules.base import contributor_shares, data_shares
from fedlora_sim.rules.properties import counted_weights

Account = Mapping[str, Tensor]
"""The values of `ACCOUNT` by name, each (..., r)."""


@dataclass(frozen=True, eq=False)
class Carriers:
    """Clients that carry each direction in a round.

    Args:
        shares: their weights, which sum to one in each direction with carriers, (..., K, r).
        coverage: their share of the cohort's weight `W_i`, (..., r).
        multiplier: declared multiplier `mu_i`, (..., r); NaN if the rule declares none.
        kept: where a policy keeps a direction without carriers, boolean (..., r).
    """

    shares: Tensor
    coverage: Tensor
    multiplier: Tensor
    kept: Tensor

    @classmethod
    def of(
        cls,
        rule: AggregationRule,
        empty_partition: str,
        weights: Tensor,
        members: Tensor,
        norms: Tensor | None = None,
    ) -> Carriers:
        """Return the carriers of a cohort.

        Args:
            rule: the server rule.
            empty_partition: `zero | carry | error`, for rules with such a policy.
            weights: unnormalized client weights, (..., K); zero for absent clients.
            members: which directions each client carries, boolean (..., K, r).
            norms: `||dW_k||_F`, (..., K), for rules whose coverage counts them.
        """
        counted = counted_weights(rule.properties.coverage, weights, norms)
        coverage = data_shares(counted, members).sum(-2)
        if rule.declares_multiplier:
            multiplier = rule.multiplier(coverage)
        else:
            multiplier = torch.full_like(coverage, torch.nan)
        kept = torch.zeros_like(coverage, dtype=torch.bool)
        if rule.has_empty_partition_policy:
            empty = ~(members & (weights > 0).unsqueeze(-1)).any(-2)
            kept = empty & (empty_partition == "carry")
            multiplier = torch.where(empty, kept.to(multiplier.dtype), multiplier)
        return cls(contributor_shares(counted, members), coverage, multiplier, kept)

    def account(self, total: Tensor, base: Tensor, returned: Tensor, after: Tensor) -> Account:
        """Return the account of the round.

        Args:
            total: amplitudes of the whole update before the round, (..., r).
            base: those of its part in the base, (..., r).
            returned: those of the adapters that the clients return, (..., K, r).
            after: those of the whole update after the round, (..., r).
        """
        mean = (self.shares * torch.where(self.shares > 0, returned, 0.0)).sum(-2)
        return self.account_of_mean(total, base, mean, after)

    def account_of_svd(
        self,
        total: Tensor,
        base: Tensor,
        returned: Tensor,
        after: Tensor,
        dtype: torch.dtype,
    ) -> Account:
        """Return the account on the singular directions of the update before the round.

        A direction whose singular value is rounding has no singular vectors: its trained and server
        amplitudes are NaN, and it counts as a part of the adapter, or of the base if there is one.

        Args:
            total: singular values before the round, descending, (..., r).
            base: as for `account`.
            returned: as for `account`.
            after: as for `account`.
            dtype: dtype in which the singular values were computed.
        """
        smallest = total[..., :1] * total.shape[-1] * torch.finfo(dtype).eps
        lives = (total > smallest).expand(base.shape)
        base = torch.where(lives | (base == 0), base, total)
        found = dict(self.account(total, base, returned, after))
        for name in ("trained_amplitude", "server_amplitude"):
            found[name] = torch.where(lives, found[name], torch.nan)
        return found

    def account_of_mean(self, total: Tensor, base: Tensor, mean: Tensor, after: Tensor) -> Account:
        """Return the account from the carriers' mean adapter, (..., r)."""
        adapter = total - base
        trained = torch.where(self.kept, adapter, mean)
        values = (
            self.coverage,
            self.multiplier,
            base + self.multiplier * adapter,
            base + self.multiplier * trained,
            after,
        )
        return dict(zip(ACCOUNT, torch.broadcast_tensors(*values), strict=True))


def over_rounds(rows: Sequence[Account]) -> dict[str, NDArray[np.float64]]:
    """Return accounts (S, r) of successive rounds as arrays (S, T + 1, r), NaN for the start."""
    found = {}
    for name in ACCOUNT:
        values = torch.stack([row[name] for row in rows], 1).cpu().double().numpy()
        found[name] = np.concatenate([np.full_like(values[:, :1], np.nan), values], 1)
    return found
