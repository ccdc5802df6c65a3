"""SLoRA's first stage: federated fine-tuning of a sparse part of the weights, converted to LoRA.

All clients train the same random entries of each adapted weight, a fixed share of them, and the
server averages: `dW = sum_k p_k dW_k`. After some rounds the accumulated dW is decomposed, and its
leading components become the initial adapters, `B = U sqrt(S)`, `A = sqrt(S) V^T`, on the original
weights.

Source: Babakniya et al. 2023, arXiv 2308.06522, Sec. 3 (sparse fine-tuning, then LoRA from the SVD
of its update).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.federation import Federation, cohort_slots, draw_cohorts
from fedlora_sim.finetune.batches import (
    client_rates,
    client_streams,
    plan_round,
    sparse_batches_seed,
    sparse_entries,
)
from fedlora_sim.finetune.local import Stack, find_divergence, train_on_plan
from fedlora_sim.finetune.stacked import Adapters, Frozen, find_linear, weight_of
from fedlora_sim.lora import LoRAFactors
from fedlora_sim.randomness import stream
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.task import Task


def sparse_stage(
    scenario: Scenario,
    task: Task,
    federation: Federation,
    samples: Sequence[NDArray[np.int64]],
    seed: int,
) -> dict[str, Tensor]:
    """Run the sparse rounds.

    Args:
        scenario: `slora_rounds`, `slora_density`, `nonfinite`, and the local training of the later
            rounds.
        task: model, data and modules.
        federation: clients, sample counts and sampling.
        samples: sample indices of each client.
        seed: seed of the masks, the cohorts and the batches, separate from the later rounds.

    Returns:
        Module name to the accumulated dW, (d_out, d_in), zero outside the mask.

    Raises:
        InputError: if a client's update is not finite and the scenario does not drop it, or if no
            client's update is finite.
    """
    weights = {name: weight_of(find_linear(task.model, name)) for name in task.target_modules}
    masks = {name: _mask(w, scenario.slora_density, seed, name) for name, w in weights.items()}
    frozen = {name: Frozen(lora_a=True, mask=mask) for name, mask in masks.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    stage = sparse_batches_seed(seed)
    counts = draw_cohorts(federation, scenario.slora_rounds, stream(seed, "slora cohorts"))
    for t, row in enumerate(counts):
        clients, drawn = cohort_slots(row, int(np.count_nonzero(row)))
        # A dense weight change is an adapter whose A is the identity.
        start: Adapters = {
            name: (
                torch.eye(w.shape[1], dtype=w.dtype, device=w.device).expand(len(clients), -1, -1),
                total[name].expand(len(clients), -1, -1),
            )
            for name, w in weights.items()
        }
        own = [samples[k] for k in clients]
        rngs = client_streams(stage, t, clients.tolist())
        ones, rates = torch.ones(len(clients), dtype=torch.float64), client_rates(scenario, clients)
        cohort = Stack(start, ones, frozen=frozen, rates=rates)
        plan = plan_round(scenario, own, rngs)
        trained = train_on_plan(task, cohort, plan, scenario)
        kept = trained.finite.cpu().numpy()
        if not kept.all() and (scenario.nonfinite == "error" or not kept.any()):
            slot = int(kept.argmin())
            found = find_divergence(task, cohort, plan, scenario, slot, int(clients[slot]))
            where = f"{found.layer}, in SLoRA's sparse stage"
            raise replace(found, layer=where).error(t + 1, whole_cohort=not kept.any())
        # Non-finite updates are left out, not weighted by zero: zero times NaN is NaN.
        share = federation.cohort_weights(clients, drawn)[kept]
        p = torch.as_tensor(share / share.sum())
        for name, (_, lora_b) in trained.adapters.items():
            finite = lora_b[trained.finite]
            total[name] = torch.einsum("k,kij->ij", p.to(finite), finite) * masks[name]
    return total


def sparse_start(total: dict[str, Tensor], r: int) -> dict[str, LoRAFactors]:
    """Return the initial adapters: the best rank-r approximation of each module's dW."""
    return {name: LoRAFactors.from_delta(dense, r) for name, dense in total.items()}


def _mask(weight: Tensor, density: float, seed: int, name: str) -> Tensor:
    """Return a random mask with exactly `density` of the entries, at least one."""
    chosen = sparse_entries(seed, name, weight.numel(), density)
    mask = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    mask[torch.as_tensor(chosen, device=weight.device)] = 1
    return mask.view_as(weight)
