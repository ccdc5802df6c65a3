"""How many clients fit side by side: the memory that one client's activations take, measured."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fedlora_sim.tasks.task import Task
from fedlora_sim.training.batches import BatchPlan
from fedlora_sim.training.config import LocalConfig
from fedlora_sim.training.stack import Stack, client_losses

GIB = 2**30


def clients_at_a_time(
    task: Task, first: Stack, plan: BatchPlan, config: LocalConfig, clients: int
) -> int:
    """Clients per stack: `stack_size`, and no more than the memory budget has room for.

    Args:
        task: model and data.
        first: the client of the most steps alone.
        plan: its batches.
        config: `stack_size` and `memory_budget` apply.
        clients: the cohort's, K.

    Returns:
        From 1 to K: one client is trained however small the budget.
    """
    size = clients if config.stack_size is None else min(config.stack_size, clients)
    if config.memory_budget is None:
        return size
    each = activation_bytes(task, first, plan, config)
    return max(1, min(size, int(config.memory_budget * GIB / each)))


def activation_bytes(task: Task, first: Stack, plan: BatchPlan, config: LocalConfig) -> int:
    """Bytes that autograd keeps between the passes for one client's widest batch."""
    model = first.on(task.model, gradient_checkpointing=config.gradient_checkpointing)
    constant = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in constant:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    widest = int(plan.real.sum(axis=2).max(axis=1).argmax())
    index = torch.as_tensor(plan.index[widest], device=task.device)
    real = torch.as_tensor(plan.real[widest], device=task.device)
    with saved_tensors_hooks(note, lambda x: x):
        loss = client_losses(task, model, index, real)
    del loss
    return max(1, sum(kept.values()))
