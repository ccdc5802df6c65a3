"""Local training of a cohort: every client's LoRA adapters, all clients in one batched run.

A client minimises the mean cross-entropy of its own batches, starting from the adapters it was
handed; its batches come from its own random stream. Nothing of one client enters another's
arithmetic, so training one by one, in chunks or all stacked gives the same adapters up to the
order of sums. A client with fewer steps than the others leaves the stack after its last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from fedlora_sim.errors import check_choice, check_finite, check_positive_int, expected
from fedlora_sim.scenario import OPTIMIZERS
from fedlora_sim.threads import one_thread
from fedlora_sim.training.batches import BatchPlan, plan_batches
from fedlora_sim.training.checks import check_samples, check_sizes, check_trained
from fedlora_sim.training.digits import DigitsTask
from fedlora_sim.training.pruning import TailPenalty
from fedlora_sim.training.stacked import (
    Adapters,
    Frozen,
    StackedLoRALinear,
    attach,
    find_linear,
)


@dataclass(frozen=True)
class LocalConfig:
    """How a client trains in one round.

    Args:
        optimizer: `adam`, `adamw` or `sgd`; starts anew every round.
        learning_rate: constant over the round.
        momentum: of `sgd`.
        weight_decay: added to the gradient (`adam`, `sgd`) or decoupled (`adamw`); acts on the
            factors `lora_A` and `lora_B`.
        batch_size: samples per step; the last batch of an epoch may be shorter.
        local_steps: steps per round, over as many epochs as that takes; or
        local_epochs: passes over the client's samples. Exactly one of the two is given.

    Raises:
        ValueError: naming the argument, its value and what was expected.
    """

    optimizer: str = "adam"
    learning_rate: float = 5e-3
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 16
    local_steps: int | None = None
    local_epochs: int | None = None

    def __post_init__(self) -> None:
        optimizer = check_choice("optimizer", self.optimizer, OPTIMIZERS)
        object.__setattr__(self, "optimizer", optimizer)
        for name in ("learning_rate", "momentum", "weight_decay"):
            object.__setattr__(self, name, check_finite(name, getattr(self, name), minimum=0.0))
        if self.momentum and optimizer != "sgd":
            raise expected("momentum", self.momentum, f"0 with optimizer={optimizer!r}")
        if (self.local_steps is None) == (self.local_epochs is None):
            given = (self.local_steps, self.local_epochs)
            raise expected("(local_steps, local_epochs)", given, "exactly one of the two")
        for name in ("batch_size", "local_steps", "local_epochs"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_positive_int(name, getattr(self, name)))


def train_cohort(
    task: DigitsTask,
    adapters: Adapters,
    scaling: Sequence[float] | Tensor,
    samples: Sequence[np.ndarray],
    rngs: Sequence[np.random.Generator],
    config: LocalConfig,
    *,
    clients: Sequence[int] | None = None,
    frozen: Mapping[str, Frozen] | None = None,
    tail: TailPenalty | None = None,
) -> Adapters:
    """Train all clients of a cohort, stacked, each from its own adapters on its own samples.

    Args:
        task: frozen model, data and target modules.
        adapters: for every target module, `lora_A` (K, r, d_in) and `lora_B` (K, d_out, r),
            zero-padded to the cohort's highest rank r; not changed.
        scaling: LoRA scaling of every client, shape (K,).
        samples: for every client, indices into `task.train_x`, shape (n_k,), not empty.
        rngs: one generator per client, for the order of its samples; advanced by the call.
        config: optimiser, rate, batches.
        clients: identifiers for error messages, K of them; `0..K-1` when not given.
        frozen: for modules of whose adapters something stays as it is, what.
        tail: penalty on the clients' last rank components, added to their losses.

    Returns:
        The trained adapters, new tensors in the layout of `adapters`; padding is still zero.

    Raises:
        DivergedError: if a client's loss or adapters become non-finite; names client and step.
        ValueError: on arguments that do not fit each other.
    """
    names = range(len(samples)) if clients is None else clients
    check_samples(samples, len(task.train_y))
    check_sizes(len(samples), adapters, scaling=scaling, rngs=rngs, clients=names)
    plan = plan_batches(
        samples,
        rngs,
        batch_size=config.batch_size,
        local_steps=config.local_steps,
        local_epochs=config.local_epochs,
    )
    # Longest first: the clients that are still training are then always a prefix of the stack.
    order = np.argsort(-plan.num_steps, kind="stable")
    start = {name: (A[order], B[order]) for name, (A, B) in adapters.items()}
    scales = torch.as_tensor(scaling, dtype=torch.float64)[order]
    model = attach(task.model, task.target_modules, start, scales, frozen)
    layers = {name: _stacked(model, name) for name in task.target_modules}
    ends = {name: (layer.lora_A.detach(), layer.lora_B.detach()) for name, layer in layers.items()}
    with one_thread():
        sorted_tail = None if tail is None else tail.take(order)
        losses = _train(model, list(layers.values()), task, plan.take(order), config, sorted_tail)
    back = np.argsort(order)
    trained = {name: (A[back], B[back]) for name, (A, B) in ends.items()}
    check_trained(losses[:, back], trained, plan.num_steps, names, config.learning_rate)
    return trained


def evaluate(task: DigitsTask, deltas: Mapping[str, Tensor] | None = None) -> tuple[float, float]:
    """Test accuracy and mean cross-entropy of the model with an update merged into its weights.

    Args:
        task: frozen model and test data.
        deltas: module name -> update dW of its weight, shape (d_out, d_in), scaling included;
            modules not named keep their weight. None: the pretrained model.

    Returns:
        Accuracy in [0, 1] and loss in nats.

    Raises:
        ValueError: on a name that is no linear module, or a shape that is not its weight's.
    """
    merged = {}
    for name, delta in (deltas or {}).items():
        weight = find_linear(task.model, name).weight
        if delta.shape != weight.shape:
            raise expected("deltas", tuple(delta.shape), f"{tuple(weight.shape)} for {name!r}")
        merged[f"{name}.weight"] = weight + delta.to(weight)
    with one_thread(), torch.inference_mode():
        logits = functional_call(task.model, merged, (task.test_x,))
        loss = functional.cross_entropy(logits, task.test_y)
        hits = (logits.argmax(dim=1) == task.test_y).sum()
    return int(hits) / len(task.test_y), float(loss)


def _train(
    model: nn.Module,
    layers: Sequence[StackedLoRALinear],
    task: DigitsTask,
    plan: BatchPlan,
    config: LocalConfig,
    tail: TailPenalty | None = None,
) -> Tensor:
    """Run the plan, clients sorted by falling number of steps; returns losses (steps, K)."""
    device, dtype = task.train_x.device, task.train_x.dtype
    index = torch.as_tensor(plan.index, device=device)
    weight = torch.as_tensor(plan.weight, device=device, dtype=dtype)
    remaining = (plan.num_steps > np.arange(index.shape[0])[:, None]).sum(axis=1)
    optimizer = _optimizer(config, layers)
    losses = torch.zeros(index.shape[:2], dtype=dtype, device=device)
    active = index.shape[1]
    for step, left in enumerate(remaining.tolist()):
        if left < active:
            active = left
            _keep_first(optimizer, layers, active)
        batch = index[step, :active].flatten()
        logits = model(task.train_x[batch])
        each = functional.cross_entropy(logits, task.train_y[batch], reduction="none")
        loss = (each.view(active, -1) * weight[step, :active]).sum(dim=1)
        objective = loss.sum()
        if tail is not None:
            objective = (
                objective + tail.factor * tail.size([(x.lora_A, x.lora_B) for x in layers]).sum()
            )
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        losses[step, :active] = loss.detach()
    return losses


def _parameters(layers: Sequence[StackedLoRALinear]) -> list[nn.Parameter]:
    factors = [factor for layer in layers for factor in (layer.lora_A, layer.lora_B)]
    return [factor for factor in factors if factor.requires_grad]


def _optimizer(config: LocalConfig, layers: Sequence[StackedLoRALinear]) -> torch.optim.Optimizer:
    """A fresh optimiser over the stacked adapters, elementwise and therefore per client."""
    parameters = _parameters(layers)
    rate, decay = config.learning_rate, config.weight_decay
    # One kernel for all factors where torch has it; elsewhere torch chooses.
    fused = True if parameters[0].device.type in ("cpu", "cuda") else None
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=fused
        )
    rule = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return rule(parameters, lr=rate, weight_decay=decay, fused=fused)


def _keep_first(
    optimizer: torch.optim.Optimizer, layers: Sequence[StackedLoRALinear], num_clients: int
) -> None:
    """Let all but the first clients leave, with their share of the optimiser's state.

    Setting their gradients to zero would not do: momentum would move them on.
    """
    old = _parameters(layers)
    for layer in layers:
        layer.keep_first(num_clients)
    new = _parameters(layers)
    optimizer.param_groups[0]["params"] = new
    for before, after in zip(old, new, strict=True):
        state = optimizer.state.pop(before)
        optimizer.state[after] = {
            key: value[:num_clients] if isinstance(value, Tensor) and value.dim() else value
            for key, value in state.items()
        }


def _stacked(model: nn.Module, name: str) -> StackedLoRALinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, StackedLoRALinear)  # attach put it there
    return layer
