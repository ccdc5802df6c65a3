"""A task: the frozen model that all clients share, the data, and what of the model they train."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_sim.storage import raw_bytes
from fedlora_sim.tasks.examples import Examples
from fedlora_sim.tasks.objectives import Classification, Objective


@dataclass(frozen=True, eq=False)
class Task:
    """A model and what it is to learn.

    Args:
        model: any module, called as `model(**inputs)`; returns logits, or an object that has them
            as `.logits`. In evaluation mode, its parameters frozen, and shared by all who load the
            task: not to be changed.
        train: samples that are split among the clients.
        test: samples that the global model is judged on.
        target_modules: full names of the linear maps that carry LoRA.
        head_modules: full names of modules that every client trains as a whole (a new classifier);
            the server averages them by samples.
        objective: loss and hits.
        class_names: of `train.skew_classes`, for plots of the split; empty if they have none.
        content: digests of model and data as they were loaded, see `task_content`; None for a task
            that was not loaded by a scenario.

    Raises:
        InputError: naming the first sample whose labels the objective has no loss for.
    """

    model: nn.Module
    train: Examples
    test: Examples
    target_modules: tuple[str, ...]
    head_modules: tuple[str, ...] = ()
    objective: Objective = field(default_factory=Classification)
    class_names: tuple[str, ...] = ()
    content: Mapping[str, str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("test", self.test)):
            named = bool(self.class_names) and part.classes is None  # then they are the labels'
            num_classes = len(self.class_names) if named else None
            self.objective.check_labels(f"{name}.labels", part.labels, num_classes)

    @property
    def device(self) -> torch.device:
        """Where model and data are."""
        return self.train.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the model."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        """The task elsewhere; the same one where it is there already."""
        if (self.device, self.dtype) == (device, dtype):
            return self
        model = copy.deepcopy(self.model).to(device, dtype)
        train, test = self.train.to(device, dtype), self.test.to(device, dtype)
        return replace(self, model=model, train=train, test=test)


def task_content(task: Task) -> dict[str, str]:
    """Digests of what a run is trained on, so that it does not continue with something else.

    Returns:
        `model_content`: of every parameter and buffer, and the names of what is trained.
        `data_content`: of all inputs and labels.
    """
    model = hashlib.sha256(repr((task.target_modules, task.head_modules)).encode())
    for name, x in task.model.state_dict().items():
        _update(model, name, x)
    data = hashlib.sha256()
    for which, part in (("train", task.train), ("test", task.test)):
        for name, x in (("labels", part.labels), *sorted(part.inputs.items())):
            _update(data, f"{which} {name}", x)
    return {"model_content": model.hexdigest(), "data_content": data.hexdigest()}


def _update(found: Any, name: str, x: Tensor) -> None:
    found.update(f"{name} {tuple(x.shape)} {x.dtype}".encode())
    found.update(raw_bytes(x))


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """What the model makes of a batch."""
    output = model(**inputs)
    found = output if isinstance(output, Tensor) else output.logits
    assert isinstance(found, Tensor)  # what Task asks of its model
    return found
