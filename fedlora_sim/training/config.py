"""How clients train in one round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.errors import (
    check_choice,
    check_finite,
    check_positive,
    check_positive_int,
    expected,
)
from fedlora_sim.scenario import OPTIMIZERS, Scenario
from fedlora_sim.training.batches import BatchPlan, plan_batches


@dataclass(frozen=True)
class LocalConfig:
    """How a client trains in one round.

    Args:
        optimizer: `adam`, `adamw` or `sgd`; starts anew every round.
        learning_rate: constant over the round.
        momentum: of `sgd`.
        weight_decay: added to the gradient (`adam`, `sgd`) or decoupled (`adamw`); acts on the
            factors `lora_A` and `lora_B`, and on heads.
        batch_size: samples per step; the last batch of an epoch may be shorter.
        local_steps: steps per round, over as many epochs as that takes; or
        local_epochs: passes over the client's samples. Exactly one of the two is given.
        max_grad_norm: a client's gradient, over everything that it trains, is shortened to this
            norm where it is longer; None leaves it.
        stack_size: clients trained side by side at most; None for all of the cohort, or as many
            as `memory_budget` allows. The adapters do not depend on it, up to rounding.
        memory_budget: GiB that the activations of a stack may take, as measured on one client;
            None sets no bound.
        gradient_checkpointing: see `attach`.

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
    max_grad_norm: float | None = None
    stack_size: int | None = None
    memory_budget: float | None = None
    gradient_checkpointing: bool = False

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
        for name in ("batch_size", "local_steps", "local_epochs", "stack_size"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_positive_int(name, getattr(self, name)))
        for name in ("max_grad_norm", "memory_budget"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_positive(name, getattr(self, name)))

    def plan(
        self, samples: Sequence[NDArray[np.int64]], rngs: Sequence[np.random.Generator]
    ) -> BatchPlan:
        """Draw the batches of one round.

        Args:
            samples: for every client, its sample indices, shape (n_k,), not empty.
            rngs: one generator per client; advanced by whole epochs.
        """
        return plan_batches(
            samples,
            rngs,
            batch_size=self.batch_size,
            local_steps=self.local_steps,
            local_epochs=self.local_epochs,
        )

    @classmethod
    def of(cls, scenario: Scenario) -> LocalConfig:
        """As the scenario has it: `local_steps` where given, else `local_epochs`.

        Where clients have rates of their own the highest of them: steps are then only ever
        shortened, which loses no digits.
        """
        rates = scenario.client_learning_rates or (scenario.learning_rate,)
        epochs = scenario.local_epochs if scenario.local_steps is None else None
        return cls(
            optimizer=str(scenario.optimizer),
            learning_rate=max(rates),
            momentum=scenario.momentum,
            weight_decay=scenario.weight_decay,
            batch_size=scenario.batch_size,
            local_steps=scenario.local_steps,
            local_epochs=epochs,
            max_grad_norm=scenario.max_grad_norm,
            stack_size=scenario.stack_size,
            memory_budget=scenario.memory_budget,
            gradient_checkpointing=scenario.gradient_checkpointing,
        )


def client_rates(scenario: Scenario, clients: NDArray[np.int64]) -> Tensor | None:
    """Learning rates of these clients, (m,), where the scenario gives clients their own."""
    rates = scenario.client_learning_rates
    if rates is None:
        return None
    return torch.tensor([rates[k] for k in clients], dtype=torch.float64)


def check_rates(rates: Sequence[float], num_clients: int) -> tuple[float, ...]:
    """Learning rates of single clients: one per client, positive and finite."""
    values = tuple(check_positive("learning_rates", rate) for rate in rates)
    if len(values) != num_clients:
        raise expected("learning_rates", list(values), f"{num_clients} rates, one per client")
    return values
