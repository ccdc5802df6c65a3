"""What local training refuses: arguments that do not fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fedlora_sim.errors import expected
from fedlora_sim.tasks.targets import linear_shape
from fedlora_sim.tasks.task import Task
from fedlora_sim.training.attach import find_linear
from fedlora_sim.training.stacked import Adapters, Heads


def check_samples(samples: Sequence[np.ndarray], num_samples: int) -> None:
    """Refuse an empty cohort, empty clients, and indices that are not indices."""
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
    """Refuse a task without targets, and a rank that one of them has no room for."""
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
    """Refuse arguments that speak of more or fewer clients than `samples` does."""
    sizes = {argument: len(value) for argument, value in others.items()}
    sizes |= {f"adapters[{name!r}]": len(lora_A) for name, (lora_A, _) in adapters.items()}
    sizes |= {f"heads[{name!r}]": len(own[0]) for name, own in heads.items()}
    for argument, size in sizes.items():
        if size != num_clients:
            raise expected(argument, f"{size} clients", f"{num_clients}, as many as samples")
