"""Local training: all clients of a cohort in one pass, with checks before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from fedlora_sim.errors import InputError, expected
from fedlora_sim.finetune.batches import BatchPlan, check_rates, highest_rate, plan_round
from fedlora_sim.finetune.stacked import (
    Adapters,
    Frozen,
    Heads,
    StackedModule,
    attach,
    find_linear,
    stacked_modules,
)
from fedlora_sim.runtime import full_precision, in_parts
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.targets import linear_shape, target_blocks
from fedlora_sim.tasks.task import Task, logits_of

# The optimizer of a stack: PyTorch's, which is elementwise and so independent per client


class StackDescent:
    """Optimizer steps of all clients of a stack at once, each with its own gradient.

    Args:
        modules: modules that the stack trains; parameters (K, ...).
        scenario: optimizer, rate, decay and clipping.
        rates: learning rate of each client, (K,); None for the scenario's.
    """

    def __init__(
        self, modules: Sequence[StackedModule], scenario: Scenario, rates: Tensor | None = None
    ) -> None:
        self.modules, self.scenario = modules, scenario
        self.optimizer = _optimizer(scenario, self._parameters())
        # Every step is the rate times a term that does not depend on the rate.
        self.share = None if rates is None else rates / highest_rate(scenario)

    def step(self, objective: Tensor) -> None:
        """Take one step of every client on the summed objective."""
        self.optimizer.zero_grad()
        objective.backward()
        parameters = self.optimizer.param_groups[0]["params"]
        if self.scenario.max_grad_norm is not None:
            clip_per_client(parameters, self.scenario.max_grad_norm)
        before = None if self.share is None else [p.detach().clone() for p in parameters]
        self.optimizer.step()
        if before is not None and self.share is not None:
            with torch.no_grad():
                for p, start in zip(parameters, before, strict=True):
                    p.copy_(start + _per_client(self.share[: len(p)], p) * (p - start))

    def keep_first(self, num_clients: int) -> None:
        """Remove all but the first clients, with their part of the optimizer's state.

        Zero gradients would not suffice, because momentum would continue to move the parameters.
        """
        old = self._parameters()
        for module in self.modules:
            module.keep_first(num_clients)
        new = self._parameters()
        self.optimizer.param_groups[0]["params"] = new
        for before, after in zip(old, new, strict=True):
            state = self.optimizer.state.pop(before, {})
            self.optimizer.state[after] = {
                key: value[:num_clients] if isinstance(value, Tensor) and value.dim() else value
                for key, value in state.items()
            }

    def _parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules for p in module.parameters() if p.requires_grad]


def clip_per_client(parameters: Sequence[nn.Parameter], max_norm: float) -> None:
    """Clip each client's gradient to a norm over all of its parameters.

    Equivalent to `torch.nn.utils.clip_grad_norm_` for each client separately.

    Args:
        parameters: (K, ...) each, with gradients; changed in place.
        max_norm: largest norm that is not clipped.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    # The small term is PyTorch's.
    share = (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(_per_client(share, gradient))


def _per_client(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, *(1,) * (like.dim() - 1))


def _optimizer(scenario: Scenario, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = highest_rate(scenario), scenario.weight_decay
    # One kernel for all factors if torch has it; otherwise torch chooses.
    fused = True if parameters[0].device.type in ("cpu", "cuda") else None
    if scenario.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=scenario.momentum, weight_decay=decay, fused=fused
        )
    rule = torch.optim.Adam if scenario.optimizer == "adam" else torch.optim.AdamW
    return rule(parameters, lr=rate, weight_decay=decay, fused=fused)


# HetLoRA's rank self-pruning: a client gives up rank components that it does not need.
#
# The tail of a client of rank r is its components from `ceil(decay r)` on. Its size, the product
# `||B_tail||_F ||A_tail||_F` summed over the adapted layers, is penalized in the local loss. If
# local training shrinks it, the client continues with rank `ceil(decay r)`.
#
# Source: Cho et al. 2024, arXiv 2401.06432, Sec. 3.2 (rank self-pruning). The paper describes one
# layer; the sum over layers, which keeps one rank per client, is ours.


def pruned_rank(rank: int, decay: float) -> int:
    """Return the rank without the tail, at least 1."""
    return max(1, math.ceil(decay * rank))


@dataclass(frozen=True, eq=False)
class TailPenalty:
    """The tails of a cohort.

    Args:
        mask: which padded rank components form a client's tail, (K, r).
        factor: factor of the penalty.
    """

    mask: Tensor
    factor: float

    @classmethod
    def of(cls, ranks: Sequence[int], decay: float, factor: float, like: Tensor) -> TailPenalty:
        """Return tails of clients with these ranks, in the dtype and on the device of `like`."""
        index = torch.arange(max(ranks), device=like.device)
        own = torch.tensor(ranks, device=like.device).unsqueeze(1)
        start = torch.tensor([pruned_rank(r, decay) for r in ranks], device=like.device)
        return cls(((index >= start.unsqueeze(1)) & (index < own)).to(like.dtype), factor)

    def take(self, order: np.ndarray) -> TailPenalty:
        """Return the tails of the clients `order`, in that order."""
        return replace(self, mask=self.mask[torch.as_tensor(order)])

    def size(self, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return size of each client's tail, (K',), for stacked A and B of the first K' clients."""
        mask = self.mask[: len(layers[0][0])]
        total = mask.new_zeros(len(mask))
        for lora_a, lora_b in layers:
            norm_a = torch.linalg.vector_norm(lora_a * mask.unsqueeze(2), dim=(1, 2))
            norm_b = torch.linalg.vector_norm(lora_b * mask.unsqueeze(1), dim=(1, 2))
            total = total + norm_a * norm_b
        return total

    def shrank(self, before: Adapters, after: Adapters) -> list[bool]:
        """Return which clients' tails are smaller after local training than before."""
        sizes = [self.size(list(adapters.values())) for adapters in (before, after)]
        return (sizes[1] < sizes[0]).tolist()


# The starting point of local training, and the loss of each client


@dataclass(frozen=True, eq=False)
class Stack:
    """The starting point of local training, one slice of every tensor per client.

    Args:
        adapters: for each target module, `lora_A` (K, r, d_in) and `lora_B` (K, d_out, r),
            zero-padded to the cohort's highest rank r.
        scaling: LoRA scaling of each client, (K,).
        heads: for each head module, weight (K, d_out, d_in) and bias (K, d_out), if any.
        frozen: for modules with partly frozen adapters, the frozen part.
        tail: penalty on the clients' last rank components, added to their losses.
        rates: learning rate of each client, (K,); None uses the scenario's for all.
    """

    adapters: Adapters
    scaling: Tensor
    heads: Heads = field(default_factory=dict)
    frozen: Mapping[str, Frozen] = field(default_factory=dict)
    tail: TailPenalty | None = None
    rates: Tensor | None = None

    def take(self, order: np.ndarray) -> Stack:
        """Return the clients `order`, in that order."""
        at = torch.as_tensor(order)
        return replace(
            self,
            adapters={name: (A[at], B[at]) for name, (A, B) in self.adapters.items()},
            scaling=self.scaling[at],
            heads={name: tuple(x[at] for x in own) for name, own in self.heads.items()},
            tail=None if self.tail is None else self.tail.take(order),
            rates=None if self.rates is None else self.rates[at],
        )

    def on(self, model: nn.Module, *, gradient_checkpointing: bool = False) -> nn.Module:
        """Return the model with these adapters and heads in place; see `attach`."""
        return attach(
            model,
            self.adapters,
            self.scaling,
            self.frozen,
            self.heads,
            gradient_checkpointing=gradient_checkpointing,
        )


def client_losses(task: Task, model: nn.Module, index: Tensor, real: Tensor) -> Tensor:
    """Return the mean loss of each client on its own batch, (K,), in nats.

    Arguments as for `client_totals`.
    """
    total, count = client_totals(task, model, index, real)
    return total / count


def client_totals(
    task: Task, model: nn.Module, index: Tensor, real: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the summed loss of each client on its own batch, and the number of terms.

    Args:
        task: data and objective.
        model: takes the K clients' samples client-major.
        index: samples of each client, (K, b).
        real: which of them count, boolean (K, b).

    Returns:
        Loss in nats, and number of samples or tokens, each (K,).
    """
    batch = task.train.take(index.flatten())
    total, count = task.objective.losses(logits_of(model, batch.inputs), batch.labels)
    # A padding sample is a sample too: `where` excludes it even if its loss is not finite.
    total, count = (torch.where(real, x.view(real.shape), 0.0).sum(1) for x in (total, count))
    return total, count


# Clients per stack: limited by the measured memory of one client's activations

GIB = 2**30


def stacks_of(
    task: Task, stack: Stack, plan: BatchPlan, scenario: Scenario
) -> list[NDArray[np.int64]]:
    """Return the positions of the clients of each stack in which a cohort is trained.

    Clients with most steps come first, so that those still training are always the first of a
    stack.

    Args:
        task: model and data.
        stack: starting point of the K clients.
        plan: their batches.
        scenario: see `clients_at_a_time`.
    """
    order = np.argsort(-plan.num_steps, kind="stable")
    # In a stack all batches are padded to the widest.
    widest = plan.real.sum(axis=2).max(axis=0).argmax(keepdims=True)
    size = clients_at_a_time(task, stack.take(widest), plan.take(widest), scenario, len(order))
    return np.split(order, range(size, len(order), size))


def clients_at_a_time(
    task: Task, one: Stack, plan: BatchPlan, scenario: Scenario, clients: int
) -> int:
    """Return the clients per stack: at most `stack_size`, and as many as fit in the memory budget.

    Args:
        task: model and data.
        one: the client with the cohort's widest batch, as a separate stack.
        plan: its batches.
        scenario: `stack_size` and `memory_budget` apply.
        clients: number of clients in the cohort, K.

    Returns:
        From 1 to K: a single client is trained even if it exceeds the budget.
    """
    size = clients if scenario.stack_size is None else min(scenario.stack_size, clients)
    if scenario.memory_budget is None:
        return size
    each = activation_bytes(task, one, plan, scenario)
    return max(1, min(size, int(scenario.memory_budget * GIB / each)))


def activation_bytes(task: Task, one: Stack, plan: BatchPlan, scenario: Scenario) -> int:
    """Return the bytes that autograd needs for one client's widest batch.

    Measured at the length of the longest sample. It counts the tensors kept between the passes and,
    with gradient checkpointing, one block's recomputed tensors, because one block at a time is
    recomputed.
    """
    widest = int(plan.real.sum(axis=2).max(axis=1).argmax())
    index = torch.as_tensor(plan.index[widest], device=task.device).clone()
    index[:, 0] = task.train.longest  # it may occur in any batch of a stack, and sets the padding
    real = torch.as_tensor(plan.real[widest], device=task.device)
    plain = one.on(task.model)
    if not scenario.gradient_checkpointing:
        return _kept_bytes(task, plain, index, real)
    blocks = max(1, len(target_blocks(task.model, list(one.adapters))))
    checkpointed = one.on(task.model, gradient_checkpointing=True)
    again = _kept_bytes(task, plain, index, real) // blocks
    return _kept_bytes(task, checkpointed, index, real) + again


def _kept_bytes(task: Task, model: nn.Module, index: Tensor, real: Tensor) -> int:
    """Return the bytes of the tensors that a forward pass saves, without the model's own.

    Shared memory counts once.
    """
    constant = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def note(x: Tensor) -> None:
        # Nothing is kept alive here: a weak reference detects memory that is reused.
        storage = x.untyped_storage()
        if storage.data_ptr() not in constant:
            kept[StorageWeakRef(storage)] = storage.nbytes()

    with saved_tensors_hooks(note, torch.as_tensor):  # there is no backward pass
        client_losses(task, model, index, real)
    return max(1, sum(kept.values()))


# Checks of arguments


def check_samples(samples: Sequence[np.ndarray], num_samples: int) -> None:
    """Refuse an empty cohort, empty clients, and invalid indices."""
    if not len(samples):
        raise expected("samples", samples, "at least one client")
    for client, own in enumerate(samples):
        own = np.asarray(own)
        if own.ndim != 1 or not own.size or not np.issubdtype(own.dtype, np.integer):
            given = f"{own.dtype} of shape {own.shape}"
            raise expected(f"samples[{client}]", given, "a non-empty row of integer indices")
        if own.min() < 0 or own.max() >= num_samples:
            span = (int(own.min()), int(own.max()))
            raise expected(f"samples[{client}]", span, f"indices in 0..{num_samples - 1}")


def check_targets(task: Task, r_max: int) -> None:
    """Refuse a task without targets, and a rank above the limit of one of them."""
    if not task.target_modules:
        raise expected("target_modules", (), "at least one linear map")
    for name in task.target_modules:
        shape = linear_shape(find_linear(task.model, name))
        if r_max > min(shape):
            wanted = f"ranks up to {min(shape)}, what target {name!r} of shape {shape} has room for"
            raise expected("ranks", r_max, wanted)


def check_sizes(
    num_clients: int, adapters: Adapters, heads: Heads, **others: Sequence[Any] | Tensor
) -> None:
    """Refuse arguments for another number of clients than `samples`."""
    sizes = {argument: len(value) for argument, value in others.items()}
    sizes |= {f"adapters[{name!r}]": len(lora_A) for name, (lora_A, _) in adapters.items()}
    sizes |= {f"heads[{name!r}]": len(own[0]) for name, own in heads.items()}
    for argument, size in sizes.items():
        if size != num_clients:
            raise expected(argument, f"{size} clients", f"{num_clients}, as many as samples")


# Local training of a cohort: all clients' adapters and heads in one batched run.
#
# A client minimizes the mean loss of its own batches from its own starting point; its batches come
# from its own random stream. Clients do not share arithmetic, so training them one by one, in
# chunks or in one stack gives the same adapters up to the order of sums. A client with fewer steps
# than the others leaves the stack after its last one.

Watch = Callable[[int, Tensor], None]
"""Called after every step with its number and the losses of its clients."""


@dataclass(frozen=True, eq=False)
class Trained:
    """Result of local training, as new tensors in the layout of the stack.

    Args:
        adapters: trained adapters; padding is still zero.
        heads: trained heads.
        losses: losses of each step and client in nats, (steps, K); zero after a client's last step.
        finite: whether a client's losses, adapters and heads are all finite, boolean (K,).
    """

    adapters: Adapters
    heads: Heads
    losses: Tensor
    finite: Tensor


@full_precision()
def train_cohort(
    task: Task,
    stack: Stack,
    samples: Sequence[np.ndarray],
    rngs: Sequence[np.random.Generator],
    scenario: Scenario,
) -> Trained:
    """Train all clients of a cohort, each from its own start on its own samples.

    Args:
        task: frozen model and data.
        stack: starting point of the clients; not changed.
        samples: for each client, indices into `task.train`, shape (n_k,), not empty.
        rngs: one generator per client, for the order of its samples; advanced by the call.
        scenario: optimizer, rate, batches.

    Returns:
        The result of each client. A diverged client is marked in `finite`; no error is raised.

    Raises:
        InputError: if arguments do not match each other.
    """
    check_samples(samples, len(task.train))
    check_sizes(len(samples), stack.adapters, stack.heads, scaling=stack.scaling, rngs=rngs)
    return train_on_plan(task, stack, plan_round(scenario, samples, rngs), scenario)


@full_precision()
def train_on_plan(task: Task, stack: Stack, plan: BatchPlan, scenario: Scenario) -> Trained:
    """Train all clients of a cohort on given batches.

    Args:
        task: frozen model and data.
        stack: starting point of the K clients; not changed.
        plan: the samples of each client at each step.
        scenario: optimizer and rate; its batch settings are ignored.

    Returns:
        As `train_cohort`.
    """
    clients = len(plan.num_steps)
    check_sizes(clients, stack.adapters, stack.heads, scaling=stack.scaling)
    if stack.rates is not None:
        check_rates(stack.rates.tolist(), clients)
    chunks = stacks_of(task, stack, plan, scenario)

    def train(own: NDArray[np.int64]) -> Trained:
        return train_stack(task, stack.take(own), plan.take(own), scenario)

    parts = [part for chunk in chunks for part in in_parts(train, chunk)]
    return _joined(parts, np.argsort(np.concatenate(chunks)), plan)


def train_stack(task: Task, stack: Stack, plan: BatchPlan, scenario: Scenario) -> Trained:
    """Train one stack whose clients are sorted by decreasing number of steps.

    See `train_on_plan`.
    """
    model = stack.on(task.model, gradient_checkpointing=scenario.gradient_checkpointing)
    modules = stacked_modules(model)
    ends = {n: {key: p.detach() for key, p in m.named_parameters()} for n, m in modules.items()}
    losses = descend(task, model, stack, plan, scenario)
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
    scenario: Scenario,
    watch: Watch | None = None,
) -> Tensor:
    """Run the plan of a stack, changing the model's adapters and heads.

    Args:
        task: as for `train_on_plan`.
        model: the stack on the task's model.
        stack: starting point of its clients, sorted by decreasing number of steps.
        plan: their batches.
        scenario: optimizer and rate.
        watch: called after every step.

    Returns:
        Losses (steps, K), zero after a client's last step.
    """
    index = torch.as_tensor(plan.index, device=task.device)
    real = torch.as_tensor(plan.real, device=task.device)
    remaining = (plan.num_steps > np.arange(index.shape[0])[:, None]).sum(axis=1)
    descent = StackDescent(list(stacked_modules(model).values()), scenario, stack.rates)
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
    """Return the chunks of a cohort as one, with the clients in their original order."""
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


# Diagnosis of divergence: repeat the training of one client and watch every step


@dataclass(frozen=True)
class Divergence:
    """A client whose update is not finite.

    Args:
        client: its number.
        step: its local step, counted from 0.
        layer: module in which the first non-finite value occurred; `loss` if in none.
        learning_rate: its learning rate.
    """

    client: int
    step: int
    layer: str
    learning_rate: float

    def error(self, t: int, *, whole_cohort: bool = False) -> InputError:
        """Return the error of the run.

        Args:
            t: the round in which this happened, from 1.
            whole_cohort: whether it happened to all clients, in which case dropping is no remedy.
        """
        where = f"client {self.client} diverged in round {t} at step {self.step} in {self.layer}"
        ways = ", and all the others too)" if whole_cohort else "), or nonfinite='drop-client'"
        remedy = f"a rate at which training stays finite ({where}{ways}"
        return expected("learning_rate", self.learning_rate, remedy)


def find_divergence(
    task: Task, stack: Stack, plan: BatchPlan, scenario: Scenario, slot: int, client: int
) -> Divergence:
    """Train one client of a cohort again and find where it becomes non-finite.

    Args:
        task: as for `train_on_plan`.
        stack: starting point of the cohort.
        plan: its batches.
        scenario: optimizer and rate.
        slot: position of the client in the cohort.
        client: its number.

    Returns:
        The first such step and layer; the last step and `loss` if the client alone stays finite.
    """
    only = np.array([slot])
    own = stack.take(only)
    model = own.on(task.model)
    rate = highest_rate(scenario) if own.rates is None else float(own.rates[0])
    lookout = _Lookout(model)
    try:
        descend(task, model, own, plan.take(only), scenario, lookout.after_step)
    except _FoundError as found:
        return Divergence(client, lookout.step, str(found), rate)
    return Divergence(client, lookout.step - 1, "loss", rate)


class _FoundError(Exception):
    """Ends a replay; the message is the layer."""


class _Lookout:
    """Watches all computations of a client's model in order: forward, loss, backward, step."""

    def __init__(self, model: nn.Module) -> None:
        self.step, self.modules = 0, stacked_modules(model)
        for name, module in self.modules.items():
            module.register_forward_hook(lambda _m, _x, output, name=name: _look(name, output))

    def after_step(self, done: int, loss: Tensor) -> None:
        _look("loss", loss)
        for name in reversed(self.modules):
            for p in self.modules[name].parameters():
                _look(name, *(x for x in (p.grad, p) if x is not None))
        self.step = done + 1


def _look(name: str, *values: Tensor) -> None:
    if not all(bool(torch.isfinite(x).all()) for x in values):
        raise _FoundError(name)
