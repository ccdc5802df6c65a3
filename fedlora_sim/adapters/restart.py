"""Rank components that carry nothing, written as LoRA starts them.

FLoRA hands out an adapter of zeros, and a cohort of low ranks leaves the higher components empty.
With A and B both zero no gradient would ever lead out: a client that went on from there could not
train them. One of the two factors is drawn as PEFT draws it and the other one is zero, so the
update stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedlora_sim.adapters.reading import AdapterFolder, Layer
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.lowrank import pad_last
from fedlora_sim.randomness import stream
from fedlora_sim.tolerances import relative


def restarted(
    clients: Sequence[AdapterFolder], factors: Mapping[str, LoRAFactors], seed: int
) -> dict[str, LoRAFactors]:
    """The same updates, their lost components started again.

    A module's draw depends on the seed and its name alone, and its first rows are the same whatever
    the rank, so that all folders of one aggregation start alike.
    """
    return {
        module: _restart(update, module, seed, clients[0].layers[module])
        for module, update in factors.items()
    }


def _restart(update: LoRAFactors, module: str, seed: int, layer: Layer) -> LoRAFactors:
    lost = _lost(update)
    if not bool(lost.any()):
        return update
    lora_a, lora_b = update.lora_A, update.lora_B
    if layer.is_embedding:  # PEFT starts these the other way round
        drawn = stream(seed, "lora_B", module).standard_normal((update.rank, layer.d_out))
        start = pad_last(torch.from_numpy(drawn), update.d_out)
        lora_a = torch.where(lost.unsqueeze(-1), 0.0, lora_a)
        lora_b = torch.where(lost, start.to(lora_b).mT, lora_b)
    else:  # of a convolution d_in counts the kernel too, as Kaiming's fan does
        bound = 1 / np.sqrt(layer.d_in)
        experts = [(e,) for e in range(lora_a.shape[0])] if lora_a.ndim > 2 else [()]
        rows = [
            stream(seed, "lora_A", module, *e).uniform(-bound, bound, (update.rank, layer.d_in))
            for e in experts
        ]
        stacked = np.stack(rows).reshape(*lora_a.shape[:-1], layer.d_in)
        start = pad_last(torch.from_numpy(stacked), update.d_in)
        lora_a = torch.where(lost.unsqueeze(-1), start.to(lora_a), lora_a)
        lora_b = torch.where(lost.unsqueeze(-2), 0.0, lora_b)
    return LoRAFactors(lora_a, lora_b, update.scaling)


def _lost(update: LoRAFactors) -> Tensor:
    """Components that are zero up to rounding, boolean (..., r).

    In single precision `lost_columns` of a wide module takes more than what a factorisation blurs,
    and a small component that has been averaged down is not to be taken from anybody.
    """
    amplitude = update.column_amplitudes()
    blurred = relative("factorization", update.dtype) * amplitude.amax(dim=-1, keepdim=True)
    return update.lost_columns() & (amplitude <= blurred)
