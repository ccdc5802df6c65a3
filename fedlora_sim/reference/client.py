"""One client's part of federated fine-tuning, its gradients taken through the merged weights.

The client differentiates through `W + s B A` itself, and its optimiser is written out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fedlora_sim.finetune.batches import client_streams, plan_batches
from fedlora_sim.reference.aggregation import Array, Factors
from fedlora_sim.scenario import Scenario
from fedlora_sim.tasks.digits import DigitsTask

Weights = dict[str, Tensor]
Leaves = dict[tuple[str, str], Tensor]
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # Adam's defaults (Kingma and Ba 2015, arXiv 1412.6980)


def local_batches(
    scenario: Scenario, samples: NDArray[np.int64], seed: int, t: int, k: int
) -> list[NDArray[np.int64]]:
    """Sample indices of every step of client k in round t."""
    plan = plan_batches(
        [samples],
        client_streams(seed, t, [k]),
        batch_size=scenario.batch_size,
        local_steps=scenario.local_steps,
    )
    return [index[0][real[0]] for index, real in zip(plan.index, plan.real, strict=True)]


def loss_of(task: DigitsTask, weights: Weights, batch: NDArray[np.int64]) -> Tensor:
    """Mean cross-entropy on a batch, with these weights in place of the model's."""
    chosen = torch.from_numpy(batch)
    replaced = {f"{name}.weight": weight for name, weight in weights.items()}
    logits = functional_call(task.model, replaced, (task.train.inputs["images"][chosen],))
    return functional.cross_entropy(logits, task.train.labels[chosen])


def merged(weights: Weights, leaves: Leaves, scaling: float) -> Weights:
    """`W + s B A` of every module."""
    return {
        name: w + scaling * (leaves[name, "B"] @ leaves[name, "A"]) for name, w in weights.items()
    }


def tail_size(leaves: Leaves, start: int) -> Tensor:
    """`sum ||B_tail||_F ||A_tail||_F` over the modules, the tail from component `start` on."""
    size = torch.zeros((), dtype=torch.float64)
    for name, side in leaves:
        if side == "A":
            tail_b, tail_a = leaves[name, "B"][:, start:], leaves[name, "A"][start:]
            size = size + torch.linalg.vector_norm(tail_b) * torch.linalg.vector_norm(tail_a)
    return size


def train_client(
    scenario: Scenario,
    task: DigitsTask,
    weights: Weights,
    received: Mapping[str, Factors],
    scaling: float,
    batches: list[NDArray[np.int64]],
    *,
    frozen_a: bool,
) -> tuple[dict[str, Factors], int]:
    """Local steps of one client, its optimiser starting anew.

    Args:
        scenario: optimiser, rate and self-pruning; Adam or plain SGD.
        task: model and data.
        weights: of the adapted modules, corrections of the base included.
        received: the factors it starts from.
        scaling: its LoRA scaling.
        batches: sample indices of every step.
        frozen_a: train B alone.

    Returns:
        Its factors, cut to the rank that it goes on with, and that rank.
    """
    leaves = {
        (name, side): torch.from_numpy(factor)
        for name, pair in received.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    rank = len(next(iter(received.values()))[0])
    decay = scenario.pruning_decay
    keep = rank if decay is None else max(1, math.ceil(decay * rank))

    def objective(now: Leaves, batch: NDArray[np.int64]) -> Tensor:
        loss = loss_of(task, merged(weights, now, scaling), batch)
        return loss + scenario.pruning_penalty * tail_size(now, keep) if keep < rank else loss

    moving = [key for key in leaves if key[1] == "B" or not frozen_a]
    before, trained = tail_size(leaves, keep), leaves
    descent = Descent(scenario)
    for batch in batches:
        wanted = {key: trained[key].clone().requires_grad_(True) for key in moving}
        loss = objective({**trained, **wanted}, batch)
        gradients = torch.autograd.grad(loss, list(wanted.values()))
        trained = {**trained, **descent.step(trained, dict(zip(moving, gradients, strict=True)))}
    if not tail_size(trained, keep) < before:
        keep = rank
    sent = {
        name: (trained[name, "A"][:keep].numpy(), trained[name, "B"][:, :keep].numpy())
        for name in received
    }
    return sent, keep


class Descent:
    """Adam or SGD, as their papers write them, over tensors by name."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.count = scenario, 0
        self.moments: dict[object, tuple[Tensor, Tensor]] = {}

    def step(
        self, values: Mapping[tuple[str, str], Tensor], gradients: Mapping[tuple[str, str], Tensor]
    ) -> Leaves:
        """New values of whatever has a gradient."""
        self.count += 1
        rate = self.scenario.learning_rate
        return {key: values[key] - rate * self._move(key, g) for key, g in gradients.items()}

    def _move(self, key: object, gradient: Tensor) -> Tensor:
        if self.scenario.optimizer == "sgd":
            return gradient
        zero = torch.zeros_like(gradient)
        first, second = self.moments.get(key, (zero, zero))
        first = BETA_1 * first + (1 - BETA_1) * gradient
        second = BETA_2 * second + (1 - BETA_2) * gradient**2
        self.moments[key] = (first, second)
        corrected = (second / (1 - BETA_2**self.count)).sqrt() + EPSILON
        return first / (1 - BETA_1**self.count) / corrected


def importance_reference(
    task: DigitsTask,
    weights: Weights,
    received: Mapping[str, Factors],
    samples: NDArray[np.int64],
    *,
    frozen_a: bool,
) -> dict[str, Array]:
    """Norm of one client's gradient along every direction of the global adapter, by module."""
    leaves = {
        (name, side): torch.from_numpy(factor).clone().requires_grad_(True)
        for name, pair in received.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    loss_of(task, merged(weights, leaves, 1.0), samples).backward()
    norms = {}
    for name, (lora_a, _) in received.items():
        on_a, on_b = leaves[name, "A"].grad, leaves[name, "B"].grad
        assert on_a is not None  # both are leaves of the loss
        assert on_b is not None
        square = [
            float(on_b[:, i].square().sum() + (0.0 if frozen_a else on_a[i].square().sum()))
            for i in range(len(lora_a))
        ]
        norms[name] = np.sqrt(square)
    return norms
