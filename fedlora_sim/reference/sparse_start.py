"""SLoRA's first stage, one client at a time: dense weights, of which only chosen entries move."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.federation import Federation, draw_cohorts
from fedlora_sim.finetune.batches import sparse_batches_seed, sparse_entries
from fedlora_sim.randomness import stream
from fedlora_sim.reference.aggregation import Factors, split_reference
from fedlora_sim.reference.client import Descent, Weights, local_batches, loss_of
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.digits import DigitsTask


def sparse_start_reference(
    scenario: Scenario,
    task: DigitsTask,
    weights: Weights,
    federation: Federation,
    samples: list[NDArray[np.int64]],
    seed: int,
) -> dict[str, Factors]:
    """Adapters of rank r_max after the sparse rounds, at scaling 1."""
    masks = {name: _mask(w, scenario.slora_density, seed, name) for name, w in weights.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    counts = draw_cohorts(federation, scenario.slora_rounds, stream(seed, "slora cohorts"))
    for t in range(scenario.slora_rounds):
        cohort = np.flatnonzero(counts[t])
        shares = federation.cohort_weights(cohort, counts[t, cohort])
        average = {name: torch.zeros_like(w) for name, w in weights.items()}
        for k, share in zip(cohort.tolist(), shares / shares.sum(), strict=True):
            batches = local_batches(scenario, samples[k], sparse_batches_seed(seed), t, k)
            local = _train(scenario, task, weights, total, masks, batches)
            average = {name: average[name] + share * local[name] for name in average}
        total = average
    return {name: split_reference(dw.numpy(), federation.r_max) for name, dw in total.items()}


def _mask(weight: Tensor, density: float, seed: int, name: str) -> Tensor:
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[torch.from_numpy(sparse_entries(seed, name, weight.numel(), density))] = True
    return mask.view_as(weight)


def _train(
    scenario: Scenario,
    task: DigitsTask,
    weights: Weights,
    total: Weights,
    masks: dict[str, Tensor],
    batches: list[NDArray[np.int64]],
) -> Weights:
    """What one client makes of the accumulated dW; gradients outside the mask are thrown away."""
    descent, dense = Descent(scenario), total
    for batch in batches:
        leaves = {name: dw.clone().requires_grad_(True) for name, dw in dense.items()}
        loss = loss_of(task, {name: weights[name] + dw for name, dw in leaves.items()}, batch)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        pairs = zip(leaves, gradients, strict=True)
        masked = {(name, "W"): torch.where(masks[name], g, 0.0) for name, g in pairs}
        moved = descent.step({(name, "W"): dw for name, dw in dense.items()}, masked)
        dense = {name: moved[name, "W"] for name in dense}
    return dense
