"""A labelled data set as tensors, batches of it cut to the longest sample that they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlora_sim.errors import expected

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
        ValueError: naming the argument whose number of samples differs.
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
            ValueError: where labels are tokens and nothing says what the classes are.
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
