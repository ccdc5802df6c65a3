"""How many clients fit side by side: the memory that one client's activations take, measured."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from fedlora_sim.tasks.targets import target_blocks
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.batches import BatchPlan
from fedlora_sim.training.config import LocalConfig
from fedlora_sim.training.stack import Stack, client_losses

GIB = 2**30


def stacks_of(
    task: Task, stack: Stack, plan: BatchPlan, config: LocalConfig
) -> list[NDArray[np.int64]]:
    """The places of the clients of every stack that a cohort is trained in.

    Clients of the most steps come first: those that are still training are then always the first
    ones of a stack.

    Args:
        task: model and data.
        stack: what the K clients start from.
        plan: their batches.
        config: see `clients_at_a_time`.
    """
    order = np.argsort(-plan.num_steps, kind="stable")
    # In a stack everybody's batches are filled up to the widest.
    widest = plan.real.sum(axis=2).max(axis=0).argmax(keepdims=True)
    size = clients_at_a_time(task, stack.take(widest), plan.take(widest), config, len(order))
    return np.split(order, range(size, len(order), size))


def clients_at_a_time(
    task: Task, one: Stack, plan: BatchPlan, config: LocalConfig, clients: int
) -> int:
    """Clients per stack: `stack_size`, and no more than the memory budget has room for.

    Args:
        task: model and data.
        one: the client of the cohort's widest batch, alone.
        plan: its batches.
        config: `stack_size` and `memory_budget` apply.
        clients: the cohort's, K.

    Returns:
        From 1 to K: one client is trained however small the budget.
    """
    size = clients if config.stack_size is None else min(config.stack_size, clients)
    if config.memory_budget is None:
        return size
    each = activation_bytes(task, one, plan, config)
    return max(1, min(size, int(config.memory_budget * GIB / each)))


def activation_bytes(task: Task, one: Stack, plan: BatchPlan, config: LocalConfig) -> int:
    """Bytes that autograd needs for one client's widest batch, at the length of the longest sample.

    What it keeps between the passes; with gradient checkpointing also a block's share of what it
    would keep without, since one block at a time is computed again.
    """
    widest = int(plan.real.sum(axis=2).max(axis=1).argmax())
    index = torch.as_tensor(plan.index[widest], device=task.device).clone()
    index[:, 0] = task.train.longest  # any client of a stack may bring it, and pads all others
    real = torch.as_tensor(plan.real[widest], device=task.device)
    plain = one.on(task.model)
    if not config.gradient_checkpointing:
        return _kept_bytes(task, plain, index, real)
    blocks = max(1, len(target_blocks(task.model, list(one.adapters))))
    checkpointed = one.on(task.model, gradient_checkpointing=True)
    again = _kept_bytes(task, plain, index, real) // blocks
    return _kept_bytes(task, checkpointed, index, real) + again


def _kept_bytes(task: Task, model: nn.Module, index: Tensor, real: Tensor) -> int:
    """Bytes of the tensors that a forward pass saves, each memory once, the model's own apart."""
    constant = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def note(x: Tensor) -> None:
        # Nothing is kept alive here: a weak reference tells memory that is used again apart.
        storage = x.untyped_storage()
        if storage.data_ptr() not in constant:
            kept[StorageWeakRef(storage)] = storage.nbytes()

    with saved_tensors_hooks(note, torch.as_tensor):  # no backward pass asks for them
        client_losses(task, model, index, real)
    return max(1, sum(kept.values()))
