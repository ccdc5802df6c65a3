"""The optimiser of a stack: PyTorch's, elementwise and therefore each client's own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedlora_sim.training.config import LocalConfig
from fedlora_sim.training.stacked import StackedModule


class StackDescent:
    """Steps of all clients of a stack at once, every client by its own gradient.

    Args:
        modules: what the stack trains; parameters (K, ...).
        config: optimiser, rate, decay and clipping.
        rates: learning rate of every client, (K,); None for the configuration's.
    """

    def __init__(
        self, modules: Sequence[StackedModule], config: LocalConfig, rates: Tensor | None = None
    ) -> None:
        self.modules, self.config = modules, config
        self.optimizer = _optimizer(config, self._parameters())
        # Every optimiser here moves by the rate times something that does not depend on the rate.
        self.share = None if rates is None else rates / config.learning_rate

    def step(self, objective: Tensor) -> None:
        """Move every client down the gradient of the summed objective."""
        self.optimizer.zero_grad()
        objective.backward()
        parameters = self.optimizer.param_groups[0]["params"]
        if self.config.max_grad_norm is not None:
            clip_per_client(parameters, self.config.max_grad_norm)
        before = None if self.share is None else [p.detach().clone() for p in parameters]
        self.optimizer.step()
        if before is not None and self.share is not None:
            with torch.no_grad():
                for p, start in zip(parameters, before, strict=True):
                    p.copy_(start + _per_client(self.share[: len(p)], p) * (p - start))

    def keep_first(self, num_clients: int) -> None:
        """Let all but the first clients leave, with their share of the optimiser's state.

        Setting their gradients to zero would not do: momentum would move them on.
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
    """Shorten every client's gradient to a norm, over all of its parameters together.

    As `torch.nn.utils.clip_grad_norm_` would for each client alone.

    Args:
        parameters: (K, ...) each, with gradients; changed in place.
        max_norm: the longest norm that is left as it is.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    square = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
    # The small term is PyTorch's own.
    share = (max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(_per_client(share, gradient))


def _per_client(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, *(1,) * (like.dim() - 1))


def _optimizer(config: LocalConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    # One kernel for all factors where torch has it; elsewhere torch chooses.
    fused = True if parameters[0].device.type in ("cpu", "cuda") else None
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=config.momentum, weight_decay=decay, fused=fused
        )
    rule = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return rule(parameters, lr=rate, weight_decay=decay, fused=fused)
