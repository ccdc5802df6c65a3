"""What a run was trained on, in a word, so that it does not go on with something else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from torch import Tensor

from fedlora_sim.tasks.task import Task

LOOKED_AT = 2**12
"""Entries of a parameter that are hashed, evenly spaced: another model differs in all of them."""


def task_fingerprint(task: Task) -> str:
    """Hash of a task's data, names and (in part) parameters."""
    digest = hashlib.sha256(repr((task.target_modules, task.head_modules)).encode())
    for name, x in _tensors(task):
        digest.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
        digest.update(x.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(task: Task) -> Iterator[tuple[str, Tensor]]:
    for which, part in (("train", task.train), ("test", task.test)):
        yield f"{which} labels", part.labels
        for name, x in sorted(part.inputs.items()):
            yield f"{which} {name}", x
    for name, x in task.model.state_dict().items():
        yield name, x.flatten()[:: max(1, x.numel() // LOOKED_AT)]
