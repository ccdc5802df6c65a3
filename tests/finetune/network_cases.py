"""A network of two linear maps with any module between them, and a task for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedlora_sim.tasks.task import Examples, Task

WIDTH, CLASSES = 6, 3


class Network(nn.Module):
    """Two linear maps with the module under test between them."""

    def __init__(self, middle: nn.Module, *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(WIDTH, WIDTH), middle
        self.last = nn.Linear(WIDTH, CLASSES, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(x))))


class Function(nn.Module):
    """Any function of tensors as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def random_network(middle: nn.Module | None = None, *, bias: bool = True) -> Network:
    """Return a float64 network in training mode, with random parameters that require gradients."""
    model = Network(nn.Identity() if middle is None else middle, bias=bias).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    return model


def network_task(
    model: nn.Module, targets: tuple[str, ...] = ("first",), heads: tuple[str, ...] = ()
) -> Task:
    """Return forty random samples of three classes, the same for training and test."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, WIDTH, generator=generator, dtype=torch.float64)
    part = Examples({"x": x}, torch.arange(40) % CLASSES)
    return Task(model, part, part, targets, heads)
