"""Local training of a cohort: every client's adapters and heads, all clients in one batched run.

A client minimises the mean loss of its own batches, starting from what it was handed; its batches
come from its own random stream. Nothing of one client enters another's arithmetic, so training one
by one, in chunks or all stacked gives the same adapters up to the order of sums. A client with
fewer steps than the others leaves the stack after its last one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_sim.errors import check_positive
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.attach import stacked_modules
from fedlora_sim.training.batches import BatchPlan
from fedlora_sim.training.checks import check_samples, check_sizes
from fedlora_sim.training.config import LocalConfig, check_rates
from fedlora_sim.training.descent import StackDescent
from fedlora_sim.training.memory import stacks_of
from fedlora_sim.training.stack import Stack, client_losses
from fedlora_sim.training.stacked import Adapters, Heads

Watch = Callable[[int, Tensor], None]
"""Called after every step with its number and the losses of its clients."""


@dataclass(frozen=True, eq=False)
class Trained:
    """What local training leaves behind, new tensors in the layout of the stack.

    Args:
        adapters: padding is still zero.
        heads: as the clients left them.
        losses: of every step and client in nats, (steps, K); zero after a client's last step.
        finite: whether a client's losses, adapters and heads are all finite, boolean (K,).
    """

    adapters: Adapters
    heads: Heads
    losses: Tensor
    finite: Tensor


def train_cohort(
    task: Task,
    stack: Stack,
    samples: Sequence[np.ndarray],
    rngs: Sequence[np.random.Generator],
    config: LocalConfig,
) -> Trained:
    """Train all clients of a cohort, each from its own start on its own samples.

    Args:
        task: frozen model and data.
        stack: what the clients start from; not changed.
        samples: for every client, indices into `task.train`, shape (n_k,), not empty.
        rngs: one generator per client, for the order of its samples; advanced by the call.
        config: optimiser, rate, batches.

    Returns:
        What became of every client; that one diverged is told by `finite`, not raised.

    Raises:
        ValueError: on arguments that do not fit each other.
    """
    check_samples(samples, len(task.train))
    check_sizes(len(samples), stack.adapters, stack.heads, scaling=stack.scaling, rngs=rngs)
    return train_on_plan(task, stack, config.plan(samples, rngs), config)


def train_on_plan(task: Task, stack: Stack, plan: BatchPlan, config: LocalConfig) -> Trained:
    """Train all clients of a cohort on batches that are given.

    Args:
        task: frozen model and data.
        stack: what the K clients start from; not changed.
        plan: which samples every client sees at every step.
        config: optimiser and rate; its batches are not looked at.

    Returns:
        As `train_cohort`.
    """
    clients = len(plan.num_steps)
    check_sizes(clients, stack.adapters, stack.heads, scaling=stack.scaling)
    if stack.rates is not None:
        check_rates(stack.rates.tolist(), clients)
        check_positive("learning_rate", config.learning_rate)  # the clients' are shares of it
    chunks = stacks_of(task, stack, plan, config)
    parts = [train_stack(task, stack.take(own), plan.take(own), config) for own in chunks]
    return _joined(parts, np.argsort(np.concatenate(chunks)), plan)


def train_stack(task: Task, stack: Stack, plan: BatchPlan, config: LocalConfig) -> Trained:
    """Train one stack, clients sorted by falling number of steps; otherwise as `train_on_plan`."""
    model = stack.on(task.model, gradient_checkpointing=config.gradient_checkpointing)
    modules = stacked_modules(model)
    ends = {n: {key: p.detach() for key, p in m.named_parameters()} for n, m in modules.items()}
    losses = descend(task, model, stack, plan, config)
    adapters = {name: (ends[name]["lora_A"], ends[name]["lora_B"]) for name in stack.adapters}
    heads = {name: tuple(ends[name].values()) for name in stack.heads}
    finite = torch.isfinite(losses).all(0)
    for parameters in ends.values():
        for p in parameters.values():
            finite = finite & torch.isfinite(p).flatten(1).all(1)
    return Trained(adapters, heads, losses, finite)


def descend(
    task: Task,
    model: nn.Module,
    stack: Stack,
    plan: BatchPlan,
    config: LocalConfig,
    watch: Watch | None = None,
) -> Tensor:
    """Run the plan of a stack; the model's adapters and heads move.

    Args:
        task: as for `train_on_plan`.
        model: the stack on the task's model.
        stack: what its clients start from, sorted by falling number of steps.
        plan: their batches.
        config: optimiser and rate.
        watch: called after every step.

    Returns:
        Losses (steps, K), zero after a client's last step.
    """
    index = torch.as_tensor(plan.index, device=task.device)
    real = torch.as_tensor(plan.real, device=task.device)
    remaining = (plan.num_steps > np.arange(index.shape[0])[:, None]).sum(axis=1)
    descent = StackDescent(list(stacked_modules(model).values()), config, stack.rates)
    losses = torch.zeros(index.shape[:2], dtype=task.dtype, device=task.device)
    active = index.shape[1]
    layers = [model.get_submodule(name) for name in stack.adapters]
    for step, left in enumerate(remaining.tolist()):
        if left < active:
            active = left
            descent.keep_first(active)
        loss = client_losses(task, model, index[step, :active], real[step, :active])
        objective = loss.sum()
        if stack.tail is not None:
            sizes = stack.tail.size([(x.lora_A, x.lora_B) for x in layers])  # type: ignore[misc]
            objective = objective + stack.tail.factor * sizes.sum()
        descent.step(objective)
        losses[step, :active] = loss.detach()
        if watch is not None:
            watch(step, loss)
    return losses


def _joined(parts: Sequence[Trained], back: np.ndarray, plan: BatchPlan) -> Trained:
    """The chunks of a cohort as one, its clients in their order of before."""
    at = torch.as_tensor(back)

    def gathered(found: Sequence[Heads]) -> dict[str, tuple[Tensor, ...]]:
        columns = {name: zip(*(own[name] for own in found), strict=True) for name in found[0]}
        return {name: tuple(torch.cat(x)[at] for x in own) for name, own in columns.items()}

    steps = plan.index.shape[0]
    padded = [nn.functional.pad(p.losses, (0, 0, 0, steps - len(p.losses))) for p in parts]
    losses = torch.cat(padded, dim=1)[:, at]
    finite = torch.cat([part.finite for part in parts])[at]
    adapters = {n: (a, b) for n, (a, b) in gathered([p.adapters for p in parts]).items()}
    return Trained(adapters, gathered([p.heads for p in parts]), losses, finite)
