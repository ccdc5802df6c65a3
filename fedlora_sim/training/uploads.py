"""What the clients of a round send back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from fedlora_sim.lora import LoRAFactors
from fedlora_sim.training.directions import Positions
from fedlora_sim.training.local import Trained
from fedlora_sim.training.stacked import Heads


@dataclass(frozen=True, eq=False)
class Upload:
    """The updates of a cohort of m clients, of which some may have been dropped.

    Args:
        clients: the cohort, (m,).
        weights: unnormalised aggregation weights, (m,); zero for dropped clients.
        kept: which clients were not dropped, boolean (m,).
        updates: module name to the updates of the clients that were kept.
        positions: module name to the rank indices that they stand at.
        heads: theirs, first axis the clients that were kept.
    """

    clients: NDArray[np.int64]
    weights: NDArray[np.float64]
    kept: NDArray[np.bool_]
    updates: Mapping[str, Sequence[LoRAFactors]]
    positions: Positions = field(default_factory=dict)
    heads: Heads = field(default_factory=dict)

    @classmethod
    def nobody(cls, layers: Sequence[str]) -> Upload:
        """Of the state before the first round."""
        none = np.zeros(0)
        return cls(none.astype(np.int64), none, none.astype(bool), {name: [] for name in layers})

    @classmethod
    def of(
        cls,
        clients: NDArray[np.int64],
        weights: NDArray[np.float64],
        trained: Trained,
        ranks: Sequence[int],
        scalings: Sequence[float],
        positions: Positions,
    ) -> Upload:
        """What is left of local training: the finite updates, cut to their clients' ranks.

        Args:
            clients: the cohort, (m,).
            weights: unnormalised aggregation weights, (m,).
            trained: what local training left behind.
            ranks: with which the clients go on.
            scalings: their LoRA scalings.
            positions: rank indices that they received, per layer.
        """
        kept = trained.finite.cpu().numpy()
        taken = np.flatnonzero(kept).tolist()
        updates = {
            name: [LoRAFactors(a[k, : ranks[k]], b[k, :, : ranks[k]], scalings[k]) for k in taken]
            for name, (a, b) in trained.adapters.items()
        }
        held = {name: [own[k][: ranks[k]] for k in taken] for name, own in positions.items()}
        at = torch.tensor(taken, dtype=torch.long)
        heads = {name: tuple(x[at] for x in own) for name, own in trained.heads.items()}
        return cls(clients, weights * kept, kept, updates, held, heads)
