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
from fedlora_sim.training.local import descend
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

    def error(self, t: int, *, nobody: bool = False) -> InputError:
        """The refusal of a run.

        Args:
            t: the round in which this happened, from 1.
            nobody: whether it happened to the whole cohort, and dropping clients is no way out.
        """
        where = f"client {self.client} diverged in round {t} at step {self.step} in {self.layer}"
        ways = ", and all the others too)" if nobody else "), or nonfinite='drop-client'"
        remedy = f"a rate at which training stays finite ({where}{ways}"
        return expected("learning_rate", self.learning_rate, remedy)


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
    own = stack.take(only)
    model = own.on(task.model)
    rate = config.learning_rate if own.rates is None else float(own.rates[0])
    lookout = _Lookout(model)
    try:
        descend(task, model, own, plan.take(only), config, lookout.after_step)
    except _FoundError as found:
        return Divergence(client, lookout.step, str(found), rate)
    return Divergence(client, lookout.step - 1, "loss", rate)


class _FoundError(Exception):
    """Ends a replay; the message is the layer."""


class _Lookout:
    """Looks at all that a client's model computes, in its order: forward, loss, backward, step."""

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
