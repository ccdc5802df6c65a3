"""A task: the frozen model that all clients share, the data, and what of the model they train."""

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
from fedlora_sim.scenario import Scenario, TaskFields
from fedlora_sim.storage import raw_bytes

# A labelled data set as tensors, batches of it cut to the longest sample that they hold

MASK = "attention_mask"
"""Input that says which positions of a sample are real: 1, or 0 for padding on the right."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Samples of a data set, or a batch of them.

    Args:
        inputs: what the model takes, by argument name; every tensor has samples first, (n, ...).
            With an `attention_mask` (n, T), every input whose second axis is T is a sequence.
        labels: int64; a class per sample (n,), or a token per position (n, T).
        classes: what label skew is counted in, int64 (n,); the labels themselves when None.
        groups: who wrote the sample, any integers (n,), for the split by writer; None if unknown.

    Raises:
        InputError: naming the argument whose number of samples differs.
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
        """Where the samples are."""
        return self.labels.device

    @property
    def skew_classes(self) -> NDArray[np.int64]:
        """The class of every sample that splits look at, (n,).

        Raises:
            InputError: where labels are tokens and nothing says what the classes are.
        """
        if self.classes is not None:
            return self.classes
        if self.labels.ndim != 1:
            raise expected("classes", None, "a class per sample for splits by label (or split=iid)")
        return self.labels.cpu().numpy().astype(np.int64)

    @property
    def longest(self) -> int:
        """Index of the sample with the most positions that are no padding."""
        mask = self.inputs.get(MASK)
        return 0 if mask is None else int(mask.sum(1).argmax())

    def take(self, index: Tensor) -> Examples:
        """The samples at these indices, (m,), cut to the longest of them."""
        inputs = {name: x[index] for name, x in self.inputs.items()}
        return Examples(inputs, self.labels[index]).trimmed()

    def trimmed(self) -> Examples:
        """The same samples without the positions that are padding in all of them."""
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
        """The same samples elsewhere; floating-point inputs in this dtype."""
        inputs = {
            name: x.to(device, dtype if x.is_floating_point() else x.dtype)
            for name, x in self.inputs.items()
        }
        return replace(self, inputs=inputs, labels=self.labels.to(device))


# Losses and hits, sample by sample, so that clients in one stack keep to themselves.
#
# A client's loss on a batch is `sum of totals / sum of counts` over its own samples: the mean
# over samples for classes, the mean over tokens for completions, as a client alone would have it.

IGNORED = -100
"""Label of a position that counts for nothing, as in PyTorch's and transformers' losses."""


class Objective(Protocol):
    """What the model's output is held against."""

    def check_labels(self, argument: str, labels: Tensor, num_classes: int | None) -> None:
        """Refuse labels that no loss can be made of.

        Args:
            argument: what the caller calls the labels.
            labels: of all samples of a part.
            num_classes: how many classes there are; None if unknown or if labels are no classes.

        Raises:
            InputError: naming the first sample that is otherwise.
        """
        ...

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss in nats and what it is a sum over, per sample, each (n,)."""
        ...

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether every sample is right, boolean (n,)."""
        ...


@dataclass(frozen=True)
class Classification:
    """One class per sample: logits (n, classes), labels (n,); cross-entropy and accuracy."""

    def check_labels(self, argument: str, labels: Tensor, num_classes: int | None) -> None:
        """Refuse a label that is no class: one that a loss ignores would count as a loss of 0."""
        bad, below = labels < 0, ""
        if num_classes is not None:
            bad, below = bad | (labels >= num_classes), f" and below {num_classes}"
        if bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            wanted = f"a class of at least 0{below}"
            raise expected(f"{argument}[{first}]", labels[first].tolist(), wanted)

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every sample, each counting for one."""
        each = functional.cross_entropy(logits, labels, reduction="none")
        return each, each.new_ones(len(labels))

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether the largest logit is the label's."""
        return logits.argmax(-1) == labels


@dataclass(frozen=True)
class Completion:
    """Next tokens: logits (n, T, vocabulary), labels (n, T) with `IGNORED` for the prompt.

    Position t predicts the label at t + 1. A sample is right when every token of its completion
    is the most likely one after those before it: exactly when greedy decoding would write it.
    """

    def check_labels(self, argument: str, labels: Tensor, num_classes: int | None) -> None:
        """Refuse a sample of no completion: its loss is 0/0, and every output would be right."""
        counted = (labels[:, 1:] != IGNORED).any(1)
        if not bool(counted.all()):
            first = int(counted.logical_not().nonzero()[0, 0])
            given = f"{labels.shape[1]} labels that count for nothing"
            wanted = f"one besides {IGNORED} after the first, which no position predicts"
            raise expected(f"{argument}[{first}]", given, wanted)

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over every sample's completion, and its number of tokens."""
        shifted = labels[:, 1:]
        each = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), shifted.flatten(), reduction="none", ignore_index=IGNORED
        )
        counted = shifted != IGNORED
        return each.view_as(shifted).sum(1), counted.sum(1).to(each.dtype)

    def hits(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Whether greedy decoding would write the completion."""
        shifted = labels[:, 1:]
        return ((logits[:, :-1].argmax(-1) == shifted) | (shifted == IGNORED)).all(1)


# A task: the frozen model that all clients share, the data, and what of the model they train


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


# Which task is loaded, and how: what a scenario says of its task, in one hashable piece


@dataclass(frozen=True, kw_only=True)
class TaskOptions(TaskFields):
    """A task's description.

    Args:
        dtype: `float32 | float64`.
    """

    dtype: str = "float32"

    @classmethod
    def of(cls, scenario: Scenario) -> TaskOptions:
        """What a scenario says of its task."""
        own = {field.name: getattr(scenario, field.name) for field in fields(TaskFields)}
        return cls(**own, dtype=str(scenario.dtype))


# Smaller data sets with the classes of the whole one


def stratified_sample(
    classes: NDArray[np.int64], size: int | None, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw samples so that every class keeps its share, to within one sample.

    Args:
        classes: of every sample, (n,).
        size: samples to draw; all n when None or above n.
        rng: draws which ones.

    Returns:
        Indices of the samples, ascending, (min(size, n),).
    """
    total = len(classes)
    if size is None or size >= total:
        return np.arange(total)
    names, counts = np.unique(classes, return_counts=True)
    quota, rest = np.divmod(counts * size, total)
    # What the division leaves goes to the classes that it cut most (largest remainders).
    quota[np.argsort(-rest, kind="stable")[: size - quota.sum()]] += 1
    drawn = [
        rng.choice(np.flatnonzero(classes == name), number, replace=False)
        for name, number in zip(names, quota, strict=True)
    ]
    return np.sort(np.concatenate(drawn))
