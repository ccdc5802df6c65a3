"""Tasks: the frozen model that all clients share, the data, and the trained modules."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fedlora_sim.errors import expected
from fedlora_sim.runtime import is_on
from fedlora_sim.scenario import Scenario, TaskFields
from fedlora_sim.storage import raw_bytes

# Labeled data as tensors, and batches trimmed to their longest sample

MASK = "attention_mask"
"""Input that marks the real positions of a sample: 1, or 0 for padding on the right."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Samples of a data set, or a batch of them.

    Args:
        inputs: inputs of the model by argument name; every tensor has samples first, (n, ...).
            With an `attention_mask` (n, T), every input whose second axis is T is a sequence.
        labels: int64; a class per sample (n,), or a token per position (n, T).
        classes: class of each sample for label skew, int64 (n,); the labels themselves when None.
        groups: writer of each sample, any integers (n,), for the split by writer; None if unknown.

    Raises:
        InputError: names the argument whose number of samples differs.
    """

    inputs: Mapping[str, Tensor]
    labels: Tensor
    classes: NDArray[np.int64] | None = None
    groups: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise expected("inputs", {}, "at least one tensor by the model's argument name")
        sizes: dict[str, int] = {f"inputs[{n!r}]": len(x) for n, x in self.inputs.items()}
        for name, values in (("classes", self.classes), ("groups", self.groups)):
            if values is not None:
                sizes[name] = len(values)
        for name, size in sizes.items():
            if size != len(self.labels):
                raise expected(name, f"{size} samples", f"{len(self.labels)}, as many as labels")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        """Device of the samples."""
        return self.labels.device

    @property
    def skew_classes(self) -> NDArray[np.int64]:
        """Class of each sample for splits, (n,).

        Raises:
            InputError: if labels are tokens and no classes are given.
        """
        if self.classes is not None:
            return self.classes
        if self.labels.ndim != 1:
            raise expected("classes", None, "a class per sample for splits by label (or split=iid)")
        return self.labels.cpu().numpy().astype(np.int64)

    @property
    def longest(self) -> int:
        """Index of the sample with the most positions that are not padding."""
        mask = self.inputs.get(MASK)
        return 0 if mask is None else int(mask.sum(1).argmax())

    def take(self, index: Tensor) -> Examples:
        """Return the samples at these indices, (m,), trimmed to the longest of them."""
        inputs = {name: x[index] for name, x in self.inputs.items()}
        return Examples(inputs, self.labels[index]).trimmed()

    def trimmed(self) -> Examples:
        """Return the same samples without the positions that are padding in all of them."""
        mask = self.inputs.get(MASK)
        if mask is None:
            return self
        used = mask.any(0).nonzero()
        length, full = int(used.max()) + 1 if len(used) else 1, mask.shape[1]
        if length == full:
            return self

        def cut(x: Tensor) -> Tensor:
            return x[:, :length] if x.ndim > 1 and x.shape[1] == full else x

        inputs = {name: cut(x) for name, x in self.inputs.items()}
        return replace(self, inputs=inputs, labels=cut(self.labels))

    def to(self, device: torch.device, dtype: torch.dtype) -> Examples:
        """Return the samples on a device; floating-point inputs in this dtype."""
        inputs = {
            name: x.to(device, dtype if x.is_floating_point() else x.dtype)
            for name, x in self.inputs.items()
        }
        return replace(self, inputs=inputs, labels=self.labels.to(device))


# Losses and hits per sample, so that clients in one stack are independent.
#
# A client's loss on a batch is `sum of totals / sum of counts` over its own samples: the mean over
# samples for classes and over tokens for completions, as for a single client.

IGNORED = -100
"""Label of ignored positions, as in PyTorch's and transformers' losses."""


class Objective(Protocol):
    """Loss and accuracy of the model's output."""

    def check_labels(self, argument: str, labels: Tensor, num_classes: int | None) -> None:
        """Refuse labels without a loss.

        Args:
            argument: the caller's name of the labels.
            labels: labels of all samples of a part.
            num_classes: number of classes; None if unknown or if labels are not classes.

        Raises:
            InputError: names the first invalid sample.
        """
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed loss in nats and its number of terms, per sample, each (n,)."""
        ...

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return whether each sample is correct, boolean (n,)."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class per sample: logits (n, classes), labels (n,); cross-entropy and accuracy."""

    def check_labels(self, argument: str, labels: Tensor, num_classes: int | None) -> None:
        """Refuse a label that is not a class, which a loss function could ignore and count as 0."""
        bad, below = labels < 0, ""
        if num_classes is not None:
            bad, below = bad | (labels >= num_classes), f" and below {num_classes}"
        if bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            wanted = f"a class of at least 0{below}"
            raise expected(f"{argument}[{first}]", labels[first].tolist(), wanted)

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of each sample, with one term per sample."""
        each = functional.cross_entropy(logits, labels, reduction="none")
        return each, each.new_ones(len(labels))

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return whether the largest logit is that of the label."""
        return logits.argmax(-1) == labels


@dataclass(frozen=True)
class Completion:
    """Next tokens: logits (n, T, vocabulary), labels (n, T) with `IGNORED` for the prompt.

    Position t predicts the label at t + 1. A sample is correct if each token of its completion is
    the most likely one after the previous ones, which means that greedy decoding would write it.
    """

    def check_labels(self, argument: str, labels: Tensor, num_classes: int | None) -> None:
        """Refuse a sample without a completion, whose loss is 0/0."""
        counted = (labels[:, 1:] != IGNORED).any(1)
        if not bool(counted.all()):
            first = int(counted.logical_not().nonzero()[0, 0])
            given = f"{labels.shape[1]} labels that count for nothing"
            wanted = f"one besides {IGNORED} after the first, which no position predicts"
            raise expected(f"{argument}[{first}]", given, wanted)

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the summed cross-entropy of each sample's completion, and its number of tokens."""
        shifted = labels[:, 1:]
        each = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), shifted.flatten(), reduction="none", ignore_index=IGNORED
        )
        counted = shifted != IGNORED
        return each.view_as(shifted).sum(1), counted.sum(1).to(each.dtype)

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return whether greedy decoding would write the completion."""
        shifted = labels[:, 1:]
        return ((logits[:, :-1].argmax(-1) == shifted) | (shifted == IGNORED)).all(1)


# Tasks


@dataclass(frozen=True, eq=False)
class Task:
    """A frozen model with its data and objective.

    Args:
        model: any module, called as `model(**inputs)`; returns logits, or an object with `.logits`.
            It is in evaluation mode with frozen parameters, and shared by all users of the task: do
            not change it.
        train: samples that are split among the clients.
        test: samples on which the global model is evaluated.
        target_modules: full names of the linear maps that carry LoRA.
        head_modules: full names of modules that each client trains as a whole (a new classifier);
            the server averages them by samples.
        objective: loss and hits.
        class_names: names of `train.skew_classes`, for plots of the split; empty if there are none.
        content: digests of the loaded model and data, see `task_content`; None for a task that was
            not loaded by a scenario.

    Raises:
        InputError: names the first sample whose labels have no loss under the objective.
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
            named = bool(self.class_names) and part.classes is None  # names of the labels
            num_classes = len(self.class_names) if named else None
            self.objective.check_labels(f"{name}.labels", part.labels, num_classes)

    @property
    def device(self) -> torch.device:
        """Device of model and data."""
        return self.train.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the model."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        """Return the task on a device in a dtype; the same object if nothing changes."""
        if is_on(self.device, device) and self.dtype == dtype:
            return self
        model = copy.deepcopy(self.model).to(device, dtype)
        train, test = self.train.to(device, dtype), self.test.to(device, dtype)
        return replace(self, model=model, train=train, test=test)


def task_content(task: Task) -> dict[str, str]:
    """Return digests of model and data, so that a run does not continue with others.

    Returns:
        `model_content`: digest of all parameters and buffers, and of the names of trained modules.
        `data_content`: digest of all inputs and labels.
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
    """Return the model's logits of a batch."""
    output = model(**inputs)
    found = output if isinstance(output, Tensor) else output.logits
    assert isinstance(found, Tensor)  # required by Task
    return found


# The options of a task in a scenario, as one hashable object


@dataclass(frozen=True, kw_only=True)
class TaskOptions(TaskFields):
    """Options of a task.

    Args:
        dtype: `float32 | float64`.
    """

    dtype: str = "float32"

    @classmethod
    def of(cls, scenario: Scenario) -> TaskOptions:
        """Return the task options of a scenario."""
        own = {field.name: getattr(scenario, field.name) for field in fields(TaskFields)}
        return cls(**own, dtype=str(scenario.dtype))


# Stratified subsets


def stratified_sample(
    classes: NDArray[np.int64], size: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw samples so that each class keeps its share to within one sample.

    Args:
        classes: class of each sample, (n,).
        size: number of samples to draw; all n when None or above n.
        rng: source of randomness.

    Returns:
        Indices of the samples, ascending, (min(size, n),).
    """
    total = len(classes)
    if size is None or size >= total:
        return np.arange(total)
    names, counts = np.unique(classes, return_counts=True)
    quota, rest = np.divmod(counts * size, total)
    # The remainder of the division goes to the classes with the largest remainders.
    quota[np.argsort(-rest, kind="stable")[: size - quota.sum()]] += 1
    drawn = [
        rng.choice(np.flatnonzero(classes == name), number, replace=False)
        for name, number in zip(names, quota, strict=True)
    ]
    return np.sort(np.concatenate(drawn))
