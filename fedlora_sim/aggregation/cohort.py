"""What the server sees of one round: the cohort's updates, and what it knows of their owners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import LazySequence, LowRankProduct, compute_dtype, is_safe, times_power


@dataclass(frozen=True, eq=False)
class Cohort:
    """A round's updates, with the weight of every client and the directions that it carries.

    Args:
        updates: one update per client, `lora_A` (..., r_k, d_in), `lora_B` (..., d_out, r_k); any
            sequence, also one that loads a client when it is indexed.
        weights: unnormalised aggregation weight of each client (its sample count), (..., K).
        members: which rank indices each client carries, boolean (..., K, r_max).
        positions: rank index of every column of every client, K tensors of shape (r_k,).
        scaling: LoRA scaling of each client, (K,) in the compute dtype.
        rank_levels: distinct ranks of the federation, ascending; the last one is r_max.
    """

    updates: Sequence[LoRAFactors]
    weights: Tensor
    members: Tensor
    positions: Sequence[Tensor]
    scaling: Tensor
    rank_levels: tuple[int, ...]

    @property
    def num_clients(self) -> int:
        """Clients K of the cohort."""
        return len(self.positions)

    @property
    def r_max(self) -> int:
        """Highest rank level of the federation."""
        return self.members.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the round is computed in."""
        return self.scaling.dtype

    @classmethod
    def from_updates(
        cls,
        updates: Sequence[LoRAFactors],
        weights: Tensor,
        rank_levels: tuple[int, ...],
        positions: Sequence[Tensor] | None = None,
    ) -> Cohort:
        """A cohort of updates, each carrying its first r_k directions unless `positions` says else.

        Args:
            updates: as above.
            weights: unnormalised, (..., K).
            rank_levels: of the federation.
            positions: rank index of every column of every client.
        """
        heads = list(map(_head, updates))
        device, dtype = heads[0][2], compute_dtype(heads[0][3])
        if positions is None:
            positions = [torch.arange(rank, device=device) for rank, *_ in heads]
        members = torch.zeros(len(heads), rank_levels[-1], dtype=torch.bool, device=device)
        for k, held in enumerate(positions):
            members[k, held] = True
        scaling = torch.tensor([s for _, s, *_ in heads], dtype=dtype, device=device)
        weights = weights.to(dtype).to(device)
        return cls(updates, weights, members, positions, scaling, rank_levels)

    def _column_weights(self, shares: Tensor) -> Tensor:
        """Weight of every column, (..., R), from those of every (client, direction)."""
        columns = [shares[..., k, held] for k, held in enumerate(self.positions)]
        return torch.cat(columns, dim=-1)

    def product(self, shares: Tensor) -> LowRankProduct:
        """`sum_k s_k B_k diag(w_k) A_k` for shares (..., K, r_max), not yet formed."""
        weights = self._column_weights(shares * self.scaling.unsqueeze(-1))
        updates = self.updates
        blocks = LazySequence(len(updates), lambda k: _block(updates[k]))
        return LowRankProduct(blocks, weights)

    def norms(self) -> Tensor:
        """Frobenius norm `||dW_k||_F` of every update, (..., K), dW_k never formed.

        Norms that the compute dtype could not hold are all divided by one power of two.
        """
        norms = torch.stack(list(map(LoRAFactors.norm, self.updates)), dim=-1).to(self.dtype)
        if is_safe(norms.amax(-1), self.dtype):
            return norms
        parts = zip(*map(LoRAFactors.scaled_norm, self.updates), strict=True)
        values, powers = (torch.stack(list(part), dim=-1) for part in parts)
        powers = torch.where(values > 0, powers, powers.amin(-1, keepdim=True))
        return times_power(values, powers - powers.amax(-1, keepdim=True)).to(self.dtype)

    def canonical(self) -> Cohort:
        """The same updates, each in its SVD gauge: columns ordered by their own energy."""
        updates, dtype = self.updates, self.dtype

        def canonical(k: int) -> LoRAFactors:
            return updates[k].to(dtype).canonical()

        scaling = torch.ones_like(self.scaling)  # it has gone into the singular values
        return replace(self, updates=LazySequence(len(updates), canonical), scaling=scaling)


def _head(update: LoRAFactors) -> tuple[int, float, torch.device, torch.dtype]:
    return update.rank, update.scaling, update.device, update.dtype


def _block(update: LoRAFactors) -> tuple[Tensor, Tensor]:
    return update.lora_B, update.lora_A
