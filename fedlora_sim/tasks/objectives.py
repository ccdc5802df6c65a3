"""Losses and hits, sample by sample, so that clients in one stack keep to themselves.

A client's loss on a batch is `sum of totals / sum of counts` over its own samples: the mean over
samples for classes, the mean over tokens for completions, as a client alone would have it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn import functional

from fedlora_sim.errors import expected

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
