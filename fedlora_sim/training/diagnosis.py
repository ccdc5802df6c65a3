"""Where a client stopped being finite: its training once more, alone, looked at step by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_sim.errors import InputError, expected
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.attach import stacked_modules
from fedlora_sim.training.batches import BatchPlan
from fedlora_sim.training.config import LocalConfig
from fedlora_sim.training.local import train_stack
from fedlora_sim.training.stack import Stack


@dataclass(frozen=True)
class Divergence:
    """A client whose update is not finite.

    Args:
        client: its number.
        step: its local step, counted from 0.
        layer: module in which the first number that is not finite showed; `loss` if in none.
        learning_rate: at which it trained.
    """

    client: int
    step: int
    layer: str
    learning_rate: float

    def error(self, t: int) -> InputError:
        """The refusal of a run in whose round t (from 1) this happened."""
        where = f"client {self.client} diverged in round {t} at step {self.step} in {self.layer}"
        remedy = f"a rate at which training stays finite ({where}), or nonfinite='drop-client'"
        return expected("learning_rate", self.learning_rate, remedy)


class _FoundError(Exception):
    """Ends a replay: step and layer are known."""


def find_divergence(
    task: Task, stack: Stack, plan: BatchPlan, config: LocalConfig, slot: int, client: int
) -> Divergence:
    """Train one client of a cohort again and see where it stops being finite.

    Args:
        task: as for `train_on_plan`, and so are the others.
        stack: what the cohort started from.
        plan: its batches.
        config: optimiser and rate.
        slot: place of the client in the cohort.
        client: its number.

    Returns:
        The first step and layer; the last step and `loss` where the client is finite when alone.
    """
    only = np.array([slot])
    rate = config.learning_rate if stack.rates is None else float(stack.rates[slot])

    def watch(step: int, model: nn.Module, loss: Tensor) -> None:
        for name, module in stacked_modules(model).items():
            values = [x for p in module.parameters() for x in (p.grad, p) if x is not None]
            if not all(bool(torch.isfinite(x).all()) for x in values):
                raise _FoundError(step, name)
        if not bool(torch.isfinite(loss).all()):
            raise _FoundError(step, "loss")

    try:
        train_stack(task, stack.take(only), plan.take(only), config, watch)
    except _FoundError as found:
        step, layer = found.args
        return Divergence(client, step, layer, rate)
    return Divergence(client, int(plan.num_steps[slot]) - 1, "loss", rate)
